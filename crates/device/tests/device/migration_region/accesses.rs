//! What region info says, and which accesses there are.

use whimbrel_device::wrap::migration_region::{Layout, Version};
use whimbrel_device::{Capability, Errno, MmapArea, RegionInfoFlags};
use whimbrel_uapi::feature::{Feature, FeatureFlags};

use super::support::{DATA_OFFSET, DATA_SIZE, Offered, RESUMING, SAVING, User, accel, layouts, serial};

const BOTH: [Offered; 2] = [Offered::ByItsDriver, Offered::ByAVendor];

#[test]
fn the_region_follows_the_devices_own() {
    for offered in BOTH {
        let device = serial(&Layout::trapped(Version::V1, 64).unwrap(), offered);
        assert_eq!(device.info().num_regions, 10);
        let region = device.region_info(9).unwrap();
        assert_eq!(region.size, 32 + 64);
        assert_eq!(region.offset, 9 << 40);
        assert_eq!(region.flags, RegionInfoFlags::READ | RegionInfoFlags::WRITE);
        assert_eq!(region.capabilities, [Capability::Type { region_type: 3, subtype: 1 }]);
    }
}

#[test]
fn a_mapped_section_is_told_by_sparse_areas_of_whole_pages() {
    for offered in BOTH {
        for version in [Version::V1, Version::Draft] {
            let device = serial(&Layout::partly_mapped(version, 0x2000, 0x100).unwrap(), offered);
            let region = device.region_info(9).unwrap();
            assert!(region.flags.contains(RegionInfoFlags::MMAP));
            let areas = Capability::SparseMmap(vec![MmapArea::new(0x1000, 0x2000)]);
            assert!(region.capabilities.contains(&areas), "{region:?}");
            assert!(region.capabilities.contains(&Capability::Type { region_type: 3, subtype: 1 }));
        }
    }
}

#[test]
fn only_what_region_info_names_is_mapped() {
    for offered in BOTH {
        let device = serial(&Layout::partly_mapped(Version::V1, 0x2000, 0x1000).unwrap(), offered);
        for (offset, length, expected) in [
            (0x1000, 0x2000, Ok(())),
            (0x2000, 0x1000, Ok(())),
            (0, 0x1000, Err(Errno::EINVAL)),
            (0, 0x3000, Err(Errno::EINVAL)),
            (0x2000, 0x2000, Err(Errno::EINVAL)),
            (0x3000, 0x1000, Err(Errno::EINVAL)),
        ] {
            assert_eq!(device.mmap(9, offset, length).map(drop), expected, "{offset:#x} {length:#x}");
        }
        let trapped = serial(&Layout::trapped(Version::V1, 0x4000).unwrap(), offered);
        assert_eq!(trapped.mmap(9, 0x1000, 0x1000).map(drop), Err(Errno::EINVAL));
    }
}

#[test]
fn the_mapped_file_cannot_be_made_shorter_under_the_driver() {
    let device = serial(&Layout::mapped(Version::V1, 0x1000).unwrap(), Offered::ByItsDriver);
    let file = device.mmap(9, 0x1000, 0x1000).unwrap();
    assert!(file.file().set_len(0).is_err());
    assert!(file.file().set_len(1 << 20).is_err());
}

#[test]
fn fields_are_accessed_at_their_native_width_and_place_only() {
    for version in [Version::V1, Version::Draft] {
        let layout = Layout::trapped(version, 64).unwrap();
        for offered in BOTH {
            let device = serial(&layout, offered);
            let user = User::new(&device);
            user.set_state(SAVING).unwrap();
            for offset in 0..layout.version().header_size() {
                for width in 1..=16 {
                    let native = match offset {
                        0 | 4 => width == 4,
                        _ => width == 8 && offset.is_multiple_of(8),
                    };
                    // Readable fields while saving; the draft's copied_pfns wants a query first.
                    let readable = native && offset < 32;
                    let read = device.read_region(9, offset, &mut vec![0; width]);
                    let expected = if readable { Ok(width) } else { Err(Errno::EINVAL) };
                    assert_eq!(read, expected, "{version:?}: read of {width} at {offset}");
                    if !native {
                        let write = device.write_region(9, offset, &vec![0; width]);
                        assert_eq!(write, Err(Errno::EINVAL), "{version:?}: write of {width} at {offset}");
                    }
                }
            }
            assert_eq!(user.state(), Ok(SAVING));
        }
    }
}

#[test]
fn the_data_section_takes_any_width_and_alignment() {
    for layout in layouts() {
        let device = serial(&layout, Offered::ByItsDriver);
        let user = User::new(&device);
        user.set_state(SAVING).unwrap();
        let whole = user.transaction().unwrap().unwrap();
        let offset = user.get(DATA_OFFSET).unwrap();
        for width in 1..=9 {
            let mut read = Vec::new();
            while read.len() < whole.len() {
                let count = width.min(whole.len() - read.len());
                let mut piece = vec![0; count];
                let at = offset + read.len() as u64;
                assert_eq!(device.read_region(user.index, at, &mut piece), Ok(count));
                read.extend(piece);
            }
            assert_eq!(read, whole, "{layout:?} by {width}");
        }
    }
}

#[test]
fn a_mapped_section_may_be_accessed_by_reads_and_writes_all_the_same() {
    let layout = Layout::mapped(Version::V1, 0x1000).unwrap();
    let (source, destination) =
        (serial(&layout, Offered::ByItsDriver), serial(&layout, Offered::ByItsDriver));
    source.write_region(0, 0, b"x").unwrap();
    let (from, to) = (User::new(&source), User::new(&destination));
    from.set_state(SAVING).unwrap();
    let size = from.get(DATA_OFFSET).and_then(|_| from.get(DATA_SIZE)).unwrap();
    let mut state = vec![0; size as usize];
    source.read_region(9, 0x1000, &mut state).unwrap();
    to.set_state(RESUMING).unwrap();
    destination.write_region(9, 0x1000, &state).unwrap();
    to.set(DATA_SIZE, size).unwrap();
    to.set_state(1).unwrap();
    let mut received = [0];
    destination.read_region(0, 0, &mut received).unwrap();
    assert_eq!(received, *b"x");
}

#[test]
fn an_access_that_leaves_the_region_is_cut_or_refused_as_in_every_region() {
    let layout = Layout::trapped(Version::V1, 64).unwrap();
    let device = serial(&layout, Offered::ByItsDriver);
    let user = User::new(&device);
    user.set_state(RESUMING).unwrap();
    assert_eq!(device.write_region(9, layout.size() - 4, &[0; 8]), Ok(4));
    assert_eq!(device.write_region(9, layout.size(), &[0; 8]), Err(Errno::EINVAL));
    assert_eq!(device.read_region(9, layout.size(), &mut [0; 8]), Err(Errno::EINVAL));
}

#[test]
fn the_features_of_v2_are_gone() {
    for offered in BOTH {
        let device = accel(&Layout::trapped(Version::V1, 64).unwrap(), offered);
        device.info();
        for feature in [
            Feature::Migration,
            Feature::MigDeviceState,
            Feature::MigDataSize,
            Feature::MigPrecopyInfoV2,
            Feature::DmaLoggingStart,
            Feature::DmaLoggingStop,
            Feature::DmaLoggingReport,
        ] {
            for directions in [FeatureFlags::GET, FeatureFlags::SET] {
                assert!(!device.has_feature(feature, directions), "{feature} {offered:?}");
            }
        }
    }
}
