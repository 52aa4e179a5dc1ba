//! "Did you mean".

/// How like a name another must be to be suggested, by Jaro and Winkler's measure from 0 to 1.
const LIKE: f64 = 0.75;

/// The candidate that is most like `name`, if any is like it at all: what a message about an unknown name suggests.
pub fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let folded = name.to_lowercase();
    candidates
        .map(|candidate| {
            let likeness = strsim::jaro_winkler(&folded, &candidate.to_lowercase());
            (likeness, candidate)
        })
        .filter(|(likeness, _)| *likeness > LIKE)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_of_the_keyboard_are_recognized_and_other_words_are_not() {
        let names = ["scratch", "table", "thermal"];
        for (name, found) in [
            ("scrach", Some("scratch")),
            ("tabel", Some("table")),
            ("Thermal", Some("thermal")),
            ("zzz", None),
            ("", None),
        ] {
            assert_eq!(nearest(name, names.into_iter()), found, "{name}");
        }
    }
}
