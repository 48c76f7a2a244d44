//! Reads what a stopped thread is calling, and what came of it: arguments from its registers and memory, files from the
//! links of its descriptors.

use std::sync::Arc;
use std::time::{Duration, Instant};

use libc::pid_t;
use whimbrel_uapi::decode::{Call, Passing};
use whimbrel_uapi::ioctl::VFIO_TYPE;

use super::super::argument;
use super::super::calls::{self, DUPLICATES, Kind, Way};
use super::super::described::{self, Described};
use super::super::descriptors::Descriptors;
use super::super::dirty;
use super::super::line::MAX_HEX;
use super::super::record::{Action, Map, On, Outcome, Record, Request, Transfer};
use super::process::{self, Memory};
use crate::kcmp;

/// The most buffers of a vector that are read: the kernel takes no more.
const MAX_BUFFERS: usize = 1024;

/// A buffer in the memory of a program.
#[derive(Clone, Copy, Debug)]
struct Buffer {
    address: u64,
    length: u64,
}

/// A call that a thread is in.
#[derive(Debug)]
pub(super) struct Pending {
    /// When it was entered.
    pub(super) entered: Instant,
    /// When the thread went on, once it did.
    pub(super) resumed: Instant,
    pub(super) is_resumed: bool,
    step: Step,
}

/// The part of a call that is known before its result.
#[derive(Debug)]
enum Step {
    /// A call on a file.
    On {
        on: On,
        file: Arc<Described>,
        action: Action,
        /// The buffers of a read.
        reads_into: Vec<Buffer>,
    },
    /// A call whose result is a descriptor, maybe that of a VFIO file.
    Opens { call: &'static str, opened: Option<On> },
    /// A call that closes these files.
    Closes(Vec<On>),
}

impl Pending {
    /// Returns the records of the call, without times and threads.
    pub(super) fn records(&self, outcome: Outcome) -> Vec<Record> {
        let record = |on: &On, action| Record::new(Duration::ZERO, on.clone(), action, outcome);
        match &self.step {
            Step::On { on, action, .. } => vec![record(on, action.clone())],
            Step::Opens { call, opened } => {
                opened.iter().map(|on| record(on, Action::Open { call })).collect()
            }
            Step::Closes(files) => {
                files.iter().map(|on| record(on, Action::Close { call: "close_range" })).collect()
            }
        }
    }
}

/// A stopped thread: its memory and its descriptors.
pub(super) struct Context<'a> {
    pub(super) thread: pid_t,
    pub(super) memory: &'a mut Memory,
    pub(super) table: &'a mut Descriptors,
    pub(super) hex: bool,
}

impl Context<'_> {
    /// Reads the call that the thread is about to make, if it is of interest. Also returns the device state that has
    /// passed since the last look, in calls that did not stop.
    pub(super) fn enter(
        &mut self,
        number: u64,
        arguments: [u64; 6],
        now: Instant,
    ) -> (Vec<Record>, Option<Pending>) {
        let step = calls::kind(number).and_then(|kind| self.step(kind, arguments));
        let looks = match &step {
            Some(Step::On { file, action, .. }) => {
                matches!(action, Action::Request(_))
                    || (file.is_data() && matches!(action, Action::Close { .. }))
            }
            _ => false,
        };
        let passed = if looks { self.catch_up() } else { Vec::new() };
        let pending = step.map(|step| Pending { entered: now, resumed: now, is_resumed: false, step });
        (passed, pending)
    }

    fn step(&mut self, kind: Kind, arguments: [u64; 6]) -> Option<Step> {
        let [first, second, third, fourth, fifth, sixth] = arguments;
        let on = |fd: i32, file: Arc<Described>, action| {
            Some(Step::On { on: file.on(fd), file, action, reads_into: Vec::new() })
        };
        match kind {
            Kind::Ioctl => {
                let number = second as u32;
                if number.to_le_bytes()[1] != VFIO_TYPE {
                    return None;
                }
                let fd = first as i32;
                let file = self.identify(fd);
                let decoded = file.decoded_as(number);
                let mut read = |address, bytes: &mut [u8]| self.memory.read(address, bytes);
                let argument = argument::read(decoded, number, third, &mut read);
                let mut request = Request::new(decoded, number, third, argument);
                request.hex = self.hex;
                on(fd, file, Action::Request(request))
            }
            Kind::Transfer { name, direction, vector, offset } => {
                let (fd, file) = self.vfio(first)?;
                let buffers = if vector {
                    self.buffers(second, third)
                } else {
                    vec![Buffer { address: second, length: third }]
                };
                let asked = buffers.iter().fold(0_u64, |sum, buffer| sum.saturating_add(buffer.length));
                let mut transfer = Transfer::new(name, asked);
                // An offset of -1 is the position of the file.
                transfer.offset = (offset && fourth != u64::MAX).then_some(fourth);
                transfer.place = transfer.offset.and_then(|offset| file.place(offset));
                let mut reads_into = Vec::new();
                if self.hex {
                    match direction {
                        Way::Read => reads_into = buffers,
                        Way::Write => transfer.data = self.data(&buffers, asked),
                    }
                }
                Some(Step::On { on: file.on(fd), file, action: Action::Transfer(transfer), reads_into })
            }
            Kind::Map => {
                if fourth as i32 & libc::MAP_ANONYMOUS != 0 {
                    return None;
                }
                let (fd, file) = self.vfio(fifth)?;
                let mut map = Map::new(second, sixth);
                map.place = file.place(sixth);
                on(fd, file, Action::Map(map))
            }
            Kind::Open { name } => Some(Step::Opens { call: name, opened: None }),
            Kind::Take => Some(Step::Opens { call: "pidfd_getfd", opened: None }),
            Kind::Close => {
                let (fd, file) = self.vfio(first)?;
                on(fd, file, Action::Close { call: "close" })
            }
            Kind::CloseRange => {
                // With CLOSE_RANGE_CLOEXEC they stay open.
                if third != 0 {
                    return None;
                }
                let files = self.table.within(first, second);
                let open: Vec<On> = files
                    .into_iter()
                    .filter_map(|fd| self.vfio(u64::try_from(fd).ok()?))
                    .map(|(fd, file)| file.on(fd))
                    .collect();
                (!open.is_empty()).then_some(Step::Closes(open))
            }
            Kind::Duplicate { name, to } => {
                let (fd, file) = self.vfio(first)?;
                let to = to.map(|index| arguments[index] as i32);
                on(fd, file, Action::Duplicate { call: name, to })
            }
            Kind::Control => {
                if !DUPLICATES.contains(&(second as i32)) {
                    return None;
                }
                let (fd, file) = self.vfio(first)?;
                on(fd, file, Action::Duplicate { call: "fcntl", to: None })
            }
        }
    }

    /// Completes a call with its result, and learns from it.
    pub(super) fn leave(&mut self, pending: &mut Pending, outcome: Outcome) {
        let returned = outcome.returned();
        match &mut pending.step {
            Step::On { on, file, action, reads_into } => {
                match action {
                    Action::Request(request) => self.answered(file, request, outcome),
                    Action::Transfer(transfer) => {
                        if let Some(count) = returned.and_then(|count| u64::try_from(count).ok())
                            && !reads_into.is_empty()
                        {
                            transfer.data = self.data(reads_into, count);
                        }
                    }
                    Action::Duplicate { .. } => {
                        if let Some(fd) = returned.and_then(|fd| i32::try_from(fd).ok()) {
                            self.table.insert(fd, &process::link(self.thread, fd), Arc::clone(file));
                        }
                    }
                    Action::Close { .. } if returned.is_some() => self.table.remove(on.fd),
                    _ => {}
                }
                let record = Record::new(Duration::ZERO, on.clone(), action.clone(), outcome);
                described::note(file, &record);
            }
            Step::Opens { opened, .. } => {
                *opened =
                    returned.and_then(|fd| self.vfio(u64::try_from(fd).ok()?)).map(|(fd, file)| file.on(fd));
            }
            Step::Closes(files) => {
                if returned.is_some() {
                    for on in files {
                        self.table.remove(on.fd);
                    }
                }
            }
        }
    }

    fn answered(&mut self, file: &Described, request: &mut Request, outcome: Outcome) {
        let pointed =
            matches!(Call::passing(request.file, request.number), Some(Passing::Sized | Passing::Bytes(_)));
        if pointed && !request.argument.is_empty() {
            request.answer = self.memory.bytes(request.value, request.argument.len());
        }
        if outcome.returned().is_some() {
            request.dirty = dirty::find(request)
                .map(|bitmap| dirty::count(bitmap, |address, bytes| self.memory.read(address, bytes)));
        }
        if let Some((fd, opened)) = described::learn(file, request, outcome) {
            self.table.insert(fd, &process::link(self.thread, fd), Arc::new(opened));
        }
    }

    /// Returns the file at a descriptor.
    fn identify(&mut self, fd: i32) -> Arc<Described> {
        let link = process::link(self.thread, fd);
        let file = self.table.identify(fd, &link);
        if !file.is_ambiguous() {
            return file;
        }
        // A descriptor that came unseen, as a duplicate or by a message: maybe of a file that is known.
        let at = |fd: i32| (self.thread, fd);
        let same = |known: i32| kcmp::is_same_open_file(at(known), at(fd)) == Ok(true);
        let same = self.table.told(&link).into_iter().find(|(known, _)| same(*known));
        match same {
            Some((_, known)) => {
                self.table.insert(fd, &link, Arc::clone(&known));
                known
            }
            None => file,
        }
    }

    /// Returns the file at a descriptor, if it is one of VFIO.
    fn vfio(&mut self, fd: u64) -> Option<(i32, Arc<Described>)> {
        let fd = fd as i32;
        let file = (fd >= 0).then(|| self.identify(fd))?;
        file.is_vfio().then_some((fd, file))
    }

    /// Returns the buffers of a vector, as many as can be read.
    fn buffers(&mut self, address: u64, count: u64) -> Vec<Buffer> {
        let count = usize::try_from(count).unwrap_or(MAX_BUFFERS).min(MAX_BUFFERS);
        let words = self.memory.bytes(address, count * 2 * size_of::<u64>());
        let (pairs, _) = words.as_chunks::<16>();
        pairs
            .iter()
            .map(|pair| {
                let word =
                    |half: usize| u64::from_ne_bytes(std::array::from_fn(|index| pair[half * 8 + index]));
                Buffer { address: word(0), length: word(1) }
            })
            .collect()
    }

    /// Returns the first of `count` bytes in buffers, as many as are shown.
    fn data(&mut self, buffers: &[Buffer], count: u64) -> Vec<u8> {
        let mut left = usize::try_from(count).unwrap_or(MAX_HEX).min(MAX_HEX);
        let mut data = Vec::new();
        for buffer in buffers {
            let wanted = usize::try_from(buffer.length).unwrap_or(left).min(left);
            let bytes = self.memory.bytes(buffer.address, wanted);
            left -= bytes.len();
            data.extend_from_slice(&bytes);
            if left == 0 || bytes.len() < wanted {
                break;
            }
        }
        data
    }

    /// Returns the device state that has passed through data files since the last look, in calls that did not stop: the
    /// position of a data file tells, if its driver keeps it.
    fn catch_up(&mut self) -> Vec<Record> {
        forget_closed(self.thread, self.table);
        let mut records = Vec::new();
        for (fd, _, file) in self.table.sessions() {
            if let Some(bytes) = process::position(self.thread, fd).and_then(|at| file.catch_up(at)) {
                let action = Action::Passed { bytes };
                records.push(Record::new(Duration::ZERO, file.on(fd), action, Outcome::Returned(0)));
            }
        }
        records
    }
}

/// Forgets the data files of a thread's table that are closed.
pub(super) fn forget_closed(thread: pid_t, table: &mut Descriptors) {
    for (fd, link, _) in table.sessions() {
        if process::link(thread, fd) != link {
            table.remove(fd);
        }
    }
}
