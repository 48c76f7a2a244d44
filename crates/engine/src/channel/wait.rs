//! Waiting for a file descriptor, with an absolute deadline and an interrupt.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

/// A switch that ends waits on other threads. Its clones are the same switch.
///
/// Once set, it ends every wait that uses it, including later ones, until it is cleared.
///
/// ```
/// use whimbrel_engine::channel::{Interrupt, Until, WaitError};
///
/// let interrupt = Interrupt::new()?;
/// let elsewhere = interrupt.clone();
/// let waiter = std::thread::spawn(move || Until::interrupted(&elsewhere).sleep());
/// interrupt.set();
/// assert!(matches!(waiter.join().unwrap(), WaitError::Interrupted));
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Interrupt {
    /// An eventfd. Its counter is the state, so that setting and polling cannot disagree.
    event: Arc<OwnedFd>,
}

impl Interrupt {
    /// Creates an interrupt that is not set.
    pub fn new() -> io::Result<Interrupt> {
        Ok(Interrupt { event: Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?) })
    }

    /// Ends the waits.
    pub fn set(&self) {
        // The only possible failure is a full counter: the interrupt is set then.
        let _ = retry(|| rustix::io::write(&self.event, &1_u64.to_ne_bytes()));
    }

    /// Clears the interrupt, so that later waits block again.
    pub fn clear(&self) {
        // Fails if it is not set.
        let _ = retry(|| rustix::io::read(&self.event, &mut [0; size_of::<u64>()]));
    }

    /// Returns whether the interrupt is set.
    pub fn is_set(&self) -> bool {
        let mut fds = [PollFd::new(&self.event, PollFlags::IN)];
        retry(|| poll(&mut fds, Some(&Timespec::default()))).is_ok_and(|ready| ready > 0)
    }
}

impl AsFd for Interrupt {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

/// The reasons why a wait ended early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WaitError {
    /// The interrupt was set.
    #[error("interrupted")]
    Interrupted,
    /// The deadline has passed.
    #[error("timed out")]
    TimedOut,
    /// The system refused to wait, or to accept connections.
    #[error("cannot wait: {0}")]
    Failed(io::Error),
}

/// The direction of a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a stream has two directions")]
pub enum Readiness {
    /// A read would not block.
    Readable,
    /// A write would not block.
    Writable,
}

/// The end of a wait: an absolute deadline, an interrupt, or both.
///
/// Whatever needs no wait is done even after the end, unless the peer decides how much that is.
#[derive(Clone, Copy, Debug)]
pub struct Until<'a> {
    deadline: Option<Instant>,
    interrupt: Option<&'a Interrupt>,
}

impl<'a> Until<'a> {
    /// Returns an end at the deadline or the interrupt.
    pub const fn new(deadline: Instant, interrupt: &'a Interrupt) -> Until<'a> {
        Until { deadline: Some(deadline), interrupt: Some(interrupt) }
    }

    /// Returns an end at the interrupt, without a deadline.
    pub const fn interrupted(interrupt: &'a Interrupt) -> Until<'a> {
        Until { deadline: None, interrupt: Some(interrupt) }
    }

    /// Returns an end at the deadline.
    pub const fn deadline(deadline: Instant) -> Until<'static> {
        Until { deadline: Some(deadline), interrupt: None }
    }

    /// Returns an end `timeout` from now.
    pub fn timeout(timeout: Duration) -> Until<'static> {
        // A timeout beyond the clock's range has no deadline.
        Until { deadline: Instant::now().checked_add(timeout), interrupt: None }
    }

    /// Returns an end that has passed: nothing waits.
    pub fn now() -> Until<'static> {
        Until::deadline(Instant::now())
    }

    /// Returns the same end, but no later than `deadline`.
    #[must_use]
    pub fn at_most(self, deadline: Instant) -> Until<'a> {
        Until { deadline: Some(self.deadline.map_or(deadline, |ours| ours.min(deadline))), ..self }
    }

    /// Returns the time left; `None` without a deadline.
    pub fn left(&self) -> Option<Duration> {
        self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }

    /// Fails after the end, without waiting. For loops that a peer could keep going without a wait.
    pub fn check(&self) -> Result<(), WaitError> {
        self.check_interrupt()?;
        if self.left().is_some_and(|left| left.is_zero()) { Err(WaitError::TimedOut) } else { Ok(()) }
    }

    /// Fails if the interrupt is set.
    pub(super) fn check_interrupt(&self) -> Result<(), WaitError> {
        if self.interrupt.is_some_and(Interrupt::is_set) { Err(WaitError::Interrupted) } else { Ok(()) }
    }

    /// Waits until a descriptor is ready or has an error to report. After the deadline, this always returns
    /// [`WaitError::TimedOut`]: try first, then wait.
    pub fn wait(&self, fd: BorrowedFd<'_>, readiness: Readiness) -> Result<(), WaitError> {
        let flags = match readiness {
            Readiness::Readable => PollFlags::IN,
            Readiness::Writable => PollFlags::OUT,
        };
        self.poll(&[PollFd::from_borrowed_fd(fd, flags)]).map(|_| ())
    }

    /// Waits until the end: [`WaitError::TimedOut`] after the deadline.
    pub fn sleep(&self) -> WaitError {
        self.poll(&[]).err().unwrap_or(WaitError::TimedOut)
    }

    /// Waits until one of several descriptors is ready, and returns which ones are.
    pub(super) fn poll(&self, fds: &[PollFd<'_>]) -> Result<Vec<bool>, WaitError> {
        let mut all: Vec<PollFd<'_>> = fds.to_vec();
        all.extend(self.interrupt.map(|interrupt| PollFd::new(interrupt, PollFlags::IN)));
        loop {
            let left = self.left();
            // A time beyond the range of a timespec has no deadline.
            let timeout = left.and_then(|left| Timespec::try_from(left).ok());
            match poll(&mut all, timeout.as_ref()) {
                Err(Errno::INTR) => continue,
                Err(error) => return Err(WaitError::Failed(error.into())),
                Ok(_) => {}
            }
            let mut ready: Vec<bool> = all.iter().map(|fd| !fd.revents().is_empty()).collect();
            if ready.drain(fds.len()..).any(|is_set| is_set) {
                return Err(WaitError::Interrupted);
            }
            // Strict, even if descriptors are ready: bytes that trickle in must not extend the deadline.
            if left.is_some_and(|left| left.is_zero()) {
                return Err(WaitError::TimedOut);
            }
            if ready.contains(&true) {
                return Ok(ready);
            }
        }
    }
}

/// Repeats a call that a signal has interrupted.
pub(super) fn retry<T>(call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    rustix::io::retry_on_intr(call)
}
