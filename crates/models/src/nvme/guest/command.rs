//! Commands and completions as a host writes and reads them, with the numbers of the specification.
//!
//! This is a reading of the specification of its own: nothing here is the controller's.

/// A command: 64 bytes, little-endian.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "the fields of the specification")]
pub struct Command {
    /// The opcode.
    pub opcode: u8,
    /// Fused operation in bits 1:0, PRP or SGL in bits 7:6.
    pub flags: u8,
    /// The command identifier; set by the driver.
    pub identifier: u16,
    /// NSID.
    pub namespace: u32,
    /// PRP entry 1.
    pub prp1: u64,
    /// PRP entry 2.
    pub prp2: u64,
    /// Command dwords 10 to 15.
    pub dwords: [u32; 6],
}

/// FUA of reads, writes and write zeroes, in dword 12.
pub const FUA: u32 = 0x4000_0000;
/// DEAC of write zeroes, in dword 12.
pub const DEAC: u32 = 0x0200_0000;

impl Command {
    /// Returns an admin command without data.
    pub fn admin(opcode: u8, dwords: [u32; 6]) -> Command {
        Command { opcode, dwords, ..Command::default() }
    }

    /// Returns a read of `blocks` blocks from `start` on. The driver adds the data's place.
    pub fn read(start: u64, blocks: u32) -> Command {
        Command::on_blocks(0x02, start, blocks)
    }

    /// Returns a write of `blocks` blocks from `start` on.
    pub fn write(start: u64, blocks: u32) -> Command {
        Command::on_blocks(0x01, start, blocks)
    }

    /// Returns a flush of the namespace.
    pub fn flush() -> Command {
        Command { opcode: 0x00, namespace: 1, ..Command::default() }
    }

    /// Returns a command that makes blocks read as zeros.
    pub fn write_zeroes(start: u64, blocks: u32) -> Command {
        Command::on_blocks(0x08, start, blocks)
    }

    /// Returns a dataset management command that deallocates `ranges` ranges. Their list is the data.
    pub fn deallocate(ranges: u32) -> Command {
        let dwords = [ranges - 1, 4, 0, 0, 0, 0];
        Command { opcode: 0x09, namespace: 1, dwords, ..Command::default() }
    }

    /// Adds bits to dword 12, such as [`FUA`].
    #[must_use]
    pub fn with(mut self, bits: u32) -> Command {
        self.dwords[2] |= bits;
        self
    }

    fn on_blocks(opcode: u8, start: u64, blocks: u32) -> Command {
        let dwords = [start as u32, (start >> 32) as u32, blocks - 1, 0, 0, 0];
        Command { opcode, namespace: 1, dwords, ..Command::default() }
    }

    /// Returns the bytes in a submission queue.
    pub fn to_bytes(&self) -> [u8; 64] {
        let mut bytes = [0; 64];
        bytes[0] = self.opcode;
        bytes[1] = self.flags;
        bytes[2..4].copy_from_slice(&self.identifier.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.namespace.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.prp1.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.prp2.to_le_bytes());
        for (room, dword) in bytes[40..].chunks_exact_mut(4).zip(self.dwords) {
            room.copy_from_slice(&dword.to_le_bytes());
        }
        bytes
    }
}

/// Returns the data of a dataset management command: ranges of (start, blocks).
pub fn ranges(ranges: &[(u64, u32)]) -> Vec<u8> {
    let entry = |(start, blocks): &(u64, u32)| {
        let mut entry = [0; 16];
        entry[4..8].copy_from_slice(&blocks.to_le_bytes());
        entry[8..].copy_from_slice(&start.to_le_bytes());
        entry
    };
    ranges.iter().flat_map(entry).collect()
}

/// A completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "the fields of the specification")]
pub struct Completion {
    /// Dword 0, whose meaning depends on the command.
    pub result: u32,
    /// Head of the submission queue.
    pub head: u16,
    /// The submission queue.
    pub queue: u16,
    /// The command identifier.
    pub identifier: u16,
    /// Status code type.
    pub kind: u8,
    /// Status code.
    pub code: u8,
    /// "Do not retry".
    pub do_not_retry: bool,
}

impl Completion {
    /// Returns the completion in an entry, if its phase tag is `phase`.
    pub fn from_bytes(bytes: [u8; 16], phase: bool) -> Option<Completion> {
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let status = word(14);
        (status & 1 == u16::from(phase)).then(|| Completion {
            result: u32::from(word(2)) << 16 | u32::from(word(0)),
            head: word(8),
            queue: word(10),
            identifier: word(12),
            kind: (status >> 9 & 0x7) as u8,
            code: (status >> 1) as u8,
            do_not_retry: status >> 15 == 1,
        })
    }

    /// Returns whether the command succeeded.
    pub fn is_success(&self) -> bool {
        (self.kind, self.code) == (0, 0)
    }
}
