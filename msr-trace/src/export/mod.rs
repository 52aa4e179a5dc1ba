//! Traces for other programs.

#[cfg(feature = "parquet")]
pub mod parquet;
#[cfg(feature = "perfetto")]
pub mod perfetto;
