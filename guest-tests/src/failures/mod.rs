//! System calls of another process that are made to fail.
//!
//! A [`Tracee`] is a program under ptrace(2), with all its threads, whose system calls are counted by what they do: a [`Call`] is a
//! system call with the ioctl's request, or with the kind of file that it reads or writes. With a [`Point`] given, that one
//! call fails, once: it is not made, and its caller gets an error number that the call can have; or it is made with half of
//! the length that was asked for, so that it is really short. Everything else is as it would be without.
//!
//! [`Instead`] has one thread make a call that it has no business to make.
//!
//! What the runtimes of C and Rust do before `main` is left alone, as is the alternate signal stack that Rust's gives each
//! thread: they end the process where it cannot be had, and no program can change that.

mod call;
mod fault;
mod tracer;

pub use call::{Call, Object};
pub use fault::Fault;
pub use tracer::{End, Handle, Instead, Point, Traced, Tracee};
