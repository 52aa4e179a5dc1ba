//! The bus, the filter and the exit reasons that belong together.

use std::fmt;
use std::sync::Arc;

use msr_bus::{
    BuildError, BusBuilder, Contradiction, CpuClock, CpuIdentity, DeviceContext, ExitReason,
    Fallback, FaultConfig, InterruptRequests, MsrBus, MsrDevice, MsrObserver, MsrRange, Topology,
};
use msr_filter::{Access, CompileError, FilterSpec, MsrFilter, Rule, Verdict};

use crate::initial::{self, InitialMsr};
use crate::layers::{self, Layer, LostRule};
use crate::source::{self, RuleSource};
use crate::{HostClock, MsrStats};

/// The bus, and the filter and exit reasons derived from its claims and the user's rules.
#[derive(Debug)]
pub struct MsrPlan {
    /// Who answers in userspace.
    pub bus: Arc<MsrBus>,
    /// What the kernel may answer, as rules: the devices' claims first, then what the layers allow together.
    pub spec: FilterSpec,
    /// Where each of those rules comes from.
    pub sources: Vec<RuleSource>,
    /// The layers: the configuration's own rules, then models and the profile.
    pub layers: Vec<Layer>,
    /// The allow rules of one layer that another denies.
    pub lost: Vec<LostRule>,
    /// The same as KVM gets it.
    pub filter: MsrFilter,
    /// What changes the devices of a configuration while the guest runs, in their order.
    #[cfg(feature = "config")]
    pub live: Vec<msr_bus::LiveKeys>,
    /// The reasons for which KVM asks userspace.
    pub exits: Vec<ExitReason>,
    /// What MSRs that KVM keeps hold when a vCPU starts; no device claims them.
    pub initial: Vec<InitialMsr>,
    /// The interrupts that devices have asked for. Whoever changes [`live`](Self::live) keys delivers them afterwards.
    pub interrupts: Arc<InterruptRequests>,
    pub(crate) topology: Topology,
    pub(crate) clock: Arc<HostClock>,
    pub(crate) statistics: Option<Arc<MsrStats>>,
    pub(crate) instruction_pointers: bool,
}

/// Why devices and rules cannot be had together.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// A device's own keys are wrong.
    #[cfg(feature = "config")]
    #[error("device number {number}: {source}")]
    Device {
        /// The device's place in the configuration, from 1.
        number: usize,
        /// What is wrong.
        source: msr_bus::ConfigError,
    },
    /// A scenario cannot be carried out.
    #[cfg(feature = "config")]
    #[error(transparent)]
    Scenario(#[from] crate::scenario::ScenarioError),
    /// Devices are in each other's way.
    #[error(transparent)]
    Bus(#[from] BuildError),
    /// A rule lets the kernel answer what a device claims.
    #[error(transparent)]
    Contradiction(#[from] Contradiction),
    /// Devices claim MSRs, and KVM is told not to ask.
    #[error(
        "device `{0}` claims MSRs, but the exit reasons lack \"filter\": without it KVM answers #GP itself and never \
         asks the device; add \"filter\" to the exit reasons"
    )]
    NoFilterExit(String),
    /// The profile cannot be had.
    #[cfg(feature = "config")]
    #[error(transparent)]
    Profile(#[from] crate::ProfileError),
    /// An MSR has an initial value, which KVM would keep, and a device that answers in KVM's place.
    #[error(
        "initial value {number}: device `{device}` claims {claim}, so the guest would never see the initial value of MSR \
         {index:#x} in KVM: take the MSR out of one of them"
    )]
    InitialClaimed {
        /// The initial value's place, from 1.
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
        "initial values {first} and {second} are both for MSR {index:#x}: an MSR has one initial value"
    )]
    InitialTwice {
        /// The MSR.
        index: u32,
        /// The place of the first, from 1.
        first: usize,
        /// The place of the second.
        second: usize,
    },
    /// The rules need more ranges than KVM takes.
    #[error(
        "rules and devices need {needed} filter ranges, and KVM takes at most 16; fewer without {suggestions}"
    )]
    TooManyRanges {
        /// The fewest ranges that express them.
        needed: u64,
        /// What to do without.
        suggestions: String,
    },
    /// The rules cannot be expressed as a KVM filter.
    #[error(transparent)]
    Compile(CompileError),
}

/// Collects devices, rules and exit reasons. [`MsrPlan::builder`] makes one.
pub struct MsrPlanBuilder {
    bus: BusBuilder,
    context: DeviceContext,
    clock: Arc<HostClock>,
    #[cfg(feature = "config")]
    pub(crate) live: Vec<msr_bus::LiveKeys>,
    exits: Vec<ExitReason>,
    initial: Vec<InitialMsr>,
    /// What must not contradict the devices' claims.
    pub(crate) rules: FilterSpec,
    pub(crate) sources: Vec<RuleSource>,
    /// What narrows them, written without knowing of devices.
    pub(crate) layers: Vec<Layer>,
    statistics: Option<Arc<MsrStats>>,
    instruction_pointers: bool,
}

impl MsrPlan {
    /// A plan for a guest of this topology, of the most vCPUs it can have, whose CPUID shows this CPU. Without
    /// further words: no device, every exit reason, #GP for what no device claims, and the kernel may answer all that it can.
    pub fn builder(topology: Topology, cpu: CpuIdentity) -> MsrPlanBuilder {
        let clock = Arc::new(HostClock::new(topology.vcpus()));
        MsrPlanBuilder {
            bus: MsrBus::builder(),
            context: DeviceContext {
                topology,
                cpu,
                clock: clock.clone(),
                interrupts: Arc::default(),
            },
            clock,
            #[cfg(feature = "config")]
            live: Vec::new(),
            exits: ExitReason::ALL.to_vec(),
            initial: Vec::new(),
            rules: FilterSpec::new(Verdict::Allow),
            sources: Vec::new(),
            layers: Vec::new(),
            statistics: None,
            instruction_pointers: false,
        }
    }

    /// The filter for other rules behind the same devices, which models and profiles narrow as they did the first.
    ///
    /// # Errors
    ///
    /// [`PlanError`] for rules that contradict a claim or cannot be compiled.
    pub fn filter_for(&self, rules: &FilterSpec) -> Result<MsrFilter, PlanError> {
        let (_, _, filter) = self.with_own(Layer::of_rules(rules.clone()))?;
        Ok(filter)
    }

    /// What another layer of the configuration's own rules makes with the devices, the models and the profile: the rules, where
    /// each of them comes from, and the filter as KVM gets it.
    ///
    /// # Errors
    ///
    /// As [`filter_for`](Self::filter_for).
    pub fn with_own(
        &self,
        own: Layer,
    ) -> Result<(FilterSpec, Vec<RuleSource>, MsrFilter), PlanError> {
        let rules = &own.spec.rules;
        let contradicts = |error| in_source(error, &own.sources);
        self.bus.check_rules(rules).map_err(contradicts)?;
        let mut layers = vec![own];
        layers.extend_from_slice(&self.layers[1..]);
        let (spec, sources, _) = derive(&self.bus, &layers);
        let filter = compile(&spec, &sources)?;
        Ok((spec, sources, filter))
    }

    /// What each layer says of an access of one kind, and by which rule or default. A device's claim comes before all of them.
    pub fn verdicts(&self, index: u32, access: Access) -> Vec<(Verdict, RuleSource)> {
        let layers = self.layers.iter();
        layers.map(|layer| layer.verdict(index, access)).collect()
    }

    /// Whether a device answers the MSR, or it has an initial value in KVM.
    pub fn has_msr(&self, index: u32) -> bool {
        self.bus.device(index).is_some() || self.initial.iter().any(|i| i.index == index)
    }

    /// The clock that the devices see.
    pub fn clock(&self) -> &Arc<HostClock> {
        &self.clock
    }
}

impl MsrPlanBuilder {
    /// What devices are built for: the topology, the CPU and the clock.
    pub fn context(&self) -> &DeviceContext {
        &self.context
    }

    /// Sets another clock for the devices that are added from now on, in place of [`MsrPlan::clock`].
    #[must_use]
    pub fn device_clock(mut self, clock: Arc<dyn CpuClock>) -> Self {
        self.context.clock = clock;
        self
    }

    /// Adds a device.
    #[must_use]
    pub fn device(mut self, device: Arc<dyn MsrDevice>) -> Self {
        self.bus = self.bus.device(device);
        self
    }

    /// Adds an observer that sees every access that reaches userspace.
    #[must_use]
    pub fn observer(mut self, observer: Arc<dyn MsrObserver>) -> Self {
        self.bus = self.bus.observer(observer);
        self
    }

    /// Counts every access that reaches userspace.
    #[must_use]
    pub fn statistics(mut self) -> Self {
        let stats = Arc::new(MsrStats::new(self.context.topology.vcpus()));
        self.statistics = Some(stats.clone());
        self.observer(stats)
    }

    /// Lets observers have the RIP of each access, where this KVM has synchronized registers: see
    /// [`VcpuMsrs::synchronize_registers`](crate::VcpuMsrs::synchronize_registers).
    #[must_use]
    pub fn instruction_pointers(mut self) -> Self {
        self.instruction_pointers = true;
        self
    }

    /// Sets what becomes of accesses that no device claims.
    #[must_use]
    pub fn fallback(mut self, fallback: Fallback) -> Self {
        self.bus = self.bus.fallback(fallback);
        self
    }

    /// Has accesses go wrong on purpose.
    #[must_use]
    pub fn faults(mut self, rules: Vec<FaultConfig>) -> Self {
        self.bus = self.bus.faults(rules, self.context.topology.vcpus());
        self
    }

    /// Sets the reasons for which KVM asks userspace; for the others it injects #GP itself.
    #[must_use]
    pub fn exits(mut self, exits: &[ExitReason]) -> Self {
        self.exits = exits.to_vec();
        self
    }

    /// Sets what MSRs that KVM keeps hold when a vCPU starts.
    #[must_use]
    pub fn initial(mut self, initial: Vec<InitialMsr>) -> Self {
        self.initial = initial;
        self
    }

    /// Sets what the kernel may answer, apart from what devices claim.
    #[must_use]
    pub fn rules(mut self, rules: FilterSpec) -> Self {
        let layer = Layer::of_rules(rules);
        (self.rules, self.sources) = (layer.spec, layer.sources);
        self
    }

    /// Adds a filter that narrows what the rules allow, such as a profile's.
    #[must_use]
    pub fn layer(mut self, layer: Layer) -> Self {
        self.layers.push(layer);
        self
    }

    /// Builds the bus and derives the filter.
    ///
    /// # Errors
    ///
    /// [`PlanError`], for whatever devices and rules contradict each other in.
    pub fn build(self) -> Result<MsrPlan, PlanError> {
        let bus = self.bus.build()?;
        initial::check(&self.initial, &bus)?;
        bus.check_rules(&self.rules.rules)
            .map_err(|error| in_source(error, &self.sources))?;
        if !self.exits.contains(&ExitReason::Filter)
            && let Some((_, device)) = bus.claims().next()
        {
            return Err(PlanError::NoFilterExit(device.name().to_owned()));
        }
        let mut layers = vec![Layer {
            name: String::new(),
            spec: self.rules,
            sources: self.sources,
        }];
        layers.extend(self.layers);
        let (spec, sources, lost) = derive(&bus, &layers);
        let filter = compile(&spec, &sources)?;
        Ok(MsrPlan {
            bus: Arc::new(bus),
            spec,
            sources,
            layers,
            lost,
            filter,
            #[cfg(feature = "config")]
            live: self.live,
            exits: self.exits,
            initial: self.initial,
            interrupts: self.context.interrupts,
            topology: self.context.topology,
            clock: self.clock,
            statistics: self.statistics,
            instruction_pointers: self.instruction_pointers,
        })
    }
}

/// The filter as KVM gets it.
fn compile(spec: &FilterSpec, sources: &[RuleSource]) -> Result<MsrFilter, PlanError> {
    spec.compile().map_err(|error| match error {
        CompileError::TooManyRanges {
            needed,
            suggestions,
            ..
        } if !suggestions.is_empty() => PlanError::TooManyRanges {
            needed,
            suggestions: source::suggestions(spec, sources, &suggestions),
        },
        error => PlanError::Compile(error),
    })
}

/// The claims are denied in the kernel, so that KVM asks; then comes what the layers allow together. Layers may allow what a
/// device claims: models and profiles are written without knowing of other devices.
fn derive(bus: &MsrBus, layers: &[Layer]) -> (FilterSpec, Vec<RuleSource>, Vec<LostRule>) {
    let mut rules: Vec<Rule> = bus.claim_rules().collect();
    let claims = bus.claims().map(|(_, device)| RuleSource::Claim {
        device: device.name().to_owned(),
    });
    let mut sources: Vec<RuleSource> = claims.collect();
    if let [only] = layers {
        rules.extend_from_slice(&only.spec.rules);
        sources.extend_from_slice(&only.sources);
        let default = only.spec.default;
        return (FilterSpec { default, rules }, sources, Vec::new());
    }
    let combined = layers::combine(layers);
    rules.extend(combined.rules);
    sources.extend(combined.sources);
    // What a device answers is not lost.
    let answered = |range: MsrRange| {
        bus.claims()
            .any(|(claim, _)| claim.first() <= range.first() && range.last() <= claim.last())
    };
    let lost = combined.lost.into_iter();
    let lost = layers::lost_rules(lost.filter(|lost| !answered(lost.msrs)));
    let default = combined.default;
    (FilterSpec { default, rules }, sources, lost)
}

/// Numbers the rule as its author did, who may have given several ranges to one.
fn in_source(error: Contradiction, sources: &[RuleSource]) -> Contradiction {
    match sources.get(error.rule) {
        Some(RuleSource::User { number, .. }) => Contradiction {
            rule: number - 1,
            ..error
        },
        _ => error,
    }
}

impl fmt::Debug for MsrPlanBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MsrPlanBuilder")
            .field("bus", &self.bus)
            .field("context", &self.context)
            .field("exits", &self.exits)
            .field("rules", &self.rules)
            .finish_non_exhaustive()
    }
}
