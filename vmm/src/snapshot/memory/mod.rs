//! The guest's memory in a snapshot: a sparse file, region after region, and the checksums of its pages.
//!
//! **Which pages** ([`contents`]): memory that the guest has never touched is not read, because reading it would give it page
//! tables, or, where it is mapped from a snapshot's hole, pages. **Writing** ([`image`]): pages of zeros become holes, and the
//! others are written from where they are, or from a copy while the guest may write to them. **Beside a running guest**
//! ([`dirty`], and the passes in `save.rs`): what is written meanwhile is written again. **Mapping** ([`mapping`]) reads nothing, so that
//! a restored VM starts at once; **verifying** ([`verify`]) reads everything.

mod contents;
mod dirty;
mod image;
mod mapping;
mod pages;
mod verify;

pub(super) use contents::Contents;
pub(super) use dirty::DirtyLog;
pub(super) use image::{Image, begin_writeback};
pub(super) use mapping::map;
pub(super) use pages::{PAGE, Pages};
pub(super) use verify::verify;
