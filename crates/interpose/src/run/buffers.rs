//! The buffers of a read or write: one, or several that a list of the program names.

use whimbrel_device::Errno;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use super::caller::TaskCaller;

/// Bytes of one access to a region, or of one read or write of a stream. A call for more is answered for as many.
const MAX_ACCESS: usize = 4 << 20;

/// Parts of a call with several buffers (`UIO_MAXIOV`).
const MAX_PARTS: u64 = 1024;

/// No program has memory from here on.
const END_OF_ADDRESSES: u64 = 1 << 56;

/// `RWF_HIPRI`, the only flag of preadv2(2) and pwritev2(2) for a file that knows none (`include/uapi/linux/fs.h`).
const HIGH_PRIORITY: u64 = 1;

/// `struct iovec` of the program.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Part {
    address: u64,
    length: u64,
}

/// The buffers of a call: one, or the address and number of several.
#[derive(Clone, Copy)]
pub(super) enum Buffers {
    One(u64, u64),
    /// And the flags of the call.
    Several(u64, u64, u64),
}

use Buffers::{One, Several};

impl Buffers {
    /// Passes each part to `transfer`, up to the first that is not transferred whole, and returns the bytes. EINVAL for too
    /// many parts, EFAULT for a list that cannot be read.
    pub(super) fn each(
        self,
        caller: &TaskCaller<'_>,
        mut transfer: impl FnMut(u64, usize, u64) -> Result<usize, Errno>,
    ) -> Result<i64, Errno> {
        let (one, several);
        let parts: &[Part] = match self {
            One(address, length) => {
                one = [Part { address, length }];
                &one
            }
            Several(_, count, _) if count > MAX_PARTS => return Err(Errno::EINVAL),
            Several(address, count, _) => {
                let mut parts = vec![Part::new_zeroed(); count as usize];
                caller.task.read(address, parts.as_mut_bytes())?;
                several = parts;
                &several
            }
        };
        self.check(parts)?;
        let mut done = 0u64;
        if let Some(recording) = caller.recording {
            recording.asks(parts.iter().fold(0, |sum, part| sum.saturating_add(part.length)));
        }
        for Part { address, length } in parts.iter().copied() {
            let asked = usize::try_from(length).map_or(MAX_ACCESS, |length| length.min(MAX_ACCESS));
            match transfer(address, asked, done) {
                Ok(count) => {
                    done += count as u64;
                    if count as u64 != length {
                        break;
                    }
                }
                Err(_) if done > 0 => break,
                Err(errno) => return Err(errno),
            }
        }
        Ok(done.cast_signed())
    }

    /// Checks what the kernel checks before it asks the file: a negative length in a list is EINVAL, one past all memory
    /// EFAULT, and flags EOPNOTSUPP where there are bytes.
    fn check(self, parts: &[Part]) -> Result<(), Errno> {
        if matches!(self, Several(..)) && parts.iter().any(|part| part.length.cast_signed() < 0) {
            return Err(Errno::EINVAL);
        }
        let ends =
            |part: &Part| part.address.checked_add(part.length).is_some_and(|end| end <= END_OF_ADDRESSES);
        if !parts.iter().all(ends) {
            return Err(Errno::EFAULT);
        }
        let has_bytes = parts.iter().any(|part| part.length > 0);
        match self {
            Several(.., flags) if has_bytes && flags & !HIGH_PRIORITY != 0 => Err(Errno::EOPNOTSUPP),
            _ => Ok(()),
        }
    }
}
