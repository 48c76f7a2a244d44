//! VFIO_USER_DEVICE_SET_IRQS.

use super::fields::Fields;
use super::{Malformed, MessageBuffer};

const FIXED: u32 = 20;

/// The action on the interrupts from `start` on. With VFIO_IRQ_SET_DATA_EVENTFD, the eventfds come as descriptors:
/// `count` of them, or none to remove those that are set.
///
/// The device itself checks the flags and the range, in the kernel's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetIrqs<'a> {
    /// [`IrqSetFlags`](whimbrel_uapi::device::IrqSetFlags), as received.
    pub flags: u32,
    /// Index of the interrupts.
    pub index: u32,
    /// The first of them.
    pub start: u32,
    /// The number of interrupts.
    pub count: u32,
    /// With VFIO_IRQ_SET_DATA_BOOL, one byte for each.
    pub data: &'a [u8],
}

impl<'a> SetIrqs<'a> {
    pub(super) fn parse(payload: &'a [u8]) -> Result<SetIrqs<'a>, Malformed> {
        let mut fields = Fields::of(payload, FIXED as usize)?;
        let argsz = fields.argsz(u64::from(FIXED))?;
        let (flags, index) = (fields.u32()?, fields.u32()?);
        let (start, count) = (fields.u32()?, fields.u32()?);
        let data = fields.rest();
        // Eventfds are no data of the message, but some clients count them in argsz.
        let data = &data[..data.len().min((argsz - FIXED) as usize)];
        Ok(SetIrqs { flags, index, start, count, data })
    }

    pub(super) fn put(&self, out: &mut MessageBuffer) {
        out.put_u32(FIXED + self.data.len() as u32);
        out.put_u32(self.flags);
        out.put_u32(self.index);
        out.put_u32(self.start);
        out.put_u32(self.count);
        out.put(self.data);
    }
}
