//! The registers and the own state of the `accel` and `legacy` models.

use std::fs::File;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, memfd_create};
use whimbrel_memory::{FileOffset, Memory, SharedBytes};
use whimbrel_models::accel::guest::{GuestDriver, GuestError, Platform, Rings};
use whimbrel_models::accel::{
    CONTROL_ENABLE, Descriptor, REGISTER_COMPLETION_BASE, REGISTER_CONTROL, REGISTER_INTERRUPT_ENABLE,
    REGISTER_QUEUE_BASE, REGISTER_QUEUE_SIZE, STATE_REGION_INDEX,
};
use whimbrel_protocol::Errno;
use whimbrel_uapi::pci::VFIO_PCI_BAR0_REGION_INDEX;
use whimbrel_uapi::type1::DmaMapFlags;
use whimbrel_user::{Device, DmaRegion, Error};

use crate::hooks::RegisterProbe;

/// The probe of the `accel` model, and of `legacy`.
///
/// A change lets the engine execute jobs, in memory that is mapped for their time, and leaves it with an empty queue. A
/// device whose memory somebody else maps gets other registers only.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct AccelProbe;

/// The IOVA of the probe's memory.
const IOVA: u64 = 0x10_0000;
const MEMORY_BYTES: u64 = 0x10_000;
const COMPLETIONS: u64 = IOVA + 0x1000;
const DATA: u64 = IOVA + 0x8000;
const ENTRIES: u32 = 16;
/// Time for a job that the engine has been given, at most.
const JOB_TIMEOUT: Duration = Duration::from_secs(20);
/// Bytes of registers that have a meaning.
const USED_REGISTERS: usize = 0x50;
/// Bytes read at once.
const PIECE: u64 = 64 << 10;

/// The engine and its memory, as its guest's driver sees them.
struct Seat<'a> {
    device: &'a mut dyn Device,
    memory: DmaRegion,
}

impl Seat<'_> {
    fn bytes(&self, address: u64, count: usize) -> Result<SharedBytes<'_>, Error> {
        let bytes = address.checked_sub(IOVA).and_then(|offset| self.memory.bytes(offset, count));
        bytes.ok_or_else(|| Error::unusable(self.device.name(), "an access outside the probe's memory"))
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
        self.bytes(address, data.len())?.copy_to(data);
        Ok(())
    }

    fn write_memory(&mut self, address: u64, data: &[u8]) -> Result<(), Error> {
        self.bytes(address, data.len())?.copy_from(data);
        Ok(())
    }
}

/// Jobs that change each kind of state: the own state at several places, the counters and the digest.
fn jobs(state_bytes: u64, random: &mut fastrand::Rng) -> Vec<Descriptor> {
    let mut jobs = vec![
        Descriptor::fill(random.u64(..), DATA, 0x1000, random.u64(..)),
        Descriptor::checksum(random.u64(..), DATA, 0x1000),
    ];
    for _ in 0..4 {
        let length = (state_bytes / 8).min(4096) & !7;
        let offset = random.u64(..=state_bytes - length) & !7;
        jobs.push(Descriptor::scramble(random.u64(..), offset, length, random.u64(..)));
    }
    jobs
}

/// Lets the engine execute jobs.
fn work(device: &mut dyn Device, memory: &DmaRegion, random: &mut fastrand::Rng) -> Result<(), Error> {
    let state_bytes = device.region_info(STATE_REGION_INDEX)?.size;
    let jobs = jobs(state_bytes, random);
    let name = device.name().to_string();
    let failed = |error: GuestError<Error>| match error {
        GuestError::Access(error) => error,
        error => Error::unusable(&name, error.to_string()),
    };
    let seat = Seat { device, memory: memory.clone() };
    let mut driver = GuestDriver::start(seat, Rings::new(IOVA, COMPLETIONS, ENTRIES)).map_err(failed)?;
    let start = Instant::now();
    for job in jobs {
        let wait = |_: &mut Seat<'_>| {
            thread::sleep(Duration::from_micros(50));
            let is_late = start.elapsed() > JOB_TIMEOUT;
            if is_late { Err(Error::unusable(&name, "the engine does not complete a job")) } else { Ok(()) }
        };
        let completion = driver.execute(&job, wait).map_err(failed)?;
        if !completion.is_success_of(&job) {
            return Err(Error::unusable(&name, "the engine has failed a job"));
        }
    }
    driver.into_platform().write_register(REGISTER_CONTROL, &0_u32.to_le_bytes())
}

fn memory(device: &dyn Device) -> Result<DmaRegion, Error> {
    let created = memfd_create(c"probe", MemfdFlags::CLOEXEC).map(File::from).map_err(Errno::from);
    let sized = created.and_then(|file| {
        let size = file.set_len(MEMORY_BYTES);
        size.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::ENOMEM)).map(|()| file)
    });
    sized
        .and_then(|file| Memory::of_file(FileOffset::new(file, 0), MEMORY_BYTES, true).map(DmaRegion::from))
        .map_err(|errno| Error::unusable(device.name(), format!("no memory for the probe: {errno}")))
}

impl RegisterProbe for AccelProbe {
    fn change(&self, device: &mut dyn Device, seed: u64) -> Result<(), Error> {
        let mut random = fastrand::Rng::with_seed(seed);
        if device.dma_map().is_some() {
            let memory = memory(device)?;
            if let Some(space) = device.dma_map() {
                let rights = DmaMapFlags::READ | DmaMapFlags::WRITE;
                space.map_dma(IOVA, rights, memory.clone())?;
            }
            let result = work(device, &memory, &mut random);
            if let Some(space) = device.dma_map() {
                space.unmap_dma(IOVA, MEMORY_BYTES)?;
            }
            result?;
        }
        let mut write =
            |offset: u64, data: &[u8]| device.write_region(VFIO_PCI_BAR0_REGION_INDEX, offset, data);
        // An enabled queue without jobs.
        write(REGISTER_CONTROL, &0_u32.to_le_bytes())?;
        write(REGISTER_QUEUE_SIZE, &(1_u32 << random.u32(1..=10)).to_le_bytes())?;
        write(REGISTER_QUEUE_BASE, &(random.u64(..1 << 40) << 6).to_le_bytes())?;
        write(REGISTER_COMPLETION_BASE, &(random.u64(..1 << 40) << 5).to_le_bytes())?;
        write(REGISTER_CONTROL, &CONTROL_ENABLE.to_le_bytes())?;
        write(REGISTER_INTERRUPT_ENABLE, &random.u32(..4).to_le_bytes())
    }

    fn look(&self, device: &mut dyn Device) -> Result<Vec<u8>, Error> {
        let mut seen = vec![0; USED_REGISTERS];
        device.read_region(VFIO_PCI_BAR0_REGION_INDEX, 0, &mut seen)?;
        let size = device.region_info(STATE_REGION_INDEX)?.size;
        let mut offset = 0;
        while offset < size {
            let mut piece = vec![0; (size - offset).min(PIECE) as usize];
            device.read_region(STATE_REGION_INDEX, offset, &mut piece)?;
            offset += piece.len() as u64;
            seen.extend(piece);
        }
        Ok(seen)
    }
}
