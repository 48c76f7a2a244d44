//! A device with its worker thread.

use std::ops::Deref;

use whimbrel_protocol::Errno;

use super::file::DeviceFile;
use super::worker::Worker;

/// A device with its [`Worker`], if it has work of its own. The worker stops when this is dropped.
///
/// ```
/// use whimbrel_device::{DeviceFile, DeviceInfoFlags, Driver, Info, WorkingDevice};
///
/// struct Idle;
///
/// impl Driver for Idle {
///     fn info(&self) -> Info {
///         Info::new(DeviceInfoFlags::empty())
///     }
/// }
///
/// let working = WorkingDevice::start(DeviceFile::new("idle", |_| Idle))?;
/// assert_eq!(working.info().num_regions, 0);
/// let device = working.into_device();
/// assert_eq!(device.name(), "idle");
/// # Ok::<(), whimbrel_device::Errno>(())
/// ```
#[derive(Debug)]
pub struct WorkingDevice {
    device: DeviceFile,
    worker: Option<Worker>,
}

impl WorkingDevice {
    /// Starts a worker for a device. EAGAIN if the process can have no more threads.
    pub fn start(device: DeviceFile) -> Result<WorkingDevice, Errno> {
        let worker = Worker::start(device.clone())?;
        Ok(WorkingDevice { device, worker: Some(worker) })
    }

    /// Returns the device's file.
    pub fn device(&self) -> &DeviceFile {
        &self.device
    }

    /// Returns whether a worker runs the device.
    pub fn has_worker(&self) -> bool {
        self.worker.is_some()
    }

    /// Stops the worker, and returns the device's file.
    pub fn into_device(self) -> DeviceFile {
        self.device
    }
}

impl Deref for WorkingDevice {
    type Target = DeviceFile;

    fn deref(&self) -> &DeviceFile {
        &self.device
    }
}

/// A device that only answers requests.
impl From<DeviceFile> for WorkingDevice {
    fn from(device: DeviceFile) -> WorkingDevice {
        WorkingDevice { device, worker: None }
    }
}
