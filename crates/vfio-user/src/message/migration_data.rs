//! VFIO_USER_MIG_DATA_READ and VFIO_USER_MIG_DATA_WRITE, a device's state as a stream, and
//! VFIO_USER_MIG_GET_PRECOPY_INFO, the amount that can be read before the device stops.

use whimbrel_uapi::migration::PrecopyInfo;

use super::fields::{Fields, check_count};
#[cfg(feature = "client")]
use super::{HEADER, Header};
use super::{Limits, Malformed, MessageBuffer};

const FIXED: u32 = 8;

/// Parses the number of bytes requested.
pub(super) fn parse_read(payload: &[u8], limits: Limits) -> Result<u32, Malformed> {
    let mut fields = Fields::of(payload, FIXED as usize)?;
    let argsz = fields.argsz(u64::from(FIXED))?;
    let size = fields.u32()?;
    check_count(size.into(), limits.max_data_xfer_size)?;
    let least = u64::from(FIXED) + u64::from(size);
    if u64::from(argsz) < least { Err(Malformed::Argsz { argsz, least }) } else { Ok(size) }
}

pub(super) fn put_read(size: u32, out: &mut MessageBuffer) {
    out.put_u32(size.saturating_add(FIXED));
    out.put_u32(size);
}

/// Parses the data of a write request. `argsz` adds nothing to the size of the message.
pub(super) fn parse_data(payload: &[u8], limits: Limits) -> Result<&[u8], Malformed> {
    let mut fields = Fields::of(payload, FIXED as usize)?;
    fields.u32()?;
    let size = fields.u32()?;
    fields.data(size.into(), limits.max_data_xfer_size)
}

/// Parses the data of a read reply: as many bytes as its size says. Servers such as libvfio-user that reserve room
/// for the full request send more bytes after them.
pub(super) fn parse_read_data(payload: &[u8], limits: Limits) -> Result<&[u8], Malformed> {
    let mut fields = Fields::of(payload, FIXED as usize)?;
    fields.u32()?;
    let size = fields.u32()?;
    check_count(size.into(), limits.max_data_xfer_size)?;
    let data = fields.rest();
    let meant = data.get(..size as usize);
    meant.ok_or(Malformed::Count { count: size.into(), found: data.len() })
}

pub(super) fn put_data(data: &[u8], out: &mut MessageBuffer) {
    out.put_u32(FIXED + data.len() as u32);
    out.put_u32(data.len() as u32);
    out.put(data);
}

/// The bytes before the data of a message that carries state, for senders that do not copy the data.
#[cfg(feature = "client")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DataHead {
    /// The message's header; its size is that of the whole message.
    pub(crate) header: Header,
}

#[cfg(feature = "client")]
impl DataHead {
    /// Size in bytes.
    pub(crate) const SIZE: usize = HEADER + FIXED as usize;

    /// Creates the head of a message with `data` bytes of data.
    pub(crate) fn of(header: Header, data: u32) -> DataHead {
        DataHead { header: Header { size: (Self::SIZE as u32).saturating_add(data), ..header } }
    }

    pub(crate) fn to_bytes(self) -> [u8; Self::SIZE] {
        let data = self.header.size.saturating_sub(Self::SIZE as u32);
        let mut bytes = [0; Self::SIZE];
        bytes[..HEADER].copy_from_slice(&self.header.to_bytes());
        bytes[HEADER..HEADER + 4].copy_from_slice(&data.saturating_add(FIXED).to_ne_bytes());
        bytes[HEADER + 4..].copy_from_slice(&data.to_ne_bytes());
        bytes
    }

    /// Parses the bytes between a header and the `data` bytes that follow, and returns how many of those are valid,
    /// as in [`parse_read_data`].
    pub(crate) fn meant(fixed: [u8; FIXED as usize], data: usize) -> Result<usize, Malformed> {
        let [_, _, _, _, a, b, c, d] = fixed;
        let size = u32::from_ne_bytes([a, b, c, d]);
        match usize::try_from(size) {
            Ok(meant) if meant <= data => Ok(meant),
            _ => Err(Malformed::Count { count: size.into(), found: data }),
        }
    }
}

/// Parses `struct vfio_precopy_info`.
pub(super) fn parse_precopy_info(payload: &[u8]) -> Result<PrecopyInfo, Malformed> {
    let mut fields = Fields::of(payload, size_of::<PrecopyInfo>())?;
    Ok(PrecopyInfo {
        argsz: fields.u32()?,
        flags: fields.u32()?,
        initial_bytes: fields.u64()?,
        dirty_bytes: fields.u64()?,
    })
}

pub(super) fn put_precopy_info(info: &PrecopyInfo, out: &mut MessageBuffer) {
    out.put_u32(info.argsz);
    out.put_u32(info.flags);
    out.put_u64(info.initial_bytes);
    out.put_u64(info.dirty_bytes);
}
