//! A controller behind a socket, each with a server and a client of its own, and the memory that it reaches.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::fs::{MemfdFlags, memfd_create};
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};
use whimbrel_device::wrap::fault::{Faults, Faulty};
use whimbrel_device::{
    Compatibility, DeviceFile, Errno, MigrationFlags, Next, PrecopyReport, State, WorkingDevice,
};
use whimbrel_models::nvme::{Nvme, NvmeConfig};
use whimbrel_uapi::pci::VFIO_PCI_CONFIG_REGION_INDEX;
use whimbrel_uapi::type1::DmaMapFlags;
use whimbrel_user::{Device as _, DmaMap, DmaRegion, Error, Migratable, SavingRead};
use whimbrel_vfio_user::{Backend, Client, ClientOptions, ServeError};

use super::host::{BASE, MEMORY};

/// Host memory, which several devices may reach.
#[derive(Clone, Debug)]
pub(crate) struct Memory(Arc<MmapRegion>);

impl Memory {
    /// Memory of a file, which the servers map.
    pub(crate) fn new() -> Memory {
        let file = File::from(memfd_create(c"host memory", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(MEMORY).unwrap();
        Memory(Arc::new(MmapRegion::from_file(FileOffset::new(file, 0), MEMORY as usize).unwrap()))
    }

    /// Memory without a file, for which the servers send messages.
    pub(crate) fn remote() -> Memory {
        Memory(Arc::new(MmapRegion::new(MEMORY as usize).unwrap()))
    }

    pub(crate) fn read(&self, address: u64, length: u64) -> Vec<u8> {
        let mut data = vec![0; length as usize];
        self.0.as_volatile_slice().read_slice(&mut data, (address - BASE) as usize).unwrap();
        data
    }

    pub(crate) fn write(&self, address: u64, data: &[u8]) {
        self.0.as_volatile_slice().write_slice(data, (address - BASE) as usize).unwrap();
    }
}

/// A device in the eyes of a client, and the server's own handle, by which tests let it work.
#[derive(Clone, Debug)]
pub(crate) struct Device {
    file: DeviceFile,
    connection: Arc<Connection>,
}

#[derive(Debug)]
struct Connection {
    client: Mutex<Client>,
    server: Option<JoinHandle<Result<(), ServeError>>>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.client.lock().unwrap().close();
        if let Some(server) = self.server.take()
            && !std::thread::panicking()
        {
            server.join().unwrap().unwrap();
        }
    }
}

/// Opens a controller that works when it is told to.
pub(crate) fn open(config: NvmeConfig, faults: &str, memory: &Memory) -> Device {
    let faults: Faults = faults.parse().unwrap();
    let file = DeviceFile::try_new("disk", |bus| {
        let image = config.open_image()?;
        Ok::<_, whimbrel_models::NvmeError>(Faulty::new(Nvme::new(config, image, bus)?, faults))
    })
    .unwrap();
    let backend = Backend::new(file.clone());
    let (server, stream) = UnixStream::pair().unwrap();
    let server = std::thread::spawn(move || backend.serve(server));
    let mut client = Client::new("disk", stream, &ClientOptions::default()).unwrap();
    let rights = DmaMapFlags::READ | DmaMapFlags::WRITE;
    client.map_dma(BASE, rights, DmaRegion::from(memory.0.clone())).unwrap();
    Device { file, connection: Arc::new(Connection { client: Mutex::new(client), server: Some(server) }) }
}

/// The errno of a request, of which there is one in every failure of a test.
fn errno(error: Error) -> Errno {
    error.errno().unwrap_or_else(|| panic!("{error}"))
}

impl Device {
    fn client(&self) -> MutexGuard<'_, Client> {
        self.connection.client.lock().unwrap()
    }

    /// Lets the device work, once everything that was sent to it has arrived.
    pub(crate) fn advance(&self, now: Duration) -> Next {
        self.client().read_region(VFIO_PCI_CONFIG_REGION_INDEX, 0, &mut [0; 4]).unwrap();
        self.file.advance(now)
    }

    pub(crate) fn read_region(&self, index: u32, offset: u64, data: &mut [u8]) -> Result<usize, Errno> {
        self.client().read_region(index, offset, data).map(|()| data.len()).map_err(errno)
    }

    pub(crate) fn write_region(&self, index: u32, offset: u64, data: &[u8]) -> Result<usize, Errno> {
        self.client().write_region(index, offset, data).map(|()| data.len()).map_err(errno)
    }

    pub(crate) fn set_irq_triggers(
        &self,
        index: u32,
        start: u32,
        triggers: Vec<Option<OwnedFd>>,
    ) -> Result<(), Errno> {
        let triggers: Vec<_> = triggers.iter().map(|fd| fd.as_ref().map(std::os::fd::AsFd::as_fd)).collect();
        self.client().set_irq_triggers(index, start, &triggers).map_err(errno)
    }

    pub(crate) fn reset(&self) -> Result<(), Errno> {
        self.client().reset().map_err(errno)
    }

    pub(crate) fn migration_flags(&self) -> Result<MigrationFlags, Errno> {
        self.client().migration_flags().map(Option::unwrap).map_err(errno)
    }

    pub(crate) fn has_dma_logging(&self) -> bool {
        self.file.has_dma_logging()
    }

    pub(crate) fn compatibility(&self) -> Option<Compatibility> {
        self.file.compatibility()
    }

    pub(crate) fn mig_state(&self) -> Result<State, Errno> {
        self.client().state().map_err(errno)
    }

    pub(crate) fn mig_data_size(&self) -> Result<u64, Errno> {
        self.client().data_size().map_err(errno)
    }

    pub(crate) fn set_mig_state(&self, state: State) -> Result<Option<Data>, Errno> {
        let opened = self.client().set_state(state).map_err(errno)?;
        Ok(opened.map(|data| Data(Mutex::new(data))))
    }
}

/// The client's end of a data session.
#[derive(Debug)]
pub(crate) struct Data(Mutex<whimbrel_user::DataFile>);

impl Data {
    pub(crate) fn read(&self, buffer: &mut [u8]) -> Result<usize, Errno> {
        match self.0.lock().unwrap().read(buffer).map_err(errno)? {
            SavingRead::Data(count) => Ok(count),
            _ => Ok(0),
        }
    }

    pub(crate) fn write(&self, data: &[u8]) -> Result<usize, Errno> {
        self.0.lock().unwrap().write_all(data).map(|()| data.len()).map_err(errno)
    }

    pub(crate) fn precopy_info(&self) -> Result<PrecopyReport, Errno> {
        self.0.lock().unwrap().precopy_info().map_err(errno)
    }
}

/// A controller that works by itself, on a thread of its own, as in a server.
#[derive(Debug)]
pub(crate) struct Working {
    device: Device,
    _worker: WorkingDevice,
}

impl Working {
    pub(crate) fn device(&self) -> &Device {
        &self.device
    }
}

pub(crate) fn at_work(device: Device) -> Working {
    Working { _worker: WorkingDevice::start(device.file.clone()).unwrap(), device }
}
