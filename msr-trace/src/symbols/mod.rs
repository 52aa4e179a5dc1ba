//! Which function of the guest's kernel an instruction is in.
//!
//! The names come from the kernel image itself, whose kallsyms tables this module decodes (feature `symbols`: [`Symbols::load`]), or from a
//! System.map, a saved /proc/kallsyms or a vmlinux with its symbol table. A kernel that moves itself (KASLR) moves all of
//! its text by one distance, the *slide*: the guest's `IA32_LSTAR` less the address of `entry_SYSCALL_64`.

#[cfg(feature = "symbols")]
mod kallsyms;
#[cfg(feature = "symbols")]
mod load;
#[cfg(all(test, feature = "symbols"))]
mod tests;
mod text;

use std::fmt;

#[cfg(feature = "symbols")]
pub use load::{LoadError, build_id};

/// What `IA32_LSTAR` points to in Linux.
pub const SYSCALL_ENTRY: &str = "entry_SYSCALL_64";

/// The lowest address of Linux's kernel half (Documentation/arch/x86/x86_64/mm.rst).
const KERNEL_HALF: u64 = 1 << 63;
/// Where Linux maps its text, and from which address on its modules (mm.rst); with KASLR the text takes 1 GiB.
const TEXT: u64 = 0xffff_ffff_8000_0000;
const MODULES: u64 = 0xffff_ffff_a000_0000;
const MODULES_WITH_KASLR: u64 = 0xffff_ffff_c000_0000;

/// A symbol of a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Symbol {
    /// Its address, as the table has it.
    pub address: u64,
    /// Its type letter, as nm has them: `t` and `T` are text.
    pub kind: u8,
    /// Its name.
    pub name: Box<str>,
    /// The module that it belongs to, where a saved /proc/kallsyms says so.
    pub module: Option<Box<str>>,
}

/// The functions of a kernel, by address.
#[derive(Clone, Debug, Default)]
pub struct Symbols {
    /// By address, of equal ones in the order of the table: /proc/kallsyms' first is the kernel's own choice.
    functions: Vec<Symbol>,
    /// The end of the text that the table speaks of.
    end: u64,
    entry: Option<u64>,
    slide: u64,
}

/// What is known of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place<'a> {
    /// In a function of the kernel.
    Function {
        /// Its name.
        name: &'a str,
        /// The distance from its start, in bytes.
        offset: u64,
        /// The module that it is in.
        module: Option<&'a str>,
    },
    /// Where modules are, and no table names it.
    Module(u64),
    /// In a process.
    User(u64),
    /// In the kernel's half, and no table names it.
    Unknown(u64),
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Function {
                name,
                offset,
                module,
            } => {
                write!(f, "{name}+{offset:#x}")?;
                module.map_or(Ok(()), |module| write!(f, " [{module}]"))
            }
            Self::Module(address) => write!(f, "{address:#x} (in a module)"),
            Self::User(address) => write!(f, "{address:#x} (in userspace)"),
            Self::Unknown(address) => write!(f, "{address:#x}"),
        }
    }
}

impl Place<'_> {
    /// What is known of an address without any table.
    pub fn without_symbols(address: u64) -> Place<'static> {
        if address < KERNEL_HALF {
            // The kernel runs low before it has made its page tables.
            if address < 1 << 32 {
                Place::Unknown(address)
            } else {
                Place::User(address)
            }
        } else {
            Place::Unknown(address)
        }
    }
}

impl Symbols {
    /// The functions among these symbols.
    pub fn new(symbols: impl IntoIterator<Item = Symbol>) -> Self {
        let mut functions = Vec::new();
        let mut end = 0;
        let mut entry = None;
        for symbol in symbols {
            if !matches!(symbol.kind, b't' | b'T' | b'w' | b'W') || symbol.address < KERNEL_HALF {
                continue;
            }
            if symbol.module.is_none() && matches!(&*symbol.name, "_etext" | "_einittext") {
                end = end.max(symbol.address);
                continue;
            }
            if &*symbol.name == SYSCALL_ENTRY {
                entry = Some(symbol.address);
            }
            functions.push(symbol);
        }
        functions.sort_by_key(|symbol| symbol.address);
        let last = functions
            .iter()
            .rev()
            .find(|symbol| symbol.module.is_none());
        Self {
            // A table without those marks ends with its last function, whose size is not known.
            end: end.max(last.map_or(0, |symbol| symbol.address.saturating_add(0x1000))),
            functions,
            entry,
            slide: 0,
        }
    }

    /// Lines of a System.map or of /proc/kallsyms. Lines that are not of that form are skipped.
    pub fn from_text(text: &str) -> Self {
        Self::new(text::symbols(text))
    }

    /// How many functions there are.
    pub fn len(&self) -> usize {
        self.functions.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.functions.is_empty()
    }

    /// The functions, by address.
    pub fn functions(&self) -> &[Symbol] {
        &self.functions
    }

    /// The address of [`SYSCALL_ENTRY`] in the table.
    pub fn syscall_entry(&self) -> Option<u64> {
        self.entry
    }

    /// How far the guest's kernel has moved from the table's addresses.
    pub fn slide(&self) -> u64 {
        self.slide
    }

    /// Takes the guest's `IA32_LSTAR` for the address of [`SYSCALL_ENTRY`]. `false`, and nothing is changed, where the table has no such
    /// symbol or the distance is none that KASLR makes: a multiple of 2 MiB (`CONFIG_PHYSICAL_ALIGN`), less than 1 GiB.
    pub fn set_lstar(&mut self, lstar: u64) -> bool {
        let Some(slide) = self.entry.map(|entry| lstar.wrapping_sub(entry)) else {
            return false;
        };
        let plausible = slide.is_multiple_of(2 << 20) && slide < 1 << 30;
        if plausible {
            self.slide = slide;
        }
        plausible
    }

    /// What is known of an address in the guest.
    pub fn place(&self, address: u64) -> Place<'_> {
        if address < KERNEL_HALF {
            // Before Linux has switched to its own page tables it runs at its physical address. With KASLR that is a random
            // one of its own, which nothing tells.
            return self
                .low_text(address)
                .unwrap_or_else(|| Place::without_symbols(address));
        }
        self.function(address.wrapping_sub(self.slide)).unwrap_or({
            let modules = if self.slide == 0 {
                MODULES
            } else {
                MODULES_WITH_KASLR
            };
            if address >= modules {
                Place::Module(address)
            } else {
                Place::Unknown(address)
            }
        })
    }

    /// The name of the function at an address in the guest.
    pub fn function_name(&self, address: u64) -> Option<&str> {
        match self.place(address) {
            Place::Function { name, .. } => Some(name),
            _ => None,
        }
    }

    fn low_text(&self, address: u64) -> Option<Place<'_>> {
        let first = self.functions.first()?.address;
        let linked = address.checked_add(TEXT)?;
        (self.slide == 0 && address < 1 << 30 && linked >= first).then(|| self.function(linked))?
    }

    fn function(&self, linked: u64) -> Option<Place<'_>> {
        let after = self
            .functions
            .partition_point(|symbol| symbol.address <= linked);
        let nearest = &self.functions[after.checked_sub(1)?];
        // The first of those that share the address.
        let first = self
            .functions
            .partition_point(|symbol| symbol.address < nearest.address);
        let symbol = &self.functions[first];
        if symbol.module.is_none() && linked >= self.end {
            return None;
        }
        Some(Place::Function {
            name: &symbol.name,
            offset: linked - symbol.address,
            module: symbol.module.as_deref(),
        })
    }
}
