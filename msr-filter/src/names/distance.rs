//! How far two names are apart.

/// The longest name compared. Longer ones resemble no MSR's.
const MAX: usize = 64;

/// The optimal string alignment distance of two names without regard to case, counting insertions,
/// deletions, substitutions and swaps of neighbours; `None` where it is more than `limit`.
pub(super) fn within(a: &str, b: &str, limit: usize) -> Option<usize> {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    if a.len().max(b.len()) > MAX || a.len().abs_diff(b.len()) > limit {
        return None;
    }
    // Three rows of the usual table: a swap looks two rows back.
    let mut before = [0; MAX + 1];
    let mut above = [0; MAX + 1];
    let mut row = [0; MAX + 1];
    for (j, cell) in above.iter_mut().enumerate() {
        *cell = j;
    }
    for i in 1..=a.len() {
        row[0] = i;
        for j in 1..=b.len() {
            let same = a[i - 1].eq_ignore_ascii_case(&b[j - 1]);
            row[j] = (above[j] + 1)
                .min(row[j - 1] + 1)
                .min(above[j - 1] + usize::from(!same));
            if i > 1
                && j > 1
                && a[i - 1].eq_ignore_ascii_case(&b[j - 2])
                && a[i - 2].eq_ignore_ascii_case(&b[j - 1])
            {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        (before, above, row) = (above, row, before);
    }
    Some(above[b.len()]).filter(|distance| *distance <= limit)
}
