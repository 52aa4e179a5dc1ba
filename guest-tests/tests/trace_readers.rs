//! Exported traces, read back by other programs' own code: Perfetto's published schema, DuckDB, and JSON out of the page.

use std::fs::File;
use std::path::Path;
use std::process::{Command, ExitCode};

use guest_tests::assets;
use guest_tests::guest::Folder;
use libtest_mimic::{Arguments, Failed, Trial};
use msr_trace::{Answerer, Claim, Header, Kind, Policy, Reason, Record, TraceWriter};

fn main() -> ExitCode {
    let trials = ["perfetto", "parquet", "report"]
        .into_iter()
        .map(|what| {
            Trial::test(format!("{what}_says_what_the_trace_says"), move || {
                says_the_same(what)
            })
        })
        .collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// What `resources/fetch-readers.sh` installs.
const PYTHON: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/readers/bin/python");
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/trace-readers.py");

/// Two vCPUs, every kind of record, sensors that change, and callers of three functions.
fn write(path: &Path) -> Result<(), Failed> {
    let header = Header {
        vcpus: 2,
        start: 1_000_000,
        wall_time: 1_700_000_000_000_000_000,
        with_rip: true,
        policy: Some(Policy {
            default: msr_filter::Verdict::Allow,
            rules: Vec::new(),
            claims: vec![Claim {
                msrs: msr_filter::MsrRange::new(0x600, 0x6ff)?,
                device: "rapl".to_owned(),
            }],
        }),
        ..Header::default()
    };
    let mut writer = TraceWriter::new(File::create(path)?, &header)?;
    let indices = [0x10, 0x611, 0x19c, 0xce, 0x277, 0x3fff, 0xc001_0015];
    for n in 0..4000u64 {
        let index = indices[(n % 7) as usize];
        let answerer = match index {
            0x611 => Answerer::Device(Reason::Filter),
            0x3fff => Answerer::Fallback(Reason::Unknown),
            0xc001_0015 => Answerer::Fallback(Reason::Invalid),
            _ => Answerer::Kernel,
        };
        writer.record(&Record {
            time: 2_000_000 + 1_000_003 * n,
            vcpu: (n % 2) as u16,
            index,
            kind: if n % 3 == 0 { Kind::Write } else { Kind::Read },
            value: if index == 0x10 {
                u64::MAX - n
            } else {
                n << 16 | 0x800
            },
            rip: (n % 11 != 0).then_some(0xffff_ffff_8100_0000 + 0x100 * (n % 3) + 4),
            fault: n % 13 == 0,
            answerer,
        })?;
    }
    writer.finish()?;
    Ok(())
}

const MAP: &str = "ffffffff81000000 T native_read_msr\nffffffff81000100 T native_write_msr\nffffffff81000200 t a_probe\n";

fn says_the_same(what: &str) -> Result<(), Failed> {
    if !Path::new(PYTHON).exists() {
        return Err(format!("{PYTHON} is missing: run resources/fetch-readers.sh").into());
    }
    let folder = Folder::new()?;
    let trace = folder.path("trace");
    write(&trace)?;
    let map = folder.file("System.map", MAP)?;
    let symbols = [Path::new("--symbols"), &map];
    let msr_vmm = |arguments: &[&Path]| -> Result<Vec<u8>, Failed> {
        let output = Command::new(assets::msr_vmm()?)
            .args(arguments)
            .args(symbols)
            .output()?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
        }
        Ok(output.stdout)
    };
    let rows = msr_vmm(&["trace".as_ref(), "show".as_ref(), &trace, "--json".as_ref()])?;
    let rows = folder.file("rows.jsonl", rows)?;
    let file = folder.path(match what {
        "perfetto" => "out.pftrace",
        "parquet" => "out.parquet",
        _ => "out.html",
    });
    let to = [trace.as_path(), "-o".as_ref(), &file];
    if what == "report" {
        msr_vmm(&[&["report".as_ref()], &to[..]].concat())?;
    } else {
        msr_vmm(&[&["trace".as_ref(), "export".as_ref()], &to[..]].concat())?;
    }
    let output = Command::new(PYTHON)
        .arg(SCRIPT)
        .arg(what)
        .args([&file, &rows])
        .output()?;
    print!("{}", String::from_utf8_lossy(&output.stdout));
    if output.status.success() {
        Ok(())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned().into())
    }
}
