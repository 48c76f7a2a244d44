//! A thread that passes the signals of one eventfd on to another: from the doorbells that a client's owner has to those
//! of the server that the client has come back to.
//!
//! Servers have created both, and may have kept them, so the thread relies on neither: a read never waits, and a write is
//! made only with room for it. A server that takes that room at the same moment stops this thread, and nothing else.

use std::io::{self, IoSliceMut};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::{Errno as SystemError, ReadWriteFlags, preadv2};

/// Attempts to free a thread that waits for room, each with a pause.
const ATTEMPTS: u32 = 100;
const PAUSE: Duration = Duration::from_millis(10);
/// The position of a file that has none.
const NO_POSITION: u64 = u64::MAX;

/// Eventfds from which and to which signals are passed.
type Detours = Vec<(Arc<OwnedFd>, Arc<OwnedFd>)>;

/// The thread, which ends with this.
#[derive(Debug)]
pub(super) struct Relay {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    /// `None` once the thread is to end.
    detours: Mutex<Option<Detours>>,
    /// Signalled when they have changed.
    changed: OwnedFd,
}

impl Relay {
    pub(super) fn start(detours: Detours) -> io::Result<Relay> {
        for (from, _) in &detours {
            take_signals(from);
        }
        let changed = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let shared = Arc::new(Shared { detours: Mutex::new(Some(detours)), changed });
        let builder = std::thread::Builder::new().name("vfio-user doorbells".into());
        let thread = builder.spawn({
            let shared = shared.clone();
            move || shared.run()
        })?;
        Ok(Relay { shared, thread: Some(thread) })
    }

    /// Passes these signals on from now on, and no others.
    pub(super) fn pass_on(&self, detours: Detours) {
        self.shared.change(Some(detours));
    }
}

impl Shared {
    fn change(&self, detours: Option<Detours>) -> Option<Detours> {
        let before = std::mem::replace(&mut *self.detours.lock(), detours);
        let _ = rustix::io::write(&self.changed, &1_u64.to_ne_bytes());
        before
    }

    fn run(&self) {
        loop {
            let Some(detours) = self.detours.lock().clone() else { return };
            let mut polled = vec![PollFd::new(&self.changed, PollFlags::IN)];
            polled.extend(detours.iter().map(|(from, _)| PollFd::new(&**from, PollFlags::IN)));
            // Nothing but a signal interrupts it.
            if poll(&mut polled, None).is_err() {
                continue;
            }
            if !polled[0].revents().is_empty() {
                take_signals(&self.changed);
                continue;
            }
            for (polled, (from, to)) in polled[1..].iter().zip(&detours) {
                if polled.revents().contains(PollFlags::IN) && take_signals(from).is_some() {
                    signal(to);
                }
            }
        }
    }
}

/// Resets the counter of an eventfd, and returns it. `None` if it was 0, or if another reader was faster.
fn take_signals(eventfd: &OwnedFd) -> Option<u64> {
    let mut counter = [0; 8];
    loop {
        let parts = &mut [IoSliceMut::new(&mut counter)];
        let taken = match preadv2(eventfd, parts, NO_POSITION, ReadWriteFlags::NOWAIT) {
            // A kernel before 5.8 may wait, if another reader was faster.
            Err(SystemError::OPNOTSUPP) => rustix::io::read(eventfd, &mut counter),
            taken => taken,
        };
        match taken {
            Ok(8) => return Some(u64::from_ne_bytes(counter)),
            Err(SystemError::INTR) => {}
            _ => return None,
        }
    }
}

/// Signals an eventfd once, however often the other was signalled: as with KVM, signals add up until they are taken. One
/// whose counter is full needs no more.
fn signal(eventfd: &OwnedFd) {
    let has_room = poll(&mut [PollFd::new(eventfd, PollFlags::OUT)], Some(&Timespec::default()));
    if has_room.is_ok_and(|count| count > 0) {
        let _ = rustix::io::write(eventfd, &1_u64.to_ne_bytes());
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        let detours = self.shared.change(None).unwrap_or_default();
        for _ in 0..ATTEMPTS {
            if thread.is_finished() {
                let _ = thread.join();
                return;
            }
            // A write that waits for room gets it in this way.
            for (_, to) in &detours {
                if poll(&mut [PollFd::new(&**to, PollFlags::OUT)], Some(&Timespec::default())) == Ok(0) {
                    take_signals(to);
                }
            }
            std::thread::sleep(PAUSE);
        }
        tracing::warn!("a doorbell's eventfd stays full: its thread remains");
    }
}
