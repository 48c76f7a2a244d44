//! A PCI function for a driver to own: its configuration space, BARs, interrupts, power states and DMA.
//!
//! A [`Function`] implements everything that follows from its [`PciConfig`]. It serves the configuration space and the
//! MSI-X table, and leaves only the BAR registers to the driver. It maintains the interrupt status bit, obeys the INTx
//! disable bit, holds messages while they are masked, and starts nothing in D3hot:
//!
//! | | INTx line | message | DMA | BARs |
//! |---|---|---|---|---|
//! | needs | neither MSI nor MSI-X enabled | its capability enabled, bus master, not masked | bus master | decoding on |
//! | in D3hot | not asserted | held until D0 | none | EIO |
//! | while the device does not run | unchanged | held until it runs | left to the driver | unchanged |
//!
//! The interrupt status bit (bit 3 of the status register) follows the line as the function asserts it, and the INTx
//! disable bit (bit 10 of the command register) masks the line towards the user. Linux's `pci_check_and_mask_intx()`
//! needs both: it disowns an interrupt without the status bit.
//!
//! A held message is visible in the pending bits. The mask bit of an MSI-X table entry counts only once the entry was
//! written: a VMM that emulates the table, such as QEMU, never forwards a write.
//!
//! ```
//! use whimbrel_device::pci::config::{Bar, MsiX, PciConfig};
//! use whimbrel_device::pci::function::{Access, Function};
//! use whimbrel_device::{Context, DeviceFile, Driver, Errno, Info, Irq, Region};
//!
//! /// A card with one register: what is written there is sent as an interrupt.
//! struct Bell {
//!     function: Function,
//!     rung: u8,
//! }
//!
//! impl Driver for Bell {
//!     fn info(&self) -> Info {
//!         self.function.info()
//!     }
//!     fn region(&self, index: u32) -> Result<Region, Errno> {
//!         Ok(self.function.region(index))
//!     }
//!     fn irq(&self, index: u32) -> Result<Irq, Errno> {
//!         Ok(self.function.irq(index))
//!     }
//!     fn read_region(&mut self, _: &Context, index: u32, offset: u64, data: &mut [u8]) -> Result<usize, Errno> {
//!         if let Access::Driver = self.function.read_region(index, offset, data)? {
//!             data.fill(self.rung);
//!         }
//!         Ok(data.len())
//!     }
//!     fn write_region(&mut self, _: &Context, index: u32, offset: u64, data: &[u8]) -> Result<usize, Errno> {
//!         if let Access::Driver = self.function.write_region(index, offset, data)? {
//!             self.rung = data[0];
//!             self.function.send_message(self.rung.into());
//!         }
//!         Ok(data.len())
//!     }
//!     fn reset(&mut self, _: &Context) -> Result<(), Errno> {
//!         self.function.reset();
//!         Ok(())
//!     }
//! }
//!
//! let table = MsiX::new(4, 1).pending_offset(0x800);
//! let config = PciConfig::builder(0x1234, 0xbe11)
//!     .command(0x0002)
//!     .bar(0, Bar::Memory32 { size: 0x1000, prefetchable: false })
//!     .bar(1, Bar::Memory32 { size: 0x1000, prefetchable: false })
//!     .capability(table)
//!     .build()?;
//! let device =
//!     DeviceFile::new("bell", |bus| Bell { function: Function::new(config, bus), rung: 0 });
//! assert_eq!(device.irq_info(2)?.count, 4);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod logging;
mod messages;
mod msix_table;
mod saved;

use std::sync::Arc;

use whimbrel_memory::DirtyLog;
use whimbrel_protocol::info::{Info, Irq, Region};
use whimbrel_protocol::{Errno, State};
use whimbrel_uapi::device::{DeviceInfoFlags, IrqInfoFlags, RegionInfoFlags};
use whimbrel_uapi::pci::{
    VFIO_PCI_BAR5_REGION_INDEX, VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_ERR_IRQ_INDEX,
    VFIO_PCI_INTX_IRQ_INDEX, VFIO_PCI_MSI_IRQ_INDEX, VFIO_PCI_MSIX_IRQ_INDEX, VFIO_PCI_NUM_IRQS,
    VFIO_PCI_NUM_REGIONS,
};

use self::messages::{Messages, may_master};
pub use self::saved::FunctionStateError;
use crate::bus::Bus;
use crate::bus::dma::DmaSpace;
use crate::pci::config::{Bar, PciConfig, PciEvent, PowerState, Settings};

/// One PCI function, as its driver owns it.
#[derive(Debug)]
pub struct Function {
    bus: Bus,
    config: PciConfig,
    messages: Messages,
    /// The device has a cause for an interrupt on the line.
    asserted: bool,
    /// Neither the bus master bit nor the enable bits of MSI and MSI-X hold anything back.
    is_permissive: bool,
    /// The device is in a migration state in which it runs.
    is_running: bool,
    log: Option<Arc<DirtyLog>>,
}

/// The side that serves an access to a region.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Access {
    /// The function has served it. A write to the configuration space caused these events, of which the driver has to
    /// act on [`PciEvent::FunctionLevelReset`] and [`PciEvent::SoftReset`] if its capabilities allow them.
    Served(Vec<PciEvent>),
    /// The driver serves it: its own registers are there.
    Driver,
}

impl Function {
    /// Returns a function with this configuration space, in its power-on state.
    pub fn new(config: PciConfig, bus: Bus) -> Function {
        let messages = Messages::new(&config);
        Function { bus, config, messages, asserted: false, is_permissive: false, is_running: true, log: None }
    }

    /// Returns the same function without the need for a set-up configuration space: DMA does not wait for the bus master bit,
    /// and an interrupt goes to the index that the user has set up, whether it is enabled in the space or not.
    ///
    /// It is for a device whose state runs on at a destination before its user brings the configuration space over.
    #[must_use]
    pub fn permissive(mut self) -> Function {
        self.is_permissive = true;
        self
    }

    /// Returns the values that the guest has set in the configuration space.
    pub fn settings(&self) -> Settings {
        self.config.settings()
    }

    /// Returns the answer to VFIO_DEVICE_GET_INFO, for a device that can be reset.
    pub fn info(&self) -> Info {
        Info::new(DeviceInfoFlags::PCI | DeviceInfoFlags::RESET)
            .num_regions(VFIO_PCI_NUM_REGIONS)
            .num_irqs(VFIO_PCI_NUM_IRQS)
    }

    /// Returns region `index`: a BAR, which the driver may narrow, or the configuration space.
    pub fn region(&self, index: u32) -> Region {
        let size = match index {
            VFIO_PCI_CONFIG_REGION_INDEX => Some(self.config.len()),
            _ => self.config.bar(index).map(Bar::size),
        };
        let flags = RegionInfoFlags::READ | RegionInfoFlags::WRITE;
        size.map_or(Region::absent(0), |size| Region::new(flags, size))
    }

    /// Returns interrupt `index`, as vfio-pci describes it: from the pin and the capabilities.
    pub fn irq(&self, index: u32) -> Irq {
        let messages = IrqInfoFlags::EVENTFD | IrqInfoFlags::NORESIZE;
        let line = IrqInfoFlags::EVENTFD | IrqInfoFlags::MASKABLE | IrqInfoFlags::AUTOMASKED;
        let (flags, count) = match index {
            VFIO_PCI_INTX_IRQ_INDEX => (line, u32::from(self.config.has_interrupt_pin())),
            VFIO_PCI_MSI_IRQ_INDEX => (messages, self.config.msi().map_or(0, |msi| msi.vectors.into())),
            VFIO_PCI_MSIX_IRQ_INDEX => (messages, self.config.msix().map_or(0, |msix| msix.vectors.into())),
            // Every device of PCI Express has the index of errors.
            VFIO_PCI_ERR_IRQ_INDEX => (messages, u32::from(self.config.is_express())),
            _ => (messages, 0),
        };
        Irq::new(if count == 0 { IrqInfoFlags::empty() } else { flags }, count)
    }

    /// Serves a read of a region, or leaves it to the driver.
    ///
    /// EIO for a BAR that does not answer now, as with vfio-pci. EINVAL for an access that lies only in part within
    /// the MSI-X table or its pending bits.
    pub fn read_region(&self, index: u32, offset: u64, data: &mut [u8]) -> Result<Access, Errno> {
        if index == VFIO_PCI_CONFIG_REGION_INDEX {
            self.config.read(offset, data);
            return Ok(Access::Served(Vec::new()));
        }
        self.answers(index)?;
        let served = self.messages.read(index, offset, data)?;
        Ok(if served { Access::Served(Vec::new()) } else { Access::Driver })
    }

    /// Serves a write of a region, or leaves it to the driver. It fails as [`Function::read_region`] does, and with
    /// EINVAL for a write to the MSI-X table that is not of aligned words of 32 bits.
    pub fn write_region(&mut self, index: u32, offset: u64, data: &[u8]) -> Result<Access, Errno> {
        if index == VFIO_PCI_CONFIG_REGION_INDEX {
            let events = self.config.write(offset, data);
            self.settle();
            return Ok(Access::Served(events));
        }
        self.answers(index)?;
        if !self.messages.write(index, offset, data)? {
            return Ok(Access::Driver);
        }
        self.settle();
        Ok(Access::Served(Vec::new()))
    }

    /// Sets whether the device has a cause for an interrupt on the INTx line.
    pub fn set_line(&mut self, asserted: bool) {
        // Most accesses find the line low and leave it so.
        if !asserted && !self.asserted {
            return;
        }
        self.asserted = asserted;
        self.show_line();
    }

    /// Sends the message of a vector, of MSI-X or of MSI, whichever is enabled; holds it while it may not be sent.
    /// With neither enabled it is dropped.
    pub fn send_message(&mut self, vector: u32) {
        self.messages.post(vector, &self.config, self.is_permissive);
        self.settle();
    }

    /// Returns the memory that the device reaches, while the function may start DMA.
    pub fn dma(&self) -> Option<&DmaSpace> {
        may_master(&self.settings(), self.is_permissive).then(|| self.bus.dma())
    }

    /// Follows the device into a migration state, for a driver to call at the end of each arc, and before an arc fails
    /// with [`ArcError::Broken`](crate::ArcError::Broken): the state is then ERROR. While the device does not
    /// run, its line stays as it is and its messages are held; they go out when it runs.
    pub fn enter(&mut self, state: State) {
        self.is_running = state.is_running();
        self.settle();
    }

    /// Brings the function to D0, for a driver whose device is suspended.
    pub fn enter_d0(&mut self) {
        self.config.enter_d0();
        self.settle();
    }

    /// Brings the function to its power-on state, in which the device runs, and ends its dirty log.
    pub fn reset(&mut self) {
        self.stop_log();
        self.power_on();
    }

    /// Brings the function to its power-on state and keeps its dirty log, for a driver's
    /// [`Driver::reset_in_precopy`](crate::Driver::reset_in_precopy).
    pub fn reset_in_precopy(&mut self) {
        self.power_on();
    }

    fn power_on(&mut self) {
        self.config.reset();
        self.messages = Messages::new(&self.config);
        self.asserted = false;
        self.is_running = true;
        self.settle();
    }

    /// Fails with EIO while a BAR does not answer to accesses.
    fn answers(&self, index: u32) -> Result<(), Errno> {
        let bar = self.config.bar(index).filter(|_| index <= VFIO_PCI_BAR5_REGION_INDEX);
        let settings = self.settings();
        let is_memory = bar.ok_or(Errno::EINVAL)?.is_memory();
        let decodes = if is_memory { settings.memory_decoding } else { settings.io_decoding };
        if decodes && settings.power < PowerState::D3Hot { Ok(()) } else { Err(Errno::EIO) }
    }

    /// Applies the current settings to the line and to held messages.
    fn settle(&mut self) {
        let is_disabled = self.settings().intx_disabled;
        if is_disabled {
            // Before the line is shown: a disabled line signals nobody.
            self.bus.interrupts().disable_line(true);
        }
        self.show_line();
        let interrupts = self.bus.interrupts();
        if !is_disabled {
            interrupts.disable_line(false);
        }
        let may_send = self.is_running && may_master(&self.settings(), self.is_permissive);
        self.messages.release(&mut self.config, self.is_permissive, may_send, |index, vector| {
            interrupts.trigger(index, vector);
        });
    }

    /// Shows the line in the status register and to the user, unless the device is stopped.
    fn show_line(&mut self) {
        if !self.is_running {
            return;
        }
        let settings = self.settings();
        let sends_messages =
            settings.msi.is_some_and(|msi| msi.enabled) || settings.msix.is_some_and(|msix| msix.enabled);
        let may_assert = settings.power < PowerState::D3Hot && (self.is_permissive || !sends_messages);
        let level = self.asserted && may_assert;
        self.config.set_interrupt_status(level);
        self.bus.interrupts().set_line(level);
    }
}
