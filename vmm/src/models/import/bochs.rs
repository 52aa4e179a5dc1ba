//! Bochs' `msrs.def`, the file that its option `cpu: msrs=` names.
//!
//! A line describes a register in eight columns: index in hexadecimal, type in decimal, and three pairs of 32-bit halves in
//! hexadecimal, high half first: reset value, reserved bits, ignored bits. A line that begins with `#` is a comment
//! (Bochs, cpu/msr.cc, `BX_CPU_C::load_MSRs`).
//!
//! An ignored bit keeps its value whatever is written. A write that would change a reserved bit is #GP; a model's table
//! has bits that must be written as 0, which is the same where the bit is 0.

use std::collections::BTreeMap;

use toml::Value;

use super::{Imported, device, msr, table, value};

/// What is wrong with an `msrs.def`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BochsError {
    /// A line describes no register.
    #[error("line {line}: {problem}: a line has an index, a type and six hexadecimal numbers")]
    Line {
        /// The line's number, from 1.
        line: usize,
        /// What is wrong.
        problem: String,
    },
    /// Two lines describe the same register.
    #[error("lines {first} and {second} both describe MSR {index:#x}: keep one of them")]
    Twice {
        /// The MSR.
        index: u32,
        /// The first line's number, from 1.
        first: usize,
        /// The second's.
        second: usize,
    },
    /// There is no register at all.
    #[error(
        "the file describes no register: an msrs.def has a line for each, of an index, a type and six hexadecimal numbers"
    )]
    Empty,
}

/// A value of this type has to be a canonical linear address.
const LINEAR_ADDRESS: u32 = 1;
/// A value of this type has to be a physical address that the CPU can have.
const PHYSICAL_ADDRESS: u32 = 2;

struct Register {
    index: u32,
    kind: u32,
    reset: u64,
    reserved: u64,
    ignored: u64,
}

/// Makes a model of `text`.
///
/// # Errors
///
/// [`BochsError`], with the line.
pub fn import(text: &str) -> Result<Imported, BochsError> {
    let mut imported = Imported::new("imported from Bochs' msrs.def");
    let mut registers = Vec::new();
    let mut lines = BTreeMap::new();
    for (number, line) in (1..).zip(text.lines()) {
        if line.starts_with('#') || line.trim().is_empty() {
            continue;
        }
        let register = parse(line).map_err(|problem| BochsError::Line {
            line: number,
            problem,
        })?;
        if let Some(first) = lines.insert(register.index, number) {
            return Err(BochsError::Twice {
                index: register.index,
                first,
                second: number,
            });
        }
        registers.push(describe(&register, &mut imported));
    }
    if registers.is_empty() {
        return Err(BochsError::Empty);
    }
    let devices = &mut imported.model.msr.devices;
    devices.push(device("table", [("register", Value::Array(registers))]));
    Ok(imported)
}

fn parse(line: &str) -> Result<Register, String> {
    let mut words = line.split_whitespace();
    let mut word = |what: &str| words.next().ok_or(format!("there is no {what}"));
    let bad = |what: &str, text: &str| format!("`{text}` is no {what}");
    let index = word("index")?;
    let digits = index.strip_prefix("0x").unwrap_or(index);
    let index = u32::from_str_radix(digits, 16).map_err(|_| bad("index", index))?;
    let kind = word("type")?;
    let kind = kind.parse().map_err(|_| bad("type", kind))?;
    let mut pair = |what: &str| -> Result<u64, String> {
        let mut half = || {
            let text = word(what)?;
            let half = u32::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16);
            half.map(u64::from).map_err(|_| bad(what, text))
        };
        Ok(half()? << 32 | half()?)
    };
    Ok(Register {
        index,
        kind,
        reset: pair("reset value")?,
        reserved: pair("mask of reserved bits")?,
        ignored: pair("mask of ignored bits")?,
    })
}

/// The register as a table has it.
fn describe(register: &Register, imported: &mut Imported) -> Value {
    let Register {
        index,
        kind,
        reset,
        reserved,
        ignored,
    } = *register;
    let mut keys = vec![("msr", msr(index)), ("value", value(reset))];
    // Bochs merges the ignored bits first, so that they are never seen to change.
    let reserved = reserved & !ignored;
    let fixed = reserved & reset;
    if reserved | ignored == u64::MAX {
        let write = if reserved == 0 { "ignore" } else { "fault" };
        keys.push(("write", Value::from(write)));
        if reserved != 0 {
            imported.note(format!(
                "MSR {index:#x}: every write is #GP, also one that would change nothing."
            ));
        }
    } else {
        keys.push(("write", Value::from("store")));
        if fixed != 0 {
            imported.note(format!(
                "MSR {index:#x}: reserved bits {fixed:#x} are set; they keep their value, and clearing them is no #GP."
            ));
        }
        for (key, mask) in [
            ("reserved", reserved & !fixed),
            ("ignored", ignored | fixed),
        ] {
            if mask != 0 {
                keys.push((key, value(mask)));
            }
        }
    }
    match kind {
        LINEAR_ADDRESS => imported.note(format!(
            "MSR {index:#x}: a value that is no canonical address is stored, not #GP."
        )),
        PHYSICAL_ADDRESS => imported.note(format!(
            "MSR {index:#x}: a value beyond the physical addresses is stored, not #GP."
        )),
        _ => {}
    }
    Value::Table(table(keys))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "\
# index type  reset             reserved          ignored
0x2c    0     00000000 12345678 ffffffff 00000000 00000000 000000ff
0x10a   0     00000000 00000c4c ffffffff ffffffff 00000000 00000000

0x79    1     0 0 0 0 ffffffff ffffffff
0x600   2     0 3 0 1 0 0
";

    fn registers(imported: &Imported) -> Vec<toml::Table> {
        let [table] = imported.model.msr.devices.as_slice() else {
            panic!("{imported}");
        };
        let list = table.keys["register"].as_array().unwrap();
        list.iter().map(|r| r.as_table().unwrap().clone()).collect()
    }

    #[test]
    fn registers_keep_reset_value_reserved_and_ignored_bits() {
        let imported = import(FILE).unwrap();
        let registers = registers(&imported);
        let expected: toml::Table = toml::from_str(
            "msr = \"0x2c\"\nvalue = \"0x12345678\"\nwrite = \"store\"\n\
             reserved = \"0xffffffff00000000\"\nignored = \"0xff\"",
        )
        .unwrap();
        assert_eq!(registers[0]["value"], expected["value"]);
        assert_eq!(registers[0]["write"], expected["write"]);
        assert_eq!(registers[0]["reserved"], expected["reserved"]);
        assert_eq!(registers[0]["ignored"], expected["ignored"]);
        assert_eq!(registers[1]["write"].as_str(), Some("fault"));
        assert_eq!(registers[2]["write"].as_str(), Some("ignore"));
        // A reserved bit that is set is kept, which a table calls ignored.
        assert_eq!(registers[3]["ignored"].as_str(), Some("0x1"));
        assert_eq!(registers[3].get("reserved"), None);
    }

    #[test]
    fn what_a_table_has_not_is_noted() {
        let notes = import(FILE).unwrap().notes;
        for (msr, words) in [
            ("0x10a", "every write is #GP"),
            ("0x79", "canonical"),
            ("0x600", "reserved bits 0x1 are set"),
            ("0x600", "physical addresses"),
        ] {
            assert!(
                notes.iter().any(|n| n.contains(msr) && n.contains(words)),
                "{msr}: {notes:#?}"
            );
        }
    }

    #[test]
    fn what_is_printed_is_a_model_file() {
        let imported = import(FILE).unwrap();
        let text = imported.to_string();
        let read: crate::models::ModelFile = toml::from_str(&text).unwrap();
        assert_eq!(read, imported.model);
        assert!(text.starts_with("# MSR 0x10a:"), "{text}");
    }

    #[test]
    fn a_damaged_line_is_named() {
        for (line, problem) in [
            ("0x10 0 0 0 0 0 0", "there is no mask of ignored bits"),
            ("zz 0 0 0 0 0 0 0", "`zz` is no index"),
            ("10 x 0 0 0 0 0 0", "`x` is no type"),
            ("10 0 100000000 0 0 0 0 0", "`100000000` is no reset value"),
            ("10", "there is no type"),
        ] {
            let error = import(&format!("# a comment\n{line}\n")).unwrap_err();
            let problem = problem.to_owned();
            assert_eq!(error, BochsError::Line { line: 2, problem });
        }
    }

    #[test]
    fn a_register_twice_and_no_register_at_all_are_refused() {
        let error = import("10 0 0 0 0 0 0 0\n#\n0x10 0 0 1 0 0 0 0\n").unwrap_err();
        assert_eq!(
            error.to_string(),
            "lines 1 and 3 both describe MSR 0x10: keep one of them"
        );
        for empty in ["", "\n# nothing but comments\n"] {
            assert_eq!(import(empty).unwrap_err(), BochsError::Empty);
        }
    }
}
