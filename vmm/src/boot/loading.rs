//! Kernel and initial RAM disk, loaded on a thread of their own while KVM is set up.

use std::io;
use std::panic;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use super::{BootError, Images};
use crate::memory::GuestMemoryMmap;
use crate::timing::{BootEvent, BootTiming};

/// Images on their way into guest memory. Dropping it waits for the thread.
pub(crate) struct Loading {
    thread: Option<JoinHandle<Result<Images, BootError>>>,
}

impl Loading {
    /// Starts to load them.
    ///
    /// # Errors
    ///
    /// Where the host has no more threads.
    pub(crate) fn start(
        memory: GuestMemoryMmap,
        kernel: PathBuf,
        kaslr: bool,
        initrd: Option<PathBuf>,
        timing: Option<Arc<BootTiming>>,
    ) -> io::Result<Self> {
        let thread = thread::Builder::new()
            .name("loader".to_owned())
            .spawn(move || {
                let images = Images::load(&memory, &kernel, kaslr, initrd.as_deref());
                if let Some(timing) = timing {
                    timing.mark(BootEvent::KernelLoaded);
                }
                images
            })?;
        Ok(Self {
            thread: Some(thread),
        })
    }

    /// Waits until they are loaded.
    pub(crate) fn finish(mut self) -> Result<Images, BootError> {
        // Taken here and when it is dropped only.
        let thread = self.thread.take().expect("the thread is still there");
        thread
            .join()
            .unwrap_or_else(|panicked| panic::resume_unwind(panicked))
    }
}

impl Drop for Loading {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            // The set-up has failed already, so what became of the images is of no interest.
            let _ = thread.join();
        }
    }
}
