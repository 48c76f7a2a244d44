//! A guest that writes memory at a given rate until it is paused.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vm_memory::bitmap::AtomicBitmap;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use whimbrel_engine::{Guest, GuestError};

pub(super) type Memory = GuestMemoryMmap<AtomicBitmap>;

const PAGE: u64 = 4096;

/// The guest: one thread, which writes one page after the other, and begins again at the first one.
pub(super) struct Writer {
    runs: Arc<Mutex<bool>>,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Starts to write `rate` bytes per second, in whole pages.
    pub(super) fn start(memory: Arc<Memory>, rate: u64) -> Writer {
        let (runs, ends) = (Arc::new(Mutex::new(true)), Arc::new(AtomicBool::new(false)));
        let (running, ending) = (runs.clone(), ends.clone());
        let thread = std::thread::spawn(move || {
            let pages = memory.last_addr().0 / PAGE + 1;
            let (began, mut written) = (Instant::now(), 0);
            while !ending.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(1));
                let micros = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
                let due = micros.saturating_mul(rate) / 1_000_000 / PAGE;
                let runs = running.lock().unwrap_or_else(PoisonError::into_inner);
                while *runs && written < due {
                    let _ = memory.write_obj(written, GuestAddress(written % pages * PAGE));
                    written += 1;
                }
            }
        });
        Writer { runs, ends, thread: Some(thread) }
    }

    fn set(&self, runs: bool) {
        *self.runs.lock().unwrap_or_else(PoisonError::into_inner) = runs;
    }
}

impl Guest for Writer {
    fn pause(&mut self) -> Result<(), GuestError> {
        self.set(false);
        Ok(())
    }

    fn resume(&mut self) -> Result<(), GuestError> {
        self.set(true);
        Ok(())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It cannot panic.
            let _ = thread.join();
        }
    }
}
