//! The data of a session: reads, writes and queries, over the command socket or the session's own.

use whimbrel_device::{DataFile, Errno};
use whimbrel_uapi::ioctl::VFIO_MIG_GET_PRECOPY_INFO;
use whimbrel_uapi::migration::PrecopyInfo;
use zerocopy::IntoBytes;

use super::process::Caller;
use crate::message::{Command, Kind, MessageBuffer, Reply};
use crate::server::hidden_precopy::HiddenPrecopy;

/// Reads up to `size` bytes from the driver, directly into the reply.
///
/// In the plain protocol a short read means the end, permanently or for now. With `read_end` only an empty read means
/// the permanent end, and ENOMSG is the end for now.
pub(super) fn read(
    data_file: &DataFile,
    read_end: bool,
    id: u16,
    size: u32,
    out: &mut MessageBuffer,
) -> Result<(), Errno> {
    let message = out.begin(id, Command::MigDataRead.number(), Kind::Reply);
    out.put(&[0; 8]);
    let room = out.grow(size as usize);
    let mut filled = 0;
    // A read of nothing is judged too.
    loop {
        match data_file.read(&mut room[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(Errno::ENOMSG) if !read_end => break,
            // What was read is given out, and the next read is told.
            Err(_) if read_end && filled > 0 => break,
            Err(errno) => return Err(errno),
        }
        if filled == room.len() {
            break;
        }
    }
    out.shrink(size as usize - filled);
    out.patch_u32(&message, 0, 8 + filled as u32);
    out.patch_u32(&message, 4, filled as u32);
    out.finish(message);
    Ok(())
}

pub(super) fn write(
    data_file: &DataFile,
    id: u16,
    mut data: &[u8],
    out: &mut MessageBuffer,
) -> Result<(), Errno> {
    // A write of nothing is judged too.
    loop {
        let taken = data_file.write(data)?;
        data = &data[taken.min(data.len())..];
        match (data.is_empty(), taken) {
            (true, _) => break,
            // Nothing would ever change.
            (false, 0) => return Err(Errno::EIO),
            (false, _) => {}
        }
    }
    out.reply(id, &Reply::MigDataWrite);
    Ok(())
}

/// VFIO_MIG_GET_PRECOPY_INFO, checked by the data file itself. Of a device whose pre-copy is a takeover's, which the client
/// does not see, the answer is that of one in RUNNING.
pub(super) fn precopy_info(
    data_file: &DataFile,
    hidden: &HiddenPrecopy,
    id: u16,
    asked: &PrecopyInfo,
    out: &mut MessageBuffer,
) -> Result<(), Errno> {
    let mut caller = Caller { memory: asked.as_bytes().to_vec(), ..Caller::default() };
    match data_file.ioctl(VFIO_MIG_GET_PRECOPY_INFO.number(), 0, &mut caller) {
        // The session of this file is over in any case.
        Err(Errno::ENODEV) if hidden.is_on() => return Err(Errno::EINVAL),
        other => other?,
    };
    let message = out.begin(id, Command::MigGetPrecopyInfo.number(), Kind::Reply);
    out.put(&caller.memory);
    out.finish(message);
    Ok(())
}
