//! v1's `device_state`, as a type that holds only values with a meaning in the text.

use whimbrel_uapi::region_v1::{StateV1, VFIO_DEVICE_STATE_MASK};

use super::Phase;

/// A value of v1's `device_state`.
///
/// It is a different type than v2's [`State`](crate::State), because the same number means another state:
/// v1's RUNNING is v2's STOP, and v1's RUNNING with SAVING is v2's STOP_COPY.
///
/// ```
/// use whimbrel_protocol::region::{Phase, v1::DeviceState};
///
/// // Reserved bits are the driver's: they are not looked at, and kept.
/// let register = 0x8000_0003;
/// assert_eq!(DeviceState::from_register(register)?, DeviceState::Valid(Phase::PreCopy));
/// assert_eq!(DeviceState::Valid(Phase::StopAndCopy).to_register(register), 0x8000_0002);
/// assert_eq!(DeviceState::from_register(0b110)?, DeviceState::Error);
/// assert!(DeviceState::from_register(0b101).is_err());
/// # Ok::<(), whimbrel_protocol::region::v1::InvalidState>(())
/// ```
///
/// A v1 state is not accepted in place of a v2 state,
///
/// ```compile_fail,E0308
/// use whimbrel_protocol::{MigrationFlags, State, fsm};
/// use whimbrel_protocol::region::{Phase, v1::DeviceState};
///
/// fsm::next(MigrationFlags::STOP_COPY, State::Stop, DeviceState::Valid(Phase::Running));
/// ```
///
/// nor a constant of v1,
///
/// ```compile_fail,E0308
/// use whimbrel_protocol::{MigrationFlags, State, fsm};
/// use whimbrel_uapi::region_v1::StateV1;
///
/// fsm::next(MigrationFlags::STOP_COPY, State::Stop, StateV1::RUNNING);
/// ```
///
/// nor a v2 state in place of a v1 state,
///
/// ```compile_fail,E0308
/// use whimbrel_protocol::State;
/// use whimbrel_protocol::region::v1::DeviceState;
///
/// DeviceState::Valid(State::Running);
/// ```
///
/// while each is accepted in its own place:
///
/// ```
/// use whimbrel_protocol::{MigrationFlags, State, fsm};
/// use whimbrel_protocol::region::{Phase, v1::DeviceState};
/// use whimbrel_uapi::region_v1::StateV1;
///
/// assert_eq!(fsm::next(MigrationFlags::STOP_COPY, State::Stop, State::Running), Some(State::Running));
/// assert_eq!(DeviceState::Valid(Phase::Running).bits(), StateV1::RUNNING);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(clippy::exhaustive_enums, reason = "v1 is of the past and does not grow")]
pub enum DeviceState {
    /// The device is in this phase.
    Valid(Phase),
    /// The device has failed and must be reset (110b). A user cannot request this state.
    Error,
}

impl DeviceState {
    /// Reads the register (`VFIO_DEVICE_STATE_VALID`, `VFIO_DEVICE_STATE_IS_ERROR`). Ignores bits 3 and up.
    pub const fn from_register(register: u32) -> Result<DeviceState, InvalidState> {
        Ok(DeviceState::Valid(match register & VFIO_DEVICE_STATE_MASK {
            0b000 => Phase::Stop,
            0b001 => Phase::Running,
            0b010 => Phase::StopAndCopy,
            0b011 => Phase::PreCopy,
            0b100 => Phase::Resuming,
            0b110 => return Ok(DeviceState::Error),
            _ => return Err(InvalidState(register)),
        }))
    }

    /// Returns the three bits.
    pub const fn bits(self) -> StateV1 {
        match self {
            DeviceState::Valid(Phase::Stop) => StateV1::empty(),
            DeviceState::Valid(Phase::Running) => StateV1::RUNNING,
            DeviceState::Valid(Phase::StopAndCopy) => StateV1::SAVING,
            DeviceState::Valid(Phase::PreCopy) => StateV1::RUNNING.union(StateV1::SAVING),
            DeviceState::Valid(Phase::Resuming) => StateV1::RESUMING,
            DeviceState::Error => StateV1::empty().with_error(),
        }
    }

    /// Returns the register with these three bits and all others from `before`: the read-modify-write of the
    /// text.
    pub const fn to_register(self, before: u32) -> u32 {
        (before & !VFIO_DEVICE_STATE_MASK) | self.bits().bits()
    }
}

/// RESUMING with RUNNING, which is not a valid state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid device_state {0:#x}: RESUMING must be set alone")]
#[non_exhaustive]
pub struct InvalidState(pub u32);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_register_reads_as_the_headers_macros_judge_it() {
        for register in (0..8).chain((0..8).map(|bits| bits | 0xffff_fff8)) {
            let bits = StateV1::from_bits_retain(register);
            match DeviceState::from_register(register) {
                Ok(DeviceState::Valid(_)) => assert!(bits.is_valid(), "{register:#x}"),
                Ok(DeviceState::Error) => assert!(bits.is_error(), "{register:#x}"),
                Err(_) => assert!(!bits.is_valid() && !bits.is_error(), "{register:#x}"),
            }
        }
    }

    #[test]
    fn a_state_writes_its_bits_and_keeps_the_reserved_ones() {
        for register in [0, 1, 2, 3, 4, 6] {
            let state = DeviceState::from_register(register).unwrap();
            assert_eq!(state.to_register(0), register);
            assert_eq!(state.to_register(0xffff_ffff), 0xffff_fff8 | register);
        }
        assert_eq!(DeviceState::Error.to_register(0xf0), StateV1::from_bits_retain(0xf0).with_error().bits());
    }
}
