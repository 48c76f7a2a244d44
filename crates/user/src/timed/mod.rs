//! A device whose driver may hang: every call into it has a timeout.
//!
//! A call into a driver cannot be interrupted. [`Timed`] makes each one on a thread of its device and waits for it no longer
//! than its timeout. [`Error::Overdue`] then names the device, the request and the time waited, and the device is lost for
//! as long as the call lasts: every further request fails at once with [`Error::Lost`], which names the call that has not
//! returned. Nothing is known of the device's state meanwhile.
//!
//! A request may come while another thread's is made: it waits for its turn, for up to the timeout, and then has the whole
//! timeout for itself. So a request returns within twice the timeout.
//!
//! If the call returns after all, its result is discarded: a session that it opened is closed, and a log that it started is
//! stopped. From then on requests are made again. The device may be in any state, so query it. Data may have been lost:
//! sessions that were open at the timeout are closed, and a dirty log whose report was late needs a new start
//! ([`Error::Torn`]).
//!
//! ```
//! use std::time::Duration;
//!
//! use whimbrel_device::wrap::fault::Faults;
//! use whimbrel_models::Model;
//! use whimbrel_user::{Error, Local, Migratable, State, Timed};
//!
//! let faults: Faults = "delay STOP_COPY 500ms".parse()?;
//! let device = Local::new("serial".parse::<Model>()?.open_with_faults("console", faults)?);
//! let mut device = Timed::new(Box::new(device), Duration::from_millis(50))?;
//! assert_eq!(device.state()?, State::Running);
//!
//! let error = device.go_to(State::StopCopy).unwrap_err();
//! let request = "VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE to STOP_COPY";
//! assert_eq!(error.to_string(), format!("console: {request} has not returned for 50 ms"));
//! assert!(matches!(device.state(), Err(Error::Lost { .. })));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod call_thread;
mod session;

use std::fmt;
use std::ops::DerefMut;
use std::sync::Arc;
use std::time::Duration;

use whimbrel_protocol::dirty::{DirtyReport, IovaRange};
use whimbrel_protocol::info::Info;
use whimbrel_protocol::region::Version;
use whimbrel_protocol::reset::ResetRule;
use whimbrel_protocol::{MigrationFlags, State};
use whimbrel_uapi::feature::{Feature, FeatureFlags};
use whimbrel_uapi::ioctl;

use self::call_thread::{CallThread, ThreadState, closed};
use crate::data_file::DataFile;
use crate::error::{Error, Result};
use crate::identity::Identity;
use crate::migratable::Migratable;
use crate::operation::Operation;
use crate::setup::DeviceSetup;

/// A device that is called on a thread of its own, each time with a timeout. See the [module](self).
///
/// `D` is any pointer to a device: `Box<dyn Migratable>`, `Box<dyn Device>`, a box of the caller's own type.
///
/// Dropping it closes the device, and waits for that no longer than for a call. A thread that is left in a call closes the
/// device once the call returns.
///
/// The files of its sessions have no descriptor to wait on ([`DataFile::as_fd`] returns `None`).
pub struct Timed<D: DerefMut<Target: Migratable> + Send + 'static> {
    thread: Arc<CallThread<D>>,
    holder: Option<String>,
    region_version: Option<Version>,
    reset_rule: Option<ResetRule>,
    /// Set while the dirty log may lack pages, because a report of it was late.
    log_is_torn: bool,
}

/// A device that could not be wrapped or unwrapped, and the reason.
#[non_exhaustive]
pub struct Refused<T> {
    /// The reason.
    pub error: Box<Error>,
    /// The device, or its wrapper, unchanged.
    pub device: T,
}

impl<D: DerefMut<Target: Migratable> + Send + 'static> Timed<D> {
    /// Starts the device's thread. Calls that take longer than `timeout` fail.
    ///
    /// Only the device's name, holder, region version and reset rule are asked for here, which need no call into a driver.
    /// If the system refuses a thread, the device comes back.
    pub fn new(device: D, timeout: Duration) -> std::result::Result<Timed<D>, Refused<D>> {
        let (holder, region_version) = (device.holder(), device.region_version());
        let reset_rule = device.reset_rule();
        let name = device.name().to_string();
        let thread = CallThread::start(name, device, timeout)
            .map_err(|(device, error)| Refused { error: Box::new(error), device })?;
        Ok(Timed { thread, holder, region_version, reset_rule, log_is_torn: false })
    }

    /// Returns the device, if no call into it is pending. Its open sessions are closed.
    pub fn into_inner(self) -> std::result::Result<D, Refused<Timed<D>>> {
        let taken = self.thread.call(
            "release of the device".into(),
            |thread| {
                thread.sessions.clear();
                thread.device.take().ok_or_else(|| closed(&thread.name))
            },
            // Nobody waited for it.
            |thread, device| thread.device = device.ok(),
        );
        match taken.flatten() {
            Ok(device) => Ok(device),
            Err(error) => Err(Refused { error: Box::new(error), device: self }),
        }
    }

    /// Makes a request.
    fn request<T: Send + 'static>(
        &mut self,
        request: impl Into<Operation>,
        make: impl FnOnce(&mut D::Target) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.thread.call(request.into(), |thread| make(thread.device()?), |_, _| {})?
    }
}

impl<D: DerefMut<Target: Migratable> + Send + 'static> ThreadState<D> {
    fn device(&mut self) -> Result<&mut D::Target> {
        self.device.as_deref_mut().ok_or_else(|| closed(&self.name))
    }
}

impl<D: DerefMut<Target: Migratable> + Send + 'static> Migratable for Timed<D> {
    fn name(&self) -> &str {
        self.thread.name()
    }

    fn info(&mut self) -> Result<Info> {
        self.request(ioctl::VFIO_DEVICE_GET_INFO, Migratable::info)
    }

    fn identity(&mut self) -> Result<Identity> {
        self.request("GET of the device's identity", Migratable::identity)
    }

    fn reset(&mut self) -> Result<()> {
        self.request(ioctl::VFIO_DEVICE_RESET, Migratable::reset)
    }

    fn probe_feature(&mut self, feature: Feature, directions: FeatureFlags) -> Result<bool> {
        self.request(Operation::Probe(feature), move |device| device.probe_feature(feature, directions))
    }

    fn migration_flags(&mut self) -> Result<Option<MigrationFlags>> {
        self.request(Feature::Migration, Migratable::migration_flags)
    }

    fn state(&mut self) -> Result<State> {
        self.request(Feature::MigDeviceState, Migratable::state)
    }

    fn set_state(&mut self, state: State) -> Result<Option<DataFile>> {
        let opened = self.thread.call(
            Operation::SetState(state),
            move |thread| {
                let opened = thread.device()?.set_state(state)?;
                Ok(opened.map(|data| thread.keep(data)))
            },
            // All sessions are closed.
            |_, _: Result<_>| {},
        )?;
        Ok(opened?.map(|opened| session::file(&self.thread, opened)))
    }

    fn data_size(&mut self) -> Result<u64> {
        self.request(Feature::MigDataSize, Migratable::data_size)
    }

    fn enable_precopy_info_v2(&mut self) -> Result<bool> {
        self.request(Feature::MigPrecopyInfoV2, Migratable::enable_precopy_info_v2)
    }

    fn dma_logging_start(&mut self, page_size: u64, ranges: &[IovaRange]) -> Result<u64> {
        let ranges = ranges.to_vec();
        let started = self.thread.call(
            Feature::DmaLoggingStart.into(),
            move |thread| thread.device()?.dma_logging_start(page_size, &ranges),
            |thread, started| {
                // Its owner was told that there is no log. A device that fails here keeps logging, which costs time alone.
                if let (Ok(_), Ok(device)) = (started, thread.device()) {
                    let _ = device.dma_logging_stop();
                }
            },
        )??;
        self.log_is_torn = false;
        Ok(started)
    }

    fn dma_logging_stop(&mut self) -> Result<()> {
        self.request(Feature::DmaLoggingStop, Migratable::dma_logging_stop)
    }

    fn dma_logging_report(&mut self, report: &mut DirtyReport<'_>) -> Result<()> {
        let request = Operation::from(Feature::DmaLoggingReport);
        let (range, page_size) = (report.range(), report.page_size());
        let mut words = vec![0; report.words_mut().len()];
        let is_torn = self.log_is_torn;
        let answer = self.thread.call(
            request.clone(),
            move |thread| {
                let result = if is_torn {
                    Err(thread.torn(request.clone(), request))
                } else {
                    let name = thread.name.clone();
                    DirtyReport::new(range.iova(), range.length(), page_size, &mut words)
                        .map_err(Error::at(&name, request))
                        .and_then(|mut report| thread.device()?.dma_logging_report(&mut report))
                };
                (words, result)
            },
            |_, _| {},
        );
        // A report empties the log, so that the pages of a late one are lost.
        self.log_is_torn |= matches!(answer, Err(Error::Overdue { .. }));
        let (words, result) = answer?;
        // Also after a failure: the driver may have emptied a part of the log.
        report.words_mut().iter_mut().zip(words).for_each(|(word, bits)| *word |= bits);
        result
    }

    fn save_setup(&mut self) -> Result<Option<DeviceSetup>> {
        self.request("save of the device's setup", Migratable::save_setup)
    }

    fn restore_setup(&mut self, setup: &DeviceSetup) -> Result<()> {
        let setup = setup.clone();
        self.request("restore of the device's setup", move |device| device.restore_setup(&setup))
    }

    fn holder(&self) -> Option<String> {
        self.holder.clone()
    }

    fn region_version(&self) -> Option<Version> {
        self.region_version
    }

    fn reset_rule(&self) -> Option<ResetRule> {
        self.reset_rule
    }
}

impl<D: DerefMut<Target: Migratable> + Send + 'static> Drop for Timed<D> {
    fn drop(&mut self) {
        self.thread.close("close of the device".into(), |thread| thread.device = None);
    }
}

impl<D: DerefMut<Target: Migratable> + Send + 'static> fmt::Debug for Timed<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timed").field("device", &self.thread.name()).finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for Refused<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refused").field("error", &self.error).finish_non_exhaustive()
    }
}

impl<T> fmt::Display for Refused<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl<T> std::error::Error for Refused<T> {}
