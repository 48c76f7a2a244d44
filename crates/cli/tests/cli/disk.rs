//! A program that owns a disk, the controller of `whimbrel serve nvme`: it writes blocks, and checks whatever it reads.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};
use whimbrel_models::accel::guest::Platform;
use whimbrel_models::nvme::guest::{Command, GuestDriver, Position};
use whimbrel_uapi::type1::DmaMapFlags;
use whimbrel_user::{Device, DmaMap, DmaRegion, Error};
use whimbrel_vfio_user::{Client, ClientOptions};

/// Where the program's memory is in the device's eyes, and its size.
const IOVA: u64 = 0x10_0000;
const MEMORY: u64 = 1 << 20;
/// The end of the memory for queues. Everything behind it is data.
const DATA: u64 = IOVA + (512 << 10);
const ENTRIES: u32 = 32;
/// Commands in flight, each with blocks of its own.
const SLOTS: u64 = 16;
const BLOCK: u64 = 512;
const SLOT_BLOCKS: u64 = 32;
/// Bytes of the image, of which the program uses all.
pub(crate) const IMAGE: u64 = SLOTS * SLOT_BLOCKS * BLOCK;

/// A client, and the memory of the program.
pub(crate) struct Seat {
    pub(crate) client: Client,
    memory: Arc<MmapRegion>,
}

impl Platform for Seat {
    type Error = Error;

    fn read_register(&mut self, offset: u64, data: &mut [u8]) -> Result<(), Error> {
        self.client.read_region(0, offset, data)
    }

    fn write_register(&mut self, offset: u64, data: &[u8]) -> Result<(), Error> {
        self.client.write_region(0, offset, data)
    }

    fn read_memory(&mut self, address: u64, data: &mut [u8]) -> Result<(), Error> {
        self.memory.as_volatile_slice().read_slice(data, place(address)).unwrap();
        Ok(())
    }

    fn write_memory(&mut self, address: u64, data: &[u8]) -> Result<(), Error> {
        self.memory.as_volatile_slice().write_slice(data, place(address)).unwrap();
        Ok(())
    }
}

/// The offset of an address in the program's memory.
fn place(address: u64) -> usize {
    (address - IOVA) as usize
}

#[expect(clippy::unnecessary_wraps, reason = "as the driver calls it")]
fn wait(_: &mut Seat) -> Result<(), Error> {
    std::thread::sleep(Duration::from_micros(100));
    Ok(())
}

/// A program at its disk.
pub(crate) struct Disk {
    pub(crate) driver: GuestDriver<Seat>,
    rng: Rng,
    /// What the disk contains.
    pub(crate) shadow: Vec<u8>,
}

/// A program without its disk: its memory, its place in it, and what the disk contains.
pub(crate) struct Suspended {
    memory: Arc<MmapRegion>,
    position: Position,
    rng: Rng,
    pub(crate) shadow: Vec<u8>,
}

impl Disk {
    /// Sets up the disk behind a socket, which contains `shadow`.
    pub(crate) fn start(path: &Path, memory: Arc<MmapRegion>, shadow: Vec<u8>) -> Disk {
        let mut client = Client::connect(path, &ClientOptions::default()).unwrap();
        map(&mut client, &memory);
        let seat = Seat { client, memory };
        let mut driver = GuestDriver::start(seat, IOVA..DATA, 8, wait).unwrap();
        driver.create_queue(1, ENTRIES, None).unwrap();
        Disk { driver, rng: Rng::with_seed(7), shadow }
    }

    /// Leaves the disk as it is. Its memory is one that the server maps: otherwise the answer to the server's last access, of
    /// which the program has seen the effect, may still be on its way.
    pub(crate) fn suspend(self) -> Suspended {
        let (seat, position) = self.driver.into_parts();
        Suspended { memory: seat.memory, position, rng: self.rng, shadow: self.shadow }
    }

    /// Goes on with the disk behind a socket, which has the state of the one that was left.
    pub(crate) fn resume(path: &Path, left: Suspended) -> Disk {
        let Suspended { memory, position, rng, shadow } = left;
        let mut client = Client::connect(path, &ClientOptions::default()).unwrap();
        map(&mut client, &memory);
        // As it is kept in memory.
        let position = Position::from_bytes(&position.to_bytes()).unwrap();
        let driver = GuestDriver::resume(Seat { client, memory }, position, wait);
        Disk { driver, rng, shadow }
    }

    /// Writes or reads in every slot, all at once, and checks each of them. Ends with a flush.
    pub(crate) fn work(&mut self) {
        let mut flying = Vec::new();
        for slot in 0..SLOTS {
            let first = self.rng.u64(0..SLOT_BLOCKS);
            let blocks = self.rng.u64(1..=SLOT_BLOCKS - first);
            let (start, bytes) = (slot * SLOT_BLOCKS + first, blocks * BLOCK);
            let span = (start * BLOCK) as usize..((start + blocks) * BLOCK) as usize;
            let address = DATA + slot * SLOT_BLOCKS * BLOCK;
            let memory = self.driver.platform().memory.clone();
            let (command, is_read) = if self.rng.bool() {
                self.rng.fill(&mut self.shadow[span.clone()]);
                memory.as_volatile_slice().write_slice(&self.shadow[span.clone()], place(address)).unwrap();
                (Command::write(start, blocks as u32), false)
            } else {
                (Command::read(start, blocks as u32), true)
            };
            let identifier = self.driver.submit(1, command, address, bytes).unwrap();
            flying.push((identifier, is_read.then_some((span, address))));
        }
        while !flying.is_empty() {
            let end = self.driver.await_completion(1).unwrap();
            assert!(end.is_success(), "{end:?}");
            let at = flying.iter().position(|(flies, _)| *flies == end.identifier).unwrap();
            if let (_, Some((span, address))) = flying.swap_remove(at) {
                let mut found = vec![0; span.len()];
                let memory = self.driver.platform().memory.clone();
                memory.as_volatile_slice().read_slice(&mut found, place(address)).unwrap();
                assert!(found == self.shadow[span.clone()], "blocks at {:#x} are others", span.start);
            }
        }
        let end = self.driver.execute(1, Command::flush(), 0, 0).unwrap();
        assert!(end.is_success(), "{end:?}");
    }

    /// Checks all blocks.
    pub(crate) fn check(&mut self) {
        for slot in 0..SLOTS {
            let (start, bytes) = (slot * SLOT_BLOCKS, SLOT_BLOCKS * BLOCK);
            let end = self.driver.execute(1, Command::read(start, SLOT_BLOCKS as u32), DATA, bytes).unwrap();
            assert!(end.is_success(), "{end:?}");
            let mut found = vec![0; bytes as usize];
            let memory = self.driver.platform().memory.clone();
            memory.as_volatile_slice().read_slice(&mut found, place(DATA)).unwrap();
            let span = (start * BLOCK) as usize..(start * BLOCK + bytes) as usize;
            assert!(found == self.shadow[span.clone()], "blocks at {:#x} are others", span.start);
        }
    }
}

fn map(client: &mut Client, memory: &Arc<MmapRegion>) {
    let both = DmaMapFlags::READ | DmaMapFlags::WRITE;
    client.map_dma(IOVA, both, DmaRegion::from(memory.clone())).unwrap();
}

/// Memory for a program, which the server maps.
pub(crate) fn shared() -> Arc<MmapRegion> {
    let file = File::from(rustix::fs::memfd_create(c"program", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    file.set_len(MEMORY).unwrap();
    Arc::new(MmapRegion::from_file(FileOffset::new(file, 0), MEMORY as usize).unwrap())
}

/// Memory for a program, without a file: the server asks for each access.
pub(crate) fn private() -> Arc<MmapRegion> {
    Arc::new(MmapRegion::new(MEMORY as usize).unwrap())
}
