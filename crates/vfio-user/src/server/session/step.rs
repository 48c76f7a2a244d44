//! A client served without waiting: by an event loop, a few messages at a time.

use super::channel::Next;
use super::client::Client;
use super::queue::Waiting;
use crate::server::error::ServeError;
use crate::socket::Incoming;

/// Maximum messages to execute at once. Other work is done in between.
const MAX_MESSAGES: usize = 64;

/// The outcome of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// There may be more to do at once.
    More,
    /// There is nothing to do until its socket is ready.
    Idle,
    /// The client has left.
    Left,
    /// The client rests between two messages, and all executed commands are answered.
    Rests,
}

impl Client {
    /// Executes the messages that have arrived, and sends as much as there is room for. A partial message is kept.
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
        self.waits_for_takeover = false;
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
            if self.waits_for_takeover {
                if !self.ends_precopy() {
                    // Its stop, its end, or that of the connection wakes the loop.
                    return Ok(Step::Idle);
                }
                self.waits_for_takeover = false;
            }
        }
        Ok(Step::More)
    }
}
