//! What a user asks for of a device's interrupts (VFIO_DEVICE_SET_IRQS).

/// What is done to interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IrqAction {
    /// ACTION_MASK.
    Mask,
    /// ACTION_UNMASK.
    Unmask,
    /// ACTION_TRIGGER: fire; with eventfds, say where firing is told.
    Trigger,
}
