use super::*;

/// Tables as scripts/kallsyms.c writes them, uncompressed: each token is one character. `late` is the order since 6.11.
fn tables(symbols: &[(u64, &str)], base: u64, percpu: bool, late: bool) -> Vec<u8> {
    let mut names = Vec::new();
    let mut markers = Vec::new();
    for (number, (_, name)) in symbols.iter().enumerate() {
        if number % 256 == 0 {
            markers.extend((names.len() as u32).to_le_bytes());
        }
        match name.len() {
            length @ 0..128 => names.push(length as u8),
            length => names.extend([length as u8 & 0x7f | 0x80, (length >> 7) as u8]),
        }
        names.extend(name.bytes());
    }
    let mut table = Vec::new();
    let mut index = Vec::new();
    for byte in 0..=255u8 {
        index.extend((table.len() as u16).to_le_bytes());
        // Characters that no name has are free for longer tokens.
        if byte.is_ascii_graphic() {
            table.push(byte);
        } else {
            table.extend(b"longer");
        }
        table.push(0);
    }
    let mut offsets = Vec::new();
    for (address, _) in symbols {
        let offset = if !percpu {
            (address - base) as u32
        } else if *address >= base {
            (-1 - (address - base) as i64) as i32 as u32
        } else {
            *address as u32
        };
        offsets.extend(offset.to_le_bytes());
    }
    let mut image = vec![0xa5; 4096];
    let mut put = |bytes: &[u8]| {
        image.extend_from_slice(bytes);
        image.resize(image.len().next_multiple_of(8), 0);
    };
    let number = (symbols.len() as u32).to_le_bytes();
    if late {
        for part in [
            &number[..],
            &names,
            &markers,
            &table,
            &index,
            &offsets,
            &base.to_le_bytes(),
        ] {
            put(part);
        }
    } else {
        for part in [
            &offsets[..],
            &base.to_le_bytes(),
            &number,
            &names,
            &markers,
            &table,
            &index,
        ] {
            put(part);
        }
    }
    image.extend([0xa5; 4096]);
    image
}

const BASE: u64 = 0xffff_ffff_8100_0000;

#[test]
fn tables_of_every_order_and_kind_of_offset_are_decoded() {
    let long = format!("t{}", "n".repeat(300));
    let numbered: Vec<String> = (0..1000).map(|n| format!("Tfunction_{n}")).collect();
    for percpu in [true, false] {
        let mut symbols: Vec<(u64, &str)> = Vec::new();
        if percpu {
            symbols.push((0x1000, "Afixed_percpu_data"));
        }
        symbols.extend(
            (0..)
                .zip(&numbered)
                .map(|(n, name)| (BASE + 16 * n, name.as_str())),
        );
        symbols.push((BASE + 0x10_0000, &long));
        for late in [true, false] {
            let decoded = kallsyms::decode(&tables(&symbols, BASE, percpu, late));
            let decoded = decoded.unwrap_or_else(|| panic!("late {late} percpu {percpu}"));
            let decoded: Vec<(u64, String)> = decoded
                .iter()
                .map(|s| (s.address, format!("{}{}", s.kind as char, s.name)))
                .collect();
            let expected: Vec<(u64, String)> = symbols
                .iter()
                .map(|(a, name)| (*a, (*name).to_owned()))
                .collect();
            assert_eq!(decoded, expected, "late {late} percpu {percpu}");
        }
    }
}

#[test]
fn what_has_no_tables_or_broken_ones_gives_none_and_does_not_panic() {
    assert!(kallsyms::decode(&[]).is_none());
    assert!(kallsyms::decode(&[0; 10_000]).is_none());
    let numbered: Vec<String> = (0..600).map(|n| format!("Tfunction_{n}")).collect();
    let symbols: Vec<(u64, &str)> = (0..)
        .zip(&numbered)
        .map(|(n, name)| (BASE + 16 * n, name.as_str()))
        .collect();
    let image = tables(&symbols, BASE, true, true);
    for cut in (0..image.len()).step_by(97) {
        let _ = kallsyms::decode(&image[..cut]);
        let mut damaged = image.clone();
        damaged[cut] ^= 0x55;
        let _ = kallsyms::decode(&damaged);
    }
}

const MAP: &str = "\
0000000000000000 A fixed_percpu_data
ffffffff81000000 T _stext
ffffffff81000000 T _text
ffffffff81000100 T native_read_msr
ffffffff81000180 t aliased
ffffffff81000180 t alias
ffffffff81a00000 T entry_SYSCALL_64
ffffffff81a01000 T _etext
ffffffff82000000 D a_table
ffffffffc0001000 t msr_open\t[msr]
";

#[test]
fn addresses_become_functions_and_what_is_none_says_so() {
    let symbols = Symbols::from_text(MAP);
    for (address, shown) in [
        (0xffff_ffff_8100_0104, "native_read_msr+0x4"),
        (0xffff_ffff_8100_0180, "aliased+0x0"),
        (0xffff_ffff_8100_0000, "_stext+0x0"),
        (0xffff_ffff_c000_1010, "msr_open+0x10 [msr]"),
        (0xffff_ffff_8200_0010, "0xffffffff82000010"),
        (0x7fff_0000_1000, "0x7fff00001000 (in userspace)"),
        // At its physical address, before it has its page tables.
        (0x100_0104, "native_read_msr+0x4"),
    ] {
        assert_eq!(symbols.place(address).to_string(), shown);
    }
    let without_modules: String = MAP
        .lines()
        .filter(|l| !l.contains("[msr]"))
        .map(|l| format!("{l}\n"))
        .collect();
    let symbols = Symbols::from_text(&without_modules);
    assert_eq!(
        symbols.place(0xffff_ffff_c000_1010).to_string(),
        "0xffffffffc0001010 (in a module)"
    );
}

#[test]
fn the_slide_is_lstar_less_the_entry_and_must_be_one_that_kaslr_makes() {
    let mut symbols = Symbols::from_text(MAP);
    let entry = symbols.syscall_entry().unwrap();
    for wrong in [0, entry + 0x1000, entry + (1 << 30), entry - (2 << 20)] {
        assert!(!symbols.set_lstar(wrong), "{wrong:#x}");
        assert_eq!(symbols.slide(), 0);
    }
    assert!(symbols.set_lstar(entry + (0x1e << 20)));
    assert_eq!(symbols.slide(), 0x1e << 20);
    assert_eq!(
        symbols.place(0xffff_ffff_82e0_0104).to_string(),
        "native_read_msr+0x4"
    );
    assert_eq!(
        symbols.function_name(0xffff_ffff_82e0_0104),
        Some("native_read_msr")
    );
    // Its physical address has moved by another distance.
    assert_eq!(symbols.place(0x100_0104).to_string(), "0x1000104");
}

#[test]
fn files_of_the_wrong_kind_are_told_apart() {
    let error = |bytes: &[u8]| Symbols::load(bytes).unwrap_err();
    assert!(matches!(error(b"hello\n"), LoadError::NotSymbols));
    assert!(matches!(
        error(b"0000000000000000 T _text\n"),
        LoadError::Restricted
    ));
    assert!(matches!(error(b"\x7fELF"), LoadError::Elf(_)));
    assert_eq!(Symbols::load(MAP.as_bytes()).unwrap().len(), 7);
}
