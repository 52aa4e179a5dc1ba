//! The kernel's command line: a kernel cuts off what is too long, so it is refused here instead.

use super::kernel::Kernel;
use crate::layout;
use crate::memory::GuestMemoryMmap;

/// What an x86 kernel takes that does not say otherwise: `COMMAND_LINE_SIZE` without the final NUL
/// (arch/x86/include/asm/setup.h).
pub(super) const LENGTH_MAX: usize = 2047;

/// Why a kernel cannot take a command line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CmdlineError {
    /// It is too long.
    #[error("it has {length} bytes, and this kernel takes at most {max}")]
    TooLong {
        /// Its length, in bytes.
        length: usize,
        /// The most that the kernel takes, in bytes.
        max: usize,
    },
    /// It contains a NUL, where the kernel would see its end.
    #[error("it has a NUL character at byte {at}")]
    Nul {
        /// Where the first one is.
        at: usize,
    },
}

/// Checks that `kernel` can take `cmdline`.
pub(super) fn check(cmdline: &str, kernel: &Kernel) -> Result<(), CmdlineError> {
    let declared = kernel.header.map(|header| header.cmdline_size as usize);
    check_length(cmdline, declared)
}

/// Writes `cmdline`, which has been checked, to [`layout::CMDLINE`].
pub(super) fn write(memory: &GuestMemoryMmap, cmdline: &str) -> Result<(), super::BootError> {
    let mut bytes = Vec::with_capacity(cmdline.len() + 1);
    bytes.extend_from_slice(cmdline.as_bytes());
    bytes.push(0);
    super::write(memory, &bytes, layout::CMDLINE)
}

fn check_length(cmdline: &str, declared: Option<usize>) -> Result<(), CmdlineError> {
    let max = declared
        .filter(|size| *size != 0)
        .unwrap_or(LENGTH_MAX)
        .min(layout::CMDLINE_MAX - 1);
    if cmdline.len() > max {
        return Err(CmdlineError::TooLong {
            length: cmdline.len(),
            max,
        });
    }
    match cmdline.bytes().position(|byte| byte == 0) {
        Some(at) => Err(CmdlineError::Nul { at }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_own_limit_counts_and_ours_beyond_it() {
        for (declared, max) in [
            (None, 2047),
            (Some(0), 2047),
            (Some(255), 255),
            (Some(usize::MAX), layout::CMDLINE_MAX - 1),
        ] {
            assert_eq!(check_length(&"x".repeat(max), declared), Ok(()));
            let length = max + 1;
            assert_eq!(
                check_length(&"x".repeat(length), declared),
                Err(CmdlineError::TooLong { length, max })
            );
        }
    }

    #[test]
    fn a_nul_is_refused() {
        assert_eq!(
            check_length("quiet\0 ro", None),
            Err(CmdlineError::Nul { at: 5 })
        );
    }
}
