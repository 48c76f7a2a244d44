//! A controller in this process, and the memory that it reaches.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Instant;

use rustix::fs::{MemfdFlags, memfd_create};
use whimbrel_device::wrap::fault::{Faults, Faulty};
use whimbrel_device::{DataFile, DeviceFile, Errno, RemoteMemory, WorkingDevice};
use whimbrel_memory::FileOffset;
use whimbrel_models::nvme::{Nvme, NvmeConfig};
use whimbrel_uapi::type1::DmaMapFlags;

use super::host::{BASE, DATA, MEMORY};

pub(crate) type Device = DeviceFile;
pub(crate) type Data = DataFile;

/// Host memory, which several devices may reach.
#[derive(Clone, Debug)]
pub(crate) struct Memory {
    file: Arc<File>,
    /// The device has to ask for what lies from this address on.
    remote_from: u64,
}

impl Memory {
    pub(crate) fn new() -> Memory {
        let file = File::from(memfd_create(c"host memory", MemfdFlags::empty()).unwrap());
        file.set_len(MEMORY).unwrap();
        Memory { file: Arc::new(file), remote_from: BASE + MEMORY }
    }

    pub(crate) fn remote() -> Memory {
        Memory { remote_from: BASE, ..Memory::new() }
    }

    /// Memory in which the queues are mapped and the data is remote: commands are fetched at once, and no data goes straight
    /// to the image.
    pub(crate) fn with_remote_data() -> Memory {
        Memory { remote_from: DATA, ..Memory::new() }
    }

    pub(crate) fn read(&self, address: u64, length: u64) -> Vec<u8> {
        let mut data = vec![0; length as usize];
        self.file.read_exact_at(&mut data, address - BASE).unwrap();
        data
    }

    pub(crate) fn write(&self, address: u64, data: &[u8]) {
        self.file.write_all_at(data, address - BASE).unwrap();
    }
}

impl RemoteMemory for Memory {
    fn read(&self, iova: u64, data: &mut [u8], _: Instant) -> Result<(), Errno> {
        data.copy_from_slice(&self.read(iova, data.len() as u64));
        Ok(())
    }

    fn write(&self, iova: u64, data: &[u8], _: Instant) -> Result<(), Errno> {
        self.write(iova, data);
        Ok(())
    }
}

/// Opens a controller that works when it is told to.
pub(crate) fn open(config: NvmeConfig, faults: &str, memory: &Memory) -> Device {
    let faults: Faults = faults.parse().unwrap();
    let device = DeviceFile::try_new("disk", |bus| {
        let image = config.open_image()?;
        Ok::<_, whimbrel_models::NvmeError>(Faulty::new(Nvme::new(config, image, bus)?, faults))
    })
    .unwrap();
    let (dma, rights) = (device.bus().dma(), DmaMapFlags::READ | DmaMapFlags::WRITE);
    let (mapped, remote) = (memory.remote_from - BASE, BASE + MEMORY - memory.remote_from);
    if mapped > 0 {
        dma.map(BASE, mapped, rights, FileOffset::from_arc(memory.file.clone(), 0)).unwrap();
    }
    if remote > 0 {
        dma.map_remote(memory.remote_from, remote, rights, Arc::new(memory.clone())).unwrap();
    }
    device
}

/// A controller that works by itself, on a thread of its own.
pub(crate) fn at_work(device: Device) -> WorkingDevice {
    WorkingDevice::start(device).unwrap()
}
