//! Pre-copy of a takeover, which the device's client does not see: to the client the device is in RUNNING.
//!
//! A request of the client that pre-copy would answer otherwise, or that would end it, waits: the takeover then stops the
//! device as soon as it can, and the new server executes the request. If there is no takeover any more, it is executed here.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};
use whimbrel_device::{DeviceFile, Errno, State};
use whimbrel_uapi::feature::{Feature, FeatureFlags};

use crate::message::{Command, Limits, Request};
#[cfg(feature = "takeover")]
use crate::server::session::rest::NotParked;
use crate::server::signal::signal;
#[cfg(feature = "takeover")]
use crate::socket::is_readable;

/// Interval at which a takeover that waits for a request of the client checks whether the server is stopped.
#[cfg(feature = "takeover")]
const LOOK: Duration = Duration::from_millis(20);

/// The pre-copy of a device, if a takeover is in it.
#[derive(Debug, Default)]
pub(crate) struct HiddenPrecopy {
    /// True while the lock holds a pre-copy, for a look without the lock.
    is_on: AtomicBool,
    state: Mutex<Option<Hidden>>,
    ended: Condvar,
}

/// A pre-copy that is hidden.
#[derive(Debug)]
pub(crate) struct Hidden {
    /// The answer for the size of the data while the device was in RUNNING.
    data_size: Result<u64, Errno>,
    /// The time since which a request of the client waits.
    wanted: Option<Instant>,
    /// Signalled when the first one does.
    signal: Arc<OwnedFd>,
}

/// The meaning of a client's request for a pre-copy that it does not see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// The answer is the same.
    Nothing,
    /// The answer has to be made that of a device in RUNNING.
    Shows,
    /// Pre-copy ends before the request is executed: it changes the migration, resets the device, or lets it sleep.
    Ends,
}

impl Meaning {
    /// Returns the meaning of a message.
    pub(super) fn of(command: u16, payload: &[u8]) -> Meaning {
        match Command::try_from(command) {
            Ok(Command::DeviceReset) => Meaning::Ends,
            Ok(Command::DeviceFeature) => {
                match Request::parse(Command::DeviceFeature, payload, Limits::default()) {
                    Ok(Request::DeviceFeature(request)) => {
                        Meaning::of_feature(request.feature, request.flags)
                    }
                    // It is refused.
                    _ => Meaning::Nothing,
                }
            }
            Ok(Command::MigGetPrecopyInfo) => Meaning::Shows,
            _ => Meaning::Nothing,
        }
    }

    /// Returns the meaning of VFIO_USER_DEVICE_FEATURE.
    pub(super) fn of_feature(feature: u16, flags: FeatureFlags) -> Meaning {
        let action = flags & (FeatureFlags::GET | FeatureFlags::SET | FeatureFlags::PROBE);
        let Ok(feature) = Feature::try_from(feature) else { return Meaning::Nothing };
        match feature {
            Feature::MigDeviceState | Feature::MigDataSize if action == FeatureFlags::GET => Meaning::Shows,
            Feature::MigDeviceState
            | Feature::MigPrecopyInfoV2
            | Feature::LowPowerEntry
            | Feature::LowPowerEntryWithWakeup
            | Feature::LowPowerExit
                if action == FeatureFlags::SET =>
            {
                Meaning::Ends
            }
            _ => Meaning::Nothing,
        }
    }
}

impl HiddenPrecopy {
    /// Brings the device to PRE_COPY by `enter`, which the client does not see from then on if it succeeds. Requests of the
    /// client that change the migration come before or after: one under execution is waited for until the deadline, or until
    /// `stop` is signalled. `wanted` is signalled once one waits for the end of pre-copy.
    #[cfg(feature = "takeover")]
    pub(crate) fn begin<T, E: From<NotParked>>(
        &self,
        device: &DeviceFile,
        wanted: &Arc<OwnedFd>,
        stop: &OwnedFd,
        deadline: Instant,
        enter: impl FnOnce() -> Result<Option<T>, E>,
    ) -> Result<Option<T>, E> {
        let mut state = loop {
            match self.state.try_lock_for(LOOK) {
                Some(state) => break state,
                None if is_readable(stop) => return Err(NotParked::Stopped.into()),
                None if Instant::now() >= deadline => return Err(NotParked::Busy.into()),
                None => {}
            }
        };
        let data_size = if device.may_sleep() { Err(Errno::ENODATA) } else { device.mig_data_size() };
        let entered = enter()?;
        if entered.is_some() {
            *state = Some(Hidden { data_size, wanted: None, signal: wanted.clone() });
            self.is_on.store(true, Ordering::Release);
        }
        Ok(entered)
    }

    /// Brings the device out of PRE_COPY by `leave`, after which nothing is hidden and no request waits.
    #[cfg(feature = "takeover")]
    pub(crate) fn end<T>(&self, leave: impl FnOnce() -> T) -> T {
        // Also after a panic of the driver.
        struct Forgetting<'a>(&'a HiddenPrecopy, MutexGuard<'a, Option<Hidden>>);

        impl Drop for Forgetting<'_> {
            fn drop(&mut self) {
                self.0.forget(&mut self.1);
            }
        }

        let _forgetting = Forgetting(self, self.state.lock());
        leave()
    }

    /// Ends pre-copy at once, for a client that does not wait. The takeover notices, and starts over.
    pub(super) fn end_now(&self, device: &DeviceFile) {
        let mut state = self.state.lock();
        if state.is_none() {
            return;
        }
        if let Err(errno) = device.set_mig_state(State::Running) {
            tracing::warn!(device = device.name(), %errno, "cannot bring the device back to RUNNING from a takeover's PRE_COPY");
        }
        self.forget(&mut state);
    }

    fn forget(&self, state: &mut Option<Hidden>) {
        *state = None;
        self.is_on.store(false, Ordering::Release);
        self.ended.notify_all();
    }

    /// Returns whether a takeover is in pre-copy.
    pub(crate) fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Acquire)
    }

    /// Returns the time since which a request of the client waits.
    #[cfg(feature = "takeover")]
    pub(crate) fn wanted(&self) -> Option<Instant> {
        self.state.lock().as_ref()?.wanted
    }

    /// Returns the right to execute a request that ends pre-copy, while it is held. `None` if the request has to wait,
    /// which the takeover then knows.
    pub(super) fn enter(&self) -> Option<Shown<'_>> {
        let mut state = self.state.lock();
        if let Some(hidden) = &mut *state {
            if hidden.wanted.is_none() {
                hidden.wanted = Some(Instant::now());
                signal(&hidden.signal);
            }
            return None;
        }
        Some(Shown(state))
    }

    /// Waits for the end of pre-copy, at most for this time.
    pub(super) fn wait(&self, time: Duration) {
        let mut state = self.state.lock();
        if state.is_some() {
            self.ended.wait_for(&mut state, time);
        }
    }

    /// Keeps pre-copy as it is while a request is executed whose answer has to be changed.
    pub(super) fn shown(&self) -> Shown<'_> {
        Shown(self.state.lock())
    }
}

/// A request under execution: pre-copy neither begins nor ends meanwhile.
pub(super) struct Shown<'a>(MutexGuard<'a, Option<Hidden>>);

impl Shown<'_> {
    /// Makes the answer to a GET of a feature that of a device in RUNNING.
    pub(super) fn show(&self, feature: u16, data: &mut [u8]) {
        let Some(hidden) = &*self.0 else { return };
        match (Feature::try_from(feature), hidden.data_size) {
            (Ok(Feature::MigDeviceState), _) => {
                if let Some(number) = data.first_chunk_mut()
                    && u32::from_ne_bytes(*number) == State::PreCopy.number()
                {
                    *number = State::Running.number().to_ne_bytes();
                }
            }
            (Ok(Feature::MigDataSize), Ok(size)) => {
                if let Some(bytes) = data.first_chunk_mut() {
                    *bytes = size.to_ne_bytes();
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACTIONS: [FeatureFlags; 3] = [FeatureFlags::GET, FeatureFlags::SET, FeatureFlags::PROBE];

    /// All combinations of GET, SET and PROBE.
    fn all_flags() -> impl Iterator<Item = FeatureFlags> {
        (0..8_usize).map(|bits| {
            let chosen = ACTIONS.into_iter().enumerate().filter(move |(at, _)| bits & 1 << at != 0);
            chosen.fold(FeatureFlags::empty(), |all, (_, flag)| all | flag)
        })
    }

    #[cfg(feature = "takeover")]
    struct Idle;

    #[cfg(feature = "takeover")]
    impl whimbrel_device::Driver for Idle {
        fn info(&self) -> whimbrel_device::Info {
            whimbrel_device::Info::new(whimbrel_device::DeviceInfoFlags::PCI)
        }
    }

    #[cfg(feature = "takeover")]
    #[test]
    fn a_takeover_that_waits_for_a_request_ends_with_the_server_and_at_its_deadline() {
        use rustix::event::{EventfdFlags, eventfd};

        let device = DeviceFile::new("idle", |_| Idle);
        let hidden = HiddenPrecopy::default();
        let wanted = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd"));
        let begin = |stop: &OwnedFd, deadline| {
            hidden.begin(&device, &wanted, stop, deadline, || Ok::<Option<()>, NotParked>(None))
        };
        let [runs, stopped] = [0, 1].map(|count| eventfd(count, EventfdFlags::CLOEXEC).expect("an eventfd"));
        let later = Instant::now() + Duration::from_hours(1);
        let executed = hidden.enter().expect("no takeover");
        assert_eq!(begin(&stopped, later), Err(NotParked::Stopped));
        assert_eq!(begin(&runs, Instant::now()), Err(NotParked::Busy));
        drop(executed);
        assert_eq!(begin(&runs, Instant::now()), Ok(None));
    }

    #[cfg(feature = "takeover")]
    #[test]
    fn nothing_is_hidden_any_more_once_a_driver_has_panicked_at_the_end_of_pre_copy() {
        use std::panic::{AssertUnwindSafe, catch_unwind};

        use rustix::event::{EventfdFlags, eventfd};

        let device = DeviceFile::new("idle", |_| Idle);
        let hidden = HiddenPrecopy::default();
        let wanted = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd"));
        let stop = eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd");
        hidden
            .begin(&device, &wanted, &stop, Instant::now(), || Ok::<_, NotParked>(Some(())))
            .expect("it begins");
        assert!(hidden.enter().is_none(), "a request waits");
        let left = catch_unwind(AssertUnwindSafe(|| hidden.end(|| panic!("as it should here"))));
        left.unwrap_err();
        assert!(!hidden.is_on());
        assert!(hidden.enter().is_some(), "no request waits");
    }

    #[test]
    fn every_feature_in_every_direction_means_what_it_should() {
        for feature in 0..=u16::from(u8::MAX) {
            for flags in all_flags() {
                // By the numbers of the header.
                let expected = match (feature, flags) {
                    (2 | 9, FeatureFlags::GET) => Meaning::Shows,
                    (2 | 3 | 4 | 5 | 12, FeatureFlags::SET) => Meaning::Ends,
                    _ => Meaning::Nothing,
                };
                assert_eq!(Meaning::of_feature(feature, flags), expected, "{feature} {flags:?}");
                let bits = u32::from(feature) | flags.bits();
                let payload = [8_u32.to_ne_bytes(), bits.to_ne_bytes()].concat();
                assert_eq!(Meaning::of(Command::DeviceFeature.number(), &payload), expected);
            }
        }
    }

    #[test]
    fn of_all_commands_a_reset_ends_pre_copy_and_what_is_malformed_does_not() {
        for number in 0..=u16::MAX {
            let expected = match Command::try_from(number) {
                Ok(Command::DeviceReset) => Meaning::Ends,
                Ok(Command::MigGetPrecopyInfo) => Meaning::Shows,
                _ => Meaning::Nothing,
            };
            for payload in [&[][..], &[0; 7], &[0xff; 8], &[0; 4096]] {
                assert_eq!(Meaning::of(number, payload), expected, "{number} {}", payload.len());
            }
        }
    }
}
