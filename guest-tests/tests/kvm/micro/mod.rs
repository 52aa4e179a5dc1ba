//! What KVM, the filter and the bus make of a guest's RDMSR and WRMSR, shown by micro guests.

use libtest_mimic::Trial;

mod bus;
mod differential;
mod embedding;
mod filter;
mod live_swap;
mod msr_state;
mod probe;
mod random;
mod reasons;
mod registers;
mod support;
mod swap;
mod x2apic;

/// This module's tests.
pub(crate) fn trials() -> Vec<Trial> {
    [
        bus::trials(),
        differential::trials(),
        embedding::trials(),
        filter::trials(),
        live_swap::trials(),
        msr_state::trials(),
        probe::trials(),
        reasons::trials(),
        registers::trials(),
        swap::trials(),
        x2apic::trials(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
