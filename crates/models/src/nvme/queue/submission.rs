//! A submission queue: the host puts commands in at the tail, the controller fetches them at the head.

use super::super::command::SUBMISSION_BYTES;
use super::{InvalidDoorbell, fits};

/// A submission queue. `head` and `tail` are below `entries`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct SubmissionQueue {
    pub(in super::super) base: u64,
    /// At least 2.
    pub(in super::super) entries: u32,
    /// The completion queue of its commands.
    pub(in super::super) completion_queue: u16,
    pub(in super::super) head: u32,
    pub(in super::super) tail: u32,
}

impl SubmissionQueue {
    /// Returns an empty queue; `None` if it does not fit into the address space.
    pub(in super::super) fn new(base: u64, entries: u32, completion_queue: u16) -> Option<SubmissionQueue> {
        let queue = SubmissionQueue { base, entries, completion_queue, head: 0, tail: 0 };
        (entries >= 2 && fits(base, entries, SUBMISSION_BYTES)).then_some(queue)
    }

    /// Returns whether a command waits.
    pub(in super::super) fn has_command(&self) -> bool {
        self.head != self.tail
    }

    /// Returns the address of the command at the head.
    pub(in super::super) fn address(&self) -> u64 {
        self.base + u64::from(self.head) * SUBMISSION_BYTES
    }

    /// Moves the head past a command.
    pub(in super::super) fn advance(&mut self) {
        self.head = (self.head + 1) % self.entries;
    }

    /// Takes a doorbell's new tail. Submitted commands cannot be withdrawn: a tail that is not past the last one, on the
    /// way round to the head, is invalid.
    pub(in super::super) fn ring(&mut self, tail: u32) -> Result<(), InvalidDoorbell> {
        let waiting = |tail: u32| (tail + self.entries - self.head) % self.entries;
        if tail >= self.entries || waiting(tail) <= waiting(self.tail) {
            return Err(InvalidDoorbell);
        }
        self.tail = tail;
        Ok(())
    }

    /// Returns whether a controller can have such a queue.
    pub(in super::super) fn is_sound(&self) -> bool {
        SubmissionQueue::new(self.base, self.entries, self.completion_queue).is_some()
            && self.head < self.entries
            && self.tail < self.entries
    }
}
