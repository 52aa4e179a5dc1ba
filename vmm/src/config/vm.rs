//! The `[vm]` part of a configuration: the machine.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use msr_bus::{Topology, VcpuId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ConfigError, MemorySize};
use crate::cpu::topology::apic_id;
use crate::devices::virtio::block::{DiskConfig, SERIAL_LEN};
use crate::devices::virtio::rate_limiter::RateLimiterConfig;

/// The command line of a Linux kernel where none is given; other kernels get none.
pub(crate) const DEFAULT_CMDLINE: &str = "console=ttyS0 reboot=k panic=-1";

/// The highest APIC id: of 8 bits, 255 is the broadcast (Intel SDM volume 3, "Local APIC ID"). The I/O APIC and MSI address no
/// others without extended destination ids or interrupt remapping, and Linux leaves out CPUs that have them.
pub(super) const APIC_ID_MAX: u32 = 254;

/// The most vCPUs a machine has: what 8-bit APIC ids less the broadcast ID leave, rounded down to a power of two. Where a topology's
/// numbers are no powers of two its APIC ids have gaps, so that fewer may fit: see [`ConfigError::ApicId`].
pub const MAX_CPUS: u32 = 128;

/// The machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(remote = "Self", default, deny_unknown_fields)]
pub struct VmConfig {
    /// How many vCPUs there are.
    #[schemars(range(min = 1, max = MAX_CPUS))]
    pub cpus: u32,
    /// How the vCPUs are arranged, as CPUID and ACPI tell the guest: as many as `cpus` in all. One package of
    /// single-threaded cores unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topology: Option<TopologyConfig>,
    /// How much memory the guest has, at least 2 MiB and in whole pages of 4 KiB.
    pub memory: MemorySize,
    /// Whether the guest's memory is in the host's reserved huge pages of 2 MiB (hugetlbfs; /proc/sys/vm/nr_hugepages
    /// says how many there are).
    pub huge_pages: bool,
    /// Whether all of the guest's memory is there before it starts, and not when it first touches it: a slower start, and
    /// no page faults later.
    pub prefault: bool,
    /// The kernel: a bzImage, an ELF vmlinux, or a Multiboot kernel, which is a 32-bit ELF file. A relative path starts in the folder of the file that says it.
    #[schemars(title = "a path")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<PathBuf>,
    /// Whether the kernel, a bzImage, unpacks itself and moves to random addresses (KASLR), as it does on hardware. The boot takes
    /// longer than where the kernel is unpacked on the host and runs where it is linked. `nokaslr` in the command line keeps the
    /// kernel from moving.
    pub kaslr: bool,
    /// The initrd, which the kernel unpacks as its first root file system; a Multiboot kernel's module.
    #[schemars(title = "a path")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub cmdline: String,
    /// The I/O port by which a guest ends with an exit status of its own: a value `v` written there ends it with
    /// `(v << 1) | 1`, as QEMU's isa-debug-exit does. No such port unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub debug_exit: Option<u16>,
    /// How many seconds a guest that was asked to switch itself off (SIGTERM, SIGHUP) may take before it is stopped.
    pub grace: u32,
    /// Whether the guest has a source of random numbers, a virtio entropy device.
    pub entropy: bool,
    /// How fast the guest may take random numbers from that device. As fast as the host can unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entropy_rate_limiter: Option<RateLimiterConfig>,
    /// The disks, `[[vm.disk]]`, in the order of the guest's `/dev/vda`, `/dev/vdb` and so on.
    #[serde(rename = "disk", skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<DiskConfig>,
}

/// An arrangement of vCPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TopologyConfig {
    /// Packages (sockets).
    #[schemars(range(min = 1))]
    #[serde(default = "one")]
    pub packages: u32,
    /// Cores in each package.
    #[schemars(range(min = 1))]
    #[serde(default = "one")]
    pub cores: u32,
    /// Threads in each core.
    #[schemars(range(min = 1))]
    #[serde(default = "one")]
    pub threads: u32,
}

msr_bus::toml_in_binary_formats!(VmConfig);

fn one() -> u32 {
    1
}

impl Default for VmConfig {
    fn default() -> Self {
        Self {
            cpus: 1,
            topology: None,
            memory: MemorySize(512 << 20),
            huge_pages: false,
            prefault: false,
            kernel: None,
            kaslr: false,
            initrd: None,
            cmdline: DEFAULT_CMDLINE.into(),
            debug_exit: None,
            grace: 30,
            entropy: false,
            entropy_rate_limiter: None,
            disks: Vec::new(),
        }
    }
}

/// The least memory a machine has: what is below 1 MiB is the firmware's, and kernels load above it.
pub const MIN_MEMORY: MemorySize = MemorySize(2 << 20);

impl VmConfig {
    /// What is probably a mistake, and keeps no machine from being made.
    pub fn warnings(&self) -> Vec<String> {
        let serial = |disk: &DiskConfig| {
            let serial = disk.serial.as_ref().filter(|s| s.len() > SERIAL_LEN)?;
            Some(format!(
                "the serial number {serial:?} of disk {} has {} bytes, of which the guest gets the first {SERIAL_LEN} bytes",
                disk.path.display(),
                serial.len()
            ))
        };
        let nokaslr = self.kaslr && self.cmdline.split(' ').any(|word| word == "nokaslr");
        let nokaslr = nokaslr.then(|| {
            "vm.kaslr has the kernel unpack itself, and `nokaslr` in vm.cmdline keeps it from moving"
                .to_owned()
        });
        let limited_in_vain = self.entropy_rate_limiter.is_some() && !self.entropy;
        let limited_in_vain = limited_in_vain.then(|| {
            "vm.entropy_rate_limiter limits a device that the guest has not: vm.entropy is false"
                .to_owned()
        });
        let empty = self.rate_limiters().filter_map(|(key, limiter)| {
            let words = "limits nothing: it has neither `bandwidth` nor `ops`";
            limiter.is_empty().then(|| format!("{key} {words}"))
        });
        nokaslr
            .into_iter()
            .chain(limited_in_vain)
            .chain(empty)
            .chain(self.disks.iter().filter_map(serial))
            .collect()
    }

    /// Finds what no machine can be made of.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Cpus`], [`ConfigError::Topology`], [`ConfigError::Memory`], [`ConfigError::RateLimiter`] and
    /// [`ConfigError::DiskTwice`].
    pub fn check(&self) -> Result<(), ConfigError> {
        self.topology()?;
        if self.memory.0 < MIN_MEMORY.0 {
            return Err(ConfigError::Memory(self.memory));
        }
        for (limiter_key, limiter) in self.rate_limiters() {
            if let Some((key, value, range)) = limiter.wrong() {
                return Err(ConfigError::RateLimiter {
                    key: format!("{limiter_key}.{key}"),
                    value,
                    range,
                });
            }
        }
        // By what the path leads to: a link is the same disk.
        let file = |disk: &DiskConfig| {
            let metadata = std::fs::metadata(&disk.path).ok()?;
            Some((metadata.dev(), metadata.ino()))
        };
        for (number, disk) in self.disks.iter().enumerate() {
            let same = self.disks[..number].iter().find(|first| {
                let is_same =
                    first.path == disk.path || file(disk).is_some_and(|f| file(first) == Some(f));
                is_same && !(first.readonly && disk.readonly)
            });
            if let Some(first) = same {
                return Err(ConfigError::DiskTwice {
                    first: first.path.clone(),
                    second: disk.path.clone(),
                });
            }
        }
        Ok(())
    }

    /// The limits with their keys.
    fn rate_limiters(&self) -> impl Iterator<Item = (String, &RateLimiterConfig)> {
        let disks = self.disks.iter().enumerate().filter_map(|(number, disk)| {
            let limiter = disk.rate_limiter.as_ref()?;
            Some((format!("vm.disk[{number}].rate_limiter"), limiter))
        });
        let entropy = self.entropy_rate_limiter.as_ref();
        disks.chain(entropy.map(|limiter| ("vm.entropy_rate_limiter".to_owned(), limiter)))
    }

    /// The arrangement of the vCPUs.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Cpus`] and [`ConfigError::Topology`].
    pub fn topology(&self) -> Result<Topology, ConfigError> {
        let cpus = self.cpus;
        if !(1..=MAX_CPUS).contains(&cpus) {
            return Err(ConfigError::Cpus(cpus));
        }
        let Some(TopologyConfig {
            packages,
            cores,
            threads,
        }) = self.topology
        else {
            return Ok(Topology::flat(cpus));
        };
        let product = packages
            .checked_mul(cores)
            .and_then(|cores| cores.checked_mul(threads));
        if product != Some(cpus) {
            return Err(ConfigError::Topology {
                packages,
                cores,
                threads,
                cpus,
            });
        }
        let topology = Topology {
            packages,
            cores,
            threads,
        };
        let last = apic_id(&topology, VcpuId(cpus - 1));
        if last > APIC_ID_MAX {
            return Err(ConfigError::ApicId {
                packages,
                cores,
                threads,
                last,
            });
        }
        Ok(topology)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kaslr_that_the_command_line_switches_off_is_told() {
        for (kaslr, cmdline, warnings) in [
            (true, "quiet nokaslr", 1),
            (true, "quiet root=/dev/nokaslr", 0),
            (false, "nokaslr", 0),
        ] {
            let vm = VmConfig {
                kaslr,
                cmdline: cmdline.into(),
                ..VmConfig::default()
            };
            assert_eq!(vm.warnings().len(), warnings, "{kaslr} {cmdline}");
        }
    }

    #[test]
    fn apic_ids_beyond_254_are_refused() {
        let topology = |packages, cores, threads| {
            let vm = VmConfig {
                cpus: packages * cores * threads,
                topology: Some(TopologyConfig {
                    packages,
                    cores,
                    threads,
                }),
                ..VmConfig::default()
            };
            vm.topology()
        };
        // Three bits each for 5 cores and 5 threads.
        let error = topology(5, 5, 5).unwrap_err();
        assert!(
            matches!(error, ConfigError::ApicId { last: 292, .. }),
            "{error}"
        );
        assert!(
            error
                .to_string()
                .contains("APIC ids up to 292, and the highest is 254")
        );
        assert!(topology(4, 5, 5).is_ok());
        assert!(topology(2, 64, 1).is_ok());
        assert!(topology(8, 8, 2).is_ok());
        // 42 packages of 4 ids each, and 9 of 16.
        assert!(topology(42, 1, 3).is_ok());
        assert!(topology(9, 3, 4).is_ok());
    }

    #[test]
    fn a_topology_must_have_as_many_cpus_as_there_are() {
        let mut vm = VmConfig {
            cpus: 8,
            ..VmConfig::default()
        };
        assert_eq!(vm.topology().unwrap(), Topology::flat(8));
        vm.topology = Some(TopologyConfig {
            packages: 2,
            cores: 2,
            threads: 2,
        });
        assert_eq!(
            vm.topology().unwrap(),
            Topology {
                packages: 2,
                cores: 2,
                threads: 2
            }
        );
        for (packages, cores, threads) in [(2, 2, 1), (0, 2, 2), (65536, 65536, 8)] {
            vm.topology = Some(TopologyConfig {
                packages,
                cores,
                threads,
            });
            assert!(matches!(vm.topology(), Err(ConfigError::Topology { .. })));
        }
        for cpus in [0, MAX_CPUS + 1] {
            vm.cpus = cpus;
            assert!(matches!(vm.topology(), Err(ConfigError::Cpus(c)) if c == cpus));
        }
    }
}
