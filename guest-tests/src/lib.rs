//! Guests and harness that test msr-filter, msr-bus and vmm on a real KVM.
//!
//! - [`backend`] decides where a KVM test runs: here, or in the [`nested`] outer VM.
//! - [`failures`] makes system calls of a program fail, one at a time.
//! - [`guest`] is what a Linux guest of the tests does, step by step, and what it reports.
//! - [`random`] is chance for hostile guests, and [`settings`] what a person sets for a test.
//! - [`kernel`] and [`assets`] find kernels, modules and executables in either place; [`pack`] takes them there.

pub mod assets;
pub mod backend;
pub mod failures;
pub mod guest;
pub mod init;
pub mod kernel;
pub mod micro;
pub mod nested;
pub mod pack;
pub mod random;
pub mod settings;
