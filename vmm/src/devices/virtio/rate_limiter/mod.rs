//! Limits on how fast a guest may use a device: token buckets, as Firecracker and Cloud Hypervisor have them.
//!
//! A limiter has up to two buckets, one for bytes and one for operations ([`RateLimiterConfig`]). A request takes its tokens
//! from both at once. Where one has too few, the request stays in the queue, with those behind it, and the device's thread
//! waits until there are enough: the guest sees a slow device and nothing else. The wait ends at once where the device is
//! paused, reset or dropped.
//!
//! The tokens belong to the device and not to its driver: a reset or a pause neither fills a bucket nor empties it, and time
//! goes on filling it meanwhile. They are no part of a snapshot: a restored VM begins with full buckets.

mod bucket;
mod config;

pub use config::{MAX_REFILL_TIME, MAX_TOKENS, RateLimiterConfig, TokenBucketConfig};

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bucket::TokenBucket;

/// The limit of one device, if it has one. Clones share the buckets.
#[derive(Clone, Debug)]
pub(super) struct Limit(Option<Arc<Mutex<Limiter>>>);

impl Limit {
    /// Full buckets, where `config` has any.
    pub(super) fn new(config: Option<&RateLimiterConfig>) -> Self {
        let limiter = config.and_then(|config| Limiter::new(config, Instant::now()));
        Self(limiter.map(|limiter| Arc::new(Mutex::new(limiter))))
    }

    /// Takes the tokens of a request, or says how long it is until they are there.
    pub(super) fn admit(&self, bytes: u64, operations: u64) -> Result<(), Duration> {
        let Some(limiter) = &self.0 else {
            return Ok(());
        };
        let mut limiter = limiter.lock().unwrap_or_else(PoisonError::into_inner);
        limiter.admit(bytes, operations, Instant::now())
    }
}

#[derive(Debug)]
struct Limiter {
    bytes: Option<TokenBucket>,
    operations: Option<TokenBucket>,
    /// What the buckets count time from.
    origin: Instant,
}

impl Limiter {
    fn new(config: &RateLimiterConfig, origin: Instant) -> Option<Self> {
        let bucket = |config: &Option<TokenBucketConfig>| config.as_ref().map(TokenBucket::new);
        let limiter = Self {
            bytes: bucket(&config.bandwidth),
            operations: bucket(&config.ops),
            origin,
        };
        (limiter.bytes.is_some() || limiter.operations.is_some()).then_some(limiter)
    }

    fn admit(&mut self, bytes: u64, operations: u64, now: Instant) -> Result<(), Duration> {
        let now = now.saturating_duration_since(self.origin);
        let mut buckets = [
            (self.bytes.as_mut(), bytes),
            (self.operations.as_mut(), operations),
        ];
        let mut wait = Duration::ZERO;
        for (bucket, tokens) in &mut buckets {
            if let Some(bucket) = bucket {
                bucket.refill(now);
                wait = wait.max(bucket.until(*tokens));
            }
        }
        if !wait.is_zero() {
            return Err(wait);
        }
        for (bucket, tokens) in buckets {
            if let Some(bucket) = bucket {
                bucket.take(tokens);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(size: u64, refill_time: u64, one_time_burst: u64) -> Option<TokenBucketConfig> {
        Some(TokenBucketConfig {
            size,
            refill_time,
            one_time_burst,
        })
    }

    fn limiter(config: RateLimiterConfig) -> (Limiter, Instant) {
        let origin = Instant::now();
        (Limiter::new(&config, origin).unwrap(), origin)
    }

    #[test]
    fn a_request_waits_for_the_emptier_bucket_and_takes_from_none_before() {
        let ms = Duration::from_millis;
        let (mut limiter, origin) = limiter(RateLimiterConfig {
            bandwidth: bucket(1000, 1000, 0),
            ops: bucket(10, 1000, 0),
        });
        for _ in 0..10 {
            assert_eq!(limiter.admit(50, 1, origin), Ok(()));
        }
        // 500 bytes are left, and no operation: the next one is there after 100 ms.
        assert_eq!(limiter.admit(500, 1, origin), Err(ms(100)));
        assert_eq!(
            limiter.admit(500, 1, origin + ms(99)),
            Err(ms(1)),
            "a refusal takes nothing"
        );
        assert_eq!(limiter.admit(500, 1, origin + ms(100)), Ok(()));
        // Of bytes there are those of 100 ms, and no operation.
        assert_eq!(limiter.admit(600, 1, origin + ms(100)), Err(ms(500)));
    }

    #[test]
    fn a_flush_waits_for_operations_alone() {
        let (mut limiter, origin) = limiter(RateLimiterConfig {
            bandwidth: bucket(1, 1000, 0),
            ops: bucket(2, 1000, 0),
        });
        assert_eq!(limiter.admit(1, 1, origin), Ok(()));
        assert_eq!(limiter.admit(0, 1, origin), Ok(()));
        assert_eq!(limiter.admit(0, 1, origin), Err(Duration::from_millis(500)));
    }

    #[test]
    fn clones_share_the_buckets_and_without_a_bucket_there_is_no_limit() {
        let limit = Limit::new(Some(&RateLimiterConfig {
            bandwidth: None,
            ops: bucket(1, MAX_REFILL_TIME, 0),
        }));
        assert_eq!(limit.clone().admit(u64::MAX, 1), Ok(()));
        assert!(limit.admit(0, 1).is_err());
        for config in [None, Some(&RateLimiterConfig::default())] {
            let limit = Limit::new(config);
            assert!(limit.0.is_none());
            assert_eq!(limit.admit(u64::MAX, u64::MAX), Ok(()));
        }
    }
}
