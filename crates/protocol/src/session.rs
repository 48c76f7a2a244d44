//! Data sessions: when a data fd opens, when it ends, and what an empty read means.
//!
//! The file itself belongs to a driver in `whimbrel-device` and to a user in `whimbrel-user`.

use crate::{Errno, MigrationFlags, State, fsm};

/// The direction in which a data session transfers the device's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(clippy::exhaustive_enums, reason = "a state is either saved or loaded")]
pub enum Direction {
    /// The user reads the device's state (PRE_COPY, PRE_COPY_P2P, STOP_COPY).
    Saving,
    /// The user writes a state for the device to load (RESUMING).
    Resuming,
}

/// The effect of one arc on the data session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(clippy::exhaustive_enums, reason = "a caller must act on every effect")]
pub enum Effect {
    /// No session before or after.
    None,
    /// A session begins; one of the other direction has ended on an earlier arc.
    Opens(Direction),
    /// The session continues with the same fd.
    Continues,
    /// The session ends.
    Ends,
}

const fn direction(state: State) -> Option<Direction> {
    match state {
        State::StopCopy | State::PreCopy | State::PreCopyP2p => Some(Direction::Saving),
        State::Resuming => Some(Direction::Resuming),
        State::Error | State::Stop | State::Running | State::RunningP2p => None,
    }
}

/// Returns the effect of the arc `from` to `to` on the data session.
///
/// A session opens when an arc enters RESUMING, or enters the saving states from outside. Moves among PRE_COPY,
/// PRE_COPY_P2P and STOP_COPY keep it.
pub const fn effect(from: State, to: State) -> Effect {
    match (direction(from), direction(to)) {
        (None, None) => Effect::None,
        (Some(_), None) => Effect::Ends,
        (Some(Direction::Saving), Some(Direction::Saving))
        | (Some(Direction::Resuming), Some(Direction::Resuming)) => Effect::Continues,
        // No arc leads directly from one direction to the other.
        (_, Some(direction)) => Effect::Opens(direction),
    }
}

/// Returns the session that a successful request from `from` to `to` opens for the user, if its last step opens one.
///
/// Every other successful request returns `data_fd` -1, including the steps from PRE_COPY to STOP_COPY, where the open
/// fd continues.
pub fn opened_by(flags: MigrationFlags, from: State, to: State) -> Option<Direction> {
    let mut at = from;
    let mut opened = None;
    for step in fsm::path(flags, from, to).ok()? {
        opened = match effect(at, step) {
            Effect::Opens(direction) => Some(direction),
            Effect::None | Effect::Continues | Effect::Ends => None,
        };
        at = step;
    }
    opened
}

/// The meaning of a read from a saving session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(clippy::exhaustive_enums, reason = "a caller must tell apart every end")]
pub enum SavingRead {
    /// This many bytes of state, at least one.
    Data(usize),
    /// No data now; more may come while the device is in a pre-copy state, or after it enters STOP_COPY.
    TemporaryEnd,
    /// The whole state has been read.
    End,
}

/// Interprets the result of a read on a saving session, given the device's state.
///
/// The header gives ENOMSG for the temporary end of the pre-copy states; mlx5 and virtio return it, while mtty, qat and
/// hisi_acc return 0 there. Both are accepted. In STOP_COPY 0 is the final end, and ENOMSG is an error like any other.
pub fn saving_read(state: State, result: Result<usize, Errno>) -> Result<SavingRead, Errno> {
    match result {
        Ok(0) | Err(Errno::ENOMSG) if state.is_precopy() => Ok(SavingRead::TemporaryEnd),
        Ok(0) => Ok(SavingRead::End),
        Ok(count) => Ok(SavingRead::Data(count)),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_lives_from_the_arc_that_enters_to_the_arc_that_leaves() {
        use Direction::{Resuming, Saving};
        let cases = [
            (State::Running, State::PreCopy, Effect::Opens(Saving)),
            (State::RunningP2p, State::PreCopyP2p, Effect::Opens(Saving)),
            (State::Stop, State::StopCopy, Effect::Opens(Saving)),
            (State::Stop, State::Resuming, Effect::Opens(Resuming)),
            (State::PreCopy, State::PreCopyP2p, Effect::Continues),
            (State::PreCopyP2p, State::StopCopy, Effect::Continues),
            (State::PreCopy, State::StopCopy, Effect::Continues),
            (State::PreCopy, State::Running, Effect::Ends),
            (State::StopCopy, State::Stop, Effect::Ends),
            (State::Resuming, State::Stop, Effect::Ends),
            (State::Running, State::RunningP2p, Effect::None),
            (State::Stop, State::Running, Effect::None),
        ];
        for (from, to, expected) in cases {
            assert_eq!(effect(from, to), expected, "{from} -> {to}");
        }
    }

    #[test]
    fn both_zero_and_enomsg_end_a_precopy_read_for_now() {
        for state in [State::PreCopy, State::PreCopyP2p] {
            for result in [Ok(0), Err(Errno::ENOMSG)] {
                assert_eq!(saving_read(state, result), Ok(SavingRead::TemporaryEnd), "{state} {result:?}");
            }
        }
    }

    #[test]
    fn zero_in_stop_copy_is_the_end_and_enomsg_an_error() {
        assert_eq!(saving_read(State::StopCopy, Ok(0)), Ok(SavingRead::End));
        assert_eq!(saving_read(State::StopCopy, Err(Errno::ENOMSG)), Err(Errno::ENOMSG));
    }

    #[test]
    fn data_and_other_errors_pass_through() {
        for state in State::ALL {
            assert_eq!(saving_read(state, Ok(5)), Ok(SavingRead::Data(5)));
            assert_eq!(saving_read(state, Err(Errno::ENODEV)), Err(Errno::ENODEV));
        }
    }
}
