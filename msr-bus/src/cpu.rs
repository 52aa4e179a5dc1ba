//! Who the guest's CPU says it is.

use serde::{Deserialize, Serialize};

/// The vendor of the CPU that CPUID shows the guest. MSRs are the vendor's: the same index may be
/// another register at another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "config", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum CpuVendor {
    /// `GenuineIntel`.
    Intel,
    /// `AuthenticAMD`.
    Amd,
}

/// What the guest's CPUID says of the CPU, as far as MSRs depend on it. All vCPUs are alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuIdentity {
    /// The vendor.
    pub vendor: CpuVendor,
    /// CPUID.1:EAX, the processor signature: stepping, model and family.
    pub signature: u32,
}

impl CpuIdentity {
    /// The family as the manuals write it, the extended family added in (Intel SDM vol. 2, CPUID;
    /// AMD APM vol. 3, Fn0000_0001_EAX).
    pub const fn family(&self) -> u32 {
        let base = self.signature >> 8 & 0xf;
        if base == 0xf {
            base + (self.signature >> 20 & 0xff)
        } else {
            base
        }
    }

    /// The model as the manuals write it, the extended model in its high four bits where it counts.
    pub const fn model(&self) -> u32 {
        let base = self.signature >> 4 & 0xf;
        let extended = self.signature >> 16 & 0xf;
        // Intel gives family 6 an extended model too; AMD has none of that family since the K7.
        match (self.signature >> 8 & 0xf, self.vendor) {
            (0xf, _) | (0x6, CpuVendor::Intel) => extended << 4 | base,
            _ => base,
        }
    }

    /// The stepping.
    pub const fn stepping(&self) -> u32 {
        self.signature & 0xf
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn family_model_and_stepping_are_the_manuals() {
        // An Ice Lake server, a Pentium III, a Pentium 4 (Nocona), a Zen 3 server, an Athlon XP.
        for (vendor, signature, expected) in [
            (CpuVendor::Intel, 0x606a6, (6, 0x6a, 6)),
            (CpuVendor::Intel, 0x686, (6, 8, 6)),
            (CpuVendor::Intel, 0xf41, (15, 4, 1)),
            (CpuVendor::Amd, 0xa00f11, (0x19, 1, 1)),
            (CpuVendor::Amd, 0x6a0, (6, 10, 0)),
        ] {
            let cpu = CpuIdentity { vendor, signature };
            assert_eq!(
                (cpu.family(), cpu.model(), cpu.stepping()),
                expected,
                "{signature:#x}"
            );
        }
    }
}
