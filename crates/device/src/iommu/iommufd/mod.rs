//! The driver side of iommufd: it answers as the kernel's, down to the raw bytes of its ioctls.
//!
//! An [`Iommufd`] has numbered objects: address spaces, hardware page tables, and the devices bound to it by a
//! [`Cdev`](crate::Cdev). Devices attached to an address space can access its mappings through their [`Bus`], with the
//! rights of each mapping.
//!
//! The requests as bytes, with the checks of sizes and flags, are in [`raw`](crate::raw).

mod attach;
mod device;
pub(crate) mod domain;
pub(crate) mod hwpt;
pub(crate) mod ioas;
pub(crate) mod object;
pub(crate) mod pages;
pub(crate) mod spans;

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use whimbrel_protocol::Errno;

use self::object::Objects;
use self::pages::PAGE_SIZE;
use super::type1::Translation;
use crate::bus::Bus;

/// The IOMMU in front of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Iommu {
    /// No hardware IOMMU: the driver translates each access itself, as for a mediated device. The device attaches to an
    /// address space and has no page tables.
    Emulated,
    /// An IOMMU with page tables.
    Own(OwnIommu),
}

/// The capabilities of an IOMMU in front of a device.
///
/// ```
/// use whimbrel_device::iommufd::{Iommu, OwnIommu};
///
/// // As on a PC: the window of message interrupts means no memory.
/// let reserved = vec![(0xfee0_0000, 0xfeef_ffff)];
/// let iommu = OwnIommu::default().dirty_tracking(true).reserved(reserved).pasid_bits(20);
/// let iommu = Iommu::Own(iommu);
/// # let _ = iommu;
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct OwnIommu {
    /// Page tables support dirty tracking.
    pub dirty_tracking: bool,
    /// The last IOVA it translates.
    pub last_iova: u64,
    /// Reserved IOVA ranges, first and last address, such as the window of message interrupts.
    pub reserved: Vec<(u64, u64)>,
    /// Supported page sizes: bit n for 2^n bytes. A page table needs one of at most 4096 bytes.
    pub page_sizes: u64,
    /// Enforces cache coherence of all accesses (VFIO_DMA_CC_IOMMU).
    pub coherent: bool,
    /// Width of a PASID in bits, at most 20; 0 without PASIDs.
    pub pasid_bits: u8,
}

impl Default for OwnIommu {
    /// Returns an IOMMU that translates every IOVA in pages of any size from 4096 bytes and is coherent, without dirty
    /// tracking and PASIDs.
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
    /// Sets [`OwnIommu::dirty_tracking`].
    #[must_use]
    pub fn dirty_tracking(self, dirty_tracking: bool) -> OwnIommu {
        OwnIommu { dirty_tracking, ..self }
    }

    /// Sets [`OwnIommu::last_iova`].
    #[must_use]
    pub fn last_iova(self, last_iova: u64) -> OwnIommu {
        OwnIommu { last_iova, ..self }
    }

    /// Sets [`OwnIommu::reserved`].
    #[must_use]
    pub fn reserved(self, reserved: Vec<(u64, u64)>) -> OwnIommu {
        OwnIommu { reserved, ..self }
    }

    /// Sets [`OwnIommu::page_sizes`].
    #[must_use]
    pub fn page_sizes(self, page_sizes: u64) -> OwnIommu {
        OwnIommu { page_sizes, ..self }
    }

    /// Sets [`OwnIommu::coherent`].
    #[must_use]
    pub fn coherent(self, coherent: bool) -> OwnIommu {
        OwnIommu { coherent, ..self }
    }

    /// Sets [`OwnIommu::pasid_bits`].
    #[must_use]
    pub fn pasid_bits(self, pasid_bits: u8) -> OwnIommu {
        OwnIommu { pasid_bits, ..self }
    }

    /// Bits of a PASID.
    pub(crate) fn pasid_width(&self) -> u8 {
        self.pasid_bits.min(20)
    }
}

impl Iommu {
    pub(crate) fn has_pasids(&self) -> bool {
        matches!(self, Iommu::Own(iommu) if iommu.pasid_bits > 0)
    }
}

impl From<&Translation> for Iommu {
    /// Converts the translation of a group's device for a group with an iommufd as its container.
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
    /// Returns an iommufd without objects, as from `open("/dev/iommu")`.
    pub fn new() -> Iommufd {
        Iommufd::default()
    }

    /// Returns the number of objects of any kind.
    pub fn objects(&self) -> usize {
        self.objects.lock().count()
    }

    /// Executes a request on the objects. Requests are serialized.
    pub(crate) fn with_objects<T>(&self, request: impl FnOnce(&mut Objects) -> T) -> T {
        request(&mut self.objects.lock())
    }

    /// Returns whether both are handles to the same iommufd.
    pub(crate) fn is(&self, other: &Iommufd) -> bool {
        Arc::ptr_eq(&self.objects, &other.objects)
    }

    pub(crate) fn bind(&self, bus: Bus, iommu: &Iommu) -> Result<u32, Errno> {
        self.objects.lock().bind(bus, iommu)
    }

    pub(crate) fn unbind(&self, device: u32) {
        self.objects.lock().unbind(device);
    }

    /// Attaches a device, or one of its PASIDs, to an address space or a page table, and returns what it uses.
    pub(crate) fn attach(&self, device: u32, pasid: Option<u32>, page_table: u32) -> Result<u32, Errno> {
        self.objects.lock().attach(device, pasid, page_table)
    }

    pub(crate) fn detach(&self, device: u32, pasid: Option<u32>) {
        self.objects.lock().detach(device, pasid);
    }

    /// Creates the address space that replaces a container, if it does not exist.
    pub(crate) fn make_compatible(&self) -> Result<(), Errno> {
        self.objects.lock().make_compatible()
    }

    /// Attaches a device to the address space that replaces a container; ENODEV without one.
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
