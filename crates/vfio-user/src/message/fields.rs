//! Reads the fields of a payload one after the other.

use super::Malformed;

/// The unread rest of a payload.
pub(super) struct Fields<'a> {
    bytes: &'a [u8],
}

impl<'a> Fields<'a> {
    /// Reads the fields of a payload whose fixed part has at least `least` bytes.
    pub(super) fn of(payload: &'a [u8], least: usize) -> Result<Fields<'a>, Malformed> {
        if payload.len() < least {
            return Err(Malformed::Short { needed: least as u64, found: payload.len() });
        }
        Ok(Fields { bytes: payload })
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let Some((taken, rest)) = self.bytes.split_first_chunk::<N>() else {
            return Err(Malformed::Short { needed: N as u64, found: self.bytes.len() });
        };
        self.bytes = rest;
        Ok(*taken)
    }

    pub(super) fn u16(&mut self) -> Result<u16, Malformed> {
        self.take().map(u16::from_ne_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Malformed> {
        self.take().map(u32::from_ne_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Malformed> {
        self.take().map(u64::from_ne_bytes)
    }

    /// Reads `argsz`, which must be at least `least`.
    pub(super) fn argsz(&mut self, least: u64) -> Result<u32, Malformed> {
        let argsz = self.u32()?;
        if u64::from(argsz) < least { Err(Malformed::Argsz { argsz, least }) } else { Ok(argsz) }
    }

    /// Returns the unread rest.
    pub(super) fn rest(self) -> &'a [u8] {
        self.bytes
    }

    /// Returns the unread rest, which must be `count` bytes of data and within the agreed limit.
    pub(super) fn data(self, count: u64, most: u32) -> Result<&'a [u8], Malformed> {
        check_count(count, most)?;
        if count != self.bytes.len() as u64 {
            return Err(Malformed::Count { count, found: self.bytes.len() });
        }
        Ok(self.bytes)
    }
}

/// Refuses a transfer that is larger than the agreed limit.
pub(super) fn check_count(count: u64, most: u32) -> Result<(), Malformed> {
    if count > u64::from(most) { Err(Malformed::TooMuch { count, most }) } else { Ok(()) }
}
