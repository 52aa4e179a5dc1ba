//! The fuzzers' corpora, run as tests: the seeds, what the fuzzers found worth keeping, and each input that once broke
//! something.

use std::fs;
use std::path::{Path, PathBuf};

use fuzz_targets::TARGETS;

fn folder(kind: &str, target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .join(kind)
        .join(target)
}

/// The files of a folder in the order of their names, so that every run is the same.
fn inputs(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let read = |path: PathBuf| {
        let bytes = fs::read(&path).unwrap();
        (path, bytes)
    };
    paths.into_iter().map(read).collect()
}

#[test]
fn every_corpus_is_run_and_breaks_nothing() {
    for (name, run) in TARGETS {
        let inputs = inputs(&folder("corpus", name));
        assert!(inputs.len() >= 3, "{name} has {} inputs", inputs.len());
        for (path, bytes) in &inputs {
            println!("{}", path.display());
            run(bytes);
        }
    }
}

/// Damage that is the same on every run: each input with bytes changed, cut off and put together with the next.
#[test]
fn damaged_inputs_break_nothing() {
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    for (name, run) in TARGETS {
        let inputs = inputs(&folder("corpus", name));
        for round in 0..60 {
            let (path, one) = &inputs[random.below(inputs.len())];
            let (_, other) = &inputs[random.below(inputs.len())];
            let mut input = one[..random.below(one.len() + 1)].to_vec();
            input.extend(&other[random.below(other.len() + 1)..]);
            for _ in 0..round % 8 {
                if !input.is_empty() {
                    let at = random.below(input.len());
                    input[at] ^= 1 << random.below(8);
                }
            }
            println!("{name}: round {round}, from {}", path.display());
            run(&input);
        }
    }
}

#[test]
fn every_target_has_a_fuzzer_of_its_name() {
    for (name, _) in TARGETS {
        let fuzzer =
            Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../fuzz_targets/{name}.rs"));
        assert!(fuzzer.is_file(), "{}", fuzzer.display());
    }
}

#[test]
fn every_target_has_code_under_test_that_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let text = fs::read_to_string(root.join("fuzz/under-test.txt")).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let mut names = Vec::new();
    for line in lines {
        let mut words = line.split_whitespace();
        names.push(words.next().unwrap());
        let mut files = words.peekable();
        assert!(files.peek().is_some(), "{line}");
        files.for_each(|file| assert!(root.join(file).exists(), "{line}"));
    }
    assert!(names.iter().eq(TARGETS.iter().map(|(name, _)| name)));
}

/// A generator of the xorshift kind.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % end
    }
}
