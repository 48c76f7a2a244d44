//! Receives the program's calls and has them answered: one thread receives, others answer what may take time.
//!
//! The receiver answers a call itself if that is quick and nothing slow is under way, for then nobody holds a lock that
//! it needs: a call costs one change of threads in each direction. Everything else goes to workers, so that a request
//! that waits, such as a state change, holds up no other. If the receiver does not come back from an answer, another
//! thread takes its [turn](Turn).

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use libc::{SECCOMP_USER_NOTIF_FLAG_CONTINUE, seccomp_notif, seccomp_notif_resp};
use parking_lot::{Condvar, Mutex};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use whimbrel_device::Errno;

use super::caller::TaskCaller;
use super::files::{Files, OpenFile};
use super::requests::{self, Answer};
use super::system::{receive, send};
use super::task::Task;
use super::turn::Turn;

/// Workers at a time, and so requests that can wait at once: for the device, or for memory that the program keeps back.
/// The next one waits until one of them is answered.
const MAX_WORKERS: usize = 1024;

/// The longest that the end waits for an answer under way. One that waits for memory of the program may never end.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// The longest that files stay open once no task is left: another process may have them, which can make no requests.
const LATE_CLOSES: Duration = Duration::from_secs(2);

/// The state that the threads share.
#[derive(Debug)]
struct Shared {
    listener: OwnedFd,
    files: Files,
    first_data_file: i32,
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

#[derive(Default)]
struct Queue {
    calls: VecDeque<seccomp_notif>,
    workers: usize,
    idle: usize,
    ended: bool,
}

/// The threads that serve a program. Dropping it ends them; calls that still come fail with ENOSYS.
#[derive(Debug)]
pub(super) struct Supervisor {
    shared: Arc<Shared>,
    /// Disconnected once the threads have ended.
    running: mpsc::Receiver<std::convert::Infallible>,
}

/// Held by a thread that runs.
type Running = mpsc::Sender<std::convert::Infallible>;

impl Supervisor {
    /// Starts to serve the calls of a listener.
    pub(super) fn start(listener: OwnedFd, files: Files, first_data_file: i32) -> io::Result<Supervisor> {
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let shared = Arc::new(Shared {
            listener,
            files,
            first_data_file,
            stop,
            is_over: AtomicBool::new(false),
            slow: AtomicUsize::new(0),
            turn: Turn::default(),
            queue: Mutex::default(),
            work: Condvar::new(),
        });
        let (runs, running) = mpsc::channel();
        let supervisor = Supervisor { shared: shared.clone(), running };
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
        self.shared.files.close_all();
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
                    Ok(call) => {
                        self.turn.begin(step);
                        self.take(call);
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
    fn take(self: &Arc<Shared>, call: seccomp_notif) {
        if self.slow.load(Ordering::Acquire) == 0 {
            let open = self.open_file(&call);
            if open.as_ref().is_some_and(|open| requests::is_quick(&call.data, open)) {
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
            self.respond(call.id, Answer::Error(Errno::ENOMEM));
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
        loop {
            let mut ready = [
                PollFd::from_borrowed_fd(self.files.closes(), PollFlags::IN),
                PollFd::new(&self.stop, PollFlags::IN),
            ];
            let waited = poll(&mut ready, None);
            if !ready[1].revents().is_empty() || !matches!(waited, Ok(_) | Err(rustix::io::Errno::INTR)) {
                return;
            }
            self.slow.fetch_add(1, Ordering::AcqRel);
            self.files.read_closes();
            self.slow.fetch_sub(1, Ordering::AcqRel);
        }
    }

    fn task(&self, call: &seccomp_notif) -> Task<'_> {
        Task::new(self.listener.as_fd(), call.id, call.pid)
    }

    /// Returns the open file behind the first argument of a call, if it is known.
    fn open_file(&self, call: &seccomp_notif) -> Option<Arc<OpenFile>> {
        self.files.known(&self.task(call).stat(call.data.args[0] as i32).ok()?)
    }

    fn answer(&self, call: &seccomp_notif, open: Option<Arc<OpenFile>>) {
        let task = self.task(call);
        let mut caller = TaskCaller { task, files: &self.files, first_data_file: self.first_data_file };
        // The program is not to wait forever for a request that went wrong here.
        let answer =
            catch_unwind(AssertUnwindSafe(|| requests::answer(&call.data, open.as_ref(), &mut caller)));
        // What the program closes after its answer is closed: nobody here may have it then.
        drop(open);
        self.respond(call.id, answer.unwrap_or(Answer::Error(Errno::EIO)));
    }

    fn respond(&self, id: u64, answer: Answer) {
        let (val, error, flags) = match answer {
            Answer::Value(value) => (value, 0, 0),
            Answer::Error(errno) => (0, -errno.raw_os_error(), 0),
            Answer::Continue => (0, 0, SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32),
        };
        // A task that was killed takes no answer.
        let _ = send(self.listener.as_fd(), seccomp_notif_resp { id, val, error, flags });
    }
}

/// Starts a thread. It holds `runs` until its end, unless it passes that on.
fn thread<R: Send + 'static>(name: &str, runs: R, body: impl FnOnce(R) + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().name(name.into()).spawn(move || body(runs)).map(drop)
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue")
            .field("calls", &self.calls.len())
            .field("workers", &self.workers)
            .finish_non_exhaustive()
    }
}
