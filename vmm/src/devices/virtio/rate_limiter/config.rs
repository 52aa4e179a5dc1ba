use std::ops::RangeInclusive;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The most tokens that a bucket holds, and the longest first burst: 2^50, which is a PiB of bytes.
pub const MAX_TOKENS: u64 = 1 << 50;
/// The longest time in which a bucket fills, in milliseconds: a day.
pub const MAX_REFILL_TIME: u64 = 24 * 60 * 60 * 1000;

/// How fast a guest may use a device. Without a bucket for something there is no limit on it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RateLimiterConfig {
    /// The limit on bytes that are read and written: a token is a byte.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<TokenBucketConfig>,
    /// The limit on operations: a token is a request, or one range of a discard. A flush is an operation without bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ops: Option<TokenBucketConfig>,
}

/// A token bucket. It is full at the start and holds `size` tokens, it fills at a steady rate, and a request takes its tokens
/// out of it or waits until they are there. The rate in the long run is `size` tokens in each `refill_time`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenBucketConfig {
    /// How many tokens it holds: bytes, or operations. A request for more waits until the bucket is full, and those after it
    /// until what it took is there again.
    #[schemars(range(min = 1, max = MAX_TOKENS))]
    pub size: u64,
    /// In how many milliseconds an empty bucket fills.
    #[schemars(range(min = 1, max = MAX_REFILL_TIME))]
    pub refill_time: u64,
    /// Tokens that are there at the start besides, taken first and never filled up again.
    #[schemars(range(max = MAX_TOKENS))]
    #[serde(default)]
    pub one_time_burst: u64,
}

impl RateLimiterConfig {
    /// Whether it limits nothing.
    pub fn is_empty(&self) -> bool {
        self.bandwidth.is_none() && self.ops.is_none()
    }

    /// The first key whose value cannot be, such as `bandwidth.size`, with the value and what it takes.
    pub(crate) fn wrong(&self) -> Option<(String, u64, RangeInclusive<u64>)> {
        let buckets = [("bandwidth", self.bandwidth), ("ops", self.ops)];
        let keys = buckets.into_iter().filter_map(|(name, bucket)| {
            let bucket = bucket?;
            let keys = [
                ("size", bucket.size, 1..=MAX_TOKENS),
                ("refill_time", bucket.refill_time, 1..=MAX_REFILL_TIME),
                ("one_time_burst", bucket.one_time_burst, 0..=MAX_TOKENS),
            ];
            Some(keys.map(|(key, value, range)| (format!("{name}.{key}"), value, range)))
        });
        let mut keys = keys.flatten();
        keys.find(|(_, value, range)| !range.contains(value))
    }
}
