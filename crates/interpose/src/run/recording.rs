//! The record of one call: what its answer reads and writes of the program's memory, and which files it meets, noted on
//! the way.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Instant;

use libc::{c_int, c_long, seccomp_data};
use whimbrel_device::split_offset;

use super::answer::Answer;
use super::copies::Copies;
use super::files::OpenFile;
use super::filter::REGIONS;
use super::task::Task;
use super::traced::{Trace, TracedFile, User};
use crate::trace::calls::{self, Kind};
use crate::trace::descriptors::Described;
use crate::trace::{Action, MAX_HEX, Map, On, Outcome, Place, Record, Request, Transfer, dirty};

/// The recording of one call.
#[derive(Debug)]
pub(super) struct Recording<'a> {
    trace: &'a Trace,
    user: User,
    received: Instant,
    seen: RefCell<Seen>,
}

#[derive(Debug)]
struct Seen {
    copies: Copies,
    /// Bytes that a transfer asks for.
    asked: Option<u64>,
    /// The first bytes of a transfer.
    data: Vec<u8>,
    /// The file that the call is made on.
    file: Option<Arc<OpenFile>>,
}

impl<'a> Recording<'a> {
    /// Begins the recording of a call that was received from a thread.
    pub(super) fn new(
        trace: &'a Trace,
        data: &seccomp_data,
        (thread, received): (u32, Instant),
    ) -> Recording<'a> {
        let seen = Seen { copies: Copies::new(data.args[2]), asked: None, data: Vec::new(), file: None };
        Recording { trace, user: trace.user(thread), received, seen: RefCell::new(seen) }
    }

    /// Notes bytes that were read.
    pub(super) fn read(&self, address: u64, data: &[u8]) {
        self.seen.borrow_mut().copies.read(address, data);
    }

    /// Notes bytes that were written.
    pub(super) fn wrote(&self, address: u64, data: &[u8]) {
        self.seen.borrow_mut().copies.wrote(address, data);
    }

    /// Notes how many bytes a transfer asks for.
    pub(super) fn asks(&self, bytes: u64) {
        self.seen.borrow_mut().asked = Some(bytes);
    }

    /// Notes bytes of a transfer.
    pub(super) fn moves(&self, data: &[u8]) {
        if self.trace.hex() {
            let kept = &mut self.seen.borrow_mut().data;
            let room = MAX_HEX - kept.len();
            kept.extend_from_slice(&data[..data.len().min(room)]);
        }
    }

    /// Notes the file behind a descriptor. The first one is that of the call itself.
    pub(super) fn found(&self, fd: i32, open: &Arc<OpenFile>) {
        self.trace.used(open, fd, self.user);
        self.seen.borrow_mut().file.get_or_insert_with(|| open.clone());
    }

    /// Names a file that the call opens, before the program has it.
    pub(super) fn opens(&self, open: &OpenFile) {
        if let Some(parent) = &self.seen.borrow().file {
            self.trace.name(open, parent);
        }
    }

    /// Notes that the program has a file that the call opens.
    pub(super) fn opened(&self, fd: i32, open: &OpenFile) {
        self.trace.used(open, fd, self.user);
    }

    /// Returns the record of the call, which still waits for this answer. `None` for one that the kernel answers.
    pub(super) fn record(self, data: &seccomp_data, task: &Task<'_>, answer: Answer) -> Option<Record> {
        let outcome = match answer {
            Answer::Value(value) => Outcome::Returned(value),
            Answer::Error(errno) => Outcome::Failed(errno),
            Answer::Continue => return None,
        };
        let fd = match c_long::from(data.nr) {
            libc::SYS_mmap => data.args[4] as c_int,
            libc::SYS_io_uring_setup => -1,
            _ => data.args[0] as c_int,
        };
        let seen = self.seen.into_inner();
        let traced = seen.file.as_ref().and_then(|file| file.traced.get());
        let link = || String::from_utf8_lossy(&task.link(fd).unwrap_or_default()).into_owned();
        let linked = if traced.is_none() { Some(Described::of_link(&link())) } else { None };
        let described = traced.map(TracedFile::described).or(linked.as_ref())?;
        let on = if fd < 0 { On::new(fd, "other", "no file") } else { described.on(fd) };
        let action = match calls::kind(data.nr.cast_unsigned().into()) {
            Some(Kind::Ioctl) => {
                let number = data.args[1] as u32;
                let file = described.decoded_as(number);
                let (argument, answer) = seen.copies.argument(file, number, task);
                let mut request = Request::new(file, number, data.args[2], argument);
                (request.answer, request.hex) = (answer, self.trace.hex());
                if outcome.returned().is_some() {
                    request.dirty = dirty::find(&request)
                        .map(|bitmap| dirty::count(bitmap, |at, to| task.read_some(at, to)));
                }
                Action::Request(request)
            }
            Some(Kind::Transfer { name, offset, .. }) => {
                let mut transfer = Transfer::new(name, seen.asked.unwrap_or(data.args[2]));
                // An offset of -1 is the position of the file.
                transfer.offset = (offset && data.args[3] != u64::MAX).then_some(data.args[3]);
                transfer.place = transfer.offset.and_then(place);
                transfer.data = seen.data;
                if let Outcome::Returned(count) = outcome {
                    transfer.data.truncate(usize::try_from(count).unwrap_or(0));
                }
                Action::Transfer(transfer)
            }
            Some(Kind::Map) => {
                let mut map = Map::new(data.args[1], data.args[5]);
                map.place = place(map.offset);
                Action::Map(map)
            }
            Some(Kind::Duplicate { name, .. }) => Action::Duplicate { call: name, to: None },
            Some(Kind::Control) => Action::Duplicate { call: "fcntl", to: None },
            _ => Action::Other { call: other(data.nr.into()) },
        };
        let at = self.trace.events().since_start(self.received);
        let mut record = Record::new(at, on, action, outcome);
        (record.process, record.thread) = (self.user.process, self.user.thread);
        Some(record)
    }
}

/// Returns the place in a region at an offset in the file of a device.
fn place(offset: u64) -> Option<Place> {
    let (region, offset) = split_offset(offset.checked_sub(REGIONS)?);
    Some(Place::new(region, offset))
}

/// Returns the name of a call that is answered and that a tracer does not look at.
fn other(number: c_long) -> &'static str {
    match number {
        libc::SYS_lseek => "lseek",
        libc::SYS_io_uring_setup => "io_uring_setup",
        _ => "another call",
    }
}
