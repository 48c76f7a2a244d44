//! Receives the program's calls and has them answered: one thread receives, others answer what may take time.
//!
//! The receiver answers a call itself if that is quick and nothing slow is under way, for then nobody holds a lock that
//! it needs: a call costs one change of threads in each direction. Everything else goes to workers, so that a request
//! that waits, such as a state change, holds up no other. If the receiver does not come back from an answer, another
//! thread takes its [turn](Turn).

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use libc::{SECCOMP_USER_NOTIF_FLAG_CONTINUE, seccomp_notif, seccomp_notif_resp};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use whimbrel_device::Errno;

use super::answer::Answer;
use super::caller::TaskCaller;
use super::closer;
use super::events::Take;
use super::files::Files;
use super::open_file::OpenFile;
use super::program_memory::Memories;
use super::recording::{Recording, unread};
use super::requests;
use super::slow::Slow;
use super::system::{receive, send};
use super::task::Task;
use super::traced::Trace;
use super::turn::Turn;
use super::workers::Workers;
use crate::trace::{Options, Outcome};

/// The longest that the end waits for answers under way. One that waits for memory of the program may never end.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// The longest that files stay open once no task is left: another process may have them, which can make no requests.
const LATE_CLOSES: Duration = Duration::from_secs(2);

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
    slow: Slow,
    turn: Turn,
    workers: Workers,
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
            slow: Slow::default(),
            turn: Turn::default(),
            workers: Workers::default(),
        });
        let (runs, running) = mpsc::channel();
        let mut supervisor = Supervisor { shared: shared.clone(), running, tracer: None };
        if let (Some(trace), Some(take)) = (&shared.trace, take) {
            let events = trace.events().clone();
            supervisor.tracer = Some(thread("trace", (), move |()| events.give_out(take))?);
        }
        let closes = shared.clone();
        thread("closes", runs.clone(), move |_| closer::close(&closes.files, &closes.stop, &closes.slow))?;
        shared.start_stand_by(&runs)?;
        thread("receiver", runs, move |runs| shared.receive(&runs, 0))?;
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
        let deadline = Instant::now() + LAST_ANSWERS;
        if self.running.recv_timeout(LAST_ANSWERS) == Err(mpsc::RecvTimeoutError::Timeout) {
            tracing::warn!("a request of the program is still waiting for the program's memory or files");
        }
        if let Some(trace) = &self.shared.trace {
            self.shared.abandon_calls(trace, deadline);
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
        self.workers.end();
        self.turn.wake();
        self.files.wake();
        if let Some(trace) = &self.trace {
            trace.events().hurry();
        }
    }

    /// Starts a thread that stands by, unless one does.
    fn start_stand_by(self: &Arc<Shared>, runs: &Running) -> io::Result<()> {
        if self.turn.needs_stand_by() {
            let stands_by = self.clone();
            thread("receiver", runs.clone(), move |runs| stands_by.stand_by(&runs))
                .inspect_err(|_| self.turn.forget_stand_by())?;
        }
        Ok(())
    }

    /// Stands by to receive in place of a receiver that does not come back from an answer.
    fn stand_by(self: &Arc<Shared>, runs: &Running) {
        let is_over = || self.is_over.load(Ordering::Acquire);
        if let Some(step) = self.turn.stand_by(is_over, || self.slow.begin(), || self.slow.end()) {
            self.receive(runs, step);
        }
    }

    /// The receiver: until no task is left, everything ends, or another thread has taken the turn. `step` is its first step.
    fn receive(self: &Arc<Shared>, runs: &Running, mut step: u64) {
        let mut has_told = false;
        loop {
            if let Err(error) = self.start_stand_by(runs)
                && !std::mem::replace(&mut has_told, true)
            {
                tracing::warn!(%error, "cannot start a thread that stands by to receive the program's calls");
            }
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
                        self.turn.begin(step);
                        self.take(notification);
                        let Some(next) = self.turn.end(step) else {
                            // It counted as slow from then on.
                            self.slow.end();
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
    fn take(self: &Arc<Shared>, call: seccomp_notif) {
        if let Some(trace) = &self.trace {
            trace.begin(&call);
        }
        if requests::may_be_quick(&call.data) && self.slow.is_none() {
            let open = self.glimpse(&call);
            if open.as_ref().is_some_and(|open| requests::is_quick(&call.data, open)) {
                self.answer(&call, open);
                return;
            }
        }
        self.slow.begin();
        let Some(workers) = self.workers.add(call) else { return };
        let shared = self.clone();
        // Nobody waits for the workers: those that wait for the program may never end.
        if let Err(error) = thread("worker", (), move |()| shared.work()) {
            self.workers.forget_worker();
            tracing::warn!(%error, workers, "cannot start a thread for the program's requests");
            if workers == 1 {
                // Nobody else would answer it.
                self.refuse();
            }
        }
    }

    /// Answers the first call that waits for a worker with ENOMEM.
    fn refuse(&self) {
        if let Some(call) = self.workers.take() {
            let _ends = self.slow.ends();
            self.answer_with(&call, None, |_| Answer::Error(Errno::ENOMEM));
        }
    }

    /// A worker: until everything ends.
    fn work(&self) {
        self.workers.work(|call| {
            let _ends = self.slow.ends();
            self.answer(call, self.open_file(call));
        });
    }

    fn task(&self, call: &seccomp_notif) -> Task<'_> {
        Task::new(self.listener.as_fd(), call.id, call.pid)
    }

    /// Returns the open file behind the first argument of a call that may be quick, if it is known.
    fn glimpse(&self, call: &seccomp_notif) -> Option<Arc<OpenFile>> {
        let known = || self.files.glimpse(&self.task(call), call.data.args[0] as i32);
        // Its answer tells the program of what went wrong here.
        catch_unwind(AssertUnwindSafe(known)).unwrap_or(None)
    }

    /// Returns the open file behind the first argument of a call, if it is known.
    fn open_file(&self, call: &seccomp_notif) -> Option<Arc<OpenFile>> {
        let known = || self.files.known(&self.task(call), call.data.args[0] as i32);
        // Its answer tells the program of what went wrong here.
        catch_unwind(AssertUnwindSafe(known)).unwrap_or(None)
    }

    fn answer(&self, call: &seccomp_notif, open: Option<Arc<OpenFile>>) {
        let data = &call.data;
        self.answer_with(call, open, |(open, caller)| requests::answer(data, open, caller));
    }

    /// Answers a call as `decide` says.
    fn answer_with(
        &self,
        call: &seccomp_notif,
        open: Option<Arc<OpenFile>>,
        decide: impl FnOnce((Option<&Arc<OpenFile>>, &mut TaskCaller<'_>)) -> Answer,
    ) {
        let (task, data) = (self.task(call), &call.data);
        let recording = self.trace.as_ref().and_then(|trace| Recording::new(trace, call.id));
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
        let _ = catch_unwind(AssertUnwindSafe(|| drop(open)));
        let respond = || {
            let is_recorded_here = self.trace.as_ref().is_some_and(|trace| trace.under_way().end(call.id));
            let is_taken = self.respond(call, answer);
            is_recorded_here.then_some(is_taken)
        };
        match (&self.trace, record) {
            (Some(trace), Some(record)) => {
                // The program waits, not this thread: else a program whose trace nobody reads would go on until all workers wait.
                trace.events().wait_for_room();
                trace.events().end(record, respond);
            }
            _ => {
                respond();
            }
        }
    }

    /// Ends the calls that nobody has begun to answer, and records them and those whose answer does not come by the deadline.
    fn abandon_calls(&self, trace: &Trace, deadline: Instant) {
        for call in self.workers.take_all() {
            let _ends = self.slow.ends();
            if let Some(begun) = trace.under_way().take(call.id) {
                let record = unread(trace, &begun, Outcome::Failed(Errno::ENOSYS));
                trace.events().end(record, || Some(self.respond(&call, Answer::Error(Errno::ENOSYS))));
            }
        }
        for call in trace.under_way().take_at(deadline) {
            trace.events().end(unread(trace, &call, Outcome::Unfinished), || Some(false));
        }
    }

    /// Gives the program an answer. Returns false if its task was killed.
    fn respond(&self, call: &seccomp_notif, answer: Answer) -> bool {
        let (val, error, flags) = match answer {
            Answer::Value(value) => (value, 0, 0),
            Answer::Error(errno) => (0, -errno.raw_os_error(), 0),
            Answer::Continue => (0, 0, SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32),
        };
        let id = call.id;
        send(self.listener.as_fd(), seccomp_notif_resp { id, val, error, flags }).is_ok()
    }
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
