//! The draft's `device_state`, as a type that holds only values the text allows.

use whimbrel_uapi::region_draft::{StateDraft, VFIO_DEVICE_STATE_MASK};

use super::Phase;

/// A value of the draft's `device_state`. The draft has no error state: the write itself reports a failed
/// change.
///
/// ```
/// use whimbrel_protocol::region::{Phase, draft::DeviceState};
///
/// assert_eq!(DeviceState::from_register(0b011)?, DeviceState::Valid(Phase::PreCopy));
/// assert!(DeviceState::from_register(0b110).is_err());
/// assert_eq!(DeviceState::from_register(0b101)?, DeviceState::RunningAndResuming);
/// # Ok::<(), whimbrel_protocol::region::draft::InvalidState>(())
/// ```
///
/// It is a different type than the v1 state:
///
/// ```compile_fail,E0308
/// use whimbrel_protocol::region::{Phase, draft, v1};
///
/// let state: v1::DeviceState = draft::DeviceState::Valid(Phase::Running);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(clippy::exhaustive_enums, reason = "the draft is of the past and does not grow")]
pub enum DeviceState {
    /// The device is in this phase.
    Valid(Phase),
    /// 101b, which the draft neither forbids nor uses. No device behind a region can be in it.
    RunningAndResuming,
}

impl DeviceState {
    /// Reads the register. Ignores bits 3 and up.
    pub const fn from_register(register: u32) -> Result<DeviceState, InvalidState> {
        Ok(DeviceState::Valid(match register & VFIO_DEVICE_STATE_MASK {
            0b000 => Phase::Stop,
            0b001 => Phase::Running,
            0b010 => Phase::StopAndCopy,
            0b011 => Phase::PreCopy,
            0b100 => Phase::Resuming,
            0b101 => return Ok(DeviceState::RunningAndResuming),
            _ => return Err(InvalidState(register)),
        }))
    }

    /// Returns the three bits.
    pub const fn bits(self) -> StateDraft {
        match self {
            DeviceState::Valid(Phase::Stop) => StateDraft::empty(),
            DeviceState::Valid(Phase::Running) => StateDraft::RUNNING,
            DeviceState::Valid(Phase::StopAndCopy) => StateDraft::SAVING,
            DeviceState::Valid(Phase::PreCopy) => StateDraft::RUNNING.union(StateDraft::SAVING),
            DeviceState::Valid(Phase::Resuming) => StateDraft::RESUMING,
            DeviceState::RunningAndResuming => StateDraft::RUNNING.union(StateDraft::RESUMING),
        }
    }

    /// Returns the register with these three bits and all others from `before`: the read-modify-write of
    /// the text.
    pub const fn to_register(self, before: u32) -> u32 {
        (before & !VFIO_DEVICE_STATE_MASK) | self.bits().bits()
    }
}

/// SAVING with RESUMING, which is not a valid state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid device_state {0:#x}: SAVING and RESUMING are both set")]
#[non_exhaustive]
pub struct InvalidState(pub u32);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_register_reads_as_the_draft_judges_it_and_writes_back() {
        for register in 0..8 {
            let judged = StateDraft::from_bits_retain(register).is_valid();
            assert_eq!(DeviceState::from_register(register).is_ok(), judged, "{register:03b}");
            if let Ok(state) = DeviceState::from_register(register) {
                assert_eq!(state.to_register(0xa0), 0xa0 | register);
            }
        }
    }
}
