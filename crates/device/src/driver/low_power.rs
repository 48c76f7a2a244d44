//! The low-power half of a driver. The core decides when the device sleeps.

use super::Context;

/// The low-power half of a driver.
///
/// ```
/// use rustix::event::{EventfdFlags, eventfd};
/// use whimbrel_device::{Context, DeviceFile, DeviceInfoFlags, Driver, Errno, Info, LowPower};
///
/// struct Radio { on: bool }
///
/// impl Driver for Radio {
///     fn info(&self) -> Info {
///         Info::new(DeviceInfoFlags::PCI)
///     }
///     fn low_power(&mut self) -> Option<&mut dyn LowPower> {
///         Some(self)
///     }
/// }
///
/// impl LowPower for Radio {
///     fn suspend(&mut self, _: &Context) {
///         self.on = false;
///     }
///     fn resume(&mut self, _: &Context) {
///         self.on = true;
///     }
/// }
///
/// let device = DeviceFile::new("radio", |_| Radio { on: true });
/// let wakeup = eventfd(0, EventfdFlags::empty())?;
/// device.enter_low_power(Some(wakeup.try_clone()?))?;
/// // Something arrives: the device wakes by itself, and its user is told.
/// device.bus().wake();
/// let mut count = [0; 8];
/// rustix::io::read(&wakeup, &mut count)?;
/// assert_eq!(u64::from_ne_bytes(count), 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait LowPower {
    /// Puts the device to sleep: it does no work of its own until it is resumed. A device in D3hot is brought to D0
    /// first, as in vfio-pci.
    fn suspend(&mut self, context: &Context);

    /// Wakes the device with its earlier state.
    fn resume(&mut self, context: &Context);
}
