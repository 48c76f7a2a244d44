//! The data of a typed VFIO_DEVICE_SET_IRQS.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use whimbrel_protocol::Errno;

use super::rules::{Data, Slot};
use super::signal::only_eventfd;

/// The interrupts of a range that an action applies to, and when: now or on a signal.
#[derive(Debug)]
#[expect(clippy::exhaustive_enums, reason = "the forms of data of the header")]
pub enum IrqData {
    /// DATA_NONE: this many interrupts, now. 0 with [`IrqAction::Trigger`](crate::IrqAction::Trigger) disables the
    /// index.
    None(u32),
    /// DATA_BOOL: the interrupts with `true`, now.
    Bool(Vec<bool>),
    /// DATA_EVENTFD: sets or removes an eventfd for the action. EINVAL for other descriptors.
    Eventfd(Vec<Option<OwnedFd>>),
}

impl IrqData {
    /// Returns the number of interrupts in the range.
    pub(crate) fn count(&self) -> Result<u32, Errno> {
        match self {
            IrqData::None(count) => Ok(*count),
            IrqData::Bool(items) => u32::try_from(items.len()).map_err(|_| Errno::EINVAL),
            IrqData::Eventfd(items) => u32::try_from(items.len()).map_err(|_| Errno::EINVAL),
        }
    }

    pub(crate) fn into_data(self) -> Data<Arc<OwnedFd>> {
        match self {
            IrqData::None(count) => Data::None(count),
            IrqData::Bool(items) => Data::Bool(items),
            IrqData::Eventfd(items) => Data::Eventfds(
                items.into_iter().map(|item| item.map_or(Slot::Empty, |fd| slot(Ok(fd)))).collect(),
            ),
        }
    }
}

/// Returns the slot of a descriptor. An error counts only where the descriptor is used.
pub(crate) fn slot(fd: Result<OwnedFd, Errno>) -> Slot<Arc<OwnedFd>> {
    match fd.and_then(only_eventfd) {
        Ok(eventfd) => Slot::Eventfd(Arc::new(eventfd)),
        Err(errno) => Slot::Refused(errno),
    }
}
