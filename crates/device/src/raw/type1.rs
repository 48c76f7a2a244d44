//! The type1 requests as raw ioctls: the checks of sizes and flags that come before the request itself.

use whimbrel_protocol::Errno;
use whimbrel_uapi::ioctl::{
    VFIO_IOMMU_DIRTY_PAGES, VFIO_IOMMU_GET_INFO, VFIO_IOMMU_MAP_DMA, VFIO_IOMMU_UNMAP_DMA,
};
use whimbrel_uapi::type1::{
    Bitmap, DirtyPagesFlags, DmaMapFlags, DmaUnmapFlags, IommuType1DirtyBitmap, IommuType1DirtyBitmapGet,
    IommuType1DmaMap, IommuType1DmaUnmap, IommuType1Info,
};
use zerocopy::{FromBytes, IntoBytes};

use super::process::Process;
use crate::iommu::type1::{Target, Type1};

/// Minimum size of `vfio_iommu_type1_info`: up to `iova_pgsizes`.
const MIN_INFO: usize = 16;

/// End of a process's addresses (`TASK_SIZE_MAX` of x86-64 with four levels of page tables).
const PROCESS_END: u64 = 0x7fff_ffff_f000;

impl Type1 {
    /// Executes a request that the container forwards. ENOTTY for one that type1 does not support.
    pub(super) fn ioctl(
        &mut self,
        number: u32,
        argument: u64,
        process: &mut dyn Process,
    ) -> Result<i32, Errno> {
        match number {
            n if n == VFIO_IOMMU_GET_INFO.number() => self.raw_info(argument, process),
            n if n == VFIO_IOMMU_MAP_DMA.number() => self.raw_map(argument, process),
            n if n == VFIO_IOMMU_UNMAP_DMA.number() => self.raw_unmap(argument, process),
            n if n == VFIO_IOMMU_DIRTY_PAGES.number() => self.raw_dirty_pages(argument, process),
            _ => return Err(Errno::ENOTTY),
        }?;
        Ok(0)
    }

    fn raw_info(&self, argument: u64, process: &mut dyn Process) -> Result<(), Errno> {
        let mut asked = IommuType1Info::default();
        process.read(argument, &mut asked.as_mut_bytes()[..MIN_INFO])?;
        let argsz = asked.argsz as usize;
        if argsz < MIN_INFO {
            return Err(Errno::EINVAL);
        }
        let (mut info, chain) = self.info().to_bytes();
        if argsz < info.argsz as usize {
            // Not even a part of the chain is given; `argsz` tells how much room it takes.
            info.cap_offset = 0;
        } else {
            info.argsz = asked.argsz;
            process.write(after(argument, size_of::<IommuType1Info>())?, &chain)?;
        }
        process.write(argument, &info.as_bytes()[..argsz.min(size_of::<IommuType1Info>())])?;
        Ok(())
    }

    fn raw_map(&mut self, argument: u64, process: &mut dyn Process) -> Result<(), Errno> {
        let map: IommuType1DmaMap = read(argument, process)?;
        let flags = DmaMapFlags::from_bits(map.flags);
        let (Some(flags), true) = (flags, map.argsz as usize >= size_of_val(&map)) else {
            return Err(Errno::EINVAL);
        };
        self.map(flags, map.vaddr, map.iova, map.size, process)
    }

    fn raw_unmap(&mut self, argument: u64, process: &mut dyn Process) -> Result<(), Errno> {
        let mut unmap: IommuType1DmaUnmap = read(argument, process)?;
        let flags = DmaUnmapFlags::from_bits(unmap.flags);
        let (Some(flags), true) = (flags, unmap.argsz as usize >= size_of_val(&unmap)) else {
            return Err(Errno::EINVAL);
        };
        unmap.size = if flags.contains(DmaUnmapFlags::GET_DIRTY_BITMAP) {
            let others = DmaUnmapFlags::ALL | DmaUnmapFlags::VADDR;
            let needed = size_of_val(&unmap) + size_of::<Bitmap>();
            if flags.intersects(others) || (unmap.argsz as usize) < needed {
                return Err(Errno::EINVAL);
            }
            let bitmap: Bitmap = read(after(argument, size_of_val(&unmap))?, process)?;
            let mut target = UserBitmap { process: &mut *process, bitmap };
            self.unmap(flags, unmap.iova, unmap.size, Some(&mut target as &mut dyn Target))?
        } else {
            self.unmap(flags, unmap.iova, unmap.size, None)?
        };
        process.write(argument, unmap.as_bytes())?;
        Ok(())
    }

    fn raw_dirty_pages(&mut self, argument: u64, process: &mut dyn Process) -> Result<(), Errno> {
        self.check_tracks()?;
        let dirty: IommuType1DirtyBitmap = read(argument, process)?;
        let flags = DirtyPagesFlags::from_bits(dirty.flags);
        let (Some(flags), true) = (flags, dirty.argsz as usize >= size_of_val(&dirty)) else {
            return Err(Errno::EINVAL);
        };
        match flags {
            DirtyPagesFlags::START => self.start_tracking(),
            DirtyPagesFlags::STOP => self.stop_tracking(),
            DirtyPagesFlags::GET_BITMAP => {
                let needed = size_of_val(&dirty) + size_of::<IommuType1DirtyBitmapGet>();
                if (dirty.argsz as usize) < needed {
                    return Err(Errno::EINVAL);
                }
                let get: IommuType1DirtyBitmapGet = read(after(argument, size_of_val(&dirty))?, process)?;
                let mut target = UserBitmap { process, bitmap: get.bitmap };
                self.dirty_bitmap(get.iova, get.size, &mut target)
            }
            // Exactly one flag.
            _ => Err(Errno::EINVAL),
        }
    }
}

/// A bitmap in the memory of a process.
struct UserBitmap<'a> {
    process: &'a mut dyn Process,
    bitmap: Bitmap,
}

impl UserBitmap<'_> {
    fn address(&self, index: u64) -> Result<u64, Errno> {
        index.checked_mul(8).and_then(|offset| self.bitmap.data.checked_add(offset)).ok_or(Errno::EFAULT)
    }
}

impl Target for UserBitmap<'_> {
    fn page_size(&self) -> u64 {
        self.bitmap.pgsize
    }

    fn size(&self) -> u64 {
        self.bitmap.size
    }

    fn is_addressable(&self) -> bool {
        self.bitmap.data.checked_add(self.bitmap.size).is_some_and(|end| end <= PROCESS_END)
    }

    fn read(&mut self, index: u64) -> Result<u64, Errno> {
        let mut word = 0;
        self.process.read(self.address(index)?, u64::as_mut_bytes(&mut word))?;
        Ok(word)
    }

    fn write(&mut self, index: u64, words: &[u64]) -> Result<(), Errno> {
        let address = self.address(index)?;
        Ok(self.process.write(address, words.as_bytes())?)
    }
}

fn read<T: FromBytes + IntoBytes>(address: u64, process: &dyn Process) -> Result<T, Errno> {
    let mut value = T::new_zeroed();
    process.read(address, value.as_mut_bytes())?;
    Ok(value)
}

fn after(address: u64, bytes: usize) -> Result<u64, Errno> {
    address.checked_add(bytes as u64).ok_or(Errno::EFAULT)
}
