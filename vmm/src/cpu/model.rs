//! The CPU that a configuration asks for.

use msr_bus::{CpuIdentity, CpuVendor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::features::Feature;
use super::identity::{BRAND_MAX, FAMILY_MAX, STEPPING_MAX, Signature, model_max};
use super::leaf_bits::{LeafBits, decided_elsewhere};
use super::pci::{self, PciAddress, PciFunction};
use super::vendor::Vendor;

/// The brand string of a CPU that has another vendor than the host's and no brand string of its own.
const DEFAULT_BRAND: &str = "Virtual CPU";

/// What CPUID shows the guest. What is not given is as the host's KVM has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(remote = "Self", deny_unknown_fields, default)]
pub struct CpuModel {
    /// The vendor, such as `GenuineIntel`. Another than the host's needs `family` and `model` too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vendor: Option<Vendor>,
    /// The family, the extended one included: 6, or 25 for Zen 3.
    #[schemars(range(max = FAMILY_MAX))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub family: Option<u32>,
    /// The model, the extended one included: 106 for an Ice Lake server.
    #[schemars(range(max = 255))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<u32>,
    /// The stepping.
    #[schemars(range(max = STEPPING_MAX))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stepping: Option<u32>,
    /// The brand string (`model name` in /proc/cpuinfo): at most 47 printable ASCII characters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub brand: Option<String>,
    /// Whether the guest is told that there is a hypervisor, and that it is KVM. Without that it has no kvmclock.
    pub hypervisor: bool,
    /// The base frequency in leaf 0x16, in MHz; the TSC's unless given. On Intel's CPUs only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_mhz: Option<u16>,
    /// The highest turbo frequency in leaf 0x16, in MHz; the base frequency unless given. On Intel's CPUs only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_mhz: Option<u16>,
    /// Whether the guest has KVM's performance counters. Unless said, it has what KVM offers, be it nothing. `true`
    /// refuses a KVM without, and takes the place of what a CPU model has instead: its MSR device called `pmu`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pmu: Option<bool>,
    /// Features not to show, as in the flags of /proc/cpuinfo.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hide: Vec<Feature>,
    /// Features to show although KVM does not offer them: for those that MSR devices implement (`dtherm`, `pts`,
    /// `aperfmperf`). Showing others promises the guest what it has not got.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub show: Vec<Feature>,
    /// Bits of CPUID by leaf, subleaf and register, `[[cpu.leaf]]`. What `show` and `hide` name wins over them.
    #[serde(rename = "leaf", skip_serializing_if = "Vec::is_empty")]
    pub leaves: Vec<LeafBits>,
    /// PCI functions that are part of the processor, `[[cpu.pci]]`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pci: Vec<PciFunction>,
    /// What becomes of features that `show` and `[[cpu.leaf]]` ask for, this host's KVM does not offer, and no MSR device
    /// implements.
    #[serde(skip_serializing_if = "is_show")]
    pub unoffered: OnUnoffered,
}

msr_bus::toml_in_binary_formats!(CpuModel);

/// What becomes of features that are asked for and that this host's KVM does not offer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnUnoffered {
    /// The guest is shown them, and a warning tells what will come of it.
    #[default]
    Show,
    /// They are hidden from the guest, and a warning names them.
    Hide,
    /// The VM is not built.
    Refuse,
}

fn is_show(unoffered: &OnUnoffered) -> bool {
    *unoffered == OnUnoffered::Show
}

impl Default for CpuModel {
    /// The host's CPU, as KVM offers it.
    fn default() -> Self {
        Self {
            vendor: None,
            family: None,
            model: None,
            stepping: None,
            brand: None,
            hypervisor: true,
            base_mhz: None,
            max_mhz: None,
            pmu: None,
            hide: Vec::new(),
            show: Vec::new(),
            leaves: Vec::new(),
            pci: Vec::new(),
            unoffered: OnUnoffered::Show,
        }
    }
}

/// What is wrong with a [`CpuModel`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CpuModelError {
    /// A number has no place in CPUID.
    #[error("cpu.{key} = {value} is too large: at most {max} can be shown")]
    TooLarge {
        /// The key.
        key: &'static str,
        /// Its value.
        value: u32,
        /// The highest value that CPUID can show.
        max: u32,
    },
    /// The brand string has no place in CPUID.
    #[error("cpu.brand = {0:?}: at most {BRAND_MAX} printable ASCII characters can be shown")]
    Brand(String),
    /// The vendor is not the host's, whose family and model would mean nothing.
    #[error("cpu.vendor = \"{vendor}\" on a host of {host} needs cpu.{missing} too")]
    Incomplete {
        /// The vendor asked for.
        vendor: Vendor,
        /// The host's.
        host: Vendor,
        /// The key that is missing.
        missing: &'static str,
    },
    /// A bit of CPUID is not the configuration's to give.
    #[error(
        "cpu.leaf {leaf:#x}, subleaf {subleaf}: bits {bits:#x} of {register} cannot be given: {why}"
    )]
    Decided {
        /// The leaf.
        leaf: u32,
        /// The subleaf.
        subleaf: u32,
        /// The register.
        register: String,
        /// The bits.
        bits: u32,
        /// What decides them.
        why: &'static str,
    },
    /// A PCI function cannot be.
    #[error("cpu.pci {address}: {what}")]
    Pci {
        /// Where it would be.
        address: PciAddress,
        /// What is wrong.
        what: String,
    },
    /// A feature is both hidden and shown.
    #[error("cpu.hide and cpu.show both have `{0}`")]
    HiddenAndShown(Feature),
}

impl CpuModelError {
    /// The key of the configuration that is wrong.
    pub fn key(&self) -> String {
        match self {
            Self::TooLarge { key, .. } => format!("cpu.{key}"),
            Self::Brand(_) => "cpu.brand".into(),
            Self::Incomplete { .. } => "cpu.vendor".into(),
            Self::Decided { .. } => "cpu.leaf".into(),
            Self::Pci { .. } => "cpu.pci".into(),
            Self::HiddenAndShown(_) => "cpu.show".into(),
        }
    }
}

/// The identity that a guest is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) vendor: Vendor,
    pub(super) signature: Signature,
    pub(super) brand: Option<String>,
}

impl CpuModel {
    /// Who the guest's CPU says it is, for the MSR devices. KVM offers the host CPU's own identity, so this
    /// needs no KVM.
    ///
    /// # Errors
    ///
    /// [`CpuModelError`], for what cannot be shown on this host.
    pub fn cpu_identity(&self) -> Result<CpuIdentity, CpuModelError> {
        let leaf = msr_kvm::cpuid(0, 0);
        let host = Vendor::from_registers(leaf.ebx, leaf.edx, leaf.ecx);
        let identity = self.identity(host, Signature::decode(msr_kvm::cpuid(1, 0).eax))?;
        Ok(CpuIdentity {
            vendor: if identity.vendor.is_amd() {
                CpuVendor::Amd
            } else {
                CpuVendor::Intel
            },
            signature: identity.signature.encode(),
        })
    }

    /// Takes family, model and stepping from leaf 1's EAX.
    pub(crate) fn set_signature(&mut self, eax: u32) {
        let Signature {
            family,
            model,
            stepping,
        } = Signature::decode(eax);
        self.family = Some(family);
        self.model = Some(model);
        self.stepping = Some(stepping);
    }

    /// The identity that results from the model on a host CPU with this vendor and signature.
    pub(super) fn identity(
        &self,
        host: Vendor,
        host_signature: Signature,
    ) -> Result<Identity, CpuModelError> {
        let vendor = self.vendor.unwrap_or(host);
        let foreign = vendor != host;
        let incomplete = |missing| CpuModelError::Incomplete {
            vendor,
            host,
            missing,
        };
        let family = match self.family {
            None if foreign => return Err(incomplete("family")),
            family => family.unwrap_or(host_signature.family),
        };
        let model = match self.model {
            None if foreign => return Err(incomplete("model")),
            model => model.unwrap_or(host_signature.model),
        };
        let host_stepping = if foreign { 0 } else { host_signature.stepping };
        let stepping = self.stepping.unwrap_or(host_stepping);
        for (key, value, max) in [
            ("family", family, FAMILY_MAX),
            ("model", model, model_max(family)),
            ("stepping", stepping, STEPPING_MAX),
        ] {
            if value > max {
                return Err(CpuModelError::TooLarge { key, value, max });
            }
        }
        let brand = match &self.brand {
            None if foreign => Some(DEFAULT_BRAND.to_owned()),
            brand => brand.clone(),
        };
        if let Some(text) = brand.as_ref().filter(|text| !is_brand(text)) {
            return Err(CpuModelError::Brand(text.clone()));
        }
        if let Some(feature) = self.hide.iter().find(|feature| self.show.contains(feature)) {
            return Err(CpuModelError::HiddenAndShown(*feature));
        }
        self.check_leaves()?;
        pci::check(&self.pci)?;
        Ok(Identity {
            vendor,
            signature: Signature {
                family,
                model,
                stepping,
            },
            brand,
        })
    }
}

impl CpuModel {
    /// No bit is given that something else decides.
    fn check_leaves(&self) -> Result<(), CpuModelError> {
        for bits in &self.leaves {
            let (leaf, subleaf) = (bits.leaf.0, bits.subleaf.0);
            for (register, given) in bits.registers() {
                if let Some((decided, why)) = decided_elsewhere(leaf, subleaf, register)
                    && given.mask & decided != 0
                {
                    return Err(CpuModelError::Decided {
                        leaf,
                        subleaf,
                        register: register.to_string(),
                        bits: given.mask & decided,
                        why,
                    });
                }
            }
        }
        Ok(())
    }
}

fn is_brand(text: &str) -> bool {
    text.len() <= BRAND_MAX && text.bytes().all(|byte| matches!(byte, 0x20..=0x7e))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: Signature = Signature {
        family: 0x19,
        model: 0x11,
        stepping: 1,
    };

    fn parse(text: &str) -> Result<CpuModel, toml::de::Error> {
        toml::from_str(text)
    }

    fn identity(text: &str) -> Result<Identity, CpuModelError> {
        parse(text).unwrap().identity(Vendor::AMD, HOST)
    }

    #[test]
    fn what_is_not_given_is_the_hosts() {
        let model = parse("").unwrap();
        assert!(model.hypervisor);
        assert_eq!(model, CpuModel::default());
        let identity = model.identity(Vendor::AMD, HOST).unwrap();
        assert_eq!((identity.vendor, identity.signature), (Vendor::AMD, HOST));
        assert_eq!(identity.brand, None);
        let newer = self::identity("stepping = 2").unwrap();
        assert_eq!(
            newer.signature,
            Signature {
                stepping: 2,
                ..HOST
            }
        );
    }

    #[test]
    fn another_vendor_needs_its_own_family_and_model() {
        let error = identity("vendor = \"GenuineIntel\"").unwrap_err();
        assert_eq!(
            error.to_string(),
            "cpu.vendor = \"GenuineIntel\" on a host of AuthenticAMD needs cpu.family too"
        );
        let intel = identity("vendor = \"GenuineIntel\"\nfamily = 6\nmodel = 106").unwrap();
        assert_eq!(
            intel.signature,
            Signature {
                family: 6,
                model: 106,
                stepping: 0,
            }
        );
        assert_eq!(intel.brand.as_deref(), Some("Virtual CPU"));
    }

    #[test]
    fn numbers_and_brand_strings_that_cpuid_cannot_show_are_refused() {
        for (text, message) in [
            (
                "family = 271",
                "cpu.family = 271 is too large: at most 270 can be shown",
            ),
            (
                "model = 256",
                "cpu.model = 256 is too large: at most 255 can be shown",
            ),
            (
                "family = 5\nmodel = 16",
                "cpu.model = 16 is too large: at most 15 can be shown",
            ),
            (
                "stepping = 16",
                "cpu.stepping = 16 is too large: at most 15 can be shown",
            ),
            (
                "hide = [\"aes\"]\nshow = [\"aes\"]",
                "cpu.hide and cpu.show both have `aes`",
            ),
            (
                "[[leaf]]\nleaf = 4\nsubleaf = 1\neax = \"0x21\"",
                "cpu.leaf 0x4, subleaf 1: bits 0xffffc000 of EAX cannot be given: vm.topology decides them",
            ),
        ] {
            assert_eq!(identity(text).unwrap_err().to_string(), message);
        }
        assert!(identity(&format!("brand = \"{}\"", "x".repeat(47))).is_ok());
        assert!(identity(&format!("brand = \"{}\"", "x".repeat(48))).is_err());
        assert!(identity("brand = \"Xeon\\n\"").is_err());
    }

    #[test]
    fn a_mistyped_key_or_feature_is_refused_with_the_nearest() {
        let error = parse("steping = 1").unwrap_err().to_string();
        assert!(error.contains("steping"), "{error}");
        let error = parse("hide = [\"avx512\"]").unwrap_err().to_string();
        assert!(error.contains("did you mean `avx512f`?"), "{error}");
    }

    #[test]
    fn a_model_is_written_as_it_is_read() {
        let text = "vendor = \"GenuineIntel\"\nfamily = 6\nmodel = 106\nhypervisor = false\npmu = true\nhide = [\"aes\", \"avx\"]\n";
        assert_eq!(toml::to_string(&parse(text).unwrap()).unwrap(), text);
    }
}
