//! Device, region and interrupt info.
//!
//! A request bounds its reply by `argsz`. If the capabilities do not fit, they are omitted, and the reply's `argsz`
//! is the size needed, as in the kernel.

use whimbrel_protocol::info::{Info, Irq, Region};
use whimbrel_uapi::device::{DeviceInfo, DeviceInfoFlags, IrqInfoFlags, RegionInfo, RegionInfoFlags};

use super::fields::Fields;
use super::{Malformed, MessageBuffer};

/// Bytes of every VFIO_USER_DEVICE_GET_INFO: up to `num_irqs`.
pub(super) const INFO: u32 = 16;
/// Bytes of the fixed part of VFIO_USER_DEVICE_GET_REGION_INFO.
pub(super) const REGION: u32 = size_of::<RegionInfo>() as u32;
/// Bytes of VFIO_USER_DEVICE_GET_IRQ_INFO.
pub(super) const IRQ: u32 = 16;
/// Bytes of the fixed part of VFIO_USER_DEVICE_GET_REGION_IO_FDS.
pub(super) const IO_FDS: u32 = 16;
/// Bytes of one sub-region.
const SUB_REGION: usize = 40;

/// The reply to VFIO_USER_DEVICE_GET_INFO.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfoReply {
    info: Info,
    needed: u32,
}

/// The reply to VFIO_USER_DEVICE_GET_REGION_INFO. With the MMAP flag a descriptor comes with it, and the region's
/// offset is its position in that file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionInfoReply {
    index: u32,
    region: Region,
    needed: u32,
}

/// The reply to VFIO_USER_DEVICE_GET_IRQ_INFO.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IrqInfoReply {
    /// Index of the interrupts.
    pub index: u32,
    /// Their flags and count.
    pub irq: Irq,
}

/// The reply to VFIO_USER_DEVICE_GET_REGION_IO_FDS, which carries descriptors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionIoFdsReply {
    index: u32,
    sub_regions: Vec<SubRegion>,
    needed: u32,
}

/// A part of a region that can be accessed through a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubRegion {
    /// Offset in bytes within the region.
    pub offset: u64,
    /// Size in bytes; 0 if the size of an access does not matter.
    pub size: u64,
    /// Index among the descriptors of the message.
    pub fd_index: u32,
    /// The kind of descriptor.
    pub kind: IoFdKind,
}

/// The kind of descriptor of a [`SubRegion`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum IoFdKind {
    /// An eventfd that a write signals (VFIO_USER_IO_FD_TYPE_IOEVENTFD).
    Ioeventfd {
        /// KVM's flags; bit 0 is KVM_IOEVENTFD_FLAG_DATAMATCH.
        flags: u32,
        /// With DATAMATCH, the only value whose write signals.
        datamatch: u64,
    },
    /// An ioregionfd (VFIO_USER_IO_FD_TYPE_IOREGIONFD).
    Ioregionfd {
        /// KVM's flags.
        flags: u32,
        /// Returned with each access.
        user_data: u64,
    },
}

impl IoFdKind {
    /// `KVM_IOEVENTFD_FLAG_DATAMATCH`.
    pub const DATAMATCH: u32 = 1;

    const fn number(self) -> u32 {
        match self {
            IoFdKind::Ioeventfd { .. } => 0,
            IoFdKind::Ioregionfd { .. } => 1,
        }
    }
}

impl DeviceInfoReply {
    /// Creates the reply for a client that accepts `room` bytes.
    pub fn new(mut info: Info, room: u32) -> DeviceInfoReply {
        info.flags.remove(DeviceInfoFlags::CAPS);
        let needed = if info.capabilities.is_empty() { INFO } else { info.to_bytes().len() as u32 };
        if room < needed {
            info.capabilities.clear();
        }
        DeviceInfoReply { info, needed }
    }

    /// Returns the device info; without capabilities if they did not fit.
    pub fn info(&self) -> &Info {
        &self.info
    }

    /// Returns the size of the whole reply in bytes: the `argsz` to ask again with unless
    /// [`is_whole`](Self::is_whole).
    pub fn needed(&self) -> u32 {
        self.needed
    }

    /// Returns whether nothing was omitted.
    pub fn is_whole(&self) -> bool {
        self.needed <= INFO || !self.info.capabilities.is_empty()
    }

    pub(super) fn parse(payload: &[u8]) -> Result<DeviceInfoReply, Malformed> {
        let mut fields = Fields::of(payload, INFO as usize)?;
        let needed = fields.argsz(u64::from(INFO))?;
        let mut info = if payload.len() >= size_of::<DeviceInfo>() {
            Info::from_bytes(payload)?
        } else {
            Info::new(DeviceInfoFlags::from_bits_retain(fields.u32()?))
                .num_regions(fields.u32()?)
                .num_irqs(fields.u32()?)
        };
        info.flags.remove(DeviceInfoFlags::CAPS);
        Ok(DeviceInfoReply { info, needed })
    }

    pub(super) fn put(&self, out: &mut MessageBuffer) {
        if !self.info.capabilities.is_empty() {
            return out.put(&self.info.to_bytes());
        }
        let mut flags = self.info.flags;
        flags.set(DeviceInfoFlags::CAPS, self.needed > INFO);
        out.put_u32(self.needed);
        out.put_u32(flags.bits());
        out.put_u32(self.info.num_regions);
        out.put_u32(self.info.num_irqs);
    }
}

impl RegionInfoReply {
    /// Creates the reply for a client that accepts `room` bytes.
    pub fn new(index: u32, mut region: Region, room: u32) -> RegionInfoReply {
        region.flags.remove(RegionInfoFlags::CAPS);
        let needed = region.to_bytes(index).len() as u32;
        if room < needed {
            region.capabilities.clear();
        }
        RegionInfoReply { index, region, needed }
    }

    /// Returns the index of the region.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Returns the region info; without capabilities if they did not fit.
    pub fn region(&self) -> &Region {
        &self.region
    }

    /// Returns the size of the whole reply in bytes: the `argsz` to ask again with unless
    /// [`is_whole`](Self::is_whole).
    pub fn needed(&self) -> u32 {
        self.needed
    }

    /// Returns whether nothing was omitted.
    pub fn is_whole(&self) -> bool {
        self.needed <= REGION || !self.region.capabilities.is_empty()
    }

    pub(super) fn parse(payload: &[u8]) -> Result<RegionInfoReply, Malformed> {
        let mut fields = Fields::of(payload, REGION as usize)?;
        let needed = fields.argsz(u64::from(REGION))?;
        fields.u32()?;
        let index = fields.u32()?;
        let mut region = Region::from_bytes(payload)?;
        region.flags.remove(RegionInfoFlags::CAPS);
        Ok(RegionInfoReply { index, region, needed })
    }

    pub(super) fn put(&self, out: &mut MessageBuffer) {
        if !self.region.capabilities.is_empty() {
            return out.put(&self.region.to_bytes(self.index));
        }
        let mut flags = self.region.flags;
        flags.set(RegionInfoFlags::CAPS, self.needed > REGION);
        out.put_u32(self.needed);
        out.put_u32(flags.bits());
        out.put_u32(self.index);
        out.put_u32(0);
        out.put_u64(self.region.size);
        out.put_u64(self.region.offset);
    }
}

impl IrqInfoReply {
    pub(super) fn parse(payload: &[u8]) -> Result<IrqInfoReply, Malformed> {
        let mut fields = Fields::of(payload, IRQ as usize)?;
        fields.argsz(u64::from(IRQ))?;
        let flags = IrqInfoFlags::from_bits_retain(fields.u32()?);
        Ok(IrqInfoReply { index: fields.u32()?, irq: Irq::new(flags, fields.u32()?) })
    }

    pub(super) fn put(self, out: &mut MessageBuffer) {
        out.put_u32(IRQ);
        out.put_u32(self.irq.flags.bits());
        out.put_u32(self.index);
        out.put_u32(self.irq.count);
    }
}

impl RegionIoFdsReply {
    /// Creates the reply for a client that accepts `room` bytes.
    pub fn new(index: u32, mut sub_regions: Vec<SubRegion>, room: u32) -> RegionIoFdsReply {
        let whole = sub_regions.len().saturating_mul(SUB_REGION).saturating_add(IO_FDS as usize);
        let needed = u32::try_from(whole).unwrap_or(u32::MAX);
        if room < needed {
            sub_regions.clear();
        }
        RegionIoFdsReply { index, sub_regions, needed }
    }

    /// Returns the index of the region.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Returns its parts; none if they did not all fit.
    pub fn sub_regions(&self) -> &[SubRegion] {
        &self.sub_regions
    }

    /// Returns the size of the whole reply in bytes: the `argsz` to ask again with unless
    /// [`is_whole`](Self::is_whole).
    pub fn needed(&self) -> u32 {
        self.needed
    }

    /// Returns whether nothing was omitted.
    pub fn is_whole(&self) -> bool {
        self.needed <= IO_FDS || !self.sub_regions.is_empty()
    }

    pub(super) fn parse(payload: &[u8]) -> Result<RegionIoFdsReply, Malformed> {
        let mut fields = Fields::of(payload, IO_FDS as usize)?;
        let needed = fields.argsz(u64::from(IO_FDS))?;
        fields.u32()?;
        let (index, count) = (fields.u32()?, fields.u32()?);
        let (entries, _) = fields.rest().as_chunks::<SUB_REGION>();
        if needed as usize > payload.len() {
            // There was no room, and what may be there is not all.
            return Ok(RegionIoFdsReply { index, sub_regions: Vec::new(), needed });
        }
        let short = || Malformed::Short {
            needed: u64::from(IO_FDS) + u64::from(count) * SUB_REGION as u64,
            found: payload.len(),
        };
        let entries = entries.get(..count as usize).ok_or_else(short)?;
        // Of what is whole no more is needed, whatever follows it.
        let needed = IO_FDS + entries.as_flattened().len() as u32;
        let sub_regions = entries.iter().map(|entry| SubRegion::parse(entry)).collect::<Result<_, _>>()?;
        Ok(RegionIoFdsReply { index, sub_regions, needed })
    }

    pub(super) fn put(&self, out: &mut MessageBuffer) {
        out.put_u32(self.needed);
        out.put_u32(0);
        out.put_u32(self.index);
        out.put_u32(self.sub_regions.len() as u32);
        for sub_region in &self.sub_regions {
            sub_region.put(out);
        }
    }
}

impl SubRegion {
    fn parse(entry: &[u8]) -> Result<SubRegion, Malformed> {
        let mut fields = Fields::of(entry, SUB_REGION)?;
        let (offset, size, fd_index) = (fields.u64()?, fields.u64()?, fields.u32()?);
        let (number, flags) = (fields.u32()?, fields.u32()?);
        fields.u32()?;
        let value = fields.u64()?;
        let kind = match number {
            0 => IoFdKind::Ioeventfd { flags, datamatch: value },
            1 => IoFdKind::Ioregionfd { flags, user_data: value },
            _ => return Err(Malformed::Value { field: "sub-region type", value: number.into() }),
        };
        Ok(SubRegion { offset, size, fd_index, kind })
    }

    fn put(&self, out: &mut MessageBuffer) {
        let (flags, value) = match self.kind {
            IoFdKind::Ioeventfd { flags, datamatch } => (flags, datamatch),
            IoFdKind::Ioregionfd { flags, user_data } => (flags, user_data),
        };
        out.put_u64(self.offset);
        out.put_u64(self.size);
        out.put_u32(self.fd_index);
        out.put_u32(self.kind.number());
        out.put_u32(flags);
        out.put_u32(0);
        out.put_u64(value);
    }
}

/// Parses `argsz` and index of a request about a region or an interrupt index.
pub(super) fn parse_indexed(payload: &[u8], least: u32) -> Result<(u32, u32), Malformed> {
    let mut fields = Fields::of(payload, least as usize)?;
    let argsz = fields.argsz(least.into())?;
    fields.u32()?;
    Ok((argsz, fields.u32()?))
}

/// Writes a request about a region or an interrupt index; its other fields are zero.
pub(super) fn put_indexed(argsz: u32, index: u32, size: u32, out: &mut MessageBuffer) {
    out.put_u32(argsz);
    out.put_u32(0);
    out.put_u32(index);
    out.grow(size as usize - 12).fill(0);
}

/// Parses `argsz` of VFIO_USER_DEVICE_GET_INFO.
pub(super) fn parse_info(payload: &[u8]) -> Result<u32, Malformed> {
    Fields::of(payload, INFO as usize)?.argsz(u64::from(INFO))
}

pub(super) fn put_info(argsz: u32, out: &mut MessageBuffer) {
    out.put_u32(argsz);
    out.grow(INFO as usize - 4).fill(0);
}
