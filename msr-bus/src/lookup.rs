//! From an index to the device that claims it, at a cost that does not grow with the claims.
//!
//! MSRs come in dense windows (0-0x1fff, 0xc0000000-0xc0001fff and so on), so the index space is cut into
//! pages of 32: a small hash table finds the page, and an array in it, one cache line, finds the owner. A
//! claim that spans many pages would fill memory that way; those are kept aside in order, and searched by
//! halves only where the pages know no owner.

use crate::MsrRange;

/// The place of an owner in the list the table was built from.
pub(crate) type Owner = u16;

const NONE: Owner = Owner::MAX;
const PAGE_BITS: u32 = 5;
const PAGE_LEN: usize = 1 << PAGE_BITS;
/// A page number no index has.
const FREE: u32 = u32::MAX;
/// Claims of more indices than this are kept aside, so that a claim costs memory for three pages at most however
/// much it spans.
const WIDE: u64 = 2 * PAGE_LEN as u64;

#[derive(Debug)]
pub(crate) struct Lookup {
    /// Open addressing with linear probing, at most half full: (page number, place in `pages`).
    directory: Box<[(u32, u32)]>,
    shift: u32,
    pages: Box<[[Owner; PAGE_LEN]]>,
    /// Claims wider than `WIDE`, ascending.
    wide: Box<[(MsrRange, Owner)]>,
}

impl Lookup {
    /// Builds the table from disjoint claims, in ascending order. Owners are below `Owner::MAX`.
    pub(crate) fn new(claims: &[(MsrRange, Owner)]) -> Self {
        let (wide, narrow): (Vec<_>, Vec<_>) = claims
            .iter()
            .copied()
            .partition(|(range, _)| range.len() > WIDE);
        let mut pages: Vec<(u32, [Owner; PAGE_LEN])> = Vec::new();
        for (range, owner) in narrow {
            for index in range.first()..=range.last() {
                let number = index >> PAGE_BITS;
                if pages.last().is_none_or(|(last, _)| *last != number) {
                    pages.push((number, [NONE; PAGE_LEN]));
                }
                let (_, page) = pages.last_mut().expect("just pushed where there was none");
                page[index as usize % PAGE_LEN] = owner;
            }
        }
        let slots = (pages.len() * 2).next_power_of_two().max(2);
        let shift = u32::BITS - slots.trailing_zeros();
        let mut directory = vec![(FREE, 0); slots].into_boxed_slice();
        for (place, (number, _)) in pages.iter().enumerate() {
            let mut slot = hash(*number, shift);
            while directory[slot].0 != FREE {
                slot = (slot + 1) & (slots - 1);
            }
            directory[slot] = (*number, place as u32);
        }
        let pages = pages.into_iter().map(|(_, page)| page).collect();
        Self {
            directory,
            shift,
            pages,
            wide: wide.into_boxed_slice(),
        }
    }

    /// The owner of `index`, if it has one.
    #[inline]
    pub(crate) fn owner(&self, index: u32) -> Option<Owner> {
        let number = index >> PAGE_BITS;
        let mut slot = hash(number, self.shift);
        loop {
            let (found, place) = self.directory[slot];
            if found == number {
                let owner = self.pages[place as usize][index as usize % PAGE_LEN];
                if owner != NONE {
                    return Some(owner);
                }
                break;
            }
            if found == FREE {
                break;
            }
            slot = (slot + 1) & (self.directory.len() - 1);
        }
        self.wide_owner(index)
    }

    fn wide_owner(&self, index: u32) -> Option<Owner> {
        let after = self
            .wide
            .partition_point(|(range, _)| range.first() <= index);
        let (range, owner) = self.wide[..after].last()?;
        range.contains(index).then_some(*owner)
    }
}

/// Multiplicative hashing (Knuth, TAOCP vol. 3, 6.4): the top bits of a product with 2^32 over the golden ratio.
#[inline]
fn hash(number: u32, shift: u32) -> usize {
    (number.wrapping_mul(0x9e37_79b1) >> shift) as usize
}

#[cfg(test)]
mod tests;
