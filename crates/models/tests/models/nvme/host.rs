//! A host for tests: an image, and the driver of one controller.
//!
//! How the host reaches memory and devices is the business of `device`: in this process, or over vfio-user, in that crate's
//! tests.

use std::path::PathBuf;
use std::time::Duration;

use whimbrel_device::{Errno, Next, State};
use whimbrel_models::nvme::NvmeConfig;
use whimbrel_models::nvme::guest::{Command, Completion, GuestDriver, Platform};

pub(crate) use super::device::Memory;
use super::device::{self, Data, Device};

/// Where the memory is in the device's eyes.
pub(crate) const BASE: u64 = 0x10_0000;
pub(crate) const MEMORY: u64 = 16 << 20;
/// The end of the driver's own memory. Everything behind it is data.
pub(crate) const DATA: u64 = BASE + (8 << 20);

/// Bytes of the image.
pub(crate) const IMAGE: u64 = 4 << 20;
pub(crate) const BLOCK: u64 = 512;

/// A device and the test's memory, as the driver reaches them.
#[derive(Debug)]
pub(crate) struct Seat {
    pub(crate) device: Device,
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

/// An image in a temporary folder, and memory, for devices that come and go.
#[derive(Debug)]
pub(crate) struct Bench {
    folder: tempfile::TempDir,
    pub(crate) memory: Memory,
}

impl Bench {
    pub(crate) fn new() -> Bench {
        Bench::with(Memory::new())
    }

    pub(crate) fn with(memory: Memory) -> Bench {
        Bench { folder: tempfile::tempdir().unwrap(), memory }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("disk.img")
    }

    pub(crate) fn config(&self) -> NvmeConfig {
        NvmeConfig::new(self.path()).size(IMAGE).queues(4)
    }

    pub(crate) fn device(&self) -> Device {
        self.device_of(self.config(), "")
    }

    pub(crate) fn device_of(&self, config: NvmeConfig, faults: &str) -> Device {
        device::open(config, faults, &self.memory)
    }

    /// What the image contains.
    pub(crate) fn image(&self) -> Vec<u8> {
        std::fs::read(self.path()).unwrap()
    }

    /// Starts a driver on a device, with a queue of this many entries.
    pub(crate) fn host_on(&self, device: Device, entries: u32) -> Host {
        let mut host = self.admin_on(device);
        host.driver.create_queue(1, entries, Some(1)).unwrap();
        host
    }

    /// Starts a driver with admin queues only.
    pub(crate) fn admin_on(&self, device: Device) -> Host {
        let seat = Seat { device: device.clone(), memory: self.memory.clone() };
        let driver = GuestDriver::start(seat, BASE..DATA, 32, step).unwrap();
        Host { driver, memory: self.memory.clone() }
    }

    pub(crate) fn host(&self) -> Host {
        self.host_on(self.device(), 32)
    }
}

/// Lets the device work a little.
#[allow(clippy::unnecessary_wraps, reason = "as the driver calls it")]
fn step(seat: &mut Seat) -> Result<(), Errno> {
    if seat.device.advance(Duration::ZERO) != Next::Now {
        std::thread::yield_now();
    }
    Ok(())
}

/// The driver of a controller, whose every access succeeds.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) driver: GuestDriver<Seat>,
    pub(crate) memory: Memory,
}

impl Host {
    pub(crate) fn device(&mut self) -> Device {
        self.driver.platform().device.clone()
    }

    /// Goes on with another device, which has the state of the first.
    pub(crate) fn move_to(&mut self, device: Device) {
        self.driver.platform().device = device;
    }

    /// Executes an I/O command with data.
    pub(crate) fn io(&mut self, command: Command, address: u64, bytes: u64) -> Completion {
        self.driver.execute(1, command, address, bytes).unwrap()
    }

    /// Executes an admin command with its own PRPs, and returns its status code type, status code and result.
    pub(crate) fn admin(&mut self, command: Command) -> (u8, u8, u32) {
        self.raw(0, command)
    }

    /// Executes a command with its own PRPs.
    pub(crate) fn raw(&mut self, queue: u16, command: Command) -> (u8, u8, u32) {
        self.driver.submit_as_it_is(queue, Command { identifier: 0x1234, ..command }).unwrap();
        let Completion { kind, code, result, identifier, .. } = self.driver.await_completion(queue).unwrap();
        assert_eq!(identifier, 0x1234);
        (kind, code, result)
    }

    pub(crate) fn write(&mut self, start: u64, data: &[u8]) {
        self.memory.write(DATA, data);
        let bytes = data.len() as u64;
        let end = self.io(Command::write(start, (bytes / BLOCK) as u32), DATA, bytes);
        assert!(end.is_success(), "{end:?}");
    }

    pub(crate) fn read(&mut self, start: u64, bytes: u64) -> Vec<u8> {
        self.memory.write(DATA, &vec![0xee; bytes as usize]);
        let end = self.io(Command::read(start, (bytes / BLOCK) as u32), DATA, bytes);
        assert!(end.is_success(), "{end:?}");
        self.memory.read(DATA, bytes)
    }
}

/// Lets a device work until it has nothing to do at time 0, and nothing happens on its image.
pub(crate) fn settle(device: &Device) {
    while device.advance(Duration::ZERO) != Next::Idle {
        std::thread::yield_now();
    }
}

/// Bytes that tell their place and a seed.
pub(crate) fn pattern(seed: u64, bytes: u64) -> Vec<u8> {
    (0..bytes / 8)
        .flat_map(|at| (seed << 32 | at).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes())
        .collect()
}

/// Reads up to the end, or the end for now.
pub(crate) fn read_all(data: &Data) -> Vec<u8> {
    let (mut stream, mut buffer) = (Vec::new(), vec![0; 777]);
    loop {
        match data.read(&mut buffer) {
            Ok(0) | Err(Errno::ENOMSG) => return stream,
            Ok(count) => stream.extend_from_slice(&buffer[..count]),
            Err(errno) => panic!("{errno}"),
        }
    }
}

pub(crate) fn save(device: &Device) -> Vec<u8> {
    read_all(&device.set_mig_state(State::StopCopy).unwrap().unwrap())
}

/// Loads a stream, and leaves the device in STOP.
pub(crate) fn load(device: &Device, stream: &[u8]) {
    let data = device.set_mig_state(State::Resuming).unwrap().unwrap();
    for part in stream.chunks(1000) {
        assert_eq!(data.write(part), Ok(part.len()));
    }
    device.set_mig_state(State::Stop).unwrap();
}
