//! Our client comes back to a server that nobody here has written, rust-vmm's, in a process that is killed.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};
use rustix::fs::{MemfdFlags, memfd_create};
use vfio_user::{DmaMapFlags as TheirRights, DmaUnmapFlags, IrqInfo, ServerBackend, ServerRegion};
use vm_memory::{FileOffset, MmapRegion};
use whimbrel_uapi::device::{IrqInfoFlags, RegionInfoFlags};
use whimbrel_uapi::type1::DmaMapFlags;
use whimbrel_user::{Device, DmaMap, DmaRegion};
use whimbrel_vfio_user::{Client, ClientOptions, Reconnect};

/// The socket of the process that serves.
pub(crate) const SERVES: &str = "WHIMBREL_RUST_VMM_SERVES";

const LONG: Duration = Duration::from_mins(1);
/// Where the device shows the first byte of the memory that was mapped last.
const FIRST: u64 = 0x100;
/// A write here raises the interrupt.
const RING: u64 = 0x200;
/// A write here never ends.
const STUCK: u64 = 0x300;

#[derive(Default)]
struct Card {
    registers: Vec<u8>,
    eventfds: Vec<File>,
}

impl ServerBackend for Card {
    fn region_read(&mut self, _region: u32, offset: u64, data: &mut [u8]) -> io::Result<()> {
        data.copy_from_slice(&self.registers[offset as usize..][..data.len()]);
        Ok(())
    }

    fn region_write(&mut self, _region: u32, offset: u64, data: &[u8]) -> io::Result<()> {
        self.registers[offset as usize..][..data.len()].copy_from_slice(data);
        match offset {
            RING => self.eventfds.iter_mut().try_for_each(|eventfd| eventfd.write_all(&1_u64.to_ne_bytes())),
            STUCK => loop {
                std::thread::park();
            },
            _ => Ok(()),
        }
    }

    fn dma_map(
        &mut self,
        _: TheirRights,
        offset: u64,
        _address: u64,
        _size: u64,
        fd: Option<File>,
    ) -> io::Result<()> {
        let at = FIRST as usize;
        fd.ok_or(io::ErrorKind::Unsupported)?.read_exact_at(&mut self.registers[at..=at], offset)
    }

    fn dma_unmap(&mut self, _: DmaUnmapFlags, _address: u64, _size: u64) -> io::Result<()> {
        Ok(())
    }

    fn reset(&mut self) -> io::Result<()> {
        self.registers.fill(0);
        Ok(())
    }

    fn set_irqs(&mut self, _: u32, _: u32, _: u32, _: u32, fds: Vec<File>) -> io::Result<()> {
        self.eventfds = fds;
        Ok(())
    }
}

/// Serves one client, in the process that is killed.
pub(crate) fn serve(path: &Path) {
    let _ = std::fs::remove_file(path);
    let listener = OwnedFd::from(UnixListener::bind(path).unwrap());
    #[allow(clippy::default_trait_access, reason = "the type is that of a crate that they depend on")]
    let mut region = ServerRegion { region_info: Default::default(), sparse_areas: vec![], mmap_fd: None };
    region.region_info.argsz = 32;
    region.region_info.flags = (RegionInfoFlags::READ | RegionInfoFlags::WRITE).bits();
    region.region_info.size = 0x1000;
    let irqs = vec![IrqInfo { index: 0, flags: IrqInfoFlags::EVENTFD.bits(), count: 1 }];
    let server = vfio_user::Server::from_owned_fd(listener, true, irqs, vec![region]);
    let mut card = Card { registers: vec![0; 0x1000], ..Card::default() };
    server.run(&mut card).unwrap();
}

/// The process of their server.
struct Killed(Child);

impl Killed {
    fn start(path: &Path) -> Killed {
        Killed(Command::new(std::env::current_exe().unwrap()).env(SERVES, path).spawn().unwrap())
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[track_caller]
fn until<T>(mut get: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + LONG;
    loop {
        if let Some(got) = get() {
            return got;
        }
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn byte(client: &mut Client, offset: u64) -> u8 {
    let mut byte = [0];
    client.read_region(0, offset, &mut byte).unwrap();
    byte[0]
}

pub(crate) fn our_client_comes_back_each_time_their_server_was_killed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let options = ClientOptions::default().reconnect(Reconnect::within(LONG));
    let mut server = Killed::start(&path);
    let mut client = until(|| Client::connect(&path, &options).ok());
    let memory = File::from(memfd_create("memory", MemfdFlags::CLOEXEC).unwrap());
    memory.set_len(0x1000).unwrap();
    let guest = MmapRegion::<()>::from_file(FileOffset::new(memory.try_clone().unwrap(), 0), 0x1000).unwrap();
    client.map_dma(0x20_0000, DmaMapFlags::READ, DmaRegion::from(Arc::new(guest))).unwrap();
    let interrupt = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
    client.set_irq_triggers(0, 0, &[Some(interrupt.as_fd())]).unwrap();
    for crashes in 1..=3_u8 {
        client.write_region(0, 0, &[0xaa]).unwrap();
        memory.write_all_at(&[crashes], 0).unwrap();
        // The last one is killed while it executes a request.
        let stuck = (crashes == 3).then(|| {
            let mut client = client.clone();
            let stuck = std::thread::spawn(move || client.write_region(0, STUCK, &[1]));
            std::thread::sleep(Duration::from_millis(50));
            stuck
        });
        drop(server);
        if let Some(stuck) = stuck {
            let error = stuck.join().unwrap().unwrap_err();
            assert!(error.errno().is_some(), "{error}");
        }
        server = Killed::start(&path);
        until(|| (client.resets() == u64::from(crashes)).then_some(()));
        assert_eq!(byte(&mut client, 0), 0, "it is another device");
        assert_eq!(byte(&mut client, FIRST), crashes, "the memory is mapped again");
        client.write_region(0, RING, &[1]).unwrap();
        assert_eq!(until(|| interrupt.read().ok()), 1);
    }
}
