//! The controller at work: the accesses to memory that fetch commands, move their data and post completions.
//!
//! Memory may have to be asked for from its owner. The controller then waits for one access at a time, which the core
//! makes while the device serves requests ([`AsyncDma`]).

use std::sync::atomic::{Ordering, fence};

use whimbrel_device::dma::{DmaAccess, DmaFault};
use whimbrel_device::{AsyncDma, Context};
use zerocopy::{FromBytes, IntoBytes};

use super::Nvme;
use super::command::{BEFORE_PHASE, Completion, SUBMISSION_BYTES, SubmissionEntry};
use super::limits::ADMIN;

/// Bytes that one call of `advance` moves, about: requests wait for it.
const BUDGET: usize = 256 << 10;
/// The cost of an access apart from its bytes, in bytes.
const ACCESS_COST: usize = 1 << 10;

/// The next access to memory. It is no part of the device's state: a device that forgets it begins it again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Step {
    /// None yet.
    Begin,
    /// Reads the command at the head of a queue.
    Fetch(u16),
    /// Moves a part of a command's data.
    Transfer(u64),
    /// Writes a completion but for the dword with its phase tag.
    Post(Completion),
    /// Writes that dword. `is_counted` once the queue has the entry.
    PostPhase { completion: Completion, is_counted: bool },
}

impl AsyncDma for Nvme {
    fn next_access(&mut self, _: &Context) -> Option<DmaAccess> {
        let access = self.waits_for.take()?;
        // The host may use the entry as soon as it is written, before the device learns of that.
        self.count_posted();
        Some(access)
    }

    fn access_done(&mut self, context: &Context, access: DmaAccess, result: Result<(), DmaFault>) {
        if access.tag == self.attempt {
            self.now = context.now();
            self.accessed(access, result.is_ok());
            self.signal();
        }
    }
}

impl Nvme {
    /// Works for a moment, up to an access that waits for the memory's owner. Returns whether more remains.
    pub(super) fn work(&mut self) -> bool {
        // An access that waits is already made of its step.
        if self.function.dma().is_none() || self.waits_for.is_some() {
            return false;
        }
        let mut budget = BUDGET;
        while self.controller.runs() && budget > 0 {
            let Some(mut access) = self.access() else { break };
            budget = budget.saturating_sub(ACCESS_COST + access.data.len());
            let Some(result) = self.function.dma().and_then(|dma| dma.access_now(&mut access)) else {
                self.waits_for = Some(access);
                break;
            };
            self.accessed(access, result.is_ok());
            budget = budget.saturating_sub(self.direct.take_moved());
        }
        self.signal();
        budget == 0
    }

    /// Returns whether `work` has something to do.
    pub(super) fn can_work(&self) -> bool {
        self.controller.runs()
            && (self.step != Step::Begin
                || self.flight.has_work()
                || self.controller.events.can_report()
                || self.next_fetch().is_some())
    }

    /// Forgets the access in flight. A command whose data it was begins again.
    pub(super) fn forget_access(&mut self) {
        match std::mem::replace(&mut self.step, Step::Begin) {
            Step::Transfer(number) => {
                if let Some(command) = self.flight.commands.get_mut(&number) {
                    command.transfer = None;
                    self.flight.again.push_front(number);
                }
            }
            Step::Post(completion) | Step::PostPhase { completion, is_counted: false } => {
                self.flight.completions.push_front(completion);
            }
            Step::PostPhase { completion, is_counted: true } => self.interrupt(completion.cq),
            Step::Begin | Step::Fetch(_) => {}
        }
        self.waits_for = None;
        self.attempt = self.attempt.wrapping_add(1);
    }

    /// Returns the next access to memory; `None` if there is nothing to do.
    fn access(&mut self) -> Option<DmaAccess> {
        loop {
            if let Some(access) = self.step_access() {
                return Some(access.tag(self.attempt));
            }
            if !self.next_step() {
                return None;
            }
        }
    }

    /// Chooses the next step, and does what needs no access on the way. Returns whether there may be one.
    fn next_step(&mut self) -> bool {
        self.report_event();
        let queues = &self.controller.completions;
        let can_take = |cq: u16| queues.get(&cq).is_some_and(|queue| !queue.is_full());
        if let Some(completion) = self.flight.take_completion(can_take) {
            self.step = Step::Post(completion);
        } else if let Some(number) = self.flight.transfers.pop_front() {
            self.step = Step::Transfer(number);
        } else if let Some(number) = self.flight.again.pop_front() {
            self.begin(number);
        } else if let Some(sq) = self.next_fetch() {
            self.last_fetched = sq;
            self.step = Step::Fetch(sq);
        } else {
            return false;
        }
        self.controller.runs()
    }

    /// Returns the submission queue to fetch from next: in turn, and only if the completion has room.
    fn next_fetch(&self) -> Option<u16> {
        let queues = &self.controller.submissions;
        let after = queues.range(self.last_fetched.saturating_add(1)..);
        let in_turn = after.chain(queues.range(..=self.last_fetched));
        in_turn
            .filter(|(id, queue)| {
                queue.has_command()
                    && self.flight.takes_command(**id == ADMIN)
                    && self.has_room(queue.completion_queue)
            })
            .map(|(id, _)| *id)
            .next()
    }

    /// Returns whether a completion queue has room for one more completion than it is going to get.
    fn has_room(&self, cq: u16) -> bool {
        let Some(queue) = self.controller.completions.get(&cq) else { return false };
        let used = (queue.tail + queue.entries - queue.head) % queue.entries;
        used + self.flight.expected(cq) + 1 < queue.entries
    }

    /// Completes a request for an asynchronous event, if there is an event and room.
    fn report_event(&mut self) {
        if !self.controller.events.pending.is_empty()
            && self.has_room(ADMIN)
            && let Some((command_id, event)) = self.controller.events.take()
        {
            let entry = SubmissionEntry { command_id, ..SubmissionEntry::default() };
            let completion = self.controller.complete(ADMIN, &entry, Ok(event.result()));
            self.flight.push_completions(completion);
        }
    }

    /// Returns the access of the current step; `None` if the step is done.
    fn step_access(&mut self) -> Option<DmaAccess> {
        match self.step {
            Step::Begin => None,
            Step::Fetch(sq) => {
                let Some(queue) = self.controller.submissions.get(&sq) else {
                    self.step = Step::Begin;
                    return None;
                };
                Some(DmaAccess::read(queue.address(), self.entry(&[0; SUBMISSION_BYTES as usize])))
            }
            Step::Transfer(number) => {
                let command = self.flight.commands.get_mut(&number);
                let access = command.and_then(|command| command.transfer.as_mut()?.next());
                if access.is_none() {
                    self.step = Step::Begin;
                    self.transferred(number);
                }
                access
            }
            Step::Post(completion) => {
                let Some(queue) = self.controller.completions.get(&completion.cq) else {
                    self.step = Step::Begin;
                    return None;
                };
                let entry = completion.entry(queue.phase);
                let address = queue.address();
                Some(DmaAccess::write(address, self.entry(&entry.as_bytes()[..BEFORE_PHASE])))
            }
            Step::PostPhase { completion, .. } => {
                let Some(queue) = self.controller.completions.get(&completion.cq) else {
                    self.step = Step::Begin;
                    return None;
                };
                let entry = completion.entry(queue.phase);
                let address = queue.address() + BEFORE_PHASE as u64;
                // A host that polls must not see the phase tag before the rest.
                fence(Ordering::Release);
                Some(DmaAccess::write(address, self.entry(&entry.as_bytes()[BEFORE_PHASE..])))
            }
        }
    }

    /// Returns bytes of a queue's entry, in memory that was used before.
    fn entry(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut entry = std::mem::take(&mut self.entry);
        entry.clear();
        entry.extend_from_slice(bytes);
        entry
    }

    /// Continues after the access of the current step.
    fn accessed(&mut self, access: DmaAccess, is_ok: bool) {
        match self.step {
            Step::Begin => {}
            Step::Fetch(sq) => {
                self.step = Step::Begin;
                let entry = SubmissionEntry::read_from_bytes(&access.data).ok().filter(|_| is_ok);
                self.entry = access.data;
                self.fetched(sq, entry);
            }
            Step::Transfer(number) => self.moved(number, access, is_ok),
            Step::Post(completion) => {
                self.entry = access.data;
                self.step = Step::PostPhase { completion, is_counted: false };
                self.fail_unless(is_ok);
            }
            Step::PostPhase { completion, .. } => {
                self.entry = access.data;
                self.count_posted();
                self.step = Step::Begin;
                self.interrupt(completion.cq);
                self.fail_unless(is_ok);
            }
        }
    }

    /// Without its queues the controller cannot tell the host anything but that it has failed.
    fn fail_unless(&mut self, is_ok: bool) {
        if !is_ok {
            tracing::warn!(
                "a queue of the controller cannot be accessed: the controller has failed until its next reset"
            );
            self.controller.fail();
            self.drop_commands();
        }
    }

    /// Moves the tail of the completion queue past the entry that is being posted.
    fn count_posted(&mut self) {
        if let Step::PostPhase { completion, is_counted } = &mut self.step
            && !std::mem::replace(is_counted, true)
        {
            self.flight.posted(completion.cq);
            if let Some(queue) = self.controller.completions.get_mut(&completion.cq) {
                queue.advance();
            }
        }
    }

    fn fetched(&mut self, sq: u16, entry: Option<SubmissionEntry>) {
        let Some(queue) = self.controller.submissions.get_mut(&sq) else { return };
        let Some(entry) = entry else { return self.fail_unless(false) };
        queue.advance();
        let cq = queue.completion_queue;
        self.controller.alive_at = self.now;
        let number = self.flight.add(sq, cq, entry);
        self.begin(number);
    }

    /// Notes that a completion queue's vector is to be signalled.
    fn interrupt(&mut self, cq: u16) {
        let vector = self.controller.completions.get(&cq).and_then(|queue| queue.vector);
        if let Some(vector) = vector {
            self.to_signal |= 1 << vector;
        }
    }

    /// Sends the messages of queues with new entries, once each, and drives the line.
    pub(super) fn signal(&mut self) {
        let mut left = std::mem::take(&mut self.to_signal);
        while left != 0 {
            self.function.send_message(left.trailing_zeros());
            left &= left - 1;
        }
        self.function.set_line(self.controller.asserts_line());
    }
}
