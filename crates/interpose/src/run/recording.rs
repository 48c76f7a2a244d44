//! The record of one call: what its answer reads and writes of the program's memory, and which files it meets, noted on
//! the way.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Instant;

use libc::{c_int, c_long, seccomp_data};
use whimbrel_device::split_offset;

use super::answer::Answer;
use super::copies::Copies;
use super::filter::REGIONS;
use super::open_file::OpenFile;
use super::task::Task;
use super::traced::{Trace, TracedFile, User};
use super::under_way::Begun;
use crate::trace::calls::{self, Kind};
use crate::trace::described::Described;
use crate::trace::{Action, MAX_HEX, Map, On, Outcome, Place, Record, Request, Transfer, dirty};

/// The recording of one call.
#[derive(Debug)]
pub(super) struct Recording<'a> {
    trace: &'a Trace,
    /// The number of the call.
    id: u64,
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
    /// Begins the recording of a call that was received. `None` for one that the trace has given up.
    pub(super) fn new(trace: &'a Trace, id: u64) -> Option<Recording<'a>> {
        let Begun { data, user, received, .. } = trace.under_way().get(id)?;
        let seen = Seen { copies: Copies::new(data.args[2]), asked: None, data: Vec::new(), file: None };
        Some(Recording { trace, id, user, received, seen: RefCell::new(seen) })
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
        self.seen.borrow_mut().file.get_or_insert_with(|| {
            self.trace.under_way().found(self.id, open);
            open.clone()
        });
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

    /// Returns the record of the call, which still waits for this answer. `None` for one that the kernel answers, unless it
    /// maps a region.
    pub(super) fn record(self, data: &seccomp_data, task: &Task<'_>, answer: Answer) -> Option<Record> {
        let seen = self.seen.into_inner();
        let outcome = match answer {
            Answer::Value(value) => Outcome::Returned(value),
            Answer::Error(errno) => Outcome::Failed(errno),
            Answer::Continue if seen.file.is_some() && maps_region(data) => Outcome::Unseen,
            Answer::Continue => return None,
        };
        let fd = descriptor(data);
        let traced = seen.file.as_ref().and_then(|file| file.traced.get());
        let link = || String::from_utf8_lossy(&task.link(fd).unwrap_or_default()).into_owned();
        let linked = if traced.is_none() { Some(Described::of_link(&link())) } else { None };
        let described = traced.map(TracedFile::described).or(linked.as_ref())?;
        let mut action = action(data, described);
        match &mut action {
            Action::Request(request) => {
                (request.argument, request.answer) = seen.copies.argument(request.file, request.number, task);
                request.hex = self.trace.hex();
                if outcome.returned().is_some() {
                    request.dirty = dirty::find(request)
                        .map(|bitmap| dirty::count(bitmap, |at, to| task.read_some(at, to)));
                }
            }
            Action::Transfer(transfer) => {
                transfer.asked = seen.asked.unwrap_or(transfer.asked);
                transfer.data = seen.data;
                if let Outcome::Returned(count) = outcome {
                    transfer.data.truncate(usize::try_from(count).unwrap_or(0));
                }
            }
            _ => {}
        }
        Some(recorded(self.trace, (self.user, self.received), on(described, fd), action, outcome))
    }
}

/// Returns the record of a call without its argument: a look at its task might not come back.
pub(super) fn unread(trace: &Trace, call: &Begun, outcome: Outcome) -> Record {
    let file = call.file.upgrade();
    let unknown = Described::not_looked_at();
    let described = file.as_ref().and_then(|file| file.traced.get()).map_or(&unknown, TracedFile::described);
    let action = action(&call.data, described);
    let on = on(described, descriptor(&call.data));
    recorded(trace, (call.user, call.received), on, action, outcome)
}

fn recorded(
    trace: &Trace,
    (user, received): (User, Instant),
    on: On,
    action: Action,
    outcome: Outcome,
) -> Record {
    let mut record = Record::new(trace.events().since_start(received), on, action, outcome);
    (record.process, record.thread) = (user.process, user.thread);
    record
}

/// Returns the descriptor that a call is made on, or -1.
fn descriptor(data: &seccomp_data) -> c_int {
    match c_long::from(data.nr) {
        libc::SYS_mmap => data.args[4] as c_int,
        libc::SYS_io_uring_setup => -1,
        _ => data.args[0] as c_int,
    }
}

fn on(described: &Described, fd: c_int) -> On {
    if fd < 0 { On::new(fd, "other", "no file") } else { described.on(fd) }
}

/// Returns whether a call maps a region, if it is made on a device.
fn maps_region(data: &seccomp_data) -> bool {
    c_long::from(data.nr) == libc::SYS_mmap && data.args[5] >= REGIONS
}

/// Returns a call as its registers tell it.
fn action(data: &seccomp_data, described: &Described) -> Action {
    match calls::kind(data.nr.cast_unsigned().into()) {
        Some(Kind::Ioctl) => {
            let number = data.args[1] as u32;
            Action::Request(Request::new(described.decoded_as(number), number, data.args[2], Vec::new()))
        }
        Some(Kind::Transfer { name, offset, .. }) => {
            let mut transfer = Transfer::new(name, data.args[2]);
            // An offset of -1 is the position of the file.
            transfer.offset = (offset && data.args[3] != u64::MAX).then_some(data.args[3]);
            transfer.place = transfer.offset.and_then(place);
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
