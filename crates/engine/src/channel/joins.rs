//! Further connections at the destination of a migration: each proves by its first frame that it is the source's.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::rand::{GetRandomFlags, getrandom};

use super::wait::retry;
use super::{Channel, ChannelError, Receiver, Sender, Until};
use crate::proto::control::{Control, Reason};
use crate::proto::frame::Kind;
use crate::proto::join::{Expected, Join, NoSuchMigration, Purpose, SECRET_BYTES, Secret};

/// The longest time for a peer that was refused to read the reason.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);

/// The door of a destination for further connections of its source. Clones are the same.
///
/// A [`Listener`](super::Listener) hands over the connections that it accepts. A program with a transport of its own sets one
/// with [`Destination::joins`](crate::Destination::joins), and gives it each connection with [`Joins::join`].
#[derive(Clone, Debug, Default)]
pub struct Joins(Arc<Mutex<Option<Open>>>);

/// The expectations of a migration under way.
struct Open {
    expected: Expected,
    /// The identity of the peer on the control connection.
    identity: Option<Vec<u8>>,
    taker: Box<dyn FnMut(Further) + Send>,
}

/// A further connection that was admitted and has not been answered yet.
#[derive(Debug)]
pub(crate) struct Further {
    pub(crate) purpose: Purpose,
    pub(crate) sender: Sender,
    pub(crate) receiver: Receiver,
}

/// The reasons why a connection has not joined a migration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// Its first frame did not arrive, or is another one.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// It does not belong to the migration of this destination, or is not expected.
    #[error(transparent)]
    NoSuchMigration(#[from] NoSuchMigration),
}

impl Joins {
    /// Returns a door that is closed until a migration begins.
    pub fn new() -> Joins {
        Joins::default()
    }

    /// Waits for the first frame of a connection, and hands the connection over to the migration that it belongs to. The peer
    /// of one that does not is told so, and has a second to read that.
    pub fn join(&self, channel: impl Channel + 'static, until: Until<'_>) -> Result<(), JoinError> {
        let channel: Arc<dyn Channel> = Arc::new(channel);
        let (mut sender, mut receiver) = (Sender::new(channel.clone()), Receiver::new(channel));
        if let Control::Join(join) = receiver.greeting(Kind::Join, until)? {
            match self.take(&join, sender, receiver) {
                Ok(()) => return Ok(()),
                Err(refused) => (sender, receiver) = *refused,
            }
        }
        let failed = Control::Failed(Reason { reason: NoSuchMigration.to_string() });
        sender.send_now(&failed.into(), until)?;
        sender.finish(until)?;
        // Closing with unread data would discard the reason unread. The peer reads it at once, or not at all.
        if let Err(error) = receiver.drain(until.at_most(Instant::now() + LEAVE_TIMEOUT)) {
            tracing::debug!(%error, "a connection that was refused has not been closed by its peer");
        }
        Err(NoSuchMigration.into())
    }

    /// Lets connections in that are expected. `taker` gets each one, in a call that must not wait.
    pub(crate) fn open(
        &self,
        expected: Expected,
        identity: Option<Vec<u8>>,
        taker: impl FnMut(Further) + Send + 'static,
    ) {
        *self.0.lock() = Some(Open { expected, identity, taker: Box::new(taker) });
    }

    /// Refuses lanes from here on. None is being handed over once this returns.
    pub(crate) fn forget_lanes(&self) {
        if let Some(open) = &mut *self.0.lock() {
            open.expected.forget_lanes();
        }
    }

    /// Lets the lanes in that stand beside the replacement with this number.
    pub(crate) fn expect_lanes_of(&self, resumption: u32) {
        if let Some(open) = &mut *self.0.lock() {
            open.expected.expect_lanes_of(resumption);
        }
    }

    /// Refuses all from here on.
    pub(crate) fn close(&self) {
        // What the taker holds is dropped without the lock.
        let open = self.0.lock().take();
        drop(open);
    }

    /// Returns whether a connection may be expected.
    pub(super) fn is_open(&self) -> bool {
        self.0.lock().is_some()
    }

    /// Hands over a connection with this first frame, or gives it back.
    pub(super) fn take(
        &self,
        join: &Join,
        sender: Sender,
        receiver: Receiver,
    ) -> Result<(), Box<(Sender, Receiver)>> {
        let identity = receiver.peer_identity();
        let mut open = self.0.lock();
        if let Some(open) = &mut *open
            && open.identity == identity
            && open.expected.admit(join).is_ok()
        {
            (open.taker)(Further { purpose: join.purpose, sender, receiver });
            return Ok(());
        }
        Err(Box::new((sender, receiver)))
    }
}

impl std::fmt::Debug for Open {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Open").field("expected", &self.expected).finish_non_exhaustive()
    }
}

/// Returns a secret of the system's randomness.
pub(crate) fn new_secret() -> io::Result<Secret> {
    let mut bytes = [0; SECRET_BYTES];
    // The system gives up to 256 bytes at once, or none.
    retry(|| getrandom(&mut bytes, GetRandomFlags::empty()))?;
    Ok(Secret::new(bytes))
}
