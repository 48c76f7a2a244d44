//! A container with one device, and a process with memory to map there.

use std::error::Error;
use std::fs::File;

use rustix::fs::{MemfdFlags, memfd_create};
use whimbrel_device::{
    Bus, Container, ContainerSettings, Context, DeviceFile, DeviceInfoFlags, Driver, Errno, Group, GroupFile,
    Info, Memory, SparseMemory, Translation,
};
use whimbrel_memory::FileOffset;
use whimbrel_uapi::group::VFIO_TYPE1V2_IOMMU;
use whimbrel_uapi::type1::DmaMapFlags;

pub(crate) const PAGE: u64 = 4096;
/// The address of the process's memory.
pub(crate) const MEMORY: u64 = 0x100_0000_0000;
pub(crate) const BOTH: DmaMapFlags = DmaMapFlags::READ.union(DmaMapFlags::WRITE);

pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

struct Quiet;

impl Driver for Quiet {
    fn info(&self) -> Info {
        Info::new(DeviceInfoFlags::RESET)
    }

    fn reset(&mut self, _: &Context) -> std::result::Result<(), Errno> {
        Ok(())
    }
}

/// A container with one device.
pub(crate) struct Contained {
    pub(crate) container: Container,
    pub(crate) bus: Bus,
    pub(crate) process: SparseMemory,
    _group: GroupFile,
}

impl Contained {
    /// A container of type 1, with `size` bytes of memory in its process, of which nothing is mapped yet.
    pub(crate) fn new(settings: ContainerSettings, size: u64) -> Result<Contained> {
        let mut process = SparseMemory::new();
        process.insert_shared(MEMORY, memory(size)?);
        let device = DeviceFile::new("bench", |_| Quiet);
        let bus = device.bus().clone();
        let group = Group::new(Translation::Emulated, vec![device])?.open()?;
        let container = Container::new(settings);
        group.set_container(&container)?;
        container.set_iommu(VFIO_TYPE1V2_IOMMU.into())?;
        Ok(Contained { container, bus, process, _group: group })
    }
}

/// Memory that takes up only what is written.
pub(crate) fn memory(size: u64) -> Result<Memory> {
    let file = File::from(memfd_create(c"bench", MemfdFlags::empty())?);
    file.set_len(size)?;
    Ok(Memory::of_file(FileOffset::new(file, 0), size, true)?)
}
