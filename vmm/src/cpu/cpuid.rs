//! The CPUID of a guest: what KVM supports, made into the configured CPU.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Cap, Kvm, VcpuFd};
use msr_bus::{Topology, VcpuId};

use super::identity::Signature;
use super::leaves::Leaves;
use super::model::{CpuModel, CpuModelError, Identity, OnUnoffered};
use super::offered::{self, ByEffect, Unoffered};
use super::vendor::Vendor;
use super::{frequency, identity, topology_leaves, vendor};

// Leaf 1, ECX.
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;

/// Where CPUID counts performance counters: Intel's leaf and AMD's.
const PERFORMANCE_MONITORING: [u32; 2] = [0xa, 0x8000_0022];

/// What the host's KVM offers.
#[derive(Clone, Debug)]
pub struct HostCpu {
    /// `KVM_GET_SUPPORTED_CPUID`.
    pub supported: CpuId,
    /// The guest's TSC frequency (`KVM_GET_TSC_KHZ`), in kHz; 0 where KVM does not say.
    pub tsc_khz: u32,
    /// Whether the local APIC timer has the TSC-deadline mode (`KVM_CAP_TSC_DEADLINE_TIMER`), which KVM does not put into
    /// the supported CPUID because an irqchip in userspace would not have it.
    pub tsc_deadline: bool,
}

/// KVM does not say what it supports.
#[derive(Debug, thiserror::Error)]
#[error("KVM_GET_SUPPORTED_CPUID failed: {0}")]
pub struct HostCpuError(kvm_ioctls::Error);

impl HostCpu {
    /// Asks KVM. Any vCPU of the VM does for the frequency of the TSC.
    ///
    /// # Errors
    ///
    /// [`HostCpuError`].
    pub fn query(kvm: &Kvm, vcpu: &VcpuFd) -> Result<Self, HostCpuError> {
        Ok(Self {
            supported: kvm
                .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
                .map_err(HostCpuError)?,
            tsc_khz: vcpu.get_tsc_khz().unwrap_or(0),
            tsc_deadline: kvm.check_extension(Cap::TscDeadlineTimer),
        })
    }
}

/// Why there is no CPUID for a guest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CpuidError {
    /// The configured CPU cannot be.
    #[error(transparent)]
    Model(#[from] CpuModelError),
    /// There are more leaves than KVM takes.
    #[error("the guest's CPUID has {0} entries; KVM takes at most {KVM_MAX_CPUID_ENTRIES}")]
    TooManyEntries(usize),
    /// Features are asked for that this host's KVM does not offer.
    #[error("this host's KVM does not offer {}", ByEffect(.0))]
    Unoffered(Vec<Unoffered>),
}

/// Gives a digital thermal sensor that KVM knows nothing of the two interrupt thresholds that each has (Intel SDM, volume 3,
/// "Thermal Monitoring and Protection": leaf 6, EAX bit 0 and EBX bits 3:0). Linux passes by a package that has none.
fn thermal_thresholds(leaves: &mut Leaves) {
    const DIGITAL_SENSOR: u32 = 1 << 0;
    const THRESHOLDS: u32 = 0xf;
    leaves.edit(6, 0, |entry| {
        if entry.eax & DIGITAL_SENSOR != 0 && entry.ebx & THRESHOLDS == 0 {
            entry.ebx |= 2;
        }
    });
}

/// The leaves that all vCPUs share.
fn compose(host: &HostCpu, model: &CpuModel, identity: &Identity, topology: Topology) -> Leaves {
    let mut leaves = Leaves::new(&host.supported);
    let host_vendor = Vendor::of(&leaves);

    let vendor = identity.vendor;
    if vendor != host_vendor {
        vendor::convert(&mut leaves, vendor);
        vendor.write(&mut leaves);
    }
    identity.signature.write(&mut leaves, vendor.is_amd());
    if let Some(brand) = &identity.brand {
        identity::write_brand(&mut leaves, brand);
    }
    for bits in &model.leaves {
        bits.apply(&mut leaves);
    }
    topology_leaves::write(&mut leaves, &topology, vendor.is_amd());
    if vendor == Vendor::INTEL && host.tsc_khz != 0 {
        frequency::write(&mut leaves, host.tsc_khz, model.base_mhz, model.max_mhz);
    }
    leaves.edit(1, 0, |entry| {
        if host.tsc_deadline {
            entry.ecx |= TSC_DEADLINE;
        }
        if model.hypervisor {
            entry.ecx |= HYPERVISOR;
        } else {
            entry.ecx &= !HYPERVISOR;
        }
    });
    if !model.hypervisor {
        leaves.remove_hypervisor();
    }
    if model.pmu == Some(false) {
        for leaf in PERFORMANCE_MONITORING {
            leaves.remove(leaf);
        }
    }
    for feature in &model.show {
        feature.set(&mut leaves, true);
    }
    for feature in &model.hide {
        feature.set(&mut leaves, false);
    }
    thermal_thresholds(&mut leaves);
    leaves
}

/// The CPUID of every vCPU of a guest.
#[derive(Clone, Debug)]
pub struct Cpuid {
    leaves: Leaves,
    topology: Topology,
    identity: Identity,
    hypervisor: bool,
    tsc_khz: u32,
    unoffered: Vec<Unoffered>,
}

impl Cpuid {
    /// Makes `model` with `topology` out of what the host offers. `has_msr` says whether a device or an initial value stands
    /// for an MSR, and with that for the features that consist of it.
    ///
    /// # Errors
    ///
    /// [`CpuidError`], with the key of the configuration where it is that.
    pub fn new(
        host: &HostCpu,
        model: &CpuModel,
        topology: Topology,
        has_msr: &dyn Fn(u32) -> bool,
    ) -> Result<Self, CpuidError> {
        let supported = Leaves::new(&host.supported);
        let identity = model.identity(Vendor::of(&supported), Signature::of(&supported))?;
        let mut leaves = compose(host, model, &identity, topology);
        let unasked = CpuModel {
            show: Vec::new(),
            leaves: Vec::new(),
            ..model.clone()
        };
        let offered = compose(host, &unasked, &identity, topology);
        let unoffered = offered::find(&offered, &leaves, has_msr);
        match model.unoffered {
            OnUnoffered::Refuse if !unoffered.is_empty() => {
                return Err(CpuidError::Unoffered(unoffered));
            }
            OnUnoffered::Hide => {
                for feature in &unoffered {
                    feature.hide(&offered, &mut leaves);
                }
            }
            _ => {}
        }
        let cpuid = Self {
            leaves,
            topology,
            identity,
            hypervisor: model.hypervisor,
            tsc_khz: host.tsc_khz,
            unoffered,
        };
        // Each vCPU's has the same leaves, so this tells of all of them.
        let entries = cpuid.leaves_of(VcpuId(0)).entries().len();
        if entries > KVM_MAX_CPUID_ENTRIES {
            return Err(CpuidError::TooManyEntries(entries));
        }
        Ok(cpuid)
    }

    /// What `KVM_SET_CPUID2` is called with for `vcpu`.
    ///
    /// # Panics
    ///
    /// Where `vcpu` lies outside the topology.
    pub fn for_vcpu(&self, vcpu: VcpuId) -> CpuId {
        assert!(
            vcpu.0 < self.topology.vcpus(),
            "{vcpu:?} is outside the topology"
        );
        let leaves = self.leaves_of(vcpu);
        // `new` found them to be no more than `CpuId` can hold, which is the only way to fail.
        CpuId::from_entries(leaves.entries()).expect("the count of entries was checked")
    }

    fn leaves_of(&self, vcpu: VcpuId) -> Leaves {
        let mut leaves = self.leaves.clone();
        let is_amd = self.identity.vendor.is_amd();
        topology_leaves::write_vcpu(&mut leaves, &self.topology, vcpu, is_amd);
        leaves
    }

    /// The features that the configuration asks for and this host's KVM does not offer.
    pub fn unoffered(&self) -> &[Unoffered] {
        &self.unoffered
    }

    /// The vendor that the guest sees.
    pub fn vendor(&self) -> Vendor {
        self.identity.vendor
    }

    /// What to append to a Linux guest's command line so that it keeps time, where this CPUID makes that necessary: a guest
    /// that is not told of KVM has no kvmclock, and the TSC is its only clock.
    pub fn kernel_parameters(&self) -> Option<String> {
        (!self.hypervisor && self.tsc_khz != 0).then(|| frequency::kernel_parameters(self.tsc_khz))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::leaves::Registers;

    fn host() -> HostCpu {
        let leaves = Leaves::of(&[
            (0, 0, [0x10, 0x6874_7541, 0x444d_4163, 0x6974_6e65]),
            (1, 0, [0x00a1_0f11, 0x0002_0800, 0xfed8_3203, 0x178b_fbff]),
            (7, 0, [1, 0x219c_97a9, 0x0040_069c, 0x1000_0010]),
            (0xa, 0, [0x0704_0404, 0, 0, 0x603]),
            (0xb, 0, [1, 2, 0x100, 0]),
            (
                0x4000_0000,
                0,
                [0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d],
            ),
            (0x4000_0001, 0, [0x0100_7efb, 0, 0, 0]),
            (
                0x8000_0000,
                0,
                [0x8000_001f, 0x6874_7541, 0x444d_4163, 0x6974_6e65],
            ),
            (0x8000_0001, 0, [0x00a1_0f11, 0, 0x0040_03f7, 0x2fd3_fbff]),
            (0x8000_0008, 0, [0x3030, 0x0100_7200, 0, 0]),
            (0x8000_001d, 0, [0x121, 0x01c0_003f, 63, 0]),
        ]);
        HostCpu {
            supported: CpuId::from_entries(leaves.entries()).unwrap(),
            tsc_khz: 2_596_136,
            tsc_deadline: true,
        }
    }

    fn cpuid(model: &str, topology: Topology) -> Cpuid {
        Cpuid::new(&host(), &toml::from_str(model).unwrap(), topology, &|_| {
            true
        })
        .unwrap()
    }

    fn leaves(model: &str) -> Leaves {
        Leaves::new(&cpuid(model, Topology::flat(2)).for_vcpu(VcpuId(1)))
    }

    const ICE_LAKE: &str =
        "vendor = \"GenuineIntel\"\nfamily = 6\nmodel = 106\nstepping = 6\nhypervisor = false";

    #[test]
    fn the_hosts_cpu_keeps_its_identity_and_is_told_of_kvm() {
        let leaves = leaves("");
        assert_eq!(Vendor::of(&leaves), Vendor::AMD);
        assert_eq!(leaves.get(1, 0).eax, 0x00a1_0f11);
        assert_eq!(leaves.get(1, 0).ebx >> 24, 1, "APIC id");
        assert_eq!(leaves.get(1, 0).ecx & TSC_DEADLINE, TSC_DEADLINE);
        assert_eq!(leaves.get(1, 0).ecx & HYPERVISOR, HYPERVISOR);
        assert_eq!(leaves.get(0x4000_0000, 0).eax, 0x4000_0001);
        assert_eq!(leaves.get(0x15, 0), Registers::default(), "Intel's leaf");
        assert_eq!(cpuid("", Topology::flat(1)).kernel_parameters(), None);
    }

    #[test]
    fn hiding_the_hypervisor_removes_its_leaves_and_tells_the_frequency() {
        let leaves = leaves("hypervisor = false");
        assert_eq!(leaves.get(1, 0).ecx & HYPERVISOR, 0);
        assert_eq!(leaves.get(0x4000_0000, 0), Registers::default());
        assert_eq!(leaves.get(0x4000_0001, 0), Registers::default());
        assert_eq!(
            cpuid("hypervisor = false", Topology::flat(1)).kernel_parameters(),
            Some("tsc_early_khz=2596136 tsc=reliable".to_owned())
        );
    }

    #[test]
    fn an_intel_model_on_an_amd_host_is_consistent() {
        let leaves = leaves(ICE_LAKE);
        assert_eq!(Vendor::of(&leaves), Vendor::INTEL);
        assert_eq!(leaves.get(1, 0).eax, 0x606a6);
        assert_eq!(leaves.last_basic(), 0x16);
        assert_ne!(leaves.get(0x15, 0).ebx, 0);
        assert_eq!(leaves.get(0x16, 0).eax, 2596);
        assert_eq!(leaves.get(0x8000_0000, 0).eax, 0x8000_0008);
        assert_eq!(leaves.get(0x8000_0001, 0).eax, 0);
        assert_eq!(leaves.get(0x8000_0002, 0).eax.to_le_bytes(), *b"Virt");
        assert_eq!(leaves.get(0x8000_001d, 0), Registers::default());
        assert_eq!(leaves.get(4, 0).eax & 0xff, 0x21);
        assert_eq!(leaves.get(0xb, 1).edx, 1);
    }

    #[test]
    fn each_vcpu_has_its_own_apic_id() {
        let topology = Topology {
            packages: 2,
            cores: 3,
            threads: 1,
        };
        let cpuid = cpuid("", topology);
        let ids: Vec<u32> = (0..6)
            .map(|vcpu| Leaves::new(&cpuid.for_vcpu(VcpuId(vcpu))).get(0xb, 0).edx)
            .collect();
        assert_eq!(ids, [0, 1, 2, 4, 5, 6]);
    }

    #[test]
    fn a_model_without_performance_counters_has_none_whatever_kvm_offers() {
        assert_eq!(leaves("").get(0xa, 0).eax, 0x0704_0404);
        assert_eq!(leaves("pmu = false").get(0xa, 0), Registers::default());
    }

    #[test]
    fn features_are_hidden_and_shown_last() {
        let leaves = leaves(
            "hide = [\"avx2\", \"tsc_deadline_timer\"]\nshow = [\"dtherm\", \"aperfmperf\"]",
        );
        assert_eq!(leaves.get(7, 0).ebx, 0x219c_9789);
        assert_eq!(leaves.get(1, 0).ecx & TSC_DEADLINE, 0);
        assert_eq!((leaves.get(6, 0).eax, leaves.get(6, 0).ecx), (1, 1));
        assert_eq!(leaves.get(6, 0).ebx, 2, "the sensor's thresholds");
    }

    #[test]
    fn a_model_that_cannot_be_is_refused() {
        let model = CpuModel {
            stepping: Some(16),
            ..CpuModel::default()
        };
        let error = Cpuid::new(&host(), &model, Topology::flat(1), &|_| true).unwrap_err();
        assert!(matches!(
            error,
            CpuidError::Model(CpuModelError::TooLarge { .. })
        ));
    }
}
