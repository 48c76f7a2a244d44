//! The data of VFIO_DEVICE_SET_IRQS.

use std::os::fd::BorrowedFd;

/// The interrupts of a range that an [`IrqAction`](crate::IrqAction) applies to, and the time.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::exhaustive_enums, reason = "the forms of data of the header")]
pub enum IrqData<'a> {
    /// This number of interrupts, now.
    None(u32),
    /// The interrupts with `true`, now.
    Bool(&'a [bool]),
    /// Each signal of the eventfd; with [`IrqAction::Trigger`](crate::IrqAction::Trigger), the device signals it. `None` removes it.
    Eventfd(&'a [Option<BorrowedFd<'a>>]),
}
