//! Raw files: the driver's own bytes.

use std::io::{self, Read, Write};

use whimbrel_user::{DataFile, SavingRead};

use super::cancel::{unread, unwritten};
use crate::error::Error;
use crate::proto::frame::CHUNK;

/// Writes all bytes of a device, tells `wrote` how many after each write, and returns their number.
pub(super) fn write(
    data: &mut DataFile,
    output: &mut impl Write,
    wrote: &mut dyn FnMut(u64),
) -> Result<u64, Error> {
    let mut total = 0;
    let mut chunk = vec![0; CHUNK];
    while let SavingRead::Data(count) = data.read(&mut chunk)? {
        output.write_all(&chunk[..count]).map_err(unwritten)?;
        total += count as u64;
        wrote(count as u64);
    }
    output.flush().map_err(unwritten)?;
    Ok(total)
}

/// Passes all bytes of the input to a device, and returns their number.
pub(super) fn read(data: &mut DataFile, input: &mut impl Read) -> Result<u64, Error> {
    let mut total = 0;
    let mut chunk = vec![0; CHUNK];
    loop {
        match input.read(&mut chunk) {
            Ok(0) => return Ok(total),
            Ok(count) => {
                data.write_all(&chunk[..count])?;
                total += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(unread(error)),
        }
    }
}
