//! The kallsyms tables in a kernel's data, as scripts/kallsyms.c of the kernel's source writes them.
//!
//! Nothing in a stripped image says where they are, but their contents do. Names are compressed: each byte stands for a token, and the
//! *token table* holds the 256 tokens, each ended by a NUL, among them the ten digits, which stand for themselves.
//! `token_index` after it holds the offset of each, which proves that the table was found. Before it are `markers`, the offset of every 256th
//! name, the names, and their number; each proves the one before. The addresses are offsets from `relative_base`:
//! until Linux 6.10 they lie before the number, since 6.11 after the token index.
//!
//! With `CONFIG_KALLSYMS_ABSOLUTE_PERCPU`, on x86-64 until 6.14, a negative offset is one from the base (base - 1 -
//! offset) and any other an absolute value; without it every offset is one from the base.

use super::Symbol;

/// Every 256th name has a marker.
const MARKED: usize = 256;
/// The longest name with its length: `KSYM_NAME_LEN` is 512.
const MAX_NAME: usize = 514;
/// The most symbols that are taken for a kernel's.
const MAX_SYMBOLS: usize = 1 << 22;

/// The symbols in a kernel image's bytes, an unpacked ELF file or memory; `None` where there are no tables.
pub(super) fn decode(image: &[u8]) -> Option<Vec<Symbol>> {
    token_tables(image).find_map(|tokens| {
        let names = names_before(image, &tokens)?;
        let addresses = addresses_before(image, &names)
            .or_else(|| addresses_after(image, tokens.end, names.count))?;
        Some(symbols(image, &tokens, &names, &addresses))
    })
}

/// The token table.
struct Tokens {
    /// Where it begins.
    start: usize,
    /// The end of the index after it.
    end: usize,
    /// Where each token is.
    offsets: Vec<usize>,
}

/// Places whose contents are a token table with its index.
fn token_tables(image: &[u8]) -> impl Iterator<Item = Tokens> + '_ {
    const DIGITS: &[u8] = b"\x000\x001\x002\x003\x004\x005\x006\x007\x008\x009\0";
    let mut from = 0;
    std::iter::from_fn(move || {
        while let Some(found) = find(&image[from..], DIGITS) {
            let digits = from + found;
            from = digits + 1;
            if let Some(tokens) = tokens_at(image, digits + 1) {
                return Some(tokens);
            }
        }
        None
    })
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes
        .windows(wanted.len())
        .position(|window| window == wanted)
}

/// The table whose token for `0` is at `zero`.
fn tokens_at(image: &[u8], zero: usize) -> Option<Tokens> {
    // 48 tokens come before it.
    let mut start = zero;
    for _ in 0..usize::from(b'0') {
        let end = start.checked_sub(1)?;
        let token = image[..end].iter().rev().position(|&byte| byte == 0)?;
        start = end - token;
    }
    let mut offsets = Vec::with_capacity(256);
    let mut at = start;
    for _ in 0..256 {
        offsets.push(at - start);
        at += image
            .get(at..)?
            .iter()
            .take(MAX_NAME)
            .position(|&byte| byte == 0)?
            + 1;
    }
    let index = at.next_multiple_of(8);
    // The linker aligned it to 8 in memory; the file's offsets agree with that up to whole pages.
    let bytes = image.get(index..index + 512)?;
    let same = bytes
        .chunks_exact(2)
        .map(|two| usize::from(u16::from_le_bytes([two[0], two[1]])))
        .eq(offsets.iter().copied());
    same.then_some(Tokens {
        start,
        end: index + 512,
        offsets,
    })
}

/// The names and their number.
struct Names {
    /// Where the number is.
    number: usize,
    start: usize,
    count: usize,
}

/// The names whose markers end before the token table. From 6.2 to 6.10 `seqs_of_names`, three bytes a name, is between
/// the two.
fn names_before(image: &[u8], tokens: &Tokens) -> Option<Names> {
    let top = tokens.start & !7;
    // The markers begin with 0 and rise; a marker is never less than the one before.
    let mut at = top;
    let lowest = top.saturating_sub(4 * MAX_SYMBOLS);
    while at > lowest {
        at -= 8;
        if word(image, at)? != 0 {
            continue;
        }
        let Some(markers) = markers_at(image, at, tokens.start) else {
            continue;
        };
        if let Some(names) = names_with(image, at, &markers) {
            return Some(names);
        }
    }
    None
}

/// The values that begin at `at` and rise as markers do: at least 2 and at most [`MAX_NAME`] bytes a name.
fn markers_at(image: &[u8], at: usize, end: usize) -> Option<Vec<u32>> {
    let mut markers = vec![0];
    let mut next = at + 4;
    while next + 4 <= end {
        let marker = word(image, next)?;
        let step = marker.wrapping_sub(*markers.last()?) as usize;
        if !(2 * MARKED..=MAX_NAME * MARKED).contains(&step) {
            break;
        }
        markers.push(marker);
        next += 4;
    }
    (markers.len() > 1).then_some(markers)
}

fn names_with(image: &[u8], markers_at: usize, markers: &[u32]) -> Option<Names> {
    let to_last = *markers.last()? as usize;
    // After the last marker there are up to 256 names more, and padding.
    let nearest = markers_at.checked_sub(to_last)? & !7;
    let farthest = nearest.saturating_sub(MARKED * MAX_NAME + 8);
    (farthest..=nearest).rev().step_by(8).find_map(|start| {
        let number = start.checked_sub(8)?;
        let count = word(image, number)? as usize;
        let fits = count <= MAX_SYMBOLS && count.div_ceil(MARKED) == markers.len();
        (fits && end_of_names(image, start, count, markers)? <= markers_at).then_some(Names {
            number,
            start,
            count,
        })
    })
}

/// The end of `count` names, where each 256th is where its marker says.
fn end_of_names(image: &[u8], start: usize, count: usize, markers: &[u32]) -> Option<usize> {
    let mut at = start;
    for number in 0..count {
        if number % MARKED == 0 && at - start != markers[number / MARKED] as usize {
            return None;
        }
        let (length, size) = name_length(image, at)?;
        at += size + length;
    }
    Some(at)
}

/// A name's length in tokens and how many bytes say so: one, or since 6.1 two for 128 and more.
fn name_length(image: &[u8], at: usize) -> Option<(usize, usize)> {
    let low = usize::from(*image.get(at)?);
    if low & 0x80 == 0 {
        return Some((low, 1));
    }
    let high = usize::from(*image.get(at + 1)?);
    Some((low & 0x7f | high << 7, 2))
}

/// Offsets and what they are relative to.
struct Addresses {
    offsets: usize,
    base: u64,
}

fn addresses_before(image: &[u8], names: &Names) -> Option<Addresses> {
    let base_at = names.number.checked_sub(8)?;
    let offsets = base_at.checked_sub((4 * names.count).next_multiple_of(8))?;
    addresses(image, offsets, base_at)
}

fn addresses_after(image: &[u8], end: usize, count: usize) -> Option<Addresses> {
    let offsets = end.next_multiple_of(8);
    addresses(image, offsets, (offsets + 4 * count).next_multiple_of(8))
}

fn addresses(image: &[u8], offsets: usize, base_at: usize) -> Option<Addresses> {
    let base = u64::from(word(image, base_at)?) | u64::from(word(image, base_at + 4)?) << 32;
    (super::TEXT..super::MODULES_WITH_KASLR)
        .contains(&base)
        .then_some(Addresses { offsets, base })
}

fn symbols(image: &[u8], tokens: &Tokens, names: &Names, addresses: &Addresses) -> Vec<Symbol> {
    let offset = |number: usize| word(image, addresses.offsets + 4 * number).unwrap_or(0) as i32;
    let negative = (0..names.count)
        .filter(|&number| offset(number) < 0)
        .count();
    let absolute_percpu = negative > names.count / 2;
    let mut at = names.start;
    let mut symbols = Vec::with_capacity(names.count);
    for number in 0..names.count {
        let Some((length, size)) = name_length(image, at) else {
            break;
        };
        let compressed = image.get(at + size..at + size + length).unwrap_or(&[]);
        at += size + length;
        let mut name = Vec::new();
        for &token in compressed {
            let from = tokens.start + tokens.offsets[usize::from(token)];
            name.extend(image[from..].iter().take_while(|&&byte| byte != 0));
        }
        let Some((&kind, name)) = name.split_first() else {
            continue;
        };
        let offset = offset(number);
        let address = if !absolute_percpu {
            addresses.base.wrapping_add(u64::from(offset as u32))
        } else if offset < 0 {
            addresses.base.wrapping_add((-1 - i64::from(offset)) as u64)
        } else {
            offset as u64
        };
        symbols.push(Symbol {
            address,
            kind,
            name: String::from_utf8_lossy(name).into(),
            module: None,
        });
    }
    symbols
}

fn word(image: &[u8], at: usize) -> Option<u32> {
    let bytes = image.get(at..)?.first_chunk::<4>()?;
    Some(u32::from_le_bytes(*bytes))
}
