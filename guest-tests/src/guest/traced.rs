//! What a guest's Linux knows by itself: the MSR accesses that its tracepoints record, and its functions' addresses.

use std::fmt;
use std::str::FromStr;

/// An access that Linux's `msr:read_msr` or `msr:write_msr` recorded (arch/x86/include/asm/msr-trace.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TracedMsr {
    /// The CPU.
    pub cpu: u16,
    /// Whether it was a write.
    pub write: bool,
    /// The MSR.
    pub index: u32,
    /// The value read or written.
    pub value: u64,
    /// Whether it faulted.
    pub fault: bool,
}

impl TracedMsr {
    /// The access of a line of Linux's `trace` file: `TASK-TID [CPU] FLAGS TIME: read_msr: INDEX, value VALUE`.
    pub fn from_trace(line: &str) -> Option<Self> {
        let (before, write, rest) = [("read_msr", false), ("write_msr", true)]
            .into_iter()
            .find_map(|(name, write)| {
                let (before, rest) = line.split_once(&format!(": {name}: "))?;
                Some((before, write, rest))
            })?;
        let (_, cpu) = before.rsplit_once('[')?;
        let (index, rest) = rest.split_once(", value ")?;
        let (value, fault) = match rest.split_once(' ') {
            Some((value, "#GP")) => (value, true),
            _ => (rest, false),
        };
        Some(Self {
            cpu: cpu.split_once(']')?.0.parse().ok()?,
            write,
            index: u32::from_str_radix(index, 16).ok()?,
            value: u64::from_str_radix(value, 16).ok()?,
            fault,
        })
    }
}

impl fmt::Display for TracedMsr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match (self.write, self.fault) {
            (false, false) => 'r',
            (false, true) => 'R',
            (true, false) => 'w',
            (true, true) => 'W',
        };
        write!(f, "{} {kind} {:x} {:x}", self.cpu, self.index, self.value)
    }
}

impl FromStr for TracedMsr {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let parse = || {
            let mut words = line.split_ascii_whitespace();
            let cpu = words.next()?.parse().ok()?;
            let kind = words.next()?;
            Some(Self {
                cpu,
                write: kind.eq_ignore_ascii_case("w"),
                fault: kind.chars().all(char::is_uppercase),
                index: u32::from_str_radix(words.next()?, 16).ok()?,
                value: u64::from_str_radix(words.next()?, 16).ok()?,
            })
        };
        parse().ok_or_else(|| format!("not an access: {line:?}"))
    }
}

/// The functions in a kernel's own list, /proc/kallsyms, without those of modules: how many, and a digest of their addresses and names
/// in the list's order.
pub fn functions_digest(kallsyms: &str) -> String {
    let functions = kallsyms.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let address = u64::from_str_radix(words.next()?, 16).ok()?;
        let kind = words.next()?;
        let name = words.next()?;
        let is_function = matches!(kind, "t" | "T" | "w" | "W") && words.next().is_none();
        is_function.then_some((address, name))
    });
    digest(functions)
}

/// The same of functions by other means.
pub fn digest<'a>(functions: impl Iterator<Item = (u64, &'a str)>) -> String {
    // FNV-1a, 64 bits.
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut count = 0;
    for (address, name) in functions {
        // Not functions, but where text ends.
        if address < 1 << 63 || matches!(name, "_etext" | "_einittext") {
            continue;
        }
        count += 1;
        for byte in address.to_le_bytes().into_iter().chain(name.bytes()) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    format!("{count} functions, digest {hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linuxs_lines_become_accesses_and_survive_the_console() {
        for (line, access, shown) in [
            (
                "         swapper/0-0       [001] d....     0.060001: read_msr: 1b, value fee00d00",
                TracedMsr {
                    cpu: 1,
                    write: false,
                    index: 0x1b,
                    value: 0xfee0_0d00,
                    fault: false,
                },
                "1 r 1b fee00d00",
            ),
            (
                "  a: [9] x-1       [000] .....     0.060001: write_msr: c0010015, value 8 #GP",
                TracedMsr {
                    cpu: 0,
                    write: true,
                    index: 0xc001_0015,
                    value: 8,
                    fault: true,
                },
                "0 W c0010015 8",
            ),
        ] {
            assert_eq!(TracedMsr::from_trace(line), Some(access));
            assert_eq!(access.to_string(), shown);
            assert_eq!(shown.parse(), Ok(access));
        }
        assert_eq!(TracedMsr::from_trace("# tracer: nop"), None);
        assert!("1 r".parse::<TracedMsr>().is_err());
    }

    #[test]
    fn a_digest_is_of_the_kernels_own_functions() {
        let list = "ffffffff81000000 T a\nffffffff81000010 D data\nffffffffc0000000 t m\t[m]\nffffffff81000020 t b\n";
        let same = digest([(0xffff_ffff_8100_0000, "a"), (0xffff_ffff_8100_0020, "b")].into_iter());
        assert_eq!(functions_digest(list), same);
        assert!(same.starts_with("2 functions"));
        let other =
            digest([(0xffff_ffff_8100_0000, "a"), (0xffff_ffff_8100_0021, "b")].into_iter());
        assert_ne!(same, other);
    }
}
