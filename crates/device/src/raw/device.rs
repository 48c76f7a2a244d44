//! The requests of a device as raw ioctls.
//!
//! They are VFIO_DEVICE_GET_INFO, GET_REGION_INFO, GET_IRQ_INFO, SET_IRQS, RESET, FEATURE, IOEVENTFD, the two of
//! the PCI hot reset and the two of graphics; everything else is ENOTTY, as from a kernel without the request.
//! [`DeviceFile`] has the typed calls.

use whimbrel_protocol::Errno;
use whimbrel_protocol::info::{Capability, MmapArea, Region};
use whimbrel_uapi::decode::File;
use whimbrel_uapi::device::{DeviceInfo, IrqInfo, RegionInfo, RegionInfoFlags};
use whimbrel_uapi::ioctl::{
    VFIO_DEVICE_FEATURE, VFIO_DEVICE_GET_GFX_DMABUF, VFIO_DEVICE_GET_INFO, VFIO_DEVICE_GET_IRQ_INFO,
    VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, VFIO_DEVICE_GET_REGION_INFO, VFIO_DEVICE_IOEVENTFD,
    VFIO_DEVICE_PCI_HOT_RESET, VFIO_DEVICE_QUERY_GFX_PLANE, VFIO_DEVICE_RESET, VFIO_DEVICE_SET_IRQS,
};
use zerocopy::{FromZeros, IntoBytes};

use super::feature;
use super::process::{Process, copy_to_user};
use super::trace::traced;
use crate::core::file::DeviceFile;

/// Minimum size of `vfio_device_info`: up to `num_irqs`.
const MIN_DEVICE_INFO: usize = 16;

impl DeviceFile {
    /// A raw ioctl on the device: `number` as in the header, `argument` an address in `process`.
    pub fn ioctl(&self, number: u32, argument: u64, process: &mut dyn Process) -> Result<i32, Errno> {
        traced(File::Device, self.name(), (number, argument), process, |process| {
            self.execute(number, argument, process)
        })
    }

    pub(super) fn execute(
        &self,
        number: u32,
        argument: u64,
        process: &mut dyn Process,
    ) -> Result<i32, Errno> {
        // A device that sleeps wakes for any request, also for one it does not know.
        let _awake = self.awake();
        match number {
            n if n == VFIO_DEVICE_GET_INFO.number() => self.raw_info(argument, process),
            n if n == VFIO_DEVICE_GET_REGION_INFO.number() => self.raw_region_info(argument, process),
            n if n == VFIO_DEVICE_GET_IRQ_INFO.number() => self.raw_irq_info(argument, process),
            n if n == VFIO_DEVICE_SET_IRQS.number() => self.raw_set_irqs(argument, process),
            n if n == VFIO_DEVICE_RESET.number() => self.reset().map(|()| 0),
            n if n == VFIO_DEVICE_IOEVENTFD.number() => self.raw_ioeventfd(argument, process),
            n if n == VFIO_DEVICE_GET_PCI_HOT_RESET_INFO.number() => {
                self.raw_hot_reset_info(argument, process)
            }
            n if n == VFIO_DEVICE_PCI_HOT_RESET.number() => self.raw_hot_reset(argument, process),
            n if n == VFIO_DEVICE_QUERY_GFX_PLANE.number() => self.raw_query_gfx_plane(argument, process),
            n if n == VFIO_DEVICE_GET_GFX_DMABUF.number() => self.raw_get_gfx_dmabuf(argument, process),
            n if n == VFIO_DEVICE_FEATURE.number() => feature::ioctl(self, argument, process),
            _ => Err(Errno::ENOTTY),
        }
    }

    fn raw_info(&self, argument: u64, process: &mut dyn Process) -> Result<i32, Errno> {
        let mut asked = DeviceInfo::new_zeroed();
        process.read(argument, &mut asked.as_mut_bytes()[..MIN_DEVICE_INFO])?;
        let argsz = asked.argsz as usize;
        if argsz < MIN_DEVICE_INFO {
            return Err(Errno::EINVAL);
        }
        let info = self.info();
        let mut answer = info.to_bytes();
        if argsz < answer.len() && !info.capabilities.is_empty() {
            let offset = std::mem::offset_of!(DeviceInfo, cap_offset);
            without_chain(&mut answer, offset, size_of::<DeviceInfo>());
        } else {
            answer[..4].copy_from_slice(&asked.argsz.to_ne_bytes());
        }
        answer.truncate(argsz);
        copy_out(process, argument, &answer, size_of::<DeviceInfo>())?;
        Ok(0)
    }

    fn raw_region_info(&self, argument: u64, process: &mut dyn Process) -> Result<i32, Errno> {
        let mut asked = RegionInfo::new_zeroed();
        process.read(argument, asked.as_mut_bytes())?;
        if (asked.argsz as usize) < size_of::<RegionInfo>() {
            return Err(Errno::EINVAL);
        }
        let mut region = self.region_info(asked.index)?.offset(process.region_offset(asked.index));
        self.offer_mappings(asked.index, &mut region, process);
        let mut answer = region.to_bytes(asked.index);
        if region.capabilities.is_empty() {
            // Without a chain the kernel leaves these two as the user gave them.
            answer[..4].copy_from_slice(&asked.argsz.to_ne_bytes());
            let offset = std::mem::offset_of!(RegionInfo, cap_offset);
            answer[offset..offset + 4].copy_from_slice(&asked.cap_offset.to_ne_bytes());
        } else if (asked.argsz as usize) < answer.len() {
            let offset = std::mem::offset_of!(RegionInfo, cap_offset);
            without_chain(&mut answer, offset, size_of::<RegionInfo>());
        } else {
            answer[..4].copy_from_slice(&asked.argsz.to_ne_bytes());
        }
        copy_out(process, argument, &answer, size_of::<RegionInfo>())?;
        Ok(0)
    }

    /// Removes from a region's info what the process cannot map.
    fn offer_mappings(&self, index: u32, region: &mut Region, process: &dyn Process) {
        if !region.flags.contains(RegionInfoFlags::MMAP) {
            return;
        }
        let can_map = |area: &MmapArea| process.can_map(self, index, *area);
        let sparse = region.capabilities.iter_mut().find_map(|capability| match capability {
            Capability::SparseMmap(areas) => Some(areas),
            _ => None,
        });
        let offers_any = match sparse {
            Some(areas) if areas.is_empty() => true,
            Some(areas) => {
                areas.retain(can_map);
                !areas.is_empty()
            }
            None => can_map(&MmapArea::new(0, region.size)),
        };
        if !offers_any {
            region.flags.remove(RegionInfoFlags::MMAP);
            region.capabilities.retain(|capability| !matches!(capability, Capability::SparseMmap(_)));
        }
    }

    fn raw_irq_info(&self, argument: u64, process: &mut dyn Process) -> Result<i32, Errno> {
        let mut info = IrqInfo::new_zeroed();
        process.read(argument, info.as_mut_bytes())?;
        if (info.argsz as usize) < size_of::<IrqInfo>() {
            return Err(Errno::EINVAL);
        }
        let irq = self.irq_info(info.index)?;
        info.flags = irq.flags.bits();
        info.count = irq.count;
        process.write(argument, info.as_bytes())?;
        Ok(0)
    }
}

/// Truncates a reply to its fixed part if the user's buffer has no room for the chain. `argsz` keeps the full size, so
/// that the user can repeat the request.
fn without_chain(answer: &mut Vec<u8>, cap_offset: usize, fixed: usize) {
    answer[cap_offset..cap_offset + 4].fill(0);
    answer.truncate(fixed);
}

/// Copies a reply out as the kernel does: first the chain after the fixed part, then the fixed part.
fn copy_out(process: &mut dyn Process, argument: u64, answer: &[u8], fixed: usize) -> Result<(), Errno> {
    let (head, chain) = answer.split_at(fixed.min(answer.len()));
    if !chain.is_empty() {
        copy_to_user(process, argument.checked_add(fixed as u64).ok_or(Errno::EFAULT)?, chain)?;
    }
    copy_to_user(process, argument, head)
}
