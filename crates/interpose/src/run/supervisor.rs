//! Receives the program's calls and has them answered: one thread receives, others answer what may take time.
//!
//! The receiver answers a call itself if that is quick and nothing slow is under way, for then nobody holds a lock that
//! it needs: a call costs one change of threads in each direction. Everything else goes to workers, so that a request
//! that waits, such as a state change, holds up no other. If the receiver does not come back from an answer, another
//! thread takes its [turn](Turn).

use std::cell::Cell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use libc::{SECCOMP_USER_NOTIF_FLAG_CONTINUE, seccomp_notif, seccomp_notif_resp};
use parking_lot::{Condvar, Mutex};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use whimbrel_device::Errno;

use super::answer::Answer;
use super::caller::TaskCaller;
use super::events::Take;
use super::files::{Files, OpenFile};
use super::program_memory::Memories;
use super::recording::Recording;
use super::requests;
use super::system::{receive, send};
use super::task::Task;
use super::traced::Trace;
use super::turn::Turn;
use crate::trace::Options;

/// Workers at a time, and so requests that can wait at once: for the device, or for memory that the program keeps back.
/// The next one waits until one of them is answered.
const MAX_WORKERS: usize = 1024;

/// The longest that the end waits for an answer under way. One that waits for memory of the program may never end.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// The longest that files stay open once no task is left: another process may have them, which can make no requests.
const LATE_CLOSES: Duration = Duration::from_secs(2);

/// The longest that a trace waits for requests that are not answered when the program has ended.
const LAST_RECORDS: Duration = Duration::from_secs(10);

/// The pauses after which the files of drivers are looked at again: a moment after a report, and then ever more rarely.
const MIN_PAUSE: Duration = Duration::from_millis(1);
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// The state that the threads share.
#[derive(Debug)]
struct Shared {
    listener: OwnedFd,
    files: Files,
    memories: Memories,
    first_data_file: i32,
    trace: Option<Trace>,
    /// Readable once everything ends.
    stop: OwnedFd,
    /// No process of the program is left, or everything ends.
    is_over: AtomicBool,
    /// Requests that are answered by others than the receiver, and closes.
    slow: AtomicUsize,
    turn: Turn,
    queue: Mutex<Queue>,
    work: Condvar,
}

/// A call of the program.
#[derive(Clone, Copy)]
struct Call {
    notification: seccomp_notif,
    /// When it was received, if the program is traced.
    received: Option<Instant>,
}

#[derive(Default)]
struct Queue {
    calls: VecDeque<Call>,
    workers: usize,
    idle: usize,
    ended: bool,
}

/// A trace that somebody takes.
pub(super) struct Traced {
    pub(super) options: Options,
    pub(super) take: Take,
}

/// The threads that serve a program. Dropping it ends them; calls that still come fail with ENOSYS.
#[derive(Debug)]
pub(super) struct Supervisor {
    shared: Arc<Shared>,
    /// Disconnected once the threads have ended.
    running: mpsc::Receiver<std::convert::Infallible>,
    /// Gives out the events of the trace.
    tracer: Option<JoinHandle<()>>,
}

/// Held by a thread that runs.
type Running = mpsc::Sender<std::convert::Infallible>;

impl Supervisor {
    /// Starts to serve the calls of a listener, and to give out what happens, if that is asked for.
    pub(super) fn start(
        listener: OwnedFd,
        files: Files,
        first_data_file: i32,
        traced: Option<Traced>,
    ) -> io::Result<Supervisor> {
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let (trace, take) = traced.map(|traced| (Trace::new(traced.options), traced.take)).unzip();
        let shared = Arc::new(Shared {
            listener,
            files,
            memories: Memories::default(),
            first_data_file,
            trace,
            stop,
            is_over: AtomicBool::new(false),
            slow: AtomicUsize::new(0),
            turn: Turn::default(),
            queue: Mutex::default(),
            work: Condvar::new(),
        });
        let (runs, running) = mpsc::channel();
        let mut supervisor = Supervisor { shared: shared.clone(), running, tracer: None };
        if let (Some(trace), Some(take)) = (&shared.trace, take) {
            let events = trace.events().clone();
            supervisor.tracer = Some(thread("trace", (), move |()| events.give_out(take))?);
        }
        let (closer, closer_runs) = (shared.clone(), runs.clone());
        thread("closes", closer_runs, move |_| closer.close())?;
        let stands_by = shared.clone();
        thread("receiver", runs.clone(), move |runs| stands_by.stand_by(runs))?;
        thread("receiver", runs, move |_| shared.receive(0))?;
        Ok(supervisor)
    }

    /// Waits until no process of the program has a VFIO file open.
    pub(super) fn wait_until_unused(&self) {
        // What was closed before now counts.
        self.shared.files.read_closes();
        self.shared.files.wait_until_empty(None, || self.shared.is_over.load(Ordering::Acquire));
    }

    /// Returns a handle that ends everything.
    pub(super) fn stopper(&self) -> Stopper {
        Stopper { shared: self.shared.clone() }
    }
}

/// Ends a supervisor's threads and waits.
#[derive(Clone, Debug)]
pub(super) struct Stopper {
    shared: Arc<Shared>,
}

impl Stopper {
    pub(super) fn stop(&self) {
        self.shared.end();
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.shared.end();
        if self.running.recv_timeout(LAST_ANSWERS) == Err(mpsc::RecvTimeoutError::Timeout) {
            tracing::warn!("a request of the program is still waiting for the program's memory or files");
        }
        if let Some(trace) = &self.shared.trace {
            self.shared.abandon_calls();
            // Closes that nobody has read yet.
            self.shared.files.read_closes();
            self.shared.files.close_all();
            trace.events().finish();
        } else {
            self.shared.files.close_all();
        }
        // One that drops this itself cannot wait for its own end.
        if let Some(tracer) =
            self.tracer.take_if(|tracer| tracer.thread().id() != std::thread::current().id())
        {
            let _ = tracer.join();
        }
    }
}

impl Shared {
    fn end(&self) {
        self.is_over.store(true, Ordering::Release);
        // Only a counter at its end refuses it, which is readable too.
        let _ = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
        self.queue.lock().ended = true;
        self.work.notify_all();
        self.turn.wake();
        self.files.wake();
        if let Some(trace) = &self.trace {
            trace.events().hurry();
        }
    }

    /// Stands by to receive in place of a receiver that does not come back from an answer.
    fn stand_by(self: &Arc<Shared>, runs: Running) {
        let slower = || {
            self.slow.fetch_add(1, Ordering::AcqRel);
        };
        let faster = || {
            self.slow.fetch_sub(1, Ordering::AcqRel);
        };
        let Some(step) = self.turn.stand_by(|| self.is_over.load(Ordering::Acquire), slower, faster) else {
            return;
        };
        let next = self.clone();
        if let Err(error) = thread("receiver", runs.clone(), move |runs| next.stand_by(runs)) {
            tracing::warn!(%error, "cannot start a thread that stands by to receive the program's calls");
        }
        self.receive(step);
    }

    /// The receiver: until no task is left, everything ends, or another thread has taken the turn. `step` is its first step.
    fn receive(self: &Arc<Shared>, mut step: u64) {
        loop {
            let mut ready =
                [PollFd::new(&self.listener, PollFlags::IN), PollFd::new(&self.stop, PollFlags::IN)];
            match poll(&mut ready, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => {
                    tracing::error!(%errno, "cannot wait for the program's calls");
                    break;
                }
            }
            let (call, end) = (ready[0].revents(), ready[1].revents());
            if !end.is_empty() {
                break;
            }
            if call.contains(PollFlags::IN) {
                match receive(self.listener.as_fd()) {
                    Ok(notification) => {
                        let received = self.trace.as_ref().map(|_| Instant::now());
                        self.turn.begin(step);
                        self.take(Call { notification, received });
                        let Some(next) = self.turn.end(step) else {
                            // It counted as slow from then on.
                            self.slow.fetch_sub(1, Ordering::AcqRel);
                            return;
                        };
                        step = next;
                    }
                    // Its task was killed.
                    Err(rustix::io::Errno::NOENT | rustix::io::Errno::INTR) => {}
                    Err(errno) => {
                        tracing::error!(%errno, "cannot receive the program's calls");
                        break;
                    }
                }
            } else if call.intersects(PollFlags::HUP | PollFlags::ERR) {
                // Tasks let go of the listener before they close their files.
                let deadline = Instant::now() + LATE_CLOSES;
                self.files.wait_until_empty(Some(deadline), || self.is_over.load(Ordering::Acquire));
                break;
            }
        }
        self.end();
    }

    /// Answers a call, or passes it to a worker.
    fn take(self: &Arc<Shared>, call: Call) {
        if self.slow.load(Ordering::Acquire) == 0 {
            let open = self.open_file(&call);
            if open.as_ref().is_some_and(|open| requests::is_quick(&call.notification.data, open)) {
                self.answer(&call, open);
                return;
            }
        }
        self.slow.fetch_add(1, Ordering::AcqRel);
        let mut queue = self.queue.lock();
        queue.calls.push_back(call);
        let needs_worker = queue.idle < queue.calls.len() && queue.workers < MAX_WORKERS;
        if needs_worker {
            queue.workers += 1;
        }
        let workers = queue.workers;
        drop(queue);
        if !needs_worker {
            self.work.notify_one();
            return;
        }
        let shared = self.clone();
        // Nobody waits for the workers: those that wait for the program may never end.
        if let Err(error) = thread("worker", (), move |()| shared.work()) {
            self.queue.lock().workers -= 1;
            tracing::warn!(%error, workers, "cannot start a thread for the program's requests");
            if workers == 1 {
                // Nobody else would answer it.
                self.refuse();
            }
        }
    }

    /// Answers the first call of the queue with ENOMEM.
    fn refuse(&self) {
        let call = self.queue.lock().calls.pop_front();
        if let Some(call) = call {
            self.slow.fetch_sub(1, Ordering::AcqRel);
            self.answer_with(&call, None, |_| Answer::Error(Errno::ENOMEM));
        }
    }

    /// A worker: until everything ends.
    fn work(&self) {
        let mut queue = self.queue.lock();
        while !queue.ended {
            let Some(call) = queue.calls.pop_front() else {
                queue.idle += 1;
                self.work.wait(&mut queue);
                queue.idle -= 1;
                continue;
            };
            drop(queue);
            self.answer(&call, self.open_file(&call));
            self.slow.fetch_sub(1, Ordering::AcqRel);
            queue = self.queue.lock();
        }
    }

    /// Closes what the program closes: until everything ends.
    fn close(&self) {
        let mut pause = MIN_PAUSE;
        loop {
            let mut ready = [
                PollFd::from_borrowed_fd(self.files.closes(), PollFlags::IN),
                PollFd::new(&self.stop, PollFlags::IN),
            ];
            let timeout = self.files.has_marked_files().then(|| timespec(pause));
            let waited = poll(&mut ready, timeout.as_ref());
            if !ready[1].revents().is_empty() || !matches!(waited, Ok(_) | Err(rustix::io::Errno::INTR)) {
                return;
            }
            pause = if waited == Ok(0) { (pause * 2).min(MAX_PAUSE) } else { MIN_PAUSE };
            self.slow.fetch_add(1, Ordering::AcqRel);
            self.files.read_closes();
            self.slow.fetch_sub(1, Ordering::AcqRel);
        }
    }

    fn task(&self, call: &Call) -> Task<'_> {
        Task::new(self.listener.as_fd(), call.notification.id, call.notification.pid)
    }

    /// Returns the open file behind the first argument of a call, if it is known.
    fn open_file(&self, call: &Call) -> Option<Arc<OpenFile>> {
        self.files.known(&self.task(call), call.notification.data.args[0] as i32)
    }

    fn answer(&self, call: &Call, open: Option<Arc<OpenFile>>) {
        let data = &call.notification.data;
        self.answer_with(call, open, |(open, caller)| requests::answer(data, open, caller));
    }

    /// Answers a call as `decide` says.
    fn answer_with(
        &self,
        call: &Call,
        open: Option<Arc<OpenFile>>,
        decide: impl FnOnce((Option<&Arc<OpenFile>>, &mut TaskCaller<'_>)) -> Answer,
    ) {
        let (task, data) = (self.task(call), &call.notification.data);
        let recording = self.recording(call);
        if let (Some(recording), Some(open)) = (&recording, &open)
            && requests::is_about_first_argument(data)
        {
            recording.found(data.args[0] as i32, open);
        }
        let mut caller = TaskCaller {
            task,
            files: &self.files,
            memories: &self.memories,
            first_data_file: self.first_data_file,
            recording: recording.as_ref(),
            lacks: Cell::new(None),
        };
        // The program is not to wait forever for a request that went wrong here.
        let answer = catch_unwind(AssertUnwindSafe(|| decide((open.as_ref(), &mut caller))));
        let answer = answer.unwrap_or(Answer::Error(Errno::EIO));
        let record =
            catch_unwind(AssertUnwindSafe(|| recording?.record(data, &task, answer))).unwrap_or(None);
        // What the program closes after its answer is closed: nobody here may have it then.
        drop(open);
        match (&self.trace, record) {
            (Some(trace), Some(record)) => {
                // The program waits, not this thread: else a program whose trace nobody reads would go on until all workers wait.
                trace.events().wait_for_room();
                trace.events().end(record, || self.respond(call, answer));
            }
            _ => {
                self.respond(call, answer);
            }
        }
    }

    fn recording(&self, call: &Call) -> Option<Recording<'_>> {
        let (trace, received) = (self.trace.as_ref()?, call.received?);
        Some(Recording::new(trace, &call.notification.data, (call.notification.pid, received)))
    }

    /// Records the calls that nobody has begun to answer, and waits for those that somebody answers. Their tasks are gone.
    fn abandon_calls(&self) {
        let calls = std::mem::take(&mut self.queue.lock().calls);
        for call in calls {
            self.slow.fetch_sub(1, Ordering::AcqRel);
            self.answer_with(&call, None, |_| Answer::Error(Errno::ENOSYS));
        }
        let deadline = Instant::now() + LAST_RECORDS;
        while self.slow.load(Ordering::Acquire) > 0 {
            if Instant::now() > deadline {
                tracing::warn!("a request has not ended: it is missing in the trace");
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Gives the program an answer. Returns false if its task was killed.
    fn respond(&self, call: &Call, answer: Answer) -> bool {
        let (val, error, flags) = match answer {
            Answer::Value(value) => (value, 0, 0),
            Answer::Error(errno) => (0, -errno.raw_os_error(), 0),
            Answer::Continue => (0, 0, SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32),
        };
        let id = call.notification.id;
        send(self.listener.as_fd(), seccomp_notif_resp { id, val, error, flags }).is_ok()
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec { tv_sec: duration.as_secs().cast_signed(), tv_nsec: duration.subsec_nanos().into() }
}

/// Starts a thread. It holds `runs` until its end, unless it passes that on.
fn thread<R: Send + 'static>(
    name: &str,
    runs: R,
    body: impl FnOnce(R) + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name.into()).spawn(move || body(runs))
}

impl std::fmt::Debug for Traced {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Traced").field("options", &self.options).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue")
            .field("calls", &self.calls.len())
            .field("workers", &self.workers)
            .finish_non_exhaustive()
    }
}
