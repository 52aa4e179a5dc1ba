//! System.map and /proc/kallsyms: an address, a type letter, a name, and in the latter a module in brackets.

use super::Symbol;

pub(super) fn symbols(text: &str) -> impl Iterator<Item = Symbol> + '_ {
    text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let address = u64::from_str_radix(words.next()?, 16).ok()?;
        let &[kind] = words.next()?.as_bytes() else {
            return None;
        };
        let name = words.next()?.into();
        let module = words
            .next()
            .and_then(|word| word.strip_prefix('[')?.strip_suffix(']'))
            .map(Into::into);
        Some(Symbol {
            address,
            kind,
            name,
            module,
        })
    })
}
