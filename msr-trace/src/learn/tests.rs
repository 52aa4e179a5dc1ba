use std::io::Cursor;

use msr_filter::{Access, FilterConfig, FilterSpec, Verdict};

use super::*;
use crate::{Answerer, Claim, Header, NotSeen, Policy, Reason, Source, TraceWriter};

const MAP: &str = "ffffffff81000100 T read_it\nffffffff81000200 T write_it\n";

fn record(index: u32, kind: Kind, answerer: Answerer) -> Record {
    Record {
        time: 0,
        vcpu: 0,
        index,
        kind,
        value: 1,
        rip: Some(if kind == Kind::Read {
            0xffff_ffff_8100_0104
        } else {
            0xffff_ffff_8100_0204
        }),
        fault: false,
        injected: false,
        answerer,
    }
}

fn header(not_seen: Option<MsrRange>) -> Header {
    Header {
        vcpus: 1,
        policy: Some(Policy {
            default: Verdict::Allow,
            rules: Vec::new(),
            claims: vec![
                Claim {
                    msrs: MsrRange::single(0x1a0),
                    device: OBSERVER.to_owned(),
                },
                Claim {
                    msrs: MsrRange::single(0xce),
                    device: "table".to_owned(),
                },
            ],
        }),
        not_seen: vec![NotSeen {
            msrs: not_seen,
            why: "no exit".to_owned(),
        }],
        ..Header::default()
    }
}

fn trace(header: &Header, lost: u64) -> Trace<Cursor<Vec<u8>>> {
    let mut file = Vec::new();
    let mut writer = TraceWriter::new(&mut file, header).unwrap();
    let device = Answerer::Device(Reason::Filter);
    for record in [
        record(0x10, Kind::Read, Answerer::Kernel),
        record(0x10, Kind::Read, Answerer::Kernel),
        record(0x277, Kind::Read, Answerer::Kernel),
        record(0x277, Kind::Write, Answerer::Kernel),
        record(0x1a0, Kind::Write, device),
        record(0xce, Kind::Read, device),
        record(0x620, Kind::Read, Answerer::Fallback(Reason::Unknown)),
        Record {
            fault: true,
            injected: false,
            ..record(0x611, Kind::Read, Answerer::Kernel)
        },
    ] {
        writer.record(&record).unwrap();
    }
    writer.lost(0, Source::Userspace, lost).unwrap();
    writer.finish().unwrap();
    Trace::new(Cursor::new(file)).unwrap()
}

fn lesson() -> Lesson {
    let symbols = Symbols::from_text(MAP);
    let mut lesson = Lesson::default();
    let header = header(Some(MsrRange::single(0xc000_0100)));
    lesson
        .learn(&mut trace(&header, 0), Some(&symbols), false)
        .unwrap();
    lesson
}

#[test]
fn the_profile_allows_what_kvm_answered_and_nothing_else() {
    let profile = lesson().profile();
    let config: FilterConfig = toml::from_str(&profile.text).unwrap();
    let spec = FilterSpec::from(&config);
    for (index, access, verdict) in [
        (0x10, Access::READ, Verdict::Allow),
        (0x10, Access::WRITE, Verdict::Deny),
        (0x277, Access::WRITE, Verdict::Allow),
        (0x1a0, Access::WRITE, Verdict::Allow),
        (0x1a0, Access::READ, Verdict::Deny),
        (0xce, Access::READ, Verdict::Deny),
        (0x620, Access::READ, Verdict::Deny),
        (0x611, Access::READ, Verdict::Deny),
        (0xc000_0100, Access::WRITE, Verdict::Allow),
    ] {
        assert_eq!(spec.verdict(index, access), verdict, "{index:#x} {access}");
        assert_eq!(profile.spec.verdict(index, access), verdict);
    }
    assert_eq!(profile.msrs, 4);
    assert!(profile.compiles().is_ok());
    for line in [
        "[[rule]] # IA32_TIME_STAMP_COUNTER: read 2 by read_it",
        "read 1 by read_it; write 1 by write_it",
        "not seen by any run: no exit",
    ] {
        assert!(profile.text.contains(line), "{}", profile.text);
    }
}

#[test]
fn losses_and_a_kernel_that_nobody_watched_are_refused() {
    let mut lesson = Lesson::default();
    let seen = header(Some(MsrRange::single(1)));
    let error = lesson.learn(&mut trace(&seen, 3), None, false).unwrap_err();
    assert!(matches!(error, LearnError::Losses { lost: 3 }));
    assert!(lesson.learn(&mut trace(&seen, 3), None, true).is_ok());
    let error = lesson
        .learn(&mut trace(&header(None), 0), None, false)
        .unwrap_err();
    assert!(matches!(error, LearnError::KernelNotSeen));
}

#[test]
fn merging_adds_what_a_profile_lacks_and_leaves_what_it_denies() {
    let old = "default = \"deny\"\n\n# Mine.\n[[rule]]\nmsrs = [\"0x10\"]\nverdict = \"allow\"\n\n\
               [[rule]]\nmsrs = [\"0x277\"]\naccess = \"w\"\nverdict = \"deny\"\n";
    let config: FilterConfig = toml::from_str(old).unwrap();
    let merged = lesson().merge_into(old, &config);
    assert!(merged.text.starts_with(old.trim_end()));
    let spec = FilterSpec::from(&toml::from_str::<FilterConfig>(&merged.text).unwrap());
    assert_eq!(spec.verdict(0x277, Access::READ), Verdict::Allow);
    assert_eq!(spec.verdict(0x277, Access::WRITE), Verdict::Deny);
    assert_eq!(
        merged.conflicts,
        [Conflict {
            index: 0x277,
            kind: Kind::Write
        }]
    );
    assert_eq!(merged.msrs, 3);
    // A second time there is nothing to add.
    let config: FilterConfig = toml::from_str(&merged.text).unwrap();
    let again = lesson().merge_into(&merged.text, &config);
    assert_eq!((again.text.as_str(), again.msrs), (merged.text.as_str(), 0));
}

#[test]
fn a_check_names_what_a_filter_denies_with_its_caller() {
    let symbols = Symbols::from_text(MAP);
    let header = header(Some(MsrRange::single(1)));
    let spec = FilterSpec::new(Verdict::Deny).rule(msr_filter::Rule::new(
        MsrRange::single(0x277),
        Access::all(),
        Verdict::Allow,
    ));
    let mut check = Check::new(&spec, &header, Some(&symbols));
    for record in trace(&header, 0).records() {
        check.look(&record.unwrap());
    }
    let denied = check.denied();
    let lines: Vec<String> = denied.iter().map(ToString::to_string).collect();
    assert_eq!(denied.len(), 2, "{lines:?}");
    assert!(
        lines[0].starts_with("0x00000010") && lines[0].ends_with("2  read_it (2)"),
        "{lines:?}"
    );
    assert!(
        lines[1].contains("IA32_MISC_ENABLE") && lines[1].contains("write_it (1)"),
        "{lines:?}"
    );
}
