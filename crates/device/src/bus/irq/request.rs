//! What VFIO_DEVICE_SET_IRQS asks for, as a typed call says it, and how its raw flags are read.

use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;
use whimbrel_protocol::Errno;
use whimbrel_protocol::irq::IrqAction;
use whimbrel_uapi::device::{IrqSetFlags, VFIO_IRQ_SET_ACTION_TYPE_MASK, VFIO_IRQ_SET_DATA_TYPE_MASK};

use super::rules::{Data, Slot};
use crate::raw::process::Process;

/// To which interrupts of a range it is done, and when.
#[derive(Debug)]
pub enum IrqData {
    /// DATA_NONE: to as many as this, now. None at all, with [`IrqAction::Trigger`], tears the index down.
    None(u32),
    /// DATA_BOOL: to those that say `true`, now.
    Bool(Vec<bool>),
    /// DATA_EVENTFD: ties the action to an eventfd, or unties it.
    Eventfd(Vec<Option<EventFd>>),
}

impl IrqData {
    /// How many interrupts the range has.
    pub(crate) fn count(&self) -> Result<u32, Errno> {
        match self {
            IrqData::None(count) => Ok(*count),
            IrqData::Bool(items) => u32::try_from(items.len()).map_err(|_| Errno::EINVAL),
            IrqData::Eventfd(items) => u32::try_from(items.len()).map_err(|_| Errno::EINVAL),
        }
    }

    pub(crate) fn into_data(self) -> Data<Arc<EventFd>> {
        match self {
            IrqData::None(count) => Data::None(count),
            IrqData::Bool(items) => Data::Bool(items),
            IrqData::Eventfd(items) => Data::Eventfds(
                items
                    .into_iter()
                    .map(|item| item.map_or(Slot::Empty, |eventfd| Slot::Eventfd(eventfd.into())))
                    .collect(),
            ),
        }
    }
}

/// The type of the data after a raw request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DataType {
    None,
    Bool,
    Eventfd,
}

impl DataType {
    /// EINVAL unless it is exactly one.
    pub(crate) fn of(flags: u32) -> Result<DataType, Errno> {
        match IrqSetFlags::from_bits_retain(flags & VFIO_IRQ_SET_DATA_TYPE_MASK) {
            IrqSetFlags::DATA_NONE => Ok(DataType::None),
            IrqSetFlags::DATA_BOOL => Ok(DataType::Bool),
            IrqSetFlags::DATA_EVENTFD => Ok(DataType::Eventfd),
            _ => Err(Errno::EINVAL),
        }
    }

    /// Bytes for each interrupt.
    pub(crate) const fn size(self) -> u64 {
        match self {
            DataType::None => 0,
            DataType::Bool => 1,
            DataType::Eventfd => 4,
        }
    }

    /// The data as the process that asks means it. A descriptor that is none only matters where it is used.
    pub(crate) fn read(self, count: u32, bytes: &[u8], process: &dyn Process) -> Data<Arc<EventFd>> {
        match self {
            DataType::None => Data::None(count),
            DataType::Bool => Data::Bool(bytes.iter().map(|byte| *byte != 0).collect()),
            DataType::Eventfd => {
                let (numbers, _) = bytes.as_chunks::<4>();
                Data::Eventfds(numbers.iter().map(|fd| slot(i32::from_ne_bytes(*fd), process)).collect())
            }
        }
    }
}

fn slot(fd: i32, process: &dyn Process) -> Slot<Arc<EventFd>> {
    match fd {
        -1 => Slot::Empty,
        ..-1 => Slot::Negative,
        _ => match process.eventfd(fd) {
            Ok(eventfd) => Slot::Eventfd(eventfd.into()),
            Err(errno) => Slot::Refused(errno),
        },
    }
}

/// The action of a raw request; ENOTTY unless it is exactly one.
pub(crate) fn action(flags: u32) -> Result<IrqAction, Errno> {
    match IrqSetFlags::from_bits_retain(flags & VFIO_IRQ_SET_ACTION_TYPE_MASK) {
        IrqSetFlags::ACTION_MASK => Ok(IrqAction::Mask),
        IrqSetFlags::ACTION_UNMASK => Ok(IrqAction::Unmask),
        IrqSetFlags::ACTION_TRIGGER => Ok(IrqAction::Trigger),
        _ => Err(Errno::ENOTTY),
    }
}
