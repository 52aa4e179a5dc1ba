//! Writer of cpio archives in the "newc" format, which Linux unpacks as its initramfs
//! (Documentation/driver-api/early-userspace/buffer-format.rst).

use std::collections::BTreeSet;

/// An initramfs under construction.
///
/// Parent directories of what is added are made as needed. Everything belongs to root and carries
/// the time 0, so that equal contents give equal archives.
///
/// ```
/// use guest_tests::nested::cpio::Archive;
///
/// let mut archive = Archive::new();
/// archive.file("/etc/motd", 0o644, b"hello\n").symlink("/motd", "etc/motd");
/// let bytes = archive.finish();
/// assert!(bytes.starts_with(b"070701"));
/// assert_eq!(bytes.len() % 512, 0);
/// ```
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    inodes: u32,
    directories: BTreeSet<String>,
}

const REGULAR: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

impl Archive {
    /// An empty archive.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a regular file; `mode` holds the permission bits.
    pub fn file(&mut self, path: &str, mode: u32, contents: &[u8]) -> &mut Self {
        self.parents(path);
        self.entry(path, REGULAR | mode, (0, 0), contents);
        self
    }

    /// Adds a directory, if it is not there already.
    pub fn directory(&mut self, path: &str) -> &mut Self {
        let path = path.trim_matches('/');
        if !path.is_empty() && !self.directories.contains(path) {
            self.parents(path);
            self.entry(path, DIRECTORY | 0o755, (0, 0), &[]);
            self.directories.insert(path.to_owned());
        }
        self
    }

    /// Adds a symbolic link at `path` to `target`.
    pub fn symlink(&mut self, path: &str, target: &str) -> &mut Self {
        self.parents(path);
        self.entry(path, SYMLINK | 0o777, (0, 0), target.as_bytes());
        self
    }

    /// Adds a character device node.
    pub fn character_device(&mut self, path: &str, mode: u32, major: u32, minor: u32) -> &mut Self {
        self.parents(path);
        self.entry(path, CHARACTER_DEVICE | mode, (major, minor), &[]);
        self
    }

    /// Whether nothing was added yet.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The complete archive. Its length is a multiple of 512, so that another archive may follow
    /// it.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        pad(&mut self.bytes, 512);
        self.bytes
    }

    fn parents(&mut self, path: &str) {
        if let Some((parent, _)) = path.trim_matches('/').rsplit_once('/') {
            self.directory(parent);
        }
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), contents: &[u8]) {
        let name = path.trim_matches('/');
        // The format has 32-bit sizes; what tests pack is a thousandth of that.
        let size = u32::try_from(contents.len()).expect("a file in an initramfs is under 4 GiB");
        let name_size = name.len() + 1;
        self.inodes += 1;
        let (uid, gid, links, time) = (0, 0, 1, 0);
        let (file_major, file_minor, check) = (0, 0, 0);
        let fields = [
            self.inodes,
            mode,
            uid,
            gid,
            links,
            time,
            size,
            file_major,
            file_minor,
            device.0,
            device.1,
            name_size as u32,
            check,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        pad(&mut self.bytes, 4);
        self.bytes.extend_from_slice(contents);
        pad(&mut self.bytes, 4);
    }
}

fn pad(bytes: &mut Vec<u8>, alignment: usize) {
    bytes.resize(bytes.len().next_multiple_of(alignment), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Name, mode, device and contents.
    type Entry = (String, u32, (u32, u32), Vec<u8>);

    /// The entries of an archive, by the format's own rules.
    fn entries(mut bytes: &[u8]) -> Vec<Entry> {
        let mut entries = Vec::new();
        loop {
            assert_eq!(&bytes[..6], b"070701");
            let field = |n: usize| {
                let text = std::str::from_utf8(&bytes[6 + 8 * n..14 + 8 * n]).unwrap();
                u32::from_str_radix(text, 16).unwrap()
            };
            let (mode, size, name_size) = (field(1), field(6) as usize, field(11) as usize);
            let device = (field(9), field(10));
            let name = String::from_utf8(bytes[110..110 + name_size - 1].to_vec()).unwrap();
            assert_eq!(bytes[110 + name_size - 1], 0);
            if name == "TRAILER!!!" {
                return entries;
            }
            let start = (110 + name_size).next_multiple_of(4);
            entries.push((name, mode, device, bytes[start..start + size].to_vec()));
            bytes = &bytes[(start + size).next_multiple_of(4)..];
        }
    }

    #[test]
    fn entries_of_every_kind_read_back() {
        let mut archive = Archive::new();
        archive
            .file("/a", 0o755, b"12345")
            .symlink("/b", "a")
            .character_device("/console", 0o600, 5, 1)
            .directory("/empty");
        assert_eq!(
            entries(&archive.finish()),
            [
                ("a".to_owned(), 0o100_755, (0, 0), b"12345".to_vec()),
                ("b".to_owned(), 0o120_777, (0, 0), b"a".to_vec()),
                ("console".to_owned(), 0o020_600, (5, 1), vec![]),
                ("empty".to_owned(), 0o040_755, (0, 0), vec![]),
            ]
        );
    }

    #[test]
    fn parent_directories_come_first_and_once() {
        let mut archive = Archive::new();
        archive
            .file("/x/y/one", 0o644, b"")
            .file("/x/y/two", 0o644, b"")
            .directory("/x");
        let names: Vec<_> = entries(&archive.finish())
            .into_iter()
            .map(|e| e.0)
            .collect();
        assert_eq!(names, ["x", "x/y", "x/y/one", "x/y/two"]);
    }
}
