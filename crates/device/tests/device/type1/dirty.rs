//! DIRTY_PAGES, and GET_DIRTY_BITMAP of UNMAP_DMA.

use std::sync::Arc;

use whimbrel_device::{Container, ContainerSettings, Errno, KernelVersion, Process, Translation};
use whimbrel_memory::DirtyLog;
use whimbrel_protocol::dirty::{DirtyReport, LoggingRanges};
use whimbrel_uapi::group::{VFIO_TYPE1_IOMMU, VFIO_TYPE1V2_IOMMU};
use whimbrel_uapi::ioctl::{VFIO_IOMMU_DIRTY_PAGES, VFIO_IOMMU_UNMAP_DMA};
use whimbrel_uapi::type1::{
    Bitmap, DirtyPagesFlags, DmaMapFlags, DmaUnmapFlags, IommuType1DirtyBitmap, IommuType1DirtyBitmapGet,
    IommuType1DmaUnmap,
};
use zerocopy::IntoBytes;

use super::support::{BITMAP, LAST_PAGE, MEMORY, Machine, NOWHERE, PAGE, hardware};

const BOTH: DmaMapFlags = DmaMapFlags::READ.union(DmaMapFlags::WRITE);

fn head(argsz: u32, flags: u32) -> Vec<u8> {
    IommuType1DirtyBitmap { argsz, flags }.as_bytes().to_vec()
}

fn bitmap(pgsize: u64, size: u64, data: u64) -> Bitmap {
    Bitmap { pgsize, size, data }
}

fn get(iova: u64, size: u64, bitmap: Bitmap) -> Vec<u8> {
    let range = IommuType1DirtyBitmapGet { iova, size, bitmap };
    [head(48, DirtyPagesFlags::GET_BITMAP.bits()).as_slice(), range.as_bytes()].concat()
}

fn unmap(argsz: u32, flags: DmaUnmapFlags, iova: u64, size: u64, bitmap: Bitmap) -> Vec<u8> {
    let unmap = IommuType1DmaUnmap { argsz, flags: flags.bits(), iova, size };
    [unmap.as_bytes(), bitmap.as_bytes()].concat()
}

/// Two mappings of three pages, with a gap of one page between them, of which pages 0, 2 and 4 are dirty.
fn tracked(kernel: KernelVersion) -> Machine {
    let machine = Machine::of_kernel(kernel);
    for (iova, vaddr) in [(0x10000, MEMORY), (0x14000, MEMORY + 3 * PAGE)] {
        machine.container.map_dma(BOTH, vaddr, iova, 3 * PAGE, &machine.process).unwrap();
    }
    machine.container.start_dirty_tracking().unwrap();
    machine.buses[0].dma().write(0x10000, b"x").unwrap();
    machine.buses[1].dma().write(0x12fff, b"x").unwrap();
    machine.buses[1].dma().write(0x14800, b"x").unwrap();
    machine
}

fn dirty(container: &Container) -> u64 {
    let mut words = [0];
    container.dirty_bitmap(0x10000, 7 * PAGE, PAGE, &mut words).unwrap();
    words[0]
}

#[test]
fn a_container_of_the_first_type1_does_not_track() {
    let mut machine = Machine::with(ContainerSettings::default(), Translation::Emulated, VFIO_TYPE1_IOMMU);
    for argument in
        [vec![], vec![0; 7], head(0, 99), head(8, 1), head(8, 2), get(0, PAGE, bitmap(PAGE, 8, 0))]
    {
        assert_eq!(machine.ioctl(VFIO_IOMMU_DIRTY_PAGES, &argument).0, Err(Errno::EACCES));
    }
    assert_eq!(machine.container.start_dirty_tracking(), Err(Errno::EACCES));
    assert_eq!(machine.container.stop_dirty_tracking(), Err(Errno::EACCES));
    assert_eq!(machine.container.dirty_bitmap(0, 0, 0, &mut []), Err(Errno::EACCES));
}

#[test]
fn dirty_pages_takes_exactly_one_flag() {
    let mut machine = Machine::new();
    let cases = [
        ("no memory", vec![0; 7], Err(Errno::EFAULT)),
        ("argsz", head(7, 1), Err(Errno::EINVAL)),
        ("unknown flag", head(8, 8), Err(Errno::EINVAL)),
        ("known and unknown flag", head(8, 9), Err(Errno::EINVAL)),
        ("no flag", head(8, 0), Err(Errno::EINVAL)),
        ("start and stop", head(8, 3), Err(Errno::EINVAL)),
        ("stop and get", head(48, 6), Err(Errno::EINVAL)),
        ("all", head(48, 7), Err(Errno::EINVAL)),
        ("stop when stopped", head(8, 2), Ok(0)),
        ("start", head(8, 1), Ok(0)),
        ("start again", head(8, 1), Ok(0)),
        ("stop", head(8, 2), Ok(0)),
    ];
    for (what, argument, expected) in cases {
        assert_eq!(machine.ioctl(VFIO_IOMMU_DIRTY_PAGES, &argument), (expected, argument), "{what}");
    }
}

#[test]
fn get_is_checked_in_the_kernels_order() {
    for (kernel, wrap) in
        [(KernelVersion::Linux6_12, Errno::EINVAL), (KernelVersion::Linux7_3, Errno::EOVERFLOW)]
    {
        let top = if kernel == KernelVersion::Linux6_12 { Err(Errno::EINVAL) } else { Ok(0) };
        let ok = bitmap(PAGE, 8, BITMAP);
        let mut short = get(0x10000, 7 * PAGE, ok);
        short[..4].copy_from_slice(&47u32.to_ne_bytes());
        let mut cases = vec![
            ("argsz", short, Err(Errno::EINVAL)),
            ("no memory", get(0x10000, 7 * PAGE, ok)[..47].to_vec(), Err(Errno::EFAULT)),
            ("size 0", get(0x10000, 0, ok), Err(Errno::EINVAL)),
            ("wrap", get(LAST_PAGE, 2 * PAGE, ok), Err(wrap)),
            ("wrap before the bitmap", get(LAST_PAGE, 2 * PAGE, bitmap(PAGE, 0, BITMAP)), Err(wrap)),
            ("the last page", get(LAST_PAGE, PAGE, ok), top),
            ("bitmap of 0 bytes", get(0x10000, PAGE, bitmap(PAGE, 0, BITMAP)), Err(Errno::EINVAL)),
            ("bitmap too small", get(0x10000, 65 * PAGE, ok), Err(Errno::EINVAL)),
            (
                "bitmap too large",
                get(0x10000, 7 * PAGE, bitmap(PAGE, (1 << 28) + 8, BITMAP)),
                Err(Errno::EINVAL),
            ),
            (
                "bitmap that no process has",
                get(0x10000, 7 * PAGE, bitmap(PAGE, 8, 1 << 63)),
                Err(Errno::EINVAL),
            ),
            ("page size 0", get(0x10000, PAGE, bitmap(0, 1 << 20, BITMAP)), Err(Errno::EINVAL)),
            ("another page size", get(0x10000, 8 * PAGE, bitmap(2 * PAGE, 8, BITMAP)), Err(Errno::EINVAL)),
            (
                "page size with two bits",
                get(0x10000, 7 * PAGE, bitmap(3 * PAGE, 8, BITMAP)),
                Err(Errno::EINVAL),
            ),
            ("iova misaligned", get(0x10001, 7 * PAGE, ok), Err(Errno::EINVAL)),
            ("size misaligned", get(0x10000, 7 * PAGE + 1, ok), Err(Errno::EINVAL)),
            ("cuts the start", get(0x11000, 6 * PAGE, ok), Err(Errno::EINVAL)),
            ("cuts the end", get(0x10000, 6 * PAGE, ok), Err(Errno::EINVAL)),
            ("cuts before bad pointer", get(0x10000, 6 * PAGE, bitmap(PAGE, 8, NOWHERE)), Err(Errno::EINVAL)),
            ("bad pointer", get(0x10000, 7 * PAGE, bitmap(PAGE, 8, NOWHERE)), Err(Errno::EFAULT)),
            ("bad pointer, nothing mapped", get(0, PAGE, bitmap(PAGE, 8, NOWHERE)), Ok(0)),
        ];
        let mut machine = tracked(kernel);
        machine.process.insert(BITMAP, vec![0; 16]);
        for (what, argument, expected) in cases.drain(..) {
            let (result, after) = machine.ioctl(VFIO_IOMMU_DIRTY_PAGES, &argument);
            assert_eq!(result, expected, "{what}, {kernel:?}");
            assert_eq!(after, argument, "{what}");
            assert_eq!(machine.process.piece(BITMAP).unwrap(), [0; 16], "{what}");
        }
        assert_eq!(machine.ioctl(VFIO_IOMMU_DIRTY_PAGES, &get(0x10000, 7 * PAGE, ok)).0, Ok(0));
        let told = machine.process.piece(BITMAP).unwrap();
        assert_eq!(told[..8], 0b001_0101u64.to_ne_bytes(), "no refusal has lost a page");
        machine.container.stop_dirty_tracking().unwrap();
        let (result, _) = machine.ioctl(VFIO_IOMMU_DIRTY_PAGES, &get(0x10000, 7 * PAGE, ok));
        assert_eq!(result, Err(Errno::EINVAL), "not tracking");
    }
}

#[test]
fn a_report_clears_and_a_second_start_does_not() {
    let machine = tracked(KernelVersion::Linux7_3);
    machine.container.start_dirty_tracking().unwrap();
    assert_eq!(dirty(&machine.container), 0b001_0101);
    assert_eq!(dirty(&machine.container), 0);
    machine.buses[0].dma().write(0x11000, b"x").unwrap();
    machine.container.stop_dirty_tracking().unwrap();
    machine.buses[0].dma().write(0x12000, b"x").unwrap();
    machine.container.start_dirty_tracking().unwrap();
    assert_eq!(dirty(&machine.container), 0, "a stop forgets");
}

#[test]
fn whole_words_are_written_and_only_where_something_is_mapped() {
    let mut machine = Machine::new();
    machine.process.insert_shared(NOWHERE, super::support::memory(0x100 * PAGE, true));
    // Pages 2 to 66 and 70 of the range; nothing in its last word.
    for (page, pages) in [(2, 65), (70, 1)] {
        machine.container.map_dma(BOTH, NOWHERE, page * PAGE, pages * PAGE, &machine.process).unwrap();
    }
    machine.container.start_dirty_tracking().unwrap();
    for page in [2, 66, 70] {
        machine.buses[0].dma().write(page * PAGE, b"x").unwrap();
    }
    let old: u64 = 1 << 63 | 0b11;
    machine.process.insert(BITMAP, [old, old, old].as_bytes());
    let argument = get(0, 192 * PAGE, bitmap(PAGE, 24, BITMAP));
    assert_eq!(machine.ioctl(VFIO_IOMMU_DIRTY_PAGES, &argument).0, Ok(0));
    // The first word begins before the mapping and is kept; the second is written anew by the first mapping
    // and kept by the second; the third has no mapping.
    let expected: [u64; 3] = [old | 1 << 2, 1 << 2 | 1 << 6, old];
    assert_eq!(machine.process.piece(BITMAP).unwrap(), expected.as_bytes());
}

#[test]
fn raw_and_typed_reports_agree() {
    let mut raw = tracked(KernelVersion::Linux7_3);
    raw.process.insert(BITMAP, vec![0; 8]);
    let argument = get(0x10000, 7 * PAGE, bitmap(PAGE, 8, BITMAP));
    assert_eq!(raw.ioctl(VFIO_IOMMU_DIRTY_PAGES, &argument).0, Ok(0));
    let typed = tracked(KernelVersion::Linux7_3);
    assert_eq!(raw.process.piece(BITMAP).unwrap(), dirty(&typed.container).as_bytes());
}

#[test]
fn unmap_with_a_bitmap_is_checked_in_the_kernels_order() {
    let with = DmaUnmapFlags::GET_DIRTY_BITMAP;
    let ok = bitmap(PAGE, 8, BITMAP);
    let whole = |bitmap| unmap(48, with, 0x10000, 7 * PAGE, bitmap);
    let cases = [
        ("with all", unmap(48, with | DmaUnmapFlags::ALL, 0, 0, ok), Err(Errno::EINVAL)),
        (
            "with vaddr, before no mdev",
            unmap(48, with | DmaUnmapFlags::VADDR, 0, PAGE, ok),
            Err(Errno::EINVAL),
        ),
        ("argsz", unmap(47, with, 0x10000, 7 * PAGE, ok), Err(Errno::EINVAL)),
        ("no memory", whole(ok)[..47].to_vec(), Err(Errno::EFAULT)),
        ("bitmap of 0 bytes", whole(bitmap(PAGE, 0, BITMAP)), Err(Errno::EINVAL)),
        ("bitmap too large", whole(bitmap(PAGE, (1 << 28) + 8, BITMAP)), Err(Errno::EINVAL)),
        ("bitmap too small", unmap(48, with, 0x10000, 65 * PAGE, ok), Err(Errno::EINVAL)),
        ("size 0", unmap(48, with, 0x10000, 0, ok), Err(Errno::EINVAL)),
        ("bitmap before wrap", unmap(48, with, LAST_PAGE, 2 * PAGE, bitmap(PAGE, 0, 0)), Err(Errno::EINVAL)),
        ("wrap", unmap(48, with, LAST_PAGE, 2 * PAGE, ok), Err(Errno::EOVERFLOW)),
        ("another page size", whole(bitmap(2 * PAGE, 8, BITMAP)), Err(Errno::EINVAL)),
        ("cut", unmap(48, with, 0x10000, 2 * PAGE, ok), Err(Errno::EINVAL)),
        ("bad pointer", whole(bitmap(PAGE, 8, NOWHERE)), Err(Errno::EFAULT)),
    ];
    let mut machine = tracked(KernelVersion::Linux7_3);
    machine.process.insert(BITMAP, vec![0; 8]);
    for (what, argument, expected) in cases {
        let answer = machine.ioctl(VFIO_IOMMU_UNMAP_DMA, &argument);
        assert_eq!(answer, (expected, argument), "{what}");
    }
    let (result, after) = machine.ioctl(VFIO_IOMMU_UNMAP_DMA, &whole(ok));
    assert_eq!(result, Ok(0));
    assert_eq!(after[16..24], (6 * PAGE).to_ne_bytes());
    assert_eq!(machine.process.piece(BITMAP).unwrap(), 0b001_0101u64.to_ne_bytes());
    machine.container.stop_dirty_tracking().unwrap();
    let (result, _) = machine.ioctl(VFIO_IOMMU_UNMAP_DMA, &whole(ok));
    assert_eq!(result, Err(Errno::EINVAL), "not tracking");
}

#[test]
fn a_bitmap_that_faults_in_the_middle_keeps_what_it_could_not_tell() {
    let mut machine = Machine::new();
    machine.process.insert_shared(NOWHERE, super::support::memory(0x100 * PAGE, true));
    for page in [0, 64] {
        machine.container.map_dma(BOTH, NOWHERE, page * PAGE, PAGE, &machine.process).unwrap();
    }
    machine.container.start_dirty_tracking().unwrap();
    for page in [0, 64] {
        machine.buses[0].dma().write(page * PAGE, b"x").unwrap();
    }
    machine.process.insert(BITMAP, vec![0; 8]);
    let half = bitmap(PAGE, 16, BITMAP);
    let with = DmaUnmapFlags::GET_DIRTY_BITMAP;
    let argument = unmap(48, with, 0, 65 * PAGE, half);
    let answer = machine.ioctl(VFIO_IOMMU_UNMAP_DMA, &argument);
    assert_eq!(answer, (Err(Errno::EFAULT), argument));
    assert!(machine.buses[0].dma().read(0, &mut [0]).is_err(), "the first is unmapped, as in the kernel");
    let mut words = [0];
    assert_eq!(machine.container.unmap_dma_dirty(64 * PAGE, PAGE, PAGE, &mut words), Ok(PAGE));
    assert_eq!(words, [1]);
}

#[test]
fn what_is_mapped_while_tracking_is_tracked() {
    let machine = tracked(KernelVersion::Linux7_3);
    machine.container.map_dma(BOTH, MEMORY, 0x13000, PAGE, &machine.process).unwrap();
    machine.buses[1].dma().write(0x13000, b"x").unwrap();
    assert_eq!(dirty(&machine.container), 0b001_1101);
}

#[test]
fn behind_hardware_every_page_is_dirty_each_time() {
    let machine = Machine::with(ContainerSettings::default(), hardware(&[(0, u64::MAX)]), VFIO_TYPE1V2_IOMMU);
    machine.container.map_dma(BOTH, MEMORY, 0x10000, 7 * PAGE, &machine.process).unwrap();
    machine.container.start_dirty_tracking().unwrap();
    assert_eq!(dirty(&machine.container), 0b111_1111);
    assert_eq!(dirty(&machine.container), 0b111_1111);
}

#[test]
fn when_hardware_leaves_everything_is_dirty_once_more() {
    let machine = tracked(KernelVersion::Linux7_3);
    let device = super::support::device("hardware");
    let group = whimbrel_device::Group::new(hardware(&[(0, u64::MAX)]), vec![device]).unwrap();
    let file = group.open().unwrap();
    file.set_container(&machine.container).unwrap();
    assert_eq!(dirty(&machine.container), 0b111_0111);
    file.unset_container().unwrap();
    assert_eq!(dirty(&machine.container), 0b111_0111);
    assert_eq!(dirty(&machine.container), 0);
}

#[test]
fn the_container_and_the_device_log_the_same_write() {
    let machine = tracked(KernelVersion::Linux7_3);
    let mut ranges = LoggingRanges::new(PAGE, 1).unwrap();
    ranges.push(0x10000, 7 * PAGE).unwrap();
    let log = Arc::new(DirtyLog::new(&ranges).unwrap());
    machine.buses[0].dma().set_log(Some(log.clone()));
    machine.buses[0].dma().write(0x11000, b"x").unwrap();
    let mut words = [0];
    log.report(&mut DirtyReport::new(0x10000, 7 * PAGE, PAGE, &mut words).unwrap());
    assert_eq!(words, [0b10]);
    assert_eq!(dirty(&machine.container), 0b001_0111, "the report of one does not clear the other");
}

#[test]
fn a_write_that_runs_with_a_report_is_in_it_or_in_the_next() {
    let machine = tracked(KernelVersion::Linux7_3);
    dirty(&machine.container);
    let (bus, rounds) = (machine.buses[0].clone(), 20_000u32);
    let mut told = 0;
    std::thread::scope(|scope| {
        let writer = scope.spawn(move || {
            for round in 1..=rounds {
                bus.dma().write(0x10000, round.as_bytes()).unwrap();
            }
        });
        // What was read before the last report that has the page is at most as old as that report.
        while !writer.is_finished() {
            if dirty(&machine.container) & 1 == 1 {
                let mut bytes = [0; 4];
                machine.process.read(MEMORY, &mut bytes).unwrap();
                told = u32::from_ne_bytes(bytes);
            }
        }
    });
    if told < rounds {
        assert_eq!(dirty(&machine.container) & 1, 1, "the last write was never told");
    }
}
