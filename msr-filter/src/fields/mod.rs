//! What the bits of an MSR's value mean.
//!
//! A [`Layout`] describes one register, or several of the same form, by its [`Field`]s. Each table cites the
//! manual it was made from. Bits that no field names are reserved, or mean nothing that a reader of a value
//! looks for. Layouts that depend on the processor follow the generations that Linux guests are shown most:
//! Intel since Skylake, AMD since Zen.
//!
//! ```
//! use msr_filter::fields;
//!
//! let decoded = fields::decode(0xce, 0x80000f0f81800).unwrap();
//! assert!(decoded.to_string().starts_with("max-non-turbo=24 "));
//! assert_eq!(decoded.field("minimum"), Some(8));
//! assert_eq!(fields::decode(0xffff_ffff, 0).map(|d| d.to_string()), None);
//! ```

mod amd;
mod architecture;
mod intel;
mod machine_check;
mod memory;
mod performance;
mod power;
mod virt;

#[cfg(test)]
mod tests;

use core::fmt;

use crate::MsrRange;

/// One field of a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// What it is called, in lower case with hyphens.
    pub name: &'static str,
    /// Its lowest bit.
    pub low: u8,
    /// Its highest bit, inclusive.
    pub high: u8,
    /// How its value is shown.
    pub show: Show,
}

/// How a field's value is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Show {
    /// A decimal number. A single bit is 0 or 1.
    Decimal,
    /// A hexadecimal number.
    Hex,
    /// The bits in their place, as the address they make.
    Address,
    /// The name of the value; other values as a decimal number.
    Names(&'static [(u64, &'static str)]),
    /// 1/2^n of a unit.
    Fraction(&'static str),
    /// A decimal number with its unit.
    Unit(&'static str),
}

/// The fields of a register, or of several registers of one form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The registers: the first, and how many follow it at the distance [`stride`](Self::stride).
    pub first: u32,
    /// How many registers have this form.
    pub count: u32,
    /// The distance from one to the next.
    pub stride: u32,
    /// The manual, with the section or table.
    pub source: &'static str,
    /// The fields, from the lowest bit up. They do not overlap.
    pub fields: &'static [Field],
}

impl Layout {
    const fn one(index: u32, source: &'static str, fields: &'static [Field]) -> Self {
        Self::many(index, 1, 1, source, fields)
    }

    const fn many(
        first: u32,
        count: u32,
        stride: u32,
        source: &'static str,
        fields: &'static [Field],
    ) -> Self {
        Self {
            first,
            count,
            stride,
            source,
            fields,
        }
    }

    /// A value of one of its registers, field by field.
    pub fn decode(&'static self, value: u64) -> Decoded {
        Decoded {
            layout: self,
            value,
        }
    }

    /// Whether it describes the register `index`.
    pub fn describes(&self, index: u32) -> bool {
        index.checked_sub(self.first).is_some_and(|distance| {
            distance % self.stride == 0 && distance / self.stride < self.count
        })
    }

    /// The indices it describes.
    pub fn indices(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.count).map(|number| self.first + number * self.stride)
    }
}

const TABLES: [&[Layout]; 8] = [
    architecture::LAYOUTS,
    memory::LAYOUTS,
    machine_check::LAYOUTS,
    performance::LAYOUTS,
    power::LAYOUTS,
    intel::LAYOUTS,
    amd::LAYOUTS,
    virt::LAYOUTS,
];

/// Every layout.
pub fn layouts() -> impl Iterator<Item = &'static Layout> {
    TABLES.into_iter().flatten()
}

/// The layout of the register `index`, if there is a table of it.
pub fn layout(index: u32) -> Option<&'static Layout> {
    layouts().find(|layout| layout.describes(index))
}

/// `value` of the register `index`, field by field; `None` for a register without a table.
pub fn decode(index: u32, value: u64) -> Option<Decoded> {
    layout(index).map(|layout| layout.decode(value))
}

/// A register's value with the layout that explains it. Shown as `name=value` pairs, lowest bit first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decoded {
    layout: &'static Layout,
    value: u64,
}

impl Decoded {
    /// The layout.
    pub fn layout(&self) -> &'static Layout {
        self.layout
    }

    /// The fields with their values, from the lowest bit up.
    pub fn fields(&self) -> impl Iterator<Item = (&'static Field, u64)> + '_ {
        self.layout
            .fields
            .iter()
            .map(|field| (field, field.of(self.value)))
    }

    /// The value of the field of this name.
    pub fn field(&self, name: &str) -> Option<u64> {
        self.fields()
            .find(|(field, _)| field.name == name)
            .map(|(_, value)| value)
    }
}

impl fmt::Display for Decoded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, (field, value)) in self.fields().enumerate() {
            if number > 0 {
                f.write_str(" ")?;
            }
            f.write_str(field.name)?;
            f.write_str("=")?;
            field.text(value).fmt(f)?;
        }
        Ok(())
    }
}

impl Field {
    /// Its value in a register's value.
    pub const fn of(&self, register: u64) -> u64 {
        let width = self.high - self.low + 1;
        let shifted = register >> self.low;
        if width == 64 {
            shifted
        } else {
            shifted & ((1 << width) - 1)
        }
    }

    /// A value of the field as text.
    pub fn text(&self, value: u64) -> impl fmt::Display + '_ {
        FieldText { field: self, value }
    }
}

struct FieldText<'a> {
    field: &'a Field,
    value: u64,
}

impl fmt::Display for FieldText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.value;
        match self.field.show {
            Show::Decimal => write!(f, "{value}"),
            Show::Hex => write!(f, "{value:#x}"),
            Show::Address => write!(f, "{:#x}", value << self.field.low),
            Show::Names(names) => match names.iter().find(|(known, _)| *known == value) {
                Some((_, name)) => f.write_str(name),
                None => write!(f, "{value}"),
            },
            Show::Fraction(unit) => write!(f, "1/{}{unit}", 1u128 << value),
            Show::Unit(unit) => write!(f, "{value}{unit}"),
        }
    }
}

/// A one-bit field.
const fn bit(name: &'static str, at: u8) -> Field {
    bits(name, at, at)
}

/// A field shown as a decimal number.
const fn bits(name: &'static str, low: u8, high: u8) -> Field {
    shown(name, low, high, Show::Decimal)
}

/// A field shown as a hexadecimal number.
const fn hex(name: &'static str, low: u8, high: u8) -> Field {
    shown(name, low, high, Show::Hex)
}

/// A field shown as the address it makes.
const fn address(name: &'static str, low: u8, high: u8) -> Field {
    shown(name, low, high, Show::Address)
}

/// A field with a unit.
const fn unit(name: &'static str, low: u8, high: u8, unit: &'static str) -> Field {
    shown(name, low, high, Show::Unit(unit))
}

const fn shown(name: &'static str, low: u8, high: u8, show: Show) -> Field {
    Field {
        name,
        low,
        high,
        show,
    }
}

/// The registers that the tables describe, as ranges of one.
pub fn described() -> impl Iterator<Item = MsrRange> {
    layouts().flat_map(Layout::indices).map(MsrRange::single)
}
