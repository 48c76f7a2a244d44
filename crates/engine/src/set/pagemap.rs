//! Holes of anonymous memory: the pages of this process that were never touched, from `/proc/self/pagemap`.
//!
//! The holes of files are in [`mapping`](super::mapping).
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::ioctl::{Updater, ioctl, opcode};
use rustix::param::page_size;

/// The maximum number of bytes in one answer of the kernel, which holds the lock of the process's mappings meanwhile.
const STEP: u64 = 1 << 30;
/// The number of entries read at once where the kernel lacks PAGEMAP_SCAN.
const ENTRIES: usize = 8192;
/// Bits of an entry (`Documentation/admin-guide/mm/pagemap.rst`): the page is present, or swapped out.
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;

/// The pages of this process that are in use, for walks over anonymous memory. Cheap until it is used.
///
/// A page counts as a hole only if it reads as zero for certain: it was never touched, and it belongs to a private
/// anonymous mapping whose missing pages no userfaultfd provides. The mappings are read once, at the first hole: none of them
/// may be registered with a userfaultfd or replaced later. Where the kernel gives no answer, everything may hold data.
///
/// ```
/// use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, MemoryRegionAddress};
/// use whimbrel_engine::Ram;
/// use whimbrel_engine::set::Pagemap;
///
/// let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 30)]).unwrap();
/// Ram::write(&memory, 5 << 20, b"data")?;
/// let region = memory.iter().next().unwrap();
/// let start = region.get_host_address(MemoryRegionAddress(0)).unwrap() as u64;
/// let (first, end) = Pagemap::new().next_touched(start, 1 << 30).unwrap();
/// assert!(first <= start + (5 << 20) && end > start + (5 << 20));
/// # Ok::<(), whimbrel_engine::RamError>(())
/// ```
#[derive(Debug, Default)]
pub struct Pagemap {
    tables: OnceLock<Option<Tables>>,
}

impl Pagemap {
    /// Returns a pagemap that has not been opened.
    pub const fn new() -> Pagemap {
        Pagemap { tables: OnceLock::new() }
    }

    /// Returns a pagemap that knows of no holes.
    pub(super) fn without_holes() -> Pagemap {
        Pagemap { tables: OnceLock::from(None) }
    }

    /// Returns the start and the end of the first stretch in `length` bytes from `address` on, an address of this process,
    /// that may hold data; `None` if none of it was ever touched. Touches nothing.
    pub fn next_touched(&self, address: u64, length: u64) -> Option<(u64, u64)> {
        let end = address.saturating_add(length);
        let everything = (address < end).then_some((address, end));
        let tables = self.tables.get_or_init(|| Tables::open().map_err(unknown).ok());
        let Some(tables) = tables else { return everything };
        tables.next_touched(address, end).unwrap_or_else(|error| {
            unknown(error);
            everything
        })
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn unknown(error: io::Error) {
    tracing::debug!(%error, "the pagemap cannot be read: anonymous memory counts as touched");
}

/// The page tables and the mappings of this process.
#[derive(Debug)]
struct Tables {
    pagemap: File,
    /// Set as long as the kernel is not known to lack PAGEMAP_SCAN.
    scans: AtomicBool,
    /// Mappings whose missing pages are zero, by address: start and end. Read at the first hole, because the kernel walks
    /// all of the process's memory for it.
    anonymous: OnceLock<Vec<(u64, u64)>>,
}

impl Tables {
    fn open() -> io::Result<Tables> {
        let pagemap = File::open("/proc/self/pagemap")?;
        Ok(Tables { pagemap, scans: AtomicBool::new(true), anonymous: OnceLock::new() })
    }

    /// Returns the first stretch that may hold data, if any.
    fn next_touched(&self, start: u64, end: u64) -> io::Result<Option<(u64, u64)>> {
        let found = self.next_present(start, end)?;
        let hole_end = found.map_or(end, |(from, _)| from);
        if hole_end <= start {
            return Ok(found);
        }
        let anonymous = self.anonymous.get_or_init(|| {
            // The paths in it may be any bytes.
            let smaps = std::fs::read("/proc/self/smaps").map_err(unknown).unwrap_or_default();
            anonymous_mappings(&String::from_utf8_lossy(&smaps))
        });
        let after = anonymous.partition_point(|(from, _)| *from <= start);
        let zero_until = after.checked_sub(1).map_or(start, |index| anonymous[index].1.max(start));
        if zero_until >= hole_end {
            return Ok(found);
        }
        let next = anonymous.get(after).map_or(end, |(from, _)| end.min(*from));
        Ok(Some((zero_until, next)))
    }

    fn next_present(&self, start: u64, end: u64) -> io::Result<Option<(u64, u64)>> {
        let page = page_size() as u64;
        let (first, last) = (start - start % page, end.next_multiple_of(page));
        let scanned = self.scans.load(Ordering::Relaxed).then(|| self.scan(first, last));
        let found = if let Some(Ok(found)) = scanned {
            found
        } else {
            // Before Linux 6.7, or in a sandbox.
            self.scans.store(false, Ordering::Relaxed);
            self.read(first, last)?
        };
        Ok(found.map(|(from, to)| (from.max(start), to.min(end))))
    }

    /// Asks the kernel for the first touched pages. Pages that are mapped to the kernel's page of zeros count as holes
    /// where it can tell; otherwise they are read.
    fn scan(&self, start: u64, end: u64) -> rustix::io::Result<Option<(u64, u64)>> {
        let mut region = PageRegion::default();
        let mut scan = PagemapScan {
            size: size_of::<PagemapScan>() as u64,
            start,
            end,
            vec: &raw mut region as u64,
            vec_len: 1,
            max_pages: STEP / page_size() as u64,
            category_inverted: PAGE_IS_PFNZERO,
            category_mask: PAGE_IS_PFNZERO,
            category_anyof_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
            ..PagemapScan::default()
        };
        // SAFETY: the kernel reads and writes the structure that belongs to this request, and writes at most `vec_len`
        // regions to `vec`. Without flags it changes no page.
        let request = unsafe { Updater::<PAGEMAP_SCAN, _>::new(&mut scan) };
        // SAFETY: as above.
        unsafe { ioctl(&self.pagemap, request) }?;
        Ok((region.end > region.start).then_some((region.start, region.end)))
    }

    /// Reads the entries of the pages, up to the end of the first touched ones.
    fn read(&self, start: u64, end: u64) -> io::Result<Option<(u64, u64)>> {
        let page = page_size() as u64;
        let mut entries = vec![0_u8; ENTRIES * 8];
        let (mut at, mut first) = (start, None);
        while at < end {
            let count = ENTRIES.min(((end - at) / page) as usize);
            self.pagemap.read_exact_at(&mut entries[..count * 8], at / page * 8)?;
            for (index, entry) in entries[..count * 8].as_chunks::<8>().0.iter().enumerate() {
                let address = at + index as u64 * page;
                let is_touched = u64::from_ne_bytes(*entry) & (PRESENT | SWAPPED) != 0;
                match first {
                    None if is_touched => first = Some(address),
                    Some(from) if !is_touched || address - from >= STEP => return Ok(Some((from, address))),
                    _ => {}
                }
            }
            at += count as u64 * page;
        }
        Ok(first.map(|from| (from, end)))
    }
}

/// Returns the private anonymous mappings in the text of `/proc/self/smaps` whose missing pages are zero.
fn anonymous_mappings(smaps: &str) -> Vec<(u64, u64)> {
    let mut found: Vec<(u64, u64)> = Vec::new();
    let mut mapping = None;
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let Some(head) = words.next() else { continue };
        if head == "VmFlags:" {
            // Missing pages that a userfaultfd provides, and pages that are no ordinary memory.
            let is_plain = !words.any(|flag| matches!(flag, "um" | "pf" | "mm" | "io"));
            match (mapping.take().filter(|_| is_plain), found.last_mut()) {
                (Some((start, end)), Some(last)) if last.1 == start => last.1 = end,
                (Some(mapping), _) => found.push(mapping),
                (None, _) => {}
            }
        } else if let Some(range) = range_of(head) {
            let (rights, inode) = (words.next(), words.nth(2));
            let is_private = rights.is_some_and(|rights| rights.ends_with('p'));
            mapping = Some(range).filter(|_| is_private && inode == Some("0"));
        }
    }
    found
}

/// Returns the addresses at the head of a mapping: `7f0c1000-7f0c5000`.
fn range_of(head: &str) -> Option<(u64, u64)> {
    let (start, end) = head.split_once('-')?;
    Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
}

/// `struct pm_scan_arg` (`include/uapi/linux/fs.h`).
#[repr(C)]
#[derive(Default)]
struct PagemapScan {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    /// Categories that divide regions. None: pages in memory and swapped ones that follow each other are one region.
    return_mask: u64,
}

/// `struct page_region`.
#[repr(C)]
#[derive(Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

const PAGEMAP_SCAN: u32 = opcode::read_write::<PagemapScan>(b'f', 16);
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;
const PAGE_IS_PFNZERO: u64 = 1 << 5;

#[cfg(test)]
#[path = "pagemap_tests.rs"]
mod tests;
