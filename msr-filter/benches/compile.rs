//! How long rules take to compile, by their number.
//!
//! Goals: 1,000 rules in under 200 us, 100,000 in under 30 ms, near linear growth.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use msr_filter::{Access, FilterSpec, MsrRange, Rule, Verdict};

/// The windows in which processors and hypervisors have MSRs.
const WINDOWS: [(u32, u32); 5] = [
    (0, 0x1fff),
    (0x4000_0000, 0x4000_01ff),
    (0x4b56_4d00, 0x4b56_4dff),
    (0xc000_0000, 0xc000_1fff),
    (0xc001_0000, 0xc001_1fff),
];

/// Rules as a long-grown configuration has them: strewn over the windows, overlapping, of one to 16
/// MSRs, of all kinds and verdicts.
fn rules(count: usize, accesses: &[Access]) -> FilterSpec {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move |below: u32| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 33) as u32 % below
    };
    let mut spec = FilterSpec::new(Verdict::Allow);
    for _ in 0..count {
        let (from, to) = WINDOWS[random(5) as usize];
        let first = from + random(to - from);
        let range =
            MsrRange::new(first, (first + random(16)).min(to)).expect("random is not below 0");
        let access = accesses[random(accesses.len() as u32) as usize];
        let verdict = if random(3) == 0 {
            Verdict::Allow
        } else {
            Verdict::Deny
        };
        spec.rules.push(Rule::new(range, access, verdict));
    }
    spec
}

/// Rules that each decide another MSR, all of them within 16 ranges' reach: the most runs there are.
fn scattered(count: u32) -> FilterSpec {
    let rules = (0..count).map(|i| {
        // 16 blocks of 12,288 indices, and a step through each that is prime to their length.
        let (block, place) = (i % 16, i / 16 * 2 % 12_288);
        let first = 0x1000_0000 + block * 0x10_0000 + place;
        Rule::new(first, Access::all(), Verdict::Deny)
    });
    FilterSpec {
        default: Verdict::Allow,
        rules: rules.collect(),
    }
}

fn compile(c: &mut Criterion) {
    let mut group = c.benchmark_group("compile");
    for count in [10, 1_000, 100_000] {
        group.throughput(Throughput::Elements(count));
        let one = rules(count as usize, &[Access::all()]);
        let mixed = rules(
            count as usize,
            &[Access::READ, Access::WRITE, Access::all()],
        );
        let scattered = scattered(count as u32);
        for (name, spec) in [("rw", &one), ("mixed", &mixed), ("scattered", &scattered)] {
            group.bench_with_input(BenchmarkId::new(name, count), spec, |b, spec| {
                b.iter(|| {
                    black_box(spec)
                        .compile()
                        .expect("the windows fit 16 ranges")
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, compile);
criterion_main!(benches);
