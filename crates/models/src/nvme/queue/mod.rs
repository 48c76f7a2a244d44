//! The two kinds of queue: where they are in memory, and how far each side has come. No I/O.

mod completion;
mod submission;
#[cfg(test)]
mod tests;

pub(super) use self::completion::CompletionQueue;
pub(super) use self::submission::SubmissionQueue;

/// A doorbell's value that no host may write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct InvalidDoorbell;

/// Returns whether entries of a queue fit into the address space.
fn fits(base: u64, entries: u32, entry_bytes: u64) -> bool {
    base.checked_add(u64::from(entries) * entry_bytes - 1).is_some()
}
