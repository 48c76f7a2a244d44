//! The data of a typed VFIO_DEVICE_SET_IRQS.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use whimbrel_protocol::Errno;

use super::rules::{Data, Slot};
use super::signal::only_eventfd;

/// The interrupts of a range that an action is for, and whether it happens now or at a signal.
#[derive(Debug)]
pub enum IrqData {
    /// DATA_NONE: to as many as this, now. None at all, with [`IrqAction::Trigger`](crate::IrqAction::Trigger), tears the index down.
    None(u32),
    /// DATA_BOOL: to those that say `true`, now.
    Bool(Vec<bool>),
    /// DATA_EVENTFD: ties the action to an eventfd, or unties it. EINVAL for a descriptor of another kind.
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

/// The place of a descriptor. What is wrong with it only matters where it is used.
pub(crate) fn slot(fd: Result<OwnedFd, Errno>) -> Slot<Arc<OwnedFd>> {
    match fd.and_then(only_eventfd) {
        Ok(eventfd) => Slot::Eventfd(Arc::new(eventfd)),
        Err(errno) => Slot::Refused(errno),
    }
}
