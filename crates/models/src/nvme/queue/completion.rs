//! A completion queue: the controller puts completions in at the tail, the host takes them out at the head.

use super::super::command::COMPLETION_BYTES;
use super::{InvalidDoorbell, fits};

/// A completion queue. `head` and `tail` are below `entries`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct CompletionQueue {
    pub(in super::super) base: u64,
    /// At least 2.
    pub(in super::super) entries: u32,
    pub(in super::super) head: u32,
    pub(in super::super) tail: u32,
    /// The phase tag of the next entry.
    pub(in super::super) phase: bool,
    /// The interrupt vector; `None` if interrupts are disabled.
    pub(in super::super) vector: Option<u16>,
}

impl CompletionQueue {
    /// Returns an empty queue; `None` if it does not fit into the address space.
    pub(in super::super) fn new(base: u64, entries: u32, vector: Option<u16>) -> Option<CompletionQueue> {
        let queue = CompletionQueue { base, entries, head: 0, tail: 0, phase: true, vector };
        (entries >= 2 && fits(base, entries, COMPLETION_BYTES)).then_some(queue)
    }

    /// Returns whether the host has to take entries out before more can be posted.
    pub(in super::super) fn is_full(&self) -> bool {
        (self.tail + 1) % self.entries == self.head
    }

    /// Returns whether an entry waits for the host.
    pub(in super::super) fn has_entries(&self) -> bool {
        self.head != self.tail
    }

    /// Returns whether the queue wants an interrupt: one is enabled, and an entry waits.
    pub(in super::super) fn interrupts(&self) -> bool {
        self.vector.is_some() && self.has_entries()
    }

    /// Returns the address of the entry at the tail.
    pub(in super::super) fn address(&self) -> u64 {
        self.base + u64::from(self.tail) * COMPLETION_BYTES
    }

    /// Moves the tail past a posted entry.
    pub(in super::super) fn advance(&mut self) {
        self.tail = (self.tail + 1) % self.entries;
        self.phase ^= self.tail == 0;
    }

    /// Takes a doorbell's new head. The host can take out only what was posted, and at least one entry.
    pub(in super::super) fn ring(&mut self, head: u32) -> Result<(), InvalidDoorbell> {
        let taken = |to: u32| (to + self.entries - self.head) % self.entries;
        if head >= self.entries || head == self.head || taken(head) > taken(self.tail) {
            return Err(InvalidDoorbell);
        }
        self.head = head;
        Ok(())
    }

    /// Returns whether a controller can have such a queue.
    pub(in super::super) fn is_sound(&self) -> bool {
        CompletionQueue::new(self.base, self.entries, self.vector).is_some()
            && self.head < self.entries
            && self.tail < self.entries
    }
}
