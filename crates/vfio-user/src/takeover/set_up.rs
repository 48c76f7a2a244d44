//! The old server's set-up of its device and its client: records, and the descriptors that they name by numbers.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use whimbrel_device::LowPowerEntry;
use whimbrel_uapi::type1::DmaMapFlags;

use super::give::Giving;
use super::link::Link;
use super::records::{
    BatchRecord, ClientRecord, InUseRecord, IoeventfdRecord, LowPowerRecord, MAX_MAPPINGS, MappingRecord,
    Number, UnreadRecord, WaitingRecord,
};
use super::refusal::Refusal;
use super::stopped::Stopped;
use super::wire::{MAX_DATA, MAX_DESCRIPTORS, Message};
use crate::message::{Header, Kind};
use crate::server::session::file_memory::Source as FileSource;
use crate::server::session::mappings::Behind;
use crate::server::session::queue::Waiting;
use crate::server::session::serving::Serving;
use crate::server::session::snapshot::Export;
use crate::socket::{Unread, UnreadDescriptors};

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

impl Giving {
    /// Returns the number of the socket for takeovers, if there is one.
    pub(super) fn send_set_up(
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
}

/// Sends data of any length.
fn send_long(link: &mut Link, message: &Message, mut data: &[u8]) -> Result<(), Refusal> {
    while let Some((first, rest)) = data.split_at_checked(MAX_DATA).filter(|(_, rest)| !rest.is_empty()) {
        link.send_with(&Message::More, first, &[])?;
        data = rest;
    }
    Ok(link.send_with(message, data, &[])?)
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
