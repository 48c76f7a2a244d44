//! The setup of a device: what belongs to its owner and not to the driver's migration data.
//!
//! `docs/differences.md` has the table of registers: what travels, what the kernel keeps to itself, and why.
//!
//! vfio-pci gives a PCI device's configuration space to the user, and clears bus master when the device is opened and
//! when it is reset. A device whose driver's state was loaded runs, and yet neither reads a descriptor nor sends a
//! message until its owner has restored BARs, capabilities and command register. [`DeviceSetup`] carries them.
//!
//! Eventfds cannot travel. The setup tells which interrupts were armed at the source
//! ([`DeviceSetup::interrupts`]); the owner at the destination arms them with eventfds of its own
//! ([`Device::set_irqs`](crate::Device::set_irqs)). Restoring a setup neither arms nor disarms an interrupt.

mod armed;
mod format;
mod registers;
mod restore;

pub use self::armed::{ArmedInterrupts, InterruptTracker};
pub use self::format::SetupError;

/// The setup of a PCI device, to restore it on another device of the same kind.
///
/// ```
/// use whimbrel_models::Model;
/// use whimbrel_user::{Device, DeviceSetup, Local, Migratable};
///
/// let model: Model = "accel?state=4KiB&config=required".parse()?;
/// let (mut source, mut destination) =
///     (Local::new(model.open("source")?), Local::new(model.open("destination")?));
/// // As a guest enables memory space and bus master.
/// source.write_region(7, 0x04, &[0x06, 0x00])?;
///
/// let setup = source.save_setup()?.expect("a PCI device");
/// let received = DeviceSetup::parse(&setup.to_bytes())?;
/// destination.restore_setup(&received)?;
/// let mut command = [0; 2];
/// destination.read_region(7, 0x04, &mut command)?;
/// assert_eq!(command, [0x06, 0x00]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceSetup {
    /// The configuration space, with the whole header, up to the last register that is restored.
    space: Vec<u8>,
    /// In the order of their indexes.
    interrupts: Vec<ArmedInterrupts>,
}

impl DeviceSetup {
    /// Maximum length of the byte form.
    pub const MAX_BYTES: usize = 64 * 1024;

    /// Returns the source's configuration space: its header and its capabilities. Of the extended part, it has only the
    /// capabilities with registers that are restored, and the headers that lead to them; the rest is 0.
    pub fn config_space(&self) -> &[u8] {
        &self.space
    }

    /// Returns the interrupts that the source's owner had armed, in the order of their indexes.
    pub fn interrupts(&self) -> &[ArmedInterrupts] {
        &self.interrupts
    }
}
