//! The files of a snapshot.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use msr_bus::LiveKeys;
use msr_kvm::state::{MsrStatePlan, TscOffsets};
use serde::{Deserialize, Serialize};

use super::clock;
use super::disks::{self, DiskIdentity};
use super::error::RestoreError;
use super::host::{self, Leaf};
use super::machine::{DeviceStates, Devices, KvmState};
use super::memory;
use super::vcpu::VcpuState;
use crate::config::{Config, VmConfig};
use crate::memory::GuestMemoryMmap;

/// The version of the format that this program writes and reads.
pub const VERSION: u64 = 1;

pub(super) const FORMAT: &str = "msr-vmm snapshot";
pub(super) const STATE: &str = "state";
pub(super) const MEMORY: &str = "memory";
pub(super) const CHECKSUMS: &str = "checksums";
/// The most bytes that `state` can have: 128 vCPUs and full register tables need a few MiB.
const MAX_STATE: u64 = 256 << 20;

/// The first line of the state's file. Its keys are the same in every version.
#[derive(Serialize, Deserialize)]
pub(super) struct Header {
    pub(super) format: String,
    pub(super) version: u64,
    /// Of everything after this line (CRC-32, as in gzip).
    pub(super) crc32: u32,
}

/// Everything but memory.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Body {
    pub(super) config: Config,
    /// For each MSR device of the configuration, the keys that were set while the guest ran.
    pub(super) live: Vec<toml::Table>,
    pub(super) cpuid: Vec<Vec<Leaf>>,
    pub(super) tsc_khz: u32,
    pub(super) disks: Vec<DiskIdentity>,
    pub(super) kvm: KvmState,
    pub(super) vcpus: Vec<VcpuState>,
    pub(super) tsc_offsets: TscOffsets,
    pub(super) devices: DeviceStates,
    /// The checksum of the file of memory's checksums (CRC-32, as in gzip).
    pub(super) checksums_crc32: u32,
}

/// A snapshot that was read and is whole.
#[derive(Clone)]
pub struct Snapshot {
    folder: PathBuf,
    body: Arc<Body>,
}

impl Snapshot {
    /// Reads the snapshot in `folder` and checks its format, version and checksum.
    ///
    /// # Errors
    ///
    /// [`RestoreError`].
    pub fn read(folder: &Path) -> Result<Self, RestoreError> {
        let path = folder.join(STATE);
        let bytes = read_bounded(&path)?;
        let body = parse(&path, &bytes)?;
        let vcpus = body.config.vm.topology();
        let vcpus = vcpus.map_err(|error| RestoreError::Damaged(error.to_string()))?;
        let vcpus = vcpus.vcpus() as usize;
        if body.vcpus.len() != vcpus || body.cpuid.len() != vcpus {
            return Err(RestoreError::Damaged(format!(
                "it has {} vCPUs with CPUID for {}, and its configuration {vcpus}",
                body.vcpus.len(),
                body.cpuid.len()
            )));
        }
        Ok(Self {
            folder: folder.to_owned(),
            body: Arc::new(body),
        })
    }

    /// The configuration of the VM.
    pub fn config(&self) -> &Config {
        &self.body.config
    }

    /// Reads all of the memory and compares it with the checksums that it was saved with. Restoring does not need it.
    ///
    /// # Errors
    ///
    /// [`RestoreError::Memory`] tells where the memory is damaged; [`RestoreError::Size`], [`RestoreError::Checksum`] and
    /// [`RestoreError::Read`].
    pub fn verify(&self) -> Result<(), RestoreError> {
        memory::verify(
            &self.body.config.vm,
            &self.folder.join(MEMORY),
            &self.folder.join(CHECKSUMS),
            self.body.checksums_crc32,
        )
    }

    /// Maps the memory for a VM of `config`, which has as much, privately: what is written to it stays out of the snapshot.
    /// Nothing of it is read yet.
    ///
    /// # Errors
    ///
    /// [`RestoreError::Size`], [`RestoreError::Read`], [`RestoreError::Map`] and [`RestoreError::Damaged`].
    pub fn map_memory(&self, config: &VmConfig) -> Result<GuestMemoryMmap, RestoreError> {
        memory::map(config, &self.folder.join(MEMORY))
    }

    /// Whether the disks of `config` will do; `changed` where it does not matter that they were written to.
    ///
    /// # Errors
    ///
    /// [`RestoreError::DiskCount`], [`RestoreError::Disk`] and [`RestoreError::Read`].
    pub fn check_disks(&self, config: &VmConfig, changed: bool) -> Result<(), RestoreError> {
        disks::check(config, &self.body.disks, changed)
    }

    /// Whether the guest finds the CPU that it has seen.
    pub(crate) fn check_cpuid(&self, here: &[Vec<Leaf>]) -> Result<(), RestoreError> {
        for (saved, here) in self.body.cpuid.iter().zip(here) {
            let differences = host::differences(saved, here);
            if !differences.is_empty() {
                return Err(RestoreError::Cpuid(differences));
            }
        }
        Ok(())
    }

    /// Has the vCPUs' TSCs count as fast as they did, and gives how fast that is.
    pub(crate) fn set_tsc_khz(&self, fds: &[VcpuFd], here: u32) -> Result<u32, RestoreError> {
        let saved = self.body.tsc_khz;
        if saved == here {
            return Ok(saved);
        }
        for fd in fds {
            fd.set_tsc_khz(saved)
                .map_err(|source| RestoreError::TscFrequency {
                    saved,
                    here,
                    source,
                })?;
        }
        Ok(saved)
    }

    /// Gives a VM, which has everything that its configuration says, its state.
    pub(crate) fn restore(
        &self,
        kvm: &Kvm,
        vm: &VmFd,
        fds: &[VcpuFd],
        devices: &Devices<'_>,
        live: &[LiveKeys],
    ) -> Result<(), RestoreError> {
        if live.len() != self.body.live.len() {
            return Err(RestoreError::Damaged(format!(
                "it has keys of {} MSR devices, and its configuration {}",
                self.body.live.len(),
                live.len()
            )));
        }
        for (device, changes) in live.iter().zip(&self.body.live) {
            // A model that has no such keys refuses even none.
            if !changes.is_empty() {
                device.set(changes)?;
            }
        }
        let msrs = self.body.vcpus.iter().map(|vcpu| &vcpu.msrs);
        let plan = MsrStatePlan::for_restoring(kvm, &fds[0], msrs, |index| {
            is_answered_by(devices.bus, index)
        })?;
        // All of them, before one is changed.
        for (vcpu, state) in self.body.vcpus.iter().enumerate() {
            plan.check(&state.msrs)
                .map_err(|source| RestoreError::Msrs { vcpu, source })?;
        }
        self.body.kvm.restore(vm)?;
        for (number, (state, fd)) in self.body.vcpus.iter().zip(fds).enumerate() {
            state.restore(number, fd, &plan)?;
        }
        self.body.tsc_offsets.restore(fds)?;
        // A snapshot has as many vCPUs as its configuration, which is at least one.
        let (first, clock) = (&self.body.vcpus[0], self.body.kvm.clock());
        clock::restore(vm, &fds[0], first, clock, self.body.tsc_khz)?;
        devices.restore(&self.body.devices)
    }
}

/// Which MSRs KVM keeps, and not a device of the bus.
pub(super) fn msr_plan(
    kvm: &Kvm,
    vcpu: &VcpuFd,
    bus: &msr_bus::MsrBus,
) -> Result<MsrStatePlan, msr_kvm::state::PlanStateError> {
    MsrStatePlan::new(kvm, vcpu, |index| is_answered_by(bus, index))
}

/// Whether a device of the bus keeps an MSR.
fn is_answered_by(bus: &msr_bus::MsrBus, index: u32) -> bool {
    bus.device(index)
        .is_some_and(|device| !device.leaves_to_kvm(index))
}

/// The file at `path`, which must be one and no larger than a state can be.
fn read_bounded(path: &Path) -> Result<Vec<u8>, RestoreError> {
    let read = |source| RestoreError::Read {
        path: path.to_owned(),
        source,
    };
    // A pipe would be waited for, a device read without end.
    let metadata = fs::metadata(path).map_err(read)?;
    if !metadata.is_file() || metadata.len() > MAX_STATE {
        return Err(RestoreError::Format {
            path: path.to_owned(),
            what: format!("it is no file of at most {} MiB", MAX_STATE >> 20),
        });
    }
    fs::read(path).map_err(read)
}

fn parse(path: &Path, bytes: &[u8]) -> Result<Body, RestoreError> {
    let format = |what: String| RestoreError::Format {
        path: path.to_owned(),
        what,
    };
    let end = bytes
        .iter()
        .position(|byte| *byte == b'\n')
        .ok_or_else(|| format("its first line has no end".into()))?;
    let header: Header = serde_json::from_slice(&bytes[..end])
        .map_err(|error| format(format!("its first line: {error}")))?;
    if header.format != FORMAT {
        return Err(format(format!("its format is `{}`", header.format)));
    }
    if header.version != VERSION {
        return Err(RestoreError::Version {
            path: path.to_owned(),
            found: header.version,
            expected: VERSION,
        });
    }
    let text = &bytes[end + 1..];
    let found = crc32fast::hash(text);
    if found != header.crc32 {
        return Err(RestoreError::Checksum {
            path: path.to_owned(),
            found,
            expected: header.crc32,
        });
    }
    serde_json::from_slice(text).map_err(|error| RestoreError::Damaged(error.to_string()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(bytes: &[u8]) -> RestoreError {
        match parse(Path::new("state"), bytes) {
            Ok(_) => panic!("that is no snapshot"),
            Err(error) => error,
        }
    }

    fn with_header(version: u64, crc32: u32, body: &str) -> Vec<u8> {
        let header = Header {
            format: FORMAT.into(),
            version,
            crc32,
        };
        format!("{}\n{body}", serde_json::to_string(&header).unwrap()).into_bytes()
    }

    #[test]
    fn what_is_wrong_with_a_file_is_told_in_the_order_in_which_it_can_be_known() {
        let sum = crc32fast::hash(b"{}");
        for (bytes, words) in [
            (b"".to_vec(), "no snapshot"),
            (b"{\"format\":1}\n".to_vec(), "its first line"),
            (
                b"{\"format\":\"core\",\"version\":1,\"crc32\":0}\n".to_vec(),
                "its format is `core`",
            ),
            (with_header(2, sum, "{}"), "version 2"),
            (with_header(VERSION, sum ^ 1, "{}"), "checksum"),
            (with_header(VERSION, sum, "{}"), "missing field `config`"),
        ] {
            let error = parsed(&bytes).to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_are_taken_for_a_snapshot(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            parsed(&bytes);
        }

        #[test]
        fn no_text_with_the_right_checksum_is_either(body in "\\PC{0,200}") {
            parsed(&with_header(VERSION, crc32fast::hash(body.as_bytes()), &body));
        }
    }

    #[test]
    fn a_state_that_is_no_file_or_has_no_end_is_not_read() {
        let at = folder("endless");
        fs::create_dir(&at).unwrap();
        std::os::unix::fs::symlink("/dev/zero", at.join(STATE)).unwrap();
        let error = Snapshot::read(&at).err().unwrap().to_string();
        assert!(error.contains("no file of at most 256 MiB"), "{error}");
        fs::remove_file(at.join(STATE)).unwrap();
        let file = fs::File::create_new(at.join(STATE)).unwrap();
        file.set_len(MAX_STATE + 1).unwrap();
        let error = Snapshot::read(&at).err().unwrap().to_string();
        assert!(error.contains("no file of at most 256 MiB"), "{error}");
        fs::remove_dir_all(&at).unwrap();
    }

    fn folder(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("snapshot.{name}.{}", std::process::id()))
    }
}
