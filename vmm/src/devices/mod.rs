//! The devices of the machine other than MSR devices.

pub mod virtio;
