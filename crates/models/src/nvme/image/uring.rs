//! An engine on io_uring: the kernel executes the operations, and a thread tells when some have ended.
//!
//! Operations begin together, with one system call. Those for blocks in the page cache end within it.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use rustix::event::{EventfdFlags, eventfd};

use super::ring::Ring;
use super::task::Task;
use super::{Done, Engine, ImageFile, Operation};

/// The engine. Its thread ends by itself after it is dropped.
pub(super) struct Uring {
    ring: Ring,
    /// Tasks whose next request is not in the ring.
    waiting: VecDeque<Task>,
    done: Vec<Done>,
    bell: Arc<Bell>,
}

/// The eventfd that the kernel signals when requests have ended.
struct Bell {
    eventfd: OwnedFd,
    is_closed: AtomicBool,
}

impl Uring {
    /// Returns an engine, whose thread calls `notify` after operations have ended. An error if this process cannot use
    /// io_uring, or have a thread.
    pub(super) fn start(
        image: Arc<ImageFile>,
        notify: impl Fn() + Send + Sync + 'static,
    ) -> io::Result<Uring> {
        let bell =
            Arc::new(Bell { eventfd: eventfd(0, EventfdFlags::CLOEXEC)?, is_closed: AtomicBool::new(false) });
        let ring = Ring::new(image, &bell.eventfd)?;
        let listened = bell.clone();
        std::thread::Builder::new().name("image".into()).spawn(move || listened.listen(notify))?;
        Ok(Uring { ring, waiting: VecDeque::new(), done: Vec::new(), bell })
    }

    /// Begins the next request of all tasks that wait for that, as far as the ring has room.
    fn begin(&mut self) {
        while let Some(task) = self.waiting.pop_front() {
            let Some(request) = task.next() else {
                self.done.push(task.into_done());
                continue;
            };
            if let Err(task) = self.ring.push(task, request) {
                self.waiting.push_front(task);
                break;
            }
        }
        self.ring.begin();
    }

    /// Takes what has ended out of the ring. Returns whether tasks wait for their next request.
    fn take_ended(&mut self) -> bool {
        while let Some((mut task, request, result)) = self.ring.take_ended() {
            task.take_result(request, result);
            match task.next() {
                Some(_) => self.waiting.push_back(task),
                None => self.done.push(task.into_done()),
            }
        }
        !self.waiting.is_empty()
    }
}

impl Engine for Uring {
    fn submit(&mut self, tag: u64, operation: Operation) {
        self.waiting.push_back(Task::new(tag, operation));
    }

    fn collect(&mut self, done: &mut Vec<Done>) {
        self.take_ended();
        self.begin();
        if self.take_ended() {
            // What they wait for has not ended yet, or is the next request of an operation.
            self.begin();
        }
        done.append(&mut self.done);
    }

    fn wait(&mut self, deadline: Instant) {
        loop {
            self.take_ended();
            self.begin();
            self.take_ended();
            if !self.done.is_empty() || Instant::now() >= deadline {
                return;
            }
            self.ring.wait(deadline);
        }
    }
}

impl Bell {
    fn listen(&self, notify: impl Fn()) {
        let mut count = [0; 8];
        loop {
            match rustix::io::read(&self.eventfd, &mut count) {
                Ok(_) if self.is_closed.load(Ordering::Acquire) => return,
                Ok(_) => notify(),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    tracing::error!(%error, "an eventfd failed: the image's operations end some milliseconds late");
                    return;
                }
            }
        }
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        self.bell.is_closed.store(true, Ordering::Release);
        // The thread empties the counter: there is room for it.
        let _ = rustix::io::write(&self.bell.eventfd, &1_u64.to_ne_bytes());
    }
}

impl fmt::Debug for Uring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Uring").finish_non_exhaustive()
    }
}
