//! The commands in flight, from their fetch to the completion in the host's memory. No I/O.

use std::collections::{BTreeMap, VecDeque};

use super::command::{Completion, SubmissionEntry};
use super::image::Operation;
use super::transfer::Transfer;

/// Commands in flight at most, so that their buffers take no more than 32 MiB.
const MAX_IO_COMMANDS: usize = 128;
/// Further commands of the admin queue, which I/O cannot keep waiting.
const MAX_ADMIN_COMMANDS: usize = 16;
/// Commands and completions in flight at most.
pub(super) const MAX_IN_FLIGHT: usize = MAX_IO_COMMANDS + MAX_ADMIN_COMMANDS;

/// A command in flight.
#[derive(Debug)]
pub(super) struct Command {
    pub(super) sq: u16,
    pub(super) cq: u16,
    pub(super) entry: SubmissionEntry,
    /// The transfer that has to be made for it.
    pub(super) transfer: Option<Box<Transfer>>,
}

/// The commands in flight, by a number that says in which order they were fetched.
#[derive(Debug, Default)]
pub(super) struct Flight {
    pub(super) commands: BTreeMap<u64, Command>,
    next: u64,
    /// Commands that begin again: they came with a loaded state, or their transfer was forgotten.
    pub(super) again: VecDeque<u64>,
    /// Commands whose transfer has to be made.
    pub(super) transfers: VecDeque<u64>,
    /// Operations that wait until the image takes some.
    pub(super) held: VecDeque<(u64, Operation)>,
    /// The commands of operations in flight, by their tag.
    pub(super) operations: BTreeMap<u64, u64>,
    /// Completions to post.
    pub(super) completions: VecDeque<Completion>,
    /// Commands and completions in flight for each completion queue.
    expected: BTreeMap<u16, u32>,
}

impl Flight {
    /// Returns whether a further command of a queue may be fetched.
    pub(super) fn takes_command(&self, is_admin: bool) -> bool {
        let most = if is_admin { MAX_IN_FLIGHT } else { MAX_IO_COMMANDS };
        self.commands.len() + self.completions.len() < most
    }

    /// Returns the number of entries that a completion queue is going to get.
    pub(super) fn expected(&self, cq: u16) -> u32 {
        self.expected.get(&cq).copied().unwrap_or(0)
    }

    /// Adds a command, and returns its number.
    pub(super) fn add(&mut self, sq: u16, cq: u16, entry: SubmissionEntry) -> u64 {
        let number = self.next;
        self.next += 1;
        self.commands.insert(number, Command { sq, cq, entry, transfer: None });
        *self.expected.entry(cq).or_default() += 1;
        number
    }

    /// Removes a command that gets no completion, or whose completion is added next.
    pub(super) fn remove(&mut self, number: u64) -> Option<Command> {
        let command = self.commands.remove(&number)?;
        self.forget_expected(command.cq);
        Some(command)
    }

    /// Adds completions to post.
    pub(super) fn push_completions(&mut self, completions: impl IntoIterator<Item = Completion>) {
        for completion in completions {
            *self.expected.entry(completion.cq).or_default() += 1;
            self.completions.push_back(completion);
        }
    }

    /// Takes the first completion whose queue can take it.
    pub(super) fn take_completion(&mut self, can_take: impl Fn(u16) -> bool) -> Option<Completion> {
        let at = self.completions.iter().position(|completion| can_take(completion.cq))?;
        self.completions.remove(at)
    }

    /// Notes that a completion was posted.
    pub(super) fn posted(&mut self, cq: u16) {
        self.forget_expected(cq);
    }

    /// Drops the completions for a queue that is deleted.
    pub(super) fn drop_completions(&mut self, cq: u16) {
        self.completions.retain(|completion| completion.cq != cq);
        self.expected.remove(&cq);
    }

    /// Takes all commands of a queue out, wherever they are, and returns them with the tags of their operations.
    pub(super) fn take_queue(&mut self, sq: u16) -> (Vec<Command>, Vec<u64>) {
        let numbers: Vec<u64> =
            self.commands.iter().filter(|(_, command)| command.sq == sq).map(|(number, _)| *number).collect();
        let is_taken = |number: &u64| numbers.binary_search(number).is_ok();
        self.again.retain(|number| !is_taken(number));
        self.transfers.retain(|number| !is_taken(number));
        self.held.retain(|(number, _)| !is_taken(number));
        let tags =
            self.operations.iter().filter(|(_, number)| is_taken(number)).map(|(tag, _)| *tag).collect();
        self.operations.retain(|_, number| !is_taken(number));
        (numbers.iter().filter_map(|number| self.remove(*number)).collect(), tags)
    }

    /// Makes commands whose operations wait for the image begin again, later.
    pub(super) fn hold_back(&mut self) {
        self.again.extend(self.held.drain(..).map(|(number, _)| number));
    }

    /// Makes every command one that begins again, in the order of their fetch. No operation may be in flight.
    pub(super) fn begin_all_again(&mut self) {
        self.transfers.clear();
        self.held.clear();
        self.operations.clear();
        self.again = self.commands.keys().copied().collect();
        for command in self.commands.values_mut() {
            command.transfer = None;
        }
    }

    /// Returns whether something is to be done that needs the host's memory or the image.
    pub(super) fn has_work(&self) -> bool {
        !(self.again.is_empty() && self.transfers.is_empty() && self.completions.is_empty())
    }

    fn forget_expected(&mut self, cq: u16) {
        if let Some(count) = self.expected.get_mut(&cq) {
            *count = count.saturating_sub(1);
        }
    }
}
