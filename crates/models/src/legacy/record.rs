//! The records in the region's transactions, one per transaction.

use whimbrel_device::Errno;
use zerocopy::byteorder::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The magic number of every record.
pub const MAGIC: u32 = u32::from_le_bytes(*b"LGC1");

/// Size of the record header in bytes.
pub const HEAD_BYTES: usize = size_of::<Head>();

#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
struct Head {
    magic: U32,
    number: U32,
    bytes: U32,
    reserved: U32,
}

/// A session's position in the sequence of records.
#[derive(Debug, Default)]
pub(super) struct Records {
    next: u32,
}

impl Records {
    /// Writes the next record into `buffer`, with the state that `read` returns. Returns 0 if `read` returns no state.
    pub(super) fn save(
        &mut self,
        buffer: &mut [u8],
        mut read: impl FnMut(&mut [u8]) -> Result<usize, Errno>,
    ) -> Result<usize, Errno> {
        let (head, state) = buffer.split_at_mut_checked(HEAD_BYTES).ok_or(Errno::EINVAL)?;
        let count = read(state)?;
        if count == 0 {
            return Ok(0);
        }
        let bytes = u32::try_from(count).map_err(|_| Errno::EOVERFLOW)?;
        let new =
            Head { magic: MAGIC.into(), number: self.next.into(), bytes: bytes.into(), reserved: 0.into() };
        head.copy_from_slice(new.as_bytes());
        self.next = self.next.wrapping_add(1);
        Ok(HEAD_BYTES + count)
    }

    /// Returns the state in a record. Fails with EINVAL for anything but the next whole record.
    pub(super) fn load<'a>(&mut self, record: &'a [u8]) -> Result<&'a [u8], Errno> {
        let (head, state) = Head::ref_from_prefix(record).map_err(|_| Errno::EINVAL)?;
        let fits = head.magic == MAGIC
            && head.number == self.next
            && u64::from(head.bytes) == state.len() as u64
            && head.reserved == 0
            && !state.is_empty();
        if !fits {
            return Err(Errno::EINVAL);
        }
        self.next = self.next.wrapping_add(1);
        Ok(state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saved(records: &mut Records, state: &[u8], room: usize) -> Vec<u8> {
        let mut buffer = vec![0; room];
        let count = records.save(&mut buffer, |out| {
            out[..state.len()].copy_from_slice(state);
            Ok(state.len())
        });
        buffer.truncate(count.unwrap());
        buffer
    }

    #[test]
    fn a_record_is_laid_out_as_documented() {
        let mut records = Records::default();
        saved(&mut records, b"first", 64);
        let second = saved(&mut records, b"second", 64);
        assert_eq!(second, b"LGC1\x01\0\0\0\x06\0\0\0\0\0\0\0second");
    }

    #[test]
    fn records_load_in_the_order_they_were_saved() {
        let mut from = Records::default();
        let (first, second) = (saved(&mut from, b"one", 64), saved(&mut from, b"two", 64));
        let mut to = Records::default();
        assert_eq!(to.load(&second), Err(Errno::EINVAL), "not yet");
        assert_eq!(to.load(&first), Ok(&b"one"[..]));
        assert_eq!(to.load(&first), Err(Errno::EINVAL), "again");
        assert_eq!(to.load(&second), Ok(&b"two"[..]));
    }

    #[test]
    fn no_state_is_no_record() {
        let mut records = Records::default();
        assert_eq!(saved(&mut records, b"", 64), b"");
        assert_eq!(saved(&mut records, b"x", 64)[4], 0, "and takes no number");
    }

    #[test]
    fn what_is_not_the_record_as_a_whole_is_refused() {
        let good = saved(&mut Records::default(), b"state", 64);
        let changed = |at: usize| {
            let mut bytes = good.clone();
            bytes[at] ^= 1;
            bytes
        };
        let longer = [&good[..], b"x"].concat();
        let cases = [&good[..good.len() - 1], &good[..16], &good[..7], &[], &longer];
        let flipped: Vec<Vec<u8>> = [0, 4, 8, 12].map(changed).into();
        for bytes in cases.into_iter().chain(flipped.iter().map(Vec::as_slice)) {
            assert_eq!(Records::default().load(bytes), Err(Errno::EINVAL), "{bytes:?}");
        }
    }
}
