//! The host's MSRs, through its msr module.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::Duration;

/// The MSRs of the host's CPUs.
pub trait HostMsrs: Send + Sync {
    /// RDMSR on a CPU of the host.
    ///
    /// # Errors
    ///
    /// EIO where the CPU answers #GP; others where it is offline or access is refused.
    fn read(&self, cpu: u32, index: u32) -> io::Result<u64>;

    /// WRMSR on a CPU of the host.
    ///
    /// # Errors
    ///
    /// EIO where the CPU answers #GP; others where it is offline or access is refused.
    fn write(&self, cpu: u32, index: u32, value: u64) -> io::Result<()>;

    /// The CPU that the calling thread runs on. It may have moved on by the time the answer is used.
    fn running_cpu(&self) -> u32;

    /// Lets the calling vCPU's thread wait for its turn to write.
    fn wait(&self, time: Duration) {
        thread::sleep(time);
    }
}

/// The files `/dev/cpu/N/msr` (msr(4)), opened once.
#[derive(Debug)]
pub struct DevCpu {
    /// By the CPU's number; `None` for CPUs that were offline or not asked for.
    files: Vec<Option<File>>,
}

impl DevCpu {
    /// Opens the files of `cpus`, for writing too if `write`.
    ///
    /// # Errors
    ///
    /// A message that names the file and says what the host lacks.
    pub fn open(cpus: &[u32], write: bool) -> Result<Self, String> {
        let mut files = Vec::new();
        for &cpu in cpus {
            let path = format!("/dev/cpu/{cpu}/msr");
            let file = OpenOptions::new().read(true).write(write).open(&path);
            let file = file.map_err(|e| {
                let hint = match e.kind() {
                    io::ErrorKind::NotFound => {
                        "the host needs the msr module (modprobe msr) and that CPU online"
                    }
                    io::ErrorKind::PermissionDenied => {
                        "it takes root's file permissions and CAP_SYS_RAWIO, and a kernel that is not locked down"
                    }
                    _ => "is the host's msr module at work?",
                };
                format!("cannot open {path}: {e}; {hint}")
            })?;
            let place = cpu as usize;
            if files.len() <= place {
                files.resize_with(place + 1, || None);
            }
            files[place] = Some(file);
        }
        Ok(Self { files })
    }

    fn file(&self, cpu: u32) -> io::Result<&File> {
        let file = self.files.get(cpu as usize).and_then(Option::as_ref);
        file.ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl HostMsrs for DevCpu {
    fn read(&self, cpu: u32, index: u32) -> io::Result<u64> {
        let mut value = [0; 8];
        self.file(cpu)?
            .read_exact_at(&mut value, u64::from(index))?;
        Ok(u64::from_ne_bytes(value))
    }

    fn write(&self, cpu: u32, index: u32, value: u64) -> io::Result<()> {
        self.file(cpu)?
            .write_all_at(&value.to_ne_bytes(), u64::from(index))
    }

    fn running_cpu(&self) -> u32 {
        // SAFETY: it takes no arguments and touches no memory of ours.
        let cpu = unsafe { libc::sched_getcpu() };
        // It fails on kernels without getcpu only, and no CPU has that number.
        u32::try_from(cpu).unwrap_or(u32::MAX)
    }
}
