//! bzImages that unpack and move themselves.

use super::*;
use crate::boot::build_id::tests::note;

/// Where the header says that the code is to be loaded.
const ADDRESS: u64 = 2 * MIB;
/// How much memory it says that the code needs.
const INIT_SIZE: u64 = 0x18_0000;
/// Where the code begins in the file: behind a boot sector and one sector of setup.
const CODE: usize = 0x400;

/// A bzImage of a relocatable kernel with `payload`. Behind its code there is a signature, as Debian's has.
fn relocatable(payload: &[u8]) -> Vec<u8> {
    let mut image = bzimage(payload);
    image.resize(image.len().next_multiple_of(16), 0xcc);
    let syssize = (image.len() - CODE) as u32 / 16;
    put(&mut image, 0x1f4, &syssize.to_le_bytes());
    put(&mut image, 0x201, &[0x6a]);
    put(&mut image, 0x230, &0x20_0000u32.to_le_bytes());
    put(&mut image, 0x234, &[1]);
    put(&mut image, 0x258, &ADDRESS.to_le_bytes());
    put(&mut image, 0x260, &(INIT_SIZE as u32).to_le_bytes());
    image.extend(b"signature");
    image
}

fn packed() -> Vec<u8> {
    relocatable(&pack(&kernel(), Compression::Lz4))
}

fn load_kaslr(
    memory: &GuestMemoryMmap,
    image: &[u8],
    initrd: Option<&Path>,
) -> Result<Entry, BootError> {
    let file = TempFile::new(image);
    let source = BootSource {
        kernel: &file.0,
        kaslr: true,
        initrd,
        cmdline: "quiet",
    };
    load(memory, &source, None)
}

fn kaslr_refusal(image: &[u8]) -> KernelError {
    match load_kaslr(&memory(SIZE), image, None) {
        Err(BootError::Kernel { error, .. }) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_bzimage_is_entered_at_its_own_code_which_is_loaded_as_it_is() {
    let memory = memory(SIZE);
    let image = packed();
    let entry = load_kaslr(&memory, &image, None).unwrap();
    assert_eq!(entry.address, GuestAddress(ADDRESS + 0x200));
    let zero_page = GuestAddress(0x7000);
    assert_eq!(entry.protocol, Protocol::Linux64 { zero_page });

    let mut loaded = vec![0; image.len() - CODE];
    memory
        .read_slice(&mut loaded, GuestAddress(ADDRESS))
        .unwrap();
    let (code, behind) = loaded.split_at(loaded.len() - b"signature".len());
    assert!(code == &image[CODE..CODE + code.len()]);
    assert!(behind.iter().all(|byte| *byte == 0));
    // Where the kernel in it is linked there is nothing.
    assert_eq!(memory.read_obj::<u64>(GuestAddress(MIB)).unwrap(), 0);

    let pref_address: u64 = memory.read_obj(GuestAddress(0x7258)).unwrap();
    assert_eq!(pref_address, ADDRESS, "the setup header is handed on");
}

#[test]
fn an_initrd_leaves_the_code_its_memory() {
    let room = SIZE as u64 - ADDRESS - INIT_SIZE;
    let fits = TempFile::new(&vec![1; room as usize]);
    let memory = memory(SIZE);
    load_kaslr(&memory, &packed(), Some(&fits.0)).unwrap();
    let image: u32 = memory.read_obj(GuestAddress(0x7218)).unwrap();
    assert_eq!(u64::from(image), ADDRESS + INIT_SIZE);

    let too_large = TempFile::new(&vec![1; room as usize + 1]);
    let error = load_kaslr(&memory, &packed(), Some(&too_large.0)).unwrap_err();
    assert!(error.to_string().contains("there is room for"), "{error}");
}

#[test]
fn a_header_that_contradicts_itself_or_the_guest_is_refused_by_its_value() {
    let syssize = |bytes: u32| (bytes / 16).to_le_bytes();
    for (at, bytes, message) in [
        (
            0x1f4,
            &syssize(0x10_0000)[..],
            "its protected-mode part should be at 0x400, 1048576 bytes long, and the file has",
        ),
        (
            0x1f4,
            &[0xff; 4],
            "its protected-mode part should be at 0x400, 68719476720 bytes long",
        ),
        (
            0x1f4,
            &syssize(0x200),
            "with 512 bytes of code (syssize), and its 64-bit entry point is at byte 0x200",
        ),
        (0x1f4, &[0; 4], "with 0 bytes of code (syssize)"),
        (0x234, &[0], "not relocatable (CONFIG_RELOCATABLE)"),
        (
            0x230,
            &0x30_0000u32.to_le_bytes(),
            "a kernel_alignment of 0x300000; it must be a power of two",
        ),
        (0x230, &[0; 4], "a kernel_alignment of 0x0"),
        (
            0x258,
            &0x21_0000u64.to_le_bytes(),
            "is to be loaded at 0x210000 (pref_address); that must be a multiple of 0x200000 (kernel_alignment), \
             and at least 0x100000",
        ),
        (0x258, &[0; 8], "is to be loaded at 0x0 (pref_address)"),
        (
            0x260,
            &0x200u32.to_le_bytes(),
            "claims to unpack itself within 512 bytes (init_size)",
        ),
        (
            0x260,
            &0x20_0001u32.to_le_bytes(),
            "needs memory from 0x200000 to 0x400001 to unpack itself: at least 5 MiB, and the guest has 4 MiB there",
        ),
        (
            0x258,
            &(1u64 << 40).to_le_bytes(),
            "needs memory from 0x10000000000 to 0x10000180000",
        ),
        (
            0x258,
            &0xffff_ffff_ffe0_0000u64.to_le_bytes(),
            "needs memory from 0xffffffffffe00000 to 0xfffffffffff80000",
        ),
        (0x236, &[0x3e, 0], "32-bit kernel (xloadflags 0x3e)"),
    ] {
        let mut image = packed();
        put(&mut image, at, bytes);
        let error = kaslr_refusal(&image).to_string();
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn a_kernel_that_cannot_move_itself_is_refused_with_what_can() {
    let error = kaslr_refusal(&kernel()).to_string();
    assert_eq!(
        error,
        "is an ELF file, which runs where it is linked; KASLR (vm.kaslr) needs a bzImage, which unpacks and moves itself"
    );
    let mut multiboot = kernel();
    put(&mut multiboot, 4, &[1]);
    let error = kaslr_refusal(&multiboot).to_string();
    assert!(error.starts_with("is a Multiboot kernel, which"), "{error}");
    let error = kaslr_refusal(b"#!/bin/sh\n");
    assert!(
        matches!(error, KernelError::UnknownFormat { .. }),
        "{error}"
    );
}

/// A kernel whose second program header is of notes in its first segment, 0x100 bytes from its start.
fn kernel_with_notes(notes: &[u8]) -> Vec<u8> {
    let size = notes.len() as u64;
    let mut kernel = elf(
        MIB + 0x10,
        &[(MIB, 0x2345, 0x3000), (MIB + 0x100, size, size)],
    );
    let first = 64 + 2 * 56;
    let second_header = 64 + 56;
    put(&mut kernel, second_header, &[4]);
    put(
        &mut kernel,
        second_header + 8,
        &(first as u64 + 0x100).to_le_bytes(),
    );
    put(&mut kernel, first + 0x100, notes);
    kernel
}

#[test]
fn the_build_id_is_the_same_whoever_unpacks_the_kernel() {
    let notes = [
        note(b"Xen\0", 18, &[1; 7]),
        note(b"GNU\0", 3, &[0xfe, 0xdc]),
    ]
    .concat();
    let kernel = kernel_with_notes(&notes);
    let build_id = |image: &[u8], kaslr| {
        let file = TempFile::new(image);
        let memory = memory(SIZE);
        let images = Images::load(&memory, &file.0, kaslr, None).unwrap();
        images.build_id(&memory)
    };
    for compression in COMPRESSIONS {
        let image = relocatable(&pack(&kernel, compression));
        for kaslr in [false, true] {
            let id = build_id(&image, kaslr);
            assert_eq!(id.as_deref(), Some("fedc"), "{compression} {kaslr}");
        }
    }

    // Without notes, with notes beyond the kernel's end, and with a payload that does not unpack there is none.
    for (at, bytes) in [
        (120, &[1][..]),
        (120 + 8, &[0xff; 8]),
        (120 + 32, &[0xff; 8]),
        (0, &[0]),
    ] {
        let mut kernel = kernel.clone();
        put(&mut kernel, at, bytes);
        let image = relocatable(&pack(&kernel, Compression::Gzip));
        assert_eq!(build_id(&image, true), None, "{at}");
    }
    let image = relocatable(&[0x5a; 0x300]);
    assert_eq!(build_id(&image, true), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn no_damage_to_a_header_makes_the_loader_panic_or_enter_nowhere(
        damage in proptest::collection::vec((0x1f1usize..0x26c, any::<u8>()), 1..8),
    ) {
        let mut image = packed();
        for (at, byte) in damage {
            image[at] = byte;
        }
        let file = TempFile::new(&image);
        let memory = memory(SIZE);
        if let Ok(images) = Images::load(&memory, &file.0, true, None) {
            prop_assert!(images.kernel.entry.0 < SIZE as u64);
            prop_assert!(images.kernel.end <= SIZE as u64);
            let _ = images.build_id(&memory);
        }
    }
}
