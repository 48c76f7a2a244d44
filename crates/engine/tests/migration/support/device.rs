//! A device made for faults: small, every kind of migration support, and each request fails when a test says so.
//!
//! Its state is a list of bytes. The stream is `initial` bytes of 0xaa, any number of 0xbb for state that changes while
//! the device runs, and then the image: 0xcc, a length, the bytes, their sum.

use std::sync::Arc;
use std::time::Duration;

use whimbrel_device::wrap::migration_region::{Layout, MigrationRegion, Version};
use whimbrel_device::{
    ArcError, Context, DeviceFile, DeviceInfoFlags, DmaLogging, Driver, Errno, FileOffset, Info, Migration,
    MigrationFlags, Next, PrecopyReport, Region, RegionInfoFlags, State,
};
use whimbrel_memory::DirtyLog;
use whimbrel_protocol::dirty::{DirtyReport, LoggingRanges};
use whimbrel_protocol::precopy::PrecopyBytes;
use whimbrel_user::{Device, Local, region};

use super::control::{At, Control, History};

/// What a device is like.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) flags: MigrationFlags,
    pub(crate) logging: bool,
    /// Bytes of its state at power-on, all zero.
    pub(crate) size: usize,
    /// Bytes of initial pre-copy data.
    pub(crate) initial: u64,
    /// The initial data comes one byte at a time, and after each nothing for now.
    pub(crate) drips: bool,
    /// What MIG_DATA_SIZE says instead of the truth.
    pub(crate) claims: Option<u64>,
    /// Pages of memory from 0 on that it writes to while it runs; none if 0.
    pub(crate) dma_pages: u64,
    pub(crate) regions: u32,
    /// It is a PCI device, with a configuration space.
    pub(crate) has_config: bool,
    /// It migrates through a region of this layout.
    pub(crate) region: Option<Layout>,
}

impl Default for Shape {
    fn default() -> Shape {
        Shape {
            flags: MigrationFlags::STOP_COPY | MigrationFlags::P2P | MigrationFlags::PRE_COPY,
            logging: true,
            size: 16,
            initial: 5,
            drips: false,
            claims: None,
            dma_pages: 0,
            regions: 2,
            has_config: false,
            region: None,
        }
    }
}

/// The index of the configuration space.
const CONFIG: u32 = 7;
const CONFIG_BYTES: usize = 256;

/// A configuration space at power-on.
fn powered_on() -> [u8; CONFIG_BYTES] {
    let mut space = [0; CONFIG_BYTES];
    space[..4].copy_from_slice(&[0x34, 0x12, 0x01, 0x00]);
    space
}

struct TestDriver {
    shape: Shape,
    config: [u8; CONFIG_BYTES],
    control: Control,
    initial_left: u64,
    dirty_left: u64,
    dry: bool,
    image: Vec<u8>,
    at: usize,
    loading: Vec<u8>,
    log: Option<Arc<DirtyLog>>,
    random: u64,
}

/// Opens a device of this shape in this process.
pub(crate) fn open(name: &str, shape: &Shape) -> (Local, Control) {
    let (device, control) = open_file(name, shape, 0, &History::default());
    (Local::new(device), control)
}

/// Opens the device of this number of a set that shares a history, as its user does who takes any device, with its driver
/// side.
pub(crate) fn open_in(
    name: &str,
    shape: &Shape,
    number: usize,
    history: &History,
) -> (Box<dyn Device>, DeviceFile, Control) {
    let (file, control) = open_file(name, shape, number, history);
    let version = shape.region.as_ref().map_or(Version::V1, Layout::version);
    let device = region::adapt_as(Box::new(Local::new(file.clone())), version).unwrap();
    (device, file, control)
}

/// Opens a device of this shape as its user does who takes any device, with its driver side.
pub(crate) fn open_any(name: &str, shape: &Shape) -> (Box<dyn Device>, DeviceFile, Control) {
    open_in(name, shape, 0, &History::default())
}

fn open_file(name: &str, shape: &Shape, number: usize, history: &History) -> (DeviceFile, Control) {
    let control = Control::new(shape.size, number, history);
    let driver = TestDriver {
        shape: shape.clone(),
        config: powered_on(),
        control: control.clone(),
        initial_left: 0,
        dirty_left: 0,
        dry: false,
        image: Vec::new(),
        at: 0,
        loading: Vec::new(),
        log: None,
        random: 1,
    };
    let driver: Box<dyn Driver> = match &shape.region {
        None => Box::new(driver),
        Some(layout) => {
            let region = MigrationRegion::new(driver, layout.clone()).unwrap();
            Box::new(Watched { region, control: control.clone() })
        }
    };
    (DeviceFile::new(name, |_| driver), control)
}

/// A device with a migration region, each access to which fails when a test says so.
struct Watched {
    region: MigrationRegion,
    control: Control,
}

impl Watched {
    fn pass(&self, index: u32) -> Result<(), Errno> {
        if index == self.region.index() { self.control.pass_request(At::Region) } else { Ok(()) }
    }
}

impl Driver for Watched {
    fn info(&self) -> Info {
        self.region.info()
    }

    fn region(&self, index: u32) -> Result<Region, Errno> {
        self.region.region(index)
    }

    fn read_region(
        &mut self,
        context: &Context,
        index: u32,
        offset: u64,
        data: &mut [u8],
    ) -> Result<usize, Errno> {
        self.pass(index)?;
        self.region.read_region(context, index, offset, data)
    }

    fn write_region(
        &mut self,
        context: &Context,
        index: u32,
        offset: u64,
        data: &[u8],
    ) -> Result<usize, Errno> {
        self.pass(index)?;
        self.region.write_region(context, index, offset, data)
    }

    fn mmap(&mut self, context: &Context, index: u32, offset: u64, length: u64) -> Result<FileOffset, Errno> {
        self.region.mmap(context, index, offset, length)
    }

    fn reset(&mut self, context: &Context) -> Result<(), Errno> {
        self.region.reset(context)
    }

    fn advance(&mut self, context: &Context) -> Next {
        self.region.advance(context)
    }
}

impl TestDriver {
    fn image(&self) -> Vec<u8> {
        let state = self.control.state();
        let sum = state.iter().fold(0u8, |sum, byte| sum.wrapping_mul(31).wrapping_add(*byte));
        [&[0xcc], (state.len() as u32).to_le_bytes().as_slice(), &state, &[sum]].concat()
    }

    /// Takes what was written as the state, or refuses it.
    fn judge(&mut self) -> Result<(), Errno> {
        let head = self.loading.iter().position(|byte| ![0xaa, 0xbb].contains(byte)).ok_or(Errno::EINVAL)?;
        let fresh = self.control.state();
        let state = self.loading[head..].get(5..5 + fresh.len()).ok_or(Errno::EINVAL)?.to_vec();
        self.control.set_state(&state);
        if self.loading[head..] == self.image() {
            return Ok(());
        }
        self.control.set_state(&fresh);
        Err(Errno::EINVAL)
    }
}

impl Driver for TestDriver {
    fn info(&self) -> Info {
        if self.shape.has_config {
            return Info::new(DeviceInfoFlags::RESET | DeviceInfoFlags::PCI).num_regions(9).num_irqs(5);
        }
        Info::new(DeviceInfoFlags::RESET).num_regions(self.shape.regions)
    }

    fn region(&self, index: u32) -> Result<Region, Errno> {
        match (self.shape.has_config, index) {
            (false, _) => Err(Errno::EINVAL),
            (true, CONFIG) => {
                Ok(Region::new(RegionInfoFlags::READ | RegionInfoFlags::WRITE, CONFIG_BYTES as u64))
            }
            (true, _) => Ok(Region::absent(0)),
        }
    }

    fn read_region(&mut self, _: &Context, _: u32, offset: u64, data: &mut [u8]) -> Result<usize, Errno> {
        self.control.pass_request(At::ReadConfig)?;
        let at = offset as usize;
        data.copy_from_slice(&self.config[at..at + data.len()]);
        Ok(data.len())
    }

    fn write_region(&mut self, _: &Context, _: u32, offset: u64, data: &[u8]) -> Result<usize, Errno> {
        self.control.pass_request(At::WriteConfig)?;
        let at = offset as usize;
        self.config[at..at + data.len()].copy_from_slice(data);
        Ok(data.len())
    }

    fn reset(&mut self, _: &Context) -> Result<(), Errno> {
        self.control.pass_request(At::Reset)?;
        self.config = powered_on();
        self.control.set_state(&vec![0; self.shape.size]);
        Ok(())
    }

    fn can_reset_in_precopy(&self) -> bool {
        true
    }

    fn reset_in_precopy(&mut self, context: &Context) -> Result<(), Errno> {
        // More state that changes, for the reader to find.
        self.dirty_left += 2;
        self.reset(context)
    }

    fn migration(&mut self) -> Option<&mut dyn Migration> {
        if self.shape.flags.is_empty() { None } else { Some(self) }
    }

    fn dma_logging(&mut self) -> Option<&mut dyn DmaLogging> {
        if self.shape.logging { Some(self) } else { None }
    }

    fn advance(&mut self, context: &Context) -> Next {
        if self.shape.dma_pages == 0 {
            return Next::Idle;
        }
        for _ in 0..8 {
            self.random =
                self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let address = (self.random >> 33) % self.shape.dma_pages * 4096 + (self.random >> 20) % 4000;
            if context.bus().dma().write(address, &self.random.to_le_bytes()).is_ok() {
                self.control.wrote(self.random.to_le_bytes()[7]);
            }
        }
        Next::At(context.now() + Duration::from_micros(500))
    }
}

impl Migration for TestDriver {
    fn flags(&self) -> MigrationFlags {
        self.shape.flags
    }

    fn arc(&mut self, context: &Context, from: State, to: State) -> Result<(), ArcError> {
        assert_eq!(from, context.state(), "the core walks from where the device is");
        self.control.pass(At::Arc(from, to))?;
        match (from, to) {
            (_, State::PreCopy) if !from.is_saving() => {
                (self.initial_left, self.dirty_left) = (self.shape.initial, 3);
                self.image.clear();
            }
            (_, State::StopCopy) => (self.image, self.at) = (self.image(), 0),
            (_, State::Resuming) => self.loading.clear(),
            (State::Resuming, State::Stop) => self.judge()?,
            _ => {}
        }
        self.control.done(At::Arc(from, to));
        Ok(())
    }

    fn data_size(&mut self, _: &Context) -> Result<u64, Errno> {
        self.control.pass_request(At::DataSize)?;
        Ok(self.shape.claims.unwrap_or(self.shape.size as u64 + 6))
    }

    fn read(&mut self, context: &Context, buffer: &mut [u8]) -> Result<usize, Errno> {
        self.control.pass_request(At::Read(context.state()))?;
        if self.shape.drips && self.initial_left > 0 {
            self.dry = !self.dry;
            if !self.dry {
                return Ok(0);
            }
            self.initial_left -= 1;
            buffer[0] = 0xaa;
            return Ok(1);
        }
        for (left, byte) in [(&mut self.initial_left, 0xaa), (&mut self.dirty_left, 0xbb)] {
            if *left > 0 {
                // Two reads at least, so that a reader that stops after the first is found out.
                let count = (*left).div_ceil(2).min(buffer.len() as u64) as usize;
                buffer[..count].fill(byte);
                *left -= count as u64;
                return Ok(count);
            }
        }
        let count = (self.image.len() - self.at).min(buffer.len());
        buffer[..count].copy_from_slice(&self.image[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }

    fn write(&mut self, _: &Context, data: &[u8]) -> Result<usize, Errno> {
        self.control.pass_request(At::Write)?;
        if self.loading.len() + data.len() > self.shape.size + self.shape.initial as usize + 4096 {
            return Err(Errno::ENOMEM);
        }
        self.loading.extend_from_slice(data);
        Ok(data.len())
    }

    fn precopy(&mut self, _: &Context) -> Result<PrecopyReport, Errno> {
        self.control.pass_request(At::Precopy)?;
        let bytes = PrecopyBytes { initial: self.initial_left, dirty: self.dirty_left };
        Ok(PrecopyReport::from(bytes))
    }
}

impl DmaLogging for TestDriver {
    fn start(&mut self, context: &Context, ranges: &LoggingRanges) -> Result<u64, Errno> {
        self.control.pass_request(At::LogStart)?;
        if self.log.is_some() {
            return Err(Errno::EINVAL);
        }
        let log = Arc::new(DirtyLog::new(ranges)?);
        context.bus().dma().set_log(Some(log.clone()));
        self.log = Some(log);
        self.control.set_logging(true);
        Ok(4096)
    }

    fn stop(&mut self, context: &Context) -> Result<(), Errno> {
        self.control.pass_request(At::LogStop)?;
        context.bus().dma().set_log(None);
        self.log = None;
        self.control.set_logging(false);
        Ok(())
    }

    fn report(&mut self, _: &Context, report: &mut DirtyReport<'_>) -> Result<(), Errno> {
        self.control.pass_request(At::LogReport)?;
        self.log.as_ref().ok_or(Errno::EINVAL)?.report(report);
        Ok(())
    }
}
