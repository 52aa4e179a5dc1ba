//! Bits of CPUID by leaf, subleaf and register: for what has no name of its own.
//!
//! A bitmap is written as Firecracker's CPU templates write it (its docs/cpu_templates/cpu-templates.md): `0b` and 0, 1 or x
//! for each bit, highest first, where x leaves the bit as it would be. A number gives all 32.
//!
//! Some bits are not a configuration's to give: see [`decided_elsewhere`].

use std::borrow::Cow;
use std::fmt;

use msr_filter::CpuTemplate;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::features::Register;
use super::leaves::Leaves;

/// Bits of one subleaf (`[[cpu.leaf]]`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct LeafBits {
    /// The leaf: EAX before CPUID.
    pub leaf: LeafNumber,
    /// The subleaf: ECX before CPUID. 0 for a leaf without subleaves.
    #[serde(default)]
    pub subleaf: LeafNumber,
    /// Bits of EAX: a number gives all 32; in a string of 0b and 0, 1 or x for each bit, highest first, x leaves the bit as
    /// it would be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eax: Option<RegisterBits>,
    /// Bits of EBX, as `eax`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ebx: Option<RegisterBits>,
    /// Bits of ECX, as `eax`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ecx: Option<RegisterBits>,
    /// Bits of EDX, as `eax`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edx: Option<RegisterBits>,
}

msr_bus::toml_in_binary_formats!(LeafBits);

/// The number of a leaf or subleaf: an integer, or a string such as `"0x80000008"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeafNumber(pub u32);

/// What the bits of a register are to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RegisterBits {
    /// The bits that are given.
    pub mask: u32,
    /// Their values; 0 outside the mask.
    pub value: u32,
}

impl JsonSchema for LeafNumber {
    fn schema_name() -> Cow<'static, str> {
        "LeafNumber".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": ["integer", "string"],
            "title": "a number, or a string such as \"0x80000008\"",
        })
    }
}

impl JsonSchema for RegisterBits {
    fn schema_name() -> Cow<'static, str> {
        "RegisterBits".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": ["integer", "string"],
            "title": "a number, or a bitmap such as \"0bxxx1\" in which x leaves a bit as it is",
        })
    }
}

/// Leaves with subleaves (Intel SDM volume 2, table 3-8; AMD APM volume 3, appendix E), of those that KVM fills in.
const WITH_SUBLEAVES: [u32; 17] = [
    0x4,
    0x7,
    0xb,
    0xd,
    0xf,
    0x10,
    0x12,
    0x14,
    0x17,
    0x18,
    0x1d,
    0x1e,
    0x1f,
    0x24,
    0x8000_001d,
    0x8000_0020,
    0x8000_0026,
];

impl LeafBits {
    /// A subleaf of which nothing is given yet.
    pub(crate) fn new(leaf: u32, subleaf: u32) -> Self {
        Self {
            leaf: LeafNumber(leaf),
            subleaf: LeafNumber(subleaf),
            eax: None,
            ebx: None,
            ecx: None,
            edx: None,
        }
    }

    /// Gives bits of a register that has none yet.
    pub(crate) fn give(&mut self, register: Register, bits: RegisterBits) {
        let place = match register {
            Register::Eax => &mut self.eax,
            Register::Ebx => &mut self.ebx,
            Register::Ecx => &mut self.ecx,
            Register::Edx => &mut self.edx,
        };
        *place = Some(bits);
    }

    /// The registers of which bits are given.
    pub(super) fn registers(&self) -> impl Iterator<Item = (Register, RegisterBits)> {
        [
            (Register::Eax, self.eax),
            (Register::Ebx, self.ebx),
            (Register::Ecx, self.ecx),
            (Register::Edx, self.edx),
        ]
        .into_iter()
        .filter_map(|(register, bits)| Some((register, bits?)))
    }

    /// Gives the bits.
    pub(super) fn apply(&self, leaves: &mut Leaves) {
        let (leaf, subleaf) = (self.leaf.0, self.subleaf.0);
        let before = leaves.get(leaf, subleaf);
        let mut after = before;
        for (register, bits) in self.registers() {
            let value = register.of(&mut after);
            *value = *value & !bits.mask | bits.value;
        }
        // A leaf of zeros reads the same when it is not there, and KVM takes a limited number.
        if after == before {
            return;
        }
        if WITH_SUBLEAVES.contains(&leaf) {
            leaves.set_subleaf(leaf, subleaf, after);
        } else {
            leaves.set(leaf, after);
        }
        if after != super::leaves::Registers::default() {
            leaves.reach(leaf);
        }
    }
}

/// The bits of a register that something else decides, and what that is: the topology, the host's TSC, the host's layout of the
/// XSAVE area, KVM at run time, and KVM's own leaves.
pub(crate) fn decided_elsewhere(
    leaf: u32,
    subleaf: u32,
    register: Register,
) -> Option<(u32, &'static str)> {
    use Register::{Eax, Ebx, Ecx, Edx};

    const TOPOLOGY: &str = "vm.topology decides them";
    const LAYOUT: &str = "the host's CPU decides where its XSAVE area holds what";
    const TSC: &str = "the frequency of the host's TSC decides them";
    Some(match (leaf, subleaf, register) {
        (0x1, _, Ebx) => (0xffff_0000, TOPOLOGY),
        (0x1, _, Ecx) => (
            1 << 27 | 1 << 31,
            "KVM decides it at run time, or cpu.hypervisor",
        ),
        (0x1, _, Edx) => (1 << 28, TOPOLOGY),
        (0x4, _, Eax) => (0xffff_c000, TOPOLOGY),
        (0x7, 0, Ecx) => (1 << 4, "KVM sets it as the guest sets CR4"),
        (0xb | 0x1f | 0x8000_001e | 0x8000_0026, _, _) => (u32::MAX, TOPOLOGY),
        (0xd, 0, Ebx | Ecx) | (0xd, 1, Ebx) => (u32::MAX, LAYOUT),
        (0xd, 2.., _) => (u32::MAX, LAYOUT),
        (0x15 | 0x16, _, _) => (u32::MAX, TSC),
        (0x4000_0000..=0x4fff_ffff, _, _) => (u32::MAX, "KVM decides them, by cpu.hypervisor"),
        (0x8000_0008, _, Ecx) => (0xf0ff, TOPOLOGY),
        (0x8000_001d, _, Eax) => (0x03ff_c000, TOPOLOGY),
        (0x0 | 0x8000_0000, _, Ebx | Ecx | Edx) => (u32::MAX, "cpu.vendor decides them"),
        (0x8000_0001, _, Eax) => (
            u32::MAX,
            "cpu.family, cpu.model and cpu.stepping decide them",
        ),
        (0x8000_0001, _, Ecx) => (1 << 1, TOPOLOGY),
        _ => return None,
    })
}

/// Reads a number as configurations and templates write it.
fn parse_number(text: &str) -> Option<u32> {
    CpuTemplate::number(&text.replace('_', ""))
}

impl<'de> Deserialize<'de> for LeafNumber {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(
            untagged,
            expecting = "a 32-bit number, as an integer or a string such as \"0x80000008\""
        )]
        enum Written {
            Number(u32),
            Text(String),
        }
        let written = if deserializer.is_human_readable() {
            Written::deserialize(deserializer)?
        } else {
            Written::Text(String::deserialize(deserializer)?)
        };
        match written {
            Written::Number(number) => Ok(Self(number)),
            Written::Text(text) => parse_number(&text).map(Self).ok_or_else(|| {
                de::Error::custom(format_args!(
                    "`{text}` is no number of a leaf: write it as \"0x80000008\""
                ))
            }),
        }
    }
}

impl Serialize for LeafNumber {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:#x}", self.0))
    }
}

impl RegisterBits {
    /// From a bitmap or a number; `None` for anything else.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        if text.starts_with("0b") {
            let (mask, value) = CpuTemplate::bitmap(text, 32)?;
            // Both have 32 bits at the most.
            return Some(Self {
                mask: mask as u32,
                value: value as u32,
            });
        }
        Some(Self {
            mask: u32::MAX,
            value: parse_number(text)?,
        })
    }

    /// These bits without those of `mask`.
    pub(crate) fn without(self, mask: u32) -> Self {
        Self {
            mask: self.mask & !mask,
            value: self.value & !mask,
        }
    }
}

impl<'de> Deserialize<'de> for RegisterBits {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| {
            de::Error::custom(format_args!(
                "`{text}` says nothing of a 32-bit register: write a bitmap such as \"0bxx01\", or all bits as \"0x21\""
            ))
        })
    }
}

impl fmt::Display for RegisterBits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.mask == u32::MAX {
            return write!(f, "{:#x}", self.value);
        }
        f.write_str("0b")?;
        let width = 32 - self.mask.leading_zeros().min(31);
        for bit in (0..width).rev() {
            let digit = match (self.mask >> bit & 1, self.value >> bit & 1) {
                (0, _) => "x",
                (_, 0) => "0",
                _ => "1",
            };
            f.write_str(digit)?;
            if bit % 4 == 0 && bit != 0 {
                f.write_str("_")?;
            }
        }
        Ok(())
    }
}

impl Serialize for RegisterBits {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<LeafBits, toml::de::Error> {
        toml::from_str(text)
    }

    #[test]
    fn a_bitmap_changes_its_bits_and_a_number_all() {
        let mut leaves = Leaves::of(&[(0, 0, [0xd, 0, 0, 0]), (6, 0, [0b0101, 0xff, 0xff, 0])]);
        let bits = parse("leaf = 6\neax = \"0b1x_0x\"\nebx = \"0x3\"").unwrap();
        bits.apply(&mut leaves);
        let found = leaves.get(6, 0);
        assert_eq!((found.eax, found.ebx, found.ecx), (0b1101, 3, 0xff));
    }

    #[test]
    fn a_leaf_beyond_the_last_is_made_and_reached_unless_it_is_zero() {
        let mut leaves = Leaves::of(&[(0, 0, [0xd, 0, 0, 0])]);
        parse("leaf = \"0x14\"\nsubleaf = 1\neax = \"0x1\"")
            .unwrap()
            .apply(&mut leaves);
        assert_eq!(leaves.get(0x14, 1).eax, 1);
        assert_eq!(leaves.get(0x14, 0).eax, 0, "another subleaf");
        assert_eq!(leaves.last_basic(), 0x14);
        let before = leaves.entries().len();
        parse("leaf = \"0x18\"\neax = \"0x0\"")
            .unwrap()
            .apply(&mut leaves);
        assert_eq!(leaves.entries().len(), before);
        assert_eq!(leaves.last_basic(), 0x14);
    }

    #[test]
    fn bits_are_written_as_they_are_read() {
        for text in ["0x21", "0b1xx0_x01x", "0b0"] {
            let bits = RegisterBits::parse(text).unwrap();
            assert_eq!(bits.to_string(), text);
        }
        let text = "leaf = \"0x80000008\"\nsubleaf = \"0x0\"\nebx = \"0b1x\"\n";
        assert_eq!(toml::to_string(&parse(text).unwrap()).unwrap(), text);
    }

    #[test]
    fn what_says_nothing_of_a_register_is_refused() {
        for (text, words) in [
            ("leaf = 1\neax = \"0b2\"", "`0b2` says nothing"),
            (
                "leaf = 1\neax = \"0b000000000000000000000000000000001\"",
                "says nothing of a 32-bit register",
            ),
            ("leaf = \"one\"\neax = \"0b1\"", "`one` is no number"),
            ("leaf = 1\nrax = \"0b1\"", "unknown field `rax`"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
