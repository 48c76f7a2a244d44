//! A thread that waits for eventfds which a user signals to make the device do something.
//!
//! The kernel does the work within the user's write; here it is done a moment later.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt;
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use rustix::io::{ReadWriteFlags, preadv2};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use whimbrel_protocol::Errno;

type Action = Arc<dyn Fn() + Send + Sync>;

/// The token of the eventfd that ends the thread.
const STOP: u64 = 0;

/// Eventfds, and what each of them does. The thread starts with the first one.
#[derive(Debug, Default)]
pub(crate) struct Listener {
    running: Mutex<Option<Arc<Running>>>,
}

struct Running {
    epoll: Epoll,
    stop: EventFd,
    watched: Mutex<Watched>,
    /// Held while a signal is handled. `true`: signals stay in their counters.
    paused: Mutex<bool>,
}

#[derive(Default)]
struct Watched {
    last_token: u64,
    eventfds: BTreeMap<u64, Watches>,
}

/// One eventfd, whatever number of watches it has: a signal is one event, and its counter is read once.
struct Watches {
    eventfd: Arc<EventFd>,
    identity: Option<u64>,
    actions: BTreeMap<u64, Action>,
}

/// As long as it lives, signals are listened to.
pub(crate) struct Watch {
    listener: Weak<Running>,
    token: u64,
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::EINVAL)
}

impl Listener {
    /// Runs `action` on each signal of `eventfd`, also if it is signalled already. ENOMEM, EAGAIN or EMFILE if the
    /// process has no resources left.
    ///
    /// A signal that is on its way when the watch ends may still be seen.
    pub(crate) fn watch(
        &self,
        eventfd: Arc<EventFd>,
        action: impl Fn() + Send + Sync + 'static,
    ) -> Result<Watch, Errno> {
        let listener = self.running()?;
        let mut watched = listener.watched.lock();
        watched.last_token += 1;
        let token = watched.last_token;
        let identity = identity(&eventfd);
        let same = watched.eventfds.values_mut().find(|of| identity.is_some() && of.identity == identity);
        if let Some(same) = same {
            same.actions.insert(token, Arc::new(action));
        } else {
            listener.add(&eventfd, token).map_err(|error| errno(&error))?;
            let actions = BTreeMap::from([(token, Arc::new(action) as Action)]);
            watched.eventfds.insert(token, Watches { eventfd, identity, actions });
        }
        drop(watched);
        Ok(Watch { listener: Arc::downgrade(&listener), token })
    }

    /// Once this returns, no signal is consumed and no action runs: signals stay in their counters. Must not be
    /// called by an action, nor while holding a lock that an action takes.
    ///
    /// EMFILE, ENOMEM or EAGAIN if this process cannot have what it takes to listen at all.
    pub(crate) fn pause(&self) -> Result<(), Errno> {
        *self.running()?.paused.lock() = true;
        Ok(())
    }

    /// Goes on, first with what was signalled since [`Listener::pause`] and nobody else has taken.
    pub(crate) fn resume(&self) {
        let Some(listener) = self.running.lock().clone() else { return };
        *listener.paused.lock() = false;
        for (token, of) in &listener.watched.lock().eventfds {
            // A change looks at the counter anew. It is one of those that are there: nothing can fail.
            let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, *token);
            let _ = listener.epoll.ctl(ControlOperation::Modify, of.eventfd.as_raw_fd(), event);
        }
    }

    fn running(&self) -> Result<Arc<Running>, Errno> {
        let mut running = self.running.lock();
        match &*running {
            Some(listener) => Ok(listener.clone()),
            None => Ok(running.insert(Running::start().map_err(|error| errno(&error))?).clone()),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(running) = self.running.get_mut() {
            // The counter was 0: there is room for it. Not joined, because the last handle to a device may be
            // dropped by an action, on the thread itself.
            let _ = running.stop.write(1);
        }
    }
}

impl Running {
    fn start() -> std::io::Result<Arc<Running>> {
        let running = Arc::new(Running {
            epoll: Epoll::new()?,
            stop: EventFd::new(EFD_NONBLOCK)?,
            watched: Mutex::default(),
            paused: Mutex::new(false),
        });
        running.add(&running.stop, STOP)?;
        let listener = running.clone();
        std::thread::Builder::new().name("eventfds".into()).spawn(move || listener.listen())?;
        Ok(running)
    }

    fn add(&self, eventfd: &EventFd, token: u64) -> std::io::Result<()> {
        // Edge triggered: each signal is one event, whoever has read the counter.
        let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, token);
        self.epoll.ctl(ControlOperation::Add, eventfd.as_raw_fd(), event)
    }

    fn listen(&self) {
        let mut events = [EpollEvent::default(); 16];
        loop {
            let count = match self.epoll.wait(-1, &mut events) {
                Ok(count) => count,
                Err(error) if error.raw_os_error() == Some(Errno::EINTR.raw_os_error()) => continue,
                Err(error) => {
                    tracing::error!(%error, "no eventfd is listened to any more");
                    return;
                }
            };
            for event in &events[..count] {
                if event.data() == STOP {
                    return;
                }
                let paused = self.paused.lock();
                if *paused {
                    continue;
                }
                let (eventfd, actions): (_, Vec<Action>) =
                    match self.watched.lock().eventfds.get(&event.data()) {
                        Some(found) => (found.eventfd.clone(), found.actions.values().cloned().collect()),
                        None => continue,
                    };
                take_count(&eventfd);
                for action in actions {
                    action();
                }
            }
        }
    }
}

/// Returns the kernel's id of an eventfd, which is the same for all of its descriptors (`eventfd-id` in fdinfo).
/// `None` without procfs: such an eventfd counts as a separate one.
fn identity(eventfd: &EventFd) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", eventfd.as_raw_fd())).ok()?;
    let number = text.lines().find_map(|line| line.strip_prefix("eventfd-id:"))?;
    number.trim().parse().ok()
}

/// Sets an eventfd's counter to 0 as a reader does, but never waits: someone else may have read it, and whether reads
/// of it block is the user's choice.
fn take_count(eventfd: &EventFd) {
    // SAFETY: the descriptor is open as long as `eventfd` is borrowed, which is longer than the call below.
    let fd = unsafe { BorrowedFd::borrow_raw(eventfd.as_raw_fd()) };
    let mut counter = [0; 8];
    // That it is 0 already is as good as having read it.
    let _ = preadv2(fd, &mut [IoSliceMut::new(&mut counter)], u64::MAX, ReadWriteFlags::NOWAIT);
}

impl Drop for Watch {
    fn drop(&mut self) {
        let Some(listener) = self.listener.upgrade() else { return };
        let mut watched = listener.watched.lock();
        let Some((token, of)) =
            watched.eventfds.iter_mut().find(|(_, of)| of.actions.contains_key(&self.token))
        else {
            return;
        };
        let token = *token;
        of.actions.remove(&self.token);
        if of.actions.is_empty()
            && let Some(of) = watched.eventfds.remove(&token)
        {
            // It is there: nobody else removes it.
            let event = EpollEvent::default();
            let _ = listener.epoll.ctl(ControlOperation::Delete, of.eventfd.as_raw_fd(), event);
        }
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("token", &self.token).finish_non_exhaustive()
    }
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Running").finish_non_exhaustive()
    }
}
