//! Microcode updates: the guest's loader gives the address of an update, and the revision goes up.
//!
//! | MSR | Vendor | Access | Scope |
//! |---|---|---|---|
//! | `IA32_PLATFORM_ID` 0x17 | Intel | read | package |
//! | `IA32_BIOS_UPDT_TRIG` 0x79 | Intel | write | core |
//! | `IA32_BIOS_SIGN_ID` 0x8b | Intel | read, write | thread |
//! | `PATCH_LEVEL` 0x8b | AMD | read | core |
//! | `PATCH_LOADER` 0xc0010020 | AMD | write | core |
//!
//! Sources: Intel SDM vol. 3A, "Microcode Update Facilities", and vol. 4, table "IA-32 Architectural MSRs";
//! AMD's PPR for family 19h model 01h, MSR0000_008B and MSRC001_0020.
//!
//! **What is loaded.** Nothing: the update's format, its checksums and the processor it is made for are
//! checked as the vendor's format has it (`microcode/intel.rs`, `microcode/amd.rs`), and its revision is taken. What only
//! the vendor could check, the signature over the encrypted data, is not.
//!
//! **What is refused.** An update that fails a check, or is older than what the core has, changes nothing
//! and does not fault: the guest's loader reads the revision back and finds it unchanged, as the manuals
//! tell it to. One that is loaded again changes nothing either. An update that is not wholly mapped is #GP:
//! hardware would raise a page fault, which a VMM cannot inject here, and loaders must have the pages
//! present anyway (SDM, "Microcode Update Loader").
//!
//! **`IA32_BIOS_SIGN_ID`.** On hardware CPUID with EAX=1 puts the revision into bits 63:32, or leaves what
//! software wrote there where no update is loaded. KVM does not tell userspace of CPUID, so a read answers
//! as if CPUID had just been executed, which is what the protocol (write 0, CPUID, read) makes software do.

use std::sync::atomic::{AtomicU32, Ordering};

use msr_filter::MsrRange;
use serde::{Deserialize, Serialize};

use crate::{
    CpuIdentity, CpuVendor, DeviceContext, DeviceState, GeneralProtection, GuestMemoryError, Model,
    MsrAccess, MsrDevice, PerScope, RestoreError, Scope, Syscall, U64, VcpuContext,
};

mod amd;
mod intel;
mod journal;

use journal::{Event, Journal};

const IA32_PLATFORM_ID: u32 = 0x17;
const IA32_BIOS_UPDT_TRIG: u32 = 0x79;
/// AMD's `PATCH_LEVEL` has the same index.
const IA32_BIOS_SIGN_ID: u32 = 0x8b;
const PATCH_LOADER: u32 = 0xc001_0020;

/// The size of the pages of guest memory, in bytes.
const PAGE: u32 = 4096;

/// The keys of a `[[msr.device]]` with `type = "microcode"`.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(feature = "config", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Whose registers and update format: "intel" or "amd". The vendor of the guest's CPU unless given.
    pub vendor: Option<CpuVendor>,
    /// The processor signature (CPUID.1:EAX) that updates must be made for. That of the guest's CPU unless
    /// given.
    pub signature: Option<U64>,
    /// Intel: the platform, 0 to 7, in bits 52:50 of `IA32_PLATFORM_ID`; updates must have that bit in
    /// their processor flags. 0 unless given.
    pub platform_id: Option<u8>,
    /// AMD: the 16-bit id that stands for the signature in patches (the container's equivalence table maps
    /// one to the other). Formed from the signature as for families 17h and later unless given.
    pub equivalent_id: Option<U64>,
    /// The revision after reset, 32 bits; 0 is a processor without any update.
    pub revision: U64,
    /// Which CPUs share a revision: "thread", "core" or "package".
    pub scope: Scope,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            vendor: None,
            signature: None,
            platform_id: None,
            equivalent_id: None,
            revision: U64(0),
            scope: Scope::Core,
        }
    }
}

/// What an update must be made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Processor {
    Intel(intel::Processor),
    Amd(amd::Processor),
}

/// The device.
#[derive(Debug)]
pub struct Microcode {
    name: String,
    processor: Processor,
    /// The revision after reset.
    reset: u32,
    revision: PerScope<AtomicU32>,
    /// Intel: what software wrote to bits 63:32 of `IA32_BIOS_SIGN_ID`.
    sign_id: PerScope<AtomicU32>,
    journal: Journal,
}

/// An update that passed every check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Update {
    /// Its revision.
    revision: u32,
    /// Its date as both vendors write it: two digits each of month and day, four of the year, in BCD.
    date: u32,
    /// Its size in bytes, header included.
    size: u32,
}

/// Why an update is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum Refusal {
    /// Some of it is not mapped.
    #[error("{0}")]
    Memory(#[from] GuestMemoryError),
    /// The header is of another format.
    #[error("its header version is {0}, and only 1 is known")]
    HeaderVersion(u32),
    /// It needs another loader.
    #[error("its loader revision is {0}, and only 1 is known")]
    LoaderRevision(u32),
    /// The sizes contradict each other or the format.
    #[error("a data size of {data} bytes in a total size of {total} is not valid")]
    Size {
        /// The size of the data in bytes.
        data: u32,
        /// The size of the whole update in bytes.
        total: u32,
    },
    /// It is damaged.
    #[error("its checksum is wrong")]
    Checksum,
    /// The list of further processors it is for is damaged.
    #[error("its extended signature table is damaged")]
    SignatureTable,
    /// The list of further processors is longer than any real one.
    #[error("its extended signature table has {0} entries, and at most 339 are looked at")]
    TooManySignatures(u32),
    /// It is made for another processor.
    #[error("it is for another processor, {0:#x}")]
    Processor(u32),
    /// It is for a processor with certain chipsets, which there are none of here.
    #[error("it is for a certain chipset")]
    Chipset,
    /// A newer one is loaded.
    #[error("its revision {revision:#x} is older than {current:#x}")]
    Older {
        /// The update's revision.
        revision: u32,
        /// The revision that stays.
        current: u32,
    },
}

impl Model for Microcode {
    const TYPE: &'static str = "microcode";
    const SUMMARY: &'static str =
        "microcode revision and updates: the guest's loader works, nothing is executed";
    const SYSCALLS: &'static [Syscall] = &[Syscall::KVM_TRANSLATE, Syscall::FUTEX];
    type Config = Config;

    fn build(name: String, config: Config, context: &DeviceContext) -> Result<Self, String> {
        let revision = to_u32("revision", config.revision)?;
        Ok(Self {
            name,
            processor: Processor::new(&config, context.cpu)?,
            reset: revision,
            revision: PerScope::new(config.scope, &context.topology, |_| {
                AtomicU32::new(revision)
            }),
            sign_id: PerScope::new(Scope::Thread, &context.topology, |_| AtomicU32::new(0)),
            journal: Journal::default(),
        })
    }
}

impl Processor {
    fn new(config: &Config, cpu: CpuIdentity) -> Result<Self, String> {
        let vendor = config.vendor.unwrap_or(cpu.vendor);
        let signature = match config.signature {
            Some(signature) => to_u32("signature", signature)?,
            None if vendor == cpu.vendor => cpu.signature,
            None => {
                return Err(
                    "signature: needed, because the vendor is not that of the guest's CPU".into(),
                );
            }
        };
        match (vendor, config.platform_id, config.equivalent_id) {
            (CpuVendor::Intel, platform, None) => {
                let platform = platform.unwrap_or(0);
                if platform > 7 {
                    return Err(format!("platform_id: {platform} is not 0 to 7"));
                }
                Ok(Self::Intel(intel::Processor {
                    signature,
                    platform,
                }))
            }
            (CpuVendor::Amd, None, equivalent) => {
                let equivalent = match equivalent {
                    None => amd::equivalent_id(signature),
                    Some(id) => u16::try_from(id.0)
                        .map_err(|_| format!("equivalent_id: {:#x} is not 16 bits", id.0))?,
                };
                Ok(Self::Amd(amd::Processor { equivalent }))
            }
            (CpuVendor::Intel, _, Some(_)) => Err("equivalent_id: only AMD has one".into()),
            (CpuVendor::Amd, Some(_), _) => Err("platform_id: only Intel has one".into()),
        }
    }

    fn check(&self, cpu: &dyn VcpuContext, address: u64) -> Result<Update, Refusal> {
        match self {
            Self::Intel(processor) => intel::check(cpu, address, *processor),
            Self::Amd(processor) => amd::check(cpu, address, *processor),
        }
    }
}

fn to_u32(key: &str, value: U64) -> Result<u32, String> {
    u32::try_from(value.0).map_err(|_| format!("{key}: {:#x} is not 32 bits", value.0))
}

impl Microcode {
    /// Takes the update at `address`, if it is good.
    fn load(&self, access: &MsrAccess<'_>, address: u64) -> Result<(), GeneralProtection> {
        let checked = self.processor.check(access.cpu, address);
        let outcome = checked.and_then(|update| {
            let revision = self.revision.at(access.cpu.location());
            // The threads of a core may load at once: the newest wins, whoever comes last.
            let current = revision.fetch_max(update.revision, Ordering::Relaxed);
            if update.revision < current {
                return Err(Refusal::Older {
                    revision: update.revision,
                    current,
                });
            }
            Ok(Event::Loaded {
                from: current,
                update,
            })
        });
        let event = outcome.unwrap_or_else(Event::Refused);
        self.journal
            .note(&self.name, access.cpu.id(), address, event);
        match event {
            Event::Refused(Refusal::Memory(_)) => Err(GeneralProtection),
            _ => Ok(()),
        }
    }
}

impl MsrDevice for Microcode {
    fn name(&self) -> &str {
        &self.name
    }

    fn claims(&self) -> Vec<MsrRange> {
        let indices: &[u32] = match self.processor {
            Processor::Intel(_) => &[IA32_PLATFORM_ID, IA32_BIOS_UPDT_TRIG, IA32_BIOS_SIGN_ID],
            Processor::Amd(_) => &[IA32_BIOS_SIGN_ID, PATCH_LOADER],
        };
        indices.iter().copied().map(MsrRange::single).collect()
    }

    fn read(&self, access: &MsrAccess<'_>) -> Result<u64, GeneralProtection> {
        let location = access.cpu.location();
        let revision = self.revision.at(location).load(Ordering::Relaxed);
        match (self.processor, access.index) {
            (Processor::Intel(processor), IA32_PLATFORM_ID) => {
                Ok(u64::from(processor.platform) << 50)
            }
            (Processor::Intel(_), IA32_BIOS_SIGN_ID) => {
                let signature = match revision {
                    0 => self.sign_id.at(location).load(Ordering::Relaxed),
                    loaded => loaded,
                };
                Ok(u64::from(signature) << 32)
            }
            (Processor::Amd(_), IA32_BIOS_SIGN_ID) => Ok(revision.into()),
            _ => Err(GeneralProtection),
        }
    }

    fn write(&self, access: &MsrAccess<'_>, value: u64) -> Result<(), GeneralProtection> {
        match (self.processor, access.index) {
            (Processor::Intel(_), IA32_BIOS_UPDT_TRIG) | (Processor::Amd(_), PATCH_LOADER) => {
                self.load(access, value)
            }
            // Bits 31:0 are reserved.
            (Processor::Intel(_), IA32_BIOS_SIGN_ID) if value as u32 == 0 => {
                let sign_id = self.sign_id.at(access.cpu.location());
                sign_id.store((value >> 32) as u32, Ordering::Relaxed);
                Ok(())
            }
            _ => Err(GeneralProtection),
        }
    }

    fn save(&self) -> Option<DeviceState> {
        let values = |registers: &PerScope<AtomicU32>| {
            let load = |register: &AtomicU32| register.load(Ordering::Relaxed);
            registers.iter().map(load).collect()
        };
        let state = State {
            revision: values(&self.revision),
            sign_id: values(&self.sign_id),
        };
        Some(DeviceState::encode(1, &state))
    }

    fn restore(&self, state: &DeviceState) -> Result<(), RestoreError> {
        let state: State = state.decode(1)?;
        let registers = [
            (&self.revision, &state.revision),
            (&self.sign_id, &state.sign_id),
        ];
        for (registers, values) in registers {
            if registers.len() != values.len() {
                return Err(RestoreError::Mismatch(format!(
                    "{} registers where there are {}",
                    values.len(),
                    registers.len()
                )));
            }
        }
        if let Some(older) = state.revision.iter().find(|r| **r < self.reset) {
            return Err(RestoreError::Mismatch(format!(
                "revision {older:#x} is older than {:#x}, that after reset",
                self.reset
            )));
        }
        let amd = matches!(self.processor, Processor::Amd(_));
        if amd && state.sign_id.iter().any(|value| *value != 0) {
            return Err(RestoreError::Mismatch(
                "it has a value written to 0x8b, which is read-only on AMD".into(),
            ));
        }
        for (registers, values) in registers {
            for (register, value) in registers.iter().zip(values) {
                register.store(*value, Ordering::Relaxed);
            }
        }
        Ok(())
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    revision: Vec<u32>,
    sign_id: Vec<u32>,
}

/// The sum of the 32-bit words in `len` bytes (a multiple of 4) of guest memory at `address`, modulo 2^32.
///
/// Each page costs its own translation of a linear address, so the pieces that are read end where pages do.
fn sum(cpu: &dyn VcpuContext, address: u64, len: u32) -> Result<u32, GuestMemoryError> {
    let mut chunk = [0; PAGE as usize];
    let mut total = 0u32;
    let mut done = 0;
    while done < len {
        let at = offset(address, done)?;
        let in_page = PAGE - (at % u64::from(PAGE)) as u32;
        // A word that lies in two pages is read with the first.
        let piece = (len - done).min(in_page.next_multiple_of(4));
        let here = &mut chunk[..piece as usize];
        cpu.read_guest(at, here)?;
        total = total.wrapping_add(sum_words(here));
        done += here.len() as u32;
    }
    Ok(total)
}

fn sum_words(bytes: &[u8]) -> u32 {
    let words = bytes.chunks_exact(4).map(|word| u32_at(word, 0));
    words.fold(0, u32::wrapping_add)
}

/// The little-endian word at `at`, which lies in `bytes`.
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let word = [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
    u32::from_le_bytes(word)
}

/// `address` and `by` bytes on; an update does not wrap around the end of memory.
fn offset(address: u64, by: u32) -> Result<u64, GuestMemoryError> {
    address
        .checked_add(by.into())
        .ok_or(GuestMemoryError { address })
}

#[cfg(test)]
mod tests;
