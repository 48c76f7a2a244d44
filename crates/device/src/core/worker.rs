//! A thread for a device's own work. Without it, a device works only within requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use whimbrel_protocol::Errno;

use super::file::DeviceFile;

/// Drives a device's [`Driver::advance`](crate::Driver::advance) until it is dropped.
#[derive(Debug)]
pub struct Worker {
    device: DeviceFile,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts the thread. EAGAIN if the process can have no more threads.
    pub fn start(device: DeviceFile) -> Result<Worker, Errno> {
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::Builder::new()
            .name(format!("device {}", device.name()))
            .spawn({
                let (device, stop) = (device.clone(), stop.clone());
                move || device.work_until(&stop)
            })
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::EAGAIN))?;
        Ok(Worker { device, stop, thread: Some(thread) })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.device.wake();
        if let Some(thread) = self.thread.take() {
            // A driver that panicked has already said so on stderr.
            let _ = thread.join();
        }
    }
}
