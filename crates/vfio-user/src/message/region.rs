//! Region accesses.

use super::fields::{Fields, check_count};
use super::{Limits, Malformed, MessageBuffer};

const FIXED: usize = 16;
/// Bytes of one write in VFIO_USER_REGION_WRITE_MULTI.
const ONE: usize = 24;

/// The part of a region that VFIO_USER_REGION_READ or VFIO_USER_REGION_WRITE accesses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionAccess {
    /// Offset in bytes within the region.
    pub offset: u64,
    /// Index of the region.
    pub region: u32,
    /// Bytes.
    pub count: u32,
}

/// VFIO_USER_REGION_WRITE_MULTI: short writes, executed one after the other.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct WriteMulti<'a> {
    /// Complete writes, whose counts were checked.
    writes: &'a [[u8; ONE]],
}

/// One write of [`WriteMulti`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteOne {
    offset: u64,
    region: u32,
    count: u8,
    data: [u8; 8],
}

impl RegionAccess {
    pub(super) fn parse(payload: &[u8], limits: Limits) -> Result<RegionAccess, Malformed> {
        let mut fields = Fields::of(payload, FIXED)?;
        let access = RegionAccess { offset: fields.u64()?, region: fields.u32()?, count: fields.u32()? };
        check_count(access.count.into(), limits.max_data_xfer_size)?;
        Ok(access)
    }

    pub(super) fn parse_with_data(
        payload: &[u8],
        limits: Limits,
    ) -> Result<(RegionAccess, &[u8]), Malformed> {
        let mut fields = Fields::of(payload, FIXED)?;
        let access = RegionAccess { offset: fields.u64()?, region: fields.u32()?, count: fields.u32()? };
        Ok((access, fields.data(access.count.into(), limits.max_data_xfer_size)?))
    }

    /// Writes the fixed part; data may follow.
    pub fn put(self, out: &mut MessageBuffer) {
        out.put_u64(self.offset);
        out.put_u32(self.region);
        out.put_u32(self.count);
    }
}

impl WriteOne {
    /// Creates a write of at most eight bytes; `None` for more.
    pub fn new(region: u32, offset: u64, data: &[u8]) -> Option<WriteOne> {
        let mut bytes = [0; 8];
        bytes.get_mut(..data.len())?.copy_from_slice(data);
        Some(WriteOne { offset, region, count: data.len() as u8, data: bytes })
    }

    /// Returns the index of the region.
    pub const fn region(&self) -> u32 {
        self.region
    }

    /// Returns the offset in bytes within the region.
    pub const fn offset(&self) -> u64 {
        self.offset
    }

    /// Returns the bytes to write.
    pub fn data(&self) -> &[u8] {
        &self.data[..usize::from(self.count)]
    }

    fn parse(bytes: &[u8; ONE]) -> Result<WriteOne, Malformed> {
        let mut fields = Fields::of(bytes, ONE)?;
        let (offset, region, count) = (fields.u64()?, fields.u32()?, fields.u32()?);
        let Ok(count @ ..=8) = u8::try_from(count) else {
            return Err(Malformed::Value {
                field: "count of a write in VFIO_USER_REGION_WRITE_MULTI",
                value: count.into(),
            });
        };
        Ok(WriteOne { offset, region, count, data: fields.u64()?.to_ne_bytes() })
    }

    fn to_bytes(self) -> [u8; ONE] {
        let mut bytes = [0; ONE];
        bytes[..8].copy_from_slice(&self.offset.to_ne_bytes());
        bytes[8..12].copy_from_slice(&self.region.to_ne_bytes());
        bytes[12..16].copy_from_slice(&u32::from(self.count).to_ne_bytes());
        bytes[16..].copy_from_slice(&self.data);
        bytes
    }
}

impl<'a> WriteMulti<'a> {
    /// Creates the payload with as many of `writes` as fit in `room`.
    pub fn new(writes: &[WriteOne], room: &'a mut [[u8; 24]]) -> WriteMulti<'a> {
        let count = writes.len().min(room.len());
        let room = &mut room[..count];
        for (write, bytes) in writes.iter().zip(room.iter_mut()) {
            *bytes = write.to_bytes();
        }
        WriteMulti { writes: room }
    }

    /// Returns the number of writes.
    pub fn len(&self) -> usize {
        self.writes.len()
    }

    /// Returns whether there are no writes.
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    /// Returns the writes in order.
    pub fn iter(&self) -> impl Iterator<Item = WriteOne> + use<'a> {
        // Each was parsed before.
        self.writes.iter().filter_map(|bytes| WriteOne::parse(bytes).ok())
    }

    /// The array may be longer than its count says, as QEMU sends it.
    pub(super) fn parse(payload: &'a [u8]) -> Result<WriteMulti<'a>, Malformed> {
        let mut fields = Fields::of(payload, 8)?;
        let count = fields.u64()?;
        let (writes, _) = fields.rest().as_chunks::<ONE>();
        let announced = usize::try_from(count).ok().and_then(|count| writes.get(..count));
        let needed = count.saturating_mul(ONE as u64).saturating_add(8);
        let writes = announced.ok_or(Malformed::Short { needed, found: payload.len() })?;
        for write in writes {
            WriteOne::parse(write)?;
        }
        Ok(WriteMulti { writes })
    }

    pub(super) fn put(&self, out: &mut MessageBuffer) {
        out.put_u64(self.writes.len() as u64);
        out.put(self.writes.as_flattened());
    }
}

impl std::fmt::Debug for WriteMulti<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}
