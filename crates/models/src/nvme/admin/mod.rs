//! Admin commands: what each of them asks for, and the controller's answer. No I/O.

mod events;
mod features;
mod identify;
mod log_page;
mod queues;

pub(super) use self::events::{Event, Events, MAX_EVENTS, MAX_REQUESTS};
pub(super) use self::features::{Features, Timestamp};
pub(super) use self::identify::{VENDOR, padded};
pub(super) use self::log_page::{ErrorEntry, ErrorLog, Health, MAX_ERRORS};
use super::command::{Status, SubmissionEntry, admin};
use super::controller::Controller;
use super::outcome::Outcome;
use std::time::Duration;

/// Executes an admin command.
pub(super) fn execute(
    controller: &mut Controller,
    entry: &SubmissionEntry,
    now: Duration,
) -> Result<Outcome, Status> {
    if !admin::ALL.contains(&entry.opcode) {
        return Err(Status::INVALID_OPCODE);
    }
    entry.check_flags()?;
    match entry.opcode {
        admin::DELETE_SUBMISSION_QUEUE => queues::delete_submission(controller, entry),
        admin::CREATE_SUBMISSION_QUEUE => queues::create_submission(controller, entry),
        admin::DELETE_COMPLETION_QUEUE => queues::delete_completion(controller, entry),
        admin::CREATE_COMPLETION_QUEUE => queues::create_completion(controller, entry),
        admin::GET_LOG_PAGE => log_page::get(controller, entry),
        admin::IDENTIFY => identify::identify(&controller.limits, entry),
        // Bit 0: not aborted.
        admin::ABORT => Ok(Outcome::Complete(1)),
        admin::SET_FEATURES => features::set(controller, entry, now),
        admin::GET_FEATURES => features::get(controller, entry, now),
        admin::ASYNC_EVENT_REQUEST => controller.events.request(entry.command_id).map(|()| Outcome::Waits),
        // Keep alive: every command that is fetched restarts the timer.
        _ => Ok(Outcome::Complete(0)),
    }
}

/// Continues a command whose data has arrived.
pub(super) fn take_data(
    controller: &mut Controller,
    entry: &SubmissionEntry,
    data: &[u8],
    now: Duration,
) -> Result<Outcome, Status> {
    match entry.opcode {
        admin::SET_FEATURES => features::take_data(controller, data, now),
        _ => Err(Status::INVALID_FIELD),
    }
}

/// Writes bytes into a data structure that is returned to the host.
fn put(data: &mut [u8], at: usize, bytes: &[u8]) {
    data[at..at + bytes.len()].copy_from_slice(bytes);
}
