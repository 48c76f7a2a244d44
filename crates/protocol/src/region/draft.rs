//! The `device_state` of the draft, as a type that holds only what the text does not forbid.

use whimbrel_uapi::region_draft::{StateDraft, VFIO_DEVICE_STATE_MASK};

use super::Phase;

/// What the draft's `device_state` says. It has no error state: a change that fails is told by the write
/// itself.
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
/// It is not taken for a v1 state:
///
/// ```compile_fail,E0308
/// use whimbrel_protocol::region::{Phase, draft, v1};
///
/// let state: v1::DeviceState = draft::DeviceState::Valid(Phase::Running);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeviceState {
    /// The device does this.
    Valid(Phase),
    /// 101b, which the draft does not call invalid and never uses. No device behind a region can be in it.
    RunningAndResuming,
}

impl DeviceState {
    /// Reads the register. Bits 3 and up are not looked at.
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

    /// The three bits.
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

    /// The register with these three bits, and all others as they are in `before`: the read-modify-write of
    /// the text.
    pub const fn to_register(self, before: u32) -> u32 {
        (before & !VFIO_DEVICE_STATE_MASK) | self.bits().bits()
    }
}

/// SAVING with RESUMING: no state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("device_state {0:#x} is not valid: SAVING and RESUMING are both set")]
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
