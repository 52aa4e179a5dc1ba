use crate::layout::{VIRTIO_IRQS, VIRTIO_MMIO, VIRTIO_MMIO_SIZE};

/// Where a virtio-mmio device is in the machine: what the ACPI tables say of it and KVM is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The slot's number, from 0.
    pub index: usize,
    /// The guest physical address of the device's registers.
    pub base: u64,
    /// The size of the device's registers in bytes.
    pub size: u64,
    /// The global system interrupt, edge-triggered and active high.
    pub gsi: u32,
}

impl Slot {
    /// How many slots the machine has.
    pub const COUNT: usize = VIRTIO_IRQS.len();

    /// The slot with number `index`, or `None` if the machine has no such slot.
    pub fn new(index: usize) -> Option<Self> {
        let gsi = *VIRTIO_IRQS.get(index)?;
        Some(Self {
            index,
            base: VIRTIO_MMIO + index as u64 * VIRTIO_MMIO_SIZE,
            size: VIRTIO_MMIO_SIZE,
            gsi,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_disjoint_and_within_the_mmio_hole() {
        let slots: Vec<Slot> = (0..Slot::COUNT).map_while(Slot::new).collect();
        assert_eq!(slots.len(), Slot::COUNT);
        for pair in slots.windows(2) {
            assert_eq!(pair[0].base + pair[0].size, pair[1].base);
            assert_ne!(pair[0].gsi, pair[1].gsi);
        }
        assert!(slots[0].base >= crate::layout::MMIO_HOLE);
        assert!(slots[Slot::COUNT - 1].base < u64::from(crate::layout::IO_APIC));
    }

    #[test]
    fn there_is_no_slot_beyond_the_last() {
        assert_eq!(Slot::new(Slot::COUNT), None);
    }
}
