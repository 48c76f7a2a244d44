//! A PCI serial card as the kernel's mtty sample is: one or two 16550 ports, each an I/O region of 8 bytes.
//!
//! Its migration stream is mtty's (60 bytes for one port, 96 for two), so that a state saved here is loaded
//! by a kernel and the other way round. It differs from mtty on purpose in this:
//!
//! - A head that does not fit is refused with EINVAL as soon as it is seen, and the load can then only be
//!   left by a reset. (mtty answers EFAULT but counts the bytes, so that leaving RESUMING then succeeds.)
//! - Contents that no port can have, such as a FIFO index past its end, are refused. mtty loads them.
//! - Reset brings the registers to their values after power-on, and the device says that it can be reset.
//!   mtty only ends the session.
//! - An interrupt that comes while INTx is masked is told when it is unmasked, if the guest has not seen it by
//!   then: the line stays asserted until the guest reads the interrupt identification or no cause is left. mtty
//!   loses it. A state that is loaded with a cause in it asserts the line too.
//! - INTx, MSI and what is set up of them answer as vfio-pci's. mtty forgets the mask with the eventfd, and has
//!   none that unmasks.
//! - The interrupts that it lacks (MSI-X, ERR, REQ) have a count of 0, and its configuration space has 256 bytes.
//!   mtty answers EINVAL and gives 255 bytes; [`Answers::Mtty`] does the same, to compare the two.
//! - The interrupt status bit of its configuration space follows the INTx line. mtty never sets it.
//! - Three registers answer more like a 16550's: a full FIFO can be read, one interrupt cause is identified
//!   at a time, and an empty receiver is no cause.
//!
//! ```
//! use whimbrel_device::{Bus, DeviceFile};
//! use whimbrel_models::{Ports, Serial, SerialConfig};
//!
//! let bus = Bus::new();
//! let serial = Serial::new(SerialConfig { ports: Ports::One, ..SerialConfig::default() }, bus.clone());
//! let device = DeviceFile::new("serial", bus, Box::new(serial));
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
use whimbrel_device::{Bus, DmaLogging, Driver, Errno, Info, Irq, Migration, Region};
use whimbrel_uapi::device::{IrqInfoFlags, RegionInfoFlags};
use whimbrel_uapi::pci::{VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_MSI_IRQ_INDEX, VFIO_PCI_MSIX_IRQ_INDEX};

use self::migration::Session;
use self::port::{IDENTIFICATION, Interrupt, Port, REGISTERS};

/// mtty gives all but the last byte of a configuration space.
const MTTY_CONFIG_SIZE: u64 = 0xff;

/// How many ports a card has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ports {
    /// One port, in region 0.
    #[default]
    One,
    /// Two ports, in regions 0 and 1.
    Two,
}

impl Ports {
    /// The number.
    pub const fn count(self) -> usize {
        match self {
            Ports::One => 1,
            Ports::Two => 2,
        }
    }
}

/// Whose answers a card gives about interrupts that it lacks and about the size of its configuration space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Answers {
    /// Those of vfio-pci: a count of 0 for an interrupt that it lacks, 256 bytes of configuration space.
    #[default]
    VfioPci,
    /// Those of mtty: EINVAL, and 255 bytes. Some users take either for a broken device.
    Mtty,
}

impl Answers {
    /// All of them.
    pub const ALL: [Answers; 2] = [Answers::VfioPci, Answers::Mtty];

    /// The name, as in a model's settings.
    pub const fn name(self) -> &'static str {
        match self {
            Answers::VfioPci => "vfio-pci",
            Answers::Mtty => "mtty",
        }
    }
}

/// What a serial card is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SerialConfig {
    /// How many ports it has.
    pub ports: Ports,
    /// Whose answers it gives where vfio-pci and mtty differ.
    pub answers: Answers,
}

/// A serial card.
#[derive(Debug)]
pub struct Serial {
    config: SerialConfig,
    bus: Bus,
    function: Function,
    ports: Vec<Port>,
    /// Whether each port asserts the INTx line.
    asserted: Vec<bool>,
    session: Session,
}

impl Serial {
    /// A card as after power-on.
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

    /// After an access to a port: interrupts, or stops asserting the line once the guest has `seen` the cause.
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

    fn show_line(&mut self) {
        self.function.set_line(self.asserted.contains(&true));
    }

    fn port(&mut self, region: u32) -> Result<&mut Port, Errno> {
        self.ports.get_mut(region as usize).ok_or(Errno::EINVAL)
    }
}

/// What mtty shows, down to the identity of a card that does not exist. It takes writes as mtty does: of the
/// base address registers and the interrupt line.
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

/// The single accesses that one region access is made of, as mtty cuts it: four bytes where they are aligned,
/// then two, then one. Each touches only the register at its own offset.
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
        // mtty gives the flags also to regions that are not there.
        Ok(Region { flags: RegionInfoFlags::READ | RegionInfoFlags::WRITE, size, ..region })
    }

    fn irq(&self, index: u32) -> Result<Irq, Errno> {
        match index {
            // mtty sends it without a capability in its configuration space.
            VFIO_PCI_MSI_IRQ_INDEX => {
                Ok(Irq { flags: IrqInfoFlags::EVENTFD | IrqInfoFlags::NORESIZE, count: 1 })
            }
            VFIO_PCI_MSIX_IRQ_INDEX.. if self.config.answers == Answers::Mtty => Err(Errno::EINVAL),
            _ => Ok(self.function.irq(index)),
        }
    }

    fn read_region(&mut self, index: u32, offset: u64, data: &mut [u8]) -> Result<usize, Errno> {
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

    fn write_region(&mut self, index: u32, offset: u64, data: &[u8]) -> Result<usize, Errno> {
        if let Access::Served(_) = self.function.write_region(index, offset, data)? {
            return Ok(data.len());
        }
        for (register, bytes) in accesses(offset, data.len()) {
            let interrupt = self.port(index)?.write(register, data[bytes.start]);
            self.interrupt(index, interrupt, false);
        }
        Ok(data.len())
    }

    fn reset(&mut self) -> Result<(), Errno> {
        self.function.reset();
        self.ports.fill(Port::default());
        self.asserted.fill(false);
        self.session = Session::None;
        Ok(())
    }

    fn migration(&mut self) -> Option<&mut dyn Migration> {
        Some(self)
    }

    fn dma_logging(&mut self) -> Option<&mut dyn DmaLogging> {
        Some(self)
    }
}
