//! Commands of a client that wait while the device waits for the client. This module does not interpret them.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use crate::descriptors::{DescriptorError, Descriptors, MAX_FDS};
use crate::message::Header;
use crate::server::error::ServeError;

/// Maximum commands in the queue: more than a client that awaits answers sends at once.
const MAX_COMMANDS: usize = 1 << 16;
/// Maximum bytes of the queue, including its overhead.
const MAX_BYTES: usize = 16 << 20;
/// Maximum descriptors of the queue: within the usual limit of a process.
const MAX_DESCRIPTORS: usize = 2 * MAX_FDS;

/// A command that was read and not executed yet.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) header: Header,
    pub(crate) payload: Vec<u8>,
    pub(crate) descriptors: Result<Descriptors, DescriptorError>,
}

/// Commands in the order received.
#[derive(Debug, Default)]
pub(super) struct Queue {
    commands: VecDeque<Waiting>,
    bytes: usize,
    descriptors: usize,
}

impl Waiting {
    fn bytes(&self) -> usize {
        size_of::<Waiting>() + self.payload.len() + self.descriptors() * size_of::<OwnedFd>()
    }

    fn descriptors(&self) -> usize {
        self.descriptors.as_ref().map_or(0, |descriptors| descriptors.len())
    }
}

impl Queue {
    pub(super) fn is_empty(&self) -> bool {
        self.commands.is_empty()
    }

    /// Appends a command, of any size if the queue is empty.
    pub(super) fn push(&mut self, command: Waiting) -> Result<(), ServeError> {
        let (bytes, descriptors) = (self.bytes + command.bytes(), self.descriptors + command.descriptors());
        let is_full =
            self.commands.len() >= MAX_COMMANDS || bytes > MAX_BYTES || descriptors > MAX_DESCRIPTORS;
        if is_full && !self.commands.is_empty() {
            return Err(ServeError::Flood { commands: self.commands.len(), bytes: self.bytes });
        }
        self.commands.push_back(command);
        (self.bytes, self.descriptors) = (bytes, descriptors);
        Ok(())
    }

    /// Appends a command of another queue, in order. Its first one may have been put back to a full one.
    #[cfg(feature = "takeover")]
    pub(super) fn import(&mut self, command: Waiting) -> Result<(), ServeError> {
        let Some(first) = self.commands.pop_front() else { return self.push(command) };
        let (bytes, descriptors) = (first.bytes(), first.descriptors());
        (self.bytes, self.descriptors) = (self.bytes - bytes, self.descriptors - descriptors);
        let pushed = self.push(command);
        self.put_back(first);
        pushed
    }

    /// Puts back a command that was taken, as the next one.
    pub(super) fn put_back(&mut self, command: Waiting) {
        self.bytes += command.bytes();
        self.descriptors += command.descriptors();
        self.commands.push_front(command);
    }

    pub(super) fn pop(&mut self) -> Option<Waiting> {
        let command = self.commands.pop_front()?;
        self.bytes -= command.bytes();
        self.descriptors -= command.descriptors();
        Some(command)
    }

    /// Returns all commands in order.
    #[cfg(feature = "takeover")]
    pub(super) fn iter(&self) -> impl Iterator<Item = &Waiting> {
        self.commands.iter()
    }

    /// Removes all commands, and closes their descriptors.
    pub(super) fn clear(&mut self) {
        *self = Queue::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Kind;

    fn command(id: u16) -> Waiting {
        let header = Header { id, command: 1, size: 16, kind: Kind::Command { no_reply: false } };
        Waiting { header, payload: Vec::new(), descriptors: Ok(Descriptors::default()) }
    }

    #[cfg(feature = "takeover")]
    #[test]
    fn a_full_queue_to_which_a_command_was_put_back_continues_elsewhere() {
        let mut queue = Queue::default();
        while queue.push(command(0)).is_ok() {}
        let taken = queue.pop().expect("it is full");
        queue.push(command(1)).expect("there is room for one");
        queue.put_back(taken);
        let count = queue.iter().count();
        let mut next = Queue::default();
        for _ in 0..count {
            next.import(command(2)).expect("it was in the other");
        }
        next.import(command(3)).unwrap_err();
        assert!(
            matches!(next.push(command(3)), Err(ServeError::Flood { .. })),
            "a client's own is not taken"
        );
    }
}
