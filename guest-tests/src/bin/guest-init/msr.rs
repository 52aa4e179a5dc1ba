//! MSRs through Linux's msr driver, `/dev/cpu/N/msr`.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Barrier;
use std::thread;

/// The MSRs of a CPU, as the kernel reads and writes them there.
pub(crate) struct Msrs(File);

impl Msrs {
    pub(crate) fn of(cpu: u32) -> io::Result<Self> {
        let path = format!("/dev/cpu/{cpu}/msr");
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map(Self)
    }

    pub(crate) fn read(&self, index: u32) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.0.read_exact_at(&mut bytes, index.into())?;
        Ok(u64::from_le_bytes(bytes))
    }

    pub(crate) fn write(&self, index: u32, value: u64) -> io::Result<()> {
        self.0.write_all_at(&value.to_le_bytes(), index.into())
    }

    /// The readable ones among `first..=last`. An error other than #GP ends the scan.
    pub(crate) fn scan(&self, first: u32, last: u32) -> io::Result<Vec<(u32, u64)>> {
        let mut readable = Vec::new();
        for index in first..=last {
            match self.read(index) {
                Ok(value) => readable.push((index, value)),
                Err(error) if error.raw_os_error() == Some(libc::EIO) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(readable)
    }
}

/// Does the same on every online CPU at once, each from a thread pinned there, and returns the
/// results by CPU number.
pub(crate) fn on_all<F>(work: F) -> io::Result<Vec<(u32, u64)>>
where
    F: Fn(u32, &Msrs) -> io::Result<u64> + Sync,
{
    on_all_cpus(|cpu| work(cpu, &Msrs::of(cpu)?))
}

/// The same without the MSRs.
fn on_all_cpus<F>(work: F) -> io::Result<Vec<(u32, u64)>>
where
    F: Fn(u32) -> io::Result<u64> + Sync,
{
    let cpus = thread::available_parallelism()?.get();
    let start = Barrier::new(cpus);
    let run = |cpu: u32| {
        let ready = pin(cpu);
        // Failed or not: the others wait for everyone.
        start.wait();
        ready?;
        Ok((cpu, work(cpu)?))
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..cpus as u32)
            .map(|cpu| scope.spawn(move || run(cpu)))
            .collect();
        threads
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|_| Err(io::Error::other("panic")))
            })
            .collect()
    })
}

/// Has this thread run on one CPU only.
pub(crate) fn pin(cpu: u32) -> io::Result<()> {
    // SAFETY: cpu_set_t is plain integers, for which zero is a value.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    let cpu = cpu as usize;
    if cpu >= libc::CPU_SETSIZE as usize {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: the CPU is within the set, checked above.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: the set is valid for the size given.
    if unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
