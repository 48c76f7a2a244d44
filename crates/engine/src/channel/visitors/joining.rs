//! Peers that come while a migration is in progress: those that join it are handed over, and all others are refused.

use super::unknown::{Failure, Unknown, failure_of};
use super::{GREETING_TIMEOUT, Visitors, busy};
use crate::channel::{ChannelError, Joins, Until};
use crate::proto::control::Control;
use crate::proto::frame::Kind;
use crate::proto::join::{Join, NoSuchMigration};

/// The first frame of a peer.
enum First {
    /// It has not arrived yet.
    Pending,
    Join(Join),
    /// That of another sender, or of none.
    Other,
}

impl Unknown {
    /// Takes in what has arrived.
    fn first_frame(&mut self) -> Result<First, Failure> {
        match self.receiver.greeting(Kind::Join, Until::now()) {
            Ok(Control::Join(join)) => Ok(First::Join(join)),
            Err(ChannelError::TimedOut) if self.since.elapsed() < GREETING_TIMEOUT => Ok(First::Pending),
            Err(error @ ChannelError::Closed) => Err(Failure::Left(error.to_string())),
            Err(ChannelError::Failed(error)) => Err(failure_of(&error)),
            Ok(_) | Err(_) => Ok(First::Other),
        }
    }
}

impl Visitors {
    /// Hands over the peers that join the migration, and refuses the others.
    pub(super) fn join(&mut self, joins: &Joins) {
        let mut at = 0;
        while let Some(peer) = self.unknown.get_mut(at) {
            match peer.first_frame() {
                Ok(First::Pending) => at += 1,
                Ok(First::Join(join)) => {
                    let peer = self.unknown.remove(at);
                    self.hand_over(peer, &join, joins);
                }
                Ok(First::Other) => {
                    let peer = self.unknown.remove(at);
                    self.warn_of_another(&peer);
                    self.refuse(peer, &busy());
                }
                Err(failure) => {
                    let peer = self.unknown.remove(at);
                    self.dismiss(peer, failure);
                }
            }
        }
    }

    fn hand_over(&mut self, peer: Unknown, join: &Join, joins: &Joins) {
        let Unknown { stream, name, sender, receiver, since, accepted } = peer;
        match joins.take(join, sender, receiver) {
            Ok(()) => {
                tracing::debug!(peer = %name, purpose = ?join.purpose, "a connection joins the migration");
            }
            Err(back) => {
                let (sender, receiver) = *back;
                let peer = Unknown { stream, name, sender, receiver, since, accepted };
                self.dismiss(peer, Failure::Refused(NoSuchMigration.to_string()));
            }
        }
    }
}
