//! Peers that come while a migration is in progress: those that join it are handed over, and all others are refused.

use super::{Failure, GREETING_TIMEOUT, MIGRATING, Unknown, Visitors, busy, failure_of};
use crate::channel::{ChannelError, Joins, Until};
use crate::proto::control::Control;
use crate::proto::frame::Kind;
use crate::proto::join::{Join, NoSuchMigration};

impl Unknown {
    /// Takes in what has arrived. Returns the first frame once it is complete, and `None` before.
    fn first_frame(&mut self) -> Result<Option<Join>, Failure> {
        match self.receiver.greeting(Kind::Join, Until::now()) {
            Ok(Control::Join(join)) => Ok(Some(join)),
            Err(ChannelError::TimedOut) if self.since.elapsed() < GREETING_TIMEOUT => Ok(None),
            Err(error @ ChannelError::Closed) => Err(Failure::Left(error.to_string())),
            Err(ChannelError::Failed(error)) => Err(failure_of(&error)),
            Ok(_) | Err(_) => Err(Failure::Refused(busy(MIGRATING))),
        }
    }
}

impl Visitors {
    /// Hands over the peers that join the migration, and refuses the others.
    pub(super) fn join(&mut self, joins: &Joins) {
        let mut at = 0;
        while let Some(peer) = self.unknown.get_mut(at) {
            match peer.first_frame() {
                Ok(None) => at += 1,
                Ok(Some(join)) => {
                    let peer = self.unknown.remove(at);
                    self.hand_over(peer, &join, joins);
                }
                Err(failure) => {
                    let peer = self.unknown.remove(at);
                    match failure {
                        Failure::Refused(reason) if reason == busy(MIGRATING) => {
                            self.warn_of_another(&peer);
                            self.refuse(peer, &reason);
                        }
                        failure => self.dismiss(peer, failure),
                    }
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
