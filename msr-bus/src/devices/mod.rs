//! The device models.
//!
//! To add one: write a file here, with [`scratch`] as the example, and put its line into `MODELS`.

#[cfg(feature = "config")]
use crate::DeviceModel;

pub mod aperfmperf;
pub mod copies;
#[cfg(test)]
mod fixture;
pub mod forward;
mod host;
mod lockable;
pub mod microcode;
mod monotonic_clock;
pub mod passthrough;
pub mod platform;
pub mod ppin;
pub mod rapl;
#[cfg(test)]
mod restore_law;
pub mod scratch;
pub mod table;
pub mod thermal;

/// The registered models.
#[cfg(feature = "config")]
pub(crate) static MODELS: &[DeviceModel] = &[
    DeviceModel::of::<aperfmperf::AperfMperf>(),
    DeviceModel::of::<forward::Forward>(),
    DeviceModel::of::<microcode::Microcode>(),
    DeviceModel::of::<passthrough::Passthrough>(),
    DeviceModel::of::<platform::Platform>(),
    DeviceModel::of::<ppin::Ppin>(),
    DeviceModel::of::<rapl::Rapl>(),
    DeviceModel::of::<scratch::Scratch>(),
    DeviceModel::of::<table::Table>(),
    DeviceModel::of::<thermal::Thermal>(),
];
