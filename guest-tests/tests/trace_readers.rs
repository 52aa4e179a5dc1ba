//! Exported traces, read back by other programs' own code: Perfetto's published schema, DuckDB, and JSON out of the page.
//!
//! A test that is ignored unless asked for, as `make soak` does, opens the page in Chromium.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
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
        .collect::<Vec<_>>();
    let browser = Trial::test("a_browser_shows_what_the_trace_says", a_browser_shows_it);
    let trials = trials
        .into_iter()
        .chain([browser.with_ignored_flag(true)])
        .collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

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
            injected: false,
            answerer,
        })?;
    }
    writer.finish()?;
    Ok(())
}

const MAP: &str = "ffffffff81000000 T native_read_msr\nffffffff81000100 T native_write_msr\nffffffff81000200 t a_probe\n";

/// The Python that `resources/fetch-readers.sh` installs.
fn python() -> Result<PathBuf, Failed> {
    let python = assets::target_directory().join("readers/bin/python");
    if python.exists() {
        return Ok(python);
    }
    let path = python.display();
    Err(format!("{path} is missing: run resources/fetch-readers.sh").into())
}

/// A trace and what `msr-vmm` makes of it.
struct Made {
    folder: Folder,
    trace: PathBuf,
    symbols: PathBuf,
}

impl Made {
    fn new() -> Result<Self, Failed> {
        let folder = Folder::new()?;
        let trace = folder.path("trace");
        write(&trace)?;
        let symbols = folder.file("System.map", MAP)?;
        Ok(Self {
            folder,
            trace,
            symbols,
        })
    }

    fn msr_vmm(&self, before: &[&str], after: &[&OsStr]) -> Result<Vec<u8>, Failed> {
        let output = Command::new(assets::msr_vmm()?)
            .args(before)
            .arg(&self.trace)
            .args(after)
            .arg("--symbols")
            .arg(&self.symbols)
            .output()?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
        }
        Ok(output.stdout)
    }

    /// Has a reader compare a file with what `trace show` prints.
    fn compare(&self, what: &str, file: &Path) -> Result<(), Failed> {
        let rows = self.msr_vmm(&["trace", "show"], &["--json".as_ref()])?;
        let rows = self.folder.file("rows.jsonl", rows)?;
        let output = Command::new(python()?)
            .arg(SCRIPT)
            .arg(what)
            .args([file, &rows])
            .output()?;
        print!("{}", String::from_utf8_lossy(&output.stdout));
        if output.status.success() {
            Ok(())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned().into())
        }
    }
}

fn says_the_same(what: &str) -> Result<(), Failed> {
    let made = Made::new()?;
    let (command, name): (&[&str], _) = match what {
        "perfetto" => (&["trace", "export"], "out.pftrace"),
        "parquet" => (&["trace", "export"], "out.parquet"),
        _ => (&["report"], "out.html"),
    };
    let file = made.folder.path(name);
    made.msr_vmm(command, &["-o".as_ref(), file.as_os_str()])?;
    made.compare(what, &file)
}

/// Chromium's setting for a page's preferred colours.
const SCHEMES: [(&str, &str); 2] = [
    ("light", "preferredColorScheme=1"),
    ("dark", "preferredColorScheme=0"),
];

/// What a page's document holds once its script has run, and what it wrote to the console.
fn browse(folder: &Folder, page: &Path, colours: &str) -> Result<(Vec<u8>, Vec<String>), Failed> {
    let output = Command::new("chromium")
        // The sandbox refuses to run as root, and the page is our own.
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--enable-logging=stderr",
        ])
        .args([
            "--virtual-time-budget=10000",
            "--window-size=1280,4200",
            "--dump-dom",
        ])
        .arg(format!("--blink-settings={colours}"))
        .arg(format!(
            "--user-data-dir={}",
            folder.path("chromium").display()
        ))
        .arg(format!("file://{}", page.display()))
        .output()
        .map_err(|error| format!("chromium: {error}: run resources/setup.sh chromium"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("chromium: {}: {said}", output.status).into());
    }
    let console = said.lines().filter(|line| line.contains("CONSOLE"));
    Ok((output.stdout, console.map(str::to_owned).collect()))
}

fn a_browser_shows_it() -> Result<(), Failed> {
    let made = Made::new()?;
    let folder = &made.folder;
    // That what a page says is heard.
    let loud = folder.file("loud.html", "<script>undefined.x</script>")?;
    let (_, console) = browse(folder, &loud, SCHEMES[0].1)?;
    assert!(
        console.iter().any(|line| line.contains("TypeError")),
        "{console:?}"
    );
    let page = folder.path("out.html");
    made.msr_vmm(&["report"], &["-o".as_ref(), page.as_os_str()])?;
    for (name, colours) in SCHEMES {
        let (document, console) = browse(folder, &page, colours)?;
        assert!(console.is_empty(), "{name}: {console:#?}");
        let document = folder.file(name, document)?;
        made.compare("browser", &document)?;
    }
    Ok(())
}
