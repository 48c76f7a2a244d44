//! Log pages: errors, health, firmware slots, changed namespaces, and the effects of commands.

use std::collections::VecDeque;

use super::super::command::{Status, SubmissionEntry, admin, nvm};
use super::super::controller::Controller;
use super::super::limits::{MAX_TRANSFER_BYTES, NAMESPACE};
use super::super::outcome::Outcome;
use super::put;

/// Number of entries of the error log (ELPE + 1).
pub(in super::super) const MAX_ERRORS: usize = 4;
const ERROR_BYTES: usize = 64;

/// RAE in dword 10: the read does not clear the events of the page.
const RETAIN_EVENTS: u32 = 1 << 15;

/// Temperature that the controller reports, in kelvins.
pub(super) const TEMPERATURE: u16 = 313;
/// The temperature in kelvins above which the controller is too warm: the default of the host's threshold.
pub(super) const WARNING_TEMPERATURE: u16 = 343;

/// The effects of a command: it is supported, and it changes contents of blocks.
const SUPPORTED: u32 = 1;
const CHANGES_BLOCKS: u32 = 1 << 1;

/// One error, as the host sees it in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct ErrorEntry {
    /// The number of the error, from 1.
    pub(in super::super) count: u64,
    /// The submission queue; 0xffff for an error of no command.
    pub(in super::super) queue: u16,
    /// The command's identifier; 0xffff for an error of no command.
    pub(in super::super) command_id: u16,
    /// The status, without the phase tag.
    pub(in super::super) status: u16,
    /// First block of an I/O command.
    pub(in super::super) block: u64,
    pub(in super::super) namespace: u32,
}

/// The last errors, and how many there were.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in super::super) struct ErrorLog {
    /// The newest first.
    pub(in super::super) entries: VecDeque<ErrorEntry>,
    pub(in super::super) count: u64,
}

impl ErrorLog {
    /// Adds an error, whose number is set.
    pub(in super::super) fn add(&mut self, entry: ErrorEntry) {
        self.count = self.count.wrapping_add(1);
        self.entries.push_front(ErrorEntry { count: self.count, ..entry });
        self.entries.truncate(MAX_ERRORS);
    }
}

/// Counters for the health log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in super::super) struct Health {
    pub(in super::super) read_blocks: u64,
    pub(in super::super) written_blocks: u64,
    pub(in super::super) reads: u64,
    pub(in super::super) writes: u64,
    pub(in super::super) media_errors: u64,
    /// Controller resets without a shutdown before.
    pub(in super::super) unsafe_shutdowns: u64,
}

pub(super) fn get(controller: &mut Controller, entry: &SubmissionEntry) -> Result<Outcome, Status> {
    let page = entry.dword10 as u8;
    let mut data = match page {
        0x01 => errors(&controller.errors),
        // There is no health log of a namespace alone.
        0x02 if matches!(entry.namespace, 0 | u32::MAX) => health(controller),
        0x02 if entry.namespace == NAMESPACE => return Err(Status::INVALID_FIELD),
        0x02 => return Err(Status::INVALID_NAMESPACE),
        0x03 => firmware_slots(),
        0x04 => vec![0; 4096],
        0x05 => effects(),
        _ => return Err(Status::INVALID_LOG_PAGE),
    };
    let dwords = u64::from(entry.dword11 & 0xffff) << 16 | u64::from(entry.dword10 >> 16);
    let bytes = (dwords + 1) * 4;
    let offset = u64::from(entry.dword13) << 32 | u64::from(entry.dword12);
    if bytes > MAX_TRANSFER_BYTES || !offset.is_multiple_of(4) || offset > data.len() as u64 {
        return Err(Status::INVALID_FIELD);
    }
    if entry.dword10 & RETAIN_EVENTS == 0 {
        controller.events.log_read(page);
    }
    data.drain(..offset as usize);
    // What is read past the end of a page is undefined: zeros.
    data.resize(bytes as usize, 0);
    Ok(Outcome::ToHost(data))
}

fn errors(log: &ErrorLog) -> Vec<u8> {
    let mut data = vec![0; MAX_ERRORS * ERROR_BYTES];
    for (entry, room) in log.entries.iter().zip(data.chunks_mut(ERROR_BYTES)) {
        put(room, 0, &entry.count.to_le_bytes());
        put(room, 8, &entry.queue.to_le_bytes());
        put(room, 10, &entry.command_id.to_le_bytes());
        put(room, 12, &(entry.status << 1).to_le_bytes());
        // The error is not that of a certain field.
        put(room, 14, &u16::MAX.to_le_bytes());
        put(room, 16, &entry.block.to_le_bytes());
        put(room, 24, &entry.namespace.to_le_bytes());
    }
    data
}

fn health(controller: &Controller) -> Vec<u8> {
    let Health { read_blocks, written_blocks, reads, writes, media_errors, unsafe_shutdowns } =
        controller.health;
    let mut data = vec![0; 512];
    data[0] = u8::from(controller.features.temperature_is_critical()) << 1;
    put(&mut data, 1, &TEMPERATURE.to_le_bytes());
    data[3] = 100;
    data[4] = 10;
    let counters = [
        (32, read_blocks.div_ceil(1000)),
        (48, written_blocks.div_ceil(1000)),
        (64, reads),
        (80, writes),
        (112, 1),
        (144, unsafe_shutdowns),
        (160, media_errors),
        (176, controller.errors.count),
    ];
    for (at, value) in counters {
        put(&mut data, at, &value.to_le_bytes());
    }
    put(&mut data, 200, &TEMPERATURE.to_le_bytes());
    data
}

fn firmware_slots() -> Vec<u8> {
    let mut data = vec![0; 512];
    // Slot 1 is active.
    data[0] = 1;
    put(&mut data, 8, b"1.0     ");
    data
}

fn effects() -> Vec<u8> {
    let mut data = vec![0; 4096];
    for opcode in admin::ALL {
        put(&mut data, usize::from(opcode) * 4, &SUPPORTED.to_le_bytes());
    }
    for (opcode, changes) in nvm::ALL {
        let effects = if changes { SUPPORTED | CHANGES_BLOCKS } else { SUPPORTED };
        put(&mut data, 1024 + usize::from(opcode) * 4, &effects.to_le_bytes());
    }
    data
}
