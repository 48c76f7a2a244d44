//! The server of rust-vmm's `vfio_user` crate, which nobody here has written.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

use vfio_user::{DmaMapFlags, DmaUnmapFlags, IrqInfo, ServerBackend, ServerRegion};
use whimbrel_conformance::{Config, Subjects};
use whimbrel_uapi::device::RegionInfoFlags;
use whimbrel_user::{Device, region};
use whimbrel_vfio_user::{Client, ClientOptions};

use super::{compare, folder, run};

/// Bytes of the device's registers.
const REGISTERS: usize = 4096;

/// A device of their server: registers and nothing else, for the crate has no call for migration.
struct Card(Vec<u8>);

impl Card {
    fn registers(&mut self, offset: u64, length: usize) -> io::Result<&mut [u8]> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let found = self.0.get_mut(start..start.saturating_add(length));
        found.ok_or(io::ErrorKind::InvalidInput.into())
    }
}

impl ServerBackend for Card {
    fn region_read(&mut self, _region: u32, offset: u64, data: &mut [u8]) -> io::Result<()> {
        data.copy_from_slice(self.registers(offset, data.len())?);
        Ok(())
    }

    fn region_write(&mut self, _region: u32, offset: u64, data: &[u8]) -> io::Result<()> {
        self.registers(offset, data.len())?.copy_from_slice(data);
        Ok(())
    }

    fn dma_map(
        &mut self,
        _flags: DmaMapFlags,
        _offset: u64,
        _address: u64,
        _size: u64,
        _fd: Option<File>,
    ) -> io::Result<()> {
        Ok(())
    }

    fn dma_unmap(&mut self, _flags: DmaUnmapFlags, _address: u64, _size: u64) -> io::Result<()> {
        Ok(())
    }

    fn reset(&mut self) -> io::Result<()> {
        self.0.fill(0);
        Ok(())
    }

    fn set_irqs(
        &mut self,
        _index: u32,
        _flags: u32,
        _start: u32,
        _count: u32,
        _fds: Vec<File>,
    ) -> io::Result<()> {
        Ok(())
    }
}

/// Returns the version of the crate that the tests are built with.
fn version() -> String {
    let lock: toml::Table = include_str!("../../../../Cargo.lock").parse().expect("a lock file");
    let packages = lock["package"].as_array().expect("a list of packages");
    let package = packages.iter().find(|package| package["name"].as_str() == Some("vfio_user"));
    package.expect("the crate")["version"].as_str().expect("its version").to_string()
}

#[test]
fn rust_vmms_server() {
    let folder = folder();
    let socket = folder.path().join("device");
    let listener = OwnedFd::from(UnixListener::bind(&socket).expect("a socket"));
    // It serves one client. Without migration the suite opens the device only once.
    let serving = std::thread::spawn(move || {
        #[allow(clippy::default_trait_access, reason = "the type is that of a crate that they depend on")]
        let mut region =
            ServerRegion { region_info: Default::default(), sparse_areas: vec![], mmap_fd: None };
        region.region_info.argsz = 32;
        region.region_info.flags = (RegionInfoFlags::READ | RegionInfoFlags::WRITE).bits();
        region.region_info.size = REGISTERS as u64;
        let irqs = vec![IrqInfo { index: 0, flags: 0, count: 1 }];
        let server = vfio_user::Server::from_owned_fd(listener, true, irqs, vec![region]);
        server.run(&mut Card(vec![0; REGISTERS])).expect("a client that keeps to the protocol");
    });
    let subjects = Subjects::new("vfio-user:rust-vmm", move || {
        let client = Client::connect(&socket, &ClientOptions::default())?;
        region::adapt(Box::new(client) as Box<dyn Device>)
    });
    let (report, text) = run(&subjects, &Config::default(), &format!(", vfio_user {}", version()));
    assert_eq!(report.summary().exit_status(), 3, "{report}");
    serving.join().expect("their server does not panic");
    compare("rust-vmm-vfio-user.txt", &text);
}
