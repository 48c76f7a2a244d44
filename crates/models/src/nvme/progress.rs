//! A command's way: executed, its data transferred, its operation on the image, its completion. `work` makes the accesses
//! to memory that it needs.

use whimbrel_device::Errno;
use whimbrel_device::dma::DmaAccess;

use super::Nvme;
use super::admin;
use super::command::{Status, SubmissionEntry};
use super::image::{Done, Operation};
use super::io;
use super::limits::ADMIN;
use super::outcome::Outcome;
use super::transfer::Transfer;
use super::work::Step;

impl Nvme {
    /// Begins a command.
    pub(super) fn begin(&mut self, number: u64) {
        let Some(command) = self.flight.commands.get(&number) else { return };
        let (sq, entry) = (command.sq, command.entry);
        let outcome = if sq == ADMIN {
            admin::execute(&mut self.controller, &entry, self.now)
        } else if let Some(transfer) = io::direct_transfer(&self.controller, &entry)
            && self.transfer_directly(&transfer)
        {
            return self.finish(number, Ok(0));
        } else {
            io::execute(&mut self.controller, &entry)
        };
        self.proceed(number, outcome);
    }

    fn proceed(&mut self, number: u64, outcome: Result<Outcome, Status>) {
        match outcome {
            Err(status) => self.finish(number, Err(status)),
            Ok(Outcome::Complete(result)) => self.finish(number, Ok(result)),
            Ok(Outcome::ToHost(data)) => self.transfer(number, |entry| Transfer::to_host(entry, data)),
            Ok(Outcome::FromHost { bytes }) => {
                self.transfer(number, |entry| Transfer::from_host(entry, vec![0; bytes as usize]));
            }
            Ok(Outcome::Image(operation)) => {
                self.flight.held.push_back((number, operation));
                self.submit_held();
            }
            // The command's identifier is among the requests for events.
            Ok(Outcome::Waits) => drop(self.flight.remove(number)),
            Ok(Outcome::DeleteSubmissionQueue(sq)) => {
                let (commands, tags) = self.flight.take_queue(sq);
                for command in commands {
                    let end = Err(Status::ABORTED_BY_QUEUE_DELETION);
                    let completion = self.controller.complete(sq, &command.entry, end);
                    self.flight.push_completions(completion);
                }
                self.image.abandon(tags);
                self.controller.submissions.remove(&sq);
                self.finish(number, Ok(0));
            }
            Ok(Outcome::DeletedCompletionQueue(cq)) => {
                self.flight.drop_completions(cq);
                self.finish(number, Ok(0));
            }
        }
    }

    fn transfer(&mut self, number: u64, transfer: impl FnOnce(&SubmissionEntry) -> Result<Transfer, Status>) {
        let Some(command) = self.flight.commands.get_mut(&number) else { return };
        match transfer(&command.entry) {
            Ok(transfer) => {
                command.transfer = Some(Box::new(transfer));
                self.flight.transfers.push_back(number);
            }
            Err(status) => self.finish(number, Err(status)),
        }
    }

    /// Continues a transfer after one of its accesses.
    pub(super) fn moved(&mut self, number: u64, access: DmaAccess, is_ok: bool) {
        let command = self.flight.commands.get_mut(&number);
        let moved = match command.and_then(|command| command.transfer.as_mut()) {
            Some(transfer) if is_ok => transfer.accessed(access),
            _ => Err(Status::DATA_TRANSFER_ERROR),
        };
        if let Err(status) = moved {
            self.step = Step::Begin;
            self.finish(number, Err(status));
        }
    }

    /// Continues a command after its transfer.
    pub(super) fn transferred(&mut self, number: u64) {
        let Some(command) = self.flight.commands.get_mut(&number) else { return };
        let Some(transfer) = command.transfer.take() else { return };
        if transfer.is_to_host() {
            return self.finish(number, Ok(0));
        }
        let (sq, entry) = (command.sq, command.entry);
        let data = transfer.into_data();
        let outcome = match sq {
            ADMIN => admin::take_data(&mut self.controller, &entry, &data, self.now),
            _ => io::take_data(&mut self.controller, &entry, data),
        };
        self.proceed(number, outcome);
    }

    /// Ends a command: its completion is to be posted.
    fn finish(&mut self, number: u64, end: Result<u32, Status>) {
        let Some(command) = self.flight.remove(number) else { return };
        if end.is_ok() && command.sq != ADMIN {
            io::count(&mut self.controller, &command.entry);
        }
        let completion = self.controller.complete(command.sq, &command.entry, end);
        self.flight.push_completions(completion);
    }

    /// Submits operations that wait for the image. Returns whether there were any.
    pub(super) fn submit_held(&mut self) -> bool {
        let mut has_submitted = false;
        while self.image.takes_operations()
            && let Some((number, operation)) = self.flight.held.pop_front()
        {
            if let Err(errno) = self.own_image() {
                tracing::warn!(%errno, "the image belongs to another device: a command is not executed");
                self.finish(number, Err(Status::NAMESPACE_NOT_READY));
                continue;
            }
            self.is_unflushed |= operation.changes_image();
            let tag = self.image.submit(operation);
            self.flight.operations.insert(tag, number);
            has_submitted = true;
        }
        has_submitted
    }

    /// Begins operations on the image, and continues commands whose operations have ended. Returns whether more can be
    /// done at once.
    pub(super) fn collect(&mut self) -> bool {
        let mut done = self.image.collect();
        let has_ended = !done.is_empty();
        for ended in done.drain(..) {
            self.operated(ended);
        }
        self.image.recycle(done);
        self.submit_held() || has_ended
    }

    fn operated(&mut self, done: Done) {
        let Done { tag, operation, result } = done;
        if self.shutdown_flush == Some(tag) {
            self.shutdown_flush = None;
            self.controller.shut_down();
            return;
        }
        let Some(number) = self.flight.operations.remove(&tag) else { return };
        match (result, operation) {
            (Ok(()), Operation::Read { data, .. }) => {
                self.transfer(number, |entry| Transfer::to_host(entry, data));
            }
            (Ok(()), _) => self.finish(number, Ok(0)),
            (Err(errno), operation) => {
                tracing::warn!(%errno, "operation on the image failed");
                let health = &mut self.controller.health;
                health.media_errors = health.media_errors.wrapping_add(1);
                self.finish(number, Err(status_of(errno, &operation)));
            }
        }
    }

    /// Drops all commands, as in a reset of the controller.
    pub(super) fn drop_commands(&mut self) {
        self.forget_access();
        let flight = std::mem::take(&mut self.flight);
        self.image.abandon(flight.operations.into_keys());
        self.to_signal = 0;
        self.last_fetched = ADMIN;
        self.shutdown_flush = None;
    }
}

/// Returns the status of an operation that has failed.
fn status_of(errno: Errno, operation: &Operation) -> Status {
    match (errno, operation) {
        (Errno::ENOSPC | Errno::EDQUOT, _) => Status::CAPACITY_EXCEEDED,
        (_, Operation::Read { .. }) => Status::UNRECOVERED_READ_ERROR,
        (_, Operation::Flush) => Status::INTERNAL_ERROR,
        _ => Status::WRITE_FAULT,
    }
}
