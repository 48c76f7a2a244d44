//! The trace of a program that runs here: its files as records name them, its processes, and its events.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use libc::seccomp_notif;
use parking_lot::Mutex;
use whimbrel_protocol::session::Direction;

use super::events::Events;
use super::open_file::{Object, OpenFile};
use super::system::is_thread_of;
use super::task;
use super::under_way::{Begun, UnderWay};
use crate::trace::described::Described;
use crate::trace::{Action, Options, Outcome, Record};

/// Threads whose processes are remembered at a time.
const MAX_THREADS: usize = 1024;

/// A thread of the program, and its process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct User {
    pub(super) process: u32,
    pub(super) thread: u32,
}

/// The trace of a program.
#[derive(Debug)]
pub(super) struct Trace {
    events: Arc<Events>,
    options: Options,
    under_way: UnderWay,
    /// The process of each thread.
    processes: Mutex<HashMap<u32, u32>>,
}

/// A file of the program as records name it. Its end is that of the file: then the close is recorded.
#[derive(Debug)]
pub(super) struct TracedFile {
    described: Described,
    /// The descriptor and the thread of its last use.
    last: Mutex<Option<(i32, User)>>,
    events: Arc<Events>,
}

impl Trace {
    pub(super) fn new(options: Options) -> Trace {
        let (under_way, processes) = (UnderWay::default(), Mutex::default());
        Trace { events: Arc::new(Events::new()), options, under_way, processes }
    }

    pub(super) fn events(&self) -> &Arc<Events> {
        &self.events
    }

    /// Notes a call that was received.
    pub(super) fn begin(&self, call: &seccomp_notif) {
        let received = Instant::now();
        let user = self.user(call.pid);
        self.under_way.begin(call.id, Begun { data: call.data, user, received, file: Weak::new() });
    }

    /// Returns the calls without an answer.
    pub(super) fn under_way(&self) -> &UnderWay {
        &self.under_way
    }

    /// Returns whether bytes are shown as such.
    pub(super) fn hex(&self) -> bool {
        self.options.hex
    }

    /// Returns a thread, which waits for an answer, with its process.
    pub(super) fn user(&self, thread: u32) -> User {
        let mut processes = self.processes.lock();
        // A number may be that of another thread by now.
        if let Some(process) = processes.get(&thread)
            && is_thread_of(*process, thread)
        {
            return User { process: *process, thread };
        }
        let process = task::process(thread).unwrap_or(thread);
        if processes.len() >= MAX_THREADS {
            processes.clear();
        }
        processes.insert(thread, process);
        User { process, thread }
    }

    /// Notes that a thread uses a file by a descriptor. A file that the program has opened itself is recorded at its first
    /// use: the open was not seen.
    pub(super) fn used(&self, open: &OpenFile, fd: i32, user: User) {
        let mut is_new = false;
        let file = open.traced.get_or_init(|| {
            is_new = true;
            self.file(describe(open))
        });
        *file.last.lock() = Some((fd, user));
        if is_new && open.origin().is_some() {
            self.events.push(file.record(fd, user, Action::Open { call: "open" }, fd.into()));
        }
    }

    /// Names a file that a request on `parent` opens, before the program has it.
    pub(super) fn name(&self, open: &OpenFile, parent: &OpenFile) {
        let Some(parent) = parent.traced.get() else { return };
        open.traced.get_or_init(|| {
            self.file(match &open.object {
                Object::Device(device) => Described::device(device.name(), &parent.described),
                Object::Data(data) => {
                    Described::data(&parent.described, data.direction() == Direction::Resuming)
                }
                _ => describe(open),
            })
        });
    }

    fn file(&self, described: Described) -> TracedFile {
        TracedFile { described, last: Mutex::default(), events: self.events.clone() }
    }
}

/// Returns a file as the link of its descriptor tells it.
fn describe(open: &OpenFile) -> Described {
    let link = open.origin().unwrap_or("anon_inode:[vfio-device]");
    Described::of_link(link)
}

impl TracedFile {
    pub(super) fn described(&self) -> &Described {
        &self.described
    }

    fn record(&self, fd: i32, user: User, action: Action, value: i64) -> Record {
        let mut record = Record::new(Duration::ZERO, self.described.on(fd), action, Outcome::Returned(value));
        (record.process, record.thread) = (user.process, user.thread);
        record
    }
}

impl Drop for TracedFile {
    fn drop(&mut self) {
        // Not one that the program never had.
        if let Some((fd, user)) = *self.last.lock() {
            self.events.push(self.record(fd, user, Action::Close { call: "close" }, 0));
        }
    }
}
