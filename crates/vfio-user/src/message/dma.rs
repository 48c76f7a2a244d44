//! The client's memory: mapping, unmapping, and access to memory that was mapped without a file.

use whimbrel_uapi::type1::{DmaMapFlags, DmaUnmapFlags};

use super::fields::{Fields, check_count};
use super::{Limits, Malformed, MessageBuffer};

const MAP: u32 = 32;
const UNMAP: u32 = 24;
const BITMAP: u32 = 16;

bitflags::bitflags! {
    /// Access modes of the memory behind a descriptor: flags of VFIO_USER_DMA_MAP. The first shares its bit with
    /// type1's VADDR, and is unrelated.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct DmaAccessModes: u32 {
        /// By mmap(2) (VFIO_USER_F_DMA_REGION_MMAP). The default without any of these flags.
        const MMAP = 1 << 2;
        /// By pread(2) and pwrite(2) (VFIO_USER_F_DMA_REGION_FILE_IO).
        const FILE_IO = 1 << 3;
    }
}

/// VFIO_USER_DMA_MAP. With a descriptor the memory is accessed through it, without one by messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DmaMap {
    /// The device's access rights: READ, WRITE or both.
    pub rights: DmaMapFlags,
    /// Access modes of the memory behind a descriptor.
    pub modes: DmaAccessModes,
    /// Offset in bytes within the file.
    pub offset: u64,
    /// First IOVA.
    pub iova: u64,
    /// Bytes.
    pub size: u64,
}

/// VFIO_USER_DMA_UNMAP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "the forms that the flags of a message can tell")]
pub enum DmaUnmap {
    /// The mappings in a range.
    Range {
        /// First IOVA.
        iova: u64,
        /// Bytes.
        size: u64,
        /// True to request the pages of the unmapped memory that were written (VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP,
        /// from earlier versions of the specification).
        bitmap: Option<BitmapRequest>,
    },
    /// Every mapping (VFIO_DMA_UNMAP_FLAG_ALL).
    All,
}

/// The format of a dirty bitmap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BitmapRequest {
    /// Bytes of IOVA per bit.
    pub page_size: u64,
    /// Bytes of the bitmap.
    pub size: u64,
}

/// A dirty bitmap: `u64`s, one bit per page, least significant first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirtyBitmap<'a> {
    /// Bytes of IOVA per bit.
    pub page_size: u64,
    /// The bits.
    pub bits: &'a [u8],
}

/// The reply to VFIO_USER_DMA_UNMAP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DmaUnmapReply<'a> {
    /// The flags of the request.
    pub flags: DmaUnmapFlags,
    /// The first IOVA of the request.
    pub iova: u64,
    /// Bytes that were unmapped.
    pub size: u64,
    /// The dirty bitmap, if it was requested.
    pub bitmap: Option<DirtyBitmap<'a>>,
}

/// The memory range of VFIO_USER_DMA_READ or VFIO_USER_DMA_WRITE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DmaAccess {
    /// First IOVA.
    pub iova: u64,
    /// Bytes.
    pub count: u64,
}

impl DmaMap {
    pub(super) fn parse(payload: &[u8]) -> Result<DmaMap, Malformed> {
        let mut fields = Fields::of(payload, MAP as usize)?;
        fields.argsz(u64::from(MAP))?;
        let flags = fields.u32()?;
        let both = DmaMapFlags::READ | DmaMapFlags::WRITE;
        let rights = DmaMapFlags::from_bits_truncate(flags) & both;
        let modes = DmaAccessModes::from_bits_truncate(flags);
        if rights.is_empty() || rights.bits() | modes.bits() != flags {
            return Err(Malformed::Flags(flags));
        }
        Ok(DmaMap { rights, modes, offset: fields.u64()?, iova: fields.u64()?, size: fields.u64()? })
    }

    pub(super) fn put(&self, out: &mut MessageBuffer) {
        out.put_u32(MAP);
        out.put_u32(self.rights.bits() | self.modes.bits());
        out.put_u64(self.offset);
        out.put_u64(self.iova);
        out.put_u64(self.size);
    }
}

impl DmaUnmap {
    /// Returns the flags on the wire.
    pub fn flags(&self) -> DmaUnmapFlags {
        match self {
            DmaUnmap::All => DmaUnmapFlags::ALL,
            DmaUnmap::Range { bitmap: Some(_), .. } => DmaUnmapFlags::GET_DIRTY_BITMAP,
            DmaUnmap::Range { bitmap: None, .. } => DmaUnmapFlags::empty(),
        }
    }

    pub(super) fn parse(payload: &[u8], limits: Limits) -> Result<DmaUnmap, Malformed> {
        let mut fields = Fields::of(payload, UNMAP as usize)?;
        let argsz = fields.argsz(u64::from(UNMAP))?;
        let bits = fields.u32()?;
        let (iova, size) = (fields.u64()?, fields.u64()?);
        let flags = DmaUnmapFlags::from_bits(bits).ok_or(Malformed::Flags(bits))?;
        if flags.is_empty() {
            return Ok(DmaUnmap::Range { iova, size, bitmap: None });
        }
        if flags == DmaUnmapFlags::ALL {
            return match (iova, size) {
                (0, 0) => Ok(DmaUnmap::All),
                (0, _) => Err(Malformed::Value { field: "size with VFIO_DMA_UNMAP_FLAG_ALL", value: size }),
                _ => Err(Malformed::Value { field: "address with VFIO_DMA_UNMAP_FLAG_ALL", value: iova }),
            };
        }
        if flags != DmaUnmapFlags::GET_DIRTY_BITMAP {
            return Err(Malformed::Flags(bits));
        }
        let found = payload.len();
        let needed = u64::from(UNMAP + BITMAP);
        if (found as u64) < needed {
            return Err(Malformed::Short { needed, found });
        }
        let bitmap = BitmapRequest { page_size: fields.u64()?, size: fields.u64()? };
        check_count(bitmap.size, limits.max_data_xfer_size)?;
        let least = needed + bitmap.size;
        if u64::from(argsz) < least {
            return Err(Malformed::Argsz { argsz, least });
        }
        Ok(DmaUnmap::Range { iova, size, bitmap: Some(bitmap) })
    }

    pub(super) fn put(&self, out: &mut MessageBuffer) {
        let (iova, size, bitmap) = match *self {
            DmaUnmap::All => (0, 0, None),
            DmaUnmap::Range { iova, size, bitmap } => (iova, size, bitmap),
        };
        let room = bitmap.map_or(0, |bitmap| u64::from(BITMAP) + bitmap.size);
        out.put_u32(u32::try_from(u64::from(UNMAP) + room).unwrap_or(u32::MAX));
        out.put_u32(self.flags().bits());
        out.put_u64(iova);
        out.put_u64(size);
        if let Some(bitmap) = bitmap {
            out.put_u64(bitmap.page_size);
            out.put_u64(bitmap.size);
        }
    }
}

impl<'a> DmaUnmapReply<'a> {
    pub(super) fn parse(payload: &'a [u8], limits: Limits) -> Result<DmaUnmapReply<'a>, Malformed> {
        let mut fields = Fields::of(payload, UNMAP as usize)?;
        fields.u32()?;
        let bits = fields.u32()?;
        let (iova, size) = (fields.u64()?, fields.u64()?);
        let flags = DmaUnmapFlags::from_bits(bits).ok_or(Malformed::Flags(bits))?;
        let bitmap = if flags.contains(DmaUnmapFlags::GET_DIRTY_BITMAP) {
            let (page_size, count) = (fields.u64()?, fields.u64()?);
            Some(DirtyBitmap { page_size, bits: fields.data(count, limits.max_data_xfer_size)? })
        } else {
            None
        };
        Ok(DmaUnmapReply { flags, iova, size, bitmap })
    }

    pub(super) fn put(&self, out: &mut MessageBuffer) {
        let room = self.bitmap.map_or(0, |bitmap| BITMAP + bitmap.bits.len() as u32);
        out.put_u32(UNMAP + room);
        out.put_u32(self.flags.bits());
        out.put_u64(self.iova);
        out.put_u64(self.size);
        if let Some(bitmap) = &self.bitmap {
            out.put_u64(bitmap.page_size);
            out.put_u64(bitmap.bits.len() as u64);
            out.put(bitmap.bits);
        }
    }
}

impl DmaAccess {
    const SIZE: usize = 16;

    pub(super) fn parse(payload: &[u8], limits: Limits) -> Result<DmaAccess, Malformed> {
        let mut fields = Fields::of(payload, Self::SIZE)?;
        let access = DmaAccess { iova: fields.u64()?, count: fields.u64()? };
        check_count(access.count, limits.max_data_xfer_size)?;
        Ok(access)
    }

    /// Parses the reply to VFIO_USER_DMA_WRITE. Its count has four bytes in the specification and eight in
    /// libvfio-user.
    pub(super) fn parse_written(payload: &[u8], limits: Limits) -> Result<DmaAccess, Malformed> {
        if payload.len() >= Self::SIZE {
            return Self::parse(payload, limits);
        }
        let mut fields = Fields::of(payload, 12)?;
        let access = DmaAccess { iova: fields.u64()?, count: u64::from(fields.u32()?) };
        check_count(access.count, limits.max_data_xfer_size)?;
        Ok(access)
    }

    pub(super) fn parse_with_data(payload: &[u8], limits: Limits) -> Result<(u64, &[u8]), Malformed> {
        let mut fields = Fields::of(payload, Self::SIZE)?;
        let (iova, count) = (fields.u64()?, fields.u64()?);
        Ok((iova, fields.data(count, limits.max_data_xfer_size)?))
    }

    pub(super) fn put(self, out: &mut MessageBuffer) {
        out.put_u64(self.iova);
        out.put_u64(self.count);
    }
}
