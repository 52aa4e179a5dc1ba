//! What a device model is, and what it is built for.

use std::fmt;
use std::sync::Arc;

use crate::{CpuClock, CpuIdentity, InterruptRequests, MsrDevice, Syscall, Topology};

/// A device that a configuration can ask for by its type.
///
/// [`Config`](Self::Config) is the one definition of the model's keys: what a configuration may say, the defaults, and
/// (its doc comments) what `msr-vmm devices` prints.
pub trait Model: MsrDevice + Sized + 'static {
    /// What a configuration writes as `type`.
    const TYPE: &'static str;

    /// What the model is, in one line.
    const SUMMARY: &'static str;

    /// The system calls that reads and writes make on a vCPU's thread, for a VMM's seccomp filter. Messages that a device
    /// logs are the logger's affair.
    const SYSCALLS: &'static [Syscall] = &[];

    /// What the device is made from. `DeviceModel::of` (feature `config`) asks it to implement serde's
    /// `Deserialize` with `#[serde(deny_unknown_fields)]`, and schemars' `JsonSchema` with doc comments that say the
    /// units.
    type Config;

    /// Makes the device, to be called `name`.
    ///
    /// # Errors
    ///
    /// What is wrong with the configuration and what would be right.
    fn build(name: String, config: Self::Config, context: &DeviceContext) -> Result<Self, String>;

    /// Takes over the keys that are marked as live, with `#[schemars(extend("x-live" = true))]`; the others are as
    /// [`build`](Self::build) got them. `changed` are the names of those that somebody has just set, with a dot before each key
    /// of a table. vCPUs may access the device meanwhile.
    ///
    /// # Errors
    ///
    /// What is wrong with the configuration, as [`build`](Self::build) would say it; nothing has changed then.
    fn apply(
        &self,
        _config: Self::Config,
        _changed: &[&str],
        _context: &DeviceContext,
    ) -> Result<(), String> {
        Err("none of its keys can change while the guest runs".into())
    }
}

/// What a device may know of the machine it is built for.
#[derive(Clone)]
pub struct DeviceContext {
    /// The guest's topology.
    pub topology: Topology,
    /// Who the guest's CPU says it is.
    pub cpu: CpuIdentity,
    /// Time and CPU time.
    pub clock: Arc<dyn CpuClock>,
    /// Where devices ask for interrupts.
    pub interrupts: Arc<InterruptRequests>,
}

impl fmt::Debug for DeviceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceContext")
            .field("topology", &self.topology)
            .field("cpu", &self.cpu)
            .finish_non_exhaustive()
    }
}
