//! Snapshots that somebody has changed: they are refused in words, or are guests like others; none harms the VMM.
//!
//! The VMs are restored in this process. Each change is made to a snapshot of a guest with a disk and an MSR device, and the
//! checksum is made right again, so that what is tested is what comes after it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use guest_tests::guest::{Folder, TinyKernel};
use iced_x86::code_asm::*;
use libtest_mimic::{Failed, Trial};
use msr_bus::VcpuId;
use msr_vmm::config::Config;
use msr_vmm::snapshot::{Snapshot, VERSION};
use msr_vmm::{FaultReason, ShutdownReason, Vm, VmBuilder, VmError};
use proptest::prelude::*;
use proptest::test_runner::{Config as Cases, TestCaseError, TestRunner};
use serde_json::{Value, json};

use super::listed;

mod changes;
mod each_field;

use changes::{Change, Written};

pub(super) fn trials() -> Vec<Trial> {
    let mut trials = listed!("hostile_snapshot":
        a_state_that_is_cut_or_changed_anywhere_is_refused,
        what_contradicts_itself_or_the_host_is_refused_and_named,
        several_changes_at_once_are_refused_or_make_another_guest,
        some_changes_of_every_field_are_refused_or_make_another_guest,
    );
    let soaks = listed!("hostile_snapshot":
        a_state_that_is_cut_or_changed_at_any_byte_is_refused,
        all_changes_of_every_field_are_refused_or_make_another_guest,
    );
    trials.extend(soaks.into_iter().map(|soak| soak.with_ignored_flag(true)));
    trials
}

const COUNTER: u32 = 0x3f00;
/// The first disk's name.
const DISK: &str = "disk0";
/// How many states with several changes are tried unless `PROPTEST_CASES` says.
const CASES: u32 = 60;

/// A guest that counts in a scratch register has been saved, with a disk.
struct Saved {
    folder: Folder,
    snapshot: PathBuf,
    state: Vec<u8>,
}

impl Saved {
    fn new() -> Result<Self, Failed> {
        let mut kernel = TinyKernel::new()?;
        let code = &mut kernel.0;
        let mut again = code.create_label();
        code.set_label(&mut again)?;
        code.mov(ecx, COUNTER)?;
        code.rdmsr()?;
        code.inc(eax)?;
        code.wrmsr()?;
        code.jmp(again)?;
        let folder = Folder::new()?;
        let mut config: Config = toml::from_str(&format!(
            "vm.memory = 32\n[[msr.device]]\ntype = \"scratch\"\nmsr = \"{COUNTER:#x}\"\n[[vm.disk]]\npath = {:?}\n",
            folder.file(DISK, [0; 1 << 16])?
        ))?;
        config.vm.kernel = Some(folder.file("kernel", kernel.elf()?)?);
        let vm = Vm::builder(config).build()?.start()?;
        let begin = Instant::now();
        while vm.read_msr(VcpuId(0), COUNTER)?.value == Some(0) {
            if begin.elapsed() > Duration::from_secs(30) {
                return Err("the guest does not count".into());
            }
            thread::sleep(Duration::from_millis(1));
        }
        let snapshot = folder.path("snapshot");
        vm.pause()?;
        vm.snapshot(&snapshot)?;
        vm.stop();
        vm.wait();
        let state = fs::read(snapshot.join("state"))?;
        Ok(Self {
            folder,
            snapshot,
            state,
        })
    }

    fn body(&self) -> Result<Value, Failed> {
        let start = self.state.iter().position(|byte| *byte == b'\n');
        let start = start.ok_or("no first line")? + 1;
        Ok(serde_json::from_slice(&self.state[start..])?)
    }

    /// Puts another body in the place of the snapshot's, with the checksum that it ought to have.
    fn put(&self, body: &Value) -> std::io::Result<()> {
        fs::write(self.snapshot.join("state"), state_file(&body.to_string()))
    }

    /// The snapshot under another name, with a disk of its own, which is locked while a VM has it.
    fn copy(&self, number: u8) -> std::io::Result<Copy<'_>> {
        let copy = Copy {
            saved: self,
            folder: self.folder.path(&format!("copy{number}")),
            disk: format!("disk{number}"),
        };
        fs::create_dir(&copy.folder)?;
        for name in ["memory", "checksums"] {
            fs::hard_link(self.snapshot.join(name), copy.folder.join(name))?;
        }
        fs::copy(self.folder.path(DISK), self.folder.path(&copy.disk))?;
        Ok(copy)
    }

    /// Whether anything is there that was not there before.
    fn only_its_files_are_left(&self) -> Result<(), Failed> {
        let mut names = Vec::new();
        for folder in [self.folder.path(""), self.snapshot.clone()] {
            for entry in fs::read_dir(folder)? {
                names.push(entry?.file_name().into_string().map_err(|_| "a name")?);
            }
        }
        names.sort();
        if names == ["checksums", DISK, "kernel", "memory", "snapshot", "state"] {
            Ok(())
        } else {
            Err(format!("{names:?}").into())
        }
    }
}

/// What became of a snapshot.
enum Outcome {
    /// It is not restored.
    Refused {
        /// The error's name in the code, and that of the error in it.
        class: String,
        /// The error's words.
        words: String,
    },
    /// It made a guest, which ended in this way within a moment, or was stopped.
    Runs { end: String },
    /// The VMM failed.
    Panicked(String),
}

impl Outcome {
    fn refused(error: VmError) -> Self {
        let debug = format!("{error:?}");
        let names: Vec<_> = debug
            .split(|c: char| !c.is_alphanumeric() && c != '_')
            .filter(|name| *name != "Restore")
            .collect();
        Self::Refused {
            class: names.first().map_or("", |name| *name).to_owned(),
            words: error.to_string(),
        }
    }
}

fn outcome_class(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Refused { class, .. } => format!("refused: {class}"),
        Outcome::Runs { end } => format!("runs: {end}"),
        Outcome::Panicked(_) => "panicked".to_owned(),
    }
}

/// See [`Saved::copy`]. It goes with the value.
struct Copy<'a> {
    saved: &'a Saved,
    folder: PathBuf,
    /// As long a name as that of the first.
    disk: String,
}

impl Copy<'_> {
    /// Makes it one of this state, which names the first disk. The disk is as it was when the snapshot was made.
    fn put(&self, text: &str) -> std::io::Result<()> {
        let names = [DISK, &self.disk].map(|name| {
            let path = self.saved.folder.path(name);
            serde_json::Value::from(path.to_string_lossy()).to_string()
        });
        let disk = File::options()
            .write(true)
            .open(self.saved.folder.path(&self.disk))?;
        disk.set_modified(fs::metadata(self.saved.folder.path(DISK))?.modified()?)?;
        let text = text.replace(&names[0], &names[1]);
        fs::write(self.folder.join("state"), state_file(&text))
    }
}

impl Drop for Copy<'_> {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
        let _ = fs::remove_file(self.saved.folder.path(&self.disk));
    }
}

/// Restores the snapshot, and has the guest run for a moment if there is one.
fn attempt(snapshot: &Path) -> Outcome {
    let restored = Snapshot::read(snapshot).map_err(VmError::from);
    let vm = restored.and_then(|snapshot| VmBuilder::restore(snapshot).build());
    let vm = match vm.and_then(Vm::start) {
        Ok(vm) => vm,
        Err(error) => return Outcome::refused(error),
    };
    thread::sleep(Duration::from_millis(1));
    vm.stop();
    match vm.wait() {
        ShutdownReason::Fault(fault) if matches!(fault.reason, FaultReason::Panicked) => {
            Outcome::Panicked(fault.to_string())
        }
        ShutdownReason::Fault(fault) => {
            let reason = format!("{:?}", fault.reason);
            let name = reason.split(|c: char| !c.is_alphanumeric()).next();
            Outcome::Runs {
                end: name.unwrap_or_default().to_owned(),
            }
        }
        reason => Outcome::Runs {
            end: format!("{reason:?}"),
        },
    }
}

fn refusal(snapshot: &Path) -> Result<String, Failed> {
    match attempt(snapshot) {
        Outcome::Refused { words, .. } => Ok(words),
        other => Err(outcome_class(&other).into()),
    }
}

fn some_changes_of_every_field_are_refused_or_make_another_guest() -> Result<(), Failed> {
    each_field::some_changes()
}

fn all_changes_of_every_field_are_refused_or_make_another_guest() -> Result<(), Failed> {
    each_field::all_changes()
}

/// A state's file, with the checksum that it ought to have.
fn state_file(text: &str) -> String {
    let crc32 = crc32fast::hash(text.as_bytes());
    let header = json!({ "format": "msr-vmm snapshot", "version": VERSION, "crc32": crc32 });
    format!("{header}\n{text}")
}

fn a_state_that_is_cut_or_changed_anywhere_is_refused() -> Result<(), Failed> {
    // All of the first line, which is about 60 bytes, and 500 places after it.
    let places = |length: usize| (0..100).chain((0..500).map(move |place| length * place / 500));
    cut_and_changed(places)
}

fn a_state_that_is_cut_or_changed_at_any_byte_is_refused() -> Result<(), Failed> {
    cut_and_changed(|length| 0..length)
}

fn cut_and_changed<P: Iterator<Item = usize>>(places: impl Fn(usize) -> P) -> Result<(), Failed> {
    let saved = Saved::new()?;
    let state = &saved.state;
    if let Outcome::Refused { words, .. } = attempt(&saved.snapshot) {
        return Err(words.into());
    }
    let path = saved.snapshot.join("state");
    let refusal = || match Snapshot::read(&saved.snapshot) {
        Ok(_) => Err("it is read"),
        Err(error) => Ok(error.to_string()),
    };
    let mut count = 0;
    for at in places(state.len()) {
        fs::write(&path, &state[..at])?;
        let cut = refusal()?;
        let mut changed = state.clone();
        changed[at] ^= 1 << (at % 8);
        fs::write(&path, &changed)?;
        let changed = refusal()?;
        for words in [cut, changed] {
            let known = ["no snapshot of msr-vmm", "has version", "its checksum is"];
            if !known.iter().any(|known| words.contains(known)) {
                return Err(format!("at byte {at}: {words}").into());
            }
        }
        count += 1;
    }
    println!(
        "hostile snapshot: cut and changed at {count} of {} bytes",
        state.len()
    );
    saved.only_its_files_are_left()
}

/// Sets what is at a place of the body, as a JSON pointer says it.
fn set(body: &mut Value, pointer: &str, value: Value) -> Result<(), Failed> {
    let place = body.pointer_mut(pointer);
    *place.ok_or_else(|| format!("there is no {pointer}"))? = value;
    Ok(())
}

fn what_contradicts_itself_or_the_host_is_refused_and_named() -> Result<(), Failed> {
    let saved = Saved::new()?;
    let body = saved.body()?;
    let shown = body.pointer("/cpuid/0/0/eax").and_then(Value::as_u64);
    let shown = shown.ok_or("no CPUID")?;
    let twice = body.pointer("/vcpus/0/msrs/0").cloned();
    let mut msrs = body.pointer("/vcpus/0/msrs").cloned().ok_or("no MSRs")?;
    let list = msrs.as_array_mut().ok_or("no list")?;
    list.push(twice.ok_or("no MSR")?);
    for (pointer, value, words) in [
        (
            "/vcpus/0/msrs/0/index",
            json!(0x1234_5678),
            "MSR 0x12345678",
        ),
        ("/vcpus/0/msrs", msrs, "two values for"),
        ("/vcpus", json!([]), "it has 0 vCPUs"),
        ("/cpuid", json!([]), "with CPUID for 0"),
        (
            "/cpuid/0/0/eax",
            json!(shown ^ 1),
            "CPUID leaf 0x0, 0x0 EAX",
        ),
        ("/kvm/ioapic/0", json!(7), "that it is number 7"),
        ("/tsc_offsets", json!([0, 0]), "TSC offsets for 2 vCPUs"),
        ("/disks", json!([]), "the snapshot has 0 disks"),
        ("/disks/0/size", json!(512), "its size has become 65536"),
        ("/disks/0/modified", json!([1, 2]), "it was written to"),
        ("/config/vm/cpus", json!(3), "its configuration 3"),
        (
            "/config/vm/memory",
            json!("64M"),
            "should have 67108864 for the guest's memory",
        ),
        ("/config/vm/memory", json!("1000000T"), "memory"),
        ("/config/msr/device/0/type", json!("sratch"), "`sratch`"),
        ("/live", json!([]), "it has keys of 0 MSR devices"),
        ("/live/0", json!({ "reset": 1 }), "`reset` cannot change"),
        ("/devices/msr/version", json!(9), "version 9"),
        (
            "/devices/msr/devices/0/device",
            json!("x"),
            "no state for device `scratch`",
        ),
        ("/devices/virtio", json!([]), "it has 0 virtio devices"),
        ("/devices/virtio/0/device_type", json!(9), "of type 9"),
        ("/devices/virtio/0/status", json!(0x1000), "status 0x1000"),
        (
            "/devices/virtio/0/queues/0/max_size",
            json!(7),
            "its queues have other sizes",
        ),
        ("/devices/virtio/0/queues/0/size", json!(3), "a queue: "),
        (
            "/devices/console/in_buffer",
            json!(vec![0; 100]),
            "console: ",
        ),
    ] {
        let mut changed = body.clone();
        set(&mut changed, pointer, value)?;
        saved.put(&changed)?;
        let said = refusal(&saved.snapshot)
            .map_err(|error| format!("{pointer}: {}", error.message().unwrap_or_default()))?;
        if !said.contains(words) {
            return Err(format!("{pointer}: not `{words}`: {said}").into());
        }
    }
    // A key more or less, at the top and further down.
    for pointer in ["", "/kvm", "/vcpus/0", "/devices", "/devices/virtio/0"] {
        let keys = body.pointer(pointer).and_then(Value::as_object);
        for key in keys.ok_or("no object")?.keys() {
            let mut changed = body.clone();
            let object = changed.pointer_mut(pointer).and_then(Value::as_object_mut);
            object.ok_or("no object")?.remove(key);
            saved.put(&changed)?;
            let said = refusal(&saved.snapshot)?;
            if !said.contains(&format!("missing field `{key}`")) {
                return Err(format!("{pointer} without {key}: {said}").into());
            }
        }
        let mut changed = body.clone();
        let object = changed.pointer_mut(pointer).and_then(Value::as_object_mut);
        object
            .ok_or("no object")?
            .insert("more".into(), Value::Null);
        saved.put(&changed)?;
        let said = refusal(&saved.snapshot)?;
        if !said.contains("unknown field `more`") {
            return Err(format!("{pointer}: {said}").into());
        }
    }
    saved.only_its_files_are_left()
}

fn several_changes_at_once_are_refused_or_make_another_guest() -> Result<(), Failed> {
    let saved = Saved::new()?;
    let body = saved.body()?;
    let written = Written::new(&body);
    // No two changes of the same text.
    let all: Vec<Change> = written.changes("/nowhere");
    let threads = || fs::read_dir("/proc/self/task").map(Iterator::count);
    let before = threads()?;
    let cases = match std::env::var("PROPTEST_CASES") {
        Ok(cases) => cases.parse()?,
        Err(_) => CASES,
    };
    let mut runner = TestRunner::new(Cases {
        cases,
        failure_persistence: None,
        ..Cases::default()
    });
    let (refused, restored) = (std::cell::Cell::new(0), std::cell::Cell::new(0));
    let acceptable: Vec<Change> = all.into_iter().filter(|c| !c.must_be_refused).collect();
    let strategy = prop::collection::vec(prop::sample::select(acceptable.clone()), 1..4);
    let outcome = runner.run(&strategy, |mut changes| {
        changes.sort_by_key(|change| std::cmp::Reverse(change.range.start));
        let mut text = written.text.clone();
        let mut end = usize::MAX;
        for change in changes {
            if change.range.end <= end {
                end = change.range.start;
                text.replace_range(change.range, &change.text);
            }
        }
        fs::write(saved.snapshot.join("state"), state_file(&text))
            .map_err(|error| TestCaseError::fail(error.to_string()))?;
        match attempt(&saved.snapshot) {
            Outcome::Refused { words, .. } => {
                prop_assert!(words.len() > 20, "it says no more than `{words}`");
                refused.set(refused.get() + 1);
            }
            Outcome::Runs { .. } => restored.set(restored.get() + 1),
            Outcome::Panicked(words) => return Err(TestCaseError::fail(words)),
        }
        Ok(())
    });
    outcome.map_err(|error| error.to_string())?;
    println!(
        "hostile snapshot: of {cases} states with up to three changes, {} were refused and {} made another guest",
        refused.get(),
        restored.get()
    );
    // KVM waits for a thread's end now and then.
    let begin = Instant::now();
    while threads()? > before {
        if begin.elapsed() > Duration::from_secs(10) {
            return Err(format!("{before} threads have become {}", threads()?).into());
        }
        thread::sleep(Duration::from_millis(10));
    }
    saved.only_its_files_are_left()
}
