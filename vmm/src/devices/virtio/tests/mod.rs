//! The transport and the devices, driven through registers and rings as a driver in a guest would.

mod block;
mod block_errors;
mod driver;
mod entropy;
mod hostile;
mod life_cycle;
mod log;
mod rate_limit;
mod saved;
mod stalled;
mod transport;
mod written;
