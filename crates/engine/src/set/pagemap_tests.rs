use std::os::fd::{FromRawFd, OwnedFd};

use proptest::prelude::*;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

use super::*;

const PAGE: u64 = 4096;

/// A mapping of this test's own.
struct Mapping {
    start: u64,
    size: u64,
}

impl Mapping {
    fn new(pages: u64, flags: MapFlags) -> Mapping {
        let size = pages * PAGE;
        let flags = flags | MapFlags::NORESERVE;
        // SAFETY: a new mapping, at an address of the kernel's choice.
        let start = unsafe {
            mmap_anonymous(std::ptr::null_mut(), size as usize, ProtFlags::READ | ProtFlags::WRITE, flags)
        };
        Mapping { start: start.unwrap() as u64, size }
    }

    fn without_huge_pages(self) -> Mapping {
        // SAFETY: the advice changes no byte of this mapping.
        unsafe { madvise(self.start as *mut _, self.size as usize, Advice::LinuxNoHugepage) }.unwrap();
        self
    }

    fn write(&self, page: u64) {
        assert!(page * PAGE < self.size);
        // SAFETY: the byte lies within the mapping, to which no reference exists.
        unsafe { ((self.start + page * PAGE) as *mut u8).write_volatile(1) };
    }

    fn read(&self, page: u64) -> u8 {
        assert!(page * PAGE < self.size);
        // SAFETY: as above.
        unsafe { ((self.start + page * PAGE) as *const u8).read_volatile() }
    }

    /// Returns the touched pages, as the pagemap reports them.
    fn touched(&self, pagemap: &Pagemap) -> Vec<u64> {
        let (mut at, end, mut found) = (self.start, self.start + self.size, Vec::new());
        while let Some((from, to)) = pagemap.next_touched(at, end - at) {
            assert!(from >= at && from < to && to <= end, "{from:#x} {to:#x} in {at:#x} {end:#x}");
            found.extend((from..to).step_by(PAGE as usize).map(|address| (address - self.start) / PAGE));
            at = to;
        }
        found
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this test's own mapping, to which no reference exists.
        unsafe { munmap(self.start as *mut _, self.size as usize) }.unwrap();
    }
}

fn without_scan() -> Pagemap {
    let pagemap = Pagemap::new();
    let tables = Tables::open().unwrap();
    tables.scans.store(false, Ordering::Relaxed);
    pagemap.tables.set(Some(tables)).unwrap();
    pagemap
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn the_touched_pages_are_found_and_no_others(
        pages in 1u64..3000,
        touched in proptest::collection::btree_set(0u64..3000, 0..40),
        run in (0u64..3000, 0u64..1500),
    ) {
        let mapping = Mapping::new(pages, MapFlags::PRIVATE).without_huge_pages();
        let mut expected: std::collections::BTreeSet<u64> = touched.into_iter().collect();
        expected.extend(run.0..run.0 + run.1);
        expected.retain(|page| *page < pages);
        for page in &expected {
            mapping.write(*page);
        }
        let expected: Vec<u64> = expected.into_iter().collect();
        prop_assert_eq!(mapping.touched(&Pagemap::new()), expected.clone());
        prop_assert_eq!(mapping.touched(&without_scan()), expected);
    }
}

#[test]
fn looking_touches_nothing() {
    let mapping = Mapping::new(1 << 24, MapFlags::PRIVATE);
    for pagemap in [Pagemap::new(), without_scan()] {
        mapping.touched(&pagemap);
    }
    assert!(mapping.touched(&without_scan()).is_empty(), "64 GiB");
}

#[test]
fn a_page_that_was_read_is_found_or_is_zero() {
    let mapping = Mapping::new(1024, MapFlags::PRIVATE);
    assert_eq!(mapping.read(5), 0);
    mapping.write(700);
    for pagemap in [Pagemap::new(), without_scan()] {
        let touched = mapping.touched(&pagemap);
        assert!(touched.contains(&700));
        assert!((0..1024).all(|page| page == 700 || mapping.read(page) == 0));
    }
}

#[test]
fn memory_that_another_process_may_write_has_no_holes() {
    let mapping = Mapping::new(16, MapFlags::SHARED);
    assert_eq!(mapping.touched(&Pagemap::new()).len(), 16);
}

#[test]
fn memory_that_was_given_back_is_a_hole_again() {
    let mapping = Mapping::new(16, MapFlags::PRIVATE).without_huge_pages();
    (0..16).for_each(|page| mapping.write(page));
    // SAFETY: no reference to the mapping exists.
    unsafe { madvise((mapping.start + 4 * PAGE) as *mut _, 4 * PAGE as usize, Advice::LinuxDontNeed) }
        .unwrap();
    let expected: Vec<u64> = (0..4).chain(8..16).collect();
    assert_eq!(mapping.touched(&Pagemap::new()), expected);
}

#[test]
fn missing_pages_that_a_userfaultfd_provides_are_no_holes() {
    /// `_IOWR(0xaa, 0x3f, struct uffdio_api)` and `_IOWR(0xaa, 0x00, struct uffdio_register)`.
    const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
    const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
    const UFFD_USER_MODE_ONLY: libc::c_int = 1;
    // SAFETY: a system call without addresses.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | UFFD_USER_MODE_ONLY) };
    if fd < 0 {
        println!("skipped: no userfaultfd: {}", io::Error::last_os_error());
        return;
    }
    // SAFETY: a new descriptor that nothing else owns.
    let uffd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let mapping = Mapping::new(16, MapFlags::PRIVATE);
    let (mut api, mut register) = ([0xaa_u64, 0, 0], [mapping.start + 4 * PAGE, 4 * PAGE, 1, 0]);
    for (request, argument) in [(UFFDIO_API, api.as_mut_ptr()), (UFFDIO_REGISTER, register.as_mut_ptr())] {
        use std::os::fd::AsRawFd;
        // SAFETY: the kernel reads and writes the structure of the request, which has this size.
        let result = unsafe { libc::ioctl(uffd.as_raw_fd(), request as _, argument) };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
    }
    for pagemap in [Pagemap::new(), without_scan()] {
        assert_eq!(mapping.touched(&pagemap), [4, 5, 6, 7]);
    }
}

#[test]
fn without_a_pagemap_everything_may_hold_data() {
    let mapping = Mapping::new(16, MapFlags::PRIVATE);
    assert_eq!(mapping.touched(&Pagemap::without_holes()).len(), 16);
    assert_eq!(Pagemap::without_holes().next_touched(mapping.start, 0), None);
}

#[test]
fn only_plain_private_anonymous_mappings_have_holes() {
    let mapping = |head: &str, flags: &str| format!("{head}\nRss:    12 kB\n{flags}");
    let smaps = [
        mapping("00400000-00401000 r-xp 00000000 fe:00 1077 /bin/program", "VmFlags: rd ex mr mw me"),
        mapping("10000000-10004000 rw-p 00000000 00:00 0 ", "VmFlags: rd wr mr mw me ac"),
        mapping("10004000-10008000 rw-p 00000000 00:00 0 [anon:guest]", "VmFlags: rd wr mr mw me ac nh"),
        mapping("10008000-1000a000 rw-p 00000000 00:00 0 ", "VmFlags: rd wr mr mw me ac um"),
        mapping("1000a000-1000c000 rw-p 00000000 00:00 0 ", "VmFlags: rd wr mr mw me ac uw"),
        mapping("20000000-20004000 rw-s 00000000 00:01 7 /dev/zero (deleted)", "VmFlags: rd wr sh"),
        mapping("30000000-30004000 rw-p 00000000 00:0f 8 /anon_hugepage (deleted)", "VmFlags: rd wr ht"),
        mapping("7ffd0000-7ffd4000 r--p 00000000 00:00 0 [vvar]", "VmFlags: rd mr pf io de dd"),
        "40000000-40004000 rw-p 00000000 00:00 0 ".to_string(),
    ];
    assert_eq!(
        anonymous_mappings(&smaps.join("\n")),
        [(0x1000_0000, 0x1000_8000), (0x1000_a000, 0x1000_c000)]
    );
}
