//! The old server: moves its device's state while the device runs, lets its client rest, stops its device, sends the
//! state of both, and continues as before if the new server does not accept it.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use whimbrel_device::{DeviceFile, Errno, LowPowerEntry};
use whimbrel_protocol::dirty::DirtyReport;
use whimbrel_uapi::type1::DmaMapFlags;
use whimbrel_user::{DataFile, SavingRead};

use super::describe::Description;
use super::dirty_log::{each_piece, keep_dirty, mark};
use super::link::{Link, LinkError};
use super::peer::Peer;
use super::peer_text::short;
use super::precopy::Precopying;
use super::records::{
    BatchRecord, ClientRecord, DirtyRecord, InUseRecord, IoeventfdRecord, LogRecord, LowPowerRecord,
    MAX_MAPPINGS, MappingRecord, Number, UnreadRecord, WaitingRecord,
};
use super::refusal::Refusal;
use super::stopped::{Stopped, sleep_again};
use super::wire::{Begin, MAX_DATA, MAX_DESCRIPTORS, Message, TakeoversRecord, VERSIONS};
use crate::message::{Header, Kind};
use crate::server::hidden_precopy::HiddenPrecopy;
use crate::server::listener::moved::Moved;
use crate::server::session::dirty_log::Log;
use crate::server::session::file_memory::Source as FileSource;
use crate::server::session::mappings::Behind;
use crate::server::session::queue::Waiting;
use crate::server::session::serving::Serving;
use crate::server::session::snapshot::Export;
use crate::socket::{Unread, UnreadDescriptors};

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
    /// Hides pre-copy from the client.
    pub(crate) hidden: Arc<HiddenPrecopy>,
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
            let why = "the client may have mapped a region's file; disconnect it first";
            return Err(Refusal::new(Errno::EOPNOTSUPP, why));
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
        let stopped = precopying.and_then(|precopying| precopying.stop(stop));
        let Some(stopped) = stopped else {
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

    /// Returns the number of the socket for takeovers, if there is one.
    fn send_set_up(
        &mut self,
        stopped: &Stopped,
        client: Option<&Serving>,
    ) -> Result<Option<Number>, Refusal> {
        let export = client.map(Export::of);
        let mut inventory = Inventory(Vec::new());
        // The clients' socket has the first number.
        inventory.add(&self.offer.clients);
        let takeovers = self.offer.takeovers.as_ref().map(|(socket, _)| inventory.add(socket));
        let low_power = match &stopped.low_power {
            Some(LowPowerEntry { wakeup, .. }) => {
                let wakeup = wakeup.as_ref().map(OwnedFd::try_clone).transpose()?;
                Some(LowPowerRecord { wakeup: wakeup.map(|eventfd| inventory.add(eventfd)) })
            }
            None => None,
        };
        let in_use = self.device.interrupts_in_use()?;
        let in_use = InUseRecord::of(in_use, low_power, |eventfd| inventory.add(eventfd));
        let ioeventfds = self.device.ioeventfds()?.into_iter();
        let ioeventfds =
            ioeventfds.map(|(write, eventfd)| IoeventfdRecord::of(write, inventory.add(eventfd)));
        let mut messages = vec![
            (Message::Interrupts(in_use), Vec::new()),
            (Message::Ioeventfds { list: ioeventfds.collect() }, Vec::new()),
        ];
        if let Some(export) = &export {
            let record = ClientRecord {
                commands: inventory.add(export.commands()),
                twin: export.twin().map(|twin| inventory.add(twin)),
                agreed: export.agreed().cloned(),
                next_id: export.next_id(),
            };
            messages.push((Message::Client(Box::new(record)), Vec::new()));
            let mappings = mappings(export, &mut inventory);
            for mappings in mappings.chunks(MAX_MAPPINGS) {
                messages.push((Message::Mappings { list: mappings.to_vec() }, Vec::new()));
            }
            for command in export.waiting() {
                messages.push(waiting(command, &mut inventory));
            }
            messages.push(unread(export.unread(), false, &mut inventory));
            messages.extend(export.unread_of_twin().map(|twin| unread(twin, true, &mut inventory)));
        }
        for held in inventory.0.chunks(MAX_DESCRIPTORS) {
            let descriptors: Vec<_> = held.iter().map(|held| held.as_fd()).collect();
            self.link.send_with(&Message::Descriptors, &[], &descriptors)?;
        }
        for (message, data) in messages {
            send_long(&mut self.link, &message, &data)?;
        }
        Ok(takeovers)
    }

    /// Sends the log with its dirty pages. The device forgets pages that it reports, so they are kept here too, for
    /// the client if its service continues.
    fn send_log(&mut self, client: &mut Serving) -> Result<(), Refusal> {
        let Some(log) = client.log() else { return Ok(()) };
        let deadline = self.link.deadline();
        let runs = keep_dirty(&self.device, log, deadline)
            .map_err(|errno| Refusal::new(errno, "cannot read the device's dirty page log"))?;
        let Log { page_size, ranges, is_everything, earlier } = &*log;
        let record =
            LogRecord { page_size: *page_size, ranges: ranges.clone(), is_everything: *is_everything, runs };
        self.link.send(&Message::Log(record))?;
        let Some(earlier) = earlier else { return Ok(()) };
        let mut result = Ok(());
        each_piece(ranges, *page_size, deadline, |iova, length, words| {
            words.fill(0);
            let mut report = DirtyReport::new(iova, length, *page_size, words)?;
            earlier.report(&mut report);
            mark(earlier, iova, *page_size, words);
            if words.iter().any(|word| *word != 0) && result.is_ok() {
                let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
                let record = DirtyRecord { iova, page_size: *page_size };
                result = self.link.send_with(&Message::Dirty(record), &bytes, &[]);
            }
            Ok(())
        })
        .map_err(|errno| Refusal::new(errno, "cannot send the dirty page log"))?;
        Ok(result?)
    }
}

/// Sends data of any length.
fn send_long(link: &mut Link, message: &Message, mut data: &[u8]) -> Result<(), Refusal> {
    while let Some((first, rest)) = data.split_at_checked(MAX_DATA).filter(|(_, rest)| !rest.is_empty()) {
        link.send_with(&Message::More, first, &[])?;
        data = rest;
    }
    Ok(link.send_with(message, data, &[])?)
}

/// Sends the reason to the new server, if it still exists.
pub(super) fn refuse(link: &mut Link, kept: Refusal) -> Refusal {
    link.send_last(&Message::Abort { errno: kept.errno().raw_os_error(), why: short(kept.to_string()) });
    kept
}

/// The descriptors to send, by their numbers.
struct Inventory<'a>(Vec<Box<dyn AsFd + 'a>>);

impl<'a> Inventory<'a> {
    fn add(&mut self, descriptor: impl AsFd + 'a) -> Number {
        self.0.push(Box::new(descriptor));
        (self.0.len() - 1) as Number
    }

    fn all(&mut self, descriptors: &'a [OwnedFd]) -> Vec<Number> {
        descriptors.iter().map(|descriptor| self.add(descriptor)).collect()
    }
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

fn mappings<'a>(export: &Export<'a>, inventory: &mut Inventory<'a>) -> Vec<MappingRecord> {
    let mut files: BTreeMap<usize, Number> = BTreeMap::new();
    let record = |(iova, size, rights, behind): (u64, u64, DmaMapFlags, Option<&'a Behind>)| {
        let file = match behind {
            Some(Behind::File(file, offset) | Behind::FileIo(FileSource::Memory(file), offset)) => {
                let identity = Arc::as_ptr(file) as usize;
                let number = files.entry(identity).or_insert_with(|| inventory.add(file.clone()));
                Some((*number, *offset))
            }
            Some(Behind::FileIo(FileSource::Foreign(file), offset)) => {
                Some((inventory.add(&**file), *offset))
            }
            Some(Behind::Client) | None => None,
        };
        let file_io = matches!(behind, Some(Behind::FileIo(..)));
        MappingRecord { iova, size, rights: rights.bits(), file, file_io }
    };
    export.mappings().map(record).collect()
}

fn waiting<'a>(command: &'a Waiting, inventory: &mut Inventory<'a>) -> (Message, Vec<u8>) {
    let Waiting { header: Header { id, command, kind, .. }, payload, descriptors } = command;
    let (numbers, problem) = match descriptors {
        Ok(descriptors) => (inventory.all(descriptors), None),
        Err(error) => (Vec::new(), Some((*error).into())),
    };
    let no_reply = *kind == Kind::Command { no_reply: true };
    let record = WaitingRecord { id: *id, command: *command, no_reply, numbers, problem };
    (Message::Waiting(record), payload.clone())
}

fn unread<'a>(
    unread: Unread<&[u8], &'a [OwnedFd]>,
    twin: bool,
    inventory: &mut Inventory<'a>,
) -> (Message, Vec<u8>) {
    let descriptors = unread.descriptors.into_iter().map(|UnreadDescriptors { last, fds, problem }| {
        BatchRecord { last, numbers: inventory.all(fds), problem: problem.map(Into::into) }
    });
    (Message::Unread(UnreadRecord { twin, descriptors: descriptors.collect() }), unread.bytes.to_vec())
}
