//! The context of a driver's call: the device's bus, its migration state and the time.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use whimbrel_protocol::State;

use crate::bus::Bus;

/// The context of a driver's call: the device's bus, its migration state and the time.
///
/// The core maintains it, so a driver needs neither a copy of the migration state nor a clock:
///
/// ```
/// use std::time::Duration;
/// use whimbrel_device::{Bus, Context, DeviceInfoFlags, Driver, Errno, Info, Next, State};
///
/// /// A device that interrupts once a second.
/// struct Metronome;
///
/// impl Driver for Metronome {
///     fn info(&self) -> Info {
///         Info::new(DeviceInfoFlags::PCI).num_irqs(2)
///     }
///     fn write_region(&mut self, context: &Context, _: u32, _: u64, data: &[u8]) -> Result<usize, Errno> {
///         // A device that does not run takes no commands.
///         if context.state().is_running() { Ok(data.len()) } else { Err(Errno::EBUSY) }
///     }
///     fn advance(&mut self, context: &Context) -> Next {
///         context.bus().interrupts().trigger(1, 0);
///         Next::At(context.now() + Duration::from_secs(1))
///     }
/// }
///
/// // As a unit test of the driver calls it; a `DeviceFile` keeps a context of its own.
/// let context = Context::new(Bus::new()).with_now(Duration::from_secs(5));
/// assert_eq!(Metronome.advance(&context), Next::At(Duration::from_secs(6)));
/// let stopped = context.with_state(State::Stop);
/// assert_eq!(Metronome.write_region(&stopped, 0, 0, &[1]), Err(Errno::EBUSY));
/// ```
#[derive(Clone, Debug)]
pub struct Context {
    bus: Bus,
    state: State,
    clock: Clock,
}

/// The source of the time.
#[derive(Clone, Copy, Debug)]
enum Clock {
    /// The time since this moment.
    Since(Instant),
    /// A time that the caller of `advance` has set.
    At(Duration),
}

impl Context {
    /// Returns the context of a running device on this bus, with a time that starts now. For calls of a driver without a
    /// [`DeviceFile`](crate::DeviceFile), as in its unit tests.
    pub fn new(bus: Bus) -> Context {
        Context { bus, state: State::Running, clock: Clock::Since(Instant::now()) }
    }

    /// Returns this context with another migration state, for a wrapper that moves the driver behind it through states
    /// of its own.
    pub fn with_state(&self, state: State) -> Cow<'_, Context> {
        if state == self.state {
            return Cow::Borrowed(self);
        }
        Cow::Owned(Context { state, ..self.clone() })
    }

    /// Returns this context with another time.
    #[must_use]
    pub fn with_now(&self, now: Duration) -> Context {
        Context { clock: Clock::At(now), ..self.clone() }
    }

    /// Returns the device's bus: DMA, interrupts and the wake line.
    pub fn bus(&self) -> &Bus {
        &self.bus
    }

    /// Returns the device's migration state; RUNNING for one that cannot migrate. During
    /// [`Migration::arc`](crate::Migration::arc) it is still the state that the arc leaves.
    ///
    /// Behind a migration region it is the state that the region has brought the device to, except in the halves that
    /// are not part of a migration ([`LowPower`](crate::LowPower), [`BusMaster`](crate::BusMaster),
    /// [`DmaBuf`](crate::DmaBuf), [`ZpciErrors`](crate::ZpciErrors) and [`Graphics`](crate::Graphics)), which find the
    /// state that the user sees, RUNNING.
    pub fn state(&self) -> State {
        self.state
    }

    /// Returns the time since the device was created, which never decreases. In a device that is advanced by
    /// [`DeviceFile::advance`](crate::DeviceFile::advance) instead of a [`Worker`](crate::Worker), it is the time passed
    /// to the last such call.
    pub fn now(&self) -> Duration {
        match self.clock {
            Clock::Since(start) => start.elapsed(),
            Clock::At(now) => now,
        }
    }

    pub(crate) fn set_state(&mut self, state: State) {
        self.state = state;
    }

    /// Sets the time, which stays the same until it is set again or the clock runs.
    pub(crate) fn set_now(&mut self, now: Duration) {
        self.clock = Clock::At(now);
    }

    /// Lets the clock run, from the time that it is.
    pub(crate) fn run_clock(&mut self) {
        if let Clock::At(now) = self.clock {
            let current = Instant::now();
            self.clock = Clock::Since(current.checked_sub(now).unwrap_or(current));
        }
    }
}
