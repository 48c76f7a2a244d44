//! Creation and deletion of I/O queues.

use super::super::command::{Status, SubmissionEntry};
use super::super::controller::Controller;
use super::super::outcome::Outcome;
use super::super::queue::{CompletionQueue, SubmissionQueue};
use super::super::registers::{CC_ENTRY_SIZES, CC_ENTRY_SIZES_MASK, MAX_QUEUE_ENTRIES, PAGE_BYTES};

/// PC in dword 11: the queue is physically contiguous, as CAP.CQR requires.
const CONTIGUOUS: u32 = 1;
/// IEN in dword 11 of a completion queue.
const INTERRUPTS: u32 = 2;

/// The identifier and the number of entries in dword 10.
fn shape(controller: &Controller, entry: &SubmissionEntry, is_used: bool) -> Result<(u16, u32), Status> {
    let id = entry.dword10 as u16;
    if id == 0 || id > controller.limits.queues || is_used {
        return Err(Status::INVALID_QUEUE_ID);
    }
    let entries = (entry.dword10 >> 16) + 1;
    if !(2..=MAX_QUEUE_ENTRIES).contains(&entries)
        || controller.registers.configuration & CC_ENTRY_SIZES_MASK != CC_ENTRY_SIZES
    {
        return Err(Status::INVALID_QUEUE_SIZE);
    }
    if entry.dword11 & CONTIGUOUS == 0 {
        return Err(Status::INVALID_FIELD);
    }
    if !entry.prp1.is_multiple_of(PAGE_BYTES) {
        return Err(Status::PRP_OFFSET_INVALID);
    }
    Ok((id, entries))
}

pub(super) fn create_completion(
    controller: &mut Controller,
    entry: &SubmissionEntry,
) -> Result<Outcome, Status> {
    let is_used = controller.completions.contains_key(&(entry.dword10 as u16));
    let (id, entries) = shape(controller, entry, is_used)?;
    if id > controller.features.completion_queues {
        return Err(Status::INVALID_QUEUE_ID);
    }
    let vector = (entry.dword11 >> 16) as u16;
    if vector >= controller.limits.vectors() {
        return Err(Status::INVALID_VECTOR);
    }
    let vector = (entry.dword11 & INTERRUPTS != 0).then_some(vector);
    let queue = CompletionQueue::new(entry.prp1, entries, vector).ok_or(Status::INVALID_FIELD)?;
    controller.completions.insert(id, queue);
    Ok(Outcome::Complete(0))
}

pub(super) fn create_submission(
    controller: &mut Controller,
    entry: &SubmissionEntry,
) -> Result<Outcome, Status> {
    let is_used = controller.submissions.contains_key(&(entry.dword10 as u16));
    let (id, entries) = shape(controller, entry, is_used)?;
    if id > controller.features.submission_queues {
        return Err(Status::INVALID_QUEUE_ID);
    }
    let completion_queue = (entry.dword11 >> 16) as u16;
    if completion_queue == 0 || completion_queue > controller.limits.queues {
        return Err(Status::INVALID_QUEUE_ID);
    }
    if !controller.completions.contains_key(&completion_queue) {
        return Err(Status::COMPLETION_QUEUE_INVALID);
    }
    let queue = SubmissionQueue::new(entry.prp1, entries, completion_queue).ok_or(Status::INVALID_FIELD)?;
    controller.submissions.insert(id, queue);
    Ok(Outcome::Complete(0))
}

pub(super) fn delete_submission(controller: &Controller, entry: &SubmissionEntry) -> Result<Outcome, Status> {
    let id = entry.dword10 as u16;
    if id == 0 || !controller.submissions.contains_key(&id) {
        return Err(Status::INVALID_QUEUE_ID);
    }
    Ok(Outcome::DeleteSubmissionQueue(id))
}

pub(super) fn delete_completion(
    controller: &mut Controller,
    entry: &SubmissionEntry,
) -> Result<Outcome, Status> {
    let id = entry.dword10 as u16;
    if id == 0 || !controller.completions.contains_key(&id) {
        return Err(Status::INVALID_QUEUE_ID);
    }
    if controller.submissions.values().any(|queue| queue.completion_queue == id) {
        return Err(Status::INVALID_QUEUE_DELETION);
    }
    controller.completions.remove(&id);
    Ok(Outcome::DeletedCompletionQueue(id))
}
