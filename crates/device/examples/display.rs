//! A small display card: pixels in a BAR that can be mapped, a monitor that can be changed, and what a user
//! sees of it through raw ioctls.
//!
//! `cargo run -p whimbrel-device --example display`

use std::fs::File;
use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, memfd_create};
use whimbrel_device::pci::edid::EdidRegion;
use whimbrel_device::{
    Context, DeviceFile, DeviceInfoFlags, Driver, Errno, Graphics, Info, Plane, PlaneKind, Region,
    RegionInfoFlags, SparseMemory,
};
use whimbrel_memory::FileOffset;
use whimbrel_uapi::gfx::{DeviceGfxPlaneInfo, GfxPlaneFlags};
use whimbrel_uapi::ioctl::{Request, VFIO_DEVICE_GET_GFX_DMABUF, VFIO_DEVICE_QUERY_GFX_PLANE};
use whimbrel_uapi::pci::{VFIO_PCI_BAR0_REGION_INDEX, VFIO_PCI_NUM_REGIONS};
use zerocopy::{FromBytes, IntoBytes};

const EDID_REGION_INDEX: u32 = VFIO_PCI_NUM_REGIONS;
const WIDTH: u32 = 640;
const HEIGHT: u32 = 480;
const BYTES: u64 = (WIDTH * HEIGHT * 4) as u64;
const XRGB8888: u32 = u32::from_le_bytes(*b"XR24");

struct Display {
    edid: EdidRegion,
    pixels: File,
}

impl Driver for Display {
    fn info(&self) -> Info {
        let num_regions = EDID_REGION_INDEX + 1;
        Info::new(DeviceInfoFlags::PCI).num_regions(num_regions)
    }
    fn region(&self, index: u32) -> Result<Region, Errno> {
        let flags = RegionInfoFlags::READ | RegionInfoFlags::WRITE | RegionInfoFlags::MMAP;
        Ok(match index {
            VFIO_PCI_BAR0_REGION_INDEX => Region::new(flags, BYTES),
            EDID_REGION_INDEX => self.edid.region(),
            _ => Region::absent(0),
        })
    }
    fn read_region(&mut self, _: &Context, index: u32, offset: u64, data: &mut [u8]) -> Result<usize, Errno> {
        match index {
            EDID_REGION_INDEX => self.edid.read(offset, data),
            _ => self.pixels.read_exact_at(data, offset).map_err(|_| Errno::EIO)?,
        }
        Ok(data.len())
    }
    fn write_region(&mut self, _: &Context, index: u32, offset: u64, data: &[u8]) -> Result<usize, Errno> {
        if index != EDID_REGION_INDEX {
            return self.pixels.write_at(data, offset).map_err(|_| Errno::EIO);
        }
        for event in self.edid.write(offset, data) {
            println!("device: {event:?}, a description of {:?} bytes", self.edid.edid().map(<[u8]>::len));
        }
        Ok(data.len())
    }
    fn mmap(&mut self, _: &Context, _index: u32, offset: u64, _length: u64) -> Result<FileOffset, Errno> {
        Ok(FileOffset::new(self.pixels.try_clone().map_err(|_| Errno::EMFILE)?, offset))
    }
    fn graphics(&mut self) -> Option<&mut dyn Graphics> {
        Some(self)
    }
}

impl Graphics for Display {
    fn kind(&self) -> PlaneKind {
        PlaneKind::Dmabuf
    }
    fn plane(&mut self, _: &Context, plane_type: u32) -> Result<Option<Plane>, Errno> {
        let (drm_format, width, height) = (XRGB8888, WIDTH, HEIGHT);
        let (stride, size, source) = (WIDTH * 4, BYTES as u32, 1);
        let shown = Plane::new(drm_format, width, height).stride(stride).size(size).source(source);
        Ok((plane_type == 1).then_some(shown))
    }
    fn dmabuf(&mut self, _: &Context, id: u32) -> Result<File, Errno> {
        if id == 1 { self.pixels.try_clone().map_err(|_| Errno::EMFILE) } else { Err(Errno::ENOENT) }
    }
}

/// Hands `argument` to a raw ioctl and prints the answer.
fn ask(device: &DeviceFile, request: Request, argument: &[u8], process: &mut SparseMemory) -> (i32, Vec<u8>) {
    process.insert(0x1000, argument);
    let answer = device.ioctl(request.number(), 0x1000, process);
    println!("user: {request}: {answer:?}");
    (answer.unwrap_or(-1), process.piece(0x1000).unwrap_or_default().to_vec())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let pixels = File::from(memfd_create(c"pixels", MemfdFlags::CLOEXEC)?);
    pixels.set_len(BYTES)?;
    let display = Display { edid: EdidRegion::new(WIDTH, HEIGHT), pixels };
    let device = DeviceFile::new("display", |_| display);
    let mut process = SparseMemory::new();
    println!("user: region {EDID_REGION_INDEX}: {:?}", device.region_info(EDID_REGION_INDEX)?.capabilities);
    for (offset, value) in [(20, 2_u32), (8, 128), (20, 1)] {
        device.write_region(EDID_REGION_INDEX, offset, &value.to_ne_bytes())?;
    }
    device.write_region(VFIO_PCI_BAR0_REGION_INDEX, 0, &[0x20, 0x40, 0x60, 0])?;
    let argsz = size_of::<DeviceGfxPlaneInfo>() as u32;
    let flags = GfxPlaneFlags::DMABUF.bits();
    let query = DeviceGfxPlaneInfo { argsz, flags, drm_plane_type: 1, ..DeviceGfxPlaneInfo::default() };
    let (_, answer) = ask(&device, VFIO_DEVICE_QUERY_GFX_PLANE, query.as_bytes(), &mut process);
    let plane = DeviceGfxPlaneInfo::read_from_bytes(&answer).map_err(|_| Errno::EIO)?;
    println!("user: {} by {} pixels, buffer {}", plane.width, plane.height, plane.dmabuf_id());
    let (fd, _) = ask(&device, VFIO_DEVICE_GET_GFX_DMABUF, plane.dmabuf_id().as_bytes(), &mut process);
    let mut pixel = [0; 4];
    process.buffer(fd).ok_or(Errno::EBADF)?.read_exact_at(&mut pixel, 0)?;
    println!("user: the first pixel is {pixel:02x?}");
    Ok(())
}
