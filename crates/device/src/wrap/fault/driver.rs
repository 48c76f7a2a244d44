//! The wrapper that injects the faults.

use std::fmt;

use whimbrel_protocol::arc::ArcError;
use whimbrel_protocol::compatibility::Compatibility;
use whimbrel_protocol::dirty::{DirtyReport, LoggingRanges};
use whimbrel_protocol::precopy::{PrecopyBytes, PrecopyReport};
use whimbrel_protocol::{Errno, MigrationFlags, State};

use super::{DataFault, Fault, FaultKind, Faults};
use crate::driver::{Context, DmaLogging, Driver, Migration};
use crate::wrap::forward::forward;

/// A driver that behaves as another one except for its faults.
pub struct Faulty {
    inner: Box<dyn Driver>,
    faults: Faults,
    flags: MigrationFlags,
    /// The inner driver's temporary end of pre-copy.
    end: Result<usize, Errno>,
    /// Bytes of the session that were read or written.
    at: u64,
    /// The state that the device is in after an arc that only seems to have succeeded.
    elsewhere: Option<State>,
    /// The user has opted into REINIT.
    reports_reinit: bool,
}

impl Faulty {
    /// A driver around `inner`.
    pub fn new(inner: impl Into<Box<dyn Driver>>, faults: Faults) -> Faulty {
        let mut inner = inner.into();
        let half = inner.migration();
        let (flags, end) = half.map_or((MigrationFlags::empty(), Err(Errno::ENOMSG)), |half| {
            (half.flags(), half.temporary_end())
        });
        Faulty { inner, faults, flags, end, at: 0, elsewhere: None, reports_reinit: false }
    }

    fn half(&mut self) -> Result<&mut dyn Migration, Errno> {
        self.inner.migration().ok_or(Errno::ENOTTY)
    }

    /// Fails as often as resets are to fail.
    fn pass_reset(&mut self) -> Result<(), Errno> {
        let fails = |kind: &FaultKind| if let FaultKind::Reset(errno) = kind { Some(*errno) } else { None };
        self.faults.take(fails).map_or(Ok(()), Err)
    }

    /// Returns the number of bytes, out of `room`, before the next data fault, and the fault.
    fn data(
        &mut self,
        room: usize,
        find: impl Fn(&FaultKind) -> Option<(u64, DataFault)>,
    ) -> Result<usize, Errno> {
        let at = self.at;
        // One that lies ahead bounds this call, and is not used up by it.
        let ahead = self.faults.iter().filter_map(|fault| find(&fault.kind)).map(|(after, _)| after);
        let ahead = ahead.filter(|after| *after > at).min();
        let bound = ahead.and_then(|after| usize::try_from(after - at).ok()).unwrap_or(usize::MAX);
        match self.faults.take(|kind| find(kind).filter(|(after, _)| *after <= at)) {
            Some((_, DataFault::Fails(errno))) => Err(errno),
            Some((_, DataFault::Short)) => Ok(room.min(1)),
            Some((_, DataFault::End)) => Ok(0),
            None => Ok(room.min(bound)),
        }
    }
}

impl fmt::Debug for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faulty").field("faults", &self.faults).finish_non_exhaustive()
    }
}

#[deny(clippy::missing_trait_methods, reason = "each method is forwarded or defined")]
impl Driver for Faulty {
    forward!(inner: open_device, close_device, info, region, irq, read_region, write_region, doorbells, mmap);
    forward!(inner: bus_reset, low_power, bus_master, dma_buf, zpci_errors, graphics, advance, compatibility);
    forward!(inner: can_reset_in_precopy, has_work, async_dma);

    fn reset(&mut self, context: &Context) -> Result<(), Errno> {
        self.pass_reset()?;
        self.inner.reset(context)
    }

    fn reset_in_precopy(&mut self, context: &Context) -> Result<(), Errno> {
        self.pass_reset()?;
        self.inner.reset_in_precopy(context)
    }

    fn migration(&mut self) -> Option<&mut dyn Migration> {
        if self.inner.migration().is_some() { Some(self) } else { None }
    }

    fn dma_logging(&mut self) -> Option<&mut dyn DmaLogging> {
        if self.inner.dma_logging().is_some() { Some(self) } else { None }
    }
}

#[deny(clippy::missing_trait_methods, reason = "each method is forwarded or defined")]
impl Migration for Faulty {
    fn flags(&self) -> MigrationFlags {
        self.flags
    }

    fn compatibility(&mut self) -> Option<Compatibility> {
        self.half().ok()?.compatibility()
    }

    fn arc(&mut self, context: &Context, from: State, to: State) -> Result<(), ArcError> {
        let is = |state: &Option<State>, other| state.is_none_or(|state| state == other);
        let delay = self.faults.take(|kind| match kind {
            FaultKind::Delay { to: state, time } if is(state, to) => Some(*time),
            _ => None,
        });
        if let Some(time) = delay {
            std::thread::sleep(time);
        }
        let fault = self.faults.take(|kind| match kind {
            FaultKind::Arc { from: first, to: second, errno, broken }
                if is(first, from) && is(second, to) =>
            {
                Some((*errno, *broken))
            }
            _ => None,
        });
        match fault {
            Some((Some(errno), true)) => return Err(ArcError::Broken(errno)),
            Some((Some(errno), false)) => return Err(ArcError::Stays(errno)),
            Some((None, broken)) => {
                self.elsewhere = Some(if broken { State::Error } else { from });
                return Ok(());
            }
            None => self.half()?.arc(context, from, to)?,
        }
        if !from.is_saving() && to.is_saving() || to == State::Resuming {
            self.at = 0;
        }
        Ok(())
    }

    fn arrived(&mut self, to: State) -> State {
        match self.elsewhere.take() {
            Some(state) => state,
            None => self.half().map_or(to, |half| half.arrived(to)),
        }
    }

    fn data_size(&mut self, context: &Context) -> Result<u64, Errno> {
        match self.faults.take(|kind| if let FaultKind::Size(size) = kind { Some(*size) } else { None }) {
            Some(size) => size,
            None => self.half()?.data_size(context),
        }
    }

    fn read(&mut self, context: &Context, buffer: &mut [u8]) -> Result<usize, Errno> {
        let now = context.state();
        let room = self.data(buffer.len(), |kind| match kind {
            FaultKind::Read { after, state, how } if state.is_none_or(|state| state == now) => {
                Some((*after, *how))
            }
            _ => None,
        })?;
        if room == 0 && !buffer.is_empty() {
            return Ok(0);
        }
        let count = self.half()?.read(context, &mut buffer[..room])?;
        self.at += count as u64;
        Ok(count)
    }

    fn write(&mut self, context: &Context, data: &[u8]) -> Result<usize, Errno> {
        let room = self.data(data.len(), |kind| match kind {
            FaultKind::Write { after, how } => Some((*after, *how)),
            _ => None,
        })?;
        let count = self.half()?.write(context, &data[..room])?;
        self.at += count as u64;
        Ok(count)
    }

    fn precopy(&mut self, context: &Context) -> Result<PrecopyReport, Errno> {
        let told = |kind: &FaultKind| if let FaultKind::Precopy(bytes) = kind { Some(*bytes) } else { None };
        let bytes = self.faults.take(told).transpose()?;
        let report = self.half()?.precopy(context)?;
        let report = report.bytes(bytes.unwrap_or(report.bytes));
        let (at, reports_reinit) = (self.at, self.reports_reinit);
        let begins_again = self.faults.take(|kind| match kind {
            FaultKind::Reinit { after } if reports_reinit => {
                after.map_or(report.bytes.total() == 0, |after| after <= at).then_some(())
            }
            _ => None,
        });
        Ok(match begins_again {
            Some(()) => {
                let initial = report.bytes.total().max(1);
                report.bytes(PrecopyBytes { initial, dirty: 0 }).reinit(true)
            }
            None => report,
        })
    }

    fn temporary_end(&self) -> Result<usize, Errno> {
        let is_zero = |fault: &Fault| matches!(fault.kind, FaultKind::ZeroAtTemporaryEnd);
        if self.faults.iter().any(is_zero) { Ok(0) } else { self.end }
    }

    fn enable_precopy_info_v2(&mut self, context: &Context) -> Result<(), Errno> {
        self.half()?.enable_precopy_info_v2(context)?;
        self.reports_reinit = true;
        Ok(())
    }
}

#[deny(clippy::missing_trait_methods, reason = "each method is forwarded or defined")]
impl DmaLogging for Faulty {
    fn start(&mut self, context: &Context, ranges: &LoggingRanges) -> Result<u64, Errno> {
        let fails =
            |kind: &FaultKind| if let FaultKind::LogStart(errno) = kind { Some(*errno) } else { None };
        self.faults.take(fails).map_or(Ok(()), Err)?;
        self.inner.dma_logging().ok_or(Errno::ENOTTY)?.start(context, ranges)
    }

    fn stop(&mut self, context: &Context) -> Result<(), Errno> {
        let fails = |kind: &FaultKind| if let FaultKind::LogStop(errno) = kind { Some(*errno) } else { None };
        self.faults.take(fails).map_or(Ok(()), Err)?;
        self.inner.dma_logging().ok_or(Errno::ENOTTY)?.stop(context)
    }

    fn report(&mut self, context: &Context, report: &mut DirtyReport<'_>) -> Result<(), Errno> {
        let fails =
            |kind: &FaultKind| if let FaultKind::LogReport(errno) = kind { Some(*errno) } else { None };
        match self.faults.take(fails) {
            Some(errno) => Err(errno),
            None => self.inner.dma_logging().ok_or(Errno::ENOTTY)?.report(context, report),
        }
    }
}
