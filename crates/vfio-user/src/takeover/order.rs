//! The order of the old server's messages from the acceptance on, by the version of the protocol, without I/O.

use super::wire::{Message, PRECOPY_VERSION};

/// The part of the takeover that a message belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// The state moves while the device runs.
    Precopy,
    /// The state so far is void.
    Discard,
    /// The device is stopped.
    Begin,
    /// Bytes of the device's state.
    State,
    /// Everything else that is sent of a stopped device.
    Setup,
    /// Everything was sent.
    End,
    /// No message of the old server in this phase.
    Foreign,
}

impl Part {
    pub(super) fn of(message: &Message) -> Part {
        match message {
            Message::Precopy => Part::Precopy,
            Message::Discard => Part::Discard,
            Message::Begin(_) => Part::Begin,
            Message::State { .. } => Part::State,
            Message::Configuration
            | Message::Descriptors
            | Message::Interrupts(_)
            | Message::Ioeventfds { .. }
            | Message::Client(_)
            | Message::Mappings { .. }
            | Message::Log(_)
            | Message::Dirty(_)
            | Message::Unread(_)
            | Message::Waiting(_)
            | Message::More => Part::Setup,
            Message::End { .. } => Part::End,
            Message::Request { .. }
            | Message::Offer { .. }
            | Message::Accept
            | Message::Ready
            | Message::Handover
            | Message::Running
            | Message::Failed { .. }
            | Message::Abort { .. } => Part::Foreign,
        }
    }
}

/// The messages that have come so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Accepted,
    Precopy,
    /// Pre-copy has ended with nothing.
    Discarded,
    Stopped,
    Ended,
}

/// The work of the new server on a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Bring the device to RESUMING.
    Resume,
    /// Reset the device, which drops what was loaded.
    Reset,
    /// Go on with the session that is open.
    Continue,
    /// Load the bytes into the device.
    Load,
    /// Keep the message.
    Keep,
    /// Check that everything has come.
    Finish,
}

/// The messages that may come next.
#[derive(Debug)]
pub(super) struct Order {
    version: u32,
    phase: Phase,
}

impl Order {
    /// Returns the order of a takeover of this version, whose offer was accepted.
    pub(super) fn new(version: u32) -> Order {
        Order { version, phase: Phase::Accepted }
    }

    /// Takes the next message. `None` if it must not come now.
    pub(super) fn take(&mut self, part: Part) -> Option<Action> {
        let has_precopy = self.version >= PRECOPY_VERSION;
        let (phase, action) = match (self.phase, part) {
            (Phase::Accepted, Part::Precopy) if has_precopy => (Phase::Precopy, Action::Resume),
            (Phase::Precopy, Part::State) => (Phase::Precopy, Action::Load),
            (Phase::Precopy, Part::Discard) => (Phase::Discarded, Action::Reset),
            (Phase::Precopy, Part::Begin) => (Phase::Stopped, Action::Continue),
            (Phase::Accepted | Phase::Discarded, Part::Begin) => (Phase::Stopped, Action::Resume),
            (Phase::Stopped, Part::State) => (Phase::Stopped, Action::Load),
            (Phase::Stopped, Part::Setup) => (Phase::Stopped, Action::Keep),
            (Phase::Stopped, Part::End) => (Phase::Ended, Action::Finish),
            _ => return None,
        };
        self.phase = phase;
        Some(action)
    }

    /// Returns whether the device runs on the old server, which sends its state meanwhile.
    pub(super) fn is_in_precopy(&self) -> bool {
        self.phase == Phase::Precopy
    }

    pub(super) fn has_ended(&self) -> bool {
        self.phase == Phase::Ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARTS: [Part; 7] =
        [Part::Precopy, Part::Discard, Part::Begin, Part::State, Part::Setup, Part::End, Part::Foreign];

    fn taken(version: u32, parts: &[Part]) -> Option<Vec<Action>> {
        let mut order = Order::new(version);
        parts.iter().map(|part| order.take(*part)).collect()
    }

    /// All sequences of parts, as letters, that must be accepted: an expression for each version.
    fn is_expected(version: u32, parts: &[Part]) -> bool {
        let mut rest = parts;
        let mut skip = |part: Part, most: usize| {
            let count = rest.iter().take_while(|next| **next == part).take(most).count();
            rest = &rest[count..];
            count
        };
        if version >= PRECOPY_VERSION && skip(Part::Precopy, 1) == 1 {
            skip(Part::State, usize::MAX);
            skip(Part::Discard, 1);
        }
        if skip(Part::Begin, 1) == 1 {
            while skip(Part::State, usize::MAX) + skip(Part::Setup, usize::MAX) > 0 {}
            skip(Part::End, 1);
        }
        rest.is_empty()
    }

    #[test]
    fn of_all_sequences_those_and_only_those_of_the_protocol_are_taken() {
        const LENGTH: u32 = 6;
        for version in [1, PRECOPY_VERSION] {
            let mut accepted = 0;
            for number in 0..PARTS.len().pow(LENGTH) {
                let mut number = number;
                let parts: [Part; LENGTH as usize] = std::array::from_fn(|_| {
                    let part = PARTS[number % PARTS.len()];
                    number /= PARTS.len();
                    part
                });
                let actions = taken(version, &parts);
                assert_eq!(actions.is_some(), is_expected(version, &parts), "{version}: {parts:?}");
                let Some(actions) = actions else { continue };
                accepted += 1;
                // A session is open for each piece that is loaded, and no second one is opened in it.
                let mut is_open = false;
                for action in actions {
                    match action {
                        Action::Resume => assert!(!std::mem::replace(&mut is_open, true), "{parts:?}"),
                        Action::Reset => assert!(std::mem::take(&mut is_open), "{parts:?}"),
                        Action::Continue | Action::Load | Action::Keep | Action::Finish => {
                            assert!(is_open, "{parts:?}");
                        }
                    }
                }
            }
            assert!(accepted > 0);
        }
    }

    #[test]
    fn a_takeover_is_in_pre_copy_between_its_two_messages() {
        let mut order = Order::new(PRECOPY_VERSION);
        assert!(!order.is_in_precopy());
        order.take(Part::Precopy);
        assert!(order.is_in_precopy() && !order.has_ended());
        order.take(Part::State);
        assert!(order.is_in_precopy());
        order.take(Part::Begin);
        assert!(!order.is_in_precopy());
        order.take(Part::End);
        assert!(order.has_ended());
    }
}
