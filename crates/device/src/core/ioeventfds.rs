//! VFIO_DEVICE_IOEVENTFD: eventfds whose signal writes to a region, as `drivers/vfio/pci/vfio_pci_rdwr.c` does it.
//!
//! The user has set them up, as it has the interrupts: a reset of the device and a migration leave them alone.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use vmm_sys_util::eventfd::EventFd;
use whimbrel_protocol::Errno;
use whimbrel_uapi::pci::{
    DeviceIoeventfd, VFIO_DEVICE_IOEVENTFD_8, VFIO_DEVICE_IOEVENTFD_16, VFIO_DEVICE_IOEVENTFD_32,
    VFIO_DEVICE_IOEVENTFD_64, VFIO_PCI_BAR5_REGION_INDEX,
};
use zerocopy::{FromZeros, IntoBytes};

use crate::bus::listener::{Listener, Watch};
use crate::core::file::{Shared, split_offset};
use crate::raw::process::Process;

/// The most that a device can have (`VFIO_PCI_IOEVENTFD_MAX`).
const MOST: usize = 1000;

/// Bytes of the structure that every user gives: up to `fd`.
const LEAST: usize = 28;

/// How many bytes are written at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WriteWidth {
    /// One.
    One,
    /// Two.
    Two,
    /// Four.
    Four,
    /// Eight.
    Eight,
}

impl WriteWidth {
    /// The number of bytes.
    pub const fn bytes(self) -> usize {
        match self {
            WriteWidth::One => 1,
            WriteWidth::Two => 2,
            WriteWidth::Four => 4,
            WriteWidth::Eight => 8,
        }
    }

    fn of(flags: u32) -> Result<WriteWidth, Errno> {
        match flags {
            VFIO_DEVICE_IOEVENTFD_8 => Ok(WriteWidth::One),
            VFIO_DEVICE_IOEVENTFD_16 => Ok(WriteWidth::Two),
            VFIO_DEVICE_IOEVENTFD_32 => Ok(WriteWidth::Four),
            VFIO_DEVICE_IOEVENTFD_64 => Ok(WriteWidth::Eight),
            _ => Err(Errno::EINVAL),
        }
    }
}

/// A write to a BAR that a signal makes. Two are the same if all of it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct IoeventfdWrite {
    /// Index of the BAR's region.
    pub region: u32,
    /// Offset in bytes within it. It need not be aligned.
    pub offset: u64,
    /// How much is written.
    pub width: WriteWidth,
    /// What is written: of this its low bytes, the lowest first.
    pub data: u64,
}

impl IoeventfdWrite {
    /// EINVAL unless it lies in a BAR of `size` bytes.
    fn check(&self, size: impl FnOnce(u32) -> u64) -> Result<(), Errno> {
        if self.region > VFIO_PCI_BAR5_REGION_INDEX {
            return Err(Errno::EINVAL);
        }
        match self.offset.checked_add(self.width.bytes() as u64) {
            Some(end) if end <= size(self.region) => Ok(()),
            _ => Err(Errno::EINVAL),
        }
    }
}

/// The ioeventfds of a device.
#[derive(Debug, Default)]
pub(crate) struct Ioeventfds {
    tied: Mutex<BTreeMap<IoeventfdWrite, Tied>>,
}

#[derive(Debug)]
struct Tied {
    eventfd: Arc<EventFd>,
    _watch: Watch,
}

impl Ioeventfds {
    /// Ties a write to an eventfd, or unties it. `size` is that of a region, 0 for one that is not there.
    pub(crate) fn set(
        &self,
        write: IoeventfdWrite,
        eventfd: Option<Result<EventFd, Errno>>,
        size: impl FnOnce(u32) -> u64,
        device: Weak<Shared>,
        listener: &Listener,
    ) -> Result<(), Errno> {
        write.check(size)?;
        let mut tied = self.tied.lock();
        let Some(eventfd) = eventfd else {
            return tied.remove(&write).map(drop).ok_or(Errno::ENODEV);
        };
        if tied.contains_key(&write) {
            return Err(Errno::EEXIST);
        }
        if tied.len() >= MOST {
            return Err(Errno::ENOSPC);
        }
        let eventfd = Arc::new(eventfd?);
        let told = Arc::downgrade(&eventfd);
        let watch = listener.watch(eventfd.clone(), move || {
            if let Some(device) = device.upgrade() {
                device.ioeventfds().signalled(&device, &write, &told);
            }
        })?;
        tied.insert(write, Tied { eventfd, _watch: watch });
        Ok(())
    }

    /// Each write with its eventfd.
    pub(crate) fn all(&self) -> io::Result<Vec<(IoeventfdWrite, EventFd)>> {
        self.tied.lock().iter().map(|(write, tied)| Ok((*write, tied.eventfd.try_clone()?))).collect()
    }

    /// Unties all of them.
    pub(crate) fn clear(&self) {
        self.tied.lock().clear();
    }

    /// Writes, if the eventfd is still tied to it.
    fn signalled(&self, device: &Shared, write: &IoeventfdWrite, eventfd: &Weak<EventFd>) {
        // Held until it is written, so that nothing is written after the eventfd is untied.
        let tied = self.tied.lock();
        if tied.get(write).is_none_or(|tied| Arc::as_ptr(&tied.eventfd) != eventfd.as_ptr()) {
            return;
        }
        let data = &write.data.to_le_bytes()[..write.width.bytes()];
        if let Err(errno) = device.write_region(write.region, write.offset, data) {
            // Nobody asked who could be told.
            tracing::debug!(device = device.name(), ?write, %errno, "an ioeventfd's write failed");
        }
    }
}

/// Reads the raw request. The descriptor is resolved, but what comes of it only matters if it is used.
pub(crate) fn read(
    argument: u64,
    process: &dyn Process,
) -> Result<(IoeventfdWrite, Option<Result<EventFd, Errno>>), Errno> {
    let mut asked = DeviceIoeventfd::new_zeroed();
    process.read(argument, &mut asked.as_mut_bytes()[..LEAST])?;
    if (asked.argsz as usize) < LEAST {
        return Err(Errno::EINVAL);
    }
    let width = WriteWidth::of(asked.flags)?;
    if asked.fd < -1 {
        return Err(Errno::EINVAL);
    }
    let (region, offset) = split_offset(asked.offset);
    let eventfd = (asked.fd != -1).then(|| process.eventfd(asked.fd));
    Ok((IoeventfdWrite { region, offset, width, data: asked.data }, eventfd))
}
