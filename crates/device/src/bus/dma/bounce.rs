//! Access to remote memory through a bounce buffer.

use std::time::Instant;

use whimbrel_memory::{RemoteMemory, SharedBytes};
use whimbrel_protocol::Errno;

use super::fault::Access;

/// Size of the bounce buffer in bytes.
const BOUNCE_BYTES: usize = 64 << 10;

/// Bytes of remote memory.
pub(super) struct RemotePiece<'a> {
    pub(super) memory: &'a dyn RemoteMemory,
    /// The first address.
    pub(super) iova: u64,
    pub(super) count: usize,
    pub(super) deadline: Instant,
}

/// Visits remote memory through the bounce buffer.
pub(super) fn bounce(
    piece: RemotePiece<'_>,
    access: Access,
    visit: &mut impl FnMut(SharedBytes<'_>),
) -> Result<(), Errno> {
    let RemotePiece { memory, mut iova, count, deadline } = piece;
    let mut buffer = vec![0; count.min(BOUNCE_BYTES)];
    let mut left = count;
    while left > 0 {
        let copy = &mut buffer[..left.min(BOUNCE_BYTES)];
        match access {
            Access::Read => {
                memory.read(iova, copy, deadline)?;
                visit(SharedBytes::from(&mut *copy));
            }
            Access::Write => {
                copy.fill(0);
                visit(SharedBytes::from(&mut *copy));
                memory.write(iova, copy, deadline)?;
            }
        }
        left -= copy.len();
        // Only behind the last byte of all this is 2^64.
        iova = iova.wrapping_add(copy.len() as u64);
    }
    Ok(())
}
