//! One side of a record: the requests at the source's or the destination's device, and what follows from them.

use whimbrel_protocol::session::Direction;
use whimbrel_protocol::{Errno, MigrationFlags, State};

use super::record::{Exit, Interface, Record, Socket, Step};
use super::request::Request;
use super::user_case::Role;

/// The part of a record that a rule judges.
pub(crate) struct View<'a> {
    record: &'a Record,
    role: Role,
    steps: Vec<&'a Step>,
}

/// The life of one data file.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) number: u64,
    /// The bytes that were read or written.
    pub(crate) bytes: Vec<u8>,
    /// The errno of the last read or write that has failed, but for a temporary end.
    pub(crate) failed: Option<Errno>,
    /// The state was read to its end in STOP_COPY, or the device has taken the written one.
    pub(crate) is_whole: bool,
    /// The device was told that the written state is complete, whatever it made of it.
    pub(crate) is_offered: bool,
}

impl<'a> View<'a> {
    pub(crate) fn new(record: &'a Record, role: Role) -> View<'a> {
        let socket = match role {
            Role::Destination if record.has_second => Socket::Second,
            Role::Source | Role::Destination => Socket::First,
        };
        let mut steps: Vec<&Step> = record.steps.iter().filter(|step| step.socket == socket).collect();
        // What the kernel does at the program's end is not the program's doing.
        while steps.pop_if(|step| matches!(step.request, Request::Close { .. })).is_some() {}
        View { record, role, steps }
    }

    pub(crate) fn role(&self) -> Role {
        self.role
    }

    pub(crate) fn exit(&self) -> Exit {
        self.record.exit
    }

    pub(crate) fn flags(&self) -> MigrationFlags {
        self.record.flags
    }

    pub(crate) fn is_cut(&self) -> bool {
        self.record.is_cut
    }

    /// Returns the view of the other device; `None` if the program has a single one.
    pub(crate) fn other(&self) -> Option<View<'a>> {
        let role = match self.role {
            Role::Source => Role::Destination,
            Role::Destination => Role::Source,
        };
        self.record.has_second.then(|| View::new(self.record, role))
    }

    pub(crate) fn steps(&self) -> impl Iterator<Item = &'a Step> + '_ {
        self.steps.iter().copied()
    }

    pub(crate) fn requests(&self) -> impl Iterator<Item = &'a Request> + '_ {
        self.steps().map(|step| &step.request)
    }

    /// Returns the state in which the device is left.
    pub(crate) fn last_state(&self) -> State {
        self.requests().fold(State::Running, |state, request| match request {
            Request::GetState(state) => *state,
            Request::SetState { now, .. } => *now,
            request if request.has_reset() => State::Running,
            _ => state,
        })
    }

    /// Returns whether the program's output tells that the device is in a state: it names the state in the header's
    /// spelling, or says that the device has to be reset.
    pub(crate) fn tells(&self, state: State) -> bool {
        self.record.said.lines().any(|line| line_tells(line, state))
    }

    /// Returns whether the program can tell an error of a data file from its end: over plain vfio-user it cannot. Requests
    /// that exist in our migration extensions alone show that it speaks these.
    pub(crate) fn tells_errors_from_the_end(&self) -> bool {
        let is_extension = |request: &Request| {
            let sees_p2p =
                matches!(request, Request::SetState { to: State::RunningP2p | State::PreCopyP2p, .. });
            let asks = matches!(request, Request::DataSize(_) | Request::PrecopyInfo { .. });
            sees_p2p || asks || matches!(request, Request::PrecopyInfoV2(_))
        };
        self.record.interface != Interface::VfioUser || self.requests().any(is_extension)
    }

    /// Returns the data files that save, or those that load a state, in order.
    pub(crate) fn sessions(&self) -> Vec<Session> {
        let wanted = match self.role {
            Role::Source => Direction::Saving,
            Role::Destination => Direction::Resuming,
        };
        let mut sessions: Vec<Session> = Vec::new();
        for request in self.requests() {
            match request {
                Request::SetState { result: Ok(Some((number, direction))), .. } if *direction == wanted => {
                    sessions.push(Session {
                        number: *number,
                        bytes: Vec::new(),
                        failed: None,
                        is_whole: false,
                        is_offered: false,
                    });
                }
                Request::SetState { from: State::Resuming, now, .. } if wanted == Direction::Resuming => {
                    if let Some(session) = sessions.last_mut() {
                        session.is_offered = true;
                        session.is_whole |= !matches!(now, State::Resuming | State::Error);
                    }
                }
                Request::Read { session, state, result } if wanted == Direction::Saving => {
                    if let Some(found) = sessions.iter_mut().find(|found| found.number == *session) {
                        found.read(*state, result);
                    }
                }
                Request::Write { session, result, .. } if wanted == Direction::Resuming => {
                    if let Some(found) = sessions.iter_mut().find(|found| found.number == *session) {
                        match result {
                            Ok(bytes) => found.bytes.extend_from_slice(bytes),
                            Err(errno) => found.failed = Some(*errno),
                        }
                    }
                }
                _ => {}
            }
        }
        sessions
    }
}

impl Session {
    fn read(&mut self, state: State, result: &Result<Vec<u8>, Errno>) {
        match result {
            Ok(bytes) if bytes.is_empty() => self.is_whole |= state == State::StopCopy,
            Ok(bytes) => self.bytes.extend_from_slice(bytes),
            Err(Errno::ENOMSG) if state.is_precopy() => {}
            Err(errno) => self.failed = Some(*errno),
        }
    }
}

/// Returns whether a request is a read at the temporary end of pre-copy, with either answer.
pub(crate) fn is_temporary_end(request: &Request) -> bool {
    match request {
        Request::Read { state, result: Ok(bytes), .. } => state.is_precopy() && bytes.is_empty(),
        Request::Read { state, result: Err(Errno::ENOMSG), .. } => state.is_precopy(),
        _ => false,
    }
}

/// Words before ERROR that make it a state. Without one of them it is a log level.
const BEFORE_ERROR: [&str; 7] = ["in", "into", "to", "is", "was", "state", "device"];

/// The requests for a reset: naming the one that has failed tells that the device has to be reset.
const RESETS: [&str; 2] = ["VFIO_DEVICE_RESET", "VFIO_USER_DEVICE_RESET"];

/// Returns whether a line names a device's state, or a reset. A connection that was reset is not a device.
fn line_tells(line: &str, state: State) -> bool {
    let lower = line.to_ascii_lowercase();
    let is_of_connection = lower.contains("reset by peer") || lower.contains("connection reset");
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words: Vec<&str> = line.split(|c| !is_part(c)).filter(|word| !word.is_empty()).collect();
    words.iter().enumerate().any(|(at, word)| {
        let is_level = state == State::Error && {
            let before = at.checked_sub(1).map(|before| words[before].to_ascii_lowercase());
            !before.is_some_and(|before| BEFORE_ERROR.contains(&before.as_str()))
        };
        let is_reset = word.eq_ignore_ascii_case("reset") || RESETS.contains(word);
        *word == state.name() && !is_level || is_reset && !is_of_connection
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_level_and_a_lost_connection_tell_no_state() {
        let cases = [
            ("the device is in ERROR", State::Error, true),
            ("vmm: state ERROR, reset it", State::Error, true),
            ("the device stands in STOP", State::Stop, true),
            ("reset the device: whimbrel reset", State::Stop, true),
            ("0100:00:00.0: VFIO_DEVICE_RESET: EIO", State::Error, true),
            ("ERROR vmm: giving up", State::Error, false),
            ("2026-01-01 ERROR giving up", State::Error, false),
            ("Connection reset by peer", State::Stop, false),
            ("STOP_COPY failed", State::Stop, false),
            ("", State::Running, false),
        ];
        for (line, state, tells) in cases {
            assert_eq!(line_tells(line, state), tells, "{line}");
        }
    }
}
