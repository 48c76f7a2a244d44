//! Shows raw requests in the log: at trace level, each in one line, as it was made and what it answered.

use tracing::Level;
use whimbrel_protocol::Errno;
use whimbrel_uapi::decode::{Call, File};
use whimbrel_uapi::ioctl::{VFIO_CHECK_EXTENSION, VFIO_SET_IOMMU};

use super::process::Process;

/// Bytes of an argument that are shown at most.
const SHOWN: usize = 512;

/// Executes a request, and shows it if anybody looks. A request that is shown has its argument read once more, before
/// it is executed.
pub(crate) fn traced<P: Process + ?Sized>(
    file: File,
    name: &str,
    (number, argument): (u32, u64),
    process: &mut P,
    execute: impl FnOnce(&mut P) -> Result<i32, Errno>,
) -> Result<i32, Errno> {
    if !tracing::enabled!(Level::TRACE) {
        return execute(process);
    }
    let bytes = argument_bytes(number, argument, process);
    let call = Call::new(file, number, &bytes);
    let result = execute(process);
    match result {
        Ok(value) => tracing::trace!("{name}: {call} = {value}"),
        Err(errno) => tracing::trace!("{name}: {call} = {errno:?}"),
    }
    result
}

/// Returns the bytes that the argument points to, as many as it claims and as can be read; for requests that take a
/// number, the number itself.
fn argument_bytes<P: Process + ?Sized>(number: u32, argument: u64, process: &P) -> Vec<u8> {
    if number == VFIO_CHECK_EXTENSION.number() || number == VFIO_SET_IOMMU.number() {
        return argument.to_ne_bytes().to_vec();
    }
    let mut head = [0; 4];
    if process.read(argument, &mut head).is_err() {
        return Vec::new();
    }
    // Most structures begin with their size. Of the others the first bytes are all that is taken for sure.
    let size = (u32::from_ne_bytes(head) as usize).clamp(head.len(), SHOWN);
    let mut bytes = vec![0; size];
    match process.read(argument, &mut bytes) {
        Ok(()) => bytes,
        Err(_) => head.to_vec(),
    }
}
