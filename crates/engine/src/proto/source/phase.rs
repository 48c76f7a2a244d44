//! The phases of the source.

use super::Back;

/// The phases of a migration, by the event that each one awaits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// HELLO is sent; ACCEPT is awaited.
    Hello,
    /// TABLE is sent; FITS is awaited.
    Table,
    /// Further connections are opened: once FITS has arrived, and beside each control connection that replaces a lost one.
    Lanes,
    /// The logs start, and the devices enter PRE_COPY.
    Precopy,
    /// The devices report the size of their data.
    RoundQuery,
    /// Memory and device state are sent.
    RoundSend,
    /// ROUND is sent; ROUND_DONE is awaited.
    RoundEnd,
    /// PING is sent; PONG is awaited.
    Ping,
    /// The devices' logs are read, and the remaining data is queried.
    RoundLeft,
    /// The other logs are read.
    RoundMemoryLeft,
    /// The owner is asked to write less, after a round that was no better.
    Slow,
    /// A connection is lost in pre-copy: transfers are interrupted, and calls into drivers end.
    Broken,
    /// A connection is lost: all are ended, another one to the destination is made, and JOIN is sent on it.
    Reconnect,
    /// JOIN is sent; RESUMED is awaited.
    Join,
    /// The state that the destination lacks is sent again.
    Resend,
    /// The journal records that the devices may be handed over, and the devices are asked for REINIT a last time.
    Record,
    /// The owner pauses.
    Pause,
    /// The devices enter a P2P state.
    Quiesce,
    /// The devices stop, and begin to send the rest.
    Stop,
    /// The rest is sent.
    Rest,
    /// END is sent; READY is awaited.
    End,
    /// HANDOVER may have been sent; RUNNING or FAILED is awaited.
    Committed,
    /// The destination runs the devices: they are released here.
    Release,
    /// After a failure: transfers are interrupted, and calls into drivers end.
    Settle(Then),
    /// After a failure: the devices are returned to RUNNING.
    Back(Back),
    /// After a failure: the devices may belong to the destination, and are kept stopped.
    Park,
    /// Nothing follows.
    Over,
}

/// The phases that follow after a failure has settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// [`Phase::Back`].
    Back,
    /// [`Phase::Park`].
    Park,
    /// [`Phase::Release`].
    Release,
}
