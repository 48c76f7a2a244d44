//! The structure of one request in the caller's memory: its size is checked, then it is copied in and out.

use whimbrel_protocol::Errno;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use super::Caller;
use crate::raw::process::Process;

/// Bytes processed per step.
const CHUNK: usize = 4096;

pub(super) struct Command<'a> {
    pub(super) caller: &'a mut dyn Caller,
    argument: u64,
    size: u32,
}

impl<'a> Command<'a> {
    /// Reads the size of the user's structure. EFAULT; EINVAL below `least`.
    pub(super) fn begin(
        caller: &'a mut dyn Caller,
        argument: u64,
        least: usize,
    ) -> Result<Command<'a>, Errno> {
        let mut size = [0; 4];
        caller.read(argument, &mut size)?;
        let size = u32::from_ne_bytes(size);
        if (size as usize) < least {
            return Err(Errno::EINVAL);
        }
        Ok(Command { caller, argument, size })
    }

    /// Returns the structure; fields missing at its end are 0. E2BIG if the user's structure has non-zero bytes past
    /// it.
    pub(super) fn copy_in<T: FromBytes + FromZeros + IntoBytes>(&self) -> Result<T, Errno> {
        copy_struct_from_user(self.caller, self.argument, self.size)
    }

    /// Copies the structure back, up to the user's size.
    pub(super) fn respond<T: IntoBytes + Immutable>(&mut self, value: &T) -> Result<(), Errno> {
        let bytes = value.as_bytes();
        let length = bytes.len().min(self.size as usize);
        Ok(self.caller.write(self.argument, &bytes[..length])?)
    }

    /// Copies one field back.
    pub(super) fn respond_at<T: IntoBytes + Immutable>(
        &mut self,
        offset: usize,
        value: &T,
    ) -> Result<(), Errno> {
        self.write_at(self.argument.wrapping_add(offset as u64), value)
    }

    /// Writes a value elsewhere in the caller's memory.
    pub(super) fn write_at<T: IntoBytes + Immutable>(
        &mut self,
        address: u64,
        value: &T,
    ) -> Result<(), Errno> {
        Ok(self.caller.write(address, value.as_bytes())?)
    }

    /// Reads a value elsewhere in the caller's memory.
    pub(super) fn read_at<T: FromBytes + FromZeros + IntoBytes>(&self, address: u64) -> Result<T, Errno> {
        let mut value = T::new_zeroed();
        self.caller.read(address, value.as_mut_bytes())?;
        Ok(value)
    }

    /// Writes `length` zeros elsewhere in the caller's memory.
    pub(super) fn clear(&mut self, mut address: u64, length: u32) -> Result<(), Errno> {
        let mut left = length as usize;
        while left > 0 {
            let count = left.min(CHUNK);
            self.caller.write(address, &[0; CHUNK][..count])?;
            address = address.wrapping_add(count as u64);
            left -= count;
        }
        Ok(())
    }
}

/// Reads a structure of which the user has `size` bytes (`copy_struct_from_user()` in the kernel): missing bytes are 0;
/// bytes past the known structure must be 0, else E2BIG.
pub(crate) fn copy_struct_from_user<T: FromBytes + FromZeros + IntoBytes>(
    process: &(impl Process + ?Sized),
    address: u64,
    size: u32,
) -> Result<T, Errno> {
    let mut value = T::new_zeroed();
    let known = size_of::<T>();
    let size = size as usize;
    let mut at = known;
    let mut chunk = [0; CHUNK];
    while at < size {
        let part = &mut chunk[..(size - at).min(CHUNK)];
        let from = address.wrapping_add(at as u64);
        if process.read(from, part).is_ok() {
            if part.iter().any(|byte| *byte != 0) {
                return Err(Errno::E2BIG);
            }
        } else {
            // What lies before the fault decides.
            for offset in 0..part.len() as u64 {
                let mut byte = [0];
                process.read(from.wrapping_add(offset), &mut byte)?;
                if byte != [0] {
                    return Err(Errno::E2BIG);
                }
            }
        }
        at += part.len();
    }
    process.read(address, &mut value.as_mut_bytes()[..known.min(size)])?;
    Ok(value)
}
