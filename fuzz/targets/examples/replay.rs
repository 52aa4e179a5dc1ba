//! Runs one target over the files of folders, once each: `replay TARGET FOLDER...`. `make fuzz-coverage` counts with it what of
//! the code under test the files reach.

use std::path::Path;

use fuzz_targets::TARGETS;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().expect("the name of a target");
    let target = TARGETS.iter().find(|(known, _)| *known == name);
    let (_, run) = target.unwrap_or_else(|| panic!("no target is called `{name}`"));
    let mut count = 0;
    for folder in arguments {
        for entry in Path::new(&folder).read_dir().expect("a folder") {
            run(&std::fs::read(entry.expect("a file").path()).expect("a file"));
            count += 1;
        }
    }
    println!("{name}: {count} inputs");
}
