//! The register block in BAR 0: the offset of each register, and the effect of a guest's access.
//!
//! `work` executes the queue.

use super::queue::{Completion, Descriptor};

/// Bytes of the register block, region 0.
pub const REGISTERS_BYTES: u64 = 0x1000;

/// u32, read only: [`ID`].
pub const REGISTER_ID: u64 = 0x00;
/// u32, read only: [`VERSION`].
pub const REGISTER_VERSION: u64 = 0x04;
/// u64, read only: bytes of own state.
pub const REGISTER_STATE_BYTES: u64 = 0x08;
/// u32: [`CONTROL_ENABLE`].
pub const REGISTER_CONTROL: u64 = 0x10;
/// u32: entries of each ring, a power of two from 2 to [`MAX_QUEUE_SIZE`].
pub const REGISTER_QUEUE_SIZE: u64 = 0x14;
/// u64: IOVA of the submission ring, a multiple of 64.
pub const REGISTER_QUEUE_BASE: u64 = 0x18;
/// u64: IOVA of the completion ring, a multiple of 32.
pub const REGISTER_COMPLETION_BASE: u64 = 0x20;
/// u32: the doorbell. Index of the first descriptor that is not ready yet. It wraps at 2^32.
pub const REGISTER_TAIL: u64 = 0x28;
/// u32, read only: index of the first descriptor whose completion is not written yet.
pub const REGISTER_HEAD: u64 = 0x2c;
/// u64, read only: jobs completed since reset, with any status.
pub const REGISTER_COMPLETED: u64 = 0x30;
/// u64, read only: number of errors since reset: failed jobs, rejected doorbells and settings, completions that could
/// not be written.
pub const REGISTER_ERRORS: u64 = 0x38;
/// u32: the enabled interrupt causes.
pub const REGISTER_INTERRUPT_ENABLE: u64 = 0x40;
/// u32: the pending interrupt causes. Writing a 1 clears a cause.
pub const REGISTER_INTERRUPT_STATUS: u64 = 0x44;
/// u64, read only: a digest of all completions since reset, in their order; see [`fold_digest`].
pub const REGISTER_DIGEST: u64 = 0x48;

/// Value of [`REGISTER_ID`]: "accl".
pub const ID: u32 = u32::from_le_bytes(*b"accl");
/// Value of [`REGISTER_VERSION`].
pub const VERSION: u32 = 1;

/// In [`REGISTER_CONTROL`]: enables the queue. Setting it checks the ring registers and sets head and tail
/// to 0. The ring registers cannot be changed until it is cleared, which drops incomplete jobs.
pub const CONTROL_ENABLE: u32 = 1 << 0;

/// A job was completed.
pub const INTERRUPT_COMPLETION: u32 = 1 << 0;
/// The error counter has risen.
pub const INTERRUPT_ERROR: u32 = 1 << 1;

/// Maximum number of ring entries.
pub const MAX_QUEUE_SIZE: u32 = 1 << 16;

const INTERRUPTS: u32 = INTERRUPT_COMPLETION | INTERRUPT_ERROR;

/// Bytes of registers at the start of the block; the rest reads as zero.
const USED: usize = 0x50;

/// Returns the new value of [`REGISTER_DIGEST`] when a job completes, from the old one and the completion's
/// tag, status and result.
pub const fn fold_digest(digest: u64, tag: u64, status: u32, result: u64) -> u64 {
    let mixed = digest.rotate_left(7) ^ tag ^ result.rotate_left(32) ^ ((status as u64) << 56);
    mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// The register values. While `enabled`, the ring registers are valid and `tail - head` is at most the queue's size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Registers {
    pub(super) enabled: bool,
    pub(super) queue_size: u32,
    pub(super) queue_base: u64,
    pub(super) completion_base: u64,
    pub(super) tail: u32,
    pub(super) head: u32,
    pub(super) completed: u64,
    pub(super) errors: u64,
    pub(super) interrupt_enable: u32,
    pub(super) interrupt_status: u32,
    pub(super) digest: u64,
}

/// The engine's action after a register write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    None,
    /// Drop the current job.
    DropJob,
}

impl Registers {
    /// Returns whether these are valid registers of an engine.
    pub(super) fn are_sound(&self) -> bool {
        let interrupts = self.interrupt_enable | self.interrupt_status;
        let queue = if self.enabled {
            self.rings_are_sound() && self.tail.wrapping_sub(self.head) <= self.queue_size
        } else {
            self.tail == 0 && self.head == 0
        };
        queue && interrupts & !INTERRUPTS == 0
    }

    fn rings_are_sound(&self) -> bool {
        let fits = |base: u64, entry: usize| {
            let bytes = u64::from(self.queue_size) * entry as u64;
            base.is_multiple_of(entry as u64) && base.checked_add(bytes - 1).is_some()
        };
        (2..=MAX_QUEUE_SIZE).contains(&self.queue_size)
            && self.queue_size.is_power_of_two()
            && fits(self.queue_base, size_of::<Descriptor>())
            && fits(self.completion_base, size_of::<Completion>())
    }

    /// Returns whether a descriptor is waiting.
    pub(super) fn has_work(&self) -> bool {
        self.enabled && self.head != self.tail
    }

    /// Returns the IOVA of the descriptor at `head`.
    pub(super) fn descriptor_iova(&self) -> u64 {
        self.queue_base + u64::from(self.slot()) * size_of::<Descriptor>() as u64
    }

    /// Returns the IOVA of its completion.
    pub(super) fn completion_iova(&self) -> u64 {
        self.completion_base + u64::from(self.slot()) * size_of::<Completion>() as u64
    }

    fn slot(&self) -> u32 {
        self.head & (self.queue_size - 1)
    }

    /// Adds causes and returns whether the device must interrupt.
    #[must_use]
    pub(super) fn raise(&mut self, causes: u32) -> bool {
        let new = causes & !self.interrupt_status & self.interrupt_enable;
        self.interrupt_status |= causes;
        new != 0
    }

    /// Returns whether an enabled cause is pending.
    pub(super) fn interrupts(&self) -> bool {
        self.interrupt_status & self.interrupt_enable != 0
    }

    /// Counts an error and returns whether the device must interrupt.
    #[must_use]
    pub(super) fn error(&mut self) -> bool {
        self.errors = self.errors.wrapping_add(1);
        self.raise(INTERRUPT_ERROR)
    }

    /// Reads any length at any offset, without side effects.
    pub(super) fn read(&self, state_bytes: u64, offset: u64, data: &mut [u8]) {
        let mut image = [0; USED];
        let mut put = |at: u64, bytes: &[u8]| {
            image[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
        };
        put(REGISTER_ID, &ID.to_le_bytes());
        put(REGISTER_VERSION, &VERSION.to_le_bytes());
        put(REGISTER_STATE_BYTES, &state_bytes.to_le_bytes());
        put(REGISTER_CONTROL, &u32::from(self.enabled).to_le_bytes());
        put(REGISTER_QUEUE_SIZE, &self.queue_size.to_le_bytes());
        put(REGISTER_QUEUE_BASE, &self.queue_base.to_le_bytes());
        put(REGISTER_COMPLETION_BASE, &self.completion_base.to_le_bytes());
        put(REGISTER_TAIL, &self.tail.to_le_bytes());
        put(REGISTER_HEAD, &self.head.to_le_bytes());
        put(REGISTER_COMPLETED, &self.completed.to_le_bytes());
        put(REGISTER_ERRORS, &self.errors.to_le_bytes());
        put(REGISTER_INTERRUPT_ENABLE, &self.interrupt_enable.to_le_bytes());
        put(REGISTER_INTERRUPT_STATUS, &self.interrupt_status.to_le_bytes());
        put(REGISTER_DIGEST, &self.digest.to_le_bytes());
        let start = usize::try_from(offset).unwrap_or(USED).min(USED);
        let count = data.len().min(USED - start);
        data[..count].copy_from_slice(&image[start..start + count]);
        data[count..].fill(0);
    }

    /// Writes 32 bits at `offset`, a multiple of 4. Returns the engine's action, and whether the device must
    /// interrupt.
    pub(super) fn write(&mut self, offset: u64, value: u32) -> (Effect, bool) {
        let low = |register: u64| register & !0xffff_ffff | u64::from(value);
        let high = |register: u64| register & 0xffff_ffff | u64::from(value) << 32;
        match offset {
            REGISTER_CONTROL => return self.control(value),
            REGISTER_TAIL => {
                if !self.enabled || value.wrapping_sub(self.head) > self.queue_size {
                    return (Effect::None, self.error());
                }
                // Submitted work cannot be withdrawn.
                if value.wrapping_sub(self.head) < self.tail.wrapping_sub(self.head) {
                    return (Effect::None, self.error());
                }
                self.tail = value;
            }
            REGISTER_INTERRUPT_ENABLE => {
                let new = value & INTERRUPTS & !self.interrupt_enable & self.interrupt_status;
                self.interrupt_enable = value & INTERRUPTS;
                return (Effect::None, new != 0);
            }
            REGISTER_INTERRUPT_STATUS => self.interrupt_status &= !value,
            REGISTER_QUEUE_SIZE | REGISTER_QUEUE_BASE..0x28 if self.enabled => {
                return (Effect::None, self.error());
            }
            REGISTER_QUEUE_SIZE => self.queue_size = value,
            REGISTER_QUEUE_BASE => self.queue_base = low(self.queue_base),
            0x1c => self.queue_base = high(self.queue_base),
            REGISTER_COMPLETION_BASE => self.completion_base = low(self.completion_base),
            0x24 => self.completion_base = high(self.completion_base),
            // Read only, or not a register.
            _ => {}
        }
        (Effect::None, false)
    }

    fn control(&mut self, value: u32) -> (Effect, bool) {
        let enable = value & CONTROL_ENABLE != 0;
        if enable == self.enabled {
            return (Effect::None, false);
        }
        if enable && !self.rings_are_sound() {
            return (Effect::None, self.error());
        }
        (self.head, self.tail) = (0, 0);
        self.enabled = enable;
        (Effect::DropJob, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enabled() -> Registers {
        let mut registers = Registers::default();
        registers.write(REGISTER_QUEUE_SIZE, 4);
        registers.write(REGISTER_QUEUE_BASE, 0x1000);
        registers.write(REGISTER_QUEUE_BASE + 4, 0x1);
        registers.write(REGISTER_COMPLETION_BASE, 0x2000);
        registers.write(REGISTER_CONTROL, CONTROL_ENABLE);
        assert!(registers.enabled && registers.are_sound());
        registers
    }

    #[test]
    fn sixty_four_bit_registers_are_written_in_halves_and_read_whole_or_in_part() {
        let registers = enabled();
        assert_eq!(registers.queue_base, 0x1_0000_1000);
        let mut back = [0; 8];
        registers.read(0x1234, REGISTER_QUEUE_BASE, &mut back);
        assert_eq!(u64::from_le_bytes(back), 0x1_0000_1000);
        registers.read(0x1234, REGISTER_STATE_BYTES + 1, &mut back[..1]);
        assert_eq!(back[0], 0x12);
        registers.read(0x1234, REGISTERS_BYTES - 8, &mut back);
        assert_eq!(back, [0; 8]);
    }

    type Spoil = fn(&mut Registers);

    #[test]
    fn rings_that_cannot_be_are_refused_when_the_queue_is_enabled() {
        let cases: [(&str, Spoil); 8] = [
            ("no entries", |r| r.queue_size = 0),
            ("one entry", |r| r.queue_size = 1),
            ("no power of two", |r| r.queue_size = 6),
            ("too many", |r| r.queue_size = MAX_QUEUE_SIZE * 2),
            ("queue not aligned", |r| r.queue_base += 32),
            ("completions not aligned", |r| r.completion_base += 8),
            ("queue past the end", |r| r.queue_base = u64::MAX - 63 - 64),
            ("completions past the end", |r| r.completion_base = u64::MAX - 31 - 64),
        ];
        for (name, spoil) in cases {
            let mut registers = enabled();
            registers.write(REGISTER_CONTROL, 0);
            spoil(&mut registers);
            registers.write(REGISTER_CONTROL, CONTROL_ENABLE);
            assert!(!registers.enabled, "{name}");
            assert_eq!((registers.errors, registers.interrupt_status), (1, INTERRUPT_ERROR), "{name}");
        }
    }

    #[test]
    fn rings_cannot_be_moved_while_the_queue_is_enabled() {
        for offset in [REGISTER_QUEUE_SIZE, 0x18, 0x1c, 0x20, 0x24] {
            let mut registers = enabled();
            registers.write(offset, 0x4000);
            assert_eq!(registers, Registers { errors: 1, interrupt_status: INTERRUPT_ERROR, ..enabled() });
        }
    }

    #[test]
    fn the_doorbell_goes_forward_within_the_ring() {
        let mut registers = Registers { head: u32::MAX, tail: u32::MAX, ..enabled() };
        registers.write(REGISTER_TAIL, 2);
        assert_eq!((registers.tail, registers.errors), (2, 0));
        for refused in [1, 4, u32::MAX - 1] {
            let before = registers;
            registers.write(REGISTER_TAIL, refused);
            assert_eq!((registers.tail, registers.errors), (2, before.errors + 1), "{refused}");
        }
        registers.write(REGISTER_TAIL, 3);
        assert_eq!(registers.tail, 3);
        registers.write(REGISTER_CONTROL, 0);
        assert_eq!((registers.head, registers.tail), (0, 0));
        registers.write(REGISTER_TAIL, 1);
        assert_eq!(registers.tail, 0, "no doorbell rings at a queue that is off");
    }

    #[test]
    fn a_cause_interrupts_once_until_it_is_taken_away() {
        let mut registers = enabled();
        assert!(!registers.raise(INTERRUPT_COMPLETION), "not enabled");
        assert_eq!(registers.write(REGISTER_INTERRUPT_ENABLE, u32::MAX), (Effect::None, true), "it waited");
        assert!(!registers.raise(INTERRUPT_COMPLETION));
        assert!(registers.raise(INTERRUPT_COMPLETION | INTERRUPT_ERROR));
        registers.write(REGISTER_INTERRUPT_STATUS, INTERRUPT_COMPLETION);
        assert_eq!(registers.interrupt_status, INTERRUPT_ERROR);
        assert!(registers.raise(INTERRUPT_COMPLETION));
    }

    #[test]
    fn what_is_read_only_cannot_be_written() {
        for offset in (0..USED as u64).step_by(4).chain([USED as u64, REGISTERS_BYTES - 4]) {
            let writable = REGISTER_CONTROL..=REGISTER_TAIL;
            if writable.contains(&offset)
                || [REGISTER_INTERRUPT_ENABLE, REGISTER_INTERRUPT_STATUS].contains(&offset)
            {
                continue;
            }
            let mut registers = enabled();
            registers.write(offset, u32::MAX);
            assert_eq!(registers, enabled(), "{offset:#x}");
        }
    }
}
