//! The driver side of an iommufd: a program that drives it with raw ioctl bytes gets the kernel's answers.
//!
//! An [`Iommufd`] holds objects under numbers: address spaces, hardware page tables, and the devices that a
//! [`Cdev`](crate::Cdev) bound to it. What is mapped in an address space is reachable, with the rights the
//! mapping has, by the devices attached to it, through their [`Bus`].
//!
//! Sizes and the common checks are here (`drivers/iommu/iommufd/main.c`); what the requests do is in the
//! other files. Nested page tables, fault queues and virtual IOMMUs are not here: their requests get ENOTTY.

mod command;
mod compat;
mod device;
mod domain;
mod hwpt;
mod ioas;
mod object;
mod pages;
mod requests;
mod spans;

use std::fmt;
use std::fs::File;
use std::ops::RangeInclusive;
use std::sync::Arc;

use parking_lot::Mutex;
use whimbrel_protocol::Errno;
use whimbrel_uapi::ioctl::{
    IOMMU_DESTROY, IOMMU_GET_HW_INFO, IOMMU_HWPT_ALLOC, IOMMU_HWPT_GET_DIRTY_BITMAP,
    IOMMU_HWPT_SET_DIRTY_TRACKING, IOMMU_IOAS_ALLOC, IOMMU_IOAS_ALLOW_IOVAS, IOMMU_IOAS_CHANGE_PROCESS,
    IOMMU_IOAS_COPY, IOMMU_IOAS_IOVA_RANGES, IOMMU_IOAS_MAP, IOMMU_IOAS_MAP_FILE, IOMMU_IOAS_UNMAP,
    IOMMU_OPTION, IOMMU_VFIO_IOAS, Request,
};
use whimbrel_uapi::iommufd as uapi;

use whimbrel_uapi::decode;

use crate::bus::Bus;
use crate::iommu::type1::Translation;
use crate::raw::process::Process;
use crate::raw::trace::traced;
use command::Command;
pub(crate) use command::copy_struct_from_user;
use object::Objects;
use pages::PAGE_SIZE;
use whimbrel_memory::Memory;

/// The caller of a raw ioctl on an iommufd or a device's own file: beside what every [`Process`] has, the
/// memory it can map.
pub trait Caller: Process {
    /// The memory behind `length` bytes from `address`, in order. Both arguments are multiples of 4096. With
    /// `write` the memory must be writable. EFAULT if the process has no such memory, or none that can be
    /// shared.
    fn memory(&self, address: u64, length: u64, write: bool) -> Result<Vec<Memory>, Errno>;

    /// The memory file behind a descriptor, open for writing if it is to be written. EBADF if there is none.
    fn memory_file(&self, fd: i32) -> Result<File, Errno>;
}

/// The IOMMU in front of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Iommu {
    /// None in hardware: the driver looks up each access itself, as for a mediated device. Such a device
    /// attaches to an address space and has no page tables.
    Emulated,
    /// One of its own, with page tables.
    Own(OwnIommu),
}

/// What an IOMMU in front of a device can do.
///
/// ```
/// use whimbrel_device::iommufd::{Iommu, OwnIommu};
///
/// // As on a PC: the window of message interrupts means no memory.
/// let reserved = vec![(0xfee0_0000, 0xfeef_ffff)];
/// let iommu = OwnIommu { dirty_tracking: true, reserved, pasid_bits: 20, ..OwnIommu::default() };
/// let iommu = Iommu::Own(iommu);
/// # let _ = iommu;
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnIommu {
    /// Page tables can keep dirty bits.
    pub dirty_tracking: bool,
    /// The last IOVA it translates.
    pub last_iova: u64,
    /// IOVAs that mean something else to the device, first and last, such as the window of message
    /// interrupts.
    pub reserved: Vec<(u64, u64)>,
    /// Sizes of its pages: bit n for 2^n bytes. A page table can be made only if 4096 bytes can be put
    /// together of them.
    pub page_sizes: u64,
    /// It makes accesses coherent with the caches whatever the device asks for (VFIO_DMA_CC_IOMMU).
    pub coherent: bool,
    /// Width of a PASID, in bits: 0 for a device that has none. A PASID has 20 bits at most.
    pub pasid_bits: u8,
}

impl Default for OwnIommu {
    /// An IOMMU that translates every IOVA in pages of any size from 4096 bytes, is coherent, keeps no dirty
    /// bits and knows no PASIDs.
    fn default() -> OwnIommu {
        OwnIommu {
            dirty_tracking: false,
            last_iova: u64::MAX,
            reserved: Vec::new(),
            page_sizes: !(PAGE_SIZE - 1),
            coherent: true,
            pasid_bits: 0,
        }
    }
}

impl OwnIommu {
    /// Bits of a PASID.
    fn pasid_width(&self) -> u8 {
        self.pasid_bits.min(20)
    }
}

impl Iommu {
    pub(crate) fn has_pasids(&self) -> bool {
        matches!(self, Iommu::Own(iommu) if iommu.pasid_bits > 0)
    }
}

impl From<&Translation> for Iommu {
    /// How a device of a group reaches memory when the group is given an iommufd for a container.
    fn from(translation: &Translation) -> Iommu {
        let Translation::Hardware(hardware) = translation else { return Iommu::Emulated };
        let ranges = hardware.iova_ranges();
        let starts = ranges.iter().map(|range| range.start);
        let ends = std::iter::once(None).chain(ranges.iter().map(|range| Some(range.end)));
        // What lies between the ranges, and before the first.
        let reserved = ends.zip(starts).filter_map(|(end, start)| {
            let first = end.map_or(0, |end| end.saturating_add(1));
            (first < start).then(|| (first, start - 1))
        });
        Iommu::Own(OwnIommu {
            last_iova: ranges.last().map_or(u64::MAX, |range| range.end),
            reserved: reserved.collect(),
            page_sizes: hardware.page_sizes(),
            coherent: hardware.is_coherent(),
            ..OwnIommu::default()
        })
    }
}

/// An open iommufd. A clone is another handle to the same file.
///
/// ```
/// use whimbrel_device::iommufd::Iommufd;
/// # use whimbrel_device::{DataFile, Errno, Fault, Memory, Process, SparseMemory, iommufd::Caller};
/// use whimbrel_uapi::ioctl::{IOMMU_DESTROY, IOMMU_IOAS_ALLOC};
/// # struct Program(SparseMemory);
/// # impl Process for Program {
/// #     fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), Fault> { self.0.read(address, buffer)
/// }
/// #     fn write(&mut self, address: u64, data: &[u8]) -> Result<(), Fault> { self.0.write(address, data) }
/// #     fn install(&mut self, file: DataFile) -> Result<i32, Errno> { self.0.install(file) }
/// #     fn uninstall(&mut self, fd: i32) { self.0.uninstall(fd) }
/// # }
/// # impl Caller for Program {
/// #     fn memory(&self, _: u64, _: u64, _: bool) -> Result<Vec<Memory>, Errno> {
/// #         Err(Errno::EFAULT)
/// #     }
/// #     fn memory_file(&self, _: i32) -> Result<std::fs::File, Errno> { Err(Errno::EBADF) }
/// # }
///
/// let iommufd = Iommufd::new();
/// let mut program = Program(SparseMemory::new());
/// // struct iommu_ioas_alloc { size, flags, out_ioas_id }
/// program.0.insert(0x1000, [12u32, 0, 0].map(u32::to_ne_bytes).concat());
/// iommufd.ioctl(IOMMU_IOAS_ALLOC.number(), 0x1000, &mut program)?;
/// assert_eq!(program.0.piece(0x1000).unwrap()[8..], 1u32.to_ne_bytes());
///
/// // struct iommu_destroy { size, id }
/// program.0.insert(0x2000, [8u32, 1].map(u32::to_ne_bytes).concat());
/// iommufd.ioctl(IOMMU_DESTROY.number(), 0x2000, &mut program)?;
/// assert_eq!(iommufd.ioctl(IOMMU_DESTROY.number(), 0x2000, &mut program), Err(Errno::ENOENT));
/// # Ok::<(), Errno>(())
/// ```
#[derive(Clone, Default)]
pub struct Iommufd {
    objects: Arc<Mutex<Objects>>,
}

impl Iommufd {
    /// An iommufd without objects, as `open("/dev/iommu")` gives it.
    pub fn new() -> Iommufd {
        Iommufd::default()
    }

    /// A raw ioctl: `number` as in the header, `argument` an address in `caller`.
    ///
    /// ENOTTY for a request that is not known here; otherwise EFAULT for a structure that cannot be read,
    /// EINVAL for one that says it is smaller than the request's first version, E2BIG for one with bytes that
    /// are not known here and not 0; then what the request says.
    ///
    /// The requests of a container are answered too, on the address space that stands in for one.
    pub fn ioctl(&self, number: u32, argument: u64, caller: &mut dyn Caller) -> Result<i32, Errno> {
        traced(decode::File::Iommufd, "iommufd", (number, argument), caller, |caller| {
            self.execute(number, argument, caller)
        })
    }

    fn execute(&self, number: u32, argument: u64, caller: &mut dyn Caller) -> Result<i32, Errno> {
        if !NUMBERS.contains(&(number & 0xff)) {
            return compat::ioctl(&mut self.objects.lock(), number, argument, caller);
        }
        let request = REQUESTS.iter().find(|(request, ..)| request.number() == number);
        let Some((_, least, execute)) = request else {
            return Command::begin(caller, argument, 0).and(Err(Errno::ENOTTY));
        };
        let mut command = Command::begin(caller, argument, *least)?;
        execute(&mut self.objects.lock(), &mut command)?;
        Ok(0)
    }

    /// How many objects there are, of any kind.
    pub fn objects(&self) -> usize {
        self.objects.lock().count()
    }

    /// Whether both are handles to one iommufd.
    pub(crate) fn is(&self, other: &Iommufd) -> bool {
        Arc::ptr_eq(&self.objects, &other.objects)
    }

    pub(crate) fn bind(&self, bus: Bus, iommu: &Iommu) -> Result<u32, Errno> {
        self.objects.lock().bind(bus, iommu)
    }

    pub(crate) fn unbind(&self, device: u32) {
        self.objects.lock().unbind(device);
    }

    /// Attaches a device, or one of its PASIDs, to an address space or a page table; returns what it uses.
    pub(crate) fn attach(&self, device: u32, pasid: Option<u32>, page_table: u32) -> Result<u32, Errno> {
        self.objects.lock().attach(device, pasid, page_table)
    }

    pub(crate) fn detach(&self, device: u32, pasid: Option<u32>) {
        self.objects.lock().detach(device, pasid);
    }

    /// Sees to it that there is an address space that stands in for a container.
    pub(crate) fn make_compatible(&self) -> Result<(), Errno> {
        self.objects.lock().make_compatible()
    }

    /// Attaches a device to the address space that stands in for a container: ENODEV if there is none.
    pub(crate) fn attach_compatible(&self, device: u32) -> Result<(), Errno> {
        let mut objects = self.objects.lock();
        let ioas = objects.compatible()?;
        objects.attach(device, None, ioas).map(|_| ())
    }
}

impl fmt::Debug for Iommufd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Iommufd").finish_non_exhaustive()
    }
}

/// The numbers of the requests that are an iommufd's own, known here or not, in the lowest byte of a request:
/// `drivers/iommu/iommufd/main.c` of Linux 7.3.
const NUMBERS: RangeInclusive<u32> = 0x80..=0x94;

type Execute = fn(&mut Objects, &mut Command<'_>) -> Result<(), Errno>;

/// Each request, the least size of its structure in bytes, and what it does.
const REQUESTS: [(Request, usize, Execute); 15] = [
    (IOMMU_DESTROY, size_of::<uapi::Destroy>(), requests::destroy),
    (IOMMU_IOAS_ALLOC, size_of::<uapi::IoasAlloc>(), requests::ioas_alloc),
    (IOMMU_IOAS_ALLOW_IOVAS, size_of::<uapi::IoasAllowIovas>(), requests::ioas_allow_iovas),
    (IOMMU_IOAS_COPY, size_of::<uapi::IoasCopy>(), requests::ioas_copy),
    (IOMMU_IOAS_IOVA_RANGES, size_of::<uapi::IoasIovaRanges>(), requests::ioas_iova_ranges),
    (IOMMU_IOAS_MAP, size_of::<uapi::IoasMap>(), requests::ioas_map),
    (IOMMU_IOAS_UNMAP, size_of::<uapi::IoasUnmap>(), requests::ioas_unmap),
    (IOMMU_OPTION, size_of::<uapi::IommuOption>(), requests::option),
    (IOMMU_VFIO_IOAS, size_of::<uapi::VfioIoas>(), requests::vfio_ioas),
    (IOMMU_HWPT_ALLOC, std::mem::offset_of!(uapi::HwptAlloc, data_type), hwpt::alloc),
    (IOMMU_GET_HW_INFO, std::mem::offset_of!(uapi::HwInfo, out_capabilities), hwpt::hw_info),
    (IOMMU_HWPT_SET_DIRTY_TRACKING, size_of::<uapi::HwptSetDirtyTracking>(), hwpt::set_dirty_tracking),
    (IOMMU_HWPT_GET_DIRTY_BITMAP, size_of::<uapi::HwptGetDirtyBitmap>(), hwpt::get_dirty_bitmap),
    (IOMMU_IOAS_MAP_FILE, size_of::<uapi::IoasMapFile>(), requests::ioas_map_file),
    (IOMMU_IOAS_CHANGE_PROCESS, size_of::<uapi::IoasChangeProcess>(), requests::ioas_change_process),
];
