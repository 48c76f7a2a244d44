//! The tracer: follows the threads of a program from stop to stop, reads what a call is about, and gives out records.
//!
//! What a descriptor is, what bytes mean and how a record looks is decided in the modules beside this one.

mod patience;
mod process;
mod ptrace;
mod reading;
mod start;

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::rc::Rc;
use std::time::{Duration, Instant};

use libc::{c_int, pid_t};

use self::process::Memory;
use self::ptrace::{CallStop, Change, EVENT_STOP, Go};
use self::reading::{Context, Pending};
use self::start::Started;
use super::descriptors::Descriptors;
use super::error::TraceError;
use super::filter::filter;
use super::record::{Outcome, Record};
use crate::kcmp;
use crate::seccomp::ARCH;

/// The calls to trace, and the data to keep of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Options {
    /// Also stops at each read, write, mmap, open, duplication and close of the program, to see those of VFIO files.
    pub all_io: bool,
    /// Keeps bytes: of arguments, answers and transfers.
    pub hex: bool,
}

impl Options {
    /// Stops at each read, write, mmap, open, duplication and close.
    #[must_use]
    pub fn all_io(self, all_io: bool) -> Options {
        Options { all_io, ..self }
    }

    /// Keeps bytes.
    #[must_use]
    pub fn hex(self, hex: bool) -> Options {
        Options { hex, ..self }
    }
}

/// The output of a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A call has ended.
    Record(Record),
    /// A process now runs a program for another architecture, whose calls are not traced.
    NotTraced {
        /// The process.
        process: u32,
    },
}

/// The end of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ended {
    /// It exited with this status.
    Exited(i32),
    /// This signal killed it.
    Killed(i32),
}

impl Ended {
    /// Returns the exit status that a shell has for this: 128 and the signal for a program that was killed.
    pub fn status(self) -> u8 {
        let status = match self {
            Ended::Exited(status) => status,
            Ended::Killed(signal) => 128 + signal,
        };
        u8::try_from(status).unwrap_or(u8::MAX)
    }
}

/// A program that is about to run, traced by the thread that started it.
///
/// The program is killed if the tracer goes away, because its filter stays: without a tracer, its requests would fail with
/// ENOSYS.
#[derive(Debug)]
pub struct Tracer {
    command: Vec<OsString>,
    started: Started,
    options: Options,
    /// When the program was started.
    begun: Instant,
    has_ended: bool,
    /// ptrace ties the tracer to its thread.
    _not_send: std::marker::PhantomData<*const ()>,
}

impl Tracer {
    /// Starts a program, traced by the calling thread. It makes its first step in [`run`](Self::run), or a little earlier.
    pub fn start(command: &[OsString], options: Options) -> Result<Tracer, TraceError> {
        let started = start::start(command, &filter(options.all_io))?;
        Ok(Tracer {
            command: command.to_vec(),
            started,
            options,
            begun: Instant::now(),
            has_ended: false,
            _not_send: std::marker::PhantomData,
        })
    }

    /// The process of the program.
    pub fn process(&self) -> u32 {
        self.started.pid.cast_unsigned()
    }

    /// Follows the program, and all processes that it starts, until the last of them has ended. `take` is called while
    /// the program goes on.
    ///
    /// The calling thread must not have other children.
    pub fn run(mut self, take: &mut dyn FnMut(Event)) -> Result<Ended, TraceError> {
        let main = self.started.pid;
        let mut run = Run::new(main, self.options, self.begun);
        let (mut ended, mut is_program) = (None, false);
        while let Some((pid, change)) = ptrace::wait().map_err(TraceError::Wait)? {
            let now = Instant::now();
            match change {
                Change::Exited(_) | Change::Killed(_) => {
                    run.end(pid, now);
                    if pid == main {
                        ended = Some(match change {
                            Change::Exited(status) => Ended::Exited(status),
                            Change::Killed(signal) => Ended::Killed(signal),
                            Change::Stopped { .. } => continue,
                        });
                    }
                }
                Change::Stopped { event: libc::PTRACE_EVENT_EXEC, .. } if pid == main && !is_program => {
                    is_program = true;
                    if let Err(error) = ptrace::call_stop(pid)
                        && error.raw_os_error() != Some(libc::ESRCH)
                    {
                        return Err(TraceError::OldKernel);
                    }
                    run.stopped(pid, libc::SIGTRAP, libc::PTRACE_EVENT_EXEC, now);
                }
                Change::Stopped { signal, event } => run.stopped(pid, signal, event, now),
            }
            run.out.drain(..).for_each(&mut *take);
        }
        self.has_ended = true;
        match ended {
            Some(ended) if is_program || matches!(ended, Ended::Killed(_)) => Ok(ended),
            _ => Err(self.started.failure(&self.command[0])),
        }
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        if let (false, Some(pid)) = (self.has_ended, rustix::process::Pid::from_raw(self.started.pid)) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            // Its other processes die with the tracer.
            while let Ok(Some((id, change))) = ptrace::wait() {
                if id == self.started.pid && !matches!(change, Change::Stopped { .. }) {
                    break;
                }
            }
        }
    }
}

/// A table of descriptors.
#[derive(Debug)]
struct Table {
    descriptors: RefCell<Descriptors>,
    /// When its data files were last checked for being open.
    checked: Cell<Instant>,
}

impl Table {
    fn new(descriptors: Descriptors) -> Rc<Table> {
        Rc::new(Table { descriptors: RefCell::new(descriptors), checked: Cell::new(Instant::now()) })
    }
}

/// A traced thread.
struct Thread {
    process: pid_t,
    memory: Rc<RefCell<Memory>>,
    table: Rc<Table>,
    /// The call it is in, if that is of interest.
    pending: Option<Pending>,
    /// Set if it stopped at the entry of the call it is in. Then a stop of the filter follows, and tells nothing new.
    has_entered: bool,
}

/// The shortest time between two checks whether the data files of a process are still open.
const CHECKED_EVERY: Duration = Duration::from_millis(100);

/// A trace at work.
struct Run {
    options: Options,
    begun: Instant,
    threads: HashMap<pid_t, Thread>,
    /// Threads that stopped before their parent told of them.
    early: HashSet<pid_t>,
    out: Vec<Event>,
}

impl Run {
    fn new(main: pid_t, options: Options, begun: Instant) -> Run {
        let thread = Thread {
            process: main,
            memory: Rc::new(RefCell::new(Memory::new(main))),
            table: Table::new(Descriptors::default()),
            pending: None,
            has_entered: false,
        };
        Run {
            options,
            begun,
            threads: HashMap::from([(main, thread)]),
            early: HashSet::new(),
            out: Vec::new(),
        }
    }

    /// Takes note of a thread that has ended.
    fn end(&mut self, pid: pid_t, now: Instant) {
        if let Some(thread) = self.threads.remove(&pid) {
            self.abandon(pid, thread, now);
        }
    }

    /// Records the call in which a thread ended.
    fn abandon(&mut self, pid: pid_t, thread: Thread, now: Instant) {
        if let Some(pending) = thread.pending {
            self.record(pid, thread.process, pending, Outcome::Unfinished, now);
        }
    }

    fn record(&mut self, pid: pid_t, process: pid_t, pending: Pending, outcome: Outcome, now: Instant) {
        for mut record in pending.records(outcome) {
            record.at = pending.entered.duration_since(self.begun);
            record.took = now.saturating_duration_since(pending.resumed);
            (record.process, record.thread) = (process.cast_unsigned(), pid.cast_unsigned());
            self.out.push(Event::Record(record));
        }
    }

    /// Handles a stop, and lets the thread go on.
    fn stopped(&mut self, pid: pid_t, signal: c_int, event: c_int, now: Instant) {
        if !self.threads.contains_key(&pid) {
            let parent = process::family(pid).and_then(|(process, parent)| {
                let known = |pid: pid_t| self.threads.contains_key(&pid).then_some(pid);
                known(process).filter(|process| *process != pid).or_else(|| known(parent))
            });
            self.adopt(pid, parent);
            self.early.insert(pid);
        }
        let mut delivered = 0;
        match (event, signal) {
            // A new thread, or the end of a stop of its process.
            (EVENT_STOP, libc::SIGTRAP) => {}
            // The whole process is stopped, until it gets SIGCONT.
            (EVENT_STOP, _) => {
                let _ = ptrace::listen(pid);
                return;
            }
            (libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_VFORK | libc::PTRACE_EVENT_CLONE, _) => {
                if let Some(child) = event_thread(pid)
                    && !self.early.remove(&child)
                {
                    self.adopt(child, Some(pid));
                }
            }
            (libc::PTRACE_EVENT_EXEC, _) => self.executed(pid, now),
            (libc::PTRACE_EVENT_SECCOMP, _) => self.at_filter(pid, now),
            (0, signal) if signal == libc::SIGTRAP | 0x80 => self.at_call(pid, now),
            (0, signal) => delivered = signal,
            _ => {}
        }
        self.resume(pid, delivered);
    }

    fn resume(&mut self, pid: pid_t, signal: c_int) {
        let Some(thread) = self.threads.get_mut(&pid) else { return };
        let watched = thread.pending.is_some() || thread.table.descriptors.borrow().has_session();
        let go = if watched || thread.has_entered { Go::ToCall } else { Go::On };
        if let Some(pending) = thread.pending.as_mut().filter(|pending| !pending.is_resumed) {
            pending.is_resumed = true;
            pending.resumed = Instant::now();
        }
        // It fails for a thread that has been killed meanwhile, whose end is told next.
        let _ = ptrace::resume(pid, go, signal);
    }

    /// Takes in a new thread.
    fn adopt(&mut self, pid: pid_t, parent: Option<pid_t>) {
        let process = process::family(pid).map_or(pid, |(process, _)| process);
        let is_thread = process != pid;
        let parent = parent.and_then(|parent| Some((parent, self.threads.get(&parent)?)));
        let table = match parent {
            Some((id, thread)) if kcmp::share_descriptors(id, pid).unwrap_or(is_thread) => {
                Rc::clone(&thread.table)
            }
            Some((_, thread)) => Table::new(thread.table.descriptors.borrow().clone()),
            None => Table::new(Descriptors::default()),
        };
        let memory = match parent {
            Some((_, thread)) if is_thread => Rc::clone(&thread.memory),
            _ => Rc::new(RefCell::new(Memory::new(process))),
        };
        let thread = Thread { process, memory, table, pending: None, has_entered: false };
        self.threads.insert(pid, thread);
    }

    /// A process runs another program: with memory of its own, with a table of its own, and with one thread.
    fn executed(&mut self, pid: pid_t, now: Instant) {
        let former = event_thread(pid).unwrap_or(pid);
        if former != pid
            && let Some(thread) = self.threads.remove(&former)
            && let Some(leader) = self.threads.insert(pid, thread)
        {
            self.abandon(pid, leader, now);
        }
        let Some(thread) = self.threads.get_mut(&pid) else { return };
        let descriptors = thread.table.descriptors.borrow().clone();
        thread.table = Table::new(descriptors);
        thread.memory = Rc::new(RefCell::new(Memory::new(pid)));
        (thread.pending, thread.process) = (None, pid);
        if matches!(ptrace::call_stop(pid), Ok((_, arch)) if arch != ARCH) {
            self.out.push(Event::NotTraced { process: pid.cast_unsigned() });
        }
    }

    /// The filter has stopped a call.
    fn at_filter(&mut self, pid: pid_t, now: Instant) {
        let has_entered = self.threads.get(&pid).is_some_and(|thread| thread.has_entered);
        if let (false, Ok((CallStop::Entry { number, arguments }, _))) = (has_entered, ptrace::call_stop(pid))
        {
            self.enter(pid, number, arguments, now);
        }
    }

    /// A thread that is watched call by call is before or after a call.
    fn at_call(&mut self, pid: pid_t, now: Instant) {
        let Ok((stop, arch)) = ptrace::call_stop(pid) else { return };
        match stop {
            CallStop::Entry { number, arguments } => {
                if let Some(thread) = self.threads.get_mut(&pid) {
                    thread.has_entered = true;
                }
                if arch == ARCH {
                    self.enter(pid, number, arguments, now);
                }
            }
            CallStop::Exit { value } => self.leave(pid, value, now),
            CallStop::Neither => {}
        }
    }

    fn enter(&mut self, pid: pid_t, number: u64, arguments: [u64; 6], now: Instant) {
        let Some(thread) = self.threads.get_mut(&pid) else { return };
        if now.saturating_duration_since(thread.table.checked.get()) >= CHECKED_EVERY {
            thread.table.checked.set(now);
            reading::forget_closed(pid, &mut thread.table.descriptors.borrow_mut());
        }
        let (passed, pending) = Context {
            thread: pid,
            memory: &mut thread.memory.borrow_mut(),
            table: &mut thread.table.descriptors.borrow_mut(),
            hex: self.options.hex,
        }
        .enter(number, arguments, now);
        thread.pending = pending;
        let process = thread.process;
        for mut record in passed {
            record.at = now.duration_since(self.begun);
            (record.process, record.thread) = (process.cast_unsigned(), pid.cast_unsigned());
            self.out.push(Event::Record(record));
        }
    }

    fn leave(&mut self, pid: pid_t, value: i64, now: Instant) {
        let Some(thread) = self.threads.get_mut(&pid) else { return };
        thread.has_entered = false;
        let Some(mut pending) = thread.pending.take() else { return };
        let (outcome, process) = (Outcome::of(value), thread.process);
        Context {
            thread: pid,
            memory: &mut thread.memory.borrow_mut(),
            table: &mut thread.table.descriptors.borrow_mut(),
            hex: self.options.hex,
        }
        .leave(&mut pending, outcome);
        self.record(pid, process, pending, outcome, now);
    }
}

/// Returns the thread that an event tells of.
fn event_thread(pid: pid_t) -> Option<pid_t> {
    pid_t::try_from(ptrace::event_message(pid).ok()?).ok()
}
