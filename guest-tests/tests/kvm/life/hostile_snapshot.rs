//! Snapshots that somebody has changed: they are refused in words, or are guests like others; none harms the VMM.
//!
//! The VMs are restored in this process. Each change is made to a snapshot of a guest with a disk and an MSR device, and the
//! checksum is made right again, so that what is tested is what comes after it.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use guest_tests::guest::{Folder, TinyKernel};
use iced_x86::code_asm::*;
use libtest_mimic::{Failed, Trial};
use msr_bus::VcpuId;
use msr_vmm::config::Config;
use msr_vmm::snapshot::Snapshot;
use msr_vmm::{FaultReason, ShutdownReason, Vm, VmBuilder, VmError};
use proptest::prelude::*;
use proptest::test_runner::{Config as Cases, TestCaseError, TestRunner};
use serde_json::{Value, json};

use super::listed;

pub(super) fn trials() -> Vec<Trial> {
    listed!("hostile_snapshot":
        a_state_that_is_cut_or_changed_anywhere_is_refused,
        what_contradicts_itself_or_the_host_is_refused_and_named,
        any_changed_field_is_refused_or_makes_another_guest,
    )
}

const COUNTER: u32 = 0x3f00;
/// How many changes are tried unless `PROPTEST_CASES` says.
const CASES: u32 = 200;

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
            folder.file("disk", [0; 1 << 16])?
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
        vm.pause();
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
        let text = body.to_string();
        let crc32 = crc32fast::hash(text.as_bytes());
        let header = json!({ "format": "msr-vmm snapshot", "version": 1, "crc32": crc32 });
        fs::write(self.snapshot.join("state"), format!("{header}\n{text}"))
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
        if names == ["checksums", "disk", "kernel", "memory", "snapshot", "state"] {
            Ok(())
        } else {
            Err(format!("{names:?}").into())
        }
    }
}

/// Restores the snapshot, and has the guest run for a moment if there is one. Gives the words of the refusal, if not.
fn attempt(snapshot: &Path) -> Result<Option<String>, String> {
    let restored = Snapshot::read(snapshot).map_err(VmError::from);
    let vm = match restored.and_then(|snapshot| VmBuilder::restore(snapshot).build()) {
        Ok(vm) => vm,
        Err(error) => return Ok(Some(error.to_string())),
    };
    let vm = vm.start().map_err(|error| error.to_string())?;
    thread::sleep(Duration::from_millis(1));
    vm.stop();
    match vm.wait() {
        ShutdownReason::Fault(fault) if matches!(fault.reason, FaultReason::Panicked) => {
            Err(fault.to_string())
        }
        _ => Ok(None),
    }
}

fn refusal(snapshot: &Path) -> Result<String, Failed> {
    Ok(attempt(snapshot)?.ok_or("it is restored")?)
}

fn a_state_that_is_cut_or_changed_anywhere_is_refused() -> Result<(), Failed> {
    let saved = Saved::new()?;
    let state = &saved.state;
    if let Some(words) = attempt(&saved.snapshot)? {
        return Err(words.into());
    }
    let path = saved.snapshot.join("state");
    // All of the first line, which is about 60 bytes, and 500 places after it.
    let places = (0..100).chain((0..500).map(|place| state.len() * place / 500));
    for at in places {
        fs::write(&path, &state[..at])?;
        let cut = refusal(&saved.snapshot)?;
        let mut changed = state.clone();
        changed[at] ^= 1;
        fs::write(&path, &changed)?;
        let changed = refusal(&saved.snapshot)?;
        for words in [cut, changed] {
            let known = ["no snapshot of msr-vmm", "has version", "its checksum is"];
            if !known.iter().any(|known| words.contains(known)) {
                return Err(format!("at byte {at}: {words}").into());
            }
        }
    }
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

/// What becomes of a field.
#[derive(Clone, Copy, Debug)]
enum Change {
    /// A number with one bit changed.
    Bit(u32),
    Greatest,
    Negative,
    Text,
    Null,
    Gone,
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        4 => (0u32..8).prop_map(Change::Bit),
        4 => (0u32..64).prop_map(Change::Bit),
        2 => Just(Change::Greatest),
        1 => Just(Change::Negative),
        1 => Just(Change::Text),
        1 => Just(Change::Null),
        1 => Just(Change::Gone),
    ]
}

/// The places of the body: every object, list, and field, but of a long list of numbers only nine.
fn places(value: &Value, at: &str, places: &mut Vec<String>) {
    if !at.is_empty() {
        places.push(at.to_owned());
    }
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                self::places(value, &format!("{at}/{key}"), places);
            }
        }
        Value::Array(list) => {
            let step = if list.first().is_some_and(Value::is_number) {
                list.len().div_ceil(9)
            } else {
                1
            };
            for (number, value) in list.iter().enumerate().step_by(step.max(1)) {
                self::places(value, &format!("{at}/{number}"), places);
            }
        }
        _ => {}
    }
}

fn apply(body: &mut Value, place: &str, change: Change) {
    if let Change::Gone = change {
        let (parent, key) = place.rsplit_once('/').unwrap_or_default();
        match body.pointer_mut(parent) {
            Some(Value::Object(object)) => drop(object.remove(key)),
            Some(Value::Array(list)) => drop(list.remove(key.parse().unwrap_or(0))),
            _ => {}
        }
        return;
    }
    let Some(field) = body.pointer_mut(place) else {
        return;
    };
    *field = match (change, field.as_u64()) {
        (Change::Bit(bit), Some(number)) => (number ^ 1 << bit).into(),
        (Change::Greatest, _) => u64::MAX.into(),
        (Change::Negative, _) => (-1).into(),
        (Change::Bit(_) | Change::Text, _) => "/nowhere".into(),
        (Change::Null | Change::Gone, _) => Value::Null,
    };
}

fn any_changed_field_is_refused_or_makes_another_guest() -> Result<(), Failed> {
    let saved = Saved::new()?;
    let body = saved.body()?;
    let mut all = Vec::new();
    places(&body, "", &mut all);
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
    let strategy = (prop::sample::select(all.clone()), change());
    let outcome = runner.run(&strategy, |(place, change)| {
        let mut changed = body.clone();
        apply(&mut changed, &place, change);
        saved
            .put(&changed)
            .map_err(|error| TestCaseError::fail(error.to_string()))?;
        match attempt(&saved.snapshot).map_err(TestCaseError::fail)? {
            Some(words) => {
                prop_assert!(words.len() > 20, "it says no more than `{words}`");
                refused.set(refused.get() + 1);
            }
            None => restored.set(restored.get() + 1),
        }
        Ok(())
    });
    outcome.map_err(|error| error.to_string())?;
    println!(
        "hostile snapshot: of {cases} changes at {} places, {} were refused and {} made another guest",
        all.len(),
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
