//! The set-up that a device's user has made, handed to another device like it: for a back end that is replaced while its
//! device is in use.
//!
//! A migration carries none of it, because a user sets it up anew on the other host; a user that does not know of
//! the change cannot. Here are interrupts, ioeventfds and what the user signals. Memory is mapped, and a log
//! started, by who serves the device, who knows them.

use std::io;
use std::os::fd::OwnedFd;

use whimbrel_protocol::Errno;
use whimbrel_uapi::device::DeviceInfoFlags;

use super::file::DeviceFile;
use crate::bus::irq::{InterruptsInUse, Kind};
use crate::driver::IoeventfdWrite;

impl DeviceFile {
    /// The interrupts that the user has set up, with copies of its eventfds. EMFILE if this process can have no
    /// more descriptors.
    ///
    /// ```
    /// use rustix::event::{EventfdFlags, eventfd};
    /// use whimbrel_device::{
    ///     Bus, DeviceFile, DeviceInfoFlags, Driver, Errno, Info, InUse, Irq, IrqAction, IrqData, IrqInfoFlags,
    /// };
    ///
    /// struct Line;
    ///
    /// impl Driver for Line {
    ///     fn info(&self) -> Info {
    ///         Info { flags: DeviceInfoFlags::PCI, num_regions: 0, num_irqs: 1, capabilities: vec![] }
    ///     }
    ///     fn irq(&self, _index: u32) -> Result<Irq, Errno> {
    ///         Ok(Irq { flags: IrqInfoFlags::EVENTFD | IrqInfoFlags::MASKABLE, count: 1 })
    ///     }
    /// }
    ///
    /// let old = DeviceFile::new("old", Bus::new(), Box::new(Line));
    /// let eventfd = eventfd(0, EventfdFlags::NONBLOCK)?;
    /// old.set_irq_triggers(0, 0, vec![Some(eventfd.try_clone()?)])?;
    /// old.set_irqs(0, 0, IrqAction::Mask, IrqData::None(1))?;
    ///
    /// let new = DeviceFile::new("new", Bus::new(), Box::new(Line));
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

    /// Sets up what [`DeviceFile::interrupts_in_use`] gave of a device like this one. An INTx line that is masked
    /// there is masked here, whatever it was told; one that is not and is asserted is told.
    ///
    /// EBUSY if something is set up here already, EINVAL for what this device cannot have and for
    /// a descriptor that is no eventfd; EMFILE, ENOMEM and
    /// EAGAIN if this process cannot listen to what the user signals, and then no unmasking by an eventfd is set
    /// up.
    pub fn restore_interrupts(&self, in_use: InterruptsInUse) -> Result<(), Errno> {
        let info = self.info();
        let irq = |index: u32| {
            let irq = self.irq_info(index).ok()?;
            Some((Kind::of(info.flags.contains(DeviceInfoFlags::PCI), index, irq), irq.count))
        };
        self.bus().interrupts().restore(in_use, irq)
    }

    /// The ioeventfds that are tied to this device, with copies. EMFILE if this process can have no more
    /// descriptors.
    pub fn ioeventfds(&self) -> io::Result<Vec<(IoeventfdWrite, OwnedFd)>> {
        self.shared().ioeventfds().all()
    }

    /// Listens no more to what the user signals: ioeventfds, and the eventfd that unmasks INTx. What was signalled
    /// before is done when this returns; what comes later stays in the eventfds' counters, where
    /// [`DeviceFile::resume_signals`] finds it, or another device that is given the same eventfds.
    ///
    /// Fine if it is so already. EMFILE, ENOMEM and EAGAIN if this process cannot listen at all.
    pub fn pause_signals(&self) -> Result<(), Errno> {
        self.bus().interrupts().listener().pause()
    }

    /// Listens again after [`DeviceFile::pause_signals`].
    pub fn resume_signals(&self) {
        self.bus().interrupts().listener().resume();
    }
}
