//! Random requests on address spaces, against a model that keeps every page by itself: what is mapped, what a
//! device and its PASIDs reach, which pages are dirty.

use std::collections::{BTreeMap, BTreeSet};

use crate::iommufd_program::bench::Idle;
use crate::iommufd_program::{DATA, Program, SHARED};
use proptest::prelude::*;
use whimbrel_device::iommufd::{Iommu, Iommufd, OwnIommu};
use whimbrel_device::{Bus, Cdev, DeviceFile, Errno};
use whimbrel_uapi::cdev::{DeviceAttachIommufdPt, DeviceBindIommufd, DeviceDetachIommufdPt};
use whimbrel_uapi::group::VFIO_TYPE1_IOMMU;
use whimbrel_uapi::ioctl::*;
use whimbrel_uapi::iommufd::*;
use whimbrel_uapi::type1::IommuType1DmaUnmap;

const PAGE: u64 = 4096;
/// Pages of IOVA and of memory that requests are about.
const PAGES: u64 = 16;
const SPACES: u32 = 2;
const READ: u32 = IoasMapFlags::READABLE.bits();
const WRITE: u32 = IoasMapFlags::WRITEABLE.bits();
const FIXED: u32 = IoasMapFlags::FIXED_IOVA.bits();

/// Who reaches memory: the device itself, and two of its PASIDs.
const PASIDS: [u32; 3] = [0, 3, 7];

/// A request, in pages; `space` and `from` number address spaces, `who` is one of [`PASIDS`].
#[derive(Clone, Copy, Debug)]
enum Step {
    Map {
        space: u32,
        at: u64,
        pages: u64,
        memory: u64,
        writable: bool,
    },
    Copy {
        space: u32,
        from: u32,
        at: u64,
        pages: u64,
        source: u64,
        writable: bool,
    },
    Unmap {
        space: u32,
        at: u64,
        pages: u64,
    },
    /// As the first type1 IOMMU does it, which cuts mappings; the first space stands in for a container.
    UnmapDma {
        at: u64,
        pages: u64,
    },
    Attach {
        who: usize,
        to: Target,
    },
    Detach {
        who: usize,
    },
    Track {
        space: u32,
        enable: bool,
    },
    Write {
        who: usize,
        at: u64,
        bytes: u64,
    },
    Report {
        space: u32,
        at: u64,
        pages: u64,
        clear: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Space(u32),
    Table(u32),
}

fn steps() -> impl Strategy<Value = Step> {
    let (space, at, pages, flag) = (0..SPACES, 0..PAGES, 0..6u64, any::<bool>());
    let who = 0..PASIDS.len();
    prop_oneof![
        4 => (space.clone(), at.clone(), pages.clone(), at.clone(), flag).prop_map(
            |(space, at, pages, memory, writable)| Step::Map { space, at, pages, memory, writable }),
        2 => (space.clone(), space.clone(), at.clone(), pages.clone(), at.clone(), flag).prop_map(
            |(space, from, at, pages, source, writable)| {
                Step::Copy { space, from, at, pages, source, writable }
            }),
        2 => (space.clone(), at.clone(), 0..PAGES).prop_map(
            |(space, at, pages)| Step::Unmap { space, at, pages }),
        2 => (at.clone(), 0..3u64).prop_map(|(at, pages)| Step::UnmapDma { at, pages }),
        1 => (who.clone(), space.clone()).prop_map(
            |(who, space)| Step::Attach { who, to: Target::Space(space) }),
        3 => (who.clone(), space.clone()).prop_map(
            |(who, space)| Step::Attach { who, to: Target::Table(space) }),
        2 => who.clone().prop_map(|who| Step::Detach { who }),
        1 => (space.clone(), any::<bool>()).prop_map(|(space, enable)| Step::Track { space, enable }),
        6 => (who, 0..PAGES * PAGE, 1..3 * PAGE).prop_map(|(who, at, bytes)| Step::Write { who, at, bytes }),
        2 => (space, at, 1..=PAGES, any::<bool>()).prop_map(
            |(space, at, pages, clear)| Step::Report { space, at, pages, clear }),
    ]
}

/// A page of IOVA in the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Page {
    /// The first page of its mapping, and the mapping's pages.
    first: u64,
    count: u64,
    memory: u64,
    writable: bool,
    /// The memory was mapped to be written.
    memory_writable: bool,
}

#[derive(Default)]
struct Space {
    pages: BTreeMap<u64, Page>,
    tracks: bool,
    dirty: BTreeSet<u64>,
}

impl Space {
    fn is_free(&self, at: u64, count: u64) -> bool {
        (at..at + count).all(|page| !self.pages.contains_key(&page))
    }

    /// The model of a cut: a mapping that goes on at `page` is two from now on.
    fn cut(&mut self, page: u64) {
        let before = page.checked_sub(1).and_then(|before| self.pages.get(&before)).copied();
        let Some(Page { first, count, .. }) = before.filter(|found| found.first + found.count > page) else {
            return;
        };
        for (at, found) in self.pages.range_mut(first..first + count) {
            if *at < page {
                found.count = page - first;
            } else {
                (found.first, found.count) = (page, first + count - page);
            }
        }
    }

    /// The model of unmapping: mappings one by one, up to one that the range cuts.
    fn unmap(&mut self, at: u64, count: u64) -> Result<u64, Errno> {
        let end = at + count;
        let mut gone = 0;
        for page in at..end {
            let Some(found) = self.pages.get(&page).copied() else { continue };
            if found.first < at || found.first + found.count > end {
                return Err(Errno::ENOENT);
            }
            self.pages.remove(&page);
            self.dirty.remove(&page);
            gone += 1;
        }
        if gone == 0 { Err(Errno::ENOENT) } else { Ok(gone) }
    }
}

struct World {
    program: Program,
    iommufd: Iommufd,
    cdev: Cdev,
    bus: Bus,
    /// Numbers of the address spaces, and of a table that tracks on each.
    ids: [(u32, u32); SPACES as usize],
}

impl World {
    fn new() -> World {
        let mut program = Program::new();
        let iommufd = Iommufd::new();
        program.iommufds.insert(7, iommufd.clone());
        let iommu = Iommu::Own(OwnIommu::default().dirty_tracking(true).pasid_bits(3));
        let device = DeviceFile::new("idle", |_| Idle);
        let bus = device.bus().clone();
        let cdev = Cdev::new(device, iommu);
        let bind = DeviceBindIommufd { argsz: 24, iommufd: 7, ..Default::default() };
        let number = VFIO_DEVICE_BIND_IOMMUFD.number();
        let dev_id = program.call(bind, |at, program| cdev.ioctl(number, at, program)).unwrap().out_devid;
        let ids = [(); SPACES as usize].map(|()| {
            let asked = IoasAlloc { size: 12, ..Default::default() };
            let pt_id = program.request(&iommufd, IOMMU_IOAS_ALLOC, asked).unwrap().out_ioas_id;
            let flags = (HwptAllocFlags::ALLOC_DIRTY_TRACKING | HwptAllocFlags::ALLOC_PASID).bits();
            let asked = HwptAlloc { size: 48, flags, dev_id, pt_id, ..Default::default() };
            (pt_id, program.request(&iommufd, IOMMU_HWPT_ALLOC, asked).unwrap().out_hwpt_id)
        });
        let asked = VfioIoas { size: 12, ioas_id: ids[0].0, op: IOMMU_VFIO_IOAS_SET, __reserved: 0 };
        program.request(&iommufd, IOMMU_VFIO_IOAS, asked).unwrap();
        iommufd.ioctl(VFIO_SET_IOMMU.number(), VFIO_TYPE1_IOMMU.into(), &mut program).unwrap();
        World { program, iommufd, cdev, bus, ids }
    }

    fn ioas(&self, space: u32) -> u32 {
        self.ids[space as usize].0
    }

    fn table(&self, space: u32) -> u32 {
        self.ids[space as usize].1
    }

    fn attach(&mut self, who: usize, to: Target) -> Result<(), Errno> {
        let pt_id = match to {
            Target::Space(space) => self.ioas(space),
            Target::Table(space) => self.table(space),
        };
        let asked = DeviceAttachIommufdPt { argsz: 16, flags: u32::from(who > 0), pt_id, pasid: PASIDS[who] };
        let number = VFIO_DEVICE_ATTACH_IOMMUFD_PT.number();
        self.program.call(asked, |at, program| self.cdev.ioctl(number, at, program)).map(|_| ())
    }

    fn detach(&mut self, who: usize) {
        let asked = DeviceDetachIommufdPt { argsz: 12, flags: u32::from(who > 0), pasid: PASIDS[who] };
        let number = VFIO_DEVICE_DETACH_IOMMUFD_PT.number();
        self.program.call(asked, |at, program| self.cdev.ioctl(number, at, program)).unwrap();
    }

    fn track(&mut self, space: u32, enable: bool) {
        let hwpt_id = self.table(space);
        let asked = HwptSetDirtyTracking { size: 16, flags: u32::from(enable), hwpt_id, __reserved: 0 };
        self.program.request(&self.iommufd, IOMMU_HWPT_SET_DIRTY_TRACKING, asked).unwrap();
    }

    fn write(&self, who: usize, iova: u64, bytes: u64) -> bool {
        let data = vec![1; bytes as usize];
        match who {
            0 => self.bus.dma().write(iova, &data).is_ok(),
            _ => self.bus.pasid(PASIDS[who]).is_some_and(|space| space.write(iova, &data).is_ok()),
        }
    }

    fn reaches(&self, who: usize, iova: u64) -> bool {
        match who {
            0 => self.bus.dma().read(iova, &mut [0]).is_ok(),
            _ => self.bus.pasid(PASIDS[who]).is_some_and(|space| space.read(iova, &mut [0]).is_ok()),
        }
    }

    fn report(&mut self, space: u32, at: u64, pages: u64, clear: bool) -> BTreeSet<u64> {
        self.program.memory.insert(DATA, [0; 8]);
        let asked = HwptGetDirtyBitmap {
            size: 48,
            hwpt_id: self.table(space),
            flags: u32::from(!clear),
            iova: at * PAGE,
            length: pages * PAGE,
            page_size: PAGE,
            data: DATA,
            ..Default::default()
        };
        self.program.request(&self.iommufd, IOMMU_HWPT_GET_DIRTY_BITMAP, asked).unwrap();
        let word = u64::from_le_bytes(self.program.memory.piece(DATA).unwrap().try_into().unwrap());
        (0..64).filter(|bit| word >> bit & 1 == 1).map(|bit| at + bit).collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn an_iommufd_does_what_a_list_of_pages_does(steps in proptest::collection::vec(steps(), 1..60)) {
        let mut world = World::new();
        let mut model: [Space; SPACES as usize] = Default::default();
        let mut attached: [Option<Target>; PASIDS.len()] = [None; PASIDS.len()];
        // What takes the most steps to come about is there from the start.
        world.attach(0, Target::Table(0)).unwrap();
        attached[0] = Some(Target::Table(0));
        world.track(0, true);
        model[0].tracks = true;
        for step in steps {
            match step {
                Step::Map { space, at, pages, memory, writable } => {
                    let asked = IoasMap {
                        size: 40,
                        flags: FIXED | READ | if writable { WRITE } else { 0 },
                        ioas_id: world.ioas(space),
                        __reserved: 0,
                        user_va: SHARED + memory * PAGE,
                        length: pages * PAGE,
                        iova: at * PAGE,
                    };
                    let answer = world.program.request(&world.iommufd, IOMMU_IOAS_MAP, asked).map(|_| ());
                    let space = &mut model[space as usize];
                    let expected = match pages {
                        0 => Err(Errno::EINVAL),
                        _ if !space.is_free(at, pages) => Err(Errno::EEXIST),
                        _ => Ok(()),
                    };
                    prop_assert_eq!(answer, expected);
                    if answer.is_ok() {
                        space.pages.extend((0..pages).map(|page| (at + page, Page {
                            first: at,
                            count: pages,
                            memory: memory + page,
                            writable,
                            memory_writable: writable,
                        })));
                    }
                }
                Step::Copy { space, from, at, pages, source, writable } => {
                    let asked = IoasCopy {
                        size: 40,
                        flags: FIXED | READ | if writable { WRITE } else { 0 },
                        dst_ioas_id: world.ioas(space),
                        src_ioas_id: world.ioas(from),
                        length: pages * PAGE,
                        dst_iova: at * PAGE,
                        src_iova: source * PAGE,
                    };
                    let answer = world.program.request(&world.iommufd, IOMMU_IOAS_COPY, asked).map(|_| ());
                    let copied: Vec<Page> = (source..source + pages)
                        .map_while(|page| model[from as usize].pages.get(&page).copied())
                        .collect();
                    let expected = match pages {
                        0 => Err(Errno::EINVAL),
                        _ if (copied.len() as u64) < pages => Err(Errno::ENOENT),
                        _ if !model[space as usize].is_free(at, pages) => Err(Errno::EEXIST),
                        _ if writable && copied.iter().any(|page| !page.memory_writable) => Err(Errno::EPERM),
                        _ => Ok(()),
                    };
                    prop_assert_eq!(answer, expected);
                    if answer.is_ok() {
                        // Each piece of a mapping that was copied is a mapping.
                        for (index, page) in copied.iter().enumerate() {
                            let same = |other: &&Page| other.first == page.first;
                            let count = copied.iter().filter(same).count() as u64;
                            let before = copied.iter().position(|other| other.first == page.first).unwrap();
                            let first = at + before as u64;
                            let copy = Page { first, count, writable, ..*page };
                            model[space as usize].pages.insert(at + index as u64, copy);
                        }
                    }
                }
                Step::Unmap { space, at, pages } => {
                    let (iova, length) = (at * PAGE, pages * PAGE);
                    let asked = IoasUnmap { size: 24, ioas_id: world.ioas(space), iova, length };
                    let answer = world.program.request(&world.iommufd, IOMMU_IOAS_UNMAP, asked);
                    let expected =
                        if pages == 0 { Err(Errno::EINVAL) } else { model[space as usize].unmap(at, pages) };
                    prop_assert_eq!(answer.map(|answer| answer.length / PAGE), expected);
                }
                Step::UnmapDma { at, pages } => {
                    let asked =
                        IommuType1DmaUnmap { argsz: 24, flags: 0, iova: at * PAGE, size: pages * PAGE };
                    let answer = world.program.request(&world.iommufd, VFIO_IOMMU_UNMAP_DMA, asked);
                    let space = &mut model[0];
                    space.cut(at);
                    let expected = if pages == 0 {
                        Err(Errno::EINVAL)
                    } else {
                        space.cut(at + pages);
                        Ok(space.unmap(at, pages).unwrap_or(0))
                    };
                    prop_assert_eq!(answer.map(|answer| answer.size / PAGE), expected);
                }
                Step::Attach { who, to } => {
                    let plain = |to: &Option<Target>| matches!(to, Some(Target::Space(_)));
                    // What an address space makes for a device is not for PASIDs.
                    let fits = match (who, to) {
                        (0, Target::Table(_)) => true,
                        (0, Target::Space(_)) => attached[1..].iter().all(Option::is_none),
                        (_, Target::Table(_)) => !plain(&attached[0]),
                        (_, Target::Space(_)) => false,
                    };
                    let answer = world.attach(who, to);
                    prop_assert_eq!(answer, if fits { Ok(()) } else { Err(Errno::EINVAL) });
                    if fits {
                        attached[who] = Some(to);
                    }
                }
                Step::Detach { who } => {
                    world.detach(who);
                    attached[who] = None;
                }
                Step::Track { space, enable } => {
                    world.track(space, enable);
                    model[space as usize].tracks = enable;
                    model[space as usize].dirty.clear();
                }
                Step::Write { who, at, bytes } => {
                    let touched = at / PAGE..=(at + bytes - 1) / PAGE;
                    let space = attached[who].map(|to| match to {
                        Target::Space(space) | Target::Table(space) => space,
                    });
                    let allowed = space.is_some_and(|space| {
                        let pages = &model[space as usize].pages;
                        touched.clone().all(|page| pages.get(&page).is_some_and(|page| page.writable))
                    });
                    prop_assert_eq!(world.write(who, at, bytes), allowed);
                    if let (true, Some(Target::Table(space))) = (allowed, attached[who])
                        && model[space as usize].tracks
                    {
                        model[space as usize].dirty.extend(touched);
                    }
                }
                Step::Report { space, at, pages, clear } => {
                    let told = world.report(space, at, pages, clear);
                    let model = &mut model[space as usize];
                    // Up to the first hole.
                    let asked = (at..at + pages).take_while(|page| model.pages.contains_key(page));
                    let expected: BTreeSet<u64> = asked.filter(|page| model.dirty.contains(page)).collect();
                    prop_assert_eq!(&told, &expected);
                    if clear {
                        model.dirty.retain(|page| !told.contains(page));
                    }
                }
            }
        }
        // Nothing is left over: the device reaches exactly what its space maps, and all of it can be given
        // back.
        for (who, attached) in attached.into_iter().enumerate() {
            for page in 0..PAGES + 8 {
                let mapped = attached.is_some_and(|(Target::Space(space) | Target::Table(space))| {
                    model[space as usize].pages.contains_key(&page)
                });
                prop_assert_eq!(world.reaches(who, page * PAGE), mapped, "page {} of {}", page, who);
            }
        }
        drop(world.cdev);
        for (space, table) in world.ids {
            for id in [table, space] {
                let asked = Destroy { size: 8, id };
                world.program.request(&world.iommufd, IOMMU_DESTROY, asked).unwrap();
            }
        }
        prop_assert_eq!(world.iommufd.objects(), 0);
    }
}
