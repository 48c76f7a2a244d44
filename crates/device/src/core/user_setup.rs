//! Transfer of the user's setup to another device of the same kind, for a back end that is replaced while its device is
//! in use.
//!
//! A migration does not include the setup, because the user repeats it on the other host. A user that does not know of
//! a replacement cannot do that. This covers interrupts, ioeventfds and pending signals. The server itself maps memory
//! and starts the dirty log on the new device.

use std::io;
use std::os::fd::OwnedFd;

use whimbrel_protocol::Errno;
use whimbrel_uapi::device::DeviceInfoFlags;

use super::file::DeviceFile;
use crate::bus::irq::{InterruptsInUse, Kind};
use crate::driver::IoeventfdWrite;

impl DeviceFile {
    /// Returns the user's interrupt setup, with copies of its eventfds. EMFILE if this process can have no more
    /// descriptors.
    ///
    /// ```
    /// use rustix::event::{EventfdFlags, eventfd};
    /// use whimbrel_device::{
    ///     DeviceFile, DeviceInfoFlags, Driver, Errno, Info, InUse, Irq, IrqAction, IrqData, IrqInfoFlags,
    /// };
    ///
    /// struct Line;
    ///
    /// impl Driver for Line {
    ///     fn info(&self) -> Info {
    ///         Info::new(DeviceInfoFlags::PCI).num_irqs(1)
    ///     }
    ///     fn irq(&self, _index: u32) -> Result<Irq, Errno> {
    ///         Ok(Irq::new(IrqInfoFlags::EVENTFD | IrqInfoFlags::MASKABLE, 1))
    ///     }
    /// }
    ///
    /// let old = DeviceFile::new("old", |_| Line);
    /// let eventfd = eventfd(0, EventfdFlags::NONBLOCK)?;
    /// old.set_irq_triggers(0, 0, vec![Some(eventfd.try_clone()?)])?;
    /// old.set_irqs(0, 0, IrqAction::Mask, IrqData::None(1))?;
    ///
    /// let new = DeviceFile::new("new", |_| Line);
    /// let in_use = old.interrupts_in_use()?;
    /// assert!(matches!(in_use.active, InUse::Line { masked: true, .. }));
    /// new.restore_interrupts(in_use)?;
    /// new.bus().interrupts().set_line(true);
    /// let mut count = [0; 8];
    /// assert!(rustix::io::read(&eventfd, &mut count).is_err(), "it is masked here too");
    /// new.set_irqs(0, 0, IrqAction::Unmask, IrqData::None(1))?;
    /// assert_eq!(rustix::io::read(&eventfd, &mut count)?, 8);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn interrupts_in_use(&self) -> io::Result<InterruptsInUse> {
        self.bus().interrupts().in_use()
    }

    /// Restores the setup that [`DeviceFile::interrupts_in_use`] returned for a device of the same kind. An INTx line
    /// that is masked there is masked here; an unmasked one that is asserted signals at once.
    ///
    /// EBUSY if something is already set up here, EINVAL for a setup that this device cannot have and for a descriptor
    /// that is not an eventfd; EMFILE, ENOMEM and EAGAIN if this process cannot listen to the user's eventfds, and then
    /// no unmask eventfd is set up.
    pub fn restore_interrupts(&self, in_use: InterruptsInUse) -> Result<(), Errno> {
        let info = self.info();
        let irq = |index: u32| {
            let irq = self.irq_info(index).ok()?;
            Some((Kind::of(info.flags.contains(DeviceInfoFlags::PCI), index, irq), irq.count))
        };
        self.bus().interrupts().restore(in_use, irq)
    }

    /// Returns the device's ioeventfds, with copies of the eventfds. EMFILE if this process can have no more
    /// descriptors.
    pub fn ioeventfds(&self) -> io::Result<Vec<(IoeventfdWrite, OwnedFd)>> {
        self.shared().ioeventfds().all()
    }

    /// Stops listening to the user's signals: ioeventfds, and the eventfd that unmasks INTx. Earlier signals are
    /// handled when this returns. Later ones stay in the eventfds' counters, for [`DeviceFile::resume_signals`] or for
    /// another device with the same eventfds.
    ///
    /// Succeeds if it is already paused. EMFILE, ENOMEM and EAGAIN if this process cannot listen at all.
    pub fn pause_signals(&self) -> Result<(), Errno> {
        self.bus().interrupts().listener().pause()
    }

    /// Listens again after [`DeviceFile::pause_signals`].
    pub fn resume_signals(&self) {
        self.bus().interrupts().listener().resume();
    }
}
