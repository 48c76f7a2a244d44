//! Reads and writes that go straight between the image and the host's memory, where that takes no waiting: the memory is
//! this process's own, and the image's blocks are in the page cache.
//!
//! Everything else goes through a buffer, by the engine; so does what fails here, and gets its status there. A command
//! that has ended here was never in flight.

use std::fs::File;

use whimbrel_device::dma::{Access, DmaAccess, DmaSpace};

use super::Nvme;
use super::io::DirectTransfer;
use super::prp::{PrpStep, PrpWalk};

/// The transfers that went straight.
#[derive(Debug, Default)]
pub(super) struct Direct {
    /// Bytes since the last call of [`Direct::take_moved`].
    moved: usize,
    /// The image's file system cannot read or write without waiting.
    cannot_read: bool,
    cannot_write: bool,
}

impl Direct {
    /// Returns the number of bytes moved since the last call.
    pub(super) fn take_moved(&mut self) -> usize {
        std::mem::take(&mut self.moved)
    }

    /// Makes a transfer. Returns whether all of it was done.
    fn transfer(&mut self, dma: &DmaSpace, image: &File, transfer: &DirectTransfer) -> bool {
        let DirectTransfer { access, offset, bytes, .. } = *transfer;
        let cannot = match access {
            Access::Write => &mut self.cannot_read,
            Access::Read => &mut self.cannot_write,
        };
        if *cannot {
            return false;
        }
        let Some(ranges) = ranges(dma, transfer) else { return false };
        match dma.transfer_now(image, offset, &ranges, access) {
            Some(Ok(moved)) => {
                self.moved += moved;
                moved as u64 == bytes
            }
            Some(Err(error)) => {
                *cannot = error.raw_os_error() == Some(libc::EOPNOTSUPP);
                false
            }
            None => false,
        }
    }
}

/// Returns the ranges of memory that a command's PRPs name; `None` if they are invalid, or their lists are not in memory of
/// this process.
fn ranges(dma: &DmaSpace, transfer: &DirectTransfer) -> Option<Vec<(u64, u64)>> {
    let mut walk = PrpWalk::new(transfer.prp1, transfer.prp2, transfer.bytes).ok()?;
    let mut ranges = Vec::new();
    loop {
        match walk.step() {
            PrpStep::End => return Some(ranges),
            PrpStep::Data(piece) => ranges.push((piece.address, piece.bytes)),
            PrpStep::List(piece) => {
                let mut list = DmaAccess::read(piece.address, vec![0; piece.bytes as usize]);
                dma.access_now(&mut list)?.ok()?;
                walk.take_list(&list.data).ok()?;
            }
        }
    }
}

impl Nvme {
    /// Makes a command's transfer, if it can go straight. Returns whether the command has succeeded.
    pub(super) fn transfer_directly(&mut self, transfer: &DirectTransfer) -> bool {
        // Operations that wait for those that were abandoned must not be overtaken either.
        if !self.image.takes_operations() || self.own_image().is_err() {
            return false;
        }
        let Some(dma) = self.function.dma() else { return false };
        // Part of a write may be done also if it is not whole.
        self.is_unflushed |= transfer.access == Access::Read;
        self.direct.transfer(dma, self.image.file(), transfer)
    }
}
