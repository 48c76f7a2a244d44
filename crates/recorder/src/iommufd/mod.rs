//! Raw requests on an iommufd without devices: result, errno and bytes out.

mod real;

use whimbrel_uapi::Errno;
use whimbrel_uapi::ioctl::*;
use whimbrel_uapi::iommufd::*;
use zerocopy::{Immutable, IntoBytes};

pub(crate) use self::real::Real;
use crate::vfio::probes::{ARGUMENT, DATA, PAGE, SHARED, SHARED_SIZE};

/// An iommufd, with a page at [`ARGUMENT`] and one at [`DATA`], and nothing after each.
pub trait Side {
    /// Puts bytes into the page that they begin in.
    fn put(&mut self, address: u64, bytes: &[u8]);
    /// Reads bytes of the page that they begin in.
    fn get(&self, address: u64, bytes: &mut [u8]);
    /// Makes a request on the iommufd.
    fn ioctl(&mut self, number: u32, argument: u64) -> Result<i32, Errno>;
}

struct Probe {
    request: Request,
    /// Where the structure is put; what lies past the page is not there.
    at: u64,
    bytes: Vec<u8>,
}

struct Probes(Vec<Probe>);

impl Probes {
    fn add(&mut self, request: Request, structure: impl IntoBytes + Immutable) {
        self.0.push(Probe { request, at: ARGUMENT, bytes: structure.as_bytes().to_vec() });
    }

    /// The same request with every size around the ones that matter, with bytes nobody knows, and cut by the
    /// end of memory.
    fn sizes(&mut self, request: Request, structure: impl IntoBytes + Immutable, sizes: &[u32]) {
        for size in sizes {
            for (tail, filler) in [(0usize, 0u8), (0, 1), (64, 0), (64, 1)] {
                let mut bytes = structure.as_bytes().to_vec();
                bytes[..4].copy_from_slice(&size.to_ne_bytes());
                bytes.resize(bytes.len() + tail, filler);
                self.0.push(Probe { request, at: ARGUMENT, bytes });
            }
        }
        for left in [0u64, 3, 4, 8, 12, 24] {
            let bytes = structure.as_bytes().to_vec();
            self.0.push(Probe { request, at: ARGUMENT + PAGE as u64 - left, bytes });
        }
    }
}

const ALL_FLAGS: u32 = 7;
const FIXED: u32 = IoasMapFlags::FIXED_IOVA.bits();
const WRITE: u32 = IoasMapFlags::WRITEABLE.bits();
const READ: u32 = IoasMapFlags::READABLE.bits();
const MAX: u64 = u64::MAX;

fn map(ioas_id: u32, flags: u32, user_va: u64, length: u64, iova: u64) -> IoasMap {
    IoasMap { size: 40, flags, ioas_id, __reserved: 0, user_va, length, iova }
}

fn unmap(ioas_id: u32, iova: u64, length: u64) -> IoasUnmap {
    IoasUnmap { size: 24, ioas_id, iova, length }
}

fn copy(flags: u32, to: u32, from: u32, length: u64, dst_iova: u64, src_iova: u64) -> IoasCopy {
    IoasCopy { size: 40, flags, dst_ioas_id: to, src_ioas_id: from, length, dst_iova, src_iova }
}

fn ranges(ioas_id: u32, num_iovas: u32, allowed_iovas: u64) -> IoasIovaRanges {
    IoasIovaRanges { size: 32, ioas_id, num_iovas, __reserved: 0, allowed_iovas, out_iova_alignment: 7 }
}

fn allow(ioas_id: u32, num_iovas: u32, allowed_iovas: u64) -> IoasAllowIovas {
    IoasAllowIovas { size: 24, ioas_id, num_iovas, __reserved: 0, allowed_iovas }
}

/// The ranges that the page at [`DATA`] begins with.
const RANGES: [[u64; 2]; 8] = [
    [0x100_0000, 0x10f_ffff],
    [0x200_0000, 0x2ff_ffff],
    [0x300_0000, 0x3ff_ffff],
    [0x250_0000, 0x260_0000],
    [5, 5],
    [6, 5],
    [0, MAX],
    [MAX - 0x2000, MAX],
];

fn options(list: &mut Probes) {
    for option_id in [IOMMU_OPTION_RLIMIT_MODE, IOMMU_OPTION_HUGE_PAGES, 2] {
        for op in [IOMMU_OPTION_OP_SET, IOMMU_OPTION_OP_GET, 2] {
            for (object_id, __reserved) in [(0, 0), (1, 0), (9, 0), (1, 1)] {
                for val64 in [0, 1, 2] {
                    list.add(
                        IOMMU_OPTION,
                        IommuOption { size: 24, option_id, op, __reserved, object_id, val64 },
                    );
                }
            }
        }
    }
}

/// Numbers of objects are handed out from 1: 1 and 2 are address spaces soon.
fn probes() -> Vec<Probe> {
    let mut list = Probes(Vec::new());
    options(&mut list);
    list.sizes(IOMMU_DESTROY, Destroy { size: 8, id: 1 }, &[0, 4, 7, 8, 9, 16, 64, 4096, 4097]);
    list.add(IOMMU_VFIO_IOAS, VfioIoas { size: 12, ioas_id: 7, op: IOMMU_VFIO_IOAS_GET, __reserved: 0 });
    for flags in [0, 0, 1, 1 << 31] {
        list.add(IOMMU_IOAS_ALLOC, IoasAlloc { size: 12, flags, out_ioas_id: 77 });
    }
    list.sizes(IOMMU_IOAS_ALLOC, IoasAlloc { size: 12, flags: 1, out_ioas_id: 0 }, &[0, 11, 12, 13, 32]);
    options(&mut list);
    for op in [0, 1, 2, 3] {
        for (ioas_id, __reserved) in [(0, 0), (1, 0), (2, 0), (3, 0), (1, 1)] {
            list.add(IOMMU_VFIO_IOAS, VfioIoas { size: 12, ioas_id, op, __reserved });
            list.add(
                IOMMU_VFIO_IOAS,
                VfioIoas { size: 12, ioas_id: 0, op: IOMMU_VFIO_IOAS_GET, __reserved: 0 },
            );
        }
    }
    list.sizes(IOMMU_IOAS_MAP, map(9, FIXED | READ, SHARED, 0x1000, 0), &[0, 32, 39, 40, 41, 64]);
    let lengths = [0, 1, 0x1000, 0x1001, 0x3000, SHARED_SIZE, MAX - 0x1000, MAX - 1, MAX];
    for flags in 0..=8 {
        for ioas_id in [1, 9] {
            list.add(IOMMU_IOAS_MAP, map(ioas_id, flags, SHARED, 0x1000, 0x4000));
            list.add(
                IOMMU_IOAS_MAP,
                IoasMap { __reserved: 1, ..map(ioas_id, flags, SHARED, 0x1000, 0x4000) },
            );
        }
        list.add(IOMMU_IOAS_UNMAP, unmap(1, 0, MAX));
    }
    for length in lengths {
        // Kernels differ in which of two errors they tell of a length near 2^64 at an address above 0.
        let enormous = length > MAX - 0x1000;
        let address = if enormous { 0 } else { SHARED };
        for iova in [0, 1, 0x1000, 0x1800, 0x20_0000, MAX - 0x1000, MAX - 0xfff, MAX - 1, MAX] {
            list.add(IOMMU_IOAS_MAP, map(1, ALL_FLAGS, address, length, iova));
        }
        if !enormous {
            for address in [1, 0x123, 0x1000, SHARED + 0x1800, SHARED + 0x20_0000, MAX - 0x1000, MAX] {
                list.add(IOMMU_IOAS_MAP, map(1, ALL_FLAGS, address, length, 0x5000_0000));
            }
            for address in [0, 1, SHARED, SHARED + 0x1000, SHARED + 0x1234, 0x20_0000, MAX - 0x2000] {
                list.add(IOMMU_IOAS_MAP, map(1, READ, address, length, 0x5000_0000));
            }
        }
        list.add(IOMMU_IOAS_UNMAP, unmap(1, 0x1000, 0x1000));
        list.add(IOMMU_IOAS_UNMAP, unmap(1, 0x5000_0000, length));
    }
    list.add(IOMMU_IOAS_UNMAP, unmap(1, 0, MAX));
    list.add(IOMMU_IOAS_UNMAP, unmap(1, 0, MAX));
    list.sizes(IOMMU_IOAS_UNMAP, unmap(1, 0x1000, 0x1000), &[0, 16, 23, 24, 25]);
    for (iova, length) in [(0x1000, 0x2000), (0x4000, 0x1000), (0x5000, 0x1000), (0x8000, 0x4000)] {
        list.add(IOMMU_IOAS_MAP, map(1, READ | FIXED, SHARED, length, iova));
        list.add(IOMMU_IOAS_MAP, map(1, READ | FIXED, SHARED, length, iova));
    }
    for length in lengths {
        for src_iova in [0, 0x1000, 0x1800, 0x4000, 0x4800, 0x8000, MAX - 1, MAX] {
            for flags in [READ, READ | FIXED, WRITE | FIXED] {
                list.add(IOMMU_IOAS_COPY, copy(flags, 2, 1, length, 0x9000, src_iova));
            }
            list.add(IOMMU_IOAS_UNMAP, unmap(2, 0, MAX));
        }
    }
    for flags in 0..=8 {
        for (to, from) in [(2, 1), (1, 2), (1, 1), (1, 9), (9, 1), (9, 9)] {
            list.add(
                IOMMU_IOAS_COPY,
                copy(flags, to, from, 0x1000, 0x1_0000 + u64::from(flags) * 0x1000, 0x1000),
            );
        }
    }
    list.sizes(IOMMU_IOAS_COPY, copy(READ, 2, 9, 0x1000, 0, 0x1000), &[0, 39, 40, 41]);
    for (iova, length) in [
        (0x1800, 0x1000),
        (0x1000, 0x1000),
        (0, 0x2000),
        (0x1000, 0x3800),
        (0x1000, 0),
        (0x7000, 0x1000),
        (MAX, 1),
        (MAX - 1, 2),
        (MAX - 1, 3),
        (0, MAX - 1),
        (0, MAX),
        (1, MAX),
    ] {
        list.add(IOMMU_IOAS_UNMAP, unmap(1, iova, length));
        list.add(IOMMU_IOAS_UNMAP, unmap(9, iova, length));
    }
    list.add(IOMMU_IOAS_UNMAP, unmap(2, 0, MAX));
    for (ioas_id, room, address) in [
        (1, 0, DATA),
        (1, 0, 0),
        (1, 1, 0),
        (1, 1, DATA + PAGE as u64 - 8),
        (1, 1, DATA + 0x800),
        (1, u32::MAX, DATA + 0x800),
        (9, 1, DATA + 0x800),
    ] {
        list.add(IOMMU_IOAS_IOVA_RANGES, ranges(ioas_id, room, address));
        list.add(IOMMU_IOAS_IOVA_RANGES, IoasIovaRanges { __reserved: 1, ..ranges(ioas_id, room, address) });
    }
    list.sizes(IOMMU_IOAS_IOVA_RANGES, ranges(9, 0, 0), &[0, 31, 32, 33]);
    list.sizes(IOMMU_IOAS_ALLOW_IOVAS, allow(9, 0, 0), &[0, 23, 24, 25]);
    for first in 0..RANGES.len() as u64 {
        for count in 0..4 {
            let address = DATA + first * 16;
            list.add(IOMMU_IOAS_ALLOW_IOVAS, allow(1, count, address));
            list.add(IOMMU_IOAS_ALLOW_IOVAS, IoasAllowIovas { __reserved: 1, ..allow(1, count, address) });
            for length in [0x1000, 0x5000, 0x20_0000, 0x100_0000, 0x150_0000, 1 << 40] {
                list.add(IOMMU_IOAS_MAP, map(1, READ, 0, length, 0));
                list.add(IOMMU_IOAS_MAP, map(1, READ, 0x1000, length, 0));
            }
            list.add(IOMMU_IOAS_MAP, map(1, READ | FIXED, 0, 0x1000, 0x8000_0000));
            list.add(IOMMU_IOAS_UNMAP, unmap(1, 0, MAX));
        }
    }
    list.add(IOMMU_IOAS_ALLOW_IOVAS, allow(1, 1, DATA + PAGE as u64 - 8));
    let hwpt = HwptAlloc { size: 48, dev_id: 1, pt_id: 1, ..HwptAlloc::default() };
    list.sizes(IOMMU_HWPT_ALLOC, hwpt, &[0, 23, 24, 40, 47, 48, 49]);
    for (data_type, data_len, __reserved) in [(0, 1, 0), (1, 0, 0), (1, 1, 0), (0, 1, 1)] {
        list.add(IOMMU_HWPT_ALLOC, HwptAlloc { data_type, data_len, __reserved, ..hwpt });
    }
    let info = HwInfo { size: 40, dev_id: 1, ..HwInfo::default() };
    list.sizes(IOMMU_GET_HW_INFO, info, &[0, 31, 32, 39, 40, 41]);
    list.add(IOMMU_GET_HW_INFO, HwInfo { flags: 1 << 4, ..info });
    list.add(IOMMU_GET_HW_INFO, HwInfo { __reserved: [0, 0, 1], ..info });
    for flags in [0, 1, 2, 3] {
        let set = HwptSetDirtyTracking { size: 16, flags, hwpt_id: 1, __reserved: 0 };
        list.add(IOMMU_HWPT_SET_DIRTY_TRACKING, set);
        let get = HwptGetDirtyBitmap { size: 48, hwpt_id: 1, flags, ..HwptGetDirtyBitmap::default() };
        list.add(IOMMU_HWPT_GET_DIRTY_BITMAP, get);
        list.add(IOMMU_HWPT_GET_DIRTY_BITMAP, HwptGetDirtyBitmap { __reserved: 1, ..get });
    }
    for id in [0, 3, 2, 2, 1, 1, u32::MAX] {
        list.add(IOMMU_DESTROY, Destroy { size: 8, id });
        list.add(IOMMU_VFIO_IOAS, VfioIoas { size: 12, ioas_id: 0, op: IOMMU_VFIO_IOAS_GET, __reserved: 0 });
    }
    list.add(IOMMU_IOAS_ALLOC, IoasAlloc { size: 12, flags: 0, out_ioas_id: 0 });
    list.0
}

/// A probe and its answer in a line: the request, bytes in, result, bytes out.
fn line(probe: &Probe, result: Result<i32, Errno>, out: &[u8], data: &[u8]) -> String {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let result = result.map_or_else(|errno| format!("{errno:?}"), |value| value.to_string());
    let at = probe.at - ARGUMENT;
    let changed = if out == probe.bytes { String::from("=") } else { hex(out) };
    let data = if data.iter().all(|byte| *byte == 0) { String::new() } else { format!(" {}", hex(data)) };
    format!("{} {at:x} {} {result} {changed}{data}", probe.request, hex(&probe.bytes))
}

fn data_page() -> Vec<u8> {
    let mut page = RANGES.as_flattened().as_bytes().to_vec();
    page.resize(PAGE, 0);
    page
}

/// The part of a probe's structure that is in memory.
fn within(probe: &Probe) -> usize {
    probe.bytes.len().min(PAGE - (probe.at - ARGUMENT) as usize)
}

/// Makes all requests, and tells each with its answer in a line.
pub fn answers(side: &mut impl Side, mut told: impl FnMut(String)) {
    for probe in probes() {
        let within = within(&probe);
        side.put(DATA, &data_page());
        side.put(ARGUMENT, &[0; PAGE]);
        let mut out = probe.bytes.clone();
        if within > 0 {
            side.put(probe.at, &probe.bytes[..within]);
        }
        let result = side.ioctl(probe.request.number(), probe.at);
        if within > 0 {
            side.get(probe.at, &mut out[..within]);
        }
        let mut data = [0; 16];
        side.get(DATA + 0x800, &mut data);
        told(line(&probe, result, &out, &data));
    }
}
