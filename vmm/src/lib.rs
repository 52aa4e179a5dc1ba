//! Boots a Linux kernel under KVM, with the guest's MSR accesses answered in userspace.

pub mod acpi;
pub mod boot;
pub mod check;
pub mod cpu;
pub mod devices;
pub mod layout;
