//! Random requests against a naive model: a table with one line a page.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use whimbrel_device::{Bus, ContainerSettings, Errno, Group, GroupFile, Process, SparseMemory, Translation};
use whimbrel_uapi::group::{VFIO_TYPE1_IOMMU, VFIO_TYPE1V2_IOMMU};
use whimbrel_uapi::type1::{DmaMapFlags, DmaUnmapFlags};

use super::support::{MEMORY, Machine, PAGE, device, memory};

/// Pages that requests speak of, and pages of memory the process has.
const PAGES: u64 = 150;
const LIMIT: u32 = 6;

#[derive(Clone, Debug)]
enum Request {
    Map { page: u64, pages: u64, memory: u64, rights: DmaMapFlags },
    Unmap { page: u64, pages: u64 },
    UnmapAll,
    UnmapDirty { page: u64, pages: u64 },
    Write { device: usize, page: u64, offset: u64, length: usize },
    Start,
    Stop,
    Get { page: u64, pages: u64 },
    Join,
    Leave,
}

fn request() -> impl Strategy<Value = Request> {
    let range = || (0..PAGES, prop_oneof![0u64..6, 0..PAGES + 10]);
    let rights = prop::sample::select(vec![
        DmaMapFlags::READ | DmaMapFlags::WRITE,
        DmaMapFlags::READ | DmaMapFlags::WRITE,
        DmaMapFlags::WRITE,
        DmaMapFlags::READ,
        DmaMapFlags::empty(),
    ]);
    prop_oneof![
        6 => (range(), 0..PAGES, rights)
            .prop_map(|((page, pages), memory, rights)| Request::Map { page, pages, memory, rights }),
        2 => range().prop_map(|(page, pages)| Request::Unmap { page, pages }),
        1 => Just(Request::UnmapAll),
        2 => range().prop_map(|(page, pages)| Request::UnmapDirty { page, pages }),
        8 => (0..3usize, 0..PAGES, 0..PAGE, 1..9000usize).prop_map(|(device, page, offset, length)| {
            Request::Write { device, page, offset, length }
        }),
        2 => Just(Request::Start),
        1 => Just(Request::Stop),
        4 => range().prop_map(|(page, pages)| Request::Get { page, pages }),
        1 => Just(Request::Join),
        1 => Just(Request::Leave),
    ]
}

/// A page of a mapping that begins at page `first` and has `pages`.
#[derive(Clone, Copy)]
struct Line {
    first: u64,
    pages: u64,
    memory: u64,
    rights: DmaMapFlags,
}

/// What must be so, page by page, counted from `base`.
struct Model {
    v2: bool,
    base: u64,
    lines: BTreeMap<u64, Line>,
    dirty: BTreeSet<u64>,
    tracking: bool,
    joined: bool,
}

impl Model {
    /// The range in pages, or why it is invalid.
    fn range(&self, page: u64, pages: u64) -> Result<std::ops::Range<u64>, Errno> {
        if pages == 0 {
            return Err(Errno::EINVAL);
        }
        let last = u128::from(self.base) + u128::from((page + pages) * PAGE) - 1;
        if last > u128::from(u64::MAX) { Err(Errno::EOVERFLOW) } else { Ok(page..page + pages) }
    }

    fn mappings(&self) -> BTreeMap<u64, Line> {
        self.lines.values().map(|line| (line.first, *line)).collect()
    }

    fn cuts(&self, range: &std::ops::Range<u64>) -> bool {
        self.mappings().values().any(|line| {
            let inside = (line.first..line.first + line.pages).filter(|page| range.contains(page)).count();
            inside != 0 && inside as u64 != line.pages
        })
    }

    fn map(&mut self, page: u64, pages: u64, memory: u64, rights: DmaMapFlags) -> Result<(), Errno> {
        let range = self.range(page, pages)?;
        if rights.is_empty() {
            return Err(Errno::EINVAL);
        }
        if range.clone().any(|page| self.lines.contains_key(&page)) {
            return Err(Errno::EEXIST);
        }
        if self.mappings().len() as u32 >= LIMIT {
            return Err(Errno::ENOSPC);
        }
        if memory + pages > PAGES {
            return Err(Errno::EFAULT);
        }
        for at in range {
            self.lines.insert(at, Line { first: page, pages, memory: memory + (at - page), rights });
        }
        Ok(())
    }

    fn unmap(&mut self, page: u64, pages: u64, all: bool) -> Result<u64, Errno> {
        let range = if all { 0..2 * PAGES } else { self.range(page, pages)? };
        if self.v2 && self.cuts(&range) {
            return Err(Errno::EINVAL);
        }
        if !self.v2 && self.lines.get(&range.start).is_some_and(|line| line.first != range.start) {
            return Ok(0);
        }
        let before = self.lines.len();
        self.lines.retain(|_, line| !range.contains(&line.first));
        self.dirty.retain(|page| self.lines.contains_key(page));
        Ok((before - self.lines.len()) as u64 * PAGE)
    }

    /// The dirty pages of a range, counted from its start, which are clean from now on.
    fn take(&mut self, page: u64, pages: u64) -> Result<BTreeSet<u64>, Errno> {
        let range = self.range(page, pages)?;
        if !self.tracking || self.cuts(&range) {
            return Err(Errno::EINVAL);
        }
        let taken = self.dirty.extract_if(.., |page| range.contains(page));
        Ok(taken.map(|dirty| dirty - page).collect())
    }

    fn write(&mut self, device: usize, page: u64, offset: u64, length: usize) -> bool {
        let touched = page..=page + (offset + length as u64 - 1) / PAGE;
        let allowed = (device < 2 || self.joined)
            && touched.clone().all(|page| {
                self.lines.get(&page).is_some_and(|line| line.rights.contains(DmaMapFlags::WRITE))
            });
        if allowed && self.tracking {
            self.dirty.extend(touched);
        }
        allowed
    }
}

fn pages_of(bitmap: &[u64]) -> BTreeSet<u64> {
    (0..bitmap.len() as u64 * 64)
        .filter(|page| bitmap[(page / 64) as usize] >> (page % 64) & 1 == 1)
        .collect()
}

fn late() -> (GroupFile, Bus) {
    let device = device("late");
    let bus = device.bus().clone();
    (Group::new(Translation::Emulated, vec![device]).unwrap().open().unwrap(), bus)
}

fn check(v2: bool, base: u64, requests: Vec<Request>) -> Result<(), TestCaseError> {
    let settings = ContainerSettings::default().dma_entry_limit(LIMIT);
    let iommu = if v2 { VFIO_TYPE1V2_IOMMU } else { VFIO_TYPE1_IOMMU };
    let machine = Machine::with(settings, Translation::Emulated, iommu);
    let container = &machine.container;
    let mut process = SparseMemory::new();
    process.insert_shared(MEMORY, memory(PAGES * PAGE, true));
    let (late, late_bus) = late();
    let buses = [machine.buses[0].clone(), machine.buses[1].clone(), late_bus];
    let lines = BTreeMap::new();
    let mut model = Model { v2, base, lines, dirty: BTreeSet::new(), tracking: false, joined: false };
    let iova = |page: u64| base + page * PAGE;
    let tracks = if v2 { Ok(()) } else { Err(Errno::EACCES) };
    let words = || vec![0; (PAGES as usize + 10).div_ceil(64)];
    for (step, request) in requests.into_iter().enumerate() {
        let what = format!("step {step}: {request:?}");
        match request {
            Request::Map { page, pages, memory, rights } => {
                let vaddr = MEMORY + memory * PAGE;
                let result = container.map_dma(rights, vaddr, iova(page), pages * PAGE, &process);
                prop_assert_eq!(result, model.map(page, pages, memory, rights), "{}", what);
            }
            Request::Unmap { page, pages } => {
                let result = container.unmap_dma(DmaUnmapFlags::empty(), iova(page), pages * PAGE);
                prop_assert_eq!(result, model.unmap(page, pages, false), "{}", what);
            }
            Request::UnmapAll => {
                let result = container.unmap_dma(DmaUnmapFlags::ALL, 0, 0);
                prop_assert_eq!(result, model.unmap(0, 0, true), "{}", what);
            }
            Request::UnmapDirty { page, pages } => {
                let mut bitmap = words();
                let result = container.unmap_dma_dirty(iova(page), pages * PAGE, PAGE, &mut bitmap);
                let dirty = model.take(page, pages);
                let expected = match dirty {
                    Ok(_) => model.unmap(page, pages, false),
                    Err(error) => Err(error),
                };
                prop_assert_eq!(result, expected, "{}", what);
                prop_assert_eq!(pages_of(&bitmap), dirty.unwrap_or_default(), "{}", what);
            }
            Request::Write { device, page, offset, length } => {
                let data = vec![step as u8 | 1; length];
                let result = match iova(page).checked_add(offset) {
                    Some(at) => buses[device].dma().write(at, &data).is_ok(),
                    None => false,
                };
                prop_assert_eq!(result, model.write(device, page, offset, length), "{}", what);
                if result {
                    let memory = model.lines[&page].memory;
                    let mut back = [0];
                    process.read(MEMORY + memory * PAGE + offset, &mut back).unwrap();
                    prop_assert_eq!(back[0], data[0], "{}", what);
                }
            }
            Request::Start => {
                prop_assert_eq!(container.start_dirty_tracking(), tracks);
                model.tracking = v2;
            }
            Request::Stop => {
                prop_assert_eq!(container.stop_dirty_tracking(), tracks);
                model.tracking = false;
                model.dirty.clear();
            }
            Request::Get { page, pages } => {
                let mut bitmap = words();
                let result = container.dirty_bitmap(iova(page), pages * PAGE, PAGE, &mut bitmap);
                let expected = tracks.and_then(|()| model.take(page, pages));
                prop_assert_eq!(result, expected.clone().map(|_| ()), "{}", what);
                prop_assert_eq!(pages_of(&bitmap), expected.unwrap_or_default(), "{}", what);
            }
            Request::Join => {
                let expected = if model.joined { Err(Errno::EINVAL) } else { Ok(()) };
                prop_assert_eq!(late.set_container(container), expected, "{}", what);
                model.joined = true;
            }
            Request::Leave => {
                let expected = if model.joined { Ok(()) } else { Err(Errno::EINVAL) };
                prop_assert_eq!(late.unset_container(), expected, "{}", what);
                model.joined = false;
            }
        }
        let left = LIMIT - model.mappings().len() as u32;
        prop_assert_eq!(container.iommu_info().unwrap().dma_avail, left, "{}", what);
    }
    // What is dirty at the end is still told, mapping by mapping, and nothing is left behind.
    for (first, line) in model.mappings() {
        if model.tracking {
            let mut bitmap = words();
            let expected = model.take(first, line.pages).unwrap();
            container.unmap_dma_dirty(iova(first), line.pages * PAGE, PAGE, &mut bitmap).unwrap();
            prop_assert_eq!(pages_of(&bitmap), expected);
        } else {
            container.unmap_dma(DmaUnmapFlags::empty(), iova(first), line.pages * PAGE).unwrap();
        }
    }
    prop_assert!(buses.iter().all(|bus| bus.dma().is_empty()), "a device still reaches memory");
    prop_assert_eq!(container.iommu_info().unwrap().dma_avail, LIMIT);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn no_sequence_of_requests_leaks_a_mapping_or_loses_a_dirty_page(
        v2 in prop::bool::weighted(0.8),
        base in prop::sample::select(vec![0, 0x1234_5000, 0u64.wrapping_sub(PAGES * PAGE)]),
        requests in prop::collection::vec(request(), 1..60),
    ) {
        check(v2, base, requests)?;
    }
}
