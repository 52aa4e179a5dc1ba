//! Which rule decides what: the rules laid over the index space, the first on top.

use alloc::{vec, vec::Vec};

use crate::{Access, FilterSpec};

/// Consecutive MSRs that the same rules decide. A cell ends where the next one starts, the last one
/// with the index space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cell {
    /// The lowest index of the cell.
    pub(crate) first: u32,
    read: u32,
    write: u32,
}

/// Stands for the default among rule numbers.
const DEFAULT: u32 = u32::MAX;

impl Cell {
    /// The number of the rule that decides `access` (one kind), or `None` for the default.
    pub(crate) fn owner(&self, access: Access) -> Option<usize> {
        let owner = if access == Access::READ {
            self.read
        } else {
            self.write
        };
        (owner != DEFAULT).then_some(owner as usize)
    }
}

/// The cells of `spec`, from index 0 up, covering every index.
///
/// O(n log n) in the number of rules: the rules' edges are sorted once, and then each rule in turn
/// takes the cells within its range that nobody has yet, skipping taken ones by a union-find.
pub(crate) fn resolve(spec: &FilterSpec) -> Vec<Cell> {
    let rules = &spec.rules;
    assert!(
        rules.len() < 1 << 31,
        "rules are numbered by 31 bits: 2^31 of them take 40 GiB"
    );
    let mut edges: Vec<u64> = Vec::with_capacity(2 * rules.len());
    for (rule, number) in rules.iter().zip(0u64..) {
        edges.push(u64::from(rule.range.first()) << 32 | number << 1);
        if let Some(end) = rule.range.last().checked_add(1) {
            edges.push(u64::from(end) << 32 | number << 1 | 1);
        }
    }
    edges.sort_unstable();

    // The first index of each cell, and for each rule its first cell and the one past its last.
    let mut firsts = vec![0u32];
    let mut bounds = vec![[0u32, DEFAULT]; rules.len()];
    for edge in edges {
        let index = (edge >> 32) as u32;
        if firsts.last() != Some(&index) {
            firsts.push(index);
        }
        let (rule, side) = ((edge as u32 >> 1) as usize, (edge & 1) as usize);
        bounds[rule][side] = firsts.len() as u32 - 1;
    }

    let mut read = Layer::new(firsts.len());
    let mut write = Layer::new(firsts.len());
    for ((rule, [from, to]), number) in rules.iter().zip(bounds).zip(0u32..) {
        let to = to.min(firsts.len() as u32);
        if rule.access.contains(Access::READ) {
            read.take(from, to, number);
        }
        if rule.access.contains(Access::WRITE) {
            write.take(from, to, number);
        }
    }
    let owners = read.owners.into_iter().zip(write.owners);
    let cells = firsts.into_iter().zip(owners);
    cells
        .map(|(first, (read, write))| Cell { first, read, write })
        .collect()
}

/// The owners of the cells for one kind of access.
struct Layer {
    owners: Vec<u32>,
    /// For a taken cell, a later one that is nearer to the next free cell; a free cell itself.
    next: Vec<u32>,
}

impl Layer {
    fn new(cells: usize) -> Self {
        Self {
            owners: vec![DEFAULT; cells],
            next: (0..=cells as u32).collect(),
        }
    }

    /// Gives `owner` the free cells among `from..to`.
    fn take(&mut self, from: u32, to: u32, owner: u32) {
        let mut cell = self.free_from(from);
        while cell < to {
            self.owners[cell as usize] = owner;
            self.next[cell as usize] = cell + 1;
            cell = self.free_from(cell + 1);
        }
    }

    /// The first free cell from `cell` on, halving the path to it for the next time.
    fn free_from(&mut self, mut cell: u32) -> u32 {
        while self.next[cell as usize] != cell {
            let next = self.next[cell as usize];
            self.next[cell as usize] = self.next[next as usize];
            cell = next;
        }
        cell
    }
}
