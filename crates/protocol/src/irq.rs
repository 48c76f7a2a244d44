//! Actions on a device's interrupts (VFIO_DEVICE_SET_IRQS).

/// An action on interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "the actions of the header")]
pub enum IrqAction {
    /// ACTION_MASK.
    Mask,
    /// ACTION_UNMASK.
    Unmask,
    /// ACTION_TRIGGER: fire; with eventfds, set the eventfd that receives each interrupt.
    Trigger,
}
