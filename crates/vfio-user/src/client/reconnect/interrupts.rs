//! The interrupts that the client has set up, with their eventfds, to set them up at the next server.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use whimbrel_user::{Device, IrqAction, IrqData, Result};

/// All interrupts of a device that have an eventfd, by index and number.
#[derive(Clone, Debug, Default)]
pub(in crate::client) struct Interrupts(BTreeMap<u32, BTreeMap<u32, Interrupt>>);

#[derive(Clone, Debug, Default)]
struct Interrupt {
    trigger: Option<Arc<OwnedFd>>,
    mask: Option<Arc<OwnedFd>>,
    unmask: Option<Arc<OwnedFd>>,
    is_masked: bool,
}

/// Copies of the eventfds of a request, made before it is sent.
pub(in crate::client) struct Copies(Vec<Option<Arc<OwnedFd>>>);

impl Copies {
    /// Fails if no more descriptors can be open.
    pub(in crate::client) fn of(data: IrqData<'_>) -> io::Result<Copies> {
        let IrqData::Eventfd(items) = data else { return Ok(Copies(Vec::new())) };
        let copy = |item: &Option<BorrowedFd<'_>>| match item {
            Some(eventfd) => eventfd.try_clone_to_owned().map(|eventfd| Some(Arc::new(eventfd))),
            None => Ok(None),
        };
        items.iter().map(copy).collect::<io::Result<_>>().map(Copies)
    }
}

impl Interrupts {
    /// Records a request that the server has accepted.
    pub(in crate::client) fn record(
        &mut self,
        index: u32,
        start: u32,
        action: IrqAction,
        data: IrqData<'_>,
        copies: Copies,
    ) {
        // With no data, 0 disables the whole index.
        if let (IrqAction::Trigger, IrqData::None(0)) = (action, data) {
            self.0.remove(&index);
            return;
        }
        let interrupts = self.0.entry(index).or_default();
        for (number, eventfd) in (start..).zip(copies.0) {
            let interrupt = interrupts.entry(number).or_default();
            match action {
                IrqAction::Trigger => interrupt.trigger = eventfd,
                IrqAction::Mask => interrupt.mask = eventfd,
                IrqAction::Unmask => interrupt.unmask = eventfd,
            }
        }
        let is_masked = action == IrqAction::Mask;
        let is_chosen = |number: u32| {
            let at = number.checked_sub(start);
            match data {
                IrqData::None(count) => at.is_some_and(|at| at < count),
                IrqData::Bool(items) => at.and_then(|at| items.get(at as usize)).is_some_and(|set| *set),
                IrqData::Eventfd(_) => false,
            }
        };
        if action != IrqAction::Trigger {
            for (number, interrupt) in &mut *interrupts {
                if is_chosen(*number) {
                    interrupt.is_masked = is_masked;
                }
            }
        }
        interrupts.retain(|_, interrupt| {
            interrupt.trigger.is_some() || interrupt.mask.is_some() || interrupt.unmask.is_some()
        });
    }

    /// Sets all of them up at another server: eventfds, then masks.
    pub(super) fn set_up(&self, device: &mut dyn Device) -> Result<()> {
        for (&index, interrupts) in &self.0 {
            let (Some((&first, _)), Some((&last, _))) =
                (interrupts.first_key_value(), interrupts.last_key_value())
            else {
                continue;
            };
            let mut set = |action, kind: fn(&Interrupt) -> Option<&Arc<OwnedFd>>| {
                let eventfd = |number| interrupts.get(&number).and_then(kind).map(|eventfd| eventfd.as_fd());
                let eventfds: Vec<Option<BorrowedFd<'_>>> = (first..=last).map(eventfd).collect();
                if eventfds.iter().all(Option::is_none) {
                    return Ok(());
                }
                device.set_irqs(index, first, action, IrqData::Eventfd(&eventfds))
            };
            set(IrqAction::Trigger, |interrupt| interrupt.trigger.as_ref())?;
            set(IrqAction::Mask, |interrupt| interrupt.mask.as_ref())?;
            set(IrqAction::Unmask, |interrupt| interrupt.unmask.as_ref())?;
            for (&number, _) in interrupts.iter().filter(|(_, interrupt)| interrupt.is_masked) {
                device.set_irqs(index, number, IrqAction::Mask, IrqData::None(1))?;
            }
        }
        Ok(())
    }
}
