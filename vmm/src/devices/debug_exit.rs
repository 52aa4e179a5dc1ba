//! The port by which a guest ends with an exit status of its own, as test programs do.
//!
//! It is QEMU's isa-debug-exit (hw/misc/debugexit.c): a value `v` written to the port ends the machine with `(v << 1) | 1`, which
//! is never the status of an orderly power-off. The port is as wide as the widest access, 4 bytes.

use vm_device::DevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};

use crate::shutdown::{ShutdownReason, ShutdownSender};

/// Ends the guest at the first write. Reads give 0.
pub struct DebugExit(pub ShutdownSender);

impl DevicePio for DebugExit {
    fn pio_read(&self, _: PioAddress, _: PioAddressOffset, data: &mut [u8]) {
        data.fill(0);
    }

    fn pio_write(&self, _: PioAddress, _: PioAddressOffset, data: &[u8]) {
        let bytes = data.iter().rev();
        let value = bytes.fold(0u32, |value, byte| value << 8 | u32::from(*byte));
        self.0.send(ShutdownReason::DebugExit(value << 1 | 1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shutdown::shutdown_channel;

    #[test]
    fn the_value_is_shifted_and_odd_whatever_the_width_of_the_access() {
        for (data, status) in [(&[0u8][..], 1), (&[1, 0], 3), (&[0x10, 1, 0, 0], 0x221)] {
            let (sender, receiver) = shutdown_channel().unwrap();
            DebugExit(sender).pio_write(PioAddress(0xf4), 0, data);
            let reason = receiver.try_receive().unwrap();
            assert!(
                matches!(reason, ShutdownReason::DebugExit(s) if s == status),
                "{reason:?}"
            );
        }
    }
}
