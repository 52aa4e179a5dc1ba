//! What is said on standard error: for people, or a JSON object a line for programs.

use std::fmt::Display;
use std::io::{self, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use clap::ValueEnum;
use env_logger::Builder;
use log::LevelFilter;
use serde_json::json;

/// How the log is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// One JSON object a line, with `time` (seconds since 1970, UTC), `level` and `message`.
    Json,
}

/// Starts logging.
pub(crate) fn start(level: LevelFilter, format: LogFormat) {
    let mut builder = Builder::new();
    builder
        .filter_level(level)
        // It logs each error that a driver's queue makes, so a hostile guest could fill the log. The
        // devices say the same themselves, and not without limit.
        .filter_module("virtio_queue", LevelFilter::Off);
    match format {
        LogFormat::Text => builder.format_timestamp_millis().format_target(false),
        LogFormat::Json => builder.format(|out, record| {
            let level = record.level().as_str().to_ascii_lowercase();
            writeln!(out, "{}", line(&level, record.args()))
        }),
    };
    builder.init();
}

/// Says why the program fails. The exit status tells it where standard error cannot.
pub(crate) fn last_words(format: LogFormat, message: &str) {
    let _ = match format {
        LogFormat::Text => writeln!(io::stderr(), "msr-vmm: {message}"),
        LogFormat::Json => writeln!(io::stderr(), "{}", line("error", &message)),
    };
}

fn line(level: &str, message: &dyn Display) -> String {
    // A clock before 1970 is no reason to say nothing.
    let time = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let time = time.as_millis() as f64 / 1e3;
    json!({ "time": time, "level": level, "message": message.to_string() }).to_string()
}
