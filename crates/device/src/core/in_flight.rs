//! The access to memory that is made for a device while its requests are served.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::MutexGuard;
use whimbrel_protocol::{Errno, State};

use super::device::{Active, Core, Shared};
use crate::bus::dma::{Access, DmaAccess};
use crate::driver::Next;

/// Time that a change of the migration state waits for a write to memory, after which it fails.
const WRITE_TIMEOUT: Duration = Duration::from_secs(2);
/// Time that it waits for a read, and a reset for either. An owner that answers nothing before it has the reply to its
/// own request does not answer later.
const TIMEOUT: Duration = Duration::from_millis(200);

/// The access in flight, and the requests that wait for its end.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    access: Option<Access>,
    /// The driver still knows of the access. Shared with the thread that makes it.
    is_known: Arc<AtomicBool>,
    /// No access begins while there are any.
    waiting: usize,
}

/// The outcome of a step of the device's own work.
pub(super) enum Advanced {
    Next(Next),
    /// An access to make without the core's lock.
    Access(DmaAccess),
}

impl InFlight {
    /// Returns whether the device may work: no access is in flight, and no request waits for that.
    pub(super) fn allows_work(&self) -> bool {
        self.access.is_none() && self.waiting == 0
    }

    /// Forgets the access in flight, as the driver has. Its result is discarded, and what has not begun of it is not
    /// made.
    pub(super) fn forget(&mut self) {
        self.is_known.store(false, Ordering::Release);
    }

    /// Forgets the access in flight of a device that is closed. Nobody waits for its end: it is the former user's memory.
    pub(super) fn close(&mut self) {
        self.forget();
        self.access = None;
    }

    /// Follows the device through states, in one of which the driver may have forgotten its access. A request that has
    /// failed tells the driver of nothing.
    pub(super) fn pass(&mut self, mut states: impl Iterator<Item = State>) {
        if !states.all(is_free) {
            self.forget();
        }
    }
}

/// Returns whether a device in this state starts DMA of any kind.
fn is_free(state: State) -> bool {
    matches!(state, State::Running | State::PreCopy)
}

impl Core {
    /// Makes the device's next access if it waits for nobody. Returns the one that may wait.
    pub(super) fn access_now(&mut self, next: Next) -> Advanced {
        let Core { driver, context, .. } = self;
        let Some(half) = driver.async_dma() else { return Advanced::Next(next) };
        let Some(mut access) = half.next_access(context) else { return Advanced::Next(next) };
        match context.bus().dma().access_now(&mut access) {
            Some(result) => {
                half.access_done(context, access, result);
                Advanced::Next(Next::Now)
            }
            None => Advanced::Access(access),
        }
    }
}

impl Shared {
    /// Makes an access of the device while requests are served. The device stays awake.
    pub(super) fn make(&self, core: &mut MutexGuard<'_, Core>, mut access: DmaAccess) {
        core.in_flight.access = Some(access.access);
        let is_known = Arc::new(AtomicBool::new(true));
        core.in_flight.is_known = is_known.clone();
        core.power.begin_request();
        let result = MutexGuard::unlocked(core, || {
            self.bus().dma().make_while(&mut access, || is_known.load(Ordering::Acquire))
        });
        let Core { driver, context, power, in_flight, .. } = &mut **core;
        power.end_request();
        // The device may have been closed, and have another one.
        if Arc::ptr_eq(&in_flight.is_known, &is_known) {
            in_flight.access = None;
        }
        if let Some(half) = driver.async_dma().filter(|_| is_known.load(Ordering::Acquire)) {
            half.access_done(context, access, result);
        }
        power.settle(&mut **driver, context);
        self.notify_settled();
    }

    /// Returns the core for a change of the migration state, without an access in flight if the way leads through a state in
    /// which the driver forgets one. EBUSY if a write does not end in time: nothing can take it back. A read is forgotten.
    pub(super) fn active_for_state(&self, to: State) -> (Active<'_>, Result<(), Errno>) {
        let mut active = self.active();
        if active.walk.way(active.context.state(), to).all(is_free) {
            return (active, Ok(()));
        }
        let is_write = active.in_flight.access == Some(Access::Write);
        self.wait_for_access(&mut active, if is_write { WRITE_TIMEOUT } else { TIMEOUT });
        let is_written = active.in_flight.access == Some(Access::Write);
        (active, if is_written { Err(Errno::EBUSY) } else { Ok(()) })
    }

    /// Returns the core for a reset. What was begun of a write may still be made after it: a guest must be able to
    /// reset a device whatever its memory does.
    pub(super) fn active_for_reset(&self) -> Active<'_> {
        let mut active = self.active();
        self.wait_for_access(&mut active, TIMEOUT);
        active
    }

    fn wait_for_access(&self, active: &mut Active<'_>, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        active.in_flight.waiting += 1;
        // The end of the access would put the device to sleep before it has served this request.
        active.power.begin_request();
        while active.in_flight.access.is_some() && !self.wait_settled(active, deadline) {}
        active.power.end_request();
        active.in_flight.waiting -= 1;
    }
}
