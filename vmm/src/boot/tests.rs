//! Kernel images, good and bad, through [`load`] and [`unpack`].

use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use proptest::prelude::*;
use vm_memory::Bytes;

use super::*;

mod kaslr;

const MIB: u64 = 1 << 20;
const SIZE: usize = 4 << 20;

/// A file that is gone with the test.
struct TempFile(PathBuf);

impl TempFile {
    fn new(content: &[u8]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("vmm-boot-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, content).unwrap();
        Self(path)
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn memory(size: usize) -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), size)]).unwrap()
}

fn load_into(memory: &GuestMemoryMmap, image: &[u8]) -> Result<Entry, BootError> {
    let file = TempFile::new(image);
    let source = BootSource {
        kernel: &file.0,
        kaslr: false,
        initrd: None,
        cmdline: "quiet",
    };
    load(memory, &source, None)
}

/// Why `image` is no kernel for a guest of 4 MiB.
fn refusal(image: &[u8]) -> KernelError {
    match load_into(&memory(SIZE), image) {
        Err(BootError::Kernel { error, .. }) => error,
        other => panic!("{other:?}"),
    }
}

/// A program header for each (address, file size, memory size), the content one after the other behind them: byte n of
/// the file is n, folded.
fn elf(entry: u64, segments: &[(u64, u64, u64)]) -> Vec<u8> {
    let mut file = Vec::new();
    file.extend(b"\x7fELF\x02\x01\x01");
    file.resize(16, 0);
    for half in [2u16, 62] {
        file.extend(half.to_le_bytes());
    }
    file.extend(1u32.to_le_bytes());
    for word in [entry, 64, 0] {
        file.extend(word.to_le_bytes());
    }
    file.extend([0; 4]);
    for half in [64, 56, segments.len() as u16, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    let mut offset = 64 + 56 * segments.len() as u64;
    for &(address, file_size, memory_size) in segments {
        file.extend(1u32.to_le_bytes());
        file.extend(7u32.to_le_bytes());
        for word in [offset, 0, address, file_size, memory_size, 0x1000] {
            file.extend(word.to_le_bytes());
        }
        offset = offset.wrapping_add(file_size);
    }
    let content = (file.len() as u64..offset.min(MIB)).map(content);
    file.extend(content);
    file
}

fn content(at: u64) -> u8 {
    (at ^ at >> 8 ^ at >> 16) as u8
}

/// Two segments, with memory to zero behind each.
fn kernel() -> Vec<u8> {
    elf(
        MIB + 0x10,
        &[(MIB, 0x2345, 0x3000), (2 * MIB, 0x1_2345, 0x2_0000)],
    )
}

fn put(image: &mut [u8], at: usize, bytes: &[u8]) {
    image[at..at + bytes.len()].copy_from_slice(bytes);
}

/// A bzImage with `payload`, to which the size trailer belongs.
fn bzimage(payload: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 0x400 + 0x20];
    image[0x1f1] = 1;
    put(&mut image, 0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
    put(&mut image, 0x202, b"HdrS\x0f\x02");
    put(&mut image, 0x211, &[1]);
    put(&mut image, 0x236, &[0x3f, 0]);
    put(&mut image, 0x238, &2047u32.to_le_bytes());
    put(&mut image, 0x248, &0x20u32.to_le_bytes());
    put(&mut image, 0x24c, &(payload.len() as u32).to_le_bytes());
    image.extend_from_slice(payload);
    image.extend_from_slice(&[0xcc; 64]);
    image
}

/// `elf` as the kernel's build packs it.
fn pack(elf: &[u8], compression: Compression) -> Vec<u8> {
    let mut payload = match compression {
        Compression::None => elf.to_vec(),
        Compression::Gzip => {
            let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
            writer.write_all(elf).unwrap();
            return writer.finish().unwrap();
        }
        Compression::Xz => {
            let mut options = lzma_rust2::XzOptions::with_preset(6);
            options.set_check_sum_type(lzma_rust2::CheckType::Crc32);
            options.prepend_pre_filter(lzma_rust2::FilterType::BcjX86, 0);
            let mut writer = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
            writer.write_all(elf).unwrap();
            writer.finish().unwrap()
        }
        Compression::Zstd => {
            ruzstd::encoding::compress_to_vec(elf, ruzstd::encoding::CompressionLevel::Fastest)
        }
        Compression::Lz4 => {
            let mut frame = vec![0x02, 0x21, 0x4c, 0x18];
            for block in elf.chunks(8 << 20) {
                let block = lz4_flex::block::compress(block);
                frame.extend((block.len() as u32).to_le_bytes());
                frame.extend(block);
            }
            frame
        }
    };
    payload.extend((elf.len() as u32).to_le_bytes());
    payload
}

const COMPRESSIONS: [Compression; 5] = [
    Compression::None,
    Compression::Gzip,
    Compression::Xz,
    Compression::Zstd,
    Compression::Lz4,
];

/// What [`kernel`] is in memory.
fn assert_loaded(memory: &GuestMemoryMmap) {
    let mut offset = 64 + 2 * 56;
    for (address, file_size, memory_size) in [(MIB, 0x2345, 0x3000), (2 * MIB, 0x1_2345, 0x2_0000)]
    {
        let mut loaded = vec![0xff; memory_size as usize];
        memory
            .read_slice(&mut loaded, GuestAddress(address))
            .unwrap();
        let (data, zero) = loaded.split_at(file_size as usize);
        assert!(
            data.iter()
                .zip(offset..)
                .all(|(byte, at)| *byte == content(at))
        );
        assert!(zero.iter().all(|byte| *byte == 0));
        offset += file_size;
    }
}

#[test]
fn an_elf_file_is_loaded_where_it_is_linked() {
    let memory = memory(SIZE);
    let entry = load_into(&memory, &kernel()).unwrap();
    assert_eq!(entry.address, GuestAddress(MIB + 0x10));
    let zero_page = GuestAddress(0x7000);
    assert_eq!(entry.protocol, Protocol::Linux64 { zero_page });
    assert_loaded(&memory);
    let cmdline: [u8; 6] = memory.read_obj(GuestAddress(0x2_0000)).unwrap();
    assert_eq!(&cmdline, b"quiet\0");
}

#[test]
fn a_bzimage_boots_the_elf_file_inside_however_it_is_packed() {
    for compression in COMPRESSIONS {
        let memory = memory(SIZE);
        let image = bzimage(&pack(&kernel(), compression));
        let entry = load_into(&memory, &image).unwrap();
        assert_eq!(entry.address, GuestAddress(MIB + 0x10), "{compression}");
        assert_loaded(&memory);
        let version: u16 = memory.read_obj(GuestAddress(0x7206)).unwrap();
        assert_eq!(version, 0x20f, "the setup header is handed on");
        assert_eq!(unpack(&image).unwrap(), kernel(), "{compression}");
    }
}

#[test]
fn a_large_payload_is_unpacked_over_many_blocks() {
    let mut large = kernel();
    large.extend((0..20 * MIB).map(|at| content(at / 7)));
    for compression in [Compression::Lz4, Compression::Zstd, Compression::Gzip] {
        let image = bzimage(&pack(&large, compression));
        assert!(unpack(&image).unwrap() == large, "{compression}");
        load_into(&memory(SIZE), &image).unwrap();
    }
}

#[test]
fn an_initrd_is_placed_above_the_kernel() {
    let kernel = TempFile::new(&kernel());
    let content: Vec<u8> = (0..0x1801).map(|at| at as u8).collect();
    let initrd = TempFile::new(&content);
    let source = BootSource {
        kernel: &kernel.0,
        kaslr: false,
        initrd: Some(&initrd.0),
        cmdline: "",
    };
    let memory = memory(SIZE);
    load(&memory, &source, None).unwrap();
    let mut loaded = vec![0; content.len()];
    let address = GuestAddress(SIZE as u64 - 0x2000);
    memory.read_slice(&mut loaded, address).unwrap();
    assert_eq!(loaded, content);
    let image: u32 = memory.read_obj(GuestAddress(0x7218)).unwrap();
    assert_eq!(u64::from(image), address.0);
}

#[test]
fn an_initrd_that_cannot_be_loaded_is_refused_by_its_path() {
    let kernel = TempFile::new(&kernel());
    let large = TempFile::new(&vec![1; SIZE]);
    let empty = TempFile::new(&[]);
    for (path, message) in [
        (large.0.as_path(), "has 4194304 bytes (4 MiB)"),
        (empty.0.as_path(), "is empty"),
        (Path::new("/"), "is not a regular file"),
        (Path::new("/nowhere/initrd"), "cannot be opened"),
    ] {
        let source = BootSource {
            kernel: &kernel.0,
            kaslr: false,
            initrd: Some(path),
            cmdline: "",
        };
        let error = load(&memory(SIZE), &source, None).unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("initrd {}: ", path.display())),
            "{error}"
        );
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn what_is_no_kernel_is_refused_by_its_path() {
    for (path, message) in [
        ("/", "is not a regular file"),
        ("/dev/zero", "is not a regular file"),
        ("/nowhere/vmlinux", "cannot be opened: No such file"),
    ] {
        let source = BootSource {
            kernel: Path::new(path),
            kaslr: false,
            initrd: None,
            cmdline: "",
        };
        let error = load(&memory(SIZE), &source, None).unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("kernel {path}: {message}")),
            "{error}"
        );
    }
    for image in [&b""[..], b"#!", b"#!/bin/sh\nexit 0\n", &[0; 0x300]] {
        let error = refusal(image);
        assert!(
            matches!(error, KernelError::UnknownFormat { size, .. } if size == image.len() as u64),
            "{error}"
        );
        assert!(matches!(
            unpack(image),
            Err(KernelError::UnknownFormat { .. })
        ));
    }
}

#[test]
fn a_truncated_image_is_refused_wherever_it_ends() {
    let image = kernel();
    for length in 4..image.len().min(0x400) {
        let error = refusal(&image[..length]);
        assert!(
            matches!(error, KernelError::Elf(ElfError::Truncated { .. })),
            "{length}: {error}"
        );
    }
    for compression in COMPRESSIONS {
        let image = bzimage(&pack(&kernel(), compression));
        let end = image.len() - 64;
        for length in [0x26c, 0x300, 0x420, end / 2, end - 1] {
            let error = refusal(&image[..length]);
            let truncated = BzImageError::Truncated {
                offset: 0x420,
                length: (end - 0x420) as u32,
                size: length as u64,
            };
            assert!(
                matches!(&error, KernelError::BzImage(e) if *e == truncated),
                "{error}"
            );
        }
    }
}

#[test]
fn a_damaged_payload_is_refused() {
    for compression in [
        Compression::Gzip,
        Compression::Xz,
        Compression::Zstd,
        Compression::Lz4,
    ] {
        let payload = pack(&kernel(), compression);
        let mut image = bzimage(&payload);
        let middle = 0x420 + payload.len() / 2;
        for byte in &mut image[middle..middle + 64] {
            *byte ^= 0x5a;
        }
        // lz4's frame has no checksum: damage shows where it makes no sense, or in the size.
        if compression != Compression::Lz4 {
            let error = refusal(&image);
            assert!(
                matches!(error, KernelError::Unpack(_)),
                "{compression}: {error}"
            );
        }
        assert!(unpack(&image).is_err() || compression == Compression::Lz4);

        // A payload that ends early, or is another one than its size says.
        let mut short = payload[..payload.len() / 2].to_vec();
        short.extend(&payload[payload.len() - 4..]);
        assert!(unpack(&bzimage(&short)).is_err(), "{compression}");
        refusal(&bzimage(&short));
        let mut wrong = payload.clone();
        let at = wrong.len() - 4;
        put(&mut wrong, at, &(kernel().len() as u32 - 1).to_le_bytes());
        assert!(unpack(&bzimage(&wrong)).is_err(), "{compression}");
        let error = refusal(&bzimage(&wrong));
        let found = match error {
            KernelError::Unpack(UnpackError::BeyondEnd { claimed, end }) => end - claimed,
            other => panic!("{compression}: {other}"),
        };
        assert_eq!(found, 1, "{compression}");
    }
}

#[test]
fn what_a_payload_claims_is_bounded() {
    let mut payload = pack(&kernel(), Compression::Lz4);
    let at = payload.len() - 4;
    put(&mut payload, at, &u32::MAX.to_le_bytes());
    let error = unpack(&bzimage(&payload)).unwrap_err();
    assert!(
        matches!(
            error,
            KernelError::Unpack(UnpackError::TooLarge(0xffff_ffff))
        ),
        "{error}"
    );
}

#[test]
fn compressions_are_told_apart_and_unsupported_ones_named() {
    for (payload, message) in [
        (&b"BZh91AY&SY"[..], "compressed with bzip2"),
        (b"\x5d\0\0\x80\0", "compressed with lzma"),
        (b"\x89LZO\0\r\n", "compressed with lzo"),
        (
            b"MZ\x90\0\x03\0\0",
            "begins with 4d 5a 90 00 03 00, which is no known",
        ),
    ] {
        let error = refusal(&bzimage(payload)).to_string();
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn a_bzimage_without_a_64_bit_entry_is_refused() {
    let mut image = bzimage(&pack(&kernel(), Compression::Lz4));
    put(&mut image, 0x236, &[0x3e, 0]);
    let error = refusal(&image).to_string();
    assert!(error.contains("32-bit kernel (xloadflags 0x3e)"), "{error}");
    put(&mut image, 0x206, &[0x0a, 0x02]);
    let error = refusal(&image).to_string();
    assert!(error.contains("boot protocol 2.10"), "{error}");
}

#[test]
fn an_elf_file_of_another_kind_is_refused_by_the_value() {
    for (at, bytes, message) in [
        (4, &[3u8][..], "not a 64-bit ELF file (class 3)"),
        (4, &[1], "without a Multiboot header"),
        (5, &[2], "not a little-endian ELF file (data encoding 2)"),
        (16, &[1, 0], "not an executable ELF file (type 1)"),
        (18, &[0xb7, 0], "not an ELF file for x86-64 (machine 183)"),
        (54, &[32, 0], "program headers of 32 bytes"),
        (56, &[0, 0], "no segment to load"),
        (32, &[0; 8], "program headers at 0x0 to 0x70"),
        (32, &[0xff; 8], "program headers at 0xffffffffffffffff"),
        (64, &[4], "overlapping"),
    ] {
        let mut image = kernel();
        put(&mut image, at, bytes);
        if at == 64 {
            // Not a segment to load any more: the entry point is in none.
            let error = refusal(&image).to_string();
            assert!(
                error.contains("entry point at 0x100010, outside"),
                "{error}"
            );
            continue;
        }
        let error = refusal(&image).to_string();
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn segments_must_be_where_a_kernel_can_be() {
    for (entry, segments, message) in [
        (0, &[(0, 1, 1)][..], "linked to load at 0x0"),
        (0x7000, &[(0x7000, 1, 1)], "linked to load at 0x7000"),
        (
            MIB,
            &[(MIB, 16, 0x2000), (MIB + 0x1fff, 16, 16)],
            "overlapping segments: 0x100000 to 0x102000, and one at 0x101fff",
        ),
        (MIB, &[(MIB, 16, 8)], "segment 0 is malformed"),
        (MIB, &[(u64::MAX, 1, 1)], "segment 0 is malformed"),
        (MIB, &[(MIB, u64::MAX, u64::MAX)], "segment 0 is malformed"),
        (MIB - 1, &[(MIB, 1, 1)], "entry point at 0xfffff, outside"),
        (
            MIB + 16,
            &[(MIB, 16, 16)],
            "entry point at 0x100010, outside",
        ),
        (
            MIB,
            &[(MIB, 1, 3 * MIB + 1)],
            "needs memory up to 0x400001: at least 5 MiB, and the guest has 4 MiB",
        ),
        (MIB, &[(MIB, 16, 1 << 62)], "needs memory up to"),
    ] {
        let error = refusal(&elf(entry, segments)).to_string();
        assert!(error.contains(message), "{error}");
        let packed = bzimage(&pack(&elf(entry, segments), Compression::Lz4));
        let error = refusal(&packed).to_string();
        assert!(error.contains(message), "packed: {error}");
    }
}

#[test]
fn a_guest_of_1_mib_is_told_what_the_kernel_needs() {
    let error = load_into(&memory(1 << 20), &kernel())
        .unwrap_err()
        .to_string();
    assert!(
        error.ends_with(
            "needs memory up to 0x220000: at least 3 MiB, and the guest has 1 MiB there"
        ),
        "{error}"
    );
}

#[test]
fn segments_may_come_in_any_order_and_hold_the_headers() {
    let mut image = kernel();
    // The first segment begins with the file.
    put(&mut image, 64 + 8, &0u64.to_le_bytes());
    put(&mut image, 64 + 32, &0xb0u64.to_le_bytes());
    for image in [image.clone(), bzimage(&pack(&image, Compression::Lz4))] {
        let memory = memory(SIZE);
        load_into(&memory, &image).unwrap();
        let magic: [u8; 4] = memory.read_obj(GuestAddress(MIB)).unwrap();
        assert_eq!(&magic, b"\x7fELF");
    }
    // Now both do: a file can be read twice, a stream cannot.
    put(&mut image, 120 + 8, &0x20u64.to_le_bytes());
    load_into(&memory(SIZE), &image).unwrap();
    let error = refusal(&bzimage(&pack(&image, Compression::Lz4))).to_string();
    assert!(error.contains("share the file's bytes at 0x20"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn no_bytes_make_the_loader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
        let _ = load_into(&memory(SIZE), &bytes);
        let _ = unpack(&bytes);
    }

    #[test]
    fn no_damage_to_an_elf_file_makes_the_loader_panic(
        damage in proptest::collection::vec((0usize..176, any::<u8>()), 1..8),
    ) {
        let mut image = kernel();
        for (at, byte) in damage {
            image[at] = byte;
        }
        let _ = load_into(&memory(SIZE), &image);
        let _ = load_into(&memory(SIZE), &bzimage(&pack(&image, Compression::None)));
    }

    #[test]
    fn no_damage_to_a_bzimage_makes_the_loader_panic(
        which in 0usize..5,
        damage in proptest::collection::vec((0x1f1usize..0x800, any::<u8>()), 1..16),
    ) {
        let mut image = bzimage(&pack(&kernel(), COMPRESSIONS[which]));
        for (at, byte) in damage {
            if let Some(slot) = image.get_mut(at) {
                *slot = byte;
            }
        }
        let _ = load_into(&memory(SIZE), &image);
        let _ = unpack(&image);
    }
}
