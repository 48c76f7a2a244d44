//! Our core with displays that are no more than what the kernel's samples look like.

use std::fs::File;

use rustix::fs::{MemfdFlags, memfd_create};
use whimbrel_device::pci::edid::EdidRegion;
use whimbrel_device::{
    Context, DeviceFile, DeviceInfoFlags, Driver, Errno, Graphics, Info, Plane, PlaneKind, Process, Region,
    RegionInfoFlags, SparseMemory,
};
use whimbrel_recorder::GFX as RECORDED;
use whimbrel_recorder::gfx::{self, ARGUMENT, DISPLAYS, EDID, MBOCHS, PAGE, REGISTERS, Side};
use whimbrel_uapi::ioctl::Request;

/// XRGB of 8 bits each, as DRM writes it.
const XRGB8888: u32 = u32::from_le_bytes(*b"XR24");

/// As mbochs of the small type: 4 MiB, up to 800 by 600.
struct Bochs {
    registers: [u16; 11],
    edid: EdidRegion,
    /// Every mode that was asked for, with where it begins; their numbers count from 1.
    modes: Vec<(Plane, u64)>,
}

impl Bochs {
    fn mode(&self) -> Option<(Plane, u64)> {
        let [_, width, height, bits, enable, _, virtual_width, _, x, y, _] = self.registers.map(u32::from);
        let stride = width.max(virtual_width) * 4;
        let (size, start) = (stride * height, u64::from(x) * 4 + u64::from(y) * u64::from(stride));
        let fits = start + u64::from(size) <= 4 << 20;
        let is_on = enable & 1 != 0 && bits == 32 && width >= 64 && height >= 64 && fits;
        is_on.then(|| (Plane::new(XRGB8888, width, height).stride(stride).size(size), start))
    }
}

impl Driver for Bochs {
    fn info(&self) -> Info {
        Info::new(DeviceInfoFlags::PCI).num_regions(10).num_irqs(5)
    }

    fn region(&self, index: u32) -> Result<Region, Errno> {
        match index {
            REGISTERS => {
                let flags = RegionInfoFlags::READ | RegionInfoFlags::WRITE;
                Ok(Region::new(flags, 4096))
            }
            EDID => Ok(self.edid.region()),
            _ => Ok(Region::absent(0)),
        }
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

    fn write_region(&mut self, _: &Context, index: u32, offset: u64, data: &[u8]) -> Result<usize, Errno> {
        if index == EDID {
            self.edid.write(offset, data);
        } else {
            self.registers[(offset as usize - 0x500) / 2] = u16::from_ne_bytes(data.try_into().unwrap());
        }
        Ok(data.len())
    }

    fn graphics(&mut self) -> Option<&mut dyn Graphics> {
        Some(self)
    }
}

impl Graphics for Bochs {
    fn kind(&self) -> PlaneKind {
        PlaneKind::Dmabuf
    }

    fn plane(&mut self, _: &Context, plane_type: u32) -> Result<Option<Plane>, Errno> {
        let Some(mode) = self.mode().filter(|_| plane_type == 1) else { return Ok(None) };
        let number = self.modes.iter().position(|other| *other == mode).unwrap_or_else(|| {
            self.modes.push(mode);
            self.modes.len() - 1
        });
        Ok(Some(mode.0.source(u32::try_from(number).unwrap() + 1)))
    }

    fn dmabuf(&mut self, _: &Context, id: u32) -> Result<File, Errno> {
        let number = (id as usize).checked_sub(1).ok_or(Errno::ENOENT)?;
        let (_, start) = self.modes.get(number).ok_or(Errno::ENOENT)?;
        // A file has whole pages.
        if start % PAGE as u64 != 0 {
            return Err(Errno::EINVAL);
        }
        Ok(memfd_create(c"plane", MemfdFlags::empty()).unwrap().into())
    }
}

/// As mdpy of the VGA type.
struct Picture;

impl Driver for Picture {
    fn info(&self) -> Info {
        Info::new(DeviceInfoFlags::PCI).num_regions(9).num_irqs(5)
    }

    fn graphics(&mut self) -> Option<&mut dyn Graphics> {
        Some(self)
    }
}

impl Graphics for Picture {
    fn kind(&self) -> PlaneKind {
        PlaneKind::Region
    }

    fn plane(&mut self, _: &Context, _plane_type: u32) -> Result<Option<Plane>, Errno> {
        // Of the memory there is a power of two.
        let size = 2 << 20;
        let (width, height, stride, source) = (640, 480, 2560, 16);
        Ok(Some(Plane::new(XRGB8888, width, height).stride(stride).size(size).source(source)))
    }
}

struct Ours {
    memory: SparseMemory,
    displays: [DeviceFile; 2],
}

impl Ours {
    fn new() -> Ours {
        let mut memory = SparseMemory::new();
        memory.insert(ARGUMENT, vec![0; PAGE]);
        let bochs = Bochs { registers: [0; 11], edid: EdidRegion::new(800, 600), modes: Vec::new() };
        let drivers: [Box<dyn Driver>; 2] = [Box::new(bochs), Box::new(Picture)];
        let mut names = DISPLAYS.into_iter();
        let displays = drivers.map(|driver| DeviceFile::new(names.next().unwrap(), |_| driver));
        Ours { memory, displays }
    }
}

impl Side for Ours {
    fn put(&mut self, address: u64, bytes: &[u8]) {
        self.memory.write(address, bytes).unwrap();
    }

    fn get(&self, address: u64, bytes: &mut [u8]) {
        Process::read(&self.memory, address, bytes).unwrap();
    }

    fn ioctl(&mut self, display: usize, request: Request, argument: u64) -> Result<i32, Errno> {
        self.displays[display].ioctl(request.number(), argument, &mut self.memory)
    }

    fn read(&mut self, region: u32, offset: u64, bytes: &mut [u8]) -> Result<usize, Errno> {
        self.displays[MBOCHS].read_region(region, offset, bytes)
    }

    fn write(&mut self, region: u32, offset: u64, bytes: &[u8]) -> Result<usize, Errno> {
        self.displays[MBOCHS].write_region(region, offset, bytes)
    }
}

#[test]
fn displays_answer_as_the_kernels() {
    let mut ours = Vec::new();
    gfx::answers(&mut Ours::new(), |line| ours.push(line));
    RECORDED.check(&ours);
}
