//! Firecracker's custom CPU templates (its docs/cpu_templates/cpu-templates.md and schema.json), and what its
//! `cpu-template-helper` writes: dumps of a guest's whole CPU configuration, and fingerprints, which hold such a dump.
//!
//! A template gives bits of CPUID and of MSRs a value, 0 or 1, and leaves those marked `x` as KVM has them. Both become the same
//! in a model:
//!
//! - Of CPUID, vendor, family, model, stepping, brand string, the hypervisor bit and every feature with a name become the keys
//!   of `[cpu]`, and every other bit one of `[[cpu.leaf]]`. What is this machine's own (topology, the frequency of the TSC, the
//!   layout of the XSAVE area) is left to it, and noted.
//! - MSRs become initial values, which is what Firecracker makes of them: `KVM_SET_MSRS` when the vCPU is set up, and KVM's own
//!   rules for the guest from then on. An MSR that KVM does not have becomes a constant of a table device, and is noted.
//!
//! A dump tells what another host's KVM offered. This host's may offer less, so a model of a dump goes without what is not
//! offered or not taken, with a warning; `--strict` refuses it.

mod cpuid;
mod msrs;
#[cfg(test)]
mod tests;

use msr_bus::nearest;
use msr_filter::CpuTemplate;
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::Value;

use super::Imported;
use crate::cpu::OnUnoffered;
use msr_kvm::OnRefusal;

/// Why a file makes no model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FirecrackerError {
    /// It is not JSON, or not a template or fingerprint.
    #[error("not a Firecracker CPU template: {source}{}", suggestion(source))]
    Json {
        /// What is wrong, with the line.
        #[from]
        source: serde_json::Error,
    },
    /// It is the schema of templates.
    #[error(
        "this is a JSON schema, which describes CPU templates and is none; give it a template that follows it"
    )]
    Schema,
    /// It is for the other architecture.
    #[error(
        "this CPU template is for Arm (vcpu_features, reg_modifiers); it has nothing for x86_64"
    )]
    Arm,
    /// It changes nothing.
    #[error(
        "this CPU template changes nothing: it has no cpuid_modifiers and no msr_modifiers that give a bit"
    )]
    Empty,
    /// A number or a bitmap of a CPUID modifier means nothing.
    #[error("cpuid_modifiers: `{0}` is no number and no bitmap of 32 of 0, 1 and x")]
    Number(String),
    /// A CPUID modifier names no register.
    #[error("cpuid_modifiers: there is no register `{0}`: eax, ebx, ecx and edx are")]
    Register(String),
    /// A register of CPUID is given twice.
    #[error("cpuid_modifiers: {register} of leaf {leaf:#x}, subleaf {subleaf:#x} is given twice")]
    Twice {
        /// The leaf.
        leaf: u32,
        /// The subleaf.
        subleaf: u32,
        /// The register.
        register: String,
    },
}

/// A template, but for the MSRs, which are [`CpuTemplate`]'s.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Template {
    kvm_capabilities: Vec<String>,
    cpuid_modifiers: Vec<Leaf>,
    #[serde(rename = "msr_modifiers")]
    _msr_modifiers: IgnoredAny,
    vcpu_features: Vec<IgnoredAny>,
    reg_modifiers: Vec<IgnoredAny>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Leaf {
    leaf: String,
    subleaf: String,
    /// KVM_CPUID_FLAG_SIGNIFCANT_INDEX, which the leaf's number tells as well.
    #[serde(default, rename = "flags")]
    _flags: u32,
    modifiers: Vec<Modifier>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Modifier {
    register: String,
    bitmap: String,
}

/// What `cpu-template-helper fingerprint dump` writes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fingerprint<T> {
    #[serde(rename = "firecracker_version")]
    _firecracker_version: IgnoredAny,
    kernel_version: String,
    microcode_version: String,
    #[serde(rename = "bios_version")]
    _bios_version: IgnoredAny,
    #[serde(rename = "bios_revision")]
    _bios_revision: IgnoredAny,
    guest_cpu_config: T,
}

/// Makes a model of a template, a dump or a fingerprint.
///
/// # Errors
///
/// [`FirecrackerError`].
pub fn import(text: &str) -> Result<Imported, FirecrackerError> {
    let shape: Value = serde_json::from_str(text)?;
    if shape.get("$schema").is_some() {
        return Err(FirecrackerError::Schema);
    }
    let (summary, template, rest) = if shape.get("guest_cpu_config").is_some() {
        let whole: Fingerprint<CpuTemplate> = parse(text)?;
        let rest: Fingerprint<Template> = parse(text)?;
        let summary = format!(
            "imported from a Firecracker fingerprint of a host with Linux {} and microcode {}",
            rest.kernel_version, rest.microcode_version
        );
        (Some(summary), whole.guest_cpu_config, rest.guest_cpu_config)
    } else {
        (None, parse(text)?, parse(text)?)
    };
    let cpuid = cpuid::read(&rest.cpuid_modifiers)?;
    if cpuid.iter().all(|bits| bits.bits.mask == 0)
        && template.msr_modifiers.iter().all(|m| m.mask == 0)
    {
        let arm = !rest.vcpu_features.is_empty() || !rest.reg_modifiers.is_empty();
        return Err(if arm {
            FirecrackerError::Arm
        } else {
            FirecrackerError::Empty
        });
    }
    let is_dump = summary.is_some() || cpuid::is_dump(&cpuid);
    let summary = summary.unwrap_or_else(|| {
        let what = if is_dump { "dump" } else { "template" };
        format!("imported from a Firecracker CPU {what}")
    });
    let mut imported = Imported::new(summary);
    if is_dump {
        imported.model.cpu.unoffered = OnUnoffered::Hide;
    }
    cpuid::import(cpuid, &mut imported);
    let refused = if is_dump {
        OnRefusal::Warn
    } else {
        OnRefusal::Error
    };
    msrs::import(&template.msr_modifiers, refused, &mut imported);
    for capability in &rest.kvm_capabilities {
        imported.note(format!(
            "kvm_capabilities: {capability} is not imported: a model does not choose what KVM is asked for."
        ));
    }
    Ok(imported)
}

/// The field that an unknown one is most like, as a question to add to the error.
fn suggestion(error: &serde_json::Error) -> String {
    let message = error.to_string();
    // "unknown field `a`, expected one of `b`, `c`"
    let mut names = message.split('`').skip(1).step_by(2);
    let unknown = names.next().filter(|_| message.contains("unknown"));
    unknown
        .and_then(|unknown| nearest(unknown, names))
        .map_or(String::new(), |name| format!("; did you mean `{name}`?"))
}

fn parse<T: DeserializeOwned>(text: &str) -> Result<T, FirecrackerError> {
    Ok(serde_json::from_str(text)?)
}
