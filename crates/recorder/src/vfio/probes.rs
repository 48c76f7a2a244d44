//! The list of requests: every one is made on both sides, in this order.

use whimbrel_uapi::dma_logging::{DeviceFeatureDmaLoggingControl, DeviceFeatureDmaLoggingReport};
use whimbrel_uapi::feature::{DeviceFeature, FeatureFlags};
use whimbrel_uapi::ioctl::*;
use whimbrel_uapi::type1::{
    Bitmap, IommuType1DirtyBitmap, IommuType1DirtyBitmapGet, IommuType1DmaMap, IommuType1DmaUnmap,
};
use zerocopy::IntoBytes;

/// Where structures lie, and where arrays and bitmaps: a page each, and nothing after it.
pub const ARGUMENT: u64 = 0x20_0000_0000;
/// See [`ARGUMENT`].
pub const DATA: u64 = 0x30_0000_0000;
/// The size of a page, in bytes.
pub const PAGE: usize = 4096;
/// Memory to map, and how much, in bytes.
pub const SHARED: u64 = 0x10_0000_0000;
/// See [`SHARED`].
pub const SHARED_SIZE: u64 = 0x10_0000;
/// Descriptors: the container's, and one of a file that is none.
pub const CONTAINER: i32 = 900;
/// See [`CONTAINER`].
pub const OTHER: i32 = 901;
/// The first device that the lab makes.
pub const DEVICE: &str = "00000000-0000-4000-8000-000000000001";

const MAX: u64 = u64::MAX;
const END: u64 = ARGUMENT + PAGE as u64;

/// What a request is made on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum File {
    /// The container, or what stands in for one.
    Container,
    /// The group.
    Group,
    /// The device.
    Device,
}

pub(crate) struct Probe {
    pub(crate) file: File,
    pub(crate) number: u32,
    /// A number, or where the structure is put; what lies past the page is not there.
    pub(crate) argument: u64,
    pub(crate) bytes: Vec<u8>,
    /// What the page at [`DATA`] begins with.
    pub(crate) data: Vec<u8>,
}

impl Probe {
    /// How much of the structure is in memory.
    pub(crate) fn within(&self) -> usize {
        if (ARGUMENT..END).contains(&self.argument) {
            self.bytes.len().min((END - self.argument) as usize)
        } else {
            0
        }
    }
}

pub(crate) enum Step {
    Request(Probe),
    CloseDevice,
}

struct Steps(Vec<Step>);

impl Steps {
    fn at(&mut self, file: File, request: Request, argument: u64, bytes: &[u8]) {
        let (number, bytes) = (request.number(), bytes.to_vec());
        self.0.push(Step::Request(Probe { file, number, argument, bytes, data: Vec::new() }));
    }

    fn number(&mut self, file: File, request: Request, argument: u64) {
        self.at(file, request, argument, &[]);
    }

    fn add(&mut self, file: File, request: Request, bytes: &[u8]) {
        self.at(file, request, ARGUMENT, bytes);
    }

    fn with_data(&mut self, file: File, request: Request, bytes: &[u8], data: &[u8]) {
        let (number, bytes, data) = (request.number(), bytes.to_vec(), data.to_vec());
        self.0.push(Step::Request(Probe { file, number, argument: ARGUMENT, bytes, data }));
    }

    /// With every size in `sizes`, and where there is no memory, or not enough.
    fn sizes(
        &mut self,
        file: File,
        request: Request,
        bytes: &[u8],
        sizes: impl IntoIterator<Item = u32>,
        cuts: &[u64],
    ) {
        for size in sizes {
            let mut bytes = bytes.to_vec();
            bytes[..4].copy_from_slice(&size.to_ne_bytes());
            self.add(file, request, &bytes);
        }
        for argument in [0, 8, MAX, MAX - 4095, 1 << 63] {
            self.at(file, request, argument, bytes);
        }
        for left in cuts {
            self.at(file, request, END - left, bytes);
        }
    }

    fn unknown(&mut self, file: File, numbers: impl IntoIterator<Item = u32>) {
        for number in numbers {
            let (argument, bytes) = (ARGUMENT, vec![0xff; 64]);
            self.0.push(Step::Request(Probe { file, number, argument, bytes, data: Vec::new() }));
        }
    }
}

fn map(flags: u32, vaddr: u64, iova: u64, size: u64) -> Vec<u8> {
    IommuType1DmaMap { argsz: 32, flags, vaddr, iova, size }.as_bytes().to_vec()
}

fn unmap(flags: u32, iova: u64, size: u64) -> Vec<u8> {
    IommuType1DmaUnmap { argsz: 24, flags, iova, size }.as_bytes().to_vec()
}

fn unmap_bitmap(flags: u32, iova: u64, size: u64, bitmap: Bitmap) -> Vec<u8> {
    let unmap = IommuType1DmaUnmap { argsz: 48, flags, iova, size };
    [unmap.as_bytes(), bitmap.as_bytes()].concat()
}

fn dirty(flags: u32, iova: u64, size: u64, bitmap: Bitmap) -> Vec<u8> {
    let get = IommuType1DirtyBitmapGet { iova, size, bitmap };
    [IommuType1DirtyBitmap { argsz: 48, flags }.as_bytes(), get.as_bytes()].concat()
}

fn status(argsz: u32) -> Vec<u8> {
    [argsz, 7].as_bytes().to_vec()
}

/// What a user does to find out; on all three files whatever their order is.
fn look(list: &mut Steps) {
    list.add(File::Group, VFIO_GROUP_GET_STATUS, &status(8));
    for extension in (0..=30).chain([255, 1 << 31, 1 << 32, (1 << 32) + 1, MAX]) {
        list.number(File::Container, VFIO_CHECK_EXTENSION, extension);
    }
}

fn unknown(list: &mut Steps) {
    list.unknown(File::Container, [0x3b63, 0x3b7a, 0x3b90, 0x3bff, 0x3c64, 0xffff_0000]);
    list.unknown(File::Container, (0x3b67..0x3b70).chain([0x3b73, 0x3b74, 0x3b76, 0x3b77, 0x3b78, 0x3b79]));
    list.unknown(File::Group, (0x3b60..0x3b67).chain(0x3b6b..0x3b80).chain([0x3bff, 0x3c67, 0xffff_0000]));
}

fn order(list: &mut Steps) {
    list.number(File::Container, VFIO_GET_API_VERSION, 0);
    list.number(File::Container, VFIO_GET_API_VERSION, MAX);
    look(list);
    unknown(list);
    for extension in (0..=12).chain([MAX, (1 << 32) + 1]) {
        list.number(File::Container, VFIO_SET_IOMMU, extension);
    }
    list.add(File::Container, VFIO_IOMMU_GET_INFO, &[200; 16]);
    list.add(File::Container, VFIO_IOMMU_MAP_DMA, &map(3, SHARED, 0, 0x1000));
    list.add(File::Container, VFIO_IOMMU_UNMAP_DMA, &unmap(0, 0, 0x1000));
    list.add(File::Container, VFIO_IOMMU_DIRTY_PAGES, &dirty(1, 0, 0, Bitmap::default()));
    list.sizes(File::Group, VFIO_GROUP_GET_STATUS, &status(8), (0..=17).chain([u32::MAX]), &[1, 4, 7, 8]);
    names(list);
    list.number(File::Group, VFIO_GROUP_UNSET_CONTAINER, 0);
    containers(list);
    list.add(File::Group, VFIO_GROUP_SET_CONTAINER, CONTAINER.as_bytes());
    look(list);
    containers(list);
    list.add(File::Group, VFIO_GROUP_SET_CONTAINER, CONTAINER.as_bytes());
    names(list);
    list.number(File::Group, VFIO_GROUP_UNSET_CONTAINER, MAX);
    look(list);
    list.number(File::Container, VFIO_SET_IOMMU, 3);
    list.add(File::Group, VFIO_GROUP_SET_CONTAINER, CONTAINER.as_bytes());
    for extension in [0, 2, 4, 5, 7, 8, 9, 10, 11, 12, 99, MAX, (1 << 32) + 1, (1 << 32) + 3] {
        list.number(File::Container, VFIO_SET_IOMMU, extension);
    }
    unknown(list);
}

fn containers(list: &mut Steps) {
    for fd in [-1, OTHER, 800, i32::MIN, i32::MAX] {
        list.add(File::Group, VFIO_GROUP_SET_CONTAINER, fd.as_bytes());
    }
    list.sizes(File::Group, VFIO_GROUP_SET_CONTAINER, (-1i32).as_bytes(), [], &[1, 2, 3, 4]);
}

/// Names that no device has, and ours, which opens it where that is possible.
fn names(list: &mut Steps) {
    for name in [&b""[..], b"x", b"0000:00:00.0", b"\xff\xfe", &DEVICE.as_bytes()[..35]] {
        list.add(File::Group, VFIO_GROUP_GET_DEVICE_FD, &[name, b"\0"].concat());
    }
    list.add(File::Group, VFIO_GROUP_GET_DEVICE_FD, &[DEVICE.as_bytes(), b"0\0"].concat());
    for length in [4094, 4095, 4096] {
        list.add(File::Group, VFIO_GROUP_GET_DEVICE_FD, &vec![b'a'; length]);
    }
    list.sizes(File::Group, VFIO_GROUP_GET_DEVICE_FD, DEVICE.as_bytes(), [], &[1, 5, 36]);
    list.add(File::Group, VFIO_GROUP_GET_DEVICE_FD, &[DEVICE.as_bytes(), b"\0"].concat());
}

/// The IOMMU's requests, in a container with no mapping and no tracking, which is how they leave it.
fn iommu(list: &mut Steps) {
    let c = File::Container;
    list.sizes(c, VFIO_IOMMU_GET_INFO, &[0xff; 200], (0..=200).chain([4096, u32::MAX]), &[]);
    list.at(c, VFIO_IOMMU_GET_INFO, END - 15, &[200; 16]);
    let sizes = [0, 8, 16, 23, 24, 31, 32, 33, 40, 47, 48, 49, u32::MAX];
    list.sizes(c, VFIO_IOMMU_MAP_DMA, &map(8, SHARED, 0x1000, 0x1000), sizes, &[1, 8, 31]);
    list.sizes(c, VFIO_IOMMU_MAP_DMA, &map(3, SHARED, 0x1000, 0x1000), [0, 31], &[31]);
    for flag in (0..32).map(|bit| 1 << bit).chain([0, 3, 5, 6, 7, u32::MAX]) {
        list.add(c, VFIO_IOMMU_MAP_DMA, &map(flag, SHARED, 0x1000, 0x1000));
        list.add(c, VFIO_IOMMU_MAP_DMA, &map(flag, SHARED, 0x1000, 0x1000));
        list.add(c, VFIO_IOMMU_UNMAP_DMA, &unmap(flag & !1, 0x1000, 0x1000));
        list.add(c, VFIO_IOMMU_UNMAP_DMA, &unmap(0, 0x1000, 0x1000));
    }
    for size in [0, 1, 0x800, 0xfff, 0x1001, 1 << 63, MAX - 0xfff, MAX] {
        for (vaddr, iova) in
            [(SHARED, 0x1000), (SHARED + 1, 0x1000), (SHARED, 0x1001), (SHARED, MAX - 0x1fff)]
        {
            if size < 1 << 63 || iova > 1 << 63 {
                list.add(c, VFIO_IOMMU_MAP_DMA, &map(3, vaddr, iova, size));
            }
            list.add(c, VFIO_IOMMU_UNMAP_DMA, &unmap(0, iova, size));
        }
    }
    list.add(c, VFIO_IOMMU_MAP_DMA, &map(3, SHARED, MAX - 0xfff, 0x2000));
    list.add(c, VFIO_IOMMU_MAP_DMA, &map(3, MAX - 0xfff, 0x1000, 0x2000));
    for (iova, size) in [(0x1000, 0x4000), (0x8000, 0x1000), (0x9000, 0x2000), (0x10_0000, 0x10_0000)] {
        list.add(c, VFIO_IOMMU_MAP_DMA, &map(3, SHARED, iova, size));
    }
    for iova in [0, 0x1000, 0x2000, 0x4000, 0x7000, 0x8000, 0x9000, 0xa000] {
        for size in [0x2000, 0x3000, 0x5000] {
            list.add(c, VFIO_IOMMU_MAP_DMA, &map(1, SHARED, iova, size));
        }
    }
    tracking(list);
    for (flags, iova, size) in [
        (0, 0x2000, 0x1000),
        (0, 0x1000, 0x1000),
        (0, 0, 0x2000),
        (0, 0x4000, 0x1000),
        (0, 0x2000, 0x7000),
        (2, 0, 0x1000),
        (2, 0x1000, 0),
        (2, 1, 0),
        (4, 0x1000, 0x4000),
        (6, 0, 0),
        (0, 0x8000, 0x3000),
        (0, 0x8000, 0x3000),
        (0, 0, 0x10_0000),
        (2, 0, 0),
        (2, 0, 0),
    ] {
        list.add(c, VFIO_IOMMU_UNMAP_DMA, &unmap(flags, iova, size));
    }
    list.sizes(c, VFIO_IOMMU_UNMAP_DMA, &unmap(0, 0x1000, 0x1000), [0, 8, 16, 23, 24, 25, 48], &[1, 8, 23]);
}

fn tracking(list: &mut Steps) {
    let c = File::Container;
    let bitmap = Bitmap { pgsize: 4096, size: 8, data: DATA };
    let reports = |list: &mut Steps| {
        for size in [0, 7, 8, 9, 16, 24, 31, 32, 40, 47, 48, 49] {
            let mut bytes = dirty(4, 0x1000, 0x4000, bitmap);
            bytes[..4].copy_from_slice(&u32::to_ne_bytes(size));
            list.add(c, VFIO_IOMMU_DIRTY_PAGES, &bytes);
        }
        for pgsize in [0, 1, 2048, 4095, 4096, 4097, 8192, 1 << 21, 1 << 63, MAX] {
            list.add(c, VFIO_IOMMU_DIRTY_PAGES, &dirty(4, 0x1000, 0x4000, Bitmap { pgsize, ..bitmap }));
        }
        for size in [0, 1, 7, 8, 9, 16, 1 << 28, (1 << 28) + 1, MAX] {
            list.add(c, VFIO_IOMMU_DIRTY_PAGES, &dirty(4, 0x1000, 0x4000, Bitmap { size, ..bitmap }));
            list.add(c, VFIO_IOMMU_DIRTY_PAGES, &dirty(4, 0x10_0000, 0x10_0000, Bitmap { size, ..bitmap }));
        }
        for data in [0, 8, MAX, MAX - 7, 1 << 63] {
            list.add(c, VFIO_IOMMU_DIRTY_PAGES, &dirty(4, 0x1000, 0x4000, Bitmap { data, ..bitmap }));
        }
        for iova in [0, 1, 0x1000, 0x2000, 0x5000, 0x8000, 0x9000, 0xa000, MAX - 0xfff, MAX] {
            for size in [0, 1, 0x1000, 0x1001, 0x2000, 0x4000, 0x5000, 0xa000, MAX - 0xfff] {
                list.add(c, VFIO_IOMMU_DIRTY_PAGES, &dirty(4, iova, size, bitmap));
            }
        }
        for flags in [1, 3, 5, 7] {
            for bitmap in [bitmap, Bitmap { size: 0, ..bitmap }, Bitmap { pgsize: 0, ..bitmap }] {
                list.add(c, VFIO_IOMMU_UNMAP_DMA, &unmap_bitmap(flags, 0x9000, 0x1000, bitmap));
                list.add(c, VFIO_IOMMU_UNMAP_DMA, &unmap_bitmap(flags, 0x2000, 0x1000, bitmap));
            }
        }
        for pgsize in [1, 2048, 8192, 1 << 63] {
            let bitmap = Bitmap { pgsize, ..bitmap };
            list.add(c, VFIO_IOMMU_UNMAP_DMA, &unmap_bitmap(1, 0x8000, 0x1000, bitmap));
        }
        let small = unmap_bitmap(1, 0x8000, 0x1000, bitmap);
        list.sizes(c, VFIO_IOMMU_UNMAP_DMA, &small, [0, 23, 24, 25, 31, 32, 47], &[1, 24, 47]);
    };
    reports(list);
    for flags in (0..32).map(|bit| 1 << bit).chain([0, 3, 5, 6, 7, u32::MAX]).filter(|flags| *flags != 1) {
        list.add(c, VFIO_IOMMU_DIRTY_PAGES, &dirty(flags, 0x1000, 0x4000, bitmap));
    }
    for flags in [1, 1, 2, 2, 1] {
        list.add(c, VFIO_IOMMU_DIRTY_PAGES, &dirty(flags, 0x1000, 0x4000, bitmap));
        list.add(c, VFIO_IOMMU_DIRTY_PAGES, &dirty(4, 0x1000, 0x4000, bitmap));
    }
    list.sizes(c, VFIO_IOMMU_DIRTY_PAGES, &dirty(1, 0, 0, bitmap), [0, 7, 8, 9], &[1, 7, 8]);
    reports(list);
    list.add(c, VFIO_IOMMU_UNMAP_DMA, &unmap_bitmap(1, 0x8000, 0x1000, bitmap));
    list.add(c, VFIO_IOMMU_UNMAP_DMA, &unmap_bitmap(1, 0x8000, 0x1000, bitmap));
    list.add(c, VFIO_IOMMU_DIRTY_PAGES, &dirty(2, 0, 0, bitmap));
}

fn feature(flags: u32, argsz: u32, data: &[u8]) -> Vec<u8> {
    [DeviceFeature { argsz, flags }.as_bytes(), data].concat()
}

const GET: u32 = FeatureFlags::GET.bits();
const SET: u32 = FeatureFlags::SET.bits();
const PROBE: u32 = FeatureFlags::PROBE.bits();

fn device(list: &mut Steps) {
    let d = File::Device;
    list.unknown(d, (0x3b60..0x3b6b).chain([0x3b72, 0x3b73, 0x3b76, 0x3b77, 0x3b78, 0x3b79, 0x3bff, 0]));
    // What a device is like is the bus driver's own: asked is what this one and all others agree on.
    list.sizes(d, VFIO_DEVICE_GET_INFO, &[0xff; 24], 0..16, &[1, 15]);
    for index in (0..=10).chain([255, u32::MAX]) {
        let region = [32, 7, index, 7, 7, 7, 7, 7, 7, 7];
        list.sizes(d, VFIO_DEVICE_GET_REGION_INFO, region.as_bytes(), [0, 31, 32, 33, 40, 64], &[1, 31]);
    }
    for index in [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 13, 14, 15, 16, 255, 0xffff] {
        for directions in 0..8 {
            let flags = index | directions << 16;
            // A log's report is asked below.
            if flags == 8 | GET {
                continue;
            }
            for argsz in [0, 7, 8, 9, 15, 16, 31, 32, 64] {
                list.add(d, VFIO_DEVICE_FEATURE, &feature(flags, argsz, &[0; 64]));
            }
            list.add(d, VFIO_DEVICE_FEATURE, &feature(flags | 1 << 19, 64, &[0; 64]));
            list.add(d, VFIO_DEVICE_FEATURE, &feature(flags | 1 << 31, 64, &[0; 64]));
        }
    }
    list.add(d, VFIO_DEVICE_RESET, &[]);
    for flags in [1 | GET, 2 | GET, 2 | SET, 6 | SET, 8 | GET, 9 | GET, 1 | GET | PROBE, 0xffff] {
        list.sizes(d, VFIO_DEVICE_FEATURE, &feature(flags, 64, &[0; 56]), [], &[1, 4, 7, 8]);
    }
    states(list);
    logging(list);
}

fn states(list: &mut Steps) {
    let d = File::Device;
    let to = |state: u32| feature(2 | SET, 16, [state, 5].as_bytes());
    for from in [1, 2, 3, 5, 6, 7] {
        for next in (0..=9).chain([255, 1 << 16, 1 << 31, u32::MAX]) {
            list.add(d, VFIO_DEVICE_RESET, &[]);
            list.add(d, VFIO_DEVICE_FEATURE, &to(from));
            list.add(d, VFIO_DEVICE_FEATURE, &to(next));
            list.add(d, VFIO_DEVICE_FEATURE, &feature(2 | GET, 16, [9, 9].as_bytes()));
            list.add(d, VFIO_DEVICE_FEATURE, &feature(9 | GET, 16, [9, 9].as_bytes()));
        }
    }
    list.add(d, VFIO_DEVICE_RESET, &[]);
}

fn logging(list: &mut Steps) {
    let d = File::Device;
    let good = DeviceFeatureDmaLoggingControl { page_size: 4096, num_ranges: 1, __reserved: 0, ranges: DATA };
    let start = |list: &mut Steps, control: DeviceFeatureDmaLoggingControl, ranges: &[u64]| {
        let bytes = feature(6 | SET, 32, control.as_bytes());
        list.with_data(d, VFIO_DEVICE_FEATURE, &bytes, ranges.as_bytes());
        list.add(d, VFIO_DEVICE_FEATURE, &feature(7 | SET, 8, &[]));
    };
    for page_size in [0, 1, 4095, 4096, 1 << 63, MAX] {
        start(list, DeviceFeatureDmaLoggingControl { page_size, ..good }, &[0x1000, 0x1000]);
    }
    for num_ranges in [0, 1, 2, 3, 4, 255, 257, 65536, u32::MAX] {
        for second in [0, 0x1000, 0x1fff, 0x2000, 0x8000] {
            let ranges = [0x1000, 0x1000, second, 0x1000, 0x10_0000, 0x1000, 0x20_0000, 0x1000];
            start(list, DeviceFeatureDmaLoggingControl { num_ranges, ..good }, &ranges);
        }
    }
    for ranges in [0, 8, MAX, 1 << 63, DATA + PAGE as u64 - 8] {
        start(list, DeviceFeatureDmaLoggingControl { ranges, ..good }, &[]);
    }
    for iova in [0, 1, MAX - 0xfff, MAX] {
        for length in [0, 1, 0xfff, 0x1000, 0x1001, 1 << 63, MAX] {
            start(list, good, &[iova, length]);
        }
    }
    for page_size in [0, 1, 2048, 4095, 4097] {
        for (iova, length) in [(0, 0), (0, 0x1000), (MAX, 1), (1, MAX), (0, MAX)] {
            let report = DeviceFeatureDmaLoggingReport { iova, length, page_size, bitmap: DATA };
            list.add(d, VFIO_DEVICE_FEATURE, &feature(8 | GET, 40, report.as_bytes()));
        }
    }
    for (iova, length) in [(MAX, 1), (MAX, MAX), (1, MAX), (MAX - 0xfff, 0x1000), (0x1000, MAX - 0xfff)] {
        let report = DeviceFeatureDmaLoggingReport { iova, length, page_size: 4096, bitmap: DATA };
        list.add(d, VFIO_DEVICE_FEATURE, &feature(8 | GET, 40, report.as_bytes()));
    }
    for argsz in [0, 8, 16, 24, 39] {
        let report = DeviceFeatureDmaLoggingReport { iova: 0, length: 1, page_size: 4096, bitmap: DATA };
        list.add(d, VFIO_DEVICE_FEATURE, &feature(8 | GET, argsz, report.as_bytes()));
    }
}

pub(crate) fn steps() -> Vec<Step> {
    let mut list = Steps(Vec::new());
    order(&mut list);
    for extension in [1, 3, 6] {
        list.number(File::Container, VFIO_SET_IOMMU, extension);
        list.number(File::Container, VFIO_SET_IOMMU, extension);
        look(&mut list);
        iommu(&mut list);
        unknown(&mut list);
        names(&mut list);
        list.number(File::Group, VFIO_GROUP_UNSET_CONTAINER, 0);
        list.add(File::Group, VFIO_GROUP_SET_CONTAINER, CONTAINER.as_bytes());
        look(&mut list);
        if extension == 3 {
            device(&mut list);
        }
        list.0.push(Step::CloseDevice);
        list.number(File::Group, VFIO_GROUP_UNSET_CONTAINER, 0);
        list.number(File::Group, VFIO_GROUP_UNSET_CONTAINER, 0);
        look(&mut list);
        list.add(File::Group, VFIO_GROUP_SET_CONTAINER, CONTAINER.as_bytes());
    }
    list.0
}
