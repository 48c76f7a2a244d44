//! The entries of the queues in memory, the opcodes and the status codes, as in the NVM Express base specification 1.4.
//!
//! It decodes nothing beyond the common fields: `admin` and `io` know what a command asks for.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A command in a submission queue: 64 bytes, little-endian.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub(super) struct SubmissionEntry {
    pub(super) opcode: u8,
    /// FUSE in bits 1:0, PSDT in bits 7:6.
    pub(super) flags: u8,
    pub(super) command_id: u16,
    pub(super) namespace: u32,
    pub(super) dword2: u32,
    pub(super) dword3: u32,
    pub(super) metadata: u64,
    pub(super) prp1: u64,
    pub(super) prp2: u64,
    pub(super) dword10: u32,
    pub(super) dword11: u32,
    pub(super) dword12: u32,
    pub(super) dword13: u32,
    pub(super) dword14: u32,
    pub(super) dword15: u32,
}

/// Bytes of a submission entry.
pub(super) const SUBMISSION_BYTES: u64 = 64;
/// Bytes of a completion entry.
pub(super) const COMPLETION_BYTES: u64 = 16;

const FUSE: u8 = 0x3;
const PSDT: u8 = 0xc0;

impl SubmissionEntry {
    /// Checks the fields that all commands share: no fused operation, and PRPs instead of SGLs.
    pub(super) fn check_flags(&self) -> Result<(), Status> {
        if self.flags & (FUSE | PSDT) == 0 { Ok(()) } else { Err(Status::INVALID_FIELD) }
    }

    /// Returns the 64-bit value of command dwords 10 and 11.
    pub(super) fn start(&self) -> u64 {
        u64::from(self.dword11) << 32 | u64::from(self.dword10)
    }
}

/// The end of a command, before its place in a completion queue is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Completion {
    /// The submission queue that the command came from.
    pub(super) sq: u16,
    /// The completion queue to post it to.
    pub(super) cq: u16,
    /// Head of the submission queue.
    pub(super) sq_head: u16,
    pub(super) command_id: u16,
    pub(super) status: Status,
    /// Dword 0.
    pub(super) result: u32,
}

/// A completion in a completion queue: 16 bytes, little-endian.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub(super) struct CompletionEntry {
    pub(super) result: u32,
    pub(super) reserved: u32,
    pub(super) sq_head: u16,
    pub(super) sq: u16,
    pub(super) command_id: u16,
    /// The phase tag in bit 0, the status above it.
    pub(super) status: u16,
}

/// Bytes of an entry that are written before the rest: all but the last dword, which has the phase tag.
pub(super) const BEFORE_PHASE: usize = 12;

impl Completion {
    /// Returns the entry with a phase tag.
    pub(super) fn entry(&self, phase: bool) -> CompletionEntry {
        CompletionEntry {
            result: self.result,
            reserved: 0,
            sq_head: self.sq_head,
            sq: self.sq,
            command_id: self.command_id,
            status: self.status.0 << 1 | u16::from(phase),
        }
    }
}

/// The status of a completed command, without the phase tag: status code in bits 7:0, its type in bits 10:8, "do not
/// retry" in bit 14.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Status(u16);

const DO_NOT_RETRY: u16 = 1 << 14;

impl Status {
    pub(super) const SUCCESS: Status = Status(0);
    pub(super) const INVALID_OPCODE: Status = Status::last(0, 0x01);
    pub(super) const INVALID_FIELD: Status = Status::last(0, 0x02);
    pub(super) const DATA_TRANSFER_ERROR: Status = Status::last(0, 0x04);
    pub(super) const INTERNAL_ERROR: Status = Status::again(0, 0x06);
    pub(super) const ABORTED_BY_QUEUE_DELETION: Status = Status::again(0, 0x08);
    pub(super) const INVALID_NAMESPACE: Status = Status::last(0, 0x0b);
    pub(super) const SEQUENCE_ERROR: Status = Status::last(0, 0x0c);
    pub(super) const PRP_OFFSET_INVALID: Status = Status::last(0, 0x13);
    pub(super) const WRITE_PROTECTED: Status = Status::last(0, 0x20);
    pub(super) const LBA_OUT_OF_RANGE: Status = Status::last(0, 0x80);
    pub(super) const CAPACITY_EXCEEDED: Status = Status::last(0, 0x81);
    pub(super) const NAMESPACE_NOT_READY: Status = Status::again(0, 0x82);

    pub(super) const COMPLETION_QUEUE_INVALID: Status = Status::last(1, 0x00);
    pub(super) const INVALID_QUEUE_ID: Status = Status::last(1, 0x01);
    pub(super) const INVALID_QUEUE_SIZE: Status = Status::last(1, 0x02);
    pub(super) const EVENT_LIMIT_EXCEEDED: Status = Status::last(1, 0x05);
    pub(super) const INVALID_VECTOR: Status = Status::last(1, 0x08);
    pub(super) const INVALID_LOG_PAGE: Status = Status::last(1, 0x09);
    pub(super) const INVALID_QUEUE_DELETION: Status = Status::last(1, 0x0c);
    pub(super) const FEATURE_NOT_SAVEABLE: Status = Status::last(1, 0x0d);
    pub(super) const FEATURE_NOT_CHANGEABLE: Status = Status::last(1, 0x0e);
    pub(super) const FEATURE_NOT_PER_NAMESPACE: Status = Status::last(1, 0x0f);

    pub(super) const WRITE_FAULT: Status = Status::again(2, 0x80);
    pub(super) const UNRECOVERED_READ_ERROR: Status = Status::again(2, 0x81);

    /// A status that a retry of the same command does not change.
    const fn last(kind: u16, code: u16) -> Status {
        Status(DO_NOT_RETRY | kind << 8 | code)
    }

    /// A status of a command that may succeed when it is retried.
    const fn again(kind: u16, code: u16) -> Status {
        Status(kind << 8 | code)
    }

    /// Returns whether the command succeeded.
    pub(super) fn is_success(self) -> bool {
        self.0 == 0
    }

    /// Returns the bits of the status field, without the phase tag.
    pub(super) const fn bits(self) -> u16 {
        self.0
    }

    /// Returns the status with these bits; `None` if this controller never has it.
    pub(super) fn from_bits(bits: u16) -> Option<Status> {
        Status::ALL.into_iter().find(|status| status.0 == bits)
    }

    const ALL: [Status; 25] = [
        Status::SUCCESS,
        Status::INVALID_OPCODE,
        Status::INVALID_FIELD,
        Status::DATA_TRANSFER_ERROR,
        Status::INTERNAL_ERROR,
        Status::ABORTED_BY_QUEUE_DELETION,
        Status::INVALID_NAMESPACE,
        Status::SEQUENCE_ERROR,
        Status::PRP_OFFSET_INVALID,
        Status::WRITE_PROTECTED,
        Status::LBA_OUT_OF_RANGE,
        Status::CAPACITY_EXCEEDED,
        Status::NAMESPACE_NOT_READY,
        Status::COMPLETION_QUEUE_INVALID,
        Status::INVALID_QUEUE_ID,
        Status::INVALID_QUEUE_SIZE,
        Status::EVENT_LIMIT_EXCEEDED,
        Status::INVALID_VECTOR,
        Status::INVALID_LOG_PAGE,
        Status::INVALID_QUEUE_DELETION,
        Status::FEATURE_NOT_SAVEABLE,
        Status::FEATURE_NOT_CHANGEABLE,
        Status::FEATURE_NOT_PER_NAMESPACE,
        Status::WRITE_FAULT,
        Status::UNRECOVERED_READ_ERROR,
    ];
}

/// Opcodes of admin commands.
pub(super) mod admin {
    pub(in super::super) const DELETE_SUBMISSION_QUEUE: u8 = 0x00;
    pub(in super::super) const CREATE_SUBMISSION_QUEUE: u8 = 0x01;
    pub(in super::super) const GET_LOG_PAGE: u8 = 0x02;
    pub(in super::super) const DELETE_COMPLETION_QUEUE: u8 = 0x04;
    pub(in super::super) const CREATE_COMPLETION_QUEUE: u8 = 0x05;
    pub(in super::super) const IDENTIFY: u8 = 0x06;
    pub(in super::super) const ABORT: u8 = 0x08;
    pub(in super::super) const SET_FEATURES: u8 = 0x09;
    pub(in super::super) const GET_FEATURES: u8 = 0x0a;
    pub(in super::super) const ASYNC_EVENT_REQUEST: u8 = 0x0c;
    pub(in super::super) const KEEP_ALIVE: u8 = 0x18;

    /// All of them, with whether the command changes the controller's capabilities.
    pub(in super::super) const ALL: [u8; 11] = [
        DELETE_SUBMISSION_QUEUE,
        CREATE_SUBMISSION_QUEUE,
        GET_LOG_PAGE,
        DELETE_COMPLETION_QUEUE,
        CREATE_COMPLETION_QUEUE,
        IDENTIFY,
        ABORT,
        SET_FEATURES,
        GET_FEATURES,
        ASYNC_EVENT_REQUEST,
        KEEP_ALIVE,
    ];
}

/// Opcodes of the NVM command set.
pub(super) mod nvm {
    pub(in super::super) const FLUSH: u8 = 0x00;
    pub(in super::super) const WRITE: u8 = 0x01;
    pub(in super::super) const READ: u8 = 0x02;
    pub(in super::super) const WRITE_ZEROES: u8 = 0x08;
    pub(in super::super) const DATASET_MANAGEMENT: u8 = 0x09;

    /// All of them, with whether the command changes the contents of blocks.
    pub(in super::super) const ALL: [(u8, bool); 5] =
        [(FLUSH, false), (WRITE, true), (READ, false), (WRITE_ZEROES, true), (DATASET_MANAGEMENT, true)];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_have_the_sizes_and_offsets_of_the_specification() {
        assert_eq!(size_of::<SubmissionEntry>() as u64, SUBMISSION_BYTES);
        assert_eq!(size_of::<CompletionEntry>() as u64, COMPLETION_BYTES);
        let mut bytes = [0; 64];
        bytes[2..4].copy_from_slice(&7u16.to_le_bytes());
        bytes[24..32].copy_from_slice(&0x1000u64.to_le_bytes());
        bytes[40..44].copy_from_slice(&3u32.to_le_bytes());
        bytes[44..48].copy_from_slice(&1u32.to_le_bytes());
        let entry = SubmissionEntry::read_from_bytes(&bytes).unwrap();
        assert_eq!((entry.command_id, entry.prp1, entry.start()), (7, 0x1000, 0x1_0000_0003));
    }

    #[test]
    fn the_phase_tag_is_the_lowest_bit_of_the_last_half_word() {
        let completion = Completion {
            sq: 1,
            cq: 2,
            sq_head: 3,
            command_id: 4,
            status: Status::LBA_OUT_OF_RANGE,
            result: 5,
        };
        let bytes = completion.entry(true);
        assert_eq!(bytes.as_bytes()[14..], 0x8101u16.to_le_bytes());
        assert_eq!(completion.entry(false).as_bytes()[14..], 0x8100u16.to_le_bytes());
        assert_eq!(bytes.as_bytes()[8..14], [3, 0, 1, 0, 4, 0]);
    }

    #[test]
    fn every_status_is_found_by_its_bits_and_nothing_else_is() {
        for bits in 0..=u16::MAX {
            assert!(Status::from_bits(bits).is_none_or(|status| status.bits() == bits));
        }
        let found = (0..=u16::MAX).filter(|bits| Status::from_bits(*bits).is_some()).count();
        assert_eq!(found, Status::ALL.len(), "no two are the same");
    }

    #[test]
    fn fused_commands_and_scatter_gather_lists_are_invalid_fields() {
        for flags in [0x01, 0x02, 0x40, 0x80, 0xc0] {
            let entry = SubmissionEntry { flags, ..SubmissionEntry::default() };
            assert_eq!(entry.check_flags(), Err(Status::INVALID_FIELD), "{flags:#x}");
        }
        let reserved = SubmissionEntry { flags: 0x3c, ..SubmissionEntry::default() };
        assert_eq!(reserved.check_flags(), Ok(()));
    }
}
