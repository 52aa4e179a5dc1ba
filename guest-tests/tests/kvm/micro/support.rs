//! What the tests of this module share: MSRs, filters, a device that takes notes.

use std::sync::{Arc, Mutex};

use guest_tests::micro::Mode;
use msr_bus::{ExitReason, GeneralProtection, MsrAccess, MsrBus, MsrDevice, MsrRange, VcpuId};
use msr_filter::{Access, FilterSpec, MsrFilter, Rule, Verdict};

/// IA32_LSTAR: every KVM has it, stores any canonical address in it, and the guests do not use it.
pub(super) const LSTAR: u32 = 0xc000_0082;
/// An index that no KVM knows.
pub(super) const UNKNOWN: u32 = 0x1234_5678;
/// An index for devices of the tests.
pub(super) const DEVICE: u32 = 0x611;

pub(super) const MODES: [Mode; 2] = [Mode::Real, Mode::Long];

/// Lists tests under the names of their functions.
macro_rules! trials {
    ($prefix:literal: $($test:ident),* $(,)?) => {
        vec![$(libtest_mimic::Trial::test(concat!($prefix, "::", stringify!($test)), || {
            // `?` in a test tells what failed; an assertion panics, which the harness catches.
            $test()?;
            Ok(())
        })),*]
    };
}
pub(super) use trials;

/// What a test returns.
pub(super) type Outcome = Result<(), Box<dyn std::error::Error>>;

/// A filter that denies some kinds of access to some MSRs and allows the rest.
pub(super) fn denying(msrs: impl Into<MsrRange>, access: Access) -> MsrFilter {
    FilterSpec::new(Verdict::Allow)
        .rule(Rule::new(msrs, access, Verdict::Deny))
        .compile()
        .expect("one range")
}

/// An access as a device saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Noted {
    Read(u32, ExitReason, VcpuId),
    Write(u32, ExitReason, VcpuId, u64),
}

/// Answers reads with a constant, takes writes, and notes both. Or all of them fault.
pub(super) struct Notes {
    range: MsrRange,
    value: Option<u64>,
    noted: Mutex<Vec<Noted>>,
}

impl Notes {
    /// Reads give `value`.
    pub(super) fn answering(range: impl Into<MsrRange>, value: u64) -> Arc<Self> {
        Arc::new(Self {
            range: range.into(),
            value: Some(value),
            noted: Mutex::default(),
        })
    }

    /// Everything is #GP.
    pub(super) fn faulting(range: impl Into<MsrRange>) -> Arc<Self> {
        Arc::new(Self {
            range: range.into(),
            value: None,
            noted: Mutex::default(),
        })
    }

    /// What was noted so far.
    pub(super) fn noted(&self) -> Vec<Noted> {
        self.noted.lock().unwrap().clone()
    }

    /// A bus with this device alone.
    pub(super) fn bus(self: &Arc<Self>) -> MsrBus {
        let device = Arc::clone(self);
        MsrBus::builder().device(device).build().unwrap()
    }

    fn answer(&self, noted: Noted) -> Result<u64, GeneralProtection> {
        self.noted.lock().unwrap().push(noted);
        self.value.ok_or(GeneralProtection)
    }
}

impl MsrDevice for Notes {
    fn name(&self) -> &str {
        "notes"
    }

    fn claims(&self) -> Vec<MsrRange> {
        vec![self.range]
    }

    fn read(&self, access: &MsrAccess<'_>) -> Result<u64, GeneralProtection> {
        self.answer(Noted::Read(access.index, access.reason, access.cpu.id()))
    }

    fn write(&self, access: &MsrAccess<'_>, value: u64) -> Result<(), GeneralProtection> {
        let noted = Noted::Write(access.index, access.reason, access.cpu.id(), value);
        self.answer(noted).map(drop)
    }
}
