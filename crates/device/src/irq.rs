//! The interrupts a user has set up: for each, an eventfd the device signals.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use vmm_sys_util::eventfd::EventFd;

/// The eventfds of one device by IRQ index and interrupt within the index.
#[derive(Debug, Default)]
pub struct Interrupts {
    triggers: Mutex<BTreeMap<(u32, u32), EventFd>>,
}

impl Interrupts {
    /// Signals an interrupt. Nothing happens if the user set none up there, as with a masked interrupt.
    pub fn trigger(&self, index: u32, interrupt: u32) {
        if let Some(eventfd) = self.triggers.lock().get(&(index, interrupt)) {
            // A full counter means that the user has not seen earlier signals yet: this one is among them.
            let _ = eventfd.write(1);
        }
    }

    /// Puts `eventfd` at an interrupt, or takes away what is there.
    pub fn set(&self, index: u32, interrupt: u32, eventfd: Option<EventFd>) {
        let mut triggers = self.triggers.lock();
        match eventfd {
            Some(eventfd) => triggers.insert((index, interrupt), eventfd),
            None => triggers.remove(&(index, interrupt)),
        };
    }

    /// Takes away everything set up for an index.
    pub fn clear(&self, index: u32) {
        self.triggers.lock().retain(|(of, _), _| *of != index);
    }
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    #[test]
    fn a_trigger_reaches_only_the_eventfd_set_there() {
        let interrupts = Interrupts::default();
        let (here, there) = (EventFd::new(EFD_NONBLOCK).unwrap(), EventFd::new(EFD_NONBLOCK).unwrap());
        interrupts.set(1, 0, Some(here.try_clone().unwrap()));
        interrupts.set(1, 1, Some(there.try_clone().unwrap()));
        interrupts.trigger(1, 0);
        interrupts.trigger(2, 0);
        assert_eq!(here.read().unwrap(), 1);
        assert!(there.read().is_err());
    }

    #[test]
    fn a_cleared_index_signals_nobody() {
        let interrupts = Interrupts::default();
        let eventfd = EventFd::new(EFD_NONBLOCK).unwrap();
        interrupts.set(1, 0, Some(eventfd.try_clone().unwrap()));
        interrupts.clear(1);
        interrupts.trigger(1, 0);
        assert!(eventfd.read().is_err());
    }
}
