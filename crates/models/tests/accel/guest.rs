//! A guest for tests: memory, and a driver of one engine's queue.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};
use vm_memory::FileOffset;
use whimbrel_device::{Bus, DataFile, DeviceFile, Errno, Next, State};
use whimbrel_models::accel::{self, Accel, AccelConfig, Completion, Descriptor};
use whimbrel_uapi::type1::DmaMapFlags;
use zerocopy::{FromBytes, IntoBytes};

/// Where the memory is in the device's eyes.
pub(crate) const BASE: u64 = 0x10_0000;
/// Its rings.
pub(crate) const SUBMISSIONS: u64 = BASE;
pub(crate) const COMPLETIONS: u64 = BASE + 0x8000;
/// Everything else.
pub(crate) const DATA: u64 = BASE + 0x10000;
pub(crate) const MEMORY: u64 = 8 << 20;

/// Guest memory, which several devices may reach.
#[derive(Clone)]
pub(crate) struct Memory(Arc<File>);

impl Memory {
    pub(crate) fn new() -> Memory {
        let file = File::from(memfd_create(c"guest memory", MFdFlags::empty()).unwrap());
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
        let bus = Bus::new();
        self.map(&bus);
        DeviceFile::new("engine", bus.clone(), Box::new(Accel::new(config, bus).unwrap()))
    }
}

pub(crate) fn config(state_bytes: u64) -> AccelConfig {
    AccelConfig { state_bytes, ..AccelConfig::default() }
}

/// The driver of a queue. It can be pointed at another device after the first has moved.
pub(crate) struct Guest {
    pub(crate) device: DeviceFile,
    memory: Memory,
    size: u32,
    submitted: u32,
    completed: u32,
    /// Completions since the device was reset.
    sequence: u64,
}

impl Guest {
    /// Sets up rings of `size` entries.
    pub(crate) fn start(memory: &Memory, device: DeviceFile, size: u32) -> Guest {
        let guest = Guest { device, memory: memory.clone(), size, submitted: 0, completed: 0, sequence: 0 };
        guest.set32(accel::REGISTER_QUEUE_SIZE, size);
        guest.set64(accel::REGISTER_QUEUE_BASE, SUBMISSIONS);
        guest.set64(accel::REGISTER_COMPLETION_BASE, COMPLETIONS);
        guest.set32(accel::REGISTER_CONTROL, accel::CONTROL_ENABLE);
        assert_eq!(guest.get32(accel::REGISTER_CONTROL), accel::CONTROL_ENABLE);
        guest
    }

    pub(crate) fn set32(&self, register: u64, value: u32) {
        assert_eq!(self.device.write_region(0, register, &value.to_le_bytes()), Ok(4));
    }

    pub(crate) fn set64(&self, register: u64, value: u64) {
        assert_eq!(self.device.write_region(0, register, &value.to_le_bytes()), Ok(8));
    }

    pub(crate) fn get32(&self, register: u64) -> u32 {
        let mut value = [0; 4];
        assert_eq!(self.device.read_region(0, register, &mut value), Ok(4));
        u32::from_le_bytes(value)
    }

    pub(crate) fn get64(&self, register: u64) -> u64 {
        let mut value = [0; 8];
        assert_eq!(self.device.read_region(0, register, &mut value), Ok(8));
        u64::from_le_bytes(value)
    }

    /// Free entries.
    pub(crate) fn room(&self) -> u32 {
        self.size - self.submitted.wrapping_sub(self.completed)
    }

    /// Puts work into the ring without ringing the doorbell.
    pub(crate) fn put(&mut self, work: &Descriptor) {
        assert!(self.room() > 0);
        let slot = u64::from(self.submitted % self.size);
        self.memory.write(SUBMISSIONS + slot * 64, work.as_bytes());
        self.submitted = self.submitted.wrapping_add(1);
    }

    pub(crate) fn ring(&self) {
        self.set32(accel::REGISTER_TAIL, self.submitted);
    }

    pub(crate) fn submit(&mut self, work: &Descriptor) {
        self.put(work);
        self.ring();
    }

    /// The next completion, if it is in the ring.
    pub(crate) fn completion(&mut self) -> Option<Completion> {
        let slot = u64::from(self.completed % self.size);
        let record = Completion::read_from_bytes(&self.memory.read(COMPLETIONS + slot * 32, 32)).unwrap();
        if record.sequence != self.sequence + 1 {
            return None;
        }
        assert_eq!(record.index, self.completed);
        self.sequence += 1;
        self.completed = self.completed.wrapping_add(1);
        Some(record)
    }

    pub(crate) fn completions(&mut self) -> Vec<Completion> {
        std::iter::from_fn(|| self.completion()).collect()
    }

    /// Lets the device work until it has nothing to do at time 0.
    pub(crate) fn run(&self) {
        while self.device.advance(Duration::ZERO) == Next::Now {}
    }

    /// Submits one job, runs it, and returns its completion.
    pub(crate) fn execute(&mut self, work: &Descriptor) -> Completion {
        self.submit(work);
        self.run();
        self.completion().expect("a completion")
    }
}

pub(crate) fn copy(tag: u64, source: u64, destination: u64, length: u64) -> Descriptor {
    let operation = accel::OPERATION_COPY;
    Descriptor { operation, tag, source, destination, length, ..Descriptor::default() }
}

pub(crate) fn fill(tag: u64, destination: u64, length: u64, pattern: u64) -> Descriptor {
    Descriptor {
        operation: accel::OPERATION_FILL,
        tag,
        destination,
        length,
        pattern,
        ..Descriptor::default()
    }
}

pub(crate) fn checksum(tag: u64, source: u64, length: u64) -> Descriptor {
    Descriptor { operation: accel::OPERATION_CHECKSUM, tag, source, length, ..Descriptor::default() }
}

pub(crate) fn scramble(tag: u64, offset: u64, length: u64, seed: u64) -> Descriptor {
    let operation = accel::OPERATION_SCRAMBLE;
    Descriptor { operation, tag, destination: offset, length, pattern: seed, ..Descriptor::default() }
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
