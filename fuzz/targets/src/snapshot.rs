//! Snapshots whose state anybody has written, as far as they go without KVM.
//!
//! The input is a file, a body that is given a right header, or changes of a small VM's state (`changes`), whose header is
//! made right too, so that what comes after the checksum is reached. A state is refused, or all of it is used as `restore`
//! uses it: its memory is verified and mapped, its disks are compared, its configuration becomes a plan whose devices take their
//! keys and states, and the virtio devices and the console take theirs. A state that is read with a bit changed, or as another
//! version, is refused.

mod changes;

use std::fs::{self, File};
use std::path::PathBuf;
use std::sync::Arc;

use arbitrary::Unstructured;
use msr_bus::testing::FakeClock;
use msr_bus::{BusState, DeviceModel, MsrBus, RestoreError as BusError};
use msr_kvm::{MsrPlan, MsrPlanBuilder};
use msr_vmm::Config;
use msr_vmm::devices::serial::{Console, ConsoleState};
use msr_vmm::devices::virtio::VirtioState;
use msr_vmm::devices::virtio::block::{Block, DiskConfig};
use msr_vmm::devices::virtio::entropy::Entropy;
use msr_vmm::snapshot::{RestoreError, Snapshot, VERSION};
use serde::Deserialize;
use serde_json::Value;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use crate::config::reads_the_host;
use crate::memfd::MemoryFile;
use crate::virtio::{Buffer, Driver, layout};

/// A VM with two devices of either kind, 2 MiB of memory and no kernel.
const TEMPLATE: &str = include_str!("snapshot/state.json");
/// The most memory that is verified, in bytes: it is read.
const MOST_MEMORY: u64 = 4 << 20;
/// The most virtio devices and MSR devices of a state that are made: each has a thread, or tables.
const MOST_DEVICES: usize = 8;
const PAGE: u64 = 4096;

thread_local! {
    static FOLDER: Folder = Folder::new();
}

/// The first byte of `data` says what the others are.
pub fn run(data: &[u8]) {
    let Some((form, data)) = data.split_first() else {
        return;
    };
    FOLDER.with(|folder| match form % 3 {
        0 => folder.check(data),
        1 => folder.check(&with_header(VERSION, data)),
        _ => folder.check_changed(&mut Unstructured::new(data)),
    });
}

/// The parts of a state that are used without KVM.
#[derive(Deserialize)]
struct Parts {
    live: Vec<toml::Table>,
    disks: Vec<Value>,
    devices: Devices,
    checksums_crc32: u32,
}

#[derive(Deserialize)]
struct Devices {
    console: ConsoleState,
    virtio: Vec<VirtioState>,
    msr: BusState,
}

fn with_header(version: u64, body: &[u8]) -> Vec<u8> {
    let crc32 = crc32fast::hash(body);
    let header = format!(r#"{{"format":"msr-vmm snapshot","version":{version},"crc32":{crc32}}}"#);
    [header.as_bytes(), b"\n", body].concat()
}

/// A snapshot's folder, whose memory is zero.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let thread = std::thread::current().id();
        let name = format!("fuzz-snapshot.{}.{thread:?}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).expect("a folder for temporary files");
        Self(path)
    }

    fn read(&self, state: &[u8]) -> Result<Snapshot, RestoreError> {
        fs::write(self.0.join("state"), state).expect("room for a small file");
        Snapshot::read(&self.0)
    }

    fn check_changed(&self, u: &mut Unstructured<'_>) {
        let mut body = serde_json::from_str(TEMPLATE).expect("this file's own text");
        let Ok(unknown_key) = changes::make(&mut body, u) else {
            return;
        };
        let state = with_header(VERSION, body.to_string().as_bytes());
        if let Some(at) = unknown_key {
            let words = self.refusal(&state).to_string();
            assert!(words.contains("unknown field"), "{at}: {words}");
        }
        self.check(&state);
    }

    fn refusal(&self, state: &[u8]) -> RestoreError {
        match self.read(state) {
            Ok(_) => panic!("it is read: {}", String::from_utf8_lossy(state)),
            Err(error) => error,
        }
    }

    fn check(&self, state: &[u8]) {
        let snapshot = match self.read(state) {
            Ok(snapshot) => snapshot,
            Err(error) => return drop(error.to_string()),
        };
        let end = state.iter().position(|byte| *byte == b'\n');
        let body = &state[end.expect("a header that was read has an end") + 1..];
        let parts: Parts = serde_json::from_slice(body).expect("all of the state was read");

        let mut damaged = state.to_vec();
        let last = damaged.len() - 1;
        damaged[last] ^= 1;
        let error = self.refusal(&damaged);
        assert!(matches!(error, RestoreError::Checksum { .. }), "{error}");
        let error = self.refusal(&with_header(VERSION + 1, body));
        assert!(matches!(error, RestoreError::Version { .. }), "{error}");

        self.check_memory(&snapshot, &parts);
        check_disks(&snapshot, &parts);
        check_plan(snapshot.config(), &parts);
        for (number, state) in parts.devices.virtio.iter().take(MOST_DEVICES).enumerate() {
            check_virtio(state, number % 2 == 0);
        }
        check_console(&parts.devices.console);
    }

    /// Verified are pages of zeros, whose checksums are zero; the table of these has the checksum that the state says or it
    /// has not.
    fn check_memory(&self, snapshot: &Snapshot, parts: &Parts) {
        let size = snapshot.config().vm.memory.0;
        let made = size.min(MOST_MEMORY);
        let table = vec![0; made.div_ceil(PAGE) as usize * 4];
        let memory = File::create(self.0.join("memory")).expect("a file");
        memory.set_len(made).expect("a sparse file");
        fs::write(self.0.join("checksums"), &table).expect("room for a small file");
        let verified = snapshot.verify();
        let mapped = snapshot.map_memory(&snapshot.config().vm);
        if size > MOST_MEMORY {
            for error in [verified.err(), mapped.err()] {
                assert!(
                    matches!(error, Some(RestoreError::Size { .. })),
                    "{error:?}"
                );
            }
            return;
        }
        match verified {
            Ok(()) => assert_eq!(crc32fast::hash(&table), parts.checksums_crc32),
            Err(RestoreError::Checksum { .. }) => {
                assert_ne!(crc32fast::hash(&table), parts.checksums_crc32);
            }
            Err(error) => panic!("memory of {size} bytes: {error}"),
        }
        match mapped {
            Ok(memory) => assert_eq!(memory.iter().map(GuestMemoryRegion::len).sum::<u64>(), size),
            Err(error) => drop(error.to_string()),
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn check_disks(snapshot: &Snapshot, parts: &Parts) {
    let vm = &snapshot.config().vm;
    let same_count = vm.disks.len() == parts.disks.len();
    let changed = snapshot.check_disks(vm, true);
    assert_eq!(changed.is_ok(), same_count, "{changed:?}");
    let unchanged = snapshot.check_disks(vm, false);
    assert!(same_count || unchanged.is_err());
    if let Err(error) = unchanged.and(changed) {
        drop(error.to_string());
    }
    if let Err(error) = vm.check() {
        drop(error.to_string());
    }
}

fn plan(config: &Config) -> Option<MsrPlan> {
    let (topology, cpu) = (config.vm.topology().ok()?, config.cpu.cpu_identity().ok()?);
    if reads_the_host(config) || config.msr.devices.len() > MOST_DEVICES {
        return None;
    }
    let plan = MsrPlan::builder(topology, cpu)
        .device_clock(Arc::new(FakeClock::default()))
        .config(&config.msr, DeviceModel::all());
    match plan.and_then(MsrPlanBuilder::build) {
        Ok(plan) => Some(plan),
        Err(error) => {
            drop(error.to_string());
            None
        }
    }
}

fn check_plan(config: &Config, parts: &Parts) {
    let Some(plan) = plan(config) else {
        return;
    };
    for (device, keys) in plan.live.iter().zip(&parts.live) {
        match device.set(keys) {
            Ok(()) => device
                .set(&device.changes())
                .expect("what a device was given once"),
            Err(error) => assert!(device.changes().is_empty(), "{error}"),
        }
    }
    check_bus(&plan.bus, &parts.devices.msr);
}

fn check_bus(bus: &MsrBus, state: &BusState) {
    let before = bus.save();
    match bus.restore(state) {
        Ok(()) => {
            let saved = bus.save();
            bus.restore(&saved).expect("a bus takes what it has saved");
            assert_eq!(bus.save(), saved);
        }
        // The devices before that one have been restored already, as the documentation says.
        Err(error @ BusError::Device { .. }) => drop(error.to_string()),
        Err(error) => assert_eq!(bus.save(), before, "{error}"),
    }
}

/// A driver of a disk with this image, or of an entropy device.
fn driver(image: Option<&MemoryFile>) -> Driver {
    let Some(image) = image else {
        return Driver::new(Box::new(Entropy::new(None)));
    };
    let config = DiskConfig {
        path: image.path(),
        readonly: false,
        serial: None,
        rate_limiter: None,
    };
    Driver::new(Box::new(Block::open(&config).expect("a disk")))
}

/// A device that takes the state saves the same one; whatever it was told to do, it serves a driver that begins anew.
fn check_virtio(state: &VirtioState, block: bool) {
    let image = MemoryFile::new(&[0x5a; 1 << 14]);
    let mut driver = driver(block.then_some(&image));
    let text = |state: &VirtioState| serde_json::to_string(state).expect("a state is JSON");
    match driver.device.restore(state) {
        Ok(()) => {
            assert_eq!(text(&driver.device.save()), text(state));
            driver.device.resume();
            driver.device.pause().expect("a device that answers");
            driver.device.resume();
        }
        Err(error) => drop(error.to_string()),
    }
    driver.reset();
    driver.start();
    let data = Buffer::writable(layout::DATA, 512);
    if block {
        driver.put(layout::HEADER, &[0; 16]);
        let [header, status] = [(layout::HEADER, 16), (layout::STATUS, 1)];
        let header = Buffer::readable(header.0, header.1);
        let status = Buffer::writable(status.0, status.1);
        assert_eq!(driver.serve(&[header, data, status]), 513);
    } else {
        assert_eq!(driver.serve(&[data]), 512);
    }
}

fn check_console(state: &ConsoleState) {
    let irq = EventFd::new(libc::EFD_NONBLOCK).expect("an eventfd");
    let console = Console::new(irq, Box::new(std::io::sink())).expect("a thread");
    let before = console.save();
    match console.restore(state) {
        Ok(()) => {
            let saved = console.save();
            console
                .restore(&saved)
                .expect("a console takes what it has saved");
            assert_eq!(console.save(), saved);
        }
        Err(error) => assert_eq!(console.save(), before, "{error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Changes of a state that is refused from the start would reach nothing.
    #[test]
    fn the_state_that_is_changed_is_taken_whole() {
        let folder = Folder::new();
        let state = with_header(VERSION, TEMPLATE.as_bytes());
        let snapshot = folder.read(&state).expect("a state");
        let parts: Parts = serde_json::from_str(TEMPLATE).unwrap();
        folder.check_memory(&snapshot, &parts);
        snapshot.verify().unwrap();
        let plan = plan(snapshot.config()).expect("a plan");
        assert_eq!((plan.live.len(), parts.live.len()), (2, 2));
        for (device, keys) in plan.live.iter().zip(&parts.live) {
            device.set(keys).unwrap();
        }
        plan.bus.restore(&parts.devices.msr).unwrap();
        let image = MemoryFile::new(&[0; 1 << 14]);
        let [disk, entropy] = &parts.devices.virtio[..] else {
            panic!("{} devices", parts.devices.virtio.len());
        };
        driver(Some(&image)).device.restore(disk).unwrap();
        driver(None).device.restore(entropy).unwrap();
        folder.check(&state);
    }
}
