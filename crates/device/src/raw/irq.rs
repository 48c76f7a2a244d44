//! VFIO_DEVICE_SET_IRQS as a raw ioctl: its flags, and data of three types.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use whimbrel_protocol::Errno;
use whimbrel_protocol::irq::IrqAction;
use whimbrel_uapi::device::{
    IrqSet, IrqSetFlags, VFIO_IRQ_SET_ACTION_TYPE_MASK, VFIO_IRQ_SET_DATA_TYPE_MASK,
};
use zerocopy::{FromZeros, IntoBytes};

use super::process::Process;
use crate::bus::irq::{Change, Data, Slot, slot};
use crate::core::file::DeviceFile;

/// The type of the data after a raw request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DataType {
    None,
    Bool,
    Eventfd,
}

impl DeviceFile {
    /// Executes the raw request, with the order of checks of `vfio_set_irqs_validate_and_prepare()` and then of
    /// vfio-pci.
    pub(super) fn raw_set_irqs(&self, argument: u64, process: &mut dyn Process) -> Result<i32, Errno> {
        const HEAD: u64 = size_of::<IrqSet>() as u64;
        let mut head = IrqSet::new_zeroed();
        process.read(argument, head.as_mut_bytes())?;
        let IrqSet { argsz, flags, index, start, count } = head;
        let known = VFIO_IRQ_SET_DATA_TYPE_MASK | VFIO_IRQ_SET_ACTION_TYPE_MASK;
        let room = u64::from(argsz).checked_sub(HEAD).ok_or(Errno::EINVAL)?;
        if flags & !known != 0 {
            return Err(Errno::EINVAL);
        }
        let kind = self.irq_range(index, start, count)?;
        let data_type = DataType::of(flags)?;
        let size = u64::from(count) * data_type.size();
        if room < size {
            return Err(Errno::EINVAL);
        }
        // Not longer than what the index has.
        let mut bytes = vec![0; usize::try_from(size).map_err(|_| Errno::ENOMEM)?];
        if !bytes.is_empty() {
            process.read(argument.checked_add(HEAD).ok_or(Errno::EFAULT)?, &mut bytes)?;
        }
        let data = data_type.read(count, &bytes, process);
        let change = Change { kind, index, start, action: action(flags), data };
        self.bus().interrupts().apply(change)?;
        Ok(0)
    }
}

impl DataType {
    /// Returns the data type; EINVAL unless the flags have exactly one.
    fn of(flags: u32) -> Result<DataType, Errno> {
        match IrqSetFlags::from_bits_retain(flags & VFIO_IRQ_SET_DATA_TYPE_MASK) {
            IrqSetFlags::DATA_NONE => Ok(DataType::None),
            IrqSetFlags::DATA_BOOL => Ok(DataType::Bool),
            IrqSetFlags::DATA_EVENTFD => Ok(DataType::Eventfd),
            _ => Err(Errno::EINVAL),
        }
    }

    /// Returns the bytes per interrupt.
    const fn size(self) -> u64 {
        match self {
            DataType::None => 0,
            DataType::Bool => 1,
            DataType::Eventfd => 4,
        }
    }

    /// Parses the data in the context of the calling process. An invalid descriptor counts only if it is used.
    fn read(self, count: u32, bytes: &[u8], process: &dyn Process) -> Data<Arc<OwnedFd>> {
        match self {
            DataType::None => Data::None(count),
            DataType::Bool => Data::Bool(bytes.iter().map(|byte| *byte != 0).collect()),
            DataType::Eventfd => {
                let (numbers, _) = bytes.as_chunks::<4>();
                Data::Eventfds(numbers.iter().map(|fd| place(i32::from_ne_bytes(*fd), process)).collect())
            }
        }
    }
}

fn place(fd: i32, process: &dyn Process) -> Slot<Arc<OwnedFd>> {
    match fd {
        -1 => Slot::Empty,
        ..-1 => Slot::Negative,
        _ => slot(process.eventfd(fd)),
    }
}

/// Returns the action of a raw request; ENOTTY unless the flags have exactly one.
fn action(flags: u32) -> Result<IrqAction, Errno> {
    match IrqSetFlags::from_bits_retain(flags & VFIO_IRQ_SET_ACTION_TYPE_MASK) {
        IrqSetFlags::ACTION_MASK => Ok(IrqAction::Mask),
        IrqSetFlags::ACTION_UNMASK => Ok(IrqAction::Unmask),
        IrqSetFlags::ACTION_TRIGGER => Ok(IrqAction::Trigger),
        _ => Err(Errno::ENOTTY),
    }
}
