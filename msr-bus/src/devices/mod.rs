//! The device models.
//!
//! To add one: write a file here, with [`scratch`] as the example, and put its line into `MODELS`.

use crate::DeviceModel;

pub mod scratch;
pub mod table;

/// The registered models.
pub(crate) static MODELS: &[DeviceModel] = &[
    DeviceModel::of::<scratch::Scratch>(),
    DeviceModel::of::<table::Table>(),
];
