//! The symbols that go with a trace.

use std::fs;
use std::path::Path;

use msr_trace::Header;
use msr_trace::symbols::{LoadError, Symbols, build_id};

use super::SymbolArgs;
use crate::boot;
use crate::cli::Failure;

/// The symbols for a trace, from the file that was asked for, or else from the kernel that the trace names if it is
/// still the same. Without either there are none, which is said on standard error.
pub(super) fn load(
    args: &SymbolArgs,
    header: &Header,
    lstar: Option<u64>,
) -> Result<Option<Symbols>, Failure> {
    let symbols = match &args.symbols {
        Some(path) => Some(from_file(path)?.0),
        None => of_header(header),
    };
    Ok(symbols.map(|mut symbols| {
        match lstar {
            Some(lstar) if !symbols.set_lstar(lstar) => log::warn!(
                "IA32_LSTAR {lstar:#x} is not entry_SYSCALL_64 of these symbols, moved as KASLR does: functions are named without it"
            ),
            _ => {}
        }
        symbols
    }))
}

fn of_header(header: &Header) -> Option<Symbols> {
    let kernel = &header.kernel;
    if kernel.path.is_empty() || !header.with_rip {
        return None;
    }
    let path = Path::new(&kernel.path);
    match from_file(path) {
        Ok((symbols, id)) if id == kernel.build_id => Some(symbols),
        Ok((_, id)) => {
            let now = id.as_deref().unwrap_or("none");
            log::warn!(
                "{} is another kernel now (build ID {now}): functions have no names; --symbols FILE gives them",
                path.display()
            );
            None
        }
        Err(_) => {
            log::warn!(
                "functions have no names: {} has no symbols or is gone; --symbols FILE gives them",
                path.display()
            );
            None
        }
    }
}

/// The symbols in a file, and the build ID of a kernel image.
fn from_file(path: &Path) -> Result<(Symbols, Option<String>), Failure> {
    let failure = |error: &dyn std::fmt::Display| {
        Failure::usage(format!("symbols {}: {error}", path.display()))
    };
    let bytes = fs::read(path).map_err(|error| failure(&error))?;
    match Symbols::load(&bytes) {
        Ok(symbols) => Ok((symbols, build_id(&bytes))),
        // A bzImage is neither.
        Err(LoadError::NotSymbols) => {
            let Ok(elf) = boot::unpack(&bytes) else {
                return Err(failure(&LoadError::NotSymbols));
            };
            let symbols = Symbols::load(&elf).map_err(|error| failure(&error))?;
            Ok((symbols, build_id(&elf)))
        }
        Err(error) => Err(failure(&error)),
    }
}
