//! MSRs that KVM answers, routed through userspace so that they are seen: `--observe`.
//!
//! A `forward` device claims them and hands each access to KVM by `KVM_GET_MSRS` and `KVM_SET_MSRS`. Those are the host's accesses, for which KVM
//! skips some checks, and an exit takes longer than an intercept. Where either would change what the guest sees or
//! does, the MSR stays with KVM unless it is named:
//!
//! - time: the TSC, its adjustment and its deadline move while the exit is handled;
//! - what a processor acts on at once or guest code relies on between two instructions: APIC base, EFER, segment
//!   bases, SYSCALL and SYSENTER, speculation control, XSS, XFD and CET;
//! - KVM's own, by which guest and KVM share memory.
//!
//! A capability that guests may only read, and the host may write, is forwarded for reads; a write is #GP as without.
//! What the filter denies stays denied, and what another device claims stays that device's.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::Kvm;
use msr_bus::DeviceConfig;
use msr_filter::{Access, MsrRange, Verdict};
use msr_kvm::MsrPlan;
use msr_trace::NotSeen;
use msr_trace::OBSERVER;

/// Where KVM's MSRs are, but for its own.
const RANGES: [(u32, u32); 3] = [
    (0, 0x1fff),
    (0xc000_0000, 0xc000_1fff),
    (0xc001_0000, 0xc001_1fff),
];

/// What stays with KVM unless it is named.
const STAYS: [(u32, u32, &str); 16] = [
    (0x10, 0x10, "the TSC goes on while an exit is handled"),
    (0x11, 0x12, "KVM's own: memory shared with the guest"),
    (0x1b, 0x1b, "the APIC's base takes effect at once"),
    (0x3b, 0x3b, "it moves the TSC"),
    (0x48, 0x49, "speculation control must be quick"),
    (0x10b, 0x10b, "it can only be written"),
    (0x174, 0x176, "SYSENTER's registers"),
    (0x1c4, 0x1c5, "XFD's registers"),
    (0x6a0, 0x6a8, "CET's registers"),
    (
        0x6e0,
        0x6e0,
        "the TSC's deadline passes while an exit is handled",
    ),
    (0xda0, 0xda0, "XSS goes with XSAVES' layout"),
    (0xc000_0080, 0xc000_0080, "EFER takes effect at once"),
    (0xc000_0081, 0xc000_0084, "SYSCALL's registers"),
    (
        0xc000_0100,
        0xc000_0103,
        "segment bases are changed at every task switch",
    ),
    (
        0xc001_011f,
        0xc001_011f,
        "speculation control must be quick",
    ),
    (
        0x4b56_4d00,
        0x4b56_4d08,
        "KVM's own: memory shared with the guest",
    ),
];

/// Capabilities that a guest may only read.
const READ_ONLY: [(u32, u32); 7] = [
    (0x8b, 0x8b),
    (0xce, 0xcf),
    (0xfe, 0xfe),
    (0x10a, 0x10a),
    (0x179, 0x179),
    (0x345, 0x345),
    (0x480, 0x493),
];

/// x2APIC's registers, which no filter reaches.
const X2APIC: (u32, u32) = (0x800, 0x8ff);

/// Why nothing can be observed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ObserveError {
    /// KVM does not say which MSRs it has.
    #[error("--observe: cannot ask KVM which MSRs it has: {0}")]
    Kvm(#[from] kvm_ioctls::Error),
    /// Nothing of what was named is KVM's.
    #[error("--observe: KVM answers none of {0}, or the configuration gives them to someone else")]
    Nothing(String),
}

/// What is observed, and what is not.
#[derive(Debug)]
pub struct Observe {
    /// The devices that observe, to be added to the configuration's.
    pub devices: Vec<DeviceConfig>,
    /// What stays hidden.
    pub not_seen: Vec<NotSeen>,
}

impl Observe {
    /// Chooses what to observe of what `plan`, the configuration's, leaves to KVM: the MSRs `named`, or unless any are
    /// all that can be observed without changing the guest.
    ///
    /// # Errors
    ///
    /// [`ObserveError`].
    pub fn new(plan: &MsrPlan, named: &[MsrRange]) -> Result<Self, ObserveError> {
        let candidates: Vec<MsrRange> = if named.is_empty() {
            RANGES
                .into_iter()
                .filter_map(|(first, last)| MsrRange::new(first, last).ok())
                .collect()
        } else {
            named.to_vec()
        };
        let stays = |index| within(&STAYS.map(|(first, last, _)| (first, last)), index);
        let candidates = candidates
            .iter()
            .flat_map(|range| range.first()..=range.last())
            .filter(|index| !(X2APIC.0..=X2APIC.1).contains(index))
            .filter(|index| !named.is_empty() || !stays(*index))
            .filter(|index| leaves_to_kvm(plan, *index));
        let known = known_to_kvm(candidates.collect(), named.is_empty())?;
        if known.is_empty() {
            let names: Vec<String> = named.iter().map(ToString::to_string).collect();
            return Err(ObserveError::Nothing(names.join(", ")));
        }
        let (read_only, read_write): (Vec<u32>, Vec<u32>) =
            known.iter().partition(|index| within(&READ_ONLY, **index));
        let mut devices = Vec::new();
        for (name, write, msrs) in [
            (OBSERVER.to_owned(), "forward", read_write),
            (format!("{OBSERVER} (read-only)"), "fault", read_only),
        ] {
            if !msrs.is_empty() {
                devices.push(device(name, write, &msrs));
            }
        }
        let not_seen = STAYS
            .iter()
            .flat_map(|(first, last, why)| (*first..=*last).map(move |index| (index, *why)))
            .filter(|(index, _)| known.binary_search(index).is_err() && leaves_to_kvm(plan, *index))
            .map(|(index, why)| NotSeen {
                msrs: Some(MsrRange::single(index)),
                why: why.to_owned(),
            });
        let mut not_seen: Vec<NotSeen> = not_seen.collect();
        if !named.is_empty() {
            not_seen.push(NotSeen {
                msrs: None,
                why: "--observe names other MSRs".to_owned(),
            });
        }
        Ok(Self { devices, not_seen })
    }
}

fn within(ranges: &[(u32, u32)], index: u32) -> bool {
    ranges
        .iter()
        .any(|(first, last)| (*first..=*last).contains(&index))
}

/// Whether the filter lets KVM answer both reads and writes: observing must not widen what the guest may do.
fn leaves_to_kvm(plan: &MsrPlan, index: u32) -> bool {
    [Access::READ, Access::WRITE]
        .iter()
        .all(|access| plan.spec.verdict(index, *access) == Verdict::Allow)
}

/// Those of `indices`, rising, that KVM has, found out by asking a vCPU of a VM made for it. Named ones that cannot be
/// read are KVM's too if it can be told to write them, which is not tried: they are taken as they are.
fn known_to_kvm(mut indices: Vec<u32>, ask: bool) -> Result<Vec<u32>, ObserveError> {
    indices.sort_unstable();
    indices.dedup();
    if !ask {
        return Ok(indices);
    }
    let kvm = Kvm::new()?;
    let vm = kvm.create_vm()?;
    let vcpu = vm.create_vcpu(0)?;
    vcpu.set_cpuid2(&kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)?)?;
    let mut one = Msrs::new(1).map_err(|_| kvm_ioctls::Error::new(libc::ENOMEM))?;
    indices.retain(|index| {
        one.as_mut_slice()[0] = kvm_msr_entry {
            index: *index,
            ..Default::default()
        };
        matches!(vcpu.get_msrs(&mut one), Ok(1))
    });
    Ok(indices)
}

fn device(name: String, write: &str, msrs: &[u32]) -> DeviceConfig {
    let mut keys = toml::Table::new();
    let ranges = ranges(msrs)
        .into_iter()
        .map(|range| range.to_string().into());
    keys.insert("msrs".to_owned(), toml::Value::Array(ranges.collect()));
    keys.insert("write".to_owned(), write.into());
    DeviceConfig {
        model: "forward".to_owned(),
        name: Some(name),
        keys,
    }
}

/// Rising indices as ranges.
fn ranges(indices: &[u32]) -> Vec<MsrRange> {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for &index in indices {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == index => *last = index,
            _ => ranges.push((index, index)),
        }
    }
    ranges
        .into_iter()
        .filter_map(|(first, last)| MsrRange::new(first, last).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_become_ranges() {
        let ranges: Vec<String> = ranges(&[1, 2, 3, 7, 9, 10])
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(ranges, ["0x1-0x3", "0x7", "0x9-0xa"]);
    }

    #[test]
    fn the_devices_are_what_the_registry_takes() {
        let device = device("observe".to_owned(), "forward", &[0x10, 0x11]);
        let text = toml::to_string(&device).unwrap();
        let read: DeviceConfig = toml::from_str(&text).unwrap();
        assert_eq!(read, device);
        assert_eq!(read.model, "forward");
    }
}
