//! VFIO_DEVICE_IOEVENTFD: eventfds that write to a region when signalled, as in `drivers/vfio/pci/vfio_pci_rdwr.c`.
//!
//! Like the interrupts they are the user's setup: a reset and a migration leave them alone.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use whimbrel_protocol::Errno;
use whimbrel_uapi::pci::VFIO_PCI_BAR5_REGION_INDEX;

use crate::bus::irq::only_eventfd;
use crate::bus::listener::{Listener, Watch};
use crate::driver::IoeventfdWrite;

/// Maximum number per device (`VFIO_PCI_IOEVENTFD_MAX`).
const MAX_IOEVENTFDS: usize = 1000;

/// The ioeventfds of a device.
#[derive(Debug, Default)]
pub(super) struct Ioeventfds {
    tied: Arc<Mutex<Ties>>,
}

type Ties = BTreeMap<IoeventfdWrite, Tied>;

#[derive(Debug)]
struct Tied {
    eventfd: Arc<OwnedFd>,
    _watch: Watch,
}

impl Ioeventfds {
    /// Sets or removes the eventfd of a write. `size` returns the size of a region, 0 if it is missing; `perform` makes
    /// the write.
    pub(super) fn set(
        &self,
        write: IoeventfdWrite,
        eventfd: Option<Result<OwnedFd, Errno>>,
        size: impl FnOnce(u32) -> u64,
        perform: impl Fn(&IoeventfdWrite) + Send + Sync + 'static,
        listener: &Listener,
    ) -> Result<(), Errno> {
        check(&write, size)?;
        let mut tied = self.tied.lock();
        let Some(eventfd) = eventfd else {
            return tied.remove(&write).map(drop).ok_or(Errno::ENODEV);
        };
        if tied.contains_key(&write) {
            return Err(Errno::EEXIST);
        }
        if tied.len() >= MAX_IOEVENTFDS {
            return Err(Errno::ENOSPC);
        }
        let eventfd = Arc::new(only_eventfd(eventfd?)?);
        let (writes, told) = (Arc::downgrade(&self.tied), Arc::downgrade(&eventfd));
        let watch = listener.watch(eventfd.clone(), move || signalled(&writes, &write, &told, &perform))?;
        tied.insert(write, Tied { eventfd, _watch: watch });
        Ok(())
    }

    /// Returns each write with its eventfd.
    pub(super) fn all(&self) -> io::Result<Vec<(IoeventfdWrite, OwnedFd)>> {
        self.tied.lock().iter().map(|(write, tied)| Ok((*write, tied.eventfd.try_clone()?))).collect()
    }

    /// Removes all of them.
    pub(super) fn clear(&self) {
        self.tied.lock().clear();
    }
}

/// Makes the write, if it still has the eventfd.
fn signalled(
    writes: &Weak<Mutex<Ties>>,
    write: &IoeventfdWrite,
    eventfd: &Weak<OwnedFd>,
    perform: &impl Fn(&IoeventfdWrite),
) {
    let Some(writes) = writes.upgrade() else { return };
    // Held until it is written, so that nothing is written after the eventfd is untied.
    let tied = writes.lock();
    if tied.get(write).is_some_and(|tied| Arc::as_ptr(&tied.eventfd) == eventfd.as_ptr()) {
        perform(write);
    }
}

/// Fails with EINVAL unless the write lies in a BAR.
fn check(write: &IoeventfdWrite, size: impl FnOnce(u32) -> u64) -> Result<(), Errno> {
    if write.region > VFIO_PCI_BAR5_REGION_INDEX {
        return Err(Errno::EINVAL);
    }
    match write.offset.checked_add(write.width.bytes() as u64) {
        Some(end) if end <= size(write.region) => Ok(()),
        _ => Err(Errno::EINVAL),
    }
}
