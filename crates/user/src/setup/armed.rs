//! The interrupts that a user has armed. VFIO has no request that tells them.

use std::collections::{BTreeMap, BTreeSet};

use whimbrel_protocol::irq::IrqAction;

use crate::irq_data::IrqData;

/// The interrupts of an index that are armed: that have an eventfd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ArmedInterrupts {
    /// The interrupt index, such as 1 for MSI of a PCI device.
    pub index: u32,
    /// The number of armed interrupts.
    pub armed: u32,
    /// The number of the last armed interrupt, plus one.
    pub vectors: u32,
    /// The user has masked interrupts of this index and not unmasked them. A line that masked itself is not counted.
    pub masked: bool,
}

impl ArmedInterrupts {
    /// Creates the description of an index.
    pub const fn new(index: u32, armed: u32, vectors: u32, masked: bool) -> ArmedInterrupts {
        ArmedInterrupts { index, armed, vectors, masked }
    }
}

/// A record of the interrupts that a user arms on one device, for implementations of
/// [`Device::armed_interrupts`](crate::Device::armed_interrupts).
#[derive(Clone, Debug, Default)]
pub struct InterruptTracker {
    indexes: BTreeMap<u32, Index>,
}

#[derive(Clone, Debug, Default)]
struct Index {
    armed: BTreeSet<u32>,
    masked: BTreeSet<u32>,
}

impl InterruptTracker {
    /// Records a request that the device has accepted.
    pub fn record(&mut self, index: u32, start: u32, action: IrqAction, data: IrqData<'_>) {
        // With no data, 0 disables the whole index.
        if let (IrqAction::Trigger, IrqData::None(0)) = (action, data) {
            self.indexes.remove(&index);
            return;
        }
        let entry = self.indexes.entry(index).or_default();
        match (action, data) {
            (IrqAction::Trigger, IrqData::Eventfd(items)) => {
                for (interrupt, eventfd) in (start..).zip(items) {
                    if eventfd.is_some() {
                        entry.armed.insert(interrupt);
                    } else {
                        entry.armed.remove(&interrupt);
                    }
                }
            }
            (IrqAction::Mask, IrqData::None(count)) => {
                // Only an armed interrupt counts, which bounds the work.
                let end = start.saturating_add(count);
                entry.masked.extend(entry.armed.range(start..end).copied());
            }
            (IrqAction::Unmask, IrqData::None(count)) => {
                let end = start.saturating_add(count);
                entry.masked.retain(|interrupt| !(start..end).contains(interrupt));
            }
            (IrqAction::Mask | IrqAction::Unmask, IrqData::Bool(items)) => {
                for (interrupt, _) in (start..).zip(items).filter(|(_, set)| **set) {
                    if action == IrqAction::Mask {
                        entry.masked.insert(interrupt);
                    } else {
                        entry.masked.remove(&interrupt);
                    }
                }
            }
            // One that fires, or an eventfd that masks or unmasks later.
            (IrqAction::Trigger, _) | (_, IrqData::Eventfd(_)) => {}
        }
    }

    /// Returns the armed interrupts, in the order of their indexes.
    pub fn armed(&self) -> Vec<ArmedInterrupts> {
        let armed = self.indexes.iter().filter_map(|(index, Index { armed, masked })| {
            let last = *armed.last()?;
            let masked = !armed.is_disjoint(masked);
            Some(ArmedInterrupts::new(*index, armed.len() as u32, last.saturating_add(1), masked))
        });
        armed.collect()
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn eventfds_arm_and_their_removal_disarms() {
        let eventfd = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
        let fd = Some(eventfd.as_fd());
        let mut tracker = InterruptTracker::default();
        tracker.record(2, 1, IrqAction::Trigger, IrqData::Eventfd(&[fd, None, fd]));
        tracker.record(0, 0, IrqAction::Trigger, IrqData::Eventfd(&[fd]));
        tracker.record(2, 0, IrqAction::Trigger, IrqData::Bool(&[true, true]));
        let line = ArmedInterrupts::new(0, 1, 1, false);
        assert_eq!(tracker.armed(), [line, ArmedInterrupts::new(2, 2, 4, false)]);
        tracker.record(2, 3, IrqAction::Trigger, IrqData::Eventfd(&[None]));
        assert_eq!(tracker.armed(), [line, ArmedInterrupts::new(2, 1, 2, false)]);
        tracker.record(2, 0, IrqAction::Trigger, IrqData::None(0));
        assert_eq!(tracker.armed(), [line]);
    }

    #[test]
    fn the_mask_of_the_user_is_known() {
        let eventfd = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
        let mut tracker = InterruptTracker::default();
        tracker.record(0, 0, IrqAction::Trigger, IrqData::Eventfd(&[Some(eventfd.as_fd())]));
        let masked = |tracker: &InterruptTracker| tracker.armed()[0].masked;
        tracker.record(0, 0, IrqAction::Mask, IrqData::None(u32::MAX));
        assert!(masked(&tracker));
        tracker.record(0, 0, IrqAction::Unmask, IrqData::Bool(&[true]));
        assert!(!masked(&tracker));
        tracker.record(0, 0, IrqAction::Mask, IrqData::Bool(&[true]));
        tracker.record(0, 0, IrqAction::Unmask, IrqData::None(1));
        assert!(!masked(&tracker));
    }
}
