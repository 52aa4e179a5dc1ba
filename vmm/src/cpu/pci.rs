//! PCI functions that are part of the processor: its memory controller and the like, `[[cpu.pci]]`.
//!
//! Programs that measure a processor look for the PCI functions beside its MSRs: likwid finds the memory controller's counters
//! by a register of the host bridge, and gives up without. A model can have them be there: each function shows who it is
//! and what registers it is given, and nothing of it can be written. What lies behind such a register, a window of
//! memory-mapped counters say, is not there: addresses without a device read as ones.
//!
//! Left out: base address registers, interrupts and capabilities, so that no driver takes a function for more.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::model::CpuModelError;

/// The first register that is a device's own (PCI Local Bus Specification 3.0, section 6.1).
const FIRST_OWN: u32 = 0x40;
/// The last register of the configuration space that mechanism 1 reaches.
const LAST: u32 = 0xfc;
/// Subsystem vendor and subsystem, the one register of the header that is only a name.
const SUBSYSTEM: u32 = 0x2c;
/// The highest class code.
const CLASS_MAX: u32 = 0xff_ffff;

/// A PCI function of the processor (`[[cpu.pci]]`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PciFunction {
    /// Where it is: bus, device and function in hexadecimal, such as `"7e:0c.0"`.
    pub address: PciAddress,
    /// Vendor and device in hexadecimal, such as `"8086:0c00"`.
    pub id: PciId,
    /// The class code: class, subclass and programming interface. 0x060000 is a host bridge.
    #[schemars(range(max = CLASS_MAX))]
    pub class: u32,
    /// The revision.
    #[serde(default)]
    pub revision: u8,
    /// Registers of its configuration space beside those that say who it is. The others are 0, and none can be written.
    #[serde(default)]
    pub register: Vec<PciRegister>,
}

/// A register of a function (`[[cpu.pci.register]]`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PciRegister {
    /// Its offset, a multiple of 4: 0x2c (the subsystem), or from 0x40 to 0xfc.
    #[schemars(range(min = SUBSYSTEM, max = LAST))]
    pub offset: u32,
    /// Its value.
    pub value: u32,
}

/// Bus, device and function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PciAddress {
    /// The bus.
    pub bus: u8,
    /// The device on it, at most 31.
    pub device: u8,
    /// The function of that, at most 7.
    pub function: u8,
}

/// Vendor and device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PciId {
    /// The vendor.
    pub vendor: u16,
    /// The vendor's number for the device.
    pub device: u16,
}

/// A text that is no address or no identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" is not {wanted}")]
pub struct ParsePciError {
    text: String,
    wanted: &'static str,
}

const ADDRESS: &str = "a bus, a device up to 1f and a function up to 7, such as \"7e:0c.0\"";
const ID: &str = "a vendor and a device, such as \"8086:0c00\"";

/// Exactly `digits` hexadecimal digits.
fn hexadecimal(text: &str, digits: usize) -> Option<u16> {
    let valid = text.len() == digits && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    u16::from_str_radix(text, 16).ok().filter(|_| valid)
}

impl FromStr for PciAddress {
    type Err = ParsePciError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = text.split_once(':').and_then(|(bus, rest)| {
            let (device, function) = rest.split_once('.')?;
            Some(Self {
                bus: hexadecimal(bus, 2)?.try_into().ok()?,
                device: hexadecimal(device, 2).filter(|device| *device < 32)? as u8,
                function: hexadecimal(function, 1).filter(|function| *function < 8)? as u8,
            })
        });
        parsed.ok_or_else(|| ParsePciError {
            text: text.into(),
            wanted: ADDRESS,
        })
    }
}

impl FromStr for PciId {
    type Err = ParsePciError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = text.split_once(':').and_then(|(vendor, device)| {
            Some(Self {
                vendor: hexadecimal(vendor, 4)?,
                device: hexadecimal(device, 4)?,
            })
        });
        parsed.ok_or_else(|| ParsePciError {
            text: text.into(),
            wanted: ID,
        })
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            bus,
            device,
            function,
        } = self;
        write!(f, "{bus:02x}:{device:02x}.{function:x}")
    }
}

impl fmt::Display for PciId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:04x}", self.vendor, self.device)
    }
}

macro_rules! as_text {
    ($type:ident, $title:expr) => {
        impl TryFrom<String> for $type {
            type Error = ParsePciError;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(value: $type) -> Self {
                value.to_string()
            }
        }

        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "title": $title })
            }
        }
    };
}

as_text!(PciAddress, ADDRESS);
as_text!(PciId, ID);

/// Whether functions can be beside each other, and their registers.
pub(super) fn check(functions: &[PciFunction]) -> Result<(), CpuModelError> {
    let mut seen = BTreeSet::new();
    for function in functions {
        let wrong = |what: String| CpuModelError::Pci {
            address: function.address,
            what,
        };
        if !seen.insert(function.address) {
            return Err(wrong("it is given twice".into()));
        }
        if function.id.vendor == 0xffff {
            return Err(wrong("vendor ffff means that there is no device".into()));
        }
        if function.class > CLASS_MAX {
            let class = function.class;
            return Err(wrong(format!("class {class:#x} has more than 24 bits")));
        }
        let mut offsets = BTreeSet::new();
        for PciRegister { offset, .. } in &function.register {
            if !matches!(*offset, SUBSYSTEM | FIRST_OWN..=LAST) || offset % 4 != 0 {
                return Err(wrong(format!(
                    "register {offset:#x} cannot be given: a multiple of 4 can, from 0x40 to 0xfc, and 0x2c"
                )));
            }
            if !offsets.insert(offset) {
                return Err(wrong(format!("register {offset:#x} is given twice")));
            }
        }
    }
    // Software looks no further where a device has no function 0.
    for address in &seen {
        let first = PciAddress {
            function: 0,
            ..*address
        };
        if !seen.contains(&first) {
            return Err(CpuModelError::Pci {
                address: *address,
                what: format!("it is found only beside {first}, which is not given"),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::CpuModel;

    fn refused(text: &str) -> String {
        match toml::from_str::<CpuModel>(text) {
            Ok(model) => check(&model.pci).unwrap_err().to_string(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn a_function_is_written_as_it_is_read() {
        let text = "[[pci]]\naddress = \"7e:1f.7\"\nid = \"8086:344a\"\nclass = 557056\nrevision = 4\n\n[[pci.register]]\noffset = 208\nvalue = 503\n";
        let model: CpuModel = toml::from_str(text).unwrap();
        assert!(toml::to_string(&model).unwrap().ends_with(text));
        assert_eq!(model.pci[0].address.to_string(), "7e:1f.7");
        assert_eq!(model.pci[0].class, 0x08_8000);
    }

    #[test]
    fn what_cannot_be_a_function_is_refused_in_words() {
        let function = |address: &str, id: &str, more: &str| {
            format!("[[pci]]\naddress = \"{address}\"\nid = \"{id}\"\nclass = 0x060000\n{more}")
        };
        for address in [
            "0:00.0", "00:20.0", "00:00.8", "00:00", "00.0", "+0:00.0", "",
        ] {
            let error = refused(&function(address, "8086:0c00", ""));
            assert!(error.contains("such as \"7e:0c.0\""), "{address}: {error}");
        }
        for id in ["8086", "8086:c00", "8086:0c000", "8086:+c00"] {
            let error = refused(&function("00:00.0", id, ""));
            assert!(error.contains("such as \"8086:0c00\""), "{id}: {error}");
        }
        let bridge = function("00:00.0", "8086:0c00", "");
        for (text, words) in [
            (format!("{bridge}{bridge}"), "00:00.0: it is given twice"),
            (function("00:00.0", "ffff:0c00", ""), "there is no device"),
            (
                bridge.replace("0x060000", "0x1000000"),
                "class 0x1000000 has more than 24 bits",
            ),
            (
                function("00:02.1", "8086:0c00", ""),
                "found only beside 00:02.0",
            ),
        ] {
            let error = refused(&text);
            assert!(error.contains(words), "{error}");
        }
        for offset in ["0x10", "0x3c", "0x42", "0x100"] {
            let more = format!("register = [{{ offset = {offset}, value = 1 }}]");
            let error = refused(&function("00:00.0", "8086:0c00", &more));
            assert!(error.contains("a multiple of 4 can"), "{offset}: {error}");
        }
        let more = "register = [{ offset = 0x48, value = 1 }, { offset = 0x48, value = 1 }]";
        let error = refused(&function("00:00.0", "8086:0c00", more));
        assert!(error.contains("register 0x48 is given twice"), "{error}");
    }
}
