//! A guest for tests: memory, and the driver of one engine's queue.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{MemfdFlags, memfd_create};
use whimbrel_device::{Bus, DataFile, DeviceFile, Errno, Next, State};
use whimbrel_memory::FileOffset;
use whimbrel_models::accel::guest::{GuestDriver, Platform, Rings};
use whimbrel_models::accel::{self, Accel, AccelConfig, Completion, Descriptor};
use whimbrel_uapi::type1::DmaMapFlags;

/// Where the memory is in the device's eyes.
pub(crate) const BASE: u64 = 0x10_0000;
/// Its rings.
pub(crate) const SUBMISSIONS: u64 = BASE;
pub(crate) const COMPLETIONS: u64 = BASE + 0x8000;
/// Everything else.
pub(crate) const DATA: u64 = BASE + 0x10000;
pub(crate) const MEMORY: u64 = 8 << 20;

/// Guest memory, which several devices may reach.
#[derive(Clone, Debug)]
pub(crate) struct Memory(Arc<File>);

impl Memory {
    pub(crate) fn new() -> Memory {
        let file = File::from(memfd_create(c"guest memory", MemfdFlags::empty()).unwrap());
        file.set_len(MEMORY).unwrap();
        Memory(Arc::new(file))
    }

    pub(crate) fn read(&self, iova: u64, length: u64) -> Vec<u8> {
        let mut data = vec![0; length as usize];
        self.0.read_exact_at(&mut data, iova - BASE).unwrap();
        data
    }

    pub(crate) fn write(&self, iova: u64, data: &[u8]) {
        self.0.write_all_at(data, iova - BASE).unwrap();
    }

    /// Lets a device reach it.
    pub(crate) fn map(&self, bus: &Bus) {
        let file = FileOffset::from_arc(self.0.clone(), 0);
        bus.dma().map(BASE, MEMORY, DmaMapFlags::READ | DmaMapFlags::WRITE, file).unwrap();
    }

    pub(crate) fn device(&self, config: AccelConfig) -> DeviceFile {
        let device = DeviceFile::try_new("engine", |bus| Accel::new(config, bus)).unwrap();
        self.map(device.bus());
        device
    }
}

pub(crate) fn config(state_bytes: u64) -> AccelConfig {
    AccelConfig::default().state_bytes(state_bytes)
}

/// A device and the test's memory, as the driver reaches them.
struct Seat {
    device: DeviceFile,
    memory: Memory,
}

impl Platform for Seat {
    type Error = Errno;

    fn read_register(&mut self, offset: u64, data: &mut [u8]) -> Result<(), Errno> {
        assert_eq!(self.device.read_region(0, offset, data)?, data.len());
        Ok(())
    }

    fn write_register(&mut self, offset: u64, data: &[u8]) -> Result<(), Errno> {
        assert_eq!(self.device.write_region(0, offset, data)?, data.len());
        Ok(())
    }

    fn read_memory(&mut self, address: u64, data: &mut [u8]) -> Result<(), Errno> {
        data.copy_from_slice(&self.memory.read(address, data.len() as u64));
        Ok(())
    }

    fn write_memory(&mut self, address: u64, data: &[u8]) -> Result<(), Errno> {
        self.memory.write(address, data);
        Ok(())
    }
}

/// The guest's driver, whose every access succeeds, and the device that it drives.
pub(crate) struct Guest {
    pub(crate) device: DeviceFile,
    driver: GuestDriver<Seat>,
}

impl Guest {
    /// Sets up rings of `size` entries.
    pub(crate) fn start(memory: &Memory, device: DeviceFile, size: u32) -> Guest {
        let seat = Seat { device: device.clone(), memory: memory.clone() };
        let driver = GuestDriver::start(seat, Rings::new(SUBMISSIONS, COMPLETIONS, size)).unwrap();
        Guest { device, driver }
    }

    /// Goes on with another device, which has the state of the first.
    pub(crate) fn move_to(&mut self, device: DeviceFile) {
        self.driver.platform().device = device.clone();
        self.device = device;
    }

    pub(crate) fn set32(&mut self, register: u64, value: u32) {
        self.driver.write_u32(register, value).unwrap();
    }

    pub(crate) fn set64(&mut self, register: u64, value: u64) {
        self.driver.write_u64(register, value).unwrap();
    }

    pub(crate) fn get32(&mut self, register: u64) -> u32 {
        self.driver.read_u32(register).unwrap()
    }

    pub(crate) fn get64(&mut self, register: u64) -> u64 {
        self.driver.read_u64(register).unwrap()
    }

    /// Free entries.
    pub(crate) fn room(&self) -> u64 {
        self.driver.room()
    }

    /// Puts work into the ring without ringing the doorbell.
    pub(crate) fn put(&mut self, work: &Descriptor) {
        self.driver.put(work).unwrap();
    }

    pub(crate) fn ring(&mut self) {
        self.driver.ring().unwrap();
    }

    pub(crate) fn submit(&mut self, work: &Descriptor) {
        self.driver.submit(work).unwrap();
    }

    /// The next completion, if it is in the ring.
    pub(crate) fn completion(&mut self) -> Option<Completion> {
        self.driver.take_completion().unwrap()
    }

    pub(crate) fn completions(&mut self) -> Vec<Completion> {
        std::iter::from_fn(|| self.completion()).collect()
    }

    /// Lets the device work until it has nothing to do at time 0.
    pub(crate) fn run(&self) {
        run(&self.device);
    }

    /// Submits one job, runs it, and returns its completion.
    pub(crate) fn execute(&mut self, work: &Descriptor) -> Completion {
        self.submit(work);
        self.run();
        self.completion().expect("a completion")
    }
}

/// Lets a device work until it has nothing to do at time 0.
pub(crate) fn run(device: &DeviceFile) {
    while device.advance(Duration::ZERO) == Next::Now {}
}

/// The own state, as region 2 shows it.
pub(crate) fn own_state(device: &DeviceFile) -> Vec<u8> {
    let size = device.region_info(accel::STATE_REGION_INDEX).unwrap().size;
    let mut state = vec![0; size as usize];
    assert_eq!(device.read_region(accel::STATE_REGION_INDEX, 0, &mut state), Ok(state.len()));
    state
}

/// All registers.
pub(crate) fn registers(device: &DeviceFile) -> [u8; 0x100] {
    let mut registers = [0; 0x100];
    assert_eq!(device.read_region(0, 0, &mut registers), Ok(0x100));
    registers
}

/// Reads up to the end, or the end for now, `cut` bytes at a time.
pub(crate) fn read_all(data: &DataFile, cut: usize) -> Vec<u8> {
    let mut stream = Vec::new();
    let mut buffer = vec![0; cut];
    loop {
        match data.read(&mut buffer) {
            Ok(0) | Err(Errno::ENOMSG) => return stream,
            Ok(count) => stream.extend_from_slice(&buffer[..count]),
            Err(errno) => panic!("{errno}"),
        }
    }
}

pub(crate) fn save(device: &DeviceFile) -> Vec<u8> {
    read_all(&device.set_mig_state(State::StopCopy).unwrap().unwrap(), 1 << 20)
}

pub(crate) fn resuming(device: &DeviceFile) -> DataFile {
    device.set_mig_state(State::Resuming).unwrap().unwrap()
}

/// Loads a stream, `cut` bytes at a time, and leaves the device in STOP.
pub(crate) fn load(device: &DeviceFile, stream: &[u8], cut: usize) {
    let data = resuming(device);
    for part in stream.chunks(cut) {
        assert_eq!(data.write(part), Ok(part.len()));
    }
    device.set_mig_state(State::Stop).unwrap();
}
