//! The trace of raw requests: each in one line at trace level, with its reply.

use tracing::Level;
use whimbrel_protocol::Errno;
use whimbrel_uapi::decode::{Call, File};
use whimbrel_uapi::ioctl::{VFIO_CHECK_EXTENSION, VFIO_SET_IOMMU};

use super::process::Process;

/// Maximum bytes of an argument in the trace.
const SHOWN: usize = 512;

/// Executes a request, and traces it if the trace is enabled. The argument of a traced request is read once more,
/// before its execution.
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

/// Returns the readable bytes of the argument, up to its claimed size; for requests that take a number, the number
/// itself.
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
