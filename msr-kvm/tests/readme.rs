//! The README shows the example that guests are tested with, and it is as short as it says.

const EXAMPLE: &str = include_str!("../examples/embed.rs");
const README: &str = include_str!("../README.md");

#[test]
fn the_readme_shows_the_example() {
    assert!(README.contains(EXAMPLE.trim_end()));
}

/// Besides imports, comments and blank lines.
#[test]
fn the_example_has_at_most_40_lines() {
    let code = EXAMPLE
        .lines()
        .map(str::trim)
        .filter(|line| !(line.is_empty() || line.starts_with("//") || line.starts_with("use ")));
    assert!(code.count() <= 40);
}
