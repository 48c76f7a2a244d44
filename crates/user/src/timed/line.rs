//! The line to a device's thread: one call at a time, each with a deadline. Knows nothing of VFIO.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SendError, Sender};
use std::thread::Builder;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use whimbrel_protocol::Errno;

use crate::data_file::StateFile;
use crate::error::{Error, Result};
use crate::operation::Operation;

/// The longest name of a thread that Linux shows.
const MAX_NAME: usize = 15;

/// The possessions of a device's thread.
pub(super) struct Held<D> {
    pub(super) name: String,
    /// The device, until it is closed or returned.
    pub(super) device: Option<D>,
    /// The open sessions, by their numbers.
    pub(super) sessions: BTreeMap<u64, Box<dyn StateFile>>,
    pub(super) next_session: u64,
}

/// A call, as the thread makes it.
type Job<D> = Box<dyn FnOnce(&mut Held<D>) + Send>;

/// The line to a device's thread, which ends with the line, once it has returned from its last call.
pub(super) struct Line<D> {
    name: String,
    timeout: Duration,
    jobs: Sender<Job<D>>,
    /// The last call that did not return in time. Locked by the caller whose turn it is.
    late: Mutex<Option<Late>>,
}

/// A call that did not return in time.
struct Late {
    request: Operation,
    since: Instant,
    /// Set once it has returned, and its result is undone.
    has_returned: Arc<AtomicBool>,
}

/// Sets its flag at the end of a call, also of one that panics.
struct AtEnd(Arc<AtomicBool>);

impl Drop for AtEnd {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

impl Late {
    fn has_returned(&self) -> bool {
        self.has_returned.load(Ordering::Acquire)
    }
}

impl<D: Send + 'static> Line<D> {
    /// Starts the thread of a device. If the system refuses it, returns the device.
    pub(super) fn start(
        name: String,
        device: D,
        timeout: Duration,
    ) -> std::result::Result<Arc<Line<D>>, (D, Error)> {
        let (jobs, queue) = mpsc::channel();
        // A thread that does not start drops everything that its closure owns, so the device follows once it runs.
        let (give, given) = mpsc::sync_channel(1);
        // A device may have any name; that of a thread has no null character.
        let thread_name = name.chars().filter(|character| *character != '\0').take(MAX_NAME).collect();
        let its_name = name.clone();
        let started = Builder::new().name(thread_name).spawn(move || {
            if let Ok(device) = given.recv() {
                work(
                    Held { name: its_name, device: Some(device), sessions: BTreeMap::new(), next_session: 0 },
                    &queue,
                );
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
        Ok(Arc::new(Line { name, timeout, jobs, late: Mutex::new(None) }))
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Makes a call on the thread, and waits for its result until the deadline.
    ///
    /// A result that is late is discarded on the thread, once there is one: `undo` undoes it, and all sessions are closed,
    /// whose data may have been lost. Until then no other call is made.
    pub(super) fn call<T: Send + 'static>(
        &self,
        request: Operation,
        make: impl FnOnce(&mut Held<D>) -> T + Send + 'static,
        undo: impl FnOnce(&mut Held<D>, T) + Send + 'static,
    ) -> Result<T> {
        let since = Instant::now();
        let Some(mut late) = self.late.try_lock_for(self.timeout) else {
            return Err(self.lost(request, "a call on another thread".into(), since));
        };
        if let Some(earlier) = late.as_ref().filter(|earlier| !earlier.has_returned()) {
            return Err(self.lost(request, earlier.request.clone(), earlier.since));
        }
        let has_returned = Arc::new(AtomicBool::new(false));
        let at_end = AtEnd(has_returned.clone());
        // Without a buffer: a result is either received, or comes back to the thread.
        let (answer, answered) = mpsc::sync_channel(0);
        let job = move |held: &mut Held<D>| {
            let _at_end = at_end;
            let result = make(held);
            if let Err(SendError(result)) = answer.send(result) {
                undo(held, result);
                held.sessions.clear();
            }
        };
        if self.jobs.send(Box::new(job)).is_err() {
            return Err(self.panicked(&request));
        }
        match answered.recv_timeout(self.timeout.saturating_sub(since.elapsed())) {
            Ok(result) => Ok(result),
            Err(RecvTimeoutError::Disconnected) => Err(self.panicked(&request)),
            Err(RecvTimeoutError::Timeout) => {
                *late = Some(Late { request: request.clone(), since, has_returned });
                Err(Error::Overdue { device: self.name.clone(), request, waited: self.timeout })
            }
        }
    }

    /// Makes a call that frees something, and may be made twice. If it cannot be made in time, leaves it to the thread.
    pub(super) fn free(&self, request: Operation, make: impl Fn(&mut Held<D>) + Copy + Send + 'static) {
        if self.call(request, make, |_, ()| {}).is_err() {
            // A thread that has ended holds nothing.
            let _ = self.jobs.send(Box::new(make));
        }
    }

    /// Returns the error of a request that was not made, because data was lost in a late call.
    pub(super) fn torn(&self, request: Operation, late: Operation) -> Error {
        Error::Torn { device: self.name.clone(), request, late: Box::new(late), timeout: self.timeout }
    }

    /// Returns the error of a request in a session that the thread has closed.
    pub(super) fn session_closed(&self, request: Operation) -> Error {
        let late = self.late.lock().as_ref().map(|late| late.request.clone());
        late.map_or_else(|| self.closed(), |late| self.torn(request, late))
    }

    /// Returns the error of a request to a device that is no longer on this thread.
    pub(super) fn closed(&self) -> Error {
        Error::unusable(&self.name, "it was closed, or returned to its owner")
    }

    fn lost(&self, request: Operation, pending: Operation, since: Instant) -> Error {
        Error::Lost {
            device: self.name.clone(),
            request,
            pending: Box::new(pending),
            waited: since.elapsed(),
        }
    }

    fn panicked(&self, request: &Operation) -> Error {
        Error::unusable(&self.name, format!("{request}: the driver panicked, and the device is closed"))
    }
}

/// Makes calls until the line has ended. What is held then is freed here, as far as the driver lets it.
fn work<D>(mut held: Held<D>, queue: &Receiver<Job<D>>) {
    while let Ok(job) = queue.recv() {
        job(&mut held);
    }
}
