//! The library's pause: nothing of the guest or its devices moves until it resumes.

use std::fs;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use guest_tests::assets;
use guest_tests::guest::{COMMAND_LINE, Folder, Initrd};
use libtest_mimic::Failed;
use msr_vmm::config::MemorySize;
use msr_vmm::devices::virtio::block::DiskConfig;
use msr_vmm::{Config, Vm};

use super::ext4;

/// How long the guest may take to get on.
const TIMEOUT: Duration = Duration::from_secs(120);
/// How often it is paused.
const PAUSES: u32 = 3;

/// A console's text.
#[derive(Clone, Default)]
struct Text(Arc<Mutex<Vec<u8>>>);

impl Write for Text {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut text = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Text {
    fn so_far(&self) -> String {
        let text = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Waits until more than `records` have been fsynced.
    fn wait_for_more_than(&self, records: u64) -> Result<(), Failed> {
        let begin = Instant::now();
        while ext4::last_number(&self.so_far(), "fsynced").is_none_or(|now| now <= records) {
            if begin.elapsed() > TIMEOUT {
                return Err(format!("not more than {records}: {}", self.so_far()).into());
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

pub(super) fn a_paused_vm_writes_nothing() -> Result<(), Failed> {
    let folder = Folder::new()?;
    let image = ext4::make(&folder)?;
    let kernel = assets::kernel()?;
    let mut config = Config::default();
    config.vm.memory = MemorySize(128 << 20);
    config.vm.kernel = Some(kernel.image().to_owned());
    let initrd = Initrd::new(&ext4::plan(), &kernel)?.finish();
    config.vm.initrd = Some(folder.file("initrd", initrd)?);
    COMMAND_LINE.clone_into(&mut config.vm.cmdline);
    config.vm.disks.push(DiskConfig {
        path: image.clone(),
        readonly: false,
        serial: None,
        rate_limiter: None,
    });
    let console = Text::default();
    let running = Vm::builder(config)
        .console_output(console.clone())
        .build()?
        .start()?;

    let mut records = 0;
    for _ in 0..PAUSES {
        console.wait_for_more_than(records)?;
        running.pause()?;
        let before = (console.so_far(), fs::read(&image)?);
        thread::sleep(Duration::from_millis(300));
        if before != (console.so_far(), fs::read(&image)?) {
            return Err("something went on during the pause".into());
        }
        records = ext4::last_number(&before.0, "fsynced").unwrap_or(0);
        let recovered = ext4::recovered_records(&image, &folder)?;
        if recovered < records {
            return Err(format!("{recovered} of {records} are there").into());
        }
        running.resume();
    }
    console.wait_for_more_than(records)?;
    running.stop();
    running.wait();
    Ok(())
}
