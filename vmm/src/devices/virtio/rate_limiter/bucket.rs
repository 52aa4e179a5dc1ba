use std::time::Duration;

use super::config::{MAX_REFILL_TIME, MAX_TOKENS, TokenBucketConfig};

/// A token bucket, in whole numbers: what is in it is counted in fractions of a token, of which time brings a whole number.
///
/// The clock is whoever calls: times are since the same origin.
#[derive(Debug)]
pub(super) struct TokenBucket {
    /// Tokens when it is full; as many fractions come in a nanosecond.
    size: u64,
    /// Fractions in a token: the nanoseconds in which an empty bucket fills.
    fractions: u64,
    /// What is left of the first burst, in tokens.
    burst: u64,
    /// Fractions that are there; less than none after a request for more than there can be.
    level: i128,
    /// When they were there.
    at: Duration,
}

impl TokenBucket {
    /// A full bucket. Numbers out of range are the nearest that are in it.
    pub(super) fn new(config: &TokenBucketConfig) -> Self {
        let size = config.size.clamp(1, MAX_TOKENS);
        let fractions = config.refill_time.clamp(1, MAX_REFILL_TIME) * 1_000_000;
        Self {
            size,
            fractions,
            burst: config.one_time_burst.min(MAX_TOKENS),
            level: i128::from(size) * i128::from(fractions),
            at: Duration::ZERO,
        }
    }

    /// Adds what has come until `now`.
    pub(super) fn refill(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.at).as_nanos();
        let passed = u64::try_from(passed).unwrap_or(u64::MAX);
        // Less than 2^50 a nanosecond for less than 2^64 of them.
        let came = i128::from(passed) * i128::from(self.size);
        self.level = (self.level + came).min(self.of(self.size));
        self.at = self.at.max(now);
    }

    /// How long it is until a request may take `tokens`.
    pub(super) fn until(&self, tokens: u64) -> Duration {
        let rest = tokens.saturating_sub(self.burst);
        if rest == 0 {
            return Duration::ZERO;
        }
        let missing = self.of(rest.min(self.size)) - self.level;
        let Ok(missing) = u128::try_from(missing) else {
            return Duration::ZERO;
        };
        let nanoseconds = missing.div_ceil(self.size.into());
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }

    /// Takes them.
    pub(super) fn take(&mut self, tokens: u64) {
        let of_burst = tokens.min(self.burst);
        self.burst -= of_burst;
        self.level -= self.of(tokens - of_burst);
    }

    /// `tokens` in fractions: less than 2^47 for each.
    fn of(&self, tokens: u64) -> i128 {
        i128::from(tokens) * i128::from(self.fractions)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bucket(size: u64, refill_time: u64, one_time_burst: u64) -> TokenBucket {
        TokenBucket::new(&TokenBucketConfig {
            size,
            refill_time,
            one_time_burst,
        })
    }

    /// Whether the tokens could be taken, and how long it is until they can be where not.
    fn try_take(bucket: &mut TokenBucket, tokens: u64, now: Duration) -> Duration {
        bucket.refill(now);
        let wait = bucket.until(tokens);
        if wait.is_zero() {
            bucket.take(tokens);
        }
        wait
    }

    fn ms(time: u64) -> Duration {
        Duration::from_millis(time)
    }

    #[test]
    fn it_gives_its_size_at_once_and_then_its_rate() {
        let mut bucket = bucket(100, 1000, 0);
        for _ in 0..4 {
            assert_eq!(try_take(&mut bucket, 25, ms(0)), ms(0));
        }
        assert_eq!(try_take(&mut bucket, 25, ms(0)), ms(250));
        assert_eq!(try_take(&mut bucket, 25, ms(249)), ms(1));
        assert_eq!(try_take(&mut bucket, 25, ms(250)), ms(0));
        assert_eq!(try_take(&mut bucket, 1, ms(250)), ms(10));
    }

    #[test]
    fn it_holds_no_more_than_its_size_however_long_nothing_is_taken() {
        let mut bucket = bucket(100, 1000, 0);
        assert_eq!(try_take(&mut bucket, 100, ms(1_000_000)), ms(0));
        assert_eq!(try_take(&mut bucket, 100, ms(1_000_000)), ms(1000));
    }

    #[test]
    fn the_burst_is_taken_first_and_once() {
        let mut bucket = bucket(100, 1000, 50);
        assert_eq!(try_take(&mut bucket, 30, ms(0)), ms(0));
        // 20 of the burst and all of the bucket.
        assert_eq!(try_take(&mut bucket, 120, ms(0)), ms(0));
        assert_eq!(try_take(&mut bucket, 100, ms(0)), ms(1000));
        assert_eq!(try_take(&mut bucket, 100, ms(10_000)), ms(0));
        assert_eq!(try_take(&mut bucket, 1, ms(10_000)), ms(10));
    }

    #[test]
    fn a_request_for_more_than_it_holds_goes_through_when_it_is_full_and_is_paid_for_afterwards() {
        let mut bucket = bucket(100, 1000, 0);
        assert_eq!(try_take(&mut bucket, 1, ms(0)), ms(0));
        assert_eq!(try_take(&mut bucket, 450, ms(0)), ms(10));
        assert_eq!(try_take(&mut bucket, 450, ms(10)), ms(0));
        // 350 more than there were, and the one itself.
        assert_eq!(try_take(&mut bucket, 1, ms(10)), ms(3510));
        assert_eq!(try_take(&mut bucket, 1, ms(3520)), ms(0));
    }

    #[test]
    fn a_rate_that_is_no_whole_number_of_nanoseconds_loses_nothing() {
        // 3 tokens in 1 ms: one in 333333.3 ns.
        let mut bucket = bucket(3, 1, 0);
        bucket.take(3);
        let mut now = Duration::ZERO;
        for _ in 0..3_000 {
            now += try_take(&mut bucket, 1, now);
            assert_eq!(try_take(&mut bucket, 1, now), ms(0));
        }
        assert_eq!(now.as_micros(), 1_000_000);
    }

    #[test]
    fn numbers_at_their_ends_overflow_nothing() {
        for size in [0, 1, MAX_TOKENS, u64::MAX] {
            for refill_time in [0, 1, MAX_REFILL_TIME, u64::MAX] {
                for burst in [0, u64::MAX] {
                    let mut bucket = bucket(size, refill_time, burst);
                    for now in [Duration::ZERO, Duration::MAX, ms(1), Duration::MAX] {
                        for tokens in [0, 1, u64::MAX] {
                            let wait = try_take(&mut bucket, tokens, now);
                            assert!(tokens != 0 || wait.is_zero() || bucket.level < 0);
                        }
                    }
                }
            }
        }
    }

    proptest! {
        /// Against a bucket in rational numbers of tokens: no token too many, none too few, and a wait is as long as
        /// it must be and no nanosecond longer.
        #[test]
        fn it_does_what_a_bucket_of_fractions_does(
            size in 1u64..2000,
            refill_time in 1u64..5000,
            burst in 0u64..500,
            steps in proptest::collection::vec((0u64..3_000_000_000, 0u64..4000), 1..50),
        ) {
            let mut bucket = bucket(size, refill_time, burst);
            let fill_ns = u128::from(refill_time) * 1_000_000;
            // All that came since the start, in tokens times fill_ns, less what did not fit and what was taken.
            let (mut there, mut owed, mut extra) = (u128::from(size) * fill_ns, 0u128, u128::from(burst));
            let mut now = 0u64;
            for (passed, tokens) in steps {
                now += passed;
                let came = u128::from(passed) * u128::from(size);
                let paid = came.min(owed);
                owed -= paid;
                there = (there + came - paid).min(u128::from(size) * fill_ns);
                let wait = try_take(&mut bucket, tokens, Duration::from_nanos(now));
                let wanted = (u128::from(tokens).saturating_sub(extra)) * fill_ns;
                let needed = wanted.min(u128::from(size) * fill_ns);
                let may = wanted == 0 || owed == 0 && there >= needed;
                prop_assert_eq!(wait.is_zero(), may);
                if may {
                    extra = extra.saturating_sub(tokens.into());
                    owed += wanted.saturating_sub(there);
                    there = there.saturating_sub(wanted);
                } else {
                    let short = needed + owed - there;
                    let wait = wait.as_nanos();
                    prop_assert!(wait * u128::from(size) >= short);
                    prop_assert!((wait - 1) * u128::from(size) < short);
                }
            }
        }
    }
}
