//! The engine's migration stream: its wire format.
//!
//! ```text
//! stream  = head record* final end
//! head    = magic u64, version u32, flags u32 (0), state bytes u64, block bytes u32, reserved u32 (0)
//! record  = block | zeros
//! block   = kind u32 (1), length u32, index u64, `length` bytes of data
//! zeros   = kind u32 (2), blocks u32, index u64
//! final   = kind u32 (3), length u32, reserved u64 (0), registers, counters, the job in progress
//! end     = kind u32 (4), length u32, reserved u64 (0), bytes before this field u64, checksum u64
//! ```
//!
//! The first pass covers all blocks once, in ascending order: a `block` for each with data, one `zeros` for each run of
//! zero blocks. It is followed by blocks that changed after they were sent, each as often as needed. The checksum is
//! the CRC-64 (NVME) of every byte before it.
//!
//! Numbers are in the byte order of the host that writes them. A host of the other byte order rejects the magic.

mod load;
mod save;
#[cfg(test)]
mod tests;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

pub(super) use self::load::Loader;
pub(super) use self::save::Saver;
use super::own_state::Blocks;
use super::queue::Descriptor;
use super::registers::Registers;
use super::work::Job;

/// "WHBACCEL" on a little-endian host.
const MAGIC: u64 = u64::from_le_bytes(*b"WHBACCEL");
const VERSION: u32 = 1;
/// The version of the stream.
pub(super) const STREAM_VERSION: u32 = VERSION;

const KIND_BLOCK: u32 = 1;
const KIND_ZEROS: u32 = 2;
const KIND_FINAL: u32 = 3;
const KIND_END: u32 = 4;

const CHECKSUM: crc_fast::CrcAlgorithm = crc_fast::CrcAlgorithm::Crc64Nvme;

#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
struct Head {
    magic: u64,
    version: u32,
    flags: u32,
    state_bytes: u64,
    block_bytes: u32,
    reserved: u32,
}

impl Head {
    fn of(blocks: Blocks) -> Head {
        Head {
            magic: MAGIC,
            version: VERSION,
            flags: 0,
            state_bytes: blocks.state_bytes(),
            block_bytes: blocks.block_bytes() as u32,
            reserved: 0,
        }
    }
}

/// The header of each record.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
struct RecordHead {
    kind: u32,
    count: u32,
    index: u64,
}

const FLAG_ENABLED: u32 = 1 << 0;
const FLAG_JOB: u32 = 1 << 1;

#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
struct Final {
    flags: u32,
    queue_size: u32,
    queue_base: u64,
    completion_base: u64,
    tail: u32,
    head: u32,
    completed: u64,
    errors: u64,
    interrupt_enable: u32,
    interrupt_status: u32,
    digest: u64,
    changes: u64,
    job: Descriptor,
    job_done: u64,
    job_checksum: u32,
    reserved: u32,
}

#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
struct End {
    total: u64,
    checksum: u64,
}

const RECORD_HEAD_BYTES: usize = size_of::<RecordHead>();
/// The longest part of the stream that is not block data.
const LONGEST: usize = RECORD_HEAD_BYTES + size_of::<Final>();
/// Bytes of the final and the end record.
const CLOSING_BYTES: u64 = (2 * RECORD_HEAD_BYTES + size_of::<Final>() + size_of::<End>()) as u64;

/// The engine's state apart from the memory of its own state: registers, job in progress, counters.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Machine {
    pub(super) registers: Registers,
    /// The job in progress.
    pub(super) job: Option<Job>,
    /// Number of background changes so far.
    pub(super) changes: u64,
}

impl Machine {
    fn to_record(self) -> Final {
        let Machine { registers, job, changes } = self;
        let mut flags = 0;
        if registers.enabled {
            flags |= FLAG_ENABLED;
        }
        if job.is_some() {
            flags |= FLAG_JOB;
        }
        Final {
            flags,
            queue_size: registers.queue_size,
            queue_base: registers.queue_base,
            completion_base: registers.completion_base,
            tail: registers.tail,
            head: registers.head,
            completed: registers.completed,
            errors: registers.errors,
            interrupt_enable: registers.interrupt_enable,
            interrupt_status: registers.interrupt_status,
            digest: registers.digest,
            changes,
            job: job.map_or(Descriptor::default(), |job| *job.descriptor()),
            job_done: job.map_or(0, |job| job.done()),
            job_checksum: job.map_or(0, |job| job.checksum()),
            reserved: 0,
        }
    }

    /// Decodes a final record; `None` if no engine with this state size can have written it.
    fn from_record(record: &Final, state_bytes: u64) -> Option<Machine> {
        if record.flags & !(FLAG_ENABLED | FLAG_JOB) != 0 || record.reserved != 0 {
            return None;
        }
        let registers = Registers {
            enabled: record.flags & FLAG_ENABLED != 0,
            queue_size: record.queue_size,
            queue_base: record.queue_base,
            completion_base: record.completion_base,
            tail: record.tail,
            head: record.head,
            completed: record.completed,
            errors: record.errors,
            interrupt_enable: record.interrupt_enable,
            interrupt_status: record.interrupt_status,
            digest: record.digest,
        };
        let job = if record.flags & FLAG_JOB != 0 {
            Some(Job::resume(record.job, record.job_done, record.job_checksum, state_bytes)?)
        } else if record.job != Descriptor::default() || record.job_done != 0 || record.job_checksum != 0 {
            return None;
        } else {
            None
        };
        let job_has_its_descriptor = job.is_none() || registers.has_work();
        (registers.are_sound() && job_has_its_descriptor).then_some(Machine {
            registers,
            job,
            changes: record.changes,
        })
    }
}
