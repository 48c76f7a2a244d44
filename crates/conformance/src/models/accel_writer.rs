//! The DMA engine's writes, by jobs of the driver that a guest runs for it.

use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use whimbrel_models::accel::Descriptor;
use whimbrel_models::accel::guest::{GuestDriver, GuestError, Platform, Progress, Rings};
use whimbrel_protocol::Errno;
use whimbrel_uapi::pci::{VFIO_PCI_BAR0_REGION_INDEX, VFIO_PCI_CONFIG_REGION_INDEX};
use whimbrel_uapi::type1::DmaMapFlags;
use whimbrel_user::{Device, DmaRegion, Error};

use crate::hooks::DmaWriter;

/// Entries of each ring.
const ENTRIES: u32 = 16;
/// Pages at the start of the memory for the rings: one for submissions, one for completions.
const OWN_PAGES: u64 = 2;
const PAGE: u64 = 4096;
/// Bytes that a job writes.
const JOB_BYTES: u64 = 64;
/// Offset of the command register in configuration space, and its bits for memory space and bus master.
const COMMAND: u64 = 4;
const COMMAND_ENABLE: u16 = 0x0006;
/// Timeout for a job.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pause between two looks for a completion.
const TICK: Duration = Duration::from_micros(100);

/// Makes the model `accel` write to memory: in this process, behind vfio-user, or wherever its registers can be reached.
#[derive(Debug, Default)]
pub struct AccelWriter(Mutex<Option<Engine>>);

/// The engine's memory, and the position of its driver in the rings.
#[derive(Debug)]
struct Engine {
    iova: u64,
    memory: DmaRegion,
    progress: Progress,
}

impl AccelWriter {
    /// Returns a writer for one device at a time.
    pub fn new() -> AccelWriter {
        AccelWriter::default()
    }
}

impl DmaWriter for AccelWriter {
    fn prepare(&self, device: &mut dyn Device, iova: u64, memory: &DmaRegion) -> Result<(), Error> {
        let name = device.name().to_string();
        let rights = DmaMapFlags::READ | DmaMapFlags::WRITE;
        match device.dma_map() {
            Some(space) => space.map_dma(iova, rights, memory.clone())?,
            None => return Err(Error::unusable(&name, "no memory can be mapped for the device")),
        }
        enable(device)?;
        let seat = Seat { device, iova, memory };
        let driver = GuestDriver::start(seat, rings(iova)).map_err(|error| failed(&name, error))?;
        let progress = driver.progress();
        *self.0.lock() = Some(Engine { iova, memory: memory.clone(), progress });
        Ok(())
    }

    fn write(&self, device: &mut dyn Device, pages: &[u64]) -> Result<(), Error> {
        let name = device.name().to_string();
        let mut engine = self.0.lock();
        let Some(Engine { iova, memory, progress }) = &mut *engine else {
            return Err(Error::unusable(&name, "the engine has no rings: prepare it first"));
        };
        let seat = Seat { device, iova: *iova, memory };
        let mut driver = GuestDriver::resume(seat, rings(*iova), *progress);
        let result = pages.iter().try_for_each(|page| fill(&mut driver, &name, *page));
        *progress = driver.progress();
        result
    }

    fn own_pages(&self) -> u64 {
        OWN_PAGES
    }
}

fn rings(iova: u64) -> Rings {
    Rings::new(iova, iova + PAGE, ENTRIES)
}

/// Enables the engine's registers and DMA, as a guest's kernel does.
fn enable(device: &mut dyn Device) -> Result<(), Error> {
    let mut command = [0; 2];
    device.read_region(VFIO_PCI_CONFIG_REGION_INDEX, COMMAND, &mut command)?;
    let command = u16::from_le_bytes(command) | COMMAND_ENABLE;
    device.write_region(VFIO_PCI_CONFIG_REGION_INDEX, COMMAND, &command.to_le_bytes())
}

/// Has some bytes of a page filled, and waits until they are.
fn fill(driver: &mut GuestDriver<Seat<'_>>, name: &str, page: u64) -> Result<(), Error> {
    let tag = driver.progress().submitted;
    let job = Descriptor::fill(tag, page, JOB_BYTES, tag ^ page);
    driver.submit(&job).map_err(|error| failed(name, error))?;
    let start = Instant::now();
    loop {
        match driver.take_completion().map_err(|error| failed(name, error))? {
            Some(completion) if completion.is_success_of(&job) => return Ok(()),
            Some(completion) => {
                let what = format!("a job that fills {page:#x} ended with status {}", completion.status);
                return Err(Error::unusable(name, what));
            }
            None if start.elapsed() < PATIENCE => thread::sleep(TICK),
            None => return Err(Error::request(name, format!("job that fills {page:#x}"), Errno::ETIMEDOUT)),
        }
    }
}

fn failed(name: &str, error: GuestError<Error>) -> Error {
    match error {
        GuestError::Access(error) => error,
        other => Error::unusable(name, other.to_string()),
    }
}

/// The engine and the memory that it shares with its driver.
struct Seat<'a> {
    device: &'a mut dyn Device,
    iova: u64,
    memory: &'a DmaRegion,
}

impl Seat<'_> {
    fn outside(&self) -> Error {
        Error::unusable(self.device.name(), "a ring lies outside of the memory")
    }
}

impl Platform for Seat<'_> {
    type Error = Error;

    fn read_register(&mut self, offset: u64, data: &mut [u8]) -> Result<(), Error> {
        self.device.read_region(VFIO_PCI_BAR0_REGION_INDEX, offset, data)
    }

    fn write_register(&mut self, offset: u64, data: &[u8]) -> Result<(), Error> {
        self.device.write_region(VFIO_PCI_BAR0_REGION_INDEX, offset, data)
    }

    fn read_memory(&mut self, address: u64, data: &mut [u8]) -> Result<(), Error> {
        let offset = address.checked_sub(self.iova).ok_or_else(|| self.outside())?;
        let bytes = self.memory.bytes(offset, data.len()).ok_or_else(|| self.outside())?;
        bytes.copy_to(data);
        Ok(())
    }

    fn write_memory(&mut self, address: u64, data: &[u8]) -> Result<(), Error> {
        let offset = address.checked_sub(self.iova).ok_or_else(|| self.outside())?;
        let bytes = self.memory.bytes(offset, data.len()).ok_or_else(|| self.outside())?;
        bytes.copy_from(data);
        Ok(())
    }
}
