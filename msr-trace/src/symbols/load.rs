//! Symbols from files of any of the kinds, told apart by their contents.

use object::{Object, ObjectSymbol, SymbolKind};

use super::{Symbol, Symbols, kallsyms};

/// Why a file has no symbols.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// It is an ELF file with neither.
    #[error(
        "is an ELF file with neither a symbol table nor kallsyms tables: was the kernel built with CONFIG_KALLSYMS?"
    )]
    NoTables,
    /// It is an ELF file that cannot be read.
    #[error("is an ELF file that cannot be read: {0}")]
    Elf(#[from] object::Error),
    /// It is no file of symbols.
    #[error("is neither an ELF file nor a System.map nor a saved /proc/kallsyms")]
    NotSymbols,
    /// All its addresses are 0.
    #[error(
        "has no addresses: /proc/kallsyms shows them to root only, and as kernel.kptr_restrict allows"
    )]
    Restricted,
}

impl Symbols {
    /// Symbols of a vmlinux (its symbol table, or else its kallsyms tables), a System.map, or a saved
    /// /proc/kallsyms. A bzImage is to be unpacked first.
    ///
    /// # Errors
    ///
    /// [`LoadError`].
    pub fn load(bytes: &[u8]) -> Result<Self, LoadError> {
        if bytes.starts_with(b"\x7fELF") {
            return Self::from_elf(bytes);
        }
        let text = String::from_utf8_lossy(bytes);
        let symbols = Self::from_text(&text);
        if !symbols.is_empty() {
            return Ok(symbols);
        }
        Err(
            if text
                .lines()
                .any(|line| line.starts_with("0000000000000000 "))
            {
                LoadError::Restricted
            } else {
                LoadError::NotSymbols
            },
        )
    }

    fn from_elf(bytes: &[u8]) -> Result<Self, LoadError> {
        let file = object::File::parse(bytes)?;
        let table = file.symbols().filter_map(|symbol| {
            Some(Symbol {
                address: symbol.address(),
                kind: if symbol.kind() == SymbolKind::Text || symbol.kind() == SymbolKind::Label {
                    b't'
                } else {
                    b'?'
                },
                name: symbol.name().ok()?.into(),
                module: None,
            })
        });
        let symbols = Self::new(table);
        if !symbols.is_empty() {
            return Ok(symbols);
        }
        let symbols = kallsyms::decode(bytes).ok_or(LoadError::NoTables)?;
        Ok(Self::new(symbols))
    }
}

/// The GNU build ID of an ELF file, in hexadecimal digits.
pub fn build_id(bytes: &[u8]) -> Option<String> {
    let file = object::File::parse(bytes).ok()?;
    let id = file.build_id().ok()??;
    Some(id.iter().map(|byte| format!("{byte:02x}")).collect())
}
