//! The old server: moves its device's state while the device runs, lets its client rest, stops its device, sends the
//! state of both, and continues as before if the new server does not accept it.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use whimbrel_device::{DeviceFile, Errno};
use whimbrel_user::{DataFile, SavingRead};

use super::describe::Description;
use super::link::{Link, LinkError};
use super::peer::Peer;
use super::peer_text::short;
use super::precopy::Precopying;
use super::refusal::Refusal;
use super::stopped::{Stopped, sleep_again};
use super::wire::{Begin, MAX_DATA, Message, TakeoversRecord, VERSIONS};
use crate::server::backend::Backend;
use crate::server::listener::moved::Moved;
use crate::server::session::serving::Serving;

/// The resources that an old server offers, beside its client.
#[derive(Debug)]
pub(crate) struct Offer {
    pub(crate) device: DeviceFile,
    pub(crate) description: Description,
    /// The clients' socket and its file.
    pub(crate) clients: OwnedFd,
    pub(crate) identity: (u64, u64),
    /// The socket for takeovers only, if there is one.
    pub(crate) takeovers: Option<(OwnedFd, TakeoversRecord)>,
    /// Maximum downtime of the device.
    pub(crate) pause: Duration,
    /// Serves the device, and hides pre-copy from its client.
    pub(crate) backend: Backend,
}

/// A takeover that both sides agreed on; the device still runs.
#[derive(Debug)]
pub(super) struct Giving {
    pub(super) link: Link,
    pub(super) peer: Peer,
    /// Stops this server.
    pub(super) stop: Arc<OwnedFd>,
    pub(super) device: DeviceFile,
    pub(super) offer: Offer,
    /// The agreed version.
    pub(super) version: u32,
    /// The number of messages sent before the offer was accepted.
    agreed_at: u64,
    pub(super) moved: Moved,
}

/// The outcome: the client is no longer served here, and the device does not run here.
#[derive(Debug, Default)]
pub(crate) struct Transferred {
    /// The new server has not confirmed that it runs the device, and this one must end.
    pub(crate) outcome_unknown: Option<LinkError>,
    pub(crate) moved: Moved,
}

impl Giving {
    /// Agrees with the new server on the contents of the takeover.
    pub(super) fn begin(
        mut link: Link,
        peer: Peer,
        stop: Arc<OwnedFd>,
        offer: Offer,
    ) -> Result<Giving, Refusal> {
        let Message::Request { versions } = link.receive()?.message else {
            return Err(Refusal::Unexpected("the first message is not a request".into()));
        };
        let Some(version) = VERSIONS.into_iter().find(|version| versions.contains(version)) else {
            let theirs = short(format!("{versions:?}"));
            let why = format!(
                "no common takeover version: {VERSIONS:?} on the old server, {theirs} on the new one"
            );
            return Err(refuse(&mut link, Refusal::new(Errno::EPROTONOSUPPORT, why)));
        };
        link.send(&Message::Offer {
            version,
            device: Box::new(offer.description.clone()),
            socket: offer.identity,
            takeovers: offer.takeovers.as_ref().map(|(_, record)| record.clone()),
            pause_ms: u64::try_from(offer.pause.as_millis()).ok(),
        })?;
        match link.receive()?.message {
            Message::Accept => {
                let (device, agreed_at) = (offer.device.clone(), link.sent());
                Ok(Giving { link, peer, stop, device, offer, version, agreed_at, moved: Moved::default() })
            }
            Message::Failed { why } => Err(Refusal::Declined(why)),
            other => Err(Refusal::Unexpected(format!("{} in reply to an offer", other.kind()))),
        }
    }

    /// Refuses a takeover that was agreed on.
    pub(super) fn refuse(mut self, kept: Refusal) -> Refusal {
        refuse(&mut self.link, kept)
    }

    /// Hands over the device, its client if it has one, and the sockets for connections. `serving` rests, since the moment
    /// `since` or for a shorter time. `handed_over` is called right before the device becomes the new server's.
    ///
    /// After an error the device is as before, and the client's service can continue.
    pub(super) fn finish(
        mut self,
        serving: Option<&mut Serving>,
        precopying: Option<Precopying>,
        since: Instant,
        handed_over: impl FnOnce(),
    ) -> Result<Transferred, Refusal> {
        let mut client = serving;
        // From here on the device is stopped, or is about to.
        self.link.limit_since(since, self.offer.pause);
        let mut stopped = match self.stop(client.as_deref(), precopying) {
            Ok(stopped) => stopped,
            Err(kept) => return Err(refuse(&mut self.link, kept)),
        };
        let sent = self.send(&mut stopped, client.as_deref_mut());
        match sent.and_then(|()| self.hand_over(handed_over)) {
            Ok(mut given) => {
                self.moved.pause = since.elapsed();
                given.moved = self.moved;
                if let Some(client) = client {
                    client.set_anothers(true);
                }
                stopped.release();
                Ok(given)
            }
            Err(kept) => {
                // First of all the device: the new server learns of it in any case.
                stopped.go_on();
                Err(refuse(&mut self.link, kept))
            }
        }
    }

    /// Stops the device, if possible.
    fn stop(&mut self, client: Option<&Serving>, precopying: Option<Precopying>) -> Result<Stopped, Refusal> {
        if !self.offer.description.can_migrate() {
            let why = "the device does not support migration";
            return Err(Refusal::new(Errno::ENOTTY, why));
        }
        if client.is_some_and(Serving::has_region_file) {
            return Err(Refusal::region_file());
        }
        if client.is_some_and(Serving::is_over) {
            return Err(Refusal::new(Errno::EAGAIN, "the client is disconnecting"));
        }
        let device = self.device.clone();
        // Before anything else is asked of the device, which would wake it.
        let low_power = device.take_low_power()?;
        let stop = |mut stopped: Stopped| {
            let is_new = stopped.stop().and_then(|is_new| {
                client.map_or(Ok(()), |client| stopped.suspend_requests(client))?;
                Ok(is_new)
            });
            match is_new {
                Ok(is_new) => Ok((stopped, is_new)),
                Err(kept) => {
                    stopped.go_on();
                    Err(kept)
                }
            }
        };
        let was_in_precopy = precopying.is_some();
        let stopped = precopying.and_then(|precopying| precopying.stop(stop));
        let Some(stopped) = stopped else {
            if was_in_precopy && let Err(error) = self.discard() {
                sleep_again(&device, low_power);
                return Err(error.into());
            }
            return match Stopped::look(device.clone(), low_power) {
                Ok(stopped) => Ok(stop(stopped)?.0),
                Err((kept, low_power)) => {
                    sleep_again(&device, low_power);
                    Err(kept)
                }
            };
        };
        let (mut stopped, is_new) = match stopped {
            Ok(stopped) => stopped,
            Err(kept) => {
                sleep_again(&device, low_power);
                return Err(kept);
            }
        };
        stopped.low_power = low_power;
        // Somebody has taken the device out of pre-copy unseen.
        if is_new && let Err(error) = self.discard() {
            stopped.go_on();
            return Err(error.into());
        }
        Ok(stopped)
    }

    fn send(&mut self, stopped: &mut Stopped, client: Option<&mut Serving>) -> Result<(), Refusal> {
        let begin =
            Begin { state: stopped.state.number(), precopy_info_v2: self.device.has_precopy_info_v2() };
        self.link.send(&Message::Begin(begin))?;
        self.moved.stopped_bytes = self.send_state(stopped)?;
        let state_bytes = self.moved.precopy_bytes + self.moved.stopped_bytes;
        self.send_configuration()?;
        let takeovers = self.send_set_up(stopped, client.as_deref())?;
        if let Some(client) = client {
            self.send_log(client)?;
        }
        let messages = Some(self.link.sent() - self.agreed_at);
        self.link.send(&Message::End { state_bytes, messages, takeovers })?;
        Ok(())
    }

    fn send_state(&mut self, stopped: &mut Stopped) -> Result<u64, Refusal> {
        let data = stopped
            .data
            .as_mut()
            .ok_or(Refusal::new(Errno::EIO, "the device opened no data session for STOP_COPY"))?;
        let mut bytes = 0;
        let messages = [false, true].map(|ends| Message::State { ends });
        loop {
            let sent = self.link.send_filled(MAX_DATA, &[], |room| {
                let (count, ends) = fill(data, room)?;
                bytes += count as u64;
                Ok::<_, Refusal>((count > 0).then_some((count, &messages[usize::from(ends)])))
            })?;
            if !sent {
                return Ok(bytes);
            }
        }
    }

    /// Reads the configuration space, which the user must transfer in a migration.
    fn send_configuration(&mut self) -> Result<(), Refusal> {
        if let Some(bytes) = super::configuration::read(&self.device)
            .map_err(|errno| Refusal::new(errno, "cannot read the configuration space"))?
        {
            self.link.send_with(&Message::Configuration, &bytes, &[])?;
        }
        Ok(())
    }
}

/// Sends the reason to the new server, if it still exists.
pub(super) fn refuse(link: &mut Link, kept: Refusal) -> Refusal {
    link.send_last(&Message::Abort { errno: kept.errno().raw_os_error(), why: short(kept.to_string()) });
    kept
}

/// Reads until the buffer is full or a transaction ends, which it returns. Reads nothing at the end.
fn fill(data: &mut DataFile, room: &mut [u8]) -> whimbrel_user::Result<(usize, bool)> {
    let mut filled = 0;
    while filled < room.len() {
        match data.read(&mut room[filled..])? {
            SavingRead::Data(count) => filled += count,
            SavingRead::End | SavingRead::TemporaryEnd => break,
        }
        if data.ends_transaction() {
            return Ok((filled, true));
        }
    }
    Ok((filled, false))
}
