//! A PCI serial card compatible with the kernel's mtty sample: one or two 16550 ports, each an I/O region of 8 bytes.
//!
//! Its migration stream is mtty's (60 bytes for one port, 96 for two): the kernel loads a state saved here, and the
//! model loads the kernel's. It deliberately differs from mtty:
//!
//! - A header that does not match is rejected with EINVAL at once, and only a reset then leads out of RESUMING. mtty
//!   returns EFAULT but counts the bytes, so that leaving RESUMING succeeds.
//! - Invalid contents, such as a FIFO index past its end, are rejected. mtty loads them.
//! - A reset restores the power-on values of the registers, and the device info has the reset flag. mtty only ends the
//!   session.
//! - An interrupt raised while INTx is masked is delivered on unmask, unless the guest has seen it by then: the line
//!   stays asserted until the guest reads the interrupt identification or no cause is left. mtty loses the interrupt.
//!   A loaded state with a pending cause asserts the line too.
//! - INTx and MSI are set up as in vfio-pci. mtty drops the mask together with the eventfd, and has no unmask eventfd.
//! - Missing interrupts (MSI-X, ERR, REQ) have a count of 0, and the configuration space has 256 bytes. mtty returns
//!   EINVAL and has 255 bytes; [`Answers::Mtty`] does the same, for comparison.
//! - The interrupt status bit in configuration space follows the INTx line. mtty never sets it.
//! - Three registers are closer to a real 16550: a full FIFO can be read, one interrupt cause is identified at a time,
//!   and an empty receiver is not a cause.
//!
//! ```
//! use whimbrel_device::DeviceFile;
//! use whimbrel_models::{Ports, Serial, SerialConfig};
//!
//! let config = SerialConfig::default().ports(Ports::One);
//! let device = DeviceFile::new("serial", |bus| Serial::new(config, bus));
//! for byte in b"loop" {
//!     device.write_region(0, 0, &[*byte])?;
//! }
//! let mut received = [0; 4];
//! for byte in &mut received {
//!     device.read_region(0, 0, std::slice::from_mut(byte))?;
//! }
//! assert_eq!(&received, b"loop");
//! # Ok::<(), whimbrel_device::Errno>(())
//! ```

mod migration;
mod port;
mod stream;

use whimbrel_device::pci::config::{Bar, InterruptPin, PciConfig};
use whimbrel_device::pci::function::{Access, Function};
use whimbrel_device::{Bus, Context, DmaLogging, Driver, Errno, Info, Irq, Migration, Region};
use whimbrel_uapi::device::{IrqInfoFlags, RegionInfoFlags};
use whimbrel_uapi::pci::{VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_MSI_IRQ_INDEX, VFIO_PCI_MSIX_IRQ_INDEX};

use self::migration::Session;
use self::port::{IDENTIFICATION, Interrupt, Port, REGISTERS};

/// mtty's configuration space lacks the last byte.
const MTTY_CONFIG_SIZE: u64 = 0xff;

/// The number of ports of a card.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a card has no more ports")]
pub enum Ports {
    /// One port, in region 0.
    #[default]
    One,
    /// Two ports, in regions 0 and 1.
    Two,
}

impl Ports {
    /// Returns the number.
    pub const fn count(self) -> usize {
        match self {
            Ports::One => 1,
            Ports::Two => 2,
        }
    }
}

/// The behaviour of a card for missing interrupts and for the size of its configuration space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Answers {
    /// As in vfio-pci: a count of 0 for a missing interrupt, 256 bytes of configuration space.
    #[default]
    VfioPci,
    /// As in mtty: EINVAL, and 255 bytes. Some programs fail on either.
    Mtty,
}

impl Answers {
    /// All variants.
    pub const ALL: [Answers; 2] = [Answers::VfioPci, Answers::Mtty];

    /// The name, as in a model's settings.
    pub const fn name(self) -> &'static str {
        match self {
            Answers::VfioPci => "vfio-pci",
            Answers::Mtty => "mtty",
        }
    }
}

/// The settings of a [`Serial`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SerialConfig {
    /// Number of ports.
    pub ports: Ports,
    /// The behaviour where vfio-pci and mtty differ.
    pub answers: Answers,
}

impl SerialConfig {
    /// Sets [`SerialConfig::ports`].
    #[must_use]
    pub const fn ports(self, ports: Ports) -> SerialConfig {
        SerialConfig { ports, ..self }
    }

    /// Sets [`SerialConfig::answers`].
    #[must_use]
    pub const fn answers(self, answers: Answers) -> SerialConfig {
        SerialConfig { answers, ..self }
    }
}

/// A serial card.
#[derive(Debug)]
pub struct Serial {
    config: SerialConfig,
    bus: Bus,
    function: Function,
    ports: Vec<Port>,
    /// For each port, whether it asserts the INTx line.
    asserted: Vec<bool>,
    session: Session,
}

impl Serial {
    /// Returns a card in its power-on state.
    pub fn new(config: SerialConfig, bus: Bus) -> Serial {
        Serial {
            config,
            function: Function::new(pci_config(config.ports), bus.clone()),
            bus,
            ports: vec![Port::default(); config.ports.count()],
            asserted: vec![false; config.ports.count()],
            session: Session::None,
        }
    }

    /// Updates the line after a port access: raises an interrupt, or deasserts once the guest has `seen` the cause.
    fn interrupt(&mut self, region: u32, interrupt: Interrupt, seen: bool) {
        let port = region as usize;
        match interrupt {
            Interrupt::Raise => {
                self.asserted[port] = true;
                self.bus.interrupts().trigger(VFIO_PCI_MSI_IRQ_INDEX, 0);
            }
            Interrupt::None if seen || !self.ports[port].has_cause() => self.asserted[port] = false,
            Interrupt::None => return,
        }
        self.show_line();
    }

    /// Brings the ports to their power-on state.
    fn power_on(&mut self) {
        self.ports.fill(Port::default());
        self.asserted.fill(false);
    }

    fn show_line(&mut self) {
        self.function.set_line(self.asserted.contains(&true));
    }

    fn port(&mut self, region: u32) -> Result<&mut Port, Errno> {
        self.ports.get_mut(region as usize).ok_or(Errno::EINVAL)
    }
}

/// Returns mtty's configuration space, including its made-up IDs. As in mtty, the base address registers and the
/// interrupt line are writable.
fn pci_config(ports: Ports) -> PciConfig {
    const VENDOR: u16 = 0x4348;
    const DEVICE: u16 = 0x3253;
    const IO_SPACE: u16 = 0x0001;
    let mut config = PciConfig::builder(VENDOR, DEVICE)
        .subsystem(VENDOR, DEVICE)
        // A serial controller compatible with a 16550.
        .class(0x07, 0x00, 0x02)
        .revision(0x10)
        .fixed_command(IO_SPACE)
        .medium_timing()
        .interrupt_pin(InterruptPin::A)
        .bytes(0x40, &[0x23, 0x00, 0x00, 0x80, 0x23])
        .bytes(0x48, &[0x23])
        .bytes(0x4c, &[0x23])
        .bytes(0x60, b"PCI Serial/UART");
    for port in 0..ports.count() {
        config = config.bar(port, Bar::Io { size: REGISTERS as u32 });
    }
    config.build().expect("two sets of 8 ports and bytes that lie apart")
}

/// Splits a region access as mtty does: four bytes where they are aligned, then two, then one. Each part accesses only
/// the register at its own offset.
fn accesses(offset: u64, length: usize) -> impl Iterator<Item = (u64, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let (at, left) = (offset + done as u64, length - done);
        let size = match left {
            0 => return None,
            4.. if at % 4 == 0 => 4,
            2.. if at % 2 == 0 => 2,
            _ => 1,
        };
        let bytes = done..done + size;
        done += size;
        Some((at, bytes))
    })
}

impl Driver for Serial {
    fn info(&self) -> Info {
        self.function.info()
    }

    fn region(&self, index: u32) -> Result<Region, Errno> {
        let region = self.function.region(index);
        let size = match (index, self.config.answers) {
            (VFIO_PCI_CONFIG_REGION_INDEX, Answers::Mtty) => MTTY_CONFIG_SIZE,
            _ => region.size,
        };
        // mtty sets the flags even on missing regions.
        Ok(region.flags(RegionInfoFlags::READ | RegionInfoFlags::WRITE).size(size))
    }

    fn irq(&self, index: u32) -> Result<Irq, Errno> {
        match index {
            // mtty has MSI without the capability in its configuration space.
            VFIO_PCI_MSI_IRQ_INDEX => Ok(Irq::new(IrqInfoFlags::EVENTFD | IrqInfoFlags::NORESIZE, 1)),
            VFIO_PCI_MSIX_IRQ_INDEX.. if self.config.answers == Answers::Mtty => Err(Errno::EINVAL),
            _ => Ok(self.function.irq(index)),
        }
    }

    fn read_region(&mut self, _: &Context, index: u32, offset: u64, data: &mut [u8]) -> Result<usize, Errno> {
        if let Access::Served(_) = self.function.read_region(index, offset, data)? {
            return Ok(data.len());
        }
        data.fill(0);
        for (register, bytes) in accesses(offset, data.len()) {
            let (value, interrupt) = self.port(index)?.read(register);
            data[bytes.start] = value;
            self.interrupt(index, interrupt, register == IDENTIFICATION);
        }
        Ok(data.len())
    }

    fn write_region(&mut self, _: &Context, index: u32, offset: u64, data: &[u8]) -> Result<usize, Errno> {
        if let Access::Served(_) = self.function.write_region(index, offset, data)? {
            return Ok(data.len());
        }
        for (register, bytes) in accesses(offset, data.len()) {
            let interrupt = self.port(index)?.write(register, data[bytes.start]);
            self.interrupt(index, interrupt, false);
        }
        Ok(data.len())
    }

    fn reset(&mut self, _: &Context) -> Result<(), Errno> {
        self.function.reset();
        self.power_on();
        self.session = Session::None;
        Ok(())
    }

    fn can_reset_in_precopy(&self) -> bool {
        true
    }

    /// The header is all that is read in pre-copy, and it does not depend on the ports.
    fn reset_in_precopy(&mut self, _: &Context) -> Result<(), Errno> {
        self.function.reset_in_precopy();
        self.power_on();
        Ok(())
    }

    fn migration(&mut self) -> Option<&mut dyn Migration> {
        Some(self)
    }

    fn dma_logging(&mut self) -> Option<&mut dyn DmaLogging> {
        Some(self)
    }
}
