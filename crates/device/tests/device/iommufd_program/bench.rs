//! A program with an iommufd, devices to open, and each request as a call.

use whimbrel_device::dma::DmaSpace;
use whimbrel_device::iommufd::{Iommu, Iommufd, OwnIommu};
use whimbrel_device::{Bus, Cdev, Context, DeviceFile, DeviceInfoFlags, Driver, Errno, Info};
use whimbrel_uapi::cdev::{
    DeviceAttachFlags, DeviceAttachIommufdPt, DeviceBindIommufd, DeviceDetachFlags, DeviceDetachIommufdPt,
};
use whimbrel_uapi::ioctl::*;
use whimbrel_uapi::iommufd::*;

use super::{DATA, Program};

pub(crate) const IOMMUFD: i32 = 7;
pub(crate) const BOTH: u32 = IoasMapFlags::READABLE.bits() | IoasMapFlags::WRITEABLE.bits();
pub(crate) const FIXED: u32 = IoasMapFlags::FIXED_IOVA.bits();

pub(crate) struct Idle;

impl Driver for Idle {
    fn info(&self) -> Info {
        Info::new(DeviceInfoFlags::RESET)
    }

    fn reset(&mut self, _: &Context) -> Result<(), Errno> {
        Ok(())
    }
}

/// A program with an iommufd, and the bus of each device it opened.
pub(crate) struct Bench {
    pub(crate) program: Program,
    pub(crate) iommufd: Iommufd,
}

impl Bench {
    pub(crate) fn new() -> Bench {
        let mut program = Program::new();
        let iommufd = Iommufd::new();
        program.iommufds.insert(IOMMUFD, iommufd.clone());
        Bench { program, iommufd }
    }

    pub(crate) fn bind(&mut self, cdev: &Cdev) -> Result<u32, Errno> {
        self.bind_with(cdev, DeviceBindIommufd { argsz: 24, iommufd: IOMMUFD, ..Default::default() })
    }

    pub(crate) fn bind_with(&mut self, cdev: &Cdev, asked: DeviceBindIommufd) -> Result<u32, Errno> {
        let number = VFIO_DEVICE_BIND_IOMMUFD.number();
        let answer = self.program.call(asked, |argument, program| cdev.ioctl(number, argument, program));
        answer.map(|answer| answer.out_devid)
    }

    pub(crate) fn attach(&mut self, cdev: &Cdev, pt_id: u32) -> Result<u32, Errno> {
        self.attach_as(cdev, DeviceAttachIommufdPt { argsz: 12, flags: 0, pt_id, pasid: 0 })
    }

    pub(crate) fn attach_pasid(&mut self, cdev: &Cdev, pasid: u32, pt_id: u32) -> Result<u32, Errno> {
        let flags = DeviceAttachFlags::PASID.bits();
        self.attach_as(cdev, DeviceAttachIommufdPt { argsz: 16, flags, pt_id, pasid })
    }

    fn attach_as(&mut self, cdev: &Cdev, asked: DeviceAttachIommufdPt) -> Result<u32, Errno> {
        let number = VFIO_DEVICE_ATTACH_IOMMUFD_PT.number();
        let answer = self.program.call(asked, |argument, program| cdev.ioctl(number, argument, program));
        answer.map(|answer| answer.pt_id)
    }

    pub(crate) fn detach(&mut self, cdev: &Cdev) -> Result<(), Errno> {
        self.detach_as(cdev, DeviceDetachIommufdPt { argsz: 8, flags: 0, pasid: 0 })
    }

    pub(crate) fn detach_pasid(&mut self, cdev: &Cdev, pasid: u32) -> Result<(), Errno> {
        let flags = DeviceDetachFlags::PASID.bits();
        self.detach_as(cdev, DeviceDetachIommufdPt { argsz: 12, flags, pasid })
    }

    fn detach_as(&mut self, cdev: &Cdev, asked: DeviceDetachIommufdPt) -> Result<(), Errno> {
        let number = VFIO_DEVICE_DETACH_IOMMUFD_PT.number();
        self.program.call(asked, |argument, program| cdev.ioctl(number, argument, program)).map(|_| ())
    }

    pub(crate) fn ioas(&mut self) -> u32 {
        let asked = IoasAlloc { size: 12, ..Default::default() };
        self.program.request(&self.iommufd, IOMMU_IOAS_ALLOC, asked).unwrap().out_ioas_id
    }

    pub(crate) fn map_at(
        &mut self,
        ioas_id: u32,
        flags: u32,
        user_va: u64,
        length: u64,
        iova: u64,
    ) -> Result<u64, Errno> {
        let asked = IoasMap { size: 40, flags, ioas_id, __reserved: 0, user_va, length, iova };
        self.program.request(&self.iommufd, IOMMU_IOAS_MAP, asked).map(|answer| answer.iova)
    }

    pub(crate) fn unmap(&mut self, ioas_id: u32, iova: u64, length: u64) -> Result<u64, Errno> {
        let asked = IoasUnmap { size: 24, ioas_id, iova, length };
        self.program.request(&self.iommufd, IOMMU_IOAS_UNMAP, asked).map(|answer| answer.length)
    }

    pub(crate) fn destroy(&mut self, id: u32) -> Result<(), Errno> {
        self.program.request(&self.iommufd, IOMMU_DESTROY, Destroy { size: 8, id }).map(|_| ())
    }

    pub(crate) fn hwpt(&mut self, dev_id: u32, pt_id: u32, flags: HwptAllocFlags) -> Result<u32, Errno> {
        let asked = HwptAlloc { size: 48, flags: flags.bits(), dev_id, pt_id, ..Default::default() };
        self.program.request(&self.iommufd, IOMMU_HWPT_ALLOC, asked).map(|answer| answer.out_hwpt_id)
    }

    pub(crate) fn track(&mut self, hwpt_id: u32, enable: bool) -> Result<(), Errno> {
        let asked = HwptSetDirtyTracking { size: 16, flags: u32::from(enable), hwpt_id, __reserved: 0 };
        self.program.request(&self.iommufd, IOMMU_HWPT_SET_DIRTY_TRACKING, asked).map(|_| ())
    }

    pub(crate) fn dirty(&mut self, hwpt_id: u32, iova: u64, length: u64, flags: u32) -> Result<u64, Errno> {
        self.program.memory.insert(DATA, [0; 8]);
        let asked = dirty_request(hwpt_id, iova, length, flags);
        self.program.request(&self.iommufd, IOMMU_HWPT_GET_DIRTY_BITMAP, asked)?;
        Ok(u64::from_le_bytes(self.program.memory.piece(DATA).unwrap().try_into().unwrap()))
    }

    pub(crate) fn usable(&mut self, ioas_id: u32) -> (Vec<u64>, u64) {
        self.program.memory.insert(DATA, [0; 64]);
        let asked =
            IoasIovaRanges { size: 32, ioas_id, num_iovas: 4, allowed_iovas: DATA, ..Default::default() };
        let answer = self.program.request(&self.iommufd, IOMMU_IOAS_IOVA_RANGES, asked).unwrap();
        let words = self.program.memory.piece(DATA).unwrap()[..answer.num_iovas as usize * 16].chunks(8);
        let words = words.map(|word| u64::from_ne_bytes(word.try_into().unwrap())).collect();
        (words, answer.out_iova_alignment)
    }
}

pub(crate) fn dirty_request(hwpt_id: u32, iova: u64, length: u64, flags: u32) -> HwptGetDirtyBitmap {
    HwptGetDirtyBitmap { size: 48, hwpt_id, flags, __reserved: 0, iova, length, page_size: 4096, data: DATA }
}

pub(crate) fn open(iommu: Iommu) -> (Cdev, Bus) {
    let device = DeviceFile::new("idle", |_| Idle);
    let bus = device.bus().clone();
    (Cdev::new(device, iommu), bus)
}

/// An IOMMU as on a PC: the window of message interrupts cut out.
pub(crate) fn own(dirty_tracking: bool) -> Iommu {
    Iommu::Own(
        OwnIommu::default()
            .dirty_tracking(dirty_tracking)
            .last_iova(0x7f_ffff_ffff)
            .reserved(vec![(0xfee0_0000, 0xfeef_ffff)]),
    )
}

pub(crate) fn reaches(dma: &DmaSpace, iova: u64) -> bool {
    dma.read(iova, &mut [0]).is_ok()
}
