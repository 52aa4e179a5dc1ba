//! Whether a snapshot's memory is what was written.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::unistd::{Whence, lseek};

use super::image::{ZEROS, checksum};
use super::mapping::open;
use super::pages::PAGE;
use crate::config::VmConfig;
use crate::memory::ranges;
use crate::snapshot::RestoreError;

/// What is read at once, in bytes.
const PIECE: u64 = 1 << 20;
/// The most places that are named.
const MOST: usize = 8;

/// The runs of a file's bytes in `range` that are in no hole. A file system that knows no holes has one run.
pub(super) fn data_runs(
    file: &File,
    range: Range<u64>,
) -> impl Iterator<Item = io::Result<Range<u64>>> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        let found = next_run(file, at, range.end).transpose()?;
        at = found.as_ref().map_or(range.end, |run| run.end);
        Some(found)
    })
}

fn next_run(file: &File, at: u64, end: u64) -> io::Result<Option<Range<u64>>> {
    if at >= end {
        return Ok(None);
    }
    match seek(file, at, Whence::SeekData) {
        Ok(start) if start >= end => Ok(None),
        Ok(start) => Ok(Some(start..seek(file, start, Whence::SeekHole)?.min(end))),
        // Nothing but a hole is left (lseek(2)).
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
        Err(error) => Err(error),
    }
}

fn seek(file: &File, at: u64, whence: Whence) -> io::Result<u64> {
    // What succeeds is not negative.
    Ok(lseek(file, at.cast_signed(), whence)?.cast_unsigned())
}

/// Reads the memory of `config` from the file at `path`, and compares it with the checksums at `checksums`, a file whose own
/// is `crc32`. What is in holes is zero and is not read.
pub(in crate::snapshot) fn verify(
    config: &VmConfig,
    path: &Path,
    checksums: &Path,
    crc32: u32,
) -> Result<(), RestoreError> {
    let read = |path: &Path| {
        let path = path.to_owned();
        move |source| RestoreError::Read { path, source }
    };
    let size = config.memory.0;
    let file = open(path, size)?;
    let table = open(checksums, size.div_ceil(PAGE) * 4)?;
    let mut found_crc32 = crc32fast::Hasher::new();
    let mut damage = Damage::default();
    let mut run = next_run(&file, 0, size).map_err(read(path))?;
    let mut piece = vec![0; PIECE as usize];
    let mut sums = vec![0; (PIECE / PAGE) as usize * 4];
    let mut at = 0;
    while at < size {
        let length = (size - at).min(PIECE);
        let sums = &mut sums[..length.div_ceil(PAGE) as usize * 4];
        table
            .read_exact_at(sums, at / PAGE * 4)
            .map_err(read(checksums))?;
        found_crc32.update(sums);
        while let Some(before) = run.as_ref().filter(|run| run.end <= at) {
            run = next_run(&file, before.end, size).map_err(read(path))?;
        }
        let piece = &mut piece[..length as usize];
        if run.as_ref().is_some_and(|run| run.start < at + length) {
            file.read_exact_at(piece, at).map_err(read(path))?;
        } else {
            piece.fill(0);
        }
        let pages = piece.chunks(PAGE as usize).zip(sums.as_chunks::<4>().0);
        for (page, (data, sum)) in (at / PAGE..).zip(pages) {
            let found = if *data == ZEROS[..data.len()] {
                0
            } else {
                checksum(data)
            };
            if found != u32::from_le_bytes(*sum) {
                damage.add(page);
            }
        }
        at += length;
    }
    let found = found_crc32.finalize();
    if found != crc32 {
        return Err(RestoreError::Checksum {
            path: checksums.to_owned(),
            found,
            expected: crc32,
        });
    }
    if damage.pages == 0 {
        return Ok(());
    }
    Err(RestoreError::Memory {
        path: path.to_owned(),
        pages: damage.pages,
        places: damage.places(config),
    })
}

/// Damaged pages of the file, told in its order.
#[derive(Default)]
struct Damage {
    pages: u64,
    /// The first runs of adjacent pages.
    runs: Vec<Range<u64>>,
    more: bool,
}

impl Damage {
    fn add(&mut self, page: u64) {
        self.pages += 1;
        let last = self.runs.last_mut().filter(|run| run.end == page);
        if let (Some(run), false) = (last, self.more) {
            run.end += 1;
        } else if self.runs.len() == MOST {
            self.more = true;
        } else {
            self.runs.push(page..page + 1);
        }
    }

    /// Where the guest has them.
    fn places(&self, config: &VmConfig) -> Vec<String> {
        let address = |page: u64| {
            let mut at = page * PAGE;
            for (start, length) in ranges(config.memory) {
                if at < length {
                    return start + at;
                }
                at -= length;
            }
            at
        };
        let place = |run: &Range<u64>| {
            format!(
                "{:#x}-{:#x}",
                address(run.start),
                address(run.end - 1) + PAGE - 1
            )
        };
        let mut places: Vec<String> = self.runs.iter().map(place).collect();
        if self.more {
            places.push("and more".into());
        }
        places
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::snapshot::memory::{Image, Pages};

    #[test]
    fn a_flipped_bit_a_filled_hole_and_a_hole_where_data_was_are_found_and_named() {
        let config = VmConfig {
            memory: "4M".parse().unwrap(),
            ..VmConfig::default()
        };
        let folder = std::env::temp_dir().join(format!("snapshot.verify.{}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        let [path, sums] = ["memory", "checksums"].map(|name| folder.join(name));
        let memory = crate::memory::map(&config).unwrap();
        for page in [0, 1, 2, 700] {
            memory
                .write_obj(7u8, GuestAddress(page * PAGE + 9))
                .unwrap();
        }
        let mut image = Image::new(File::create_new(&path).unwrap(), &memory).unwrap();
        let mut all = Pages::none_of(1024);
        all.insert_range(0..1024);
        image.put_still(&memory, 0, &all).unwrap();
        let (file, table) = image.finish();
        std::fs::write(&sums, &table).unwrap();
        let crc32 = crc32fast::hash(&table);
        let verify = |crc32| verify(&config, &path, &sums, crc32);
        verify(crc32).unwrap();
        let places = || match verify(crc32) {
            Err(RestoreError::Memory { pages, places, .. }) => (pages, places.join(", ")),
            other => panic!("{other:?}"),
        };

        file.write_all_at(&[6], PAGE + 9).unwrap();
        assert_eq!(places(), (1, "0x1000-0x1fff".to_owned()));
        file.write_all_at(&[7], PAGE + 9).unwrap();
        file.write_all_at(&[1], 300 * PAGE).unwrap();
        assert_eq!(places(), (1, "0x12c000-0x12cfff".to_owned()));
        file.write_all_at(&[0], 300 * PAGE).unwrap();
        verify(crc32).unwrap();
        // Cut and lengthened again, it ends in a hole.
        file.set_len(PAGE).unwrap();
        file.set_len(4 << 20).unwrap();
        assert_eq!(places(), (3, "0x1000-0x2fff, 0x2bc000-0x2bcfff".to_owned()));

        let checksum = verify(crc32 ^ 1).unwrap_err();
        assert!(matches!(&checksum, RestoreError::Checksum { path, .. } if *path == sums));
        file.set_len(PAGE).unwrap();
        assert!(matches!(verify(crc32), Err(RestoreError::Size { .. })));
        std::fs::remove_file(&sums).unwrap();
        file.set_len(4 << 20).unwrap();
        assert!(matches!(verify(crc32), Err(RestoreError::Read { .. })));
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn damage_is_told_by_address_and_not_without_end() {
        let config = VmConfig {
            memory: "4G".parse().unwrap(),
            ..VmConfig::default()
        };
        let mut damage = Damage::default();
        [0, 1, 2, 7, 0xb_ffff, 0xc_0000]
            .into_iter()
            .for_each(|page| damage.add(page));
        assert_eq!(damage.pages, 6);
        assert_eq!(
            damage.places(&config),
            ["0x0-0x2fff", "0x7000-0x7fff", "0xbffff000-0x100000fff"]
        );
        (1..20).for_each(|n| damage.add(0xc_0000 + 2 * n));
        assert_eq!((damage.pages, damage.places(&config).len()), (25, MOST + 1));
    }
}
