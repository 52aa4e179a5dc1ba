//! What the guest is to be, as a TOML file or the command line says it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use msr_bus::{Topology, VcpuId};
use serde::{Deserialize, Serialize};

use crate::cpu::CpuModel;
use crate::cpu::topology::apic_id;
use crate::devices::virtio::block::DiskConfig;
use crate::models::{self, ModelError, ModelName};
use msr_kvm::{MsrConfig, is_built_in_profile};

/// Everything `msr-vmm run` takes. `--config` reads it from a file, and `--print-config` prints it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The CPU model that everything else is laid over, by name or path. It is there in what a file says, and gone from
    /// what [`Config::load`] makes of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelName>,
    /// The machine.
    pub vm: VmConfig,
    /// What CPUID shows the guest.
    pub cpu: CpuModel,
    /// Who answers which MSR.
    pub msr: MsrConfig,
}

/// The machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VmConfig {
    /// How many vCPUs there are.
    pub cpus: u32,
    /// How they are arranged; one package of single-threaded cores unless said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topology: Option<TopologyConfig>,
    /// How much memory the guest has.
    pub memory: MemorySize,
    /// Whether the guest's memory is to be in huge pages (hugetlbfs).
    pub huge_pages: bool,
    /// Whether all the guest's memory is to be there before it starts, instead of when it touches it.
    pub prefault: bool,
    /// The kernel: a bzImage, an ELF vmlinux, or a Multiboot kernel, which is a 32-bit ELF file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<PathBuf>,
    /// The initrd, or a Multiboot kernel's module.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub cmdline: String,
    /// The I/O port by which a guest ends with an exit status of its own: a value `v` written there ends it with
    /// `(v << 1) | 1`, as QEMU's isa-debug-exit does. No such port unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub debug_exit: Option<u16>,
    /// How many seconds a guest that was asked to switch itself off may take before it is stopped.
    pub grace: u32,
    /// Whether the guest has a source of random numbers, a virtio entropy device.
    pub entropy: bool,
    /// The disks, `[[vm.disk]]`, in the order of the guest's `/dev/vda`, `/dev/vdb` and so on.
    #[serde(rename = "disk", skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<DiskConfig>,
}

/// An arrangement of vCPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TopologyConfig {
    /// Packages (sockets).
    #[serde(default = "one")]
    pub packages: u32,
    /// Cores in each package.
    #[serde(default = "one")]
    pub cores: u32,
    /// Threads in each core.
    #[serde(default = "one")]
    pub threads: u32,
}

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
            initrd: None,
            cmdline: DEFAULT_CMDLINE.into(),
            debug_exit: None,
            grace: 30,
            entropy: false,
            disks: Vec::new(),
        }
    }
}

/// A configuration that cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read config {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The file is not TOML, or has keys or values that mean nothing.
    #[error("config {path}: {source}{}", hint(source.message()))]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the line.
        source: Box<toml::de::Error>,
    },
    /// A path in it cannot be made absolute.
    #[error("no file can be at `{path}`: {source}")]
    Path {
        /// The path.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The CPU model cannot be had.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Model and configuration are well-formed each, and not one over the other.
    #[error("the configuration laid over CPU model {model}: {source}")]
    Layered {
        /// The model's name or path.
        model: ModelName,
        /// What is wrong.
        source: Box<toml::de::Error>,
    },
    /// There is no kernel to boot.
    #[error("no kernel given: use --kernel FILE, or `kernel = \"FILE\"` under [vm] in the config")]
    NoKernel,
    /// A vCPU's APIC id does not fit 8 bits.
    #[error(
        "vm.topology of {packages} packages x {cores} cores x {threads} threads has APIC ids up to {last}, and the highest is {APIC_ID_MAX}: \
         each field of an APIC id is as wide as a power of two, so use powers of two, or fewer packages"
    )]
    ApicId {
        /// Packages.
        packages: u32,
        /// Cores in each package.
        cores: u32,
        /// Threads in each core.
        threads: u32,
        /// The highest APIC id.
        last: u32,
    },
    /// The debug-exit port is another device's.
    #[error(
        "vm.debug_exit is {0:#x}, and the 4 ports from there on are not all free; from 0xf4 on they are"
    )]
    DebugExit(u16),
    /// The number of vCPUs is out of range.
    #[error("vm.cpus is {0}, and must be from 1 to {MAX_CPUS}")]
    Cpus(u32),
    /// The topology does not have as many CPUs as there are.
    #[error(
        "vm.topology has {packages} packages x {cores} cores x {threads} threads, which are not the {cpus} of vm.cpus"
    )]
    Topology {
        /// Packages.
        packages: u32,
        /// Cores in each package.
        cores: u32,
        /// Threads in each core.
        threads: u32,
        /// vCPUs in all.
        cpus: u32,
    },
}

/// The command line of a Linux kernel where none is given; other kernels get none.
pub(crate) const DEFAULT_CMDLINE: &str = "console=ttyS0 reboot=k panic=-1";

/// The most vCPUs a machine has: what 8-bit APIC ids less the broadcast ID leave, rounded down to a power of two. Where a topology's
/// numbers are no powers of two its APIC ids have gaps, so that fewer may fit: see [`ConfigError::ApicId`].
pub const MAX_CPUS: u32 = 128;

impl Config {
    /// Reads a configuration file and lays it over the CPU model that it names, if it names one. Relative paths in it are
    /// relative to the file's own folder, and absolute in what this returns.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Read`], [`ConfigError::Parse`], and those of the model.
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        Self::load(Some(path), None)
    }

    /// The same, with a `model` that is taken instead of the file's, and with or without a file.
    ///
    /// # Errors
    ///
    /// As [`from_file`](Self::from_file).
    pub fn load(path: Option<&Path>, model: Option<&ModelName>) -> Result<Self, ConfigError> {
        let (mut config, keys) = path.map_or_else(|| Ok(Default::default()), read)?;
        let model = model.cloned().or(config.model.take());
        if let Some(model) = model {
            config = config.over(&model, keys)?;
        }
        Ok(config)
    }

    /// The configuration whose file has these `keys`, over a model.
    fn over(self, model: &ModelName, mut keys: toml::Table) -> Result<Self, ConfigError> {
        keys.remove("model");
        let layered = models::overlay(keys, &format!("model {model}"), model.load()?);
        let layered = layered.try_into().map_err(|source| ConfigError::Layered {
            model: model.clone(),
            source: Box::new(source),
        });
        // The paths in `self` are relative to the file's folder already, and models have none.
        let mut layered: Self = layered?;
        layered.vm = self.vm;
        layered.msr.profile = self.msr.profile.or(layered.msr.profile);
        Ok(layered)
    }

    /// Makes every path absolute, so that the configuration means the same wherever it is written to and read
    /// from. Those that are not absolute are relative to `folder`, or without one to where the process is.
    pub(crate) fn resolve(&mut self, folder: &Path) -> Result<(), ConfigError> {
        let disks = self.vm.disks.iter_mut().map(|disk| &mut disk.path);
        let profile = self.msr.profile.as_mut();
        let files = [self.vm.kernel.as_mut(), self.vm.initrd.as_mut()]
            .into_iter()
            .chain([profile.filter(|profile| !is_built_in_profile(profile))])
            .flatten()
            .chain(disks);
        for file in files {
            let path = folder.join(&*file);
            *file =
                std::path::absolute(&path).map_err(|source| ConfigError::Path { path, source })?;
        }
        Ok(())
    }
}

/// What a configuration file says, as a configuration and as keys: only the keys tell what was said from what is a default.
fn read(path: &Path) -> Result<(Config, toml::Table), ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })?;
    let parse_error = |source| ConfigError::Parse {
        path: path.to_owned(),
        source: Box::new(source),
    };
    let mut config: Config = toml::from_str(&text).map_err(parse_error)?;
    let keys = toml::from_str(&text).map_err(parse_error)?;
    let folder = path.parent().unwrap_or(Path::new(""));
    config.resolve(folder)?;
    config.model = config.model.map(|model| model.in_folder(folder));
    Ok((config, keys))
}

/// The known name that is most like the unknown one in a message of serde's, as a question to add to it.
pub(crate) fn hint(message: &str) -> String {
    let mut names = message.split('`').skip(1).step_by(2);
    if !message.contains("unknown") {
        return String::new();
    }
    let Some(unknown) = names.next() else {
        return String::new();
    };
    names
        .map(|name| (strsim::jaro_winkler(unknown, name), name))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map_or(String::new(), |(_, name)| format!("did you mean `{name}`?"))
}

impl VmConfig {
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

/// The highest APIC id: of 8 bits, 255 is the broadcast (Intel SDM volume 3, "Local APIC ID"). The I/O APIC and MSI address no
/// others without extended destination ids or interrupt remapping, and Linux leaves out CPUs that have them.
const APIC_ID_MAX: u32 = 254;

/// A size of memory in bytes. Written as a number of MiB (`512`) or with a unit (`"512M"`, `"2G"`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemorySize(pub u64);

/// A size of memory that cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a size of memory: write MiB as a number (512), or a number with K, M, G or T (2G)"
)]
pub struct ParseMemorySizeError(String);

impl FromStr for MemorySize {
    type Err = ParseMemorySizeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
            "K" | "KIB" => 10,
            "" | "M" | "MIB" => 20,
            "G" | "GIB" => 30,
            "T" | "TIB" => 40,
            _ => return Err(ParseMemorySizeError(text.into())),
        };
        let number: u64 = digits
            .parse()
            .map_err(|_| ParseMemorySizeError(text.into()))?;
        match number.checked_mul(1 << shift) {
            // Whole pages, because memory is mapped in them.
            Some(bytes) if bytes > 0 && bytes % 4096 == 0 => Ok(Self(bytes)),
            _ => Err(ParseMemorySizeError(text.into())),
        }
    }
}

impl fmt::Display for MemorySize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            bytes if bytes % (1 << 30) == 0 => write!(f, "{}G", bytes >> 30),
            bytes if bytes % (1 << 20) == 0 => write!(f, "{}M", bytes >> 20),
            bytes => write!(f, "{}K", bytes >> 10),
        }
    }
}

impl Serialize for MemorySize {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MemorySize {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(
            untagged,
            expecting = "a size of memory: MiB as a number, or a string such as \"2G\""
        )]
        enum Written {
            Mib(u64),
            Text(String),
        }
        let text = match Written::deserialize(deserializer)? {
            Written::Mib(mib) => mib.to_string(),
            Written::Text(text) => text,
        };
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_memory_are_mib_or_carry_a_unit() {
        for (text, bytes) in [
            ("1", 1 << 20),
            ("512M", 512 << 20),
            ("2g", 2 << 30),
            ("8K", 8 << 10),
        ] {
            assert_eq!(text.parse(), Ok(MemorySize(bytes)), "{text}");
        }
        for text in ["", "0", "M", "-1", "1.5G", "1X", "1K", "99999999999999T"] {
            assert!(text.parse::<MemorySize>().is_err(), "{text}");
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

    #[test]
    fn a_mistyped_key_is_an_error_that_names_the_line_and_the_right_key() {
        for (text, line, right) in [
            ("[vm]\ncpus = 1\nmemmory = 3\n", 3, "memory"),
            ("[vm]\nhugepages = true\n", 2, "huge_pages"),
            ("[vm.topology]\ncore = 1\n", 2, "cores"),
            (
                "[[vm.disk]]\npath = \"d\"\nread_only = true\n",
                3,
                "readonly",
            ),
            ("[cpus]\nmodel = 1\n", 1, "cpu"),
            ("[msr]\nunclaimd = \"ignore\"\n", 2, "unclaimed"),
            ("[msr.filter]\ndefualt = \"deny\"\n", 2, "default"),
        ] {
            let source = Box::new(toml::from_str::<Config>(text).unwrap_err());
            let path = "vm.toml".into();
            let error = ConfigError::Parse { path, source }.to_string();
            assert!(error.contains("vm.toml"), "{error}");
            assert!(error.contains(&format!("line {line}")), "{error}");
            assert!(
                error.ends_with(&format!("did you mean `{right}`?")),
                "{error}"
            );
        }
    }

    #[test]
    fn what_is_like_no_key_gets_no_advice() {
        let source = Box::new(toml::from_str::<Config>("[vm]\nzzz = 1\n").unwrap_err());
        let path = "vm.toml".into();
        let error = ConfigError::Parse { path, source }.to_string();
        assert!(!error.contains("did you mean"), "{error}");
    }
}
