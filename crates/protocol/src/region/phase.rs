//! Phases of a device with a migration region, in the words of the specification, and the v2 states that the
//! device behind the region passes through for each.

use core::fmt;

use crate::fsm::{self, Path, Refused};
use crate::{MigrationFlags, State};

/// A phase of a device with a migration region. v1 and the draft have the same five.
///
/// It is not a [`State`]: v1's numbers mean other states in v2, and a region has no P2P states.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(clippy::exhaustive_enums, reason = "v1 and the draft are of the past and do not grow")]
pub enum Phase {
    /// Stopped, neither saving nor resuming (000b).
    Stop,
    /// Running, the default (001b).
    Running,
    /// Stopped while its state is saved (010b).
    StopAndCopy,
    /// Running while its state is saved (011b).
    PreCopy,
    /// Stopped while a state is loaded (100b).
    Resuming,
}

/// The transitions in v1's diagram, which a device with a region must support. Others may be tried.
///
/// ```
/// use whimbrel_protocol::region::{Phase, TEXT_TRANSITIONS};
///
/// assert!(TEXT_TRANSITIONS.contains(&(Phase::Resuming, Phase::Running)));
/// assert!(!TEXT_TRANSITIONS.contains(&(Phase::StopAndCopy, Phase::PreCopy)));
/// ```
pub const TEXT_TRANSITIONS: [(Phase, Phase); 7] = [
    (Phase::Running, Phase::Stop),
    (Phase::Running, Phase::StopAndCopy),
    (Phase::StopAndCopy, Phase::Stop),
    (Phase::Running, Phase::PreCopy),
    (Phase::PreCopy, Phase::StopAndCopy),
    (Phase::Running, Phase::Resuming),
    (Phase::Resuming, Phase::Running),
];

impl Phase {
    /// Every phase, in ascending order of its bits.
    pub const ALL: [Phase; 5] =
        [Phase::Stop, Phase::Running, Phase::StopAndCopy, Phase::PreCopy, Phase::Resuming];

    /// Returns whether the SAVING bit is set.
    pub const fn is_saving(self) -> bool {
        matches!(self, Phase::StopAndCopy | Phase::PreCopy)
    }

    /// Returns whether the RUNNING bit is set.
    pub const fn is_running(self) -> bool {
        matches!(self, Phase::Running | Phase::PreCopy)
    }

    /// Returns the v2 state of a device with these flags in this phase.
    ///
    /// A region must offer pre-copy even if no data comes before stop-and-copy: a device without PRE_COPY
    /// then stays in RUNNING.
    pub const fn v2_state(self, flags: MigrationFlags) -> State {
        match self {
            Phase::Stop => State::Stop,
            Phase::StopAndCopy => State::StopCopy,
            Phase::PreCopy if fsm::supports(flags, State::PreCopy) => State::PreCopy,
            Phase::Running | Phase::PreCopy => State::Running,
            Phase::Resuming => State::Resuming,
        }
    }

    /// Returns the phase that corresponds to a v2 state; `None` for ERROR and the P2P states, which a region
    /// does not have.
    pub const fn of_v2_state(state: State) -> Option<Phase> {
        match state {
            State::Stop => Some(Phase::Stop),
            State::Running => Some(Phase::Running),
            State::StopCopy => Some(Phase::StopAndCopy),
            State::PreCopy => Some(Phase::PreCopy),
            State::Resuming => Some(Phase::Resuming),
            State::Error | State::RunningP2p | State::PreCopyP2p => None,
        }
    }

    /// Returns the specification's name, such as `stop-and-copy`.
    pub const fn name(self) -> &'static str {
        match self {
            Phase::Stop => "stop",
            Phase::Running => "running",
            Phase::StopAndCopy => "stop-and-copy",
            Phase::PreCopy => "pre-copy",
            Phase::Resuming => "resuming",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Returns the v2 arcs that a device with `flags` executes when its region goes from one phase to another.
///
/// Every change is possible for which v2 has a path. From stop-and-copy to pre-copy no path exists, even on
/// a device without PRE_COPY: the data would have to start over, and a user could not see where.
///
/// ```
/// use whimbrel_protocol::region::{Phase, v2_path};
/// use whimbrel_protocol::{MigrationFlags, State};
///
/// let flags = MigrationFlags::STOP_COPY | MigrationFlags::P2P;
/// let path: Vec<State> = v2_path(flags, Phase::Resuming, Phase::Running)?.collect();
/// assert_eq!(path, [State::Stop, State::RunningP2p, State::Running]);
/// // Without PRE_COPY nothing happens for pre-copy.
/// assert_eq!(v2_path(flags, Phase::Running, Phase::PreCopy)?.count(), 0);
/// # Ok::<(), whimbrel_protocol::fsm::Refused>(())
/// ```
pub fn v2_path(flags: MigrationFlags, from: Phase, to: Phase) -> Result<Path, Refused> {
    v2_path_from(flags, from, from.v2_state(flags), to)
}

/// Returns the same as [`v2_path`] for a device that a failure has left in a state other than its phase's.
pub(super) fn v2_path_from(
    flags: MigrationFlags,
    from: Phase,
    behind: State,
    to: Phase,
) -> Result<Path, Refused> {
    if (from, to) == (Phase::StopAndCopy, Phase::PreCopy) {
        return Err(Refused::NoPath { from: State::StopCopy, to: State::PreCopy });
    }
    fsm::path(flags, behind, to.v2_state(flags))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETS: [MigrationFlags; 4] = [
        MigrationFlags::STOP_COPY,
        MigrationFlags::STOP_COPY.union(MigrationFlags::P2P),
        MigrationFlags::STOP_COPY.union(MigrationFlags::PRE_COPY),
        MigrationFlags::all(),
    ];

    #[test]
    fn every_change_that_the_text_draws_has_a_path_on_every_device() {
        for flags in SETS {
            for (from, to) in TEXT_TRANSITIONS {
                let path = v2_path(flags, from, to);
                assert!(path.is_ok(), "{flags:?} {from} -> {to}: {path:?}");
            }
        }
    }

    #[test]
    fn only_stop_and_copy_to_pre_copy_has_no_path() {
        for flags in SETS {
            for from in Phase::ALL {
                for to in Phase::ALL {
                    let refused = (from, to) == (Phase::StopAndCopy, Phase::PreCopy);
                    assert_eq!(v2_path(flags, from, to).is_err(), refused, "{flags:?} {from} -> {to}");
                }
            }
        }
    }

    #[test]
    fn a_path_passes_the_states_that_the_devices_flags_name() {
        use State::{PreCopy, PreCopyP2p, Resuming, Running, RunningP2p, Stop, StopCopy};
        let cases: [(u64, Phase, Phase, &[State]); 9] = [
            (1, Phase::Running, Phase::StopAndCopy, &[Stop, StopCopy]),
            (1, Phase::PreCopy, Phase::StopAndCopy, &[Stop, StopCopy]),
            (1, Phase::Running, Phase::Resuming, &[Stop, Resuming]),
            (3, Phase::Running, Phase::StopAndCopy, &[RunningP2p, Stop, StopCopy]),
            (5, Phase::Running, Phase::PreCopy, &[PreCopy]),
            (5, Phase::PreCopy, Phase::StopAndCopy, &[StopCopy]),
            (7, Phase::PreCopy, Phase::StopAndCopy, &[PreCopyP2p, StopCopy]),
            (7, Phase::Resuming, Phase::Running, &[Stop, RunningP2p, Running]),
            (7, Phase::StopAndCopy, Phase::Stop, &[Stop]),
        ];
        for (flags, from, to, expected) in cases {
            let path = v2_path(MigrationFlags::from_bits_retain(flags), from, to).unwrap();
            assert_eq!(path.collect::<Vec<_>>(), expected, "{flags} {from} -> {to}");
        }
    }

    #[test]
    fn phases_lead_to_v2_states_and_back_where_the_device_has_them() {
        for phase in Phase::ALL {
            assert_eq!(Phase::of_v2_state(phase.v2_state(MigrationFlags::all())), Some(phase));
        }
        for state in [State::Error, State::RunningP2p, State::PreCopyP2p] {
            assert_eq!(Phase::of_v2_state(state), None, "{state}");
        }
    }
}
