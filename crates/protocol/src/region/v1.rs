//! The `device_state` of v1, as a type that holds only what the text gives a meaning.

use whimbrel_uapi::region_v1::{StateV1, VFIO_DEVICE_STATE_MASK};

use super::Phase;

/// What v1's `device_state` says.
///
/// It is no [`State`](crate::State) of v2, and neither can be taken for the other: v1's RUNNING is the number
/// of v2's STOP, and v1's RUNNING with SAVING that of v2's STOP_COPY.
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
/// A v1 state is not taken where one of v2 is expected,
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
/// nor a v2 state where one of v1 is expected,
///
/// ```compile_fail,E0308
/// use whimbrel_protocol::State;
/// use whimbrel_protocol::region::v1::DeviceState;
///
/// DeviceState::Valid(State::Running);
/// ```
///
/// while each is taken where it belongs:
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
pub enum DeviceState {
    /// The device does this.
    Valid(Phase),
    /// The device has failed and must be reset (110b). A user cannot ask for it.
    Error,
}

impl DeviceState {
    /// Reads the register (`VFIO_DEVICE_STATE_VALID`, `VFIO_DEVICE_STATE_IS_ERROR`). Bits 3 and up are not
    /// looked at.
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

    /// The three bits.
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

    /// The register with these three bits, and all others as they are in `before`: the read-modify-write of
    /// the text.
    pub const fn to_register(self, before: u32) -> u32 {
        (before & !VFIO_DEVICE_STATE_MASK) | self.bits().bits()
    }
}

/// RESUMING with RUNNING: no state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("device_state {0:#x} is not valid: RESUMING stands alone")]
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
