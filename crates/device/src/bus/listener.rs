//! A thread that waits for eventfds by which the user triggers an action of the device.
//!
//! The kernel acts within the user's write; here the action follows a moment later.

use std::collections::BTreeMap;
use std::fmt;
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{ReadWriteFlags, preadv2};
use whimbrel_protocol::Errno;

type Action = Arc<dyn Fn() + Send + Sync>;

/// The token of the eventfd that ends the thread.
const STOP: u64 = 0;

/// Edge-triggered: each signal is one event, whoever reads the counter.
const SIGNALS: EventFlags = EventFlags::IN.union(EventFlags::ET);

/// Eventfds with their actions. The thread starts with the first one.
#[derive(Debug, Default)]
pub(crate) struct Listener {
    running: Mutex<Option<Arc<Running>>>,
}

struct Running {
    epoll: OwnedFd,
    stop: OwnedFd,
    watched: Mutex<Watched>,
    /// Held while a signal is handled. `true`: signals stay in their counters.
    paused: Mutex<bool>,
}

#[derive(Default)]
struct Watched {
    last_token: u64,
    eventfds: BTreeMap<u64, Watches>,
}

/// One eventfd with all of its watches: a signal is one event, and its counter is read once.
struct Watches {
    eventfd: Arc<OwnedFd>,
    identity: Option<u64>,
    actions: BTreeMap<u64, Action>,
}

/// A watch on an eventfd, which ends when this is dropped.
pub(crate) struct Watch {
    listener: Weak<Running>,
    token: u64,
}

impl Listener {
    /// Runs `action` on each signal of `eventfd`, also if it is signalled already. ENOMEM, EAGAIN or EMFILE if the
    /// process has no resources left.
    ///
    /// A signal in flight when the watch ends may still run the action.
    pub(crate) fn watch(
        &self,
        eventfd: Arc<OwnedFd>,
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
            listener.add(&eventfd, token)?;
            let actions = BTreeMap::from([(token, Arc::new(action) as Action)]);
            watched.eventfds.insert(token, Watches { eventfd, identity, actions });
        }
        drop(watched);
        Ok(Watch { listener: Arc::downgrade(&listener), token })
    }

    /// Once this returns, no signal is consumed and no action runs: signals stay in their counters. Must not be
    /// called by an action, nor while holding a lock that an action takes.
    ///
    /// EMFILE, ENOMEM or EAGAIN if this process lacks the resources to listen at all.
    pub(crate) fn pause(&self) -> Result<(), Errno> {
        *self.running()?.paused.lock() = true;
        Ok(())
    }

    /// Resumes, starting with signals since [`Listener::pause`] that nobody else consumed.
    pub(crate) fn resume(&self) {
        let Some(listener) = self.running.lock().clone() else { return };
        *listener.paused.lock() = false;
        for (token, of) in &listener.watched.lock().eventfds {
            // A change looks at the counter anew. It is one of those that are there: nothing can fail.
            let _ = epoll::modify(&listener.epoll, &of.eventfd, EventData::new_u64(*token), SIGNALS);
        }
    }

    fn running(&self) -> Result<Arc<Running>, Errno> {
        let mut running = self.running.lock();
        match &*running {
            Some(listener) => Ok(listener.clone()),
            None => Ok(running.insert(Running::start()?).clone()),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(running) = self.running.get_mut() {
            // The counter was 0: there is room for it. Not joined, because the last handle to a device may be
            // dropped by an action, on the thread itself.
            let _ = rustix::io::write(&running.stop, &1_u64.to_ne_bytes());
        }
    }
}

impl Running {
    fn start() -> Result<Arc<Running>, Errno> {
        let running = Arc::new(Running {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            stop: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            watched: Mutex::default(),
            paused: Mutex::new(false),
        });
        running.add(&running.stop, STOP)?;
        let listener = running.clone();
        std::thread::Builder::new()
            .name("eventfds".into())
            .spawn(move || listener.listen())
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::EAGAIN))?;
        Ok(running)
    }

    fn add(&self, eventfd: &OwnedFd, token: u64) -> rustix::io::Result<()> {
        epoll::add(&self.epoll, eventfd, EventData::new_u64(token), SIGNALS)
    }

    fn listen(&self) {
        let mut events = [Event { flags: EventFlags::empty(), data: EventData::new_u64(STOP) }; 16];
        loop {
            let count = match epoll::wait(&self.epoll, &mut events[..], None) {
                Ok(count) => count,
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => {
                    tracing::error!(%error, "epoll failed: eventfds are ignored from now on");
                    return;
                }
            };
            for event in &events[..count] {
                let token = event.data.u64();
                if token == STOP {
                    return;
                }
                let paused = self.paused.lock();
                if *paused {
                    continue;
                }
                let (eventfd, actions): (_, Vec<Action>) = match self.watched.lock().eventfds.get(&token) {
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
fn identity(eventfd: &OwnedFd) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", eventfd.as_raw_fd())).ok()?;
    let number = text.lines().find_map(|line| line.strip_prefix("eventfd-id:"))?;
    number.trim().parse().ok()
}

/// Reads an eventfd's counter without blocking: someone else may have read it, and the user decides whether reads of it
/// block.
fn take_count(eventfd: &OwnedFd) {
    let mut counter = [0; 8];
    // That it is 0 already is as good as having read it.
    let _ = preadv2(eventfd, &mut [IoSliceMut::new(&mut counter)], u64::MAX, ReadWriteFlags::NOWAIT);
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
            let _ = epoll::delete(&listener.epoll, &of.eventfd);
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
