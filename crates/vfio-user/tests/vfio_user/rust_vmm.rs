//! rust-vmm's `vfio_user` crate, which nobody here has written: its client with our server, and our client with
//! its server.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};
use rustix::fs::{MemfdFlags, memfd_create};
use vfio_user::{DmaMapFlags as TheirRights, DmaUnmapFlags, IrqInfo, ServerBackend, ServerRegion};
use vm_memory::{FileOffset, MmapRegion};
use whimbrel_models::Model;
use whimbrel_models::accel::guest::{GuestDriver, Platform, Rings};
use whimbrel_models::accel::{self, Descriptor};
use whimbrel_uapi::device::{IrqInfoFlags, IrqSetFlags, RegionInfoFlags};
use whimbrel_uapi::feature::{Feature, FeatureFlags};
use whimbrel_uapi::type1::DmaMapFlags;
use whimbrel_user::{Device, DmaMap, DmaRegion, Errno, Migratable};
use whimbrel_vfio_user::{Backend, Client, ClientOptions};

/// Neither of these peers waits with a time of its own.
const LONG: Duration = Duration::from_mins(1);

/// What becomes of work on a thread of its own, which must be done in time.
fn in_time<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, outcome) = channel();
    std::thread::spawn(move || done.send(work()));
    match outcome.recv_timeout(LONG) {
        Ok(outcome) => outcome,
        Err(RecvTimeoutError::Disconnected) => panic!("the thread of the peer panicked"),
        Err(RecvTimeoutError::Timeout) => panic!("the peer waits for ever"),
    }
}

fn memory(size: u64) -> File {
    let file = File::from(memfd_create("memory", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(size).unwrap();
    file
}

/// Our server of a model, to which one client comes.
fn ours(model: &str, path: &Path) -> JoinHandle<()> {
    let opened = model.parse::<Model>().unwrap().open("model").unwrap();
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        Backend::new(opened).serve(stream).unwrap();
    })
}

#[test]
fn their_client_learns_of_our_devices_what_they_are() {
    for (model, config_size, counts) in
        [("serial", 256, [1, 1, 0, 0, 0]), ("accel?state=4KiB", 4096, [1, 1, 0, 1, 0])]
    {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let server = ours(model, &path);
        in_time(move || {
            let mut client = vfio_user::Client::new(&path).unwrap();
            assert_eq!(client.region(7).unwrap().size, config_size, "{model}");
            assert!(client.region(8).is_some() && client.region(9).is_none(), "{model}");
            let told = [0, 1, 2, 3, 4].map(|index| client.get_irq_info(index).unwrap().count);
            assert_eq!(told, counts, "{model}");
            client.shutdown().unwrap();
        });
        in_time(|| server.join().unwrap());
    }
}

/// Their client, and memory that the device reaches from `IOVA` on.
struct Seat {
    client: vfio_user::Client,
    guest: File,
}

const IOVA: u64 = 0x10_0000;

impl Platform for Seat {
    type Error = vfio_user::Error;

    fn read_register(&mut self, offset: u64, data: &mut [u8]) -> Result<(), vfio_user::Error> {
        self.client.region_read(0, offset, data)
    }

    fn write_register(&mut self, offset: u64, data: &[u8]) -> Result<(), vfio_user::Error> {
        self.client.region_write(0, offset, data)
    }

    fn read_memory(&mut self, address: u64, data: &mut [u8]) -> Result<(), vfio_user::Error> {
        self.guest.read_exact_at(data, address - IOVA).unwrap();
        Ok(())
    }

    fn write_memory(&mut self, address: u64, data: &[u8]) -> Result<(), vfio_user::Error> {
        self.guest.write_all_at(data, address - IOVA).unwrap();
        Ok(())
    }
}

#[test]
fn their_client_makes_our_engine_work_in_its_memory() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let server = ours("accel?state=4KiB", &path);
    in_time(move || {
        let mut client = vfio_user::Client::new(&path).unwrap();
        let guest = memory(0x10000);
        client.dma_map(0, IOVA, 0x10000, guest.as_raw_fd()).unwrap();
        client.reset().unwrap();
        let done = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
        let tie = IrqSetFlags::DATA_EVENTFD | IrqSetFlags::ACTION_TRIGGER;
        client.set_irqs(1, tie.bits(), 0, 1, &[done.as_raw_fd()]).unwrap();
        let rings = Rings::new(IOVA, IOVA + 0x4000, 2);
        let mut driver = GuestDriver::start(Seat { client, guest }, rings).unwrap();
        driver.enable_interrupts(accel::INTERRUPT_COMPLETION).unwrap();
        let job = Descriptor::fill(1, IOVA + 0x8000, 0x1000, 0x0102_0304_0506_0708);
        driver.submit(&job).unwrap();
        while done.read().is_err() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let completion = driver.take_completion().unwrap().unwrap();
        assert!(driver.verify(&job, &completion).unwrap());
        assert_eq!(driver.read_u64(accel::REGISTER_COMPLETED).unwrap(), 1);
        let mut client = driver.into_platform().client;
        // What their client does with interrupts that are not in use.
        let none = IrqSetFlags::DATA_NONE | IrqSetFlags::ACTION_TRIGGER;
        client.set_irqs(1, none.bits(), 0, 0, &[]).unwrap();
        client.dma_unmap(IOVA, 0x10000).unwrap();
        let mut id = [0; 4];
        client.region_read(0, accel::REGISTER_ID, &mut id).unwrap();
        assert_eq!(id, accel::ID.to_le_bytes());
        client.shutdown().unwrap();
    });
    in_time(|| server.join().unwrap());
}

/// A device of their server: a page of registers, and what was asked of it.
struct Card {
    registers: Vec<u8>,
    told: Sender<Told>,
}

#[derive(Debug, PartialEq, Eq)]
enum Told {
    Mapped { flags: u32, offset: u64, address: u64, size: u64, first: u8 },
    Unmapped { address: u64, size: u64 },
    Irqs { index: u32, flags: u32, count: u32, eventfds: usize },
    Reset,
}

impl Card {
    fn tell(&self, told: Told) -> io::Result<()> {
        self.told.send(told).map_err(io::Error::other)
    }
}

impl ServerBackend for Card {
    fn region_read(&mut self, _region: u32, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let found = self.registers.get(offset as usize..offset as usize + data.len());
        data.copy_from_slice(found.ok_or(io::ErrorKind::InvalidInput)?);
        Ok(())
    }

    fn region_write(&mut self, _region: u32, offset: u64, data: &[u8]) -> io::Result<()> {
        let found = self.registers.get_mut(offset as usize..offset as usize + data.len());
        found.ok_or(io::ErrorKind::InvalidInput)?.copy_from_slice(data);
        Ok(())
    }

    fn dma_map(
        &mut self,
        flags: TheirRights,
        offset: u64,
        address: u64,
        size: u64,
        fd: Option<File>,
    ) -> io::Result<()> {
        let mut first = [0];
        fd.ok_or(io::ErrorKind::Unsupported)?.read_exact_at(&mut first, offset)?;
        self.tell(Told::Mapped { flags: flags.bits(), offset, address, size, first: first[0] })
    }

    fn dma_unmap(&mut self, _flags: DmaUnmapFlags, address: u64, size: u64) -> io::Result<()> {
        self.tell(Told::Unmapped { address, size })
    }

    fn reset(&mut self) -> io::Result<()> {
        self.registers.fill(0);
        self.tell(Told::Reset)
    }

    fn set_irqs(
        &mut self,
        index: u32,
        flags: u32,
        _start: u32,
        count: u32,
        fds: Vec<File>,
    ) -> io::Result<()> {
        self.tell(Told::Irqs { index, flags, count, eventfds: fds.len() })
    }
}

/// Their server, with one region and one index of interrupts, and our client of it.
fn theirs() -> (Client, Receiver<Told>, JoinHandle<()>, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let listener = OwnedFd::from(UnixListener::bind(&path).unwrap());
    let (told, asked) = channel();
    let thread = std::thread::spawn(move || {
        #[allow(clippy::default_trait_access, reason = "the type is that of a crate that they depend on")]
        let mut region =
            ServerRegion { region_info: Default::default(), sparse_areas: vec![], mmap_fd: None };
        region.region_info.argsz = 32;
        region.region_info.flags = (RegionInfoFlags::READ | RegionInfoFlags::WRITE).bits();
        region.region_info.size = 1 << 20;
        let irqs = vec![IrqInfo { index: 0, flags: IrqInfoFlags::EVENTFD.bits(), count: 2 }];
        let server = vfio_user::Server::from_owned_fd(listener, true, irqs, vec![region]);
        server.run(&mut Card { registers: vec![0; 1 << 20], told }).unwrap();
    });
    let options = ClientOptions::default().request_timeout(LONG / 2);
    (Client::connect(&path, &options).unwrap(), asked, thread, folder)
}

#[test]
fn our_client_uses_a_device_of_their_server() {
    let (mut client, asked, server, _folder) = theirs();
    let next = || asked.recv_timeout(LONG).unwrap();
    let info = client.info().unwrap();
    assert_eq!((info.num_regions, info.num_irqs), (1, 1));
    assert_eq!(client.region_info(0).unwrap().size, 1 << 20);
    assert_eq!(client.irq_info(0).unwrap().count, 2);
    // As much as our client sends at a time and more.
    let pattern: Vec<u8> = (0..1_000_000_u32).map(|byte| (byte % 251) as u8).collect();
    client.write_region(0, 8, &pattern).unwrap();
    let mut back = vec![0; pattern.len()];
    client.read_region(0, 8, &mut back).unwrap();
    assert!(back == pattern);
    let file = memory(0x4000);
    file.write_all_at(b"m", 0x1000).unwrap();
    let guest = MmapRegion::<()>::from_file(FileOffset::new(file, 0x1000), 0x3000).unwrap();
    client.map_dma(0x20_0000, DmaMapFlags::READ, DmaRegion::from(Arc::new(guest))).unwrap();
    let mapped = Told::Mapped { flags: 1, offset: 0x1000, address: 0x20_0000, size: 0x3000, first: b'm' };
    assert_eq!(next(), mapped);
    assert_eq!(client.unmap_dma(0x20_0000, 0x3000).unwrap(), 0x3000);
    assert_eq!(next(), Told::Unmapped { address: 0x20_0000, size: 0x3000 });
    let eventfds = [EventFd::new().unwrap(), EventFd::new().unwrap()];
    // Their server says that it takes one descriptor a message.
    client.set_irq_triggers(0, 0, &[Some(eventfds[0].as_fd())]).unwrap();
    let tie = (IrqSetFlags::DATA_EVENTFD | IrqSetFlags::ACTION_TRIGGER).bits();
    assert_eq!(next(), Told::Irqs { index: 0, flags: tie, count: 1, eventfds: 1 });
    client.reset().unwrap();
    assert_eq!(next(), Told::Reset);
    client.read_region(0, 8, &mut back[..4]).unwrap();
    assert_eq!(back[..4], [0; 4]);
    drop(client);
    in_time(|| server.join().unwrap());
}

#[test]
fn what_their_server_refuses_is_an_error_and_the_connection_goes_on() {
    let (mut client, _asked, server, _folder) = theirs();
    let past = client.read_region(0, (1 << 20) - 2, &mut [0; 4]).unwrap_err();
    assert_eq!(past.errno(), Some(Errno::EIO), "they name no errno: {past}");
    let absent = client.region_info(1).unwrap_err();
    assert_eq!(absent.errno(), Some(Errno::EINVAL), "{absent}");
    assert_eq!(client.info().unwrap().num_regions, 1);
    drop(client);
    in_time(|| server.join().unwrap());
}

#[test]
fn a_device_of_their_server_has_no_features_and_the_connection_goes_on() {
    let (mut client, asked, server, _folder) = theirs();
    for _ in 0..100 {
        assert_eq!(client.migration_flags().unwrap(), None);
        for feature in Feature::ALL {
            assert!(!client.probe_feature(feature, FeatureFlags::GET).unwrap(), "{feature}");
        }
        assert_eq!(client.state().unwrap_err().errno(), Some(Errno::ENOTTY));
        client.write_region(0, 0, &[1; 100]).unwrap();
        assert_eq!(client.irq_info(0).unwrap().count, 2);
    }
    client.reset().unwrap();
    assert_eq!(asked.recv_timeout(LONG).unwrap(), Told::Reset);
    drop(client);
    in_time(|| server.join().unwrap());
}
