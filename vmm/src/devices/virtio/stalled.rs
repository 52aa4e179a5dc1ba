use std::time::Duration;

/// How long the host may take over a system call of a device's request before who waits for it is told so instead: a pause, a
/// snapshot, a driver's reset, and the end of the VM.
pub const STALL_LIMIT: Duration = Duration::from_secs(5);

/// A device cannot stand still: the host does not finish what the device asked of it. The device is as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{device}: the host has not finished {what} for {:.1} s", waited.as_secs_f32())]
pub struct Stalled {
    /// The device's name.
    pub device: String,
    /// What the host is at, such as "a write".
    pub what: &'static str,
    /// How long it was waited for.
    pub waited: Duration,
}
