//! VFIO_USER_DEVICE_SET_IRQS: eventfds received with a message, for the device's interrupts.

use whimbrel_device::{DeviceFile, Errno, Irq, IrqAction, IrqData, IrqInfoFlags};
use whimbrel_uapi::device::{IrqSetFlags, VFIO_IRQ_SET_DATA_TYPE_MASK};
use whimbrel_uapi::ioctl::VFIO_DEVICE_SET_IRQS;

use super::client::Client;
use super::process::Caller;
use crate::descriptors::Descriptors;
use crate::message::{Reply, SetIrqs};

impl Client {
    /// Converts it to the raw request, whose array of descriptors refers to the received ones: each number is an
    /// index.
    pub(super) fn set_irqs(
        &mut self,
        id: u16,
        set: &SetIrqs<'_>,
        descriptors: Descriptors,
    ) -> Result<(), Errno> {
        /// Bytes before the array.
        const HEAD: u32 = 20;
        let data_type = IrqSetFlags::from_bits_retain(set.flags & VFIO_IRQ_SET_DATA_TYPE_MASK);
        let with_eventfds = data_type == IrqSetFlags::DATA_EVENTFD;
        let right_count = if with_eventfds { set.count as usize } else { 0 };
        if !descriptors.is_empty() && descriptors.len() != right_count {
            return Err(Errno::EINVAL);
        }
        let data: Vec<u8> = if with_eventfds {
            (0_i32..).take(descriptors.len()).flat_map(i32::to_ne_bytes).collect()
        } else {
            set.data.to_vec()
        };
        // Without descriptors the array is -1 as far as it goes.
        let filler = (with_eventfds && descriptors.is_empty()).then_some(0xff);
        let size = if with_eventfds { set.count.saturating_mul(4) } else { data.len() as u32 };
        let fields = [HEAD.saturating_add(size), set.flags, set.index, set.start, set.count];
        let mut memory: Vec<u8> = fields.into_iter().flat_map(u32::to_ne_bytes).collect();
        memory.extend_from_slice(&data);
        let mut caller = Caller { memory, filler, descriptors, ..Caller::default() };
        match self.device().ioctl(VFIO_DEVICE_SET_IRQS.number(), 0, &mut caller) {
            // "Disables all interrupts of the index", also where none is in use; vfio-pci refuses that.
            Err(Errno::EINVAL) if disables(set) && self.device().irq_info(set.index).is_ok() => {}
            done => drop(done?),
        }
        self.out.reply(id, &Reply::DeviceSetIrqs);
        Ok(())
    }
}

/// Disables all interrupts of a device.
pub(crate) fn disable_all(device: &DeviceFile) {
    for index in 0..device.info().num_irqs {
        let has_eventfds = |irq: &Irq| irq.flags.contains(IrqInfoFlags::EVENTFD);
        if device.irq_info(index).is_ok_and(|irq| irq.count > 0 && has_eventfds(&irq)) {
            // One that was not set up has nothing to end.
            let _ = device.set_irqs(index, 0, IrqAction::Trigger, IrqData::None(0));
        }
    }
}

/// The special case of the specification: no interrupts, from the first on, without data.
fn disables(set: &SetIrqs<'_>) -> bool {
    let flags = IrqSetFlags::DATA_NONE | IrqSetFlags::ACTION_TRIGGER;
    set.flags == flags.bits() && set.start == 0 && set.count == 0
}
