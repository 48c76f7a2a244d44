//! The old server's pre-copy: the device's state moves while the device works for its client, which sees RUNNING.
//!
//! The device is locked for one read at a time, and not while its data is sent.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use rustix::event::{EventfdFlags, eventfd};
use whimbrel_device::{DeviceFile, Errno, State};
use whimbrel_user::{DataFile, SavingRead};

use super::give::Giving;
use super::link::LinkError;
use super::refusal::Refusal;
use super::rounds::{Rounds, Step};
use super::stopped::Stopped;
use super::wire::{Message, PRECOPY_TIMEOUT, PRECOPY_VERSION, REST_TIMEOUT, TIMEOUT};
use crate::server::hidden_precopy::HiddenPrecopy;
use crate::server::session::rest::NotParked;

/// Bytes of one read. Accesses of the client wait for a read under way.
const PIECE: usize = 64 << 10;

/// A device in pre-copy. Dropping this brings it back to RUNNING.
pub(super) struct Precopying {
    device: DeviceFile,
    running: Option<Stopped>,
    hidden: Arc<HiddenPrecopy>,
}

/// The reason why pre-copy has failed.
enum Failed {
    /// The device does not go on with it. It may be stopped nevertheless.
    Device(whimbrel_user::Error),
    /// The takeover is over.
    Takeover(Refusal),
}

impl From<LinkError> for Failed {
    fn from(error: LinkError) -> Failed {
        Failed::Takeover(error.into())
    }
}

impl From<NotParked> for Failed {
    fn from(why: NotParked) -> Failed {
        Failed::Takeover(why.into())
    }
}

impl From<whimbrel_user::Error> for Failed {
    fn from(error: whimbrel_user::Error) -> Failed {
        Failed::Device(error)
    }
}

impl Precopying {
    /// Brings the device to PRE_COPY. `None` for one that sleeps, or is not in RUNNING.
    fn begin(
        device: &DeviceFile,
        hidden: &Arc<HiddenPrecopy>,
        wanted: &Arc<OwnedFd>,
        stop: &OwnedFd,
    ) -> Result<Option<Precopying>, Failed> {
        let running = hidden.begin(device, wanted, stop, Instant::now() + REST_TIMEOUT, || {
            // Asking a device that sleeps would wake it.
            if device.may_sleep() {
                return Ok(None);
            }
            match Stopped::look(device.clone(), None) {
                Ok(mut running) if running.state == State::Running => {
                    running.precopy()?;
                    Ok(Some(running))
                }
                // It is looked at again when it is to stop.
                Ok(_) | Err(_) => Ok::<_, Failed>(None),
            }
        })?;
        let (device, hidden) = (device.clone(), hidden.clone());
        Ok(running.map(|running| Precopying { device, running: Some(running), hidden }))
    }

    fn data(&mut self) -> Result<&mut DataFile, Refusal> {
        let data = self.running.as_mut().and_then(|running| running.data.as_mut());
        data.ok_or(Refusal::new(Errno::EIO, "the device opened no data session for PRE_COPY"))
    }

    /// Returns the time since which a request of the client waits for the device to stop.
    pub(super) fn wanted(&self) -> Option<Instant> {
        self.hidden.wanted()
    }

    /// Stops the device by `stop`. Its client is not served meanwhile. `None` if somebody else has taken the device out of
    /// this pre-copy: its state may be any, and the data so far is void.
    pub(super) fn stop<T>(mut self, stop: impl FnOnce(Stopped) -> T) -> Option<T> {
        let mut running = self.running.take()?;
        self.hidden.end(|| running.is_in_precopy().then(|| stop(running)))
    }

    /// Brings the device back to RUNNING, unless somebody else has taken it out of this pre-copy.
    fn leave(&mut self) {
        let Some(mut running) = self.running.take() else { return };
        self.hidden.end(|| {
            if running.is_in_precopy() {
                running.go_on();
            }
        });
    }
}

impl Drop for Precopying {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // A driver that has panicked may do so again, which would end the process.
            if let Some(running) = self.running.take() {
                self.hidden.end(|| drop(running));
                tracing::error!(
                    device = self.device.name(),
                    "the driver panicked: the device stays in PRE_COPY until it is reset"
                );
            }
        } else {
            self.leave();
        }
    }
}

impl Giving {
    /// Moves the device's state while the device runs, until the device is best stopped. `None` if it has to be stopped
    /// with all of its state: the new server does not support pre-copy, or the device does not, or fails in it.
    pub(super) fn precopy(&mut self) -> Result<Option<Precopying>, Refusal> {
        if self.version < PRECOPY_VERSION || !self.offer.description.has_precopy() {
            return Ok(None);
        }
        let device = self.device.name().to_owned();
        let wanted = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(|error| {
            let errno = Errno::from_io_error(&error.into()).unwrap_or(Errno::EIO);
            Refusal::new(errno, "cannot create an eventfd for pre-copy")
        })?;
        let wanted = Arc::new(wanted);
        let hidden = self.offer.backend.hidden_precopy();
        let mut precopying = match Precopying::begin(&self.device, hidden, &wanted, &self.stop) {
            Ok(Some(precopying)) => precopying,
            Ok(None) => return Ok(None),
            Err(Failed::Takeover(kept)) => return Err(kept),
            Err(Failed::Device(error)) => {
                tracing::warn!(device, %error, "the takeover goes on without pre-copy");
                return Ok(None);
            }
        };
        self.link.limit(PRECOPY_TIMEOUT + TIMEOUT);
        // A request that waits does so no longer for a new server that takes no data than for one that does.
        self.link.hurry_once(wanted, self.offer.pause);
        self.link.send(&Message::Precopy)?;
        match self.rounds(&mut precopying) {
            Ok(()) => Ok(Some(precopying)),
            Err(Failed::Takeover(kept)) => Err(kept),
            Err(Failed::Device(error)) => {
                tracing::warn!(device, %error, "pre-copy failed: the takeover starts over, with a stop");
                precopying.leave();
                self.discard()?;
                Ok(None)
            }
        }
    }

    /// Tells the new server that the state so far is void.
    pub(super) fn discard(&mut self) -> Result<(), LinkError> {
        self.moved.precopy_bytes = 0;
        self.link.send(&Message::Discard)
    }

    fn rounds(&mut self, precopying: &mut Precopying) -> Result<(), Failed> {
        let until = Instant::now() + PRECOPY_TIMEOUT;
        let mut rounds = Rounds::default();
        let mut step = Step::Ask;
        let why = loop {
            self.listen()?;
            if precopying.wanted().is_some() {
                break "a request of the client waits";
            }
            if Instant::now() >= until {
                break "the time for pre-copy is over";
            }
            let data = precopying.data().map_err(Failed::Takeover)?;
            step = match step {
                Step::Stop(why) => break why.text(),
                Step::Ask => rounds.begin(data.precopy_info()?),
                Step::Read => {
                    let (count, ends) = self.send_piece(data)?;
                    let next = rounds.read(count);
                    if ends && next == Step::Read { rounds.nothing_now() } else { next }
                }
            };
        };
        let (device, bytes) = (self.device.name(), self.moved.precopy_bytes);
        tracing::debug!(device, bytes, rounds = rounds.number(), why, "pre-copy ends");
        Ok(())
    }

    /// Sends what the device has now, up to a limit. Returns how much that was, and whether the device has no more now.
    fn send_piece(&mut self, data: &mut DataFile) -> Result<(u64, bool), Failed> {
        let (mut count, mut ends) = (0, false);
        self.link.send_filled(PIECE, &[], |room| {
            while count < room.len() && !ends {
                match data.read(&mut room[count..])? {
                    SavingRead::Data(read) => count += read,
                    SavingRead::TemporaryEnd | SavingRead::End => ends = true,
                }
            }
            Ok::<_, Failed>((count > 0).then_some((count, &Message::State { ends: false })))
        })?;
        self.moved.precopy_bytes += count as u64;
        Ok((count as u64, ends))
    }

    /// Looks whether the new server has given up, which it says, or has hung up.
    fn listen(&mut self) -> Result<(), Failed> {
        let Some(received) = self.link.receive_now()? else { return Ok(()) };
        Err(Failed::Takeover(match received.message {
            Message::Failed { why } => Refusal::Declined(why),
            other => Refusal::Unexpected(format!("{} in pre-copy", other.kind())),
        }))
    }
}
