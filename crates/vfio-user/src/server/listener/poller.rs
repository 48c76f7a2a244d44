//! One descriptor that becomes readable when any of several is ready, or a timeout has expired (epoll and timerfd).

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

/// A token for a watched descriptor. Each connection gets a new one, because descriptor numbers are reused.
pub(super) type Token = u64;

/// The token of the timer.
const TIMER: Token = 0;

/// The first token that is not used here.
pub(super) const FIRST_TOKEN: Token = 1;

/// Maximum events to process at once. Others stay ready.
const EVENTS: usize = 32;

/// The watched descriptors.
#[derive(Debug)]
pub(super) struct Poller {
    epoll: OwnedFd,
    timer: OwnedFd,
    watched: Mutex<BTreeMap<Token, EventFlags>>,
}

impl Poller {
    pub(super) fn new() -> io::Result<Poller> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let timer =
            timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        epoll::add(&epoll, &timer, EventData::new_u64(TIMER), EventFlags::IN)?;
        Ok(Poller { epoll, timer, watched: Mutex::default() })
    }

    /// Watches a descriptor for `flags` from now on, or stops watching it if they are empty. With `ET` alone it stays
    /// watched for no event but one report of its end, so that later events cannot exceed the limit on watched
    /// descriptors. Stop watching a descriptor before it is closed: a copy of it elsewhere would keep it ready.
    pub(super) fn watch(&self, token: Token, fd: impl AsFd, flags: EventFlags) -> io::Result<()> {
        let mut watched = self.watched.lock();
        let before = watched.get(&token).copied();
        if before == Some(flags) || before.is_none() && flags.is_empty() {
            return Ok(());
        }
        if flags.is_empty() {
            watched.remove(&token);
            epoll::delete(&self.epoll, fd)?;
        } else if before.is_some() {
            epoll::modify(&self.epoll, fd, EventData::new_u64(token), flags)?;
            watched.insert(token, flags);
        } else {
            epoll::add(&self.epoll, fd, EventData::new_u64(token), flags)?;
            watched.insert(token, flags);
        }
        Ok(())
    }

    /// Sets the timeout after which it is ready too; `None` for none.
    pub(super) fn wake_after(&self, left: Option<Duration>) -> io::Result<()> {
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        // Zero would be never.
        let left = left.map(|left| left.max(Duration::from_nanos(1)));
        let it_value = left.and_then(|left| Timespec::try_from(left).ok()).unwrap_or(zero);
        timerfd_settime(
            &self.timer,
            TimerfdTimerFlags::empty(),
            &Itimerspec { it_interval: zero, it_value },
        )?;
        Ok(())
    }

    /// Returns the ready descriptors; waits for one if `waits`.
    pub(super) fn ready(&self, waits: bool) -> io::Result<Vec<Token>> {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut events = Vec::with_capacity(EVENTS);
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), (!waits).then_some(&now))
        {
            Err(rustix::io::Errno::INTR) => Ok(Vec::new()),
            Err(error) => Err(error.into()),
            Ok(_) => Ok(events.iter().map(|event| event.data.u64()).collect()),
        }
    }
}

impl AsFd for Poller {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::socket::is_readable;

    #[test]
    fn a_poller_is_readable_while_anything_watched_is_ready() {
        let poller = Poller::new().unwrap();
        let (here, there) = UnixStream::pair().unwrap();
        poller.watch(FIRST_TOKEN, &here, EventFlags::IN).unwrap();
        assert!(!is_readable(&poller));
        std::io::Write::write_all(&mut &there, b"x").unwrap();
        assert!(is_readable(&poller));
        assert_eq!(poller.ready(false).unwrap(), [FIRST_TOKEN]);
        poller.watch(FIRST_TOKEN, &here, EventFlags::ET).unwrap();
        assert!(!is_readable(&poller), "it is watched for nothing");
        poller.watch(FIRST_TOKEN, &here, EventFlags::IN).unwrap();
        assert_eq!(poller.ready(false).unwrap(), [FIRST_TOKEN]);
        poller.watch(FIRST_TOKEN, &here, EventFlags::empty()).unwrap();
        assert!(!is_readable(&poller), "it is watched no longer");
        poller.wake_after(Some(Duration::ZERO)).unwrap();
        assert_eq!(poller.ready(true).unwrap(), [TIMER]);
        poller.wake_after(None).unwrap();
        assert!(!is_readable(&poller));
    }
}
