//! The controller's registers in BAR 0: their offsets, and the split of accesses into registers and doorbells.
//!
//! The `controller` acts on a write.

/// Bytes of BAR 0: registers and doorbells, the MSI-X table, the pending bits.
pub(super) const BAR_BYTES: u32 = 0x4000;
/// Offset of the MSI-X table in BAR 0.
pub(super) const MSIX_TABLE: u32 = 0x2000;
/// Offset of the pending bits in BAR 0.
pub(super) const MSIX_PENDING: u32 = 0x3000;

/// Maximum number of entries of a queue.
pub(super) const MAX_QUEUE_ENTRIES: u32 = 1024;
/// Maximum number of entries of an admin queue, by the width of its field in AQA.
pub(super) const MAX_ADMIN_ENTRIES: u32 = 4096;
/// Bytes of a memory page, the only size that is supported (CC.MPS 0).
pub(super) const PAGE_BYTES: u64 = 4096;
/// The version of the specification: 1.4.0.
pub(super) const VERSION: u32 = 0x0001_0400;

const CAP: u64 = 0x00;
const VS: u64 = 0x08;
const INTMS: u64 = 0x0c;
const INTMC: u64 = 0x10;
const CC: u64 = 0x14;
const CSTS: u64 = 0x1c;
const AQA: u64 = 0x24;
const ASQ: u64 = 0x28;
const ACQ: u64 = 0x30;
/// Offset of the first doorbell.
const DOORBELLS: u64 = 0x1000;

/// Bytes of registers at the start of BAR 0; the rest reads as zero.
const USED: usize = 0x40;

/// Time that the controller may take to become ready, in units of 500 ms.
const TIMEOUT: u64 = 20;

/// CAP: queues of up to [`MAX_QUEUE_ENTRIES`], physically contiguous, with doorbells 4 bytes apart; the NVM command
/// set; pages of 4 KiB.
const CAPABILITIES: u64 = (MAX_QUEUE_ENTRIES as u64 - 1) | 1 << 16 | TIMEOUT << 24 | 1 << 37;

/// CC.EN.
pub(super) const CC_ENABLE: u32 = 1;
/// CC.IOSQES and CC.IOCQES for entries of 64 and 16 bytes.
pub(super) const CC_ENTRY_SIZES: u32 = 6 << 16 | 4 << 20;
/// The mask of both.
pub(super) const CC_ENTRY_SIZES_MASK: u32 = 0xff << 16;
/// CC.CSS, CC.MPS and CC.AMS, of which only 0 is supported.
pub(super) const CC_CHOICES: u32 = 0x7 << 4 | 0xf << 7 | 0x7 << 11;
const CC_SHUTDOWN: u32 = 0x3 << 14;
const CC_KNOWN: u32 = CC_ENABLE | CC_CHOICES | CC_SHUTDOWN | CC_ENTRY_SIZES_MASK;

/// A queue's kind, as told by its doorbell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// The tail of a submission queue.
    Submission,
    /// The head of a completion queue.
    Completion,
}

/// The meaning of a 32-bit write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Write {
    /// To a register.
    Register(Register, u32),
    /// To a doorbell.
    Doorbell { queue: u16, side: Side, value: u32 },
}

/// A register that the host can write, or half of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Register {
    MaskSet,
    MaskClear,
    Configuration,
    AdminQueueAttributes,
    SubmissionBase(Half),
    CompletionBase(Half),
}

/// Half of a 64-bit register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Half {
    Low,
    High,
}

/// The shutdown that the host has asked for, and its progress.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Shutdown {
    #[default]
    None,
    /// The image is being flushed.
    Processing,
    Complete,
}

impl Shutdown {
    /// Returns CSTS.SHST.
    pub(super) const fn bits(self) -> u32 {
        match self {
            Shutdown::None => 0,
            Shutdown::Processing => 1,
            Shutdown::Complete => 2,
        }
    }

    /// Returns the shutdown with this CSTS.SHST; `None` for the reserved value.
    pub(super) const fn from_bits(bits: u32) -> Option<Shutdown> {
        Some(match bits {
            0 => Shutdown::None,
            1 => Shutdown::Processing,
            2 => Shutdown::Complete,
            _ => return None,
        })
    }
}

/// The values of the registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Registers {
    /// The interrupts masked by INTMS.
    pub(super) masked: u32,
    /// CC.
    pub(super) configuration: u32,
    /// CSTS.RDY.
    pub(super) ready: bool,
    /// CSTS.CFS.
    pub(super) failed: bool,
    pub(super) shutdown: Shutdown,
    /// AQA.
    pub(super) admin_attributes: u32,
    /// ASQ.
    pub(super) submission_base: u64,
    /// ACQ.
    pub(super) completion_base: u64,
}

impl Registers {
    /// Returns whether the host has enabled the controller.
    pub(super) fn is_enabled(&self) -> bool {
        self.configuration & CC_ENABLE != 0
    }

    /// Returns whether the host asks for a shutdown, normal or abrupt.
    pub(super) fn asks_for_shutdown(&self) -> bool {
        matches!(self.configuration & CC_SHUTDOWN, 0x4000 | 0x8000)
    }

    /// Returns the number of entries of the admin submission queue.
    pub(super) fn admin_submissions(&self) -> u32 {
        (self.admin_attributes & 0xfff) + 1
    }

    /// Returns the number of entries of the admin completion queue.
    pub(super) fn admin_completions(&self) -> u32 {
        (self.admin_attributes >> 16 & 0xfff) + 1
    }

    /// Stores a register's value without any effect, and without its reserved bits.
    pub(super) fn store(&mut self, register: Register, value: u32) {
        let put = |base: u64, half: Half| match half {
            Half::Low => base & !0xffff_ffff | u64::from(value) & !(PAGE_BYTES - 1),
            Half::High => base & 0xffff_ffff | u64::from(value) << 32,
        };
        match register {
            Register::MaskSet => self.masked |= value,
            Register::MaskClear => self.masked &= !value,
            Register::Configuration => self.configuration = value & CC_KNOWN,
            Register::AdminQueueAttributes => self.admin_attributes = value & 0x0fff_0fff,
            Register::SubmissionBase(half) => self.submission_base = put(self.submission_base, half),
            Register::CompletionBase(half) => self.completion_base = put(self.completion_base, half),
        }
    }

    /// Returns whether a register can have these values.
    pub(super) fn are_sound(&self) -> bool {
        self.configuration & !CC_KNOWN == 0
            && self.admin_attributes & !0x0fff_0fff == 0
            && self.submission_base.is_multiple_of(PAGE_BYTES)
            && self.completion_base.is_multiple_of(PAGE_BYTES)
            && (!self.ready || self.is_enabled() && !self.failed)
    }

    /// Reads any length at any offset, without side effects.
    pub(super) fn read(&self, offset: u64, data: &mut [u8]) {
        let mut image = [0; USED];
        let mut put = |at: u64, bytes: &[u8]| {
            image[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
        };
        let status = u32::from(self.ready) | u32::from(self.failed) << 1 | self.shutdown.bits() << 2;
        put(CAP, &CAPABILITIES.to_le_bytes());
        put(VS, &VERSION.to_le_bytes());
        put(INTMS, &self.masked.to_le_bytes());
        put(INTMC, &self.masked.to_le_bytes());
        put(CC, &self.configuration.to_le_bytes());
        put(CSTS, &status.to_le_bytes());
        put(AQA, &self.admin_attributes.to_le_bytes());
        put(ASQ, &self.submission_base.to_le_bytes());
        put(ACQ, &self.completion_base.to_le_bytes());
        let start = usize::try_from(offset).unwrap_or(USED).min(USED);
        let count = data.len().min(USED - start);
        data[..count].copy_from_slice(&image[start..start + count]);
        data[count..].fill(0);
    }
}

/// Returns the 32-bit writes that an access consists of, in order. An access of another width or alignment than the
/// specification allows has no effect, and neither has one to a register that is read-only or reserved.
pub(super) fn writes(offset: u64, data: &[u8]) -> impl Iterator<Item = Write> {
    let (words, rest) = data.as_chunks::<4>();
    let is_wide = words.len() == 2 && offset.is_multiple_of(8) && offset < DOORBELLS;
    let is_valid = rest.is_empty() && offset.is_multiple_of(4) && (words.len() == 1 || is_wide);
    let words = if is_valid { words } else { &[] };
    (offset..).step_by(4).zip(words).filter_map(|(at, word)| write(at, u32::from_le_bytes(*word)))
}

fn write(offset: u64, value: u32) -> Option<Write> {
    const ASQ_HIGH: u64 = ASQ + 4;
    const ACQ_HIGH: u64 = ACQ + 4;
    let register = match offset {
        INTMS => Register::MaskSet,
        INTMC => Register::MaskClear,
        CC => Register::Configuration,
        AQA => Register::AdminQueueAttributes,
        ASQ => Register::SubmissionBase(Half::Low),
        ASQ_HIGH => Register::SubmissionBase(Half::High),
        ACQ => Register::CompletionBase(Half::Low),
        ACQ_HIGH => Register::CompletionBase(Half::High),
        DOORBELLS..0x2000 => {
            let index = (offset - DOORBELLS) / 4;
            let side = if index.is_multiple_of(2) { Side::Submission } else { Side::Completion };
            return Some(Write::Doorbell { queue: (index / 2) as u16, side, value });
        }
        _ => return None,
    };
    Some(Write::Register(register, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(registers: &Registers, offset: u64, length: usize) -> u64 {
        let mut bytes = [0xff; 8];
        registers.read(offset, &mut bytes[..length]);
        bytes[length..].fill(0);
        u64::from_le_bytes(bytes)
    }

    #[test]
    fn capabilities_and_version_read_whole_and_in_halves() {
        let registers = Registers::default();
        let cap = read(&registers, 0, 8);
        assert_eq!(cap & 0xffff, 1023, "MQES");
        assert_eq!((cap >> 16 & 1, cap >> 24 & 0xff, cap >> 32 & 0xf, cap >> 37 & 1), (1, 20, 0, 1));
        assert_eq!(cap >> 48, 0, "MPSMIN, MPSMAX: 4 KiB");
        assert_eq!(read(&registers, 4, 4), cap >> 32);
        assert_eq!(read(&registers, 8, 4), 0x0001_0400);
        assert_eq!(read(&registers, 0x3c, 8), 0, "no controller memory buffer");
        assert_eq!(read(&registers, 0x0fff, 1), 0);
    }

    #[test]
    fn wide_registers_are_written_whole_or_in_halves() {
        let whole: Vec<_> = writes(0x28, &0x1_0000_2345_u64.to_le_bytes()).collect();
        let halves: Vec<_> =
            writes(0x28, &0x2345u32.to_le_bytes()).chain(writes(0x2c, &1u32.to_le_bytes())).collect();
        assert_eq!(whole, halves);
        let mut registers = Registers::default();
        for write in whole {
            if let Write::Register(register, value) = write {
                registers.store(register, value);
            }
        }
        assert_eq!(registers.submission_base, 0x1_0000_2000, "without the offset in a page");
    }

    #[test]
    fn accesses_of_other_widths_and_alignments_have_no_effect() {
        let cases: [(u64, &[u8]); 7] = [
            (0x14, &[1]),
            (0x14, &[1, 0]),
            (0x15, &[1, 0, 0, 0]),
            (0x14, &[1; 8]),
            (0x1000, &[0; 8]),
            (0x28, &[0; 12]),
            (0x14, &[]),
        ];
        for (offset, data) in cases {
            assert_eq!(writes(offset, data).count(), 0, "{offset:#x} {data:?}");
        }
        for offset in [0x00, 0x08, 0x1c, 0x20, 0x38, 0x40, 0xffc, 0x2000] {
            assert_eq!(writes(offset, &[0xff; 4]).count(), 0, "{offset:#x}");
        }
    }

    #[test]
    fn doorbells_alternate_between_the_two_kinds_of_queue() {
        let write = |offset| writes(offset, &[9, 0, 0, 0]).next();
        let doorbell = |queue, side| Some(Write::Doorbell { queue, side, value: 9 });
        assert_eq!(write(0x1000), doorbell(0, Side::Submission));
        assert_eq!(write(0x1004), doorbell(0, Side::Completion));
        assert_eq!(write(0x1018), doorbell(3, Side::Submission));
        assert_eq!(write(0x1ffc), doorbell(511, Side::Completion));
    }

    #[test]
    fn masks_are_set_and_cleared_by_ones() {
        let mut registers = Registers::default();
        registers.store(Register::MaskSet, 0b101);
        registers.store(Register::MaskSet, 0b010);
        registers.store(Register::MaskClear, 0b001);
        assert_eq!((read(&registers, 0x0c, 4), read(&registers, 0x10, 4)), (0b110, 0b110));
    }
}
