//! A machine with one container, one group of two devices, and a process with 64 KiB of memory to map.

use std::fs::File;

use rustix::fs::{MemfdFlags, memfd_create};
use whimbrel_device::{
    Bus, Container, ContainerSettings, Context, DeviceFile, DeviceInfoFlags, Driver, Errno, Group, GroupFile,
    HardwareIommu, Info, KernelVersion, Memory, SparseMemory, Translation,
};
use whimbrel_memory::FileOffset;
use whimbrel_uapi::group::VFIO_TYPE1V2_IOMMU;
use whimbrel_uapi::ioctl::Request;
use whimbrel_uapi::type1::IovaRange;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Where the process has the memory that it maps.
pub(crate) const MEMORY: u64 = 0x7000_0000;
pub(crate) const MEMORY_SIZE: u64 = 0x10000;
/// Where an argument is put.
pub(crate) const ARGUMENT: u64 = 0x1000;
/// Where a bitmap is put.
pub(crate) const BITMAP: u64 = 0x2000;
/// Where the process has no memory.
pub(crate) const NOWHERE: u64 = 0x6666_0000;
pub(crate) const PAGE: u64 = 4096;
pub(crate) const LAST_PAGE: u64 = 0u64.wrapping_sub(PAGE);

struct Quiet;

impl Driver for Quiet {
    fn info(&self) -> Info {
        Info::new(DeviceInfoFlags::RESET)
    }

    fn reset(&mut self, _: &Context) -> Result<(), Errno> {
        Ok(())
    }
}

pub(crate) fn device(name: &str) -> DeviceFile {
    DeviceFile::new(name, |_| Quiet)
}

pub(crate) fn memory(size: u64, writable: bool) -> Memory {
    let file = File::from(memfd_create(c"type1 test", MemfdFlags::empty()).unwrap());
    file.set_len(size).unwrap();
    Memory::of_file(FileOffset::new(file, 0), size, writable).unwrap()
}

pub(crate) fn hardware(ranges: &[(u64, u64)]) -> Translation {
    let ranges = ranges.iter().map(|(start, end)| IovaRange { start: *start, end: *end }).collect();
    Translation::Hardware(HardwareIommu::new(ranges, 0x4020_1000, true).unwrap())
}

pub(crate) fn process() -> SparseMemory {
    let mut process = SparseMemory::new();
    process.insert_shared(MEMORY, memory(MEMORY_SIZE, true));
    process
}

pub(crate) struct Machine {
    pub(crate) container: Container,
    pub(crate) group: GroupFile,
    pub(crate) buses: [Bus; 2],
    pub(crate) process: SparseMemory,
}

impl Machine {
    /// As 7.3, type1v2, without hardware.
    pub(crate) fn new() -> Machine {
        Machine::with(ContainerSettings::default(), Translation::Emulated, VFIO_TYPE1V2_IOMMU)
    }

    pub(crate) fn of_kernel(kernel: KernelVersion) -> Machine {
        let settings = ContainerSettings::default().kernel(kernel);
        Machine::with(settings, Translation::Emulated, VFIO_TYPE1V2_IOMMU)
    }

    pub(crate) fn with(settings: ContainerSettings, translation: Translation, iommu: u32) -> Machine {
        let devices = [device("a"), device("b")];
        let buses = devices.each_ref().map(|device| device.bus().clone());
        let group = Group::new(translation, devices.to_vec()).unwrap().open().unwrap();
        let container = Container::new(settings);
        group.set_container(&container).unwrap();
        container.set_iommu(iommu.into()).unwrap();
        Machine { container, group, buses, process: process() }
    }

    /// A raw ioctl on the container whose argument is `argument`; returns also what is there afterwards.
    pub(crate) fn ioctl(&mut self, request: Request, argument: &[u8]) -> (Result<i32, Errno>, Vec<u8>) {
        self.process.insert(ARGUMENT, argument);
        let result = self.container.ioctl(request.number(), ARGUMENT, &mut self.process);
        (result, self.process.piece(ARGUMENT).unwrap().to_vec())
    }

    /// As [`Machine::ioctl`] with structures.
    pub(crate) fn ask<T: IntoBytes + FromBytes + Immutable>(
        &mut self,
        request: Request,
        argument: &T,
    ) -> (Result<i32, Errno>, T) {
        let (result, bytes) = self.ioctl(request, argument.as_bytes());
        (result, T::read_from_bytes(&bytes).unwrap())
    }
}
