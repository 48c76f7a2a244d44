//! Commands of the NVM command set: their checks, and the operations on the image that they ask for. No I/O.

use whimbrel_device::dma::Access;
use zerocopy::{FromBytes, Immutable, KnownLayout};

use super::command::{Status, SubmissionEntry, nvm};
use super::controller::Controller;
use super::image::{BLOCK_BYTES, Operation};
use super::limits::{Limits, MAX_TRANSFER_BYTES, NAMESPACE};
use super::outcome::Outcome;

/// FUA in dword 12.
const FORCE_UNIT_ACCESS: u32 = 1 << 30;
/// DEAC in dword 12 of write zeroes.
const DEALLOCATE: u32 = 1 << 25;
/// AD in dword 11 of dataset management.
const ATTRIBUTE_DEALLOCATE: u32 = 1 << 2;

/// A range of dataset management.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout)]
struct Range {
    attributes: u32,
    blocks: u32,
    start: u64,
}

/// A read or write whose data may go straight between the image and memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DirectTransfer {
    /// Of memory, by the device.
    pub(super) access: Access,
    /// Offset in bytes in the image.
    pub(super) offset: u64,
    pub(super) bytes: u64,
    pub(super) prp1: u64,
    pub(super) prp2: u64,
}

/// Returns the transfer that a command consists of; `None` if it is another command, an invalid one, or one with something
/// to flush.
pub(super) fn direct_transfer(controller: &Controller, entry: &SubmissionEntry) -> Option<DirectTransfer> {
    check(entry).ok()?;
    let limits = &controller.limits;
    let is_forced = entry.dword12 & FORCE_UNIT_ACCESS != 0;
    let access = match entry.opcode {
        nvm::READ if !is_forced => Access::Write,
        nvm::WRITE if !is_forced && controller.features.write_cache && !limits.is_read_only => Access::Read,
        _ => return None,
    };
    let (offset, bytes) = transfer(limits, entry).ok()?;
    Some(DirectTransfer { access, offset, bytes, prp1: entry.prp1, prp2: entry.prp2 })
}

/// Checks what all I/O commands have in common.
fn check(entry: &SubmissionEntry) -> Result<(), Status> {
    if !nvm::ALL.iter().any(|(opcode, _)| *opcode == entry.opcode) {
        return Err(Status::INVALID_OPCODE);
    }
    entry.check_flags()?;
    let is_broadcast = entry.opcode == nvm::FLUSH && entry.namespace == u32::MAX;
    if entry.namespace != NAMESPACE && !is_broadcast {
        return Err(Status::INVALID_NAMESPACE);
    }
    Ok(())
}

/// Executes an I/O command.
pub(super) fn execute(controller: &mut Controller, entry: &SubmissionEntry) -> Result<Outcome, Status> {
    check(entry)?;
    let limits = &controller.limits;
    let is_forced = entry.dword12 & FORCE_UNIT_ACCESS != 0;
    let is_durable = is_forced || !controller.features.write_cache;
    match entry.opcode {
        nvm::FLUSH => Ok(Outcome::Image(Operation::Flush)),
        nvm::READ => {
            let (offset, length) = transfer(limits, entry)?;
            let data = vec![0; length as usize];
            Ok(Outcome::Image(Operation::Read { offset, data, durable: is_forced }))
        }
        nvm::WRITE => {
            check_writable(limits)?;
            let (_, bytes) = transfer(limits, entry)?;
            Ok(Outcome::FromHost { bytes })
        }
        nvm::WRITE_ZEROES => {
            check_writable(limits)?;
            let (offset, length) = range(limits, entry.start(), blocks(entry))?;
            let deallocate = entry.dword12 & DEALLOCATE != 0;
            Ok(Outcome::Image(Operation::Zero { offset, length, deallocate, durable: is_durable }))
        }
        _ => {
            check_writable(limits)?;
            let ranges = u64::from(entry.dword10 & 0xff) + 1;
            Ok(Outcome::FromHost { bytes: ranges * size_of::<Range>() as u64 })
        }
    }
}

/// Continues a command whose data has arrived.
pub(super) fn take_data(
    controller: &mut Controller,
    entry: &SubmissionEntry,
    data: Vec<u8>,
) -> Result<Outcome, Status> {
    let limits = &controller.limits;
    let durable = entry.dword12 & FORCE_UNIT_ACCESS != 0 || !controller.features.write_cache;
    if entry.opcode == nvm::WRITE {
        let (offset, _) = transfer(limits, entry)?;
        return Ok(Outcome::Image(Operation::Write { offset, data, durable }));
    }
    let mut ranges = Vec::new();
    for bytes in data.chunks_exact(size_of::<Range>()) {
        let named = Range::read_from_bytes(bytes).map_err(|_| Status::INTERNAL_ERROR)?;
        if named.blocks > 0 {
            ranges.push(range(limits, named.start, named.blocks.into())?);
        }
    }
    // The other attributes are hints that nothing follows from.
    if entry.dword11 & ATTRIBUTE_DEALLOCATE == 0 || ranges.is_empty() {
        return Ok(Outcome::Complete(0));
    }
    Ok(Outcome::Image(Operation::Deallocate(ranges)))
}

/// Counts a command that has succeeded, for the health log.
pub(super) fn count(controller: &mut Controller, entry: &SubmissionEntry) {
    let health = &mut controller.health;
    let blocks = blocks(entry);
    match entry.opcode {
        nvm::READ => {
            health.reads = health.reads.wrapping_add(1);
            health.read_blocks = health.read_blocks.wrapping_add(blocks);
        }
        nvm::WRITE => {
            health.writes = health.writes.wrapping_add(1);
            health.written_blocks = health.written_blocks.wrapping_add(blocks);
        }
        _ => {}
    }
}

fn check_writable(limits: &Limits) -> Result<(), Status> {
    if limits.is_read_only { Err(Status::WRITE_PROTECTED) } else { Ok(()) }
}

/// Returns the number of blocks in dword 12.
fn blocks(entry: &SubmissionEntry) -> u64 {
    u64::from(entry.dword12 & 0xffff) + 1
}

/// Returns offset and length in bytes of a read's or write's data.
fn transfer(limits: &Limits, entry: &SubmissionEntry) -> Result<(u64, u64), Status> {
    let blocks = blocks(entry);
    if blocks * BLOCK_BYTES > MAX_TRANSFER_BYTES {
        return Err(Status::INVALID_FIELD);
    }
    range(limits, entry.start(), blocks)
}

/// Returns offset and length in bytes of a range of blocks.
fn range(limits: &Limits, start: u64, blocks: u64) -> Result<(u64, u64), Status> {
    let end = start.checked_add(blocks).ok_or(Status::LBA_OUT_OF_RANGE)?;
    if end > limits.blocks {
        return Err(Status::LBA_OUT_OF_RANGE);
    }
    Ok((start * BLOCK_BYTES, blocks * BLOCK_BYTES))
}
