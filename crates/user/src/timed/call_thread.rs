//! The thread that makes the calls into a device: one at a time, each with a timeout.
//!
//! It knows which call has not returned, and who waits for its turn; which calls there are, and what a late one costs, is for
//! its callers.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SendError, Sender};
use std::thread::Builder;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};
use whimbrel_protocol::Errno;

use crate::data_file::StateFile;
use crate::error::{Error, Result};
use crate::operation::Operation;

/// The longest name of a thread that Linux shows.
const MAX_NAME: usize = 15;

/// The state of a device's thread.
pub(super) struct ThreadState<D> {
    pub(super) name: String,
    /// The device, until it is closed or returned.
    pub(super) device: Option<D>,
    /// The open sessions, by their numbers.
    pub(super) sessions: BTreeMap<u64, Box<dyn StateFile>>,
    pub(super) next_session: u64,
    /// The last call that returned too late, at which all sessions were closed.
    late: Option<Operation>,
    timeout: Duration,
    pending: Arc<Pending>,
}

/// A call, as the thread makes it.
type Job<D> = Box<dyn FnOnce(&mut ThreadState<D>) + Send>;

/// A device's thread, as its callers see it. Once this is dropped, the thread makes the calls that are left, and ends.
pub(super) struct CallThread<D> {
    name: String,
    timeout: Duration,
    jobs: Sender<Job<D>>,
    /// Locked by the caller whose turn it is.
    turn: Mutex<()>,
    pending: Arc<Pending>,
}

/// The calls that have not returned.
struct Pending {
    calls: Mutex<Calls>,
    /// Notified when a call has returned, or panicked.
    ended: Condvar,
}

struct Calls {
    /// In their order: the thread is in the first, or has panicked in it.
    requests: VecDeque<Operation>,
    /// The start of the first.
    since: Instant,
    has_panicked: bool,
}

impl Pending {
    fn new() -> Arc<Pending> {
        let calls = Calls { requests: VecDeque::new(), since: Instant::now(), has_panicked: false };
        Arc::new(Pending { calls: Mutex::new(calls), ended: Condvar::new() })
    }

    /// Notes that the first call has returned.
    fn end(&self) {
        let mut calls = self.calls.lock();
        calls.requests.pop_front();
        calls.since = Instant::now();
        self.ended.notify_all();
    }
}

impl<D> ThreadState<D> {
    /// Returns the error of a request in a session that is no longer on this thread.
    pub(super) fn session_closed(&self, request: Operation) -> Error {
        self.late.clone().map_or_else(|| closed(&self.name), |late| self.torn(request, late))
    }

    /// Returns the error of a request that was not made, because data was lost in a late call.
    pub(super) fn torn(&self, request: Operation, late: Operation) -> Error {
        Error::Torn { device: self.name.clone(), request, late: Box::new(late), timeout: self.timeout }
    }
}

impl<D: Send + 'static> CallThread<D> {
    /// Starts the thread of a device. If the system refuses it, returns the device.
    pub(super) fn start(
        name: String,
        device: D,
        timeout: Duration,
    ) -> std::result::Result<Arc<CallThread<D>>, (D, Error)> {
        let (jobs, queue) = mpsc::channel();
        // A thread that does not start drops everything that its closure owns, so the device follows once it runs.
        let (give, given) = mpsc::sync_channel(1);
        // A device may have any name; that of a thread has no null character.
        let thread_name = name.chars().filter(|character| *character != '\0').take(MAX_NAME).collect();
        let pending = Pending::new();
        let (its_name, its_pending) = (name.clone(), pending.clone());
        let started = Builder::new().name(thread_name).spawn(move || {
            if let Ok(device) = given.recv() {
                let state = ThreadState {
                    name: its_name,
                    device: Some(device),
                    sessions: BTreeMap::new(),
                    next_session: 0,
                    late: None,
                    timeout,
                    pending: its_pending,
                };
                work(state, &queue);
            }
        });
        let refused = |error: &io::Error| {
            let errno =
                Errno::from_io_error(error).map_or_else(|| error.to_string(), |errno| errno.to_string());
            let why = format!(
                "no thread can be started for its calls: {errno}; raise the limit of threads (ulimit -u, or pids.max of \
                 the control group)"
            );
            Error::unusable(&name, why)
        };
        if let Err(error) = started {
            return Err((device, refused(&error)));
        }
        give.send(device)
            .map_err(|SendError(device)| (device, refused(&io::ErrorKind::BrokenPipe.into())))?;
        Ok(Arc::new(CallThread { name, timeout, jobs, turn: Mutex::new(()), pending }))
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Makes a call on the thread, and waits for its result: at most a timeout for its turn, while earlier calls are made,
    /// and another for the call.
    ///
    /// A result that is late is discarded on the thread, once there is one: `undo` undoes it, and all sessions are closed,
    /// whose data may have been lost. Until then no other call is made.
    pub(super) fn call<T: Send + 'static>(
        &self,
        request: Operation,
        make: impl FnOnce(&mut ThreadState<D>) -> T + Send + 'static,
        undo: impl FnOnce(&mut ThreadState<D>, T) + Send + 'static,
    ) -> Result<T> {
        let asked = Instant::now();
        let Some(_turn) = self.turn.try_lock_for(self.timeout) else {
            return Err(self.no_turn(request, asked));
        };
        // Without a buffer: a result is either received, or comes back to the thread.
        let (answer, answered) = mpsc::sync_channel(0);
        let late = request.clone();
        let job = move |thread: &mut ThreadState<D>| {
            let result = make(thread);
            if let Err(SendError(result)) = answer.send(result) {
                undo(thread, result);
                thread.sessions.clear();
                thread.late = Some(late);
                thread.pending.end();
            }
        };
        self.queue(self.await_return_of_others(&request, asked)?, request.clone(), job)?;
        match answered.recv_timeout(self.timeout) {
            Ok(result) => {
                self.pending.end();
                Ok(result)
            }
            Err(RecvTimeoutError::Disconnected) => Err(self.panicked(&request)),
            Err(RecvTimeoutError::Timeout) => {
                Err(Error::Overdue { device: self.name.clone(), request, waited: self.timeout })
            }
        }
    }

    /// Makes a call that closes something, and waits for it like for any other. If it is not made in time, leaves it to the
    /// thread.
    pub(super) fn close(
        &self,
        request: Operation,
        make: impl FnOnce(&mut ThreadState<D>) + Copy + Send + 'static,
    ) {
        if let Err(Error::Lost { .. }) = self.call(request.clone(), make, |_, ()| {}) {
            let job = move |thread: &mut ThreadState<D>| {
                make(thread);
                thread.pending.end();
            };
            // A thread that has panicked holds nothing.
            let _ = self.queue(self.pending.calls.lock(), request, job);
        }
    }

    /// Waits until the thread is in no call: at once for one that is late, else up to a timeout from `asked`.
    fn await_return_of_others(&self, request: &Operation, asked: Instant) -> Result<MutexGuard<'_, Calls>> {
        let mut calls = self.pending.calls.lock();
        while let Some(first) = calls.requests.front() {
            if calls.has_panicked {
                return Err(self.panicked(first));
            }
            let left = self.timeout.saturating_sub(asked.elapsed());
            if left.is_zero() || calls.since.elapsed() >= self.timeout {
                return Err(self.lost(request.clone(), first.clone(), calls.since));
            }
            self.pending.ended.wait_for(&mut calls, left);
        }
        Ok(calls)
    }

    /// Queues a call for the thread.
    fn queue(
        &self,
        mut calls: MutexGuard<'_, Calls>,
        request: Operation,
        job: impl FnOnce(&mut ThreadState<D>) + Send + 'static,
    ) -> Result<()> {
        if self.jobs.send(Box::new(job)).is_err() {
            return Err(self.panicked(calls.requests.front().unwrap_or(&request)));
        }
        if calls.requests.is_empty() {
            calls.since = Instant::now();
        }
        calls.requests.push_back(request);
        Ok(())
    }

    /// Returns the error of a request that was not made, because those of other threads took all its time.
    fn no_turn(&self, request: Operation, asked: Instant) -> Error {
        let calls = self.pending.calls.lock();
        match calls.requests.front() {
            Some(first) if calls.since.elapsed() >= self.timeout => {
                self.lost(request, first.clone(), calls.since)
            }
            _ => self.lost(request, "a call on another thread".into(), asked),
        }
    }

    fn lost(&self, request: Operation, pending: Operation, since: Instant) -> Error {
        Error::Lost {
            device: self.name.clone(),
            request,
            pending: Box::new(pending),
            waited: since.elapsed(),
        }
    }

    /// Returns the error of every request from the one on in which the driver panicked.
    fn panicked(&self, request: &Operation) -> Error {
        Error::unusable(&self.name, format!("{request}: the driver panicked, and the device is closed"))
    }
}

/// Returns the error of a request to a device that is no longer on its thread.
pub(super) fn closed(device: &str) -> Error {
    Error::unusable(device, "it was closed, or returned to its owner")
}

/// Notes a panic of the thread that drops it.
struct NotesPanic(Arc<Pending>);

impl Drop for NotesPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.calls.lock().has_panicked = true;
            self.0.ended.notify_all();
        }
    }
}

/// Makes calls until there can be no more. What is open then is closed here, as far as the driver lets it.
fn work<D>(mut thread: ThreadState<D>, queue: &Receiver<Job<D>>) {
    let _notes = NotesPanic(thread.pending.clone());
    while let Ok(job) = queue.recv() {
        job(&mut thread);
    }
}
