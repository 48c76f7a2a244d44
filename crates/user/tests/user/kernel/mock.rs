//! The dirty log of a real iommufd's page table, with the kernel's mock device (`IOMMUFD_TEST`), whose IOMMU marks pages on
//! request.
#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::AsRawFd;

use vm_memory::MmapRegion;
use whimbrel_uapi::ioctl::{IOMMU_HWPT_ALLOC, IOMMU_IOAS_ALLOC, IOMMU_IOAS_MAP, Request};
use whimbrel_uapi::iommufd::{HwptAlloc, HwptAllocFlags, IoasAlloc, IoasMap, IoasMapFlags};
use whimbrel_user::kernel::AddressSpaceLog;
use whimbrel_user::{DirtySource, Errno, IovaRange};

use super::dirty::report;

/// The first IOVA that the mock device's IOMMU translates.
const FIRST: u64 = 0x100_0000;

/// An iommufd with an address space, a mock device, and a page table that logs dirty pages.
struct Mock {
    iommufd: File,
    ioas: u32,
    hwpt: u32,
    memory: Vec<MmapRegion<()>>,
}

impl Mock {
    fn new() -> Mock {
        let iommufd = File::options().read(true).write(true).open("/dev/iommu").unwrap();
        let mut mock = Mock { iommufd, ioas: 0, hwpt: 0, memory: Vec::new() };
        let mut alloc = IoasAlloc { size: 12, ..IoasAlloc::default() };
        mock.request(IOMMU_IOAS_ALLOC, &mut alloc);
        mock.ioas = alloc.out_ioas_id;
        // IOMMU_TEST_OP_MOCK_DOMAIN_FLAGS: a device whose IOMMU marks dirty pages, attached to the address space.
        let device = mock.test(12, mock.ioas, &[0])[6];
        let mut table = HwptAlloc {
            size: 48,
            flags: HwptAllocFlags::ALLOC_DIRTY_TRACKING.bits(),
            dev_id: device,
            pt_id: mock.ioas,
            ..HwptAlloc::default()
        };
        mock.request(IOMMU_HWPT_ALLOC, &mut table);
        mock.hwpt = table.out_hwpt_id;
        mock
    }

    fn map(&mut self, iova: u64, size: u64) -> IovaRange {
        let memory = MmapRegion::new(size as usize).unwrap();
        let flags = IoasMapFlags::FIXED_IOVA | IoasMapFlags::READABLE | IoasMapFlags::WRITEABLE;
        let mut map = IoasMap {
            size: 40,
            flags: flags.bits(),
            ioas_id: self.ioas,
            __reserved: 0,
            user_va: memory.as_ptr() as u64,
            length: size,
            iova,
        };
        self.request(IOMMU_IOAS_MAP, &mut map);
        self.memory.push(memory);
        IovaRange::new(iova, size).unwrap()
    }

    /// IOMMU_TEST_OP_DIRTY: marks pages from an IOVA on.
    fn mark(&self, iova: u64, pages: u32) {
        // The mock device's pages have 2048 bytes.
        let bits =
            (0..32).filter(|page| pages >> page & 1 == 1).fold(0_u64, |bits, page| bits | 1 << (2 * page));
        let address = &raw const bits as u64;
        let fields = [iova, 64 * 2048, 2048, address];
        let words: Vec<u32> =
            fields.iter().flat_map(|field| [*field as u32, (*field >> 32) as u32]).collect();
        self.test_at(13, self.hwpt, 6, &words);
    }

    /// The kernel's request for tests (`iommufd_test.h`): `struct iommu_test_cmd` as words.
    fn test(&self, op: u32, id: u32, words: &[u32]) -> [u32; 18] {
        self.test_at(op, id, 7, words)
    }

    fn test_at(&self, op: u32, id: u32, first: usize, words: &[u32]) -> [u32; 18] {
        let mut command = [0; 18];
        (command[0], command[1], command[2]) = (72, op, id);
        command[first..first + words.len()].copy_from_slice(words);
        // SAFETY: the kernel reads and writes the 72 bytes of the command; the address in it is that of 64 bits.
        let result = unsafe { libc::ioctl(self.iommufd.as_raw_fd(), 0x3ba0, command.as_mut_ptr()) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
        command
    }

    fn request<T>(&self, request: Request, argument: &mut T) {
        // SAFETY: the kernel reads and writes the structure of the request; memory that it maps is held by `self`.
        let result = unsafe { libc::ioctl(self.iommufd.as_raw_fd(), request.number().into(), argument) };
        assert_eq!(result, 0, "{request}: {}", std::io::Error::last_os_error());
    }

    fn log(&self, hwpt: u32, mappings: impl IntoIterator<Item = IovaRange>) -> AddressSpaceLog {
        AddressSpaceLog::of_page_table(
            "mock",
            self.iommufd.try_clone().unwrap().into(),
            self.ioas,
            hwpt,
            mappings,
        )
    }
}

#[test]
#[ignore = "needs the lab's kernel: lab/run"]
fn a_page_table_reports_what_its_iommu_has_marked() {
    let mut mock = Mock::new();
    let mapped = [mock.map(FIRST, 0x4000), mock.map(FIRST + 0x8000, 0x4000)];
    let mut log = mock.log(mock.hwpt, mapped);
    assert_eq!(log.start(4096, &mapped).unwrap(), 4096);
    mock.mark(FIRST, 0b1);
    assert_eq!(log.start(4096, &mapped).unwrap(), 4096);
    assert_eq!(report(&mut log, FIRST, 0x10000).unwrap(), 0, "a start begins an empty log");
    mock.mark(FIRST, 0b1010);
    mock.mark(FIRST + 0x8000, 0b1);
    // There is a hole in the range.
    assert_eq!(report(&mut log, FIRST, 0x10000).unwrap(), 0b1_0000_1010);
    assert_eq!(report(&mut log, FIRST, 0x10000).unwrap(), 0);

    mock.mark(FIRST, 0b11);
    mock.mark(FIRST + 0x8000, 0b10);
    assert_eq!(report(&mut log, FIRST + 0x1000, 0x1000).unwrap(), 0b1, "a part of a mapping");
    let error = log.unmap(FIRST, 0x1000).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::ENOENT), "a mapping is not cut: {error}");
    let error = log.unmap(FIRST, 0x9000).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::ENOENT), "{error}");
    mock.mark(FIRST, 0b1000);
    assert_eq!(log.unmap(FIRST, 0x10000).unwrap(), 0x8000);
    assert_eq!(report(&mut log, FIRST, 0x10000).unwrap(), 0b10_0000_1001, "unmapped meanwhile");
    assert_eq!(report(&mut log, FIRST, 0x10000).unwrap(), 0);
    log.stop().unwrap();
    let error = report(&mut log, FIRST, 0x10000).unwrap_err();
    assert!(error.to_string().contains("mock: IOMMU_HWPT_GET_DIRTY_BITMAP: EINVAL"), "{error}");
}

#[test]
#[ignore = "needs the lab's kernel: lab/run"]
fn an_object_that_is_no_page_table_is_refused() {
    let mut mock = Mock::new();
    let mapped = [mock.map(FIRST, 0x4000)];
    let error = mock.log(mock.ioas, mapped).start(4096, &mapped).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::ENOENT), "{error}");
    let mut log = mock.log(mock.hwpt, [IovaRange::new(FIRST, 0x8000).unwrap()]);
    log.start(4096, &mapped).unwrap();
    assert_eq!(report(&mut log, FIRST, 0x8000).unwrap(), 0, "half of the mapping is not there");
}
