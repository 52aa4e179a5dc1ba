//! The outer VM: a Linux with KVM of its own, under an emulated CPU that has AMD SVM, for hosts
//! whose KVM cannot boot Linux or that have none.
//!
//! [`outer::OuterVm`] packs an initramfs from static executables and the files they need, boots it
//! under QEMU/TCG, and brings back output and exit status. [`control`] is what the outer VM's init
//! (`src/bin/outer-init.rs`) and the host say to each other.

pub mod choice;
pub mod control;
pub mod cpio;
pub mod error;
mod lost_interrupt;
pub mod outer;
mod qemu;
mod trial;
mod tsc;
mod watch;
