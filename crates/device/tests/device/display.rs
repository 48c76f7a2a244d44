//! The display of a device as its user sees it: planes by raw ioctls, and the region of the monitor.

use std::fs::File;
use std::io::{Read, Seek, Write};

use rustix::fs::{MemfdFlags, memfd_create};
use whimbrel_device::pci::edid::{EdidEvent, EdidRegion};
use whimbrel_device::{
    Capability, Context, DeviceFile, DeviceInfoFlags, Driver, Errno, Graphics, Info, Plane, PlaneKind,
    Region, SparseMemory,
};
use whimbrel_uapi::gfx::{DeviceGfxPlaneInfo, GfxPlaneFlags};
use whimbrel_uapi::ioctl::{VFIO_DEVICE_GET_GFX_DMABUF, VFIO_DEVICE_QUERY_GFX_PLANE};
use zerocopy::{FromBytes, IntoBytes};

struct Card {
    kind: Option<PlaneKind>,
    edid: EdidRegion,
}

const SHOWN: Plane = Plane::new(0x3432_5258, 800, 600)
    .drm_format_mod(0x0100_0000_0000_0002)
    .stride(3200)
    .size(1_920_000)
    .position((10, 20))
    .hot((1, 2))
    .source(7);

impl Driver for Card {
    fn info(&self) -> Info {
        Info::new(DeviceInfoFlags::PCI).num_regions(10)
    }

    fn region(&self, index: u32) -> Result<Region, Errno> {
        if index == 9 { Ok(self.edid.region()) } else { Ok(Region::absent(0)) }
    }

    fn read_region(
        &mut self,
        _: &Context,
        _index: u32,
        offset: u64,
        data: &mut [u8],
    ) -> Result<usize, Errno> {
        self.edid.read(offset, data);
        Ok(data.len())
    }

    fn write_region(&mut self, _: &Context, _index: u32, offset: u64, data: &[u8]) -> Result<usize, Errno> {
        self.edid.write(offset, data);
        Ok(data.len())
    }

    fn graphics(&mut self) -> Option<&mut dyn Graphics> {
        if self.kind.is_some() { Some(self) } else { None }
    }
}

impl Graphics for Card {
    fn kind(&self) -> PlaneKind {
        self.kind.unwrap()
    }

    fn plane(&mut self, _: &Context, plane_type: u32) -> Result<Option<Plane>, Errno> {
        Ok((plane_type == 1).then_some(SHOWN))
    }

    fn dmabuf(&mut self, _: &Context, id: u32) -> Result<File, Errno> {
        if id != SHOWN.source {
            return Err(Errno::ENOENT);
        }
        let mut file = File::from(memfd_create(c"plane", MemfdFlags::empty()).unwrap());
        file.write_all(b"pixels").unwrap();
        Ok(file)
    }
}

fn card(kind: Option<PlaneKind>) -> DeviceFile {
    let driver = Card { kind, edid: EdidRegion::new(1920, 1200) };
    DeviceFile::new("card", |_| driver)
}

const AT: u64 = 0x1000;
const MINIMUM: usize = 60;

/// The structure in the user's memory, all of it marked where the user says nothing.
fn query(argsz: u32, flags: GfxPlaneFlags, plane_type: u32) -> Vec<u8> {
    let mut bytes = vec![0xee; 80];
    let words = [argsz, flags.bits(), plane_type];
    bytes[..12].copy_from_slice(words.as_bytes());
    bytes
}

fn ask(device: &DeviceFile, argument: &[u8]) -> (Result<i32, Errno>, Vec<u8>) {
    let mut process = SparseMemory::new();
    process.insert(AT, argument);
    let answer = device.ioctl(VFIO_DEVICE_QUERY_GFX_PLANE.number(), AT, &mut process);
    (answer, process.piece(AT).unwrap().to_vec())
}

const PROBE: GfxPlaneFlags = GfxPlaneFlags::PROBE;
const DMABUF: GfxPlaneFlags = GfxPlaneFlags::DMABUF;
const REGION: GfxPlaneFlags = GfxPlaneFlags::REGION;

#[test]
fn a_query_is_for_exactly_the_kind_that_the_device_has() {
    let flags = [
        (GfxPlaneFlags::empty(), false, false),
        (PROBE, false, false),
        (DMABUF, true, false),
        (REGION, false, true),
        (PROBE | DMABUF, true, false),
        (PROBE | REGION, false, true),
        (DMABUF | REGION, false, false),
        (GfxPlaneFlags::all(), false, false),
        (DMABUF | GfxPlaneFlags::from_bits_retain(8), false, false),
        (PROBE | DMABUF | GfxPlaneFlags::from_bits_retain(1 << 31), false, false),
    ];
    for (kind, is_dmabuf) in [(PlaneKind::Dmabuf, true), (PlaneKind::Region, false)] {
        for (flags, of_dmabuf, of_region) in flags {
            let expected = if is_dmabuf { of_dmabuf } else { of_region };
            let argument = query(60, flags, 1);
            let (answer, after) = ask(&card(Some(kind)), &argument);
            assert_eq!(answer, if expected { Ok(0) } else { Err(Errno::EINVAL) }, "{kind:?} {flags:?}");
            let answered = expected && !flags.contains(PROBE);
            assert_eq!(after != argument, answered, "{kind:?} {flags:?}");
        }
    }
}

#[test]
fn the_size_comes_before_the_flags_and_the_memory_before_the_size() {
    let device = card(Some(PlaneKind::Dmabuf));
    let cases = [
        (query(59, DMABUF, 1), Err(Errno::EINVAL)),
        (query(0, PROBE, 1), Err(Errno::EINVAL)),
        (query(60, DMABUF, 1), Ok(0)),
        (query(u32::MAX, DMABUF, 1), Ok(0)),
        (query(59, DMABUF, 1)[..59].to_vec(), Err(Errno::EFAULT)),
        (query(60, PROBE, 1)[..59].to_vec(), Err(Errno::EFAULT)),
        (query(60, DMABUF, 1)[..60].to_vec(), Ok(0)),
    ];
    for (argument, expected) in cases {
        assert_eq!(ask(&device, &argument).0, expected, "{argument:x?}");
    }
}

#[test]
fn a_plane_is_told_up_to_its_last_field_and_one_that_is_not_there_as_zeros() {
    let device = card(Some(PlaneKind::Dmabuf));
    let (_, after) = ask(&device, &query(64, DMABUF, 1));
    let info = DeviceGfxPlaneInfo::read_from_bytes(&after[..64]).unwrap();
    let expected = DeviceGfxPlaneInfo {
        argsz: 64,
        flags: DMABUF.bits(),
        drm_plane_type: 1,
        drm_format: SHOWN.drm_format,
        drm_format_mod: SHOWN.drm_format_mod,
        width: 800,
        height: 600,
        stride: 3200,
        size: 1_920_000,
        x_pos: 10,
        y_pos: 20,
        x_hot: 1,
        y_hot: 2,
        region_index: 7,
        reserved: 0xeeee_eeee,
    };
    assert_eq!(info, expected);
    for plane_type in [0, 2, u32::MAX] {
        let argument = query(64, DMABUF, plane_type);
        let (answer, after) = ask(&device, &argument);
        assert_eq!(answer, Ok(0));
        assert_eq!(after[..12], argument[..12]);
        assert_eq!(after[12..MINIMUM], [0; MINIMUM - 12]);
        assert_eq!(after[MINIMUM..], argument[MINIMUM..]);
    }
}

#[test]
fn the_buffer_of_a_plane_is_given_by_its_number() {
    let mut process = SparseMemory::new();
    let mut get = |kind, bytes: &[u8]| {
        process.insert(AT, bytes);
        let answer = card(kind).ioctl(VFIO_DEVICE_GET_GFX_DMABUF.number(), AT, &mut process);
        let read = answer.ok().map(|fd| {
            let mut text = String::new();
            let mut file = process.buffer(fd).unwrap();
            file.rewind().unwrap();
            file.read_to_string(&mut text).unwrap();
            text
        });
        (answer.err(), read)
    };
    let dmabuf = Some(PlaneKind::Dmabuf);
    assert_eq!(get(None, &[7, 0, 0, 0]), (Some(Errno::ENOTTY), None));
    assert_eq!(get(None, &[]), (Some(Errno::ENOTTY), None));
    assert_eq!(get(Some(PlaneKind::Region), &[7, 0, 0, 0]), (Some(Errno::ENOTTY), None));
    assert_eq!(get(dmabuf, &[7, 0, 0]), (Some(Errno::EFAULT), None));
    assert_eq!(get(dmabuf, &[8, 0, 0, 0]), (Some(Errno::ENOENT), None));
    assert_eq!(get(dmabuf, &[7, 0, 0, 0]), (None, Some("pixels".into())));
    assert_eq!(ask(&card(None), &[]).0, Err(Errno::ENOTTY));
}

/// What the registers say: offset, most, size, greatest width and height, link.
fn registers(device: &DeviceFile) -> [u32; 6] {
    let mut bytes = [0; 24];
    device.read_region(9, 0, &mut bytes).unwrap();
    std::array::from_fn(|at| u32::from_ne_bytes(bytes[4 * at..4 * at + 4].try_into().unwrap()))
}

#[test]
fn the_region_of_the_monitor_is_told_by_its_type() {
    let region = card(None).region_info(9).unwrap();
    assert_eq!(region.size, 4096);
    assert_eq!(region.capabilities, [Capability::Type { region_type: 1, subtype: 1 }]);
}

#[test]
fn of_the_registers_a_user_writes_the_size_and_the_link_as_whole_words() {
    let device = card(None);
    assert_eq!(registers(&device), [2048, 1024, 0, 1920, 1200, 0]);
    let word = 0x0505_0505_u32.to_ne_bytes();
    for offset in (0..24).step_by(4) {
        device.write_region(9, offset, &word).unwrap();
        // Not a whole word, and not one word: two words are two accesses.
        device.write_region(9, offset, &[9; 2]).unwrap();
        device.write_region(9, offset + 1, &[9]).unwrap();
    }
    assert_eq!(registers(&device), [2048, 1024, 0x0505_0505, 1920, 1200, 0x0505_0505]);
    device.write_region(9, 0, &[1; 24]).unwrap();
    assert_eq!(registers(&device), [2048, 1024, 0x0101_0101, 1920, 1200, 0x0101_0101]);
    let mut part = [0xee; 3];
    device.read_region(9, 1, &mut part).unwrap();
    assert_eq!(part, [0; 3], "no whole word");
}

#[test]
fn the_description_is_read_and_written_in_any_way_up_to_its_room() {
    let device = card(None);
    let data: Vec<u8> = (0..1030_u32).map(|at| at as u8).collect();
    assert_eq!(device.write_region(9, 2049, &data), Ok(1030));
    let mut back = vec![0xee; 1030];
    device.read_region(9, 2049, &mut back).unwrap();
    assert_eq!(back[..1023], data[..1023]);
    assert_eq!(back[1023..], [0; 7], "past the room");
    assert_eq!(device.write_region(9, 4095, &[1, 2]), Ok(1), "cut at the end of the region");
    assert_eq!(device.write_region(9, 4096, &[1]), Err(Errno::EINVAL));
}

#[test]
fn a_driver_is_told_of_the_link_and_finds_the_description_that_is_valid_then() {
    let mut region = EdidRegion::new(0, 0);
    let up = 1_u32.to_ne_bytes();
    assert!(!region.is_link_up());
    assert_eq!(region.edid(), None, "nothing yet");
    for (size, valid) in [(0_u32, false), (1, true), (1024, true), (1025, false), (u32::MAX, false)] {
        assert_eq!(region.write(20, &2_u32.to_ne_bytes()), [EdidEvent::LinkDown]);
        assert!(!region.is_link_up());
        assert_eq!(region.write(8, &size.to_ne_bytes()), []);
        assert_eq!(region.write(20, &up), [EdidEvent::LinkUp]);
        assert_eq!(region.edid().map(<[u8]>::len), valid.then_some(size as usize), "{size}");
    }
    assert_eq!(region.write(20, &up), [EdidEvent::LinkUp], "told each time");
    assert_eq!(region.write(20, &3_u32.to_ne_bytes()), [], "no state");
    assert!(!region.is_link_up());
    assert_eq!(region.write(u64::MAX, &up), []);
}
