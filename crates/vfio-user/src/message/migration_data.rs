//! VFIO_USER_MIG_DATA_READ and VFIO_USER_MIG_DATA_WRITE: a device's state as a stream.

use super::fields::{Fields, check_count};
use super::{Limits, Malformed, MessageBuffer};

const FIXED: u32 = 8;

/// Bytes asked for.
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

/// Data of a request to write, or of a reply to read. `argsz` says nothing that the message does not.
pub(super) fn parse_data(payload: &[u8], limits: Limits) -> Result<&[u8], Malformed> {
    let mut fields = Fields::of(payload, FIXED as usize)?;
    fields.u32()?;
    let size = fields.u32()?;
    fields.data(size.into(), limits.max_data_xfer_size)
}

pub(super) fn put_data(data: &[u8], out: &mut MessageBuffer) {
    out.put_u32(FIXED + data.len() as u32);
    out.put_u32(data.len() as u32);
    out.put(data);
}
