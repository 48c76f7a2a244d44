//! Requests on page tables, their dirty bits and a container's stand-in, where a device has an IOMMU: the kernel's own mock
//! device, and ours. Result, errno and bytes out.
//!
//! The mock device has pages of 2048 bytes: the list keeps to what is the same with 4096.

mod real;

use whimbrel_uapi::Errno;
use whimbrel_uapi::ioctl::*;
use whimbrel_uapi::iommufd::*;
use whimbrel_uapi::type1::{IommuType1DmaMap, IommuType1DmaUnmap};
use zerocopy::{Immutable, IntoBytes};

pub(crate) use self::real::Real;
use crate::vfio::probes::{ARGUMENT, DATA, SHARED, SHARED_SIZE};

/// Where the mock device's IOMMU begins to translate, and where it ends.
pub const FIRST: u64 = 0x100_0000;
/// See [`FIRST`].
pub const LAST: u64 = 0x7fff_ffff;

enum Step {
    /// A request with an argument: a number, or a structure.
    Number(Request, u64),
    Ask(Request, Vec<u8>),
    /// A new device is bound and attached to an object: three numbers are taken.
    Device {
        to: u32,
        tracks: bool,
    },
    /// The device of that number in the list attaches elsewhere.
    Attach {
        device: usize,
        to: u32,
    },
    /// It writes the pages whose bits are set, from an IOVA on, through the page table it uses.
    Write {
        device: usize,
        table: u32,
        iova: u64,
        pages: u64,
    },
    Close {
        device: usize,
    },
}

struct Steps(Vec<Step>);

impl Steps {
    fn ask(&mut self, request: Request, structure: impl IntoBytes + Immutable) {
        self.0.push(Step::Ask(request, structure.as_bytes().to_vec()));
    }

    fn map(&mut self, ioas_id: u32, flags: u32, user_va: u64, length: u64, iova: u64) {
        let flags = flags | IoasMapFlags::FIXED_IOVA.bits();
        self.ask(IOMMU_IOAS_MAP, IoasMap { size: 40, flags, ioas_id, __reserved: 0, user_va, length, iova });
    }

    fn unmap(&mut self, ioas_id: u32, iova: u64, length: u64) {
        self.ask(IOMMU_IOAS_UNMAP, IoasUnmap { size: 24, ioas_id, iova, length });
    }

    fn destroy(&mut self, ids: impl IntoIterator<Item = u32>) {
        ids.into_iter().for_each(|id| self.ask(IOMMU_DESTROY, Destroy { size: 8, id }));
    }

    fn table(&mut self, dev_id: u32, pt_id: u32, flags: u32) {
        self.ask(IOMMU_HWPT_ALLOC, HwptAlloc { size: 48, flags, dev_id, pt_id, ..Default::default() });
    }

    fn track(&mut self, hwpt_id: u32, flags: u32) {
        let asked = HwptSetDirtyTracking { size: 16, flags, hwpt_id, __reserved: 0 };
        self.ask(IOMMU_HWPT_SET_DIRTY_TRACKING, asked);
    }

    fn dirty(&mut self, hwpt_id: u32, flags: u32, iova: u64, length: u64, page_size: u64) {
        let data = DATA + 0x800;
        let asked =
            HwptGetDirtyBitmap { size: 48, hwpt_id, flags, __reserved: 0, iova, length, page_size, data };
        self.ask(IOMMU_HWPT_GET_DIRTY_BITMAP, asked);
    }

    fn map_dma(&mut self, flags: u32, vaddr: u64, iova: u64, size: u64) {
        self.ask(VFIO_IOMMU_MAP_DMA, IommuType1DmaMap { argsz: 32, flags, vaddr, iova, size });
    }

    fn unmap_dma(&mut self, flags: u32, iova: u64, size: u64) {
        self.ask(VFIO_IOMMU_UNMAP_DMA, IommuType1DmaUnmap { argsz: 24, flags, iova, size });
    }

    fn stand_in(&mut self, ioas_id: u32) {
        let asked = VfioIoas { size: 12, ioas_id, op: IOMMU_VFIO_IOAS_SET, __reserved: 0 };
        self.ask(IOMMU_VFIO_IOAS, asked);
    }

    fn ioas(&mut self) {
        self.ask(IOMMU_IOAS_ALLOC, IoasAlloc { size: 12, ..Default::default() });
    }
}

const READ: u32 = IoasMapFlags::READABLE.bits();
const BOTH: u32 = IoasMapFlags::READABLE.bits() | IoasMapFlags::WRITEABLE.bits();
const DIRTY: u32 = HwptAllocFlags::ALLOC_DIRTY_TRACKING.bits();
const NO_CLEAR: u32 = HwptGetDirtyBitmapFlags::NO_CLEAR.bits();

/// Numbers are handed out from 1, the lowest that is free first.
fn steps() -> Vec<Step> {
    let mut list = Steps(Vec::new());
    list.ioas();
    list.map(1, BOTH, SHARED, 0x4000, FIRST);
    list.map(1, READ, SHARED + 0x8000, 0x4000, FIRST + 0x4000);
    list.map(1, BOTH, SHARED, 0x1000, LAST - 0xfff);
    // 2 stands for the mock device itself, 3 is the device, 4 the table that is made for it.
    list.0.push(Step::Device { to: 1, tracks: true });
    list.0.push(Step::Device { to: 77, tracks: true });
    list.0.push(Step::Device { to: 3, tracks: true });
    list.destroy([1, 3, 4, 5, 9]);
    tables(&mut list);
    list.table(3, 1, DIRTY);
    dirty_requests(&mut list, &[4, 5, 1, 3, 9]);
    list.0.push(Step::Attach { device: 0, to: 9 });
    list.0.push(Step::Attach { device: 0, to: 3 });
    list.0.push(Step::Attach { device: 0, to: 5 });
    list.0.push(Step::Attach { device: 0, to: 5 });
    list.destroy([4, 1, 3, 5]);
    list.track(5, 1);
    dirty_pages(&mut list, 5);
    dirty_requests(&mut list, &[5]);
    mappings(&mut list, 5);
    others(&mut list);
    container(&mut list);
    first_iommu(&mut list);
    list.0
}

fn tables(list: &mut Steps) {
    for flags in [0, DIRTY, 4, 8, 6, 10, 16, 1 << 31, u32::MAX - 1] {
        for (dev_id, pt_id) in
            [(3, 1), (3, 3), (3, 4), (3, 9), (3, 0), (1, 1), (4, 1), (9, 1), (9, 9), (0, 0)]
        {
            for (data_type, data_len, __reserved) in
                [(0, 0, 0), (0, 8, 0), (7, 0, 0), (7, 8, 0), (0, 0, 1), (7, 0, 1)]
            {
                let asked = HwptAlloc {
                    size: 48,
                    flags,
                    dev_id,
                    pt_id,
                    data_type,
                    data_len,
                    data_uptr: DATA,
                    __reserved,
                    ..Default::default()
                };
                // A nested table for PASIDs: of that 6.12 knows nothing yet.
                if [flags, pt_id, data_type, data_len, __reserved] != [8, 4, 7, 8, 0] || dev_id != 3 {
                    list.ask(IOMMU_HWPT_ALLOC, asked);
                    list.destroy([5]);
                }
            }
        }
    }
    for size in [0, 16, 23, 24, 39, 40, 47, 48] {
        let asked = HwptAlloc { size, dev_id: 3, pt_id: 1, ..Default::default() };
        list.ask(IOMMU_HWPT_ALLOC, asked);
        list.destroy([5]);
    }
}

fn dirty_requests(list: &mut Steps, tables: &[u32]) {
    let top = u64::MAX - 0xfff;
    for table in tables.iter().copied() {
        for flags in [0, NO_CLEAR, 2, 3, 1 << 31] {
            for (iova, length) in [
                (FIRST, 0x4000),
                (FIRST, 0),
                (FIRST + 1, 0),
                (0, 0x1000),
                (FIRST + 0x2000, 0x8000),
                (FIRST + 1, 0x1000),
                (FIRST, 0x1001),
                (LAST - 0xfff, 0x1000),
                (LAST - 0xfff, 0x2000),
                (top, 0x1000),
                (top, 0x1001),
                (u64::MAX, 1),
                (u64::MAX, u64::MAX),
            ] {
                for page_size in [0, 0x1000, 0x2000, 0x10_0000, 1 << 63] {
                    list.dirty(table, flags, iova, length, page_size);
                }
            }
        }
        for flags in [2, 3, 1 << 31, 0] {
            list.track(table, flags);
        }
        list.track(table, 1);
    }
}

/// Writes, and reports of all kinds of what was written.
fn dirty_pages(list: &mut Steps, table: u32) {
    let write = |list: &mut Steps, iova: u64, pages: u64| {
        list.0.push(Step::Write { device: 0, table, iova, pages });
    };
    let whole = [(FIRST, 0x8000), (FIRST, 0x4000), (FIRST + 0x2000, 0x2000)];
    for pages in [0b1, 0b1000, 0b1111, 0b0110] {
        for (iova, length) in whole {
            for page_size in [0x1000, 0x2000] {
                for flags in [NO_CLEAR, 0, 0] {
                    write(list, FIRST, pages & if flags == 0 { 0b0011 } else { u64::MAX });
                    list.dirty(table, flags, iova, length, page_size);
                }
            }
        }
    }
    write(list, FIRST, 0b1111);
    list.track(table, 1);
    list.dirty(table, 0, FIRST, 0x8000, 0x1000);
    write(list, LAST - 0xfff, 1);
    list.dirty(table, NO_CLEAR, LAST - 0xfff, 0x1000, 0x1000);
    list.dirty(table, 0, LAST - 0xffff, 0x10000, 0x1000);
    list.dirty(table, 0, LAST - 0xfff, 0x1000, 0x1000);
    list.dirty(table, 0, LAST - 0xfff, 0x1000, 0x1000);
}

/// Mappings that come and go while a table has them and tracks.
fn mappings(list: &mut Steps, table: u32) {
    for (flags, address, length, iova) in [
        (BOTH, 0, 0x1000, FIRST + 0x10000),
        (BOTH, SHARED + SHARED_SIZE, 0x1000, FIRST + 0x10000),
        (BOTH, SHARED + SHARED_SIZE - 0x1000, 0x2000, FIRST + 0x10000),
        (BOTH, SHARED, 0x1000, FIRST - 0x1000),
        (BOTH, SHARED, 0x2000, FIRST - 0x1000),
        (BOTH, SHARED, 0x1000, LAST + 1),
        (BOTH, SHARED, 0x1000, FIRST),
        (BOTH, SHARED, 0x1001, FIRST + 0x10000),
        (BOTH, SHARED + 1, 0x1000, FIRST + 0x10000),
        (BOTH, SHARED, 0x1000, FIRST + 0x10001),
        (BOTH, SHARED, 0x1000, FIRST + 0x8000),
    ] {
        list.map(1, flags, address, length, iova);
        list.dirty(table, NO_CLEAR, FIRST, 0x10000, 0x1000);
    }
    list.0.push(Step::Write { device: 0, table, iova: FIRST, pages: 0b1_0000_0101 });
    list.dirty(table, NO_CLEAR, FIRST, 0x9000, 0x1000);
    list.unmap(1, FIRST + 0x1000, 0x1000);
    list.unmap(1, FIRST, 0x4000);
    list.dirty(table, NO_CLEAR, FIRST, 0x9000, 0x1000);
    list.dirty(table, NO_CLEAR, FIRST + 0x8000, 0x1000, 0x1000);
    list.map(1, BOTH, SHARED, 0x4000, FIRST);
    list.dirty(table, 0, FIRST, 0x9000, 0x1000);
    list.dirty(table, 0, FIRST, 0x9000, 0x1000);
    for huge in [0, 1] {
        let asked = IommuOption {
            size: 24,
            option_id: IOMMU_OPTION_HUGE_PAGES,
            op: IOMMU_OPTION_OP_SET,
            __reserved: 0,
            object_id: 1,
            val64: huge,
        };
        list.ask(IOMMU_OPTION, asked);
    }
}

/// More devices, on the same space and on another.
fn others(list: &mut Steps) {
    list.ioas();
    list.0.push(Step::Device { to: 5, tracks: false });
    list.0.push(Step::Device { to: 1, tracks: false });
    list.0.push(Step::Attach { device: 1, to: 5 });
    list.0.push(Step::Device { to: 5, tracks: true });
    list.0.push(Step::Attach { device: 2, to: 1 });
    list.0.push(Step::Attach { device: 2, to: 4 });
    for device in [2, 1] {
        list.0.push(Step::Attach { device, to: 4 });
        list.destroy([1, 5, 8]);
    }
    list.0.push(Step::Close { device: 2 });
    list.0.push(Step::Close { device: 1 });
    list.destroy(4..12);
}

/// A container's requests on the space that has a table.
fn container(list: &mut Steps) {
    list.stand_in(1);
    for extension in (0..=12).chain([u64::MAX]) {
        list.0.push(Step::Number(VFIO_CHECK_EXTENSION, extension));
        list.0.push(Step::Number(VFIO_SET_IOMMU, extension));
    }
    for argsz in (15..100).chain([u32::MAX]) {
        let mut bytes = vec![0xee; 100];
        bytes[..4].copy_from_slice(&argsz.to_ne_bytes());
        list.0.push(Step::Ask(VFIO_IOMMU_GET_INFO, bytes));
    }
    for (flags, vaddr, iova, size) in [
        (3, SHARED, FIRST, 0x1000),
        (3, SHARED, FIRST + 0x2_0000, 0x2000),
        (1, SHARED, FIRST + 0x3_0000, 0x1000),
        (2, SHARED, FIRST + 0x3_1000, 0x1000),
        (3, SHARED, 0, 0x1000),
        (3, SHARED, LAST, 0x1000),
        (3, 0x5000, FIRST + 0x4_0000, 0x1000),
        (3, SHARED, FIRST + 0x4_0000, 0x1001),
        (3, SHARED, FIRST + 0x4_0000, 0),
        (7, SHARED, FIRST + 0x4_0000, 0x1000),
    ] {
        list.map_dma(flags, vaddr, iova, size);
    }
    for (flags, iova, size) in [
        (0, FIRST + 0x2_1000, 0x1000),
        (0, FIRST + 0x2_0000, 0x1000),
        (0, FIRST + 0x3_0000, 0x8000),
        (0, FIRST + 0x1_0000, 0x2_0000),
        (0, FIRST, 0x5000),
        (0, FIRST, 0),
        (2, FIRST, 0),
        (0, u64::MAX, 2),
        (2, 0, 0),
        (2, 0, 0),
    ] {
        list.unmap_dma(flags, iova, size);
    }
    list.0.push(Step::Number(VFIO_SET_IOMMU, 1));
}

/// The first IOMMU cuts mappings, and what is left is as dirty as it was.
fn first_iommu(list: &mut Steps) {
    let table = 5;
    for (iova, size) in [
        (FIRST + 0x1000, 0x1000),
        (FIRST, 0x1000),
        (FIRST + 0x3000, 0x1000),
        (FIRST + 0x2000, 0x8000),
        (FIRST - 0x1000, 0x3000),
        (FIRST + 0x1001, 0x1000),
        (FIRST + 0x1000, 0x1001),
        (FIRST + 0x2000, 0),
        (FIRST, 0),
        (0, 0),
        (u64::MAX - 0xfff, 0x2000),
    ] {
        list.map_dma(3, SHARED, FIRST, 0x4000);
        list.map_dma(3, SHARED + 0x4000, FIRST + 0x4000, 0x4000);
        list.track(table, 1);
        list.0.push(Step::Write { device: 0, table, iova: FIRST, pages: 0b0110_1001 });
        list.dirty(table, NO_CLEAR, FIRST, 0x8000, 0x1000);
        list.unmap_dma(0, iova, size);
        for page in 0..8 {
            list.dirty(table, NO_CLEAR, FIRST + (page << 12), 0x1000, 0x1000);
        }
        list.unmap_dma(0, FIRST + 0x5000, 0x1000);
        list.dirty(table, 0, FIRST + 0x6000, 0x2000, 0x1000);
        for page in 0..8 {
            list.unmap(1, FIRST + (page << 12), 0x1000);
        }
        list.unmap_dma(2, 0, 0);
    }
}

/// A kernel, or what stands for one.
pub trait Side {
    /// What is at [`ARGUMENT`] and at [`DATA`] is put there before, and told afterwards.
    fn ioctl(&mut self, number: u32, argument: u64, bytes: &mut [u8], data: &mut [u8]) -> Result<i32, Errno>;
    /// The numbers of the device and of the table that it uses.
    fn device(&mut self, to: u32, tracks: bool) -> Result<[u32; 2], Errno>;
    /// Attaches the device of that number in the list elsewhere, and returns the table that it uses.
    fn attach(&mut self, device: usize, to: u32) -> Result<u32, Errno>;
    /// Has the device write the pages whose bits are set, from an IOVA on, through a page table.
    fn write(&mut self, device: usize, table: u32, iova: u64, pages: u64);
    /// Closes a device.
    fn close(&mut self, device: usize);
}

/// Bytes of the data that are told.
pub const TOLD: usize = 16;

fn answer(side: &mut impl Side, step: &Step) -> String {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let told = |result: Result<i32, Errno>| {
        result.map_or_else(|errno| format!("{errno:?}"), |value| value.to_string())
    };
    match step {
        Step::Number(request, argument) => {
            let result = side.ioctl(request.number(), *argument, &mut [], &mut [0; TOLD]);
            format!("{request} {argument:x} {}", told(result))
        }
        Step::Ask(request, bytes) => {
            let (mut out, mut data) = (bytes.clone(), [0; TOLD]);
            let result = side.ioctl(request.number(), ARGUMENT, &mut out, &mut data);
            let changed = if out == *bytes { String::from("=") } else { hex(&out) };
            let data = if data == [0; TOLD] { String::new() } else { format!(" {}", hex(&data)) };
            format!("{request} {} {} {changed}{data}", hex(bytes), told(result))
        }
        Step::Device { to, tracks } => format!("device {to} {tracks} {:?}", side.device(*to, *tracks)),
        Step::Attach { device, to } => format!("attach {device} {to} {:?}", side.attach(*device, *to)),
        Step::Write { device, table, iova, pages } => {
            side.write(*device, *table, *iova, *pages);
            format!("write {device} {table} {iova:x} {pages:b}")
        }
        Step::Close { device } => {
            side.close(*device);
            format!("close {device}")
        }
    }
}

/// Makes all steps, and tells each with its answer in a line.
pub fn answers(side: &mut impl Side, told: impl FnMut(String)) {
    steps().iter().map(|step| answer(side, step)).for_each(told);
}
