//! The interrupts of a device: what the user has set up, and the eventfds that are signalled.
//!
//! The set-up is the user's and no part of the device's state. As with the kernel's vfio-pci, a reset of the
//! device leaves it as it is, eventfds and mask, and a migration does not carry it: the user of the
//! destination sets it up there. What belongs to the device is the level of its INTx line.

mod request;
mod rules;
mod signal;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use whimbrel_protocol::Errno;

pub use self::request::IrqData;
pub(crate) use self::request::slot;
pub use self::rules::InUse;
use self::rules::Setup;
pub(crate) use self::rules::{Change, Data, Kind, Slot};
pub(crate) use self::signal::{only_eventfd, prepare, signal};
use crate::bus::listener::{Listener, Watch};

/// The interrupts of one device, as its driver sees them.
///
/// ```
/// use whimbrel_device::Bus;
///
/// let bus = Bus::new();
/// // A message, such as the first of MSI: told at once, or to nobody.
/// bus.interrupts().trigger(1, 0);
/// // The INTx line: told once, and again after each unmasking as long as it is asserted.
/// bus.interrupts().set_line(true);
/// bus.interrupts().set_line(false);
/// ```
#[derive(Debug, Default)]
pub struct Interrupts {
    state: Arc<Mutex<State>>,
    listener: Listener,
}

/// The interrupts of a device that a user has set up. See
/// [`DeviceFile::interrupts_in_use`](crate::DeviceFile::interrupts_in_use).
#[derive(Debug)]
#[non_exhaustive]
pub struct InterruptsInUse {
    /// The one of INTx, MSI and MSI-X that is in use.
    pub active: InUse<OwnedFd>,
    /// Each index with one interrupt (ERR, REQ) that is set up, with its eventfd.
    pub singles: Vec<(u32, OwnedFd)>,
}

impl InterruptsInUse {
    /// Returns interrupts to put in use on a device.
    pub fn new(active: InUse<OwnedFd>, singles: Vec<(u32, OwnedFd)>) -> InterruptsInUse {
        InterruptsInUse { active, singles }
    }
}

#[derive(Debug, Default)]
struct State {
    setup: Setup<Arc<OwnedFd>>,
    /// Listens to the eventfd that unmasks INTx.
    unmask: Option<Watch>,
}

impl Interrupts {
    /// Sends an interrupt that is a message: of MSI or MSI-X, or one of ERR, REQ and the indices of other
    /// buses. Nothing happens if the user has not set it up.
    pub fn trigger(&self, index: u32, interrupt: u32) {
        if let Some(eventfd) = self.state.lock().setup.message(index, interrupt) {
            signal(eventfd);
        }
    }

    /// Sets the level of the device's INTx line (index 0 of a PCI device).
    ///
    /// An asserted line is told to the user and masks itself. What is asserted while it is masked, or before
    /// the user has set it up, is told when that ends, if it is still asserted then.
    pub fn set_line(&self, asserted: bool) {
        if let Some(eventfd) = self.state.lock().setup.set_line(asserted) {
            signal(eventfd);
        }
    }

    /// Tells the INTx-disable bit of the device's command register
    /// ([`PciEvent::IntxDisabled`](crate::pci::config::PciEvent::IntxDisabled)), as it is after a write, a
    /// reset and a change of power. Where it changes, it masks the INTx line or unmasks it; as long as it is
    /// set, the user cannot unmask (`vfio_pci_intrs.c`).
    pub fn disable_line(&self, disabled: bool) {
        if let Some(eventfd) = self.state.lock().setup.set_disabled(disabled) {
            signal(eventfd);
        }
    }

    /// Masks the INTx line; whether it was in use and not masked.
    pub(crate) fn mask_line(&self) -> bool {
        self.state.lock().setup.mask()
    }

    /// Unmasks the INTx line.
    pub(crate) fn unmask_line(&self) {
        if let Some(eventfd) = self.state.lock().setup.unmask() {
            signal(eventfd);
        }
    }

    /// Executes VFIO_DEVICE_SET_IRQS on a range that the index has.
    pub(crate) fn apply(&self, change: Change<Arc<OwnedFd>>) -> Result<(), Errno> {
        if change.has_eventfds() {
            prepare()?;
        }
        let state = &mut *self.state.lock();
        let before = state.setup.unmask_eventfd().cloned();
        state.setup.apply(change, &mut |eventfd| signal(eventfd))?;
        match (before, state.setup.unmask_eventfd()) {
            (_, None) => state.unmask = None,
            (Some(_), Some(_)) => {}
            (None, Some(eventfd)) => match self.listen(eventfd) {
                Ok(watch) => state.unmask = Some(watch),
                Err(errno) => {
                    state.setup.forget_unmask_eventfd();
                    return Err(errno);
                }
            },
        }
        Ok(())
    }

    /// Returns the interrupts that the user has set up.
    pub(crate) fn in_use(&self) -> io::Result<InterruptsInUse> {
        let state = self.state.lock();
        let copy = |eventfd: &Arc<OwnedFd>| eventfd.try_clone();
        let active = match state.setup.active() {
            InUse::None => InUse::None,
            InUse::Line { trigger, masked, unmask } => InUse::Line {
                trigger: trigger.map(copy).transpose()?,
                masked,
                unmask: unmask.map(copy).transpose()?,
            },
            InUse::Messages { index, allocated, eventfds } => {
                let copies = eventfds.into_iter().map(|(interrupt, eventfd)| Ok((interrupt, copy(eventfd)?)));
                InUse::Messages { index, allocated, eventfds: copies.collect::<io::Result<_>>()? }
            }
        };
        let singles = state.setup.singles().map(|(index, eventfd)| Ok((index, copy(eventfd)?)));
        Ok(InterruptsInUse::new(active, singles.collect::<io::Result<_>>()?))
    }

    /// Sets up what [`Interrupts::in_use`] gave.
    pub(crate) fn restore(
        &self,
        in_use: InterruptsInUse,
        irq: impl Fn(u32) -> Option<(Kind, u32)>,
    ) -> Result<(), Errno> {
        prepare()?;
        let checked = |eventfd: OwnedFd| Ok::<_, Errno>(Arc::new(only_eventfd(eventfd)?));
        let all = |list: Vec<(u32, OwnedFd)>| {
            list.into_iter().map(|(of, eventfd)| Ok((of, checked(eventfd)?))).collect::<Result<_, Errno>>()
        };
        let active = match in_use.active {
            InUse::None => InUse::None,
            InUse::Line { trigger, masked, unmask } => InUse::Line {
                trigger: trigger.map(checked).transpose()?,
                masked,
                unmask: unmask.map(checked).transpose()?,
            },
            InUse::Messages { index, allocated, eventfds } => {
                InUse::Messages { index, allocated, eventfds: all(eventfds)? }
            }
        };
        let singles = all(in_use.singles)?;
        let state = &mut *self.state.lock();
        if let Some(eventfd) = state.setup.restore(active, singles, irq)? {
            signal(eventfd);
        }
        if let Some(eventfd) = state.setup.unmask_eventfd() {
            match self.listen(eventfd) {
                Ok(watch) => state.unmask = Some(watch),
                Err(errno) => {
                    state.setup.forget_unmask_eventfd();
                    return Err(errno);
                }
            }
        }
        Ok(())
    }

    /// Ends all that the user has set up.
    pub(crate) fn clear(&self) {
        let mut state = self.state.lock();
        state.setup.clear();
        state.unmask = None;
    }

    /// The listener for the eventfds that a user signals.
    pub(crate) fn listener(&self) -> &Listener {
        &self.listener
    }

    fn listen(&self, eventfd: &Arc<OwnedFd>) -> Result<Watch, Errno> {
        let state = Arc::downgrade(&self.state);
        let tied = Arc::downgrade(eventfd);
        self.listener.watch(eventfd.clone(), move || unmask(&state, &tied))
    }
}

/// Unmasks INTx if `eventfd` is still the one that does.
fn unmask(state: &Weak<Mutex<State>>, eventfd: &Weak<OwnedFd>) {
    let Some(state) = state.upgrade() else { return };
    let mut state = state.lock();
    if state.setup.unmask_eventfd().is_some_and(|tied| Arc::as_ptr(tied) == eventfd.as_ptr())
        && let Some(eventfd) = state.setup.unmask()
    {
        signal(eventfd);
    }
}
