//! The messages of the handover.

/// A message of the handover.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(clippy::exhaustive_enums, reason = "each side must know every message")]
pub enum Message {
    /// Destination: memory is complete, every device accepted its state and can run.
    Ready,
    /// Source: the destination owns the devices. They will not run at the source again unless the destination sends
    /// [`Message::Failed`].
    Handover,
    /// Destination: every device runs here.
    Running,
    /// Destination: no device runs here and none ever will.
    Failed,
    /// Source: the migration is cancelled and the devices run at the source; discard the received state.
    Abort,
}

/// A message that is invalid in the receiver's phase: a protocol violation by the peer, or a duplicate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("protocol violation: unexpected {message:?} from the peer")]
#[non_exhaustive]
pub struct Unexpected {
    /// The message.
    pub message: Message,
}

impl Unexpected {
    pub(super) const fn new(message: Message) -> Unexpected {
        Unexpected { message }
    }
}
