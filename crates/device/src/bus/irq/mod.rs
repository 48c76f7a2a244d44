//! The interrupts of a device: the user's setup, and the eventfds to signal.
//!
//! The setup belongs to the user and is not part of the device's state. As with the kernel's vfio-pci, a reset of the
//! device keeps the eventfds and the mask, and a migration does not transfer them: the user sets them up again at the
//! destination. Only the level of the INTx line belongs to the device.

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

/// The interrupts of a device, as its driver uses them.
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
    /// The interrupts of INTx, MSI or MSI-X, whichever is in use.
    pub active: InUse<OwnedFd>,
    /// The eventfds of indices with a single interrupt (ERR, REQ).
    pub singles: Vec<(u32, OwnedFd)>,
}

impl InterruptsInUse {
    /// Returns interrupts to set up on a device.
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
    /// Sends a message interrupt: of MSI or MSI-X, ERR, REQ, or an index of another bus. No effect if the user has not
    /// set it up.
    pub fn trigger(&self, index: u32, interrupt: u32) {
        if let Some(eventfd) = self.state.lock().setup.message(index, interrupt) {
            signal(eventfd);
        }
    }

    /// Sets the level of the device's INTx line (index 0 of a PCI device).
    ///
    /// Asserting the line signals the user and masks it. A line that is asserted while masked, or before the user has
    /// set it up, signals once that ends, if it is still asserted.
    pub fn set_line(&self, asserted: bool) {
        if let Some(eventfd) = self.state.lock().setup.set_line(asserted) {
            signal(eventfd);
        }
    }

    /// Sets the INTx-disable bit of the device's command register
    /// ([`PciEvent::IntxDisabled`](crate::pci::config::PciEvent::IntxDisabled)); call it after a write, a reset and a
    /// change of the power state. A change masks or unmasks the INTx line; while the bit is set, the user cannot unmask
    /// it (`vfio_pci_intrs.c`).
    pub fn disable_line(&self, disabled: bool) {
        if let Some(eventfd) = self.state.lock().setup.set_disabled(disabled) {
            signal(eventfd);
        }
    }

    /// Masks the INTx line, and returns whether it was in use and unmasked.
    pub(crate) fn mask_line(&self) -> bool {
        self.state.lock().setup.mask()
    }

    /// Unmasks the INTx line.
    pub(crate) fn unmask_line(&self) {
        if let Some(eventfd) = self.state.lock().setup.unmask() {
            signal(eventfd);
        }
    }

    /// Executes VFIO_DEVICE_SET_IRQS on a valid range of the index.
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

    /// Sets up the interrupts that [`Interrupts::in_use`] returned.
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

    /// Removes the user's whole setup.
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
