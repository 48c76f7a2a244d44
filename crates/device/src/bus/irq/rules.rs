//! Rules for setting up, masking and asserting interrupts: `drivers/vfio/pci/vfio_pci_intrs.c` as plain data.
//!
//! An eventfd is any value here; the caller signals it.

use std::collections::BTreeMap;

use whimbrel_protocol::Errno;
use whimbrel_protocol::info::Irq;
use whimbrel_protocol::irq::IrqAction;
use whimbrel_uapi::device::IrqInfoFlags;
use whimbrel_uapi::pci::{
    VFIO_PCI_ERR_IRQ_INDEX, VFIO_PCI_INTX_IRQ_INDEX, VFIO_PCI_MSI_IRQ_INDEX, VFIO_PCI_MSIX_IRQ_INDEX,
    VFIO_PCI_REQ_IRQ_INDEX,
};

/// The kind of interrupts of an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// INTx: a level, masked automatically when it is signalled.
    Line,
    /// MSI, MSI-X: messages.
    Messages {
        /// Interrupts beyond the first setup can be added.
        grow: bool,
    },
    /// ERR, REQ: one eventfd, independent of the others.
    Single,
    /// Not a PCI index.
    Unknown,
}

impl Kind {
    pub(crate) fn of(pci: bool, index: u32, irq: Irq) -> Kind {
        match index {
            _ if !pci && irq.count <= 1 => Kind::Single,
            _ if !pci => Kind::Messages { grow: false },
            VFIO_PCI_INTX_IRQ_INDEX => Kind::Line,
            VFIO_PCI_MSI_IRQ_INDEX => Kind::Messages { grow: false },
            VFIO_PCI_MSIX_IRQ_INDEX => Kind::Messages { grow: !irq.flags.contains(IrqInfoFlags::NORESIZE) },
            VFIO_PCI_ERR_IRQ_INDEX | VFIO_PCI_REQ_IRQ_INDEX => Kind::Single,
            _ => Kind::Unknown,
        }
    }
}

/// One entry of DATA_EVENTFD.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Slot<E> {
    /// -1.
    Empty,
    /// Below -1, which some indices treat as -1.
    Negative,
    Eventfd(E),
    /// A descriptor that is not an eventfd, with the errno for its use.
    Refused(Errno),
}

/// The data of a request, with its count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Data<E> {
    None(u32),
    Bool(Vec<bool>),
    Eventfds(Vec<Slot<E>>),
}

impl<E> Data<E> {
    fn count(&self) -> usize {
        match self {
            Data::None(count) => *count as usize,
            Data::Bool(items) => items.len(),
            Data::Eventfds(items) => items.len(),
        }
    }

    /// Returns whether the action applies now to the interrupt at this position.
    fn acts_at(&self, place: usize) -> bool {
        match self {
            Data::None(_) => true,
            Data::Bool(items) => items.get(place).is_some_and(|item| *item),
            Data::Eventfds(_) => false,
        }
    }
}

/// A request for a valid range of an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change<E> {
    pub(crate) kind: Kind,
    pub(crate) index: u32,
    pub(crate) start: u32,
    /// The action; ENOTTY for flags with none or several.
    pub(crate) action: Result<IrqAction, Errno>,
    pub(crate) data: Data<E>,
}

impl<E> Change<E> {
    /// Returns whether the request has eventfds to signal.
    pub(crate) fn has_eventfds(&self) -> bool {
        let is_eventfd = |slot: &Slot<E>| matches!(slot, Slot::Eventfd(_));
        matches!(&self.data, Data::Eventfds(slots) if slots.iter().any(is_eventfd))
    }
}

/// The one of INTx, MSI and MSI-X in use, if any.
#[derive(Debug)]
enum Active<E> {
    None,
    Line(Line<E>),
    Messages {
        index: u32,
        /// The number of interrupts that can have an eventfd.
        allocated: u32,
        eventfds: BTreeMap<u32, E>,
    },
}

#[derive(Debug)]
struct Line<E> {
    eventfd: Option<E>,
    masked: bool,
    /// Signalled by the user to unmask.
    unmask: Option<E>,
}

/// The user's setup of INTx, MSI or MSI-X, whichever is in use, with its eventfds. It can be transferred to another
/// device: see [`DeviceFile::interrupts_in_use`](crate::DeviceFile::interrupts_in_use).
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a takeover must transfer every kind")]
pub enum InUse<E> {
    /// None of them.
    None,
    /// INTx.
    Line {
        /// The eventfd to signal.
        trigger: Option<E>,
        /// The line is masked.
        masked: bool,
        /// The eventfd by which the user unmasks it.
        unmask: Option<E>,
    },
    /// MSI, MSI-X, or an index of another bus with several interrupts.
    Messages {
        /// The interrupt index.
        index: u32,
        /// The number of interrupts of the first setup.
        allocated: u32,
        /// The eventfds by interrupt number.
        eventfds: Vec<(u32, E)>,
    },
}

/// The user's setup of a device's interrupts.
#[derive(Debug)]
pub(crate) struct Setup<E> {
    active: Active<E>,
    /// ERR and REQ.
    singles: BTreeMap<u32, E>,
    /// The level of the device's INTx line, whether or not it is in use.
    asserted: bool,
    /// The INTx-disable bit of the command register.
    disabled: bool,
}

impl<E> Default for Setup<E> {
    fn default() -> Setup<E> {
        Setup { active: Active::None, singles: BTreeMap::new(), asserted: false, disabled: false }
    }
}

impl<E> Setup<E> {
    /// Returns the eventfd for a message of the device, if any.
    pub(super) fn message(&self, index: u32, interrupt: u32) -> Option<&E> {
        match &self.active {
            Active::Messages { index: active, eventfds, .. } if *active == index => eventfds.get(&interrupt),
            _ if interrupt == 0 => self.singles.get(&index),
            _ => None,
        }
    }

    /// Sets the level of the line, and returns the eventfd to signal.
    pub(super) fn set_line(&mut self, asserted: bool) -> Option<&E> {
        self.asserted = asserted;
        match &mut self.active {
            Active::Line(line) if asserted && !line.masked => {
                line.masked = true;
                line.eventfd.as_ref()
            }
            _ => None,
        }
    }

    /// Masks the line if it is in use, and returns whether it was unmasked before.
    pub(super) fn mask(&mut self) -> bool {
        match &mut self.active {
            Active::Line(line) => !std::mem::replace(&mut line.masked, true),
            _ => false,
        }
    }

    /// Sets the INTx-disable bit (`vfio_basic_config_write()`): a change masks or unmasks the line, and nothing else
    /// unmasks it while the bit is set. Returns the eventfd to signal.
    pub(super) fn set_disabled(&mut self, disabled: bool) -> Option<&E> {
        match (std::mem::replace(&mut self.disabled, disabled), disabled) {
            (false, true) => {
                self.mask();
                None
            }
            (true, false) => self.unmask(),
            _ => None,
        }
    }

    /// Unmasks the line. If it is still asserted, returns the eventfd to signal, and the line stays masked.
    pub(super) fn unmask(&mut self) -> Option<&E> {
        match &mut self.active {
            Active::Line(line) if line.masked && !self.disabled => {
                line.masked = self.asserted;
                line.eventfd.as_ref().filter(|_| self.asserted)
            }
            _ => None,
        }
    }

    /// The eventfd that unmasks the line.
    pub(super) fn unmask_eventfd(&self) -> Option<&E> {
        match &self.active {
            Active::Line(line) => line.unmask.as_ref(),
            _ => None,
        }
    }

    /// Removes the eventfd that unmasks the line.
    pub(super) fn forget_unmask_eventfd(&mut self) {
        if let Active::Line(line) = &mut self.active {
            line.unmask = None;
        }
    }

    /// Returns the interrupts in use, without the device's error and request interrupts.
    pub(super) fn active(&self) -> InUse<&E> {
        match &self.active {
            Active::None => InUse::None,
            Active::Line(Line { eventfd, masked, unmask }) => {
                InUse::Line { trigger: eventfd.as_ref(), masked: *masked, unmask: unmask.as_ref() }
            }
            Active::Messages { index, allocated, eventfds } => {
                let eventfds = eventfds.iter().map(|(interrupt, eventfd)| (*interrupt, eventfd)).collect();
                InUse::Messages { index: *index, allocated: *allocated, eventfds }
            }
        }
    }

    /// Returns index and eventfd of each single interrupt.
    pub(super) fn singles(&self) -> impl Iterator<Item = (u32, &E)> {
        self.singles.iter().map(|(index, eventfd)| (*index, eventfd))
    }

    /// Restores the setup that [`Setup::active`] and [`Setup::singles`] returned for a device of this kind; `irq`
    /// describes its interrupts. Returns the eventfd to signal.
    ///
    /// EBUSY if something is already set up here, EINVAL for a setup that this device cannot have.
    pub(super) fn restore(
        &mut self,
        active: InUse<E>,
        singles: Vec<(u32, E)>,
        irq: impl Fn(u32) -> Option<(Kind, u32)>,
    ) -> Result<Option<&E>, Errno> {
        if !matches!(self.active, Active::None) || !self.singles.is_empty() {
            return Err(Errno::EBUSY);
        }
        for (at, (index, _)) in singles.iter().enumerate() {
            let is_single = matches!(irq(*index), Some((Kind::Single, 1..)));
            if !is_single || singles[..at].iter().any(|(other, _)| other == index) {
                return Err(Errno::EINVAL);
            }
        }
        self.active = match active {
            InUse::None => Active::None,
            InUse::Line { trigger, masked, unmask } => {
                if !matches!(irq(VFIO_PCI_INTX_IRQ_INDEX), Some((Kind::Line, 1..))) {
                    return Err(Errno::EINVAL);
                }
                Active::Line(Line { eventfd: trigger, masked, unmask })
            }
            InUse::Messages { index, allocated, eventfds } => {
                let Some((Kind::Messages { grow }, count)) = irq(index) else { return Err(Errno::EINVAL) };
                let limit = if grow { count } else { allocated };
                if allocated == 0 || allocated > count || eventfds.iter().any(|(of, _)| *of >= limit) {
                    return Err(Errno::EINVAL);
                }
                Active::Messages { index, allocated, eventfds: eventfds.into_iter().collect() }
            }
        };
        self.singles = singles.into_iter().collect();
        // It was told as far as it was asserted where it comes from.
        Ok(if self.asserted { self.set_line(true) } else { None })
    }

    /// Removes the user's whole setup. The line keeps its level, which belongs to the device.
    pub(super) fn clear(&mut self) {
        self.active = Active::None;
        self.singles.clear();
        self.disabled = false;
    }

    /// Executes a request, calling `signal` for each eventfd to signal.
    pub(super) fn apply(&mut self, change: Change<E>, signal: &mut dyn FnMut(&E)) -> Result<(), Errno> {
        let Change { kind, index, start, action, data } = change;
        match (kind, action?) {
            (Kind::Line, IrqAction::Trigger) => self.trigger_line(start, data, signal),
            (Kind::Line, action) => self.mask_line(start, action, data, signal),
            (Kind::Messages { grow }, IrqAction::Trigger) => {
                self.trigger_messages(grow, index, start, data, signal)
            }
            (Kind::Single, IrqAction::Trigger) => self.trigger_single(index, start, data, signal),
            (Kind::Messages { .. } | Kind::Single | Kind::Unknown, _) => Err(Errno::ENOTTY),
        }
    }

    fn mask_line(
        &mut self,
        start: u32,
        action: IrqAction,
        data: Data<E>,
        signal: &mut dyn FnMut(&E),
    ) -> Result<(), Errno> {
        let Active::Line(line) = &mut self.active else { return Err(Errno::EINVAL) };
        if start != 0 || data.count() != 1 {
            return Err(Errno::EINVAL);
        }
        match (action, data) {
            (IrqAction::Mask, Data::Eventfds(_)) => return Err(Errno::ENOTTY),
            (_, Data::Eventfds(slots)) => match slots.into_iter().next() {
                Some(Slot::Refused(errno)) => return Err(errno),
                Some(Slot::Eventfd(_)) if line.unmask.is_some() => return Err(Errno::EBUSY),
                Some(Slot::Eventfd(eventfd)) => line.unmask = Some(eventfd),
                Some(Slot::Empty | Slot::Negative) | None => line.unmask = None,
            },
            (_, data) if !data.acts_at(0) => {}
            (IrqAction::Mask, _) => line.masked = true,
            _ => {
                if let Some(eventfd) = self.unmask() {
                    signal(eventfd);
                }
            }
        }
        Ok(())
    }

    fn trigger_line(&mut self, start: u32, data: Data<E>, signal: &mut dyn FnMut(&E)) -> Result<(), Errno> {
        if matches!((&self.active, &data), (Active::Line(_), Data::None(0))) {
            self.active = Active::None;
            return Ok(());
        }
        if matches!(self.active, Active::Messages { .. }) || start != 0 || data.count() != 1 {
            return Err(Errno::EINVAL);
        }
        let acts = data.acts_at(0);
        let Data::Eventfds(slots) = data else {
            let Active::Line(line) = &self.active else { return Err(Errno::EINVAL) };
            // The loopback asks neither for the level nor for the mask.
            if let Some(eventfd) = line.eventfd.as_ref().filter(|_| acts) {
                signal(eventfd);
            }
            return Ok(());
        };
        let eventfd = match slots.into_iter().next() {
            Some(Slot::Refused(errno)) => return Err(errno),
            Some(Slot::Eventfd(eventfd)) => Some(eventfd),
            Some(Slot::Empty | Slot::Negative) | None => None,
        };
        if let Active::Line(line) = &mut self.active {
            line.eventfd = eventfd;
            return Ok(());
        }
        self.active = Active::Line(Line { eventfd, masked: self.disabled, unmask: None });
        if let Some(eventfd) = self.set_line(self.asserted) {
            signal(eventfd);
        }
        Ok(())
    }

    fn trigger_messages(
        &mut self,
        grow: bool,
        index: u32,
        start: u32,
        data: Data<E>,
        signal: &mut dyn FnMut(&E),
    ) -> Result<(), Errno> {
        let own = match &self.active {
            Active::Messages { index: active, .. } if *active == index => true,
            Active::None => false,
            _ => return Err(Errno::EINVAL),
        };
        if own && matches!(data, Data::None(0)) {
            self.active = Active::None;
            return Ok(());
        }
        if let (false, Data::Eventfds(slots)) = (own, &data) {
            let end = u32::try_from(slots.len()).ok().and_then(|count| start.checked_add(count));
            let allocated = end.ok_or(Errno::EINVAL)?;
            // What the kernel's allocator says to a request for none.
            if allocated == 0 {
                return Err(Errno::ERANGE);
            }
            self.active = Active::Messages { index, allocated, eventfds: BTreeMap::new() };
        }
        let Active::Messages { allocated, eventfds, .. } = &mut self.active else {
            return Err(Errno::EINVAL);
        };
        let limit = if grow { u32::MAX } else { *allocated };
        let Data::Eventfds(slots) = data else {
            let end = start.saturating_add(u32::try_from(data.count()).unwrap_or(u32::MAX));
            for (interrupt, eventfd) in eventfds.range(start..end) {
                if data.acts_at((interrupt - start) as usize) {
                    signal(eventfd);
                }
            }
            return Ok(());
        };
        let result = set_block(eventfds, start, limit, slots);
        if result.is_err() && !own {
            self.active = Active::None;
        }
        result
    }

    fn trigger_single(
        &mut self,
        index: u32,
        start: u32,
        data: Data<E>,
        signal: &mut dyn FnMut(&E),
    ) -> Result<(), Errno> {
        let count = data.count();
        if start != 0 || count > 1 {
            return Err(Errno::EINVAL);
        }
        match data {
            Data::None(0) => {
                self.singles.remove(&index).ok_or(Errno::EINVAL)?;
            }
            Data::None(_) => signal(self.singles.get(&index).ok_or(Errno::EINVAL)?),
            _ if count == 0 => return Err(Errno::EINVAL),
            Data::Bool(items) => {
                if let Some(eventfd) = self.singles.get(&index).filter(|_| items[0]) {
                    signal(eventfd);
                }
            }
            Data::Eventfds(slots) => match slots.into_iter().next() {
                Some(Slot::Eventfd(eventfd)) => {
                    self.singles.insert(index, eventfd);
                }
                Some(Slot::Empty) => {
                    self.singles.remove(&index);
                }
                Some(Slot::Refused(errno)) => return Err(errno),
                Some(Slot::Negative) | None => return Err(Errno::EINVAL),
            },
        }
        Ok(())
    }
}

/// Sets the eventfds of the interrupts from `start` on. If one fails, it and those before it are removed.
fn set_block<E>(
    eventfds: &mut BTreeMap<u32, E>,
    start: u32,
    limit: u32,
    slots: Vec<Slot<E>>,
) -> Result<(), Errno> {
    for (interrupt, slot) in (start..).zip(slots) {
        eventfds.remove(&interrupt);
        let refused = match slot {
            Slot::Empty | Slot::Negative => continue,
            Slot::Eventfd(_) | Slot::Refused(_) if interrupt >= limit => Errno::EINVAL,
            Slot::Eventfd(eventfd) => {
                eventfds.insert(interrupt, eventfd);
                continue;
            }
            Slot::Refused(errno) => errno,
        };
        eventfds.retain(|of, _| *of < start || *of > interrupt);
        return Err(refused);
    }
    Ok(())
}

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;
