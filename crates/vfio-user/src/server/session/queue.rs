//! Commands of a client that wait while the device waits for the client. What they ask is not known here.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use crate::descriptors::{DescriptorError, Descriptors, MAX_FDS};
use crate::message::Header;
use crate::server::error::ServeError;

/// Commands that may wait: more than a client sends at once that awaits any answer.
const MAX_COMMANDS: usize = 1 << 16;
/// Bytes that they may have together, with what it takes to keep them.
const MAX_BYTES: usize = 16 << 20;
/// Descriptors that they may have together: few enough for the usual limit of a process.
const MAX_DESCRIPTORS: usize = 2 * MAX_FDS;

/// A command that was read and not yet executed.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) header: Header,
    pub(crate) payload: Vec<u8>,
    pub(crate) descriptors: Result<Descriptors, DescriptorError>,
}

/// Commands in the order in which they came.
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

    /// Takes a command, whatever it is if it is the only one.
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

    pub(super) fn pop(&mut self) -> Option<Waiting> {
        let command = self.commands.pop_front()?;
        self.bytes -= command.bytes();
        self.descriptors -= command.descriptors();
        Some(command)
    }

    /// All of them, in their order.
    #[cfg(feature = "takeover")]
    pub(super) fn iter(&self) -> impl Iterator<Item = &Waiting> {
        self.commands.iter()
    }

    /// Forgets all, and closes their descriptors.
    pub(super) fn clear(&mut self) {
        *self = Queue::default();
    }
}
