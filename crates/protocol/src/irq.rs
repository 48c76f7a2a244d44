//! Actions on a device's interrupts (VFIO_DEVICE_SET_IRQS).

/// An action on interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IrqAction {
    /// ACTION_MASK.
    Mask,
    /// ACTION_UNMASK.
    Unmask,
    /// ACTION_TRIGGER: fire; with eventfds, set the eventfd that receives each interrupt.
    Trigger,
}
