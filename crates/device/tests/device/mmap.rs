//! A part of a region is mapped where the region allows it, and nowhere else.

use std::fs::File;

use rustix::fs::{MemfdFlags, memfd_create};
use whimbrel_device::{
    Capability, Context, DeviceFile, DeviceInfoFlags, Driver, Errno, Info, Memory, MmapArea, Region,
    RegionInfoFlags, region_offset,
};
use whimbrel_memory::FileOffset;

const MAPPED: u32 = 1;
const SPARSE: u32 = 2;
const ODD: u32 = 3;
const REFUSED: u32 = 4;
const NO_AREAS: u32 = 5;

/// A card whose regions all lie in one file, the one after the other, 64 KiB each.
struct Card(File);

impl Driver for Card {
    fn info(&self) -> Info {
        Info::new(DeviceInfoFlags::PCI).num_regions(6)
    }

    fn region(&self, index: u32) -> Result<Region, Errno> {
        let both = RegionInfoFlags::READ | RegionInfoFlags::WRITE;
        let (flags, size) = match index {
            0 => (both, 0x4000),
            ODD => (both | RegionInfoFlags::MMAP, 0x1800),
            _ => (both | RegionInfoFlags::MMAP, 0x6000),
        };
        let capabilities = match index {
            SPARSE => vec![Capability::SparseMmap(vec![
                MmapArea::new(0x1000, 0x1000),
                MmapArea::new(0x2000, 0x1000),
                MmapArea::new(0x4000, 0x2000),
            ])],
            NO_AREAS => vec![Capability::SparseMmap(vec![])],
            _ => vec![],
        };
        Ok(Region::new(flags, size).capabilities(capabilities))
    }

    fn mmap(&mut self, _: &Context, index: u32, offset: u64, length: u64) -> Result<FileOffset, Errno> {
        assert!(offset.is_multiple_of(0x1000) && length.is_multiple_of(0x1000) && length > 0);
        if index == REFUSED {
            return Err(Errno::ENODEV);
        }
        Ok(FileOffset::new(self.0.try_clone().unwrap(), u64::from(index) * 0x10000 + offset))
    }
}

fn card() -> DeviceFile {
    let file = File::from(memfd_create(c"card", MemfdFlags::empty()).unwrap());
    file.set_len(0x60000).unwrap();
    DeviceFile::new("card", |_| Card(file))
}

#[test]
fn the_checks_are_those_of_the_kernel() {
    let cases = [
        ("the whole region", MAPPED, 0, 0x6000, Ok(())),
        ("one page", MAPPED, 0x5000, 0x1000, Ok(())),
        ("a length within a page is rounded up", MAPPED, 0x5000, 1, Ok(())),
        ("past the end", MAPPED, 0x5000, 0x1001, Err(Errno::EINVAL)),
        ("from the end on", MAPPED, 0x6000, 0x1000, Err(Errno::EINVAL)),
        ("nothing", MAPPED, 0, 0, Err(Errno::EINVAL)),
        ("a start within a page", MAPPED, 0x800, 0x1000, Err(Errno::EINVAL)),
        ("a length that overflows", MAPPED, 0, u64::MAX, Err(Errno::EINVAL)),
        ("an end that overflows", MAPPED, u64::MAX - 0xfff, 0x1000, Err(Errno::EINVAL)),
        ("a region that ends within a page", ODD, 0, 0x1800, Ok(())),
        ("its last page", ODD, 0x1000, 0x1000, Ok(())),
        ("the page after that", ODD, 0x2000, 0x1000, Err(Errno::EINVAL)),
        ("without the flag", 0, 0, 0x1000, Err(Errno::EINVAL)),
        ("no such region", 6, 0, 0x1000, Err(Errno::EINVAL)),
        ("a sparse area", SPARSE, 0x4000, 0x2000, Ok(())),
        ("a part of one", SPARSE, 0x5000, 0x1000, Ok(())),
        ("before an area", SPARSE, 0, 0x1000, Err(Errno::EINVAL)),
        ("into an area", SPARSE, 0, 0x2000, Err(Errno::EINVAL)),
        ("over two areas that touch", SPARSE, 0x1000, 0x2000, Err(Errno::EINVAL)),
        ("between areas", SPARSE, 0x3000, 0x1000, Err(Errno::EINVAL)),
        ("no area at all", NO_AREAS, 0, 0x1000, Err(Errno::EINVAL)),
        ("what the driver refuses", REFUSED, 0, 0x1000, Err(Errno::ENODEV)),
    ];
    let card = card();
    for (what, index, offset, length, expected) in cases {
        assert_eq!(card.mmap(index, offset, length).map(drop), expected, "{what}");
        if offset < 1 << 40 {
            let by_file = card.mmap_file(region_offset(index) + offset, length, true);
            assert_eq!(by_file.map(drop), expected, "{what}, by an offset of the file");
        }
    }
}

#[test]
fn a_private_mapping_is_refused() {
    assert_eq!(card().mmap_file(region_offset(MAPPED), 0x1000, false).map(drop), Err(Errno::EINVAL));
}

#[test]
fn what_is_mapped_is_the_part_that_was_asked_for() {
    let place = card().mmap(SPARSE, 0x5000, 0x1000).unwrap();
    assert_eq!(place.start(), u64::from(SPARSE) * 0x10000 + 0x5000);
    assert_eq!(Memory::of_file(place, 0x1000, true).unwrap().size(), 0x1000);
}

#[test]
fn a_driver_that_maps_nothing_need_not_say_so() {
    struct Plain;
    impl Driver for Plain {
        fn info(&self) -> Info {
            Info::new(DeviceInfoFlags::PCI).num_regions(1)
        }
        fn region(&self, _index: u32) -> Result<Region, Errno> {
            let flags = RegionInfoFlags::READ | RegionInfoFlags::MMAP;
            Ok(Region::new(flags, 0x1000))
        }
    }
    let plain = DeviceFile::new("plain", |_| Plain);
    assert_eq!(plain.mmap(0, 0, 0x1000).map(drop), Err(Errno::EINVAL));
}
