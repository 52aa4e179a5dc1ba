//! `msr-vmm filter`, `explain` and `devices`.
use crate::cli::Failure;
use crate::cli::args::*;
pub(crate) fn filter(_: &FilterArgs) -> Result<(), Failure> {
    Ok(())
}
pub(crate) fn explain(_: &ExplainArgs) -> Result<(), Failure> {
    Ok(())
}
pub(crate) fn devices(_: Option<&str>, _: bool) -> Result<(), Failure> {
    Ok(())
}
