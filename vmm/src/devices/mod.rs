//! The devices of the machine other than MSR devices.

pub mod boot_timer;
pub mod debug_exit;
pub(crate) mod generation_id;
pub mod pci;
pub mod power;
pub mod rtc;
pub mod serial;
pub mod virtio;
