//! A client that is served without waiting: by an event loop, a few messages at a time.

use super::channel::Next;
use super::client::Client;
use super::queue::Waiting;
use crate::server::error::ServeError;
use crate::socket::Incoming;

/// Messages that are executed at once. Others are served in between.
const MAX_MESSAGES: usize = 64;

/// What became of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// There may be more to do at once.
    More,
    /// There is nothing to do until its socket is ready.
    Idle,
    /// It has left.
    Left,
    /// It is as it was between two messages, and all that was executed is answered.
    Rests,
}

impl Client {
    /// Executes what has come, and sends what there is room for. A message of which a part has come is kept.
    pub(super) fn step(&mut self) -> Result<Step, ServeError> {
        let channel = self.channel.clone();
        let stepped = self.steps();
        let is_over = !matches!(stepped, Ok(Step::More | Step::Idle | Step::Rests));
        // An access of the device may have ended the connection, and only it knows why.
        let asked = self.twin.as_ref().unwrap_or(&channel);
        if is_over { asked.take_reason().map_or(stepped, Err) } else { stepped }
    }

    fn steps(&mut self) -> Result<Step, ServeError> {
        let channel = self.channel.clone();
        for _ in 0..MAX_MESSAGES {
            self.flush()?;
            // A client that takes no answers is not asked for more commands.
            if !channel.send_unsent()? {
                return Ok(Step::Idle);
            }
            if self.rests()? {
                return Ok(Step::Rests);
            }
            let Some(next) = channel.next_now(self.limits()) else { return Ok(Step::Idle) };
            let Waiting { header, payload, descriptors } = match next {
                Next::Command(command) => command,
                Next::Rest => continue,
                Next::Over(None) => return Ok(Step::Left),
                Next::Over(Some(error)) => return Err(self.cannot_go_on(error)),
            };
            let next = self.message(Incoming { header, payload: &payload, descriptors })?;
            if let std::ops::ControlFlow::Break(error) = next {
                self.flush()?;
                return Err(error);
            }
        }
        Ok(Step::More)
    }
}
