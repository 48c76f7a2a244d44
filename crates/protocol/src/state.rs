//! The states of a migratable device, as a type that holds only valid states.
//!
//! [`crate::fsm`] has the transitions between them.

whimbrel_uapi::numbered_enum! {
    /// The migration state of a device (`enum vfio_device_mig_state`).
    ///
    /// The numbers are the header's. They are *not* those of migration v1, whose RUNNING (1) is STOP here.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
    #[repr(u8)]
    #[expect(clippy::exhaustive_enums, reason = "a new state changes every path: it must break the build")]
    pub enum State: u32 {
        /// The device has failed and must be reset. This state cannot be requested.
        Error = 0 => "ERROR",
        /// The device does not change its internal or external state.
        Stop = 1 => "STOP",
        /// The device runs normally.
        Running = 2 => "RUNNING",
        /// The device is stopped and its state can be read from the data fd.
        StopCopy = 3 => "STOP_COPY",
        /// The device is stopped and loads a new state written to the data fd.
        Resuming = 4 => "RESUMING",
        /// As RUNNING, but the device starts no peer-to-peer DMA.
        RunningP2p = 5 => "RUNNING_P2P",
        /// As RUNNING, while its state can already be read from the data fd.
        PreCopy = 6 => "PRE_COPY",
        /// As RUNNING_P2P, while its state can already be read from the data fd.
        PreCopyP2p = 7 => "PRE_COPY_P2P",
    }
}

impl State {
    /// Returns the state with this name, in the header's spelling without its prefix. Ignores case.
    pub fn from_name(name: &str) -> Option<State> {
        State::ALL.into_iter().find(|state| state.name().eq_ignore_ascii_case(name))
    }

    /// Returns whether the device's state can be read in this state: STOP_COPY, PRE_COPY and PRE_COPY_P2P.
    pub const fn is_saving(self) -> bool {
        matches!(self, State::StopCopy | State::PreCopy | State::PreCopyP2p)
    }

    /// Returns whether this is one of the two pre-copy states.
    pub const fn is_precopy(self) -> bool {
        matches!(self, State::PreCopy | State::PreCopyP2p)
    }

    /// Returns whether the device runs in this state: it handles requests and advances its own state. In the P2P
    /// states it starts no peer-to-peer DMA.
    pub const fn is_running(self) -> bool {
        matches!(self, State::Running | State::RunningP2p | State::PreCopy | State::PreCopyP2p)
    }
}

impl From<State> for u32 {
    fn from(state: State) -> u32 {
        state.number()
    }
}

impl TryFrom<u32> for State {
    type Error = UnknownState;

    fn try_from(number: u32) -> Result<State, UnknownState> {
        State::from_number(number).ok_or(UnknownState(number))
    }
}

/// A number that is not a state's. The kernel answers it with EINVAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid migration state {0}: expected 0 to 7")]
#[non_exhaustive]
pub struct UnknownState(pub u32);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_lead_back_to_the_state() {
        for state in State::ALL {
            assert_eq!(State::try_from(state.number()), Ok(state));
            assert_eq!(State::from_name(state.name()), Some(state));
            assert_eq!(State::from_name(&state.name().to_lowercase()), Some(state));
        }
    }

    #[test]
    fn numbers_past_the_last_state_are_refused() {
        for number in [8, 9, 255, 256, u32::MAX] {
            assert_eq!(State::try_from(number), Err(UnknownState(number)));
        }
    }
}
