//! From configuration to the bus, the filter and the exits that belong together.

use std::sync::Arc;

use kvm_ioctls::{Cap, MsrExitReason, VcpuFd, VmFd};
use msr_bus::{
    BuildError, DeviceContext, DeviceModel, ExitReason, MsrBus, MsrDevice, MsrObserver, MsrRange,
};
use msr_filter::{Access, CompileError, FilterSpec, InstallError, MsrFilter, Rule, Verdict};

use crate::MsrConfig;
use crate::initial::{self, InitialMsr, OnRefusal, RefusedMsr, RefusedMsrs};
use crate::profile::{self, ProfileError};
use crate::source::{self, RuleSource};

/// The bus, and the filter and exits derived from its claims and the configuration's rules.
pub struct MsrPlan {
    /// Who answers in userspace.
    pub bus: Arc<MsrBus>,
    /// What the kernel may answer, as rules: the devices' claims first, then the user's.
    pub spec: FilterSpec,
    /// Where each of those rules comes from.
    pub sources: Vec<RuleSource>,
    /// The same as KVM gets it.
    pub filter: MsrFilter,
    /// The reasons for which KVM asks userspace.
    pub exits: Vec<ExitReason>,
    /// What MSRs that KVM keeps hold when a vCPU starts; no device claims them.
    pub initial: Vec<InitialMsr>,
}

/// Why a configuration cannot be carried out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// A device's own keys are wrong.
    #[error("[[msr.device]] number {number}: {source}")]
    Device {
        /// The device's place in the configuration, from 1.
        number: usize,
        /// What is wrong.
        source: msr_bus::ConfigError,
    },
    /// Devices are in each other's way.
    #[error("[[msr.device]]: {0}")]
    Bus(#[from] BuildError),
    /// A rule lets the kernel answer what a device claims.
    #[error(
        "[[msr.filter.rule]] number {number} allows MSR {rule} in the kernel, but device `{device}` claims {claim}: \
         take the MSR out of the rule or out of the device"
    )]
    Contradiction {
        /// The rule's place in the configuration, from 1.
        number: usize,
        /// The rule's range.
        rule: MsrRange,
        /// The device.
        device: String,
        /// The device's range.
        claim: MsrRange,
    },
    /// Devices claim MSRs, and KVM is told not to ask.
    #[error(
        "device `{0}` claims MSRs, but msr.exits lacks \"filter\": without it KVM answers #GP itself and never asks \
         the device; add \"filter\" to msr.exits"
    )]
    NoFilterExit(String),
    /// The profile cannot be had.
    #[error("msr.profile: {0}")]
    Profile(#[from] ProfileError),
    /// An MSR has an initial value, which KVM would keep, and a device that answers in KVM's place.
    #[error(
        "[[msr.initial]] number {number}: device `{device}` claims {claim}, so the guest would never see the initial value \
         of MSR {index:#x} in KVM: take the MSR out of one of them"
    )]
    InitialClaimed {
        /// The initial value's place in the configuration, from 1.
        number: usize,
        /// The MSR.
        index: u32,
        /// The device.
        device: String,
        /// The device's range.
        claim: MsrRange,
    },
    /// An MSR has two initial values.
    #[error(
        "[[msr.initial]] numbers {first} and {second} are both for MSR {index:#x}: an MSR has one initial value"
    )]
    InitialTwice {
        /// The MSR.
        index: u32,
        /// The place of the first in the configuration, from 1.
        first: usize,
        /// The place of the second.
        second: usize,
    },
    /// The rules need more ranges than KVM takes.
    #[error(
        "[msr.filter]: rules and devices need {needed} filter ranges, and KVM takes at most 16; \
         fewer without {suggestions}"
    )]
    TooManyRanges {
        /// The fewest ranges that express them.
        needed: u64,
        /// What to do without.
        suggestions: String,
    },
    /// The rules cannot be expressed as a KVM filter.
    #[error("[msr.filter]: {0}")]
    Compile(CompileError),
    /// This KVM lacks what the plan needs.
    #[error("this host's KVM lacks {name} ({since}); `msr-vmm check` tells what it can do")]
    MissingCapability {
        /// The capability's name.
        name: &'static str,
        /// Which Linux has it.
        since: &'static str,
    },
    /// KVM refused to exit for MSR accesses.
    #[error("KVM_ENABLE_CAP(KVM_CAP_X86_USER_SPACE_MSR) failed: {0}")]
    Enable(kvm_ioctls::Error),
    /// KVM refused initial values.
    #[error("[[msr.initial]]: this host's KVM does not take {}; with refused = \"warn\" the VM is built without", RefusedMsrs(.0))]
    InitialRefused(Vec<RefusedMsr>),
    /// KVM refused an ioctl on a vCPU's MSRs.
    #[error("KVM_SET_MSRS failed: {0}")]
    SetMsrs(kvm_ioctls::Error),
    /// KVM refused the filter.
    #[error(transparent)]
    Install(#[from] InstallError),
}

impl PlanError {
    /// Whether the configuration is at fault, and not the host's KVM.
    pub fn is_usage(&self) -> bool {
        !matches!(
            self,
            Self::MissingCapability { .. } | Self::Enable(_) | Self::Install(_) | Self::SetMsrs(_)
        )
    }
}

impl MsrPlan {
    /// Builds the configured devices and those in `extra`, and derives the filter.
    ///
    /// # Errors
    ///
    /// [`PlanError`], for whatever the configuration contradicts itself in.
    pub fn new(
        config: &MsrConfig,
        extra: &[Arc<dyn MsrDevice>],
        observer: Option<Arc<dyn MsrObserver>>,
        context: &DeviceContext,
    ) -> Result<Self, PlanError> {
        let mut builder = MsrBus::builder().fallback(config.unclaimed);
        for (number, device) in (1..).zip(&config.devices) {
            let device = device.build(DeviceModel::all(), context);
            builder =
                builder.device(device.map_err(|source| PlanError::Device { number, source })?);
        }
        for device in extra {
            builder = builder.device(device.clone());
        }
        if let Some(observer) = observer {
            builder = builder.observer(observer);
        }
        let bus = builder.build()?;
        check_initial(&config.initial, &bus)?;
        let (spec, sources) = derive(config, &bus)?;
        let filter = spec.compile().map_err(|error| match error {
            CompileError::TooManyRanges {
                needed,
                suggestions,
                ..
            } if !suggestions.is_empty() => PlanError::TooManyRanges {
                needed,
                suggestions: source::suggestions(&spec, &sources, &suggestions),
            },
            error => PlanError::Compile(error),
        })?;
        Ok(Self {
            bus: Arc::new(bus),
            spec,
            sources,
            filter,
            exits: config.exits.clone(),
            initial: config.initial.clone(),
        })
    }

    /// Whether a device answers the MSR, or it has an initial value in KVM.
    pub fn has_msr(&self, index: u32) -> bool {
        self.bus.device(index).is_some() || self.initial.iter().any(|i| i.index == index)
    }

    /// Gives a vCPU its initial values, once it has its CPUID. Returns what KVM refused and may be without.
    ///
    /// # Errors
    ///
    /// [`PlanError::InitialRefused`] for values that may not be refused, and [`PlanError::SetMsrs`].
    pub fn set_initial(&self, vcpu: &VcpuFd) -> Result<Vec<RefusedMsr>, PlanError> {
        let refused = initial::set(vcpu, &self.initial).map_err(PlanError::SetMsrs)?;
        let (errors, warnings): (Vec<_>, Vec<_>) = refused
            .into_iter()
            .partition(|refused| refused.initial.refused == OnRefusal::Error);
        if errors.is_empty() {
            Ok(warnings)
        } else {
            Err(PlanError::InitialRefused(errors))
        }
    }

    /// Tells KVM to ask userspace, and what about. Belongs before the first vCPU runs.
    ///
    /// # Errors
    ///
    /// [`PlanError`], for what KVM lacks or refuses.
    pub fn install(&self, vm: &VmFd) -> Result<(), PlanError> {
        if !self.exits.is_empty() {
            require(vm, Cap::X86UserSpaceMsr, "KVM_CAP_X86_USER_SPACE_MSR")?;
            let mut cap = kvm_bindings::kvm_enable_cap {
                cap: Cap::X86UserSpaceMsr as u32,
                ..Default::default()
            };
            cap.args[0] = u64::from(
                self.exits
                    .iter()
                    .copied()
                    .map(mask)
                    .collect::<MsrExitReason>()
                    .bits(),
            );
            vm.enable_cap(&cap).map_err(PlanError::Enable)?;
        }
        require(vm, Cap::X86MsrFilter, "KVM_CAP_X86_MSR_FILTER")?;
        Ok(self.filter.install(vm)?)
    }
}

fn mask(reason: ExitReason) -> MsrExitReason {
    match reason {
        ExitReason::Filter => MsrExitReason::Filter,
        ExitReason::Unknown => MsrExitReason::Unknown,
        ExitReason::Invalid => MsrExitReason::Inval,
    }
}

fn require(vm: &VmFd, cap: Cap, name: &'static str) -> Result<(), PlanError> {
    if vm.check_extension(cap) {
        Ok(())
    } else {
        Err(PlanError::MissingCapability {
            name,
            since: "Linux 5.10 and later have it",
        })
    }
}

/// Each initial value is of an MSR of its own, and of one that KVM answers.
fn check_initial(initial: &[InitialMsr], bus: &MsrBus) -> Result<(), PlanError> {
    for (place, InitialMsr { index, .. }) in initial.iter().enumerate() {
        let (number, index) = (place + 1, *index);
        if let Some(first) = initial[..place].iter().position(|i| i.index == index) {
            return Err(PlanError::InitialTwice {
                index,
                first: first + 1,
                second: number,
            });
        }
        let one = MsrRange::single(index);
        if let Some((claim, device)) = bus.claims().find(|(c, _)| c.intersection(one).is_some()) {
            let device = device.name().to_owned();
            return Err(PlanError::InitialClaimed {
                number,
                index,
                device,
                claim,
            });
        }
    }
    Ok(())
}

/// The claims are denied in the kernel, so that KVM asks; then come the user's own rules, then the profile's.
/// A profile may allow what a device claims: it is written without knowing of devices.
fn derive(config: &MsrConfig, bus: &MsrBus) -> Result<(FilterSpec, Vec<RuleSource>), PlanError> {
    let user = &config.filter;
    for (number, rule) in (1..)
        .zip(&user.rules)
        .filter(|(_, rule)| rule.verdict == Verdict::Allow)
    {
        for range in &rule.msrs {
            if let Some((claim, device)) =
                bus.claims().find(|(c, _)| c.intersection(*range).is_some())
            {
                let device = device.name().to_owned();
                return Err(PlanError::Contradiction {
                    number,
                    rule: *range,
                    device,
                    claim,
                });
            }
        }
    }
    if !config.exits.contains(&ExitReason::Filter)
        && let Some((_, device)) = bus.claims().next()
    {
        return Err(PlanError::NoFilterExit(device.name().to_owned()));
    }
    let profile = config.profile.as_deref().map(profile::load).transpose()?;
    let default = profile.as_ref().map_or(user.default, |p| p.default);
    let mut spec = FilterSpec::new(default);
    let mut sources = Vec::new();
    for (claim, device) in bus.claims() {
        spec.rules
            .push(Rule::new(claim, Access::all(), Verdict::Deny));
        let device = device.name().to_owned();
        sources.push(RuleSource::Claim { device });
    }
    spec.rules.extend(FilterSpec::from(user).rules);
    sources.extend(RuleSource::of_config(user, |number, reason| {
        RuleSource::User { number, reason }
    }));
    if let Some(profile) = &profile {
        spec.rules.extend(FilterSpec::from(profile).rules);
        let source = |number, reason| RuleSource::Profile { number, reason };
        sources.extend(RuleSource::of_config(profile, source));
    }
    Ok((spec, sources))
}
