//! The state of version 1 as bytes: a head with all that there is once, then the lists that it counts.
//!
//! These types never change: what a later version adds is in records of its own.

use std::collections::BTreeMap;
use std::time::Duration;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::super::admin::{
    ErrorEntry, ErrorLog, Event, Events, Features, Health, MAX_ERRORS, MAX_EVENTS, MAX_REQUESTS, Timestamp,
};
use super::super::command::{Completion, Status, SubmissionEntry};
use super::super::controller::Controller;
use super::super::flight::MAX_IN_FLIGHT;
use super::super::limits::{ADMIN, Limits};
use super::super::queue::{CompletionQueue, SubmissionQueue};
use super::super::registers::{MAX_ADMIN_ENTRIES, MAX_QUEUE_ENTRIES, Registers, Shutdown};
use super::Machine;

const READY: u32 = 1 << 0;
const FAILED: u32 = 1 << 1;

const WRITE_CACHE: u8 = 1 << 0;
const TIMESTAMP_SET: u8 = 1 << 1;

#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
struct Head {
    masked: u32,
    configuration: u32,
    /// [`READY`], [`FAILED`], and the progress of the shutdown in bits 3:2.
    status: u32,
    admin_attributes: u32,
    submission_base: u64,
    completion_base: u64,
    not_coalesced: [u64; 2],
    timestamp: u64,
    arbitration: u32,
    error_recovery: u32,
    coalescing: u32,
    write_atomicity: u32,
    event_configuration: u32,
    keep_alive: u32,
    over_temperature: u16,
    under_temperature: u16,
    submission_queues: u16,
    completion_queues: u16,
    feature_flags: u8,
    masked_events: u8,
    reserved: [u8; 6],
    read_blocks: u64,
    written_blocks: u64,
    reads: u64,
    writes: u64,
    media_errors: u64,
    unsafe_shutdowns: u64,
    error_count: u64,
    /// The lengths of the lists, in their order.
    submissions: u32,
    completions: u32,
    commands: u32,
    ends: u32,
    requests: u32,
    events: u32,
    errors: u32,
    reserved_at_end: u32,
}

#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
struct SubmissionRecord {
    base: u64,
    entries: u32,
    head: u32,
    tail: u32,
    id: u16,
    completion_queue: u16,
}

#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
struct CompletionRecord {
    base: u64,
    entries: u32,
    head: u32,
    tail: u32,
    id: u16,
    vector: u16,
    phase: u8,
    interrupts: u8,
    reserved: [u8; 6],
}

#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
struct CommandRecord {
    entry: SubmissionEntry,
    queue: u16,
    reserved: [u8; 6],
}

/// A completion that was not posted.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
struct EndRecord {
    result: u32,
    sq: u16,
    cq: u16,
    sq_head: u16,
    command_id: u16,
    status: u16,
    reserved: u16,
}

#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
struct ErrorRecord {
    count: u64,
    block: u64,
    namespace: u32,
    queue: u16,
    command_id: u16,
    status: u16,
    reserved: [u8; 6],
}

/// Queues of each kind, the admin queues included.
const MAX_QUEUES: usize = super::super::NvmeConfig::MAX_QUEUES as usize + 1;

/// Bytes of a state without any lists.
pub(super) const MIN_BYTES: usize = size_of::<Head>();
/// Maximum bytes of a state.
pub(super) const MAX_BYTES: usize = MIN_BYTES
    + MAX_QUEUES * (size_of::<SubmissionRecord>() + size_of::<CompletionRecord>())
    + MAX_IN_FLIGHT * (size_of::<CommandRecord>() + size_of::<EndRecord>())
    + (MAX_REQUESTS + MAX_EVENTS) * size_of::<u32>()
    + MAX_ERRORS * size_of::<ErrorRecord>();

pub(super) fn encode(machine: &Machine) -> Vec<u8> {
    let Machine { controller, commands, completions: ends } = machine;
    let Controller { registers, submissions, completions, features, events, errors, health, .. } = controller;
    let mut status = registers.shutdown.bits() << 2;
    for (flag, is_set) in [(READY, registers.ready), (FAILED, registers.failed)] {
        status |= if is_set { flag } else { 0 };
    }
    let mut feature_flags = 0;
    for (flag, is_set) in [(WRITE_CACHE, features.write_cache), (TIMESTAMP_SET, features.timestamp.is_set)] {
        feature_flags |= if is_set { flag } else { 0 };
    }
    let head = Head {
        masked: registers.masked,
        configuration: registers.configuration,
        status,
        admin_attributes: registers.admin_attributes,
        submission_base: registers.submission_base,
        completion_base: registers.completion_base,
        not_coalesced: [features.not_coalesced as u64, (features.not_coalesced >> 64) as u64],
        timestamp: features.timestamp.milliseconds,
        arbitration: features.arbitration,
        error_recovery: features.error_recovery,
        coalescing: features.coalescing,
        write_atomicity: features.write_atomicity,
        event_configuration: features.event_configuration,
        keep_alive: features.keep_alive,
        over_temperature: features.over_temperature,
        under_temperature: features.under_temperature,
        submission_queues: features.submission_queues,
        completion_queues: features.completion_queues,
        feature_flags,
        masked_events: events.masked,
        reserved: [0; 6],
        read_blocks: health.read_blocks,
        written_blocks: health.written_blocks,
        reads: health.reads,
        writes: health.writes,
        media_errors: health.media_errors,
        unsafe_shutdowns: health.unsafe_shutdowns,
        error_count: errors.count,
        submissions: submissions.len() as u32,
        completions: completions.len() as u32,
        commands: commands.len() as u32,
        ends: ends.len() as u32,
        requests: events.requests.len() as u32,
        events: events.pending.len() as u32,
        errors: errors.entries.len() as u32,
        reserved_at_end: 0,
    };
    let mut bytes = head.as_bytes().to_vec();
    for (id, queue) in submissions {
        let SubmissionQueue { base, entries, completion_queue, head, tail } = *queue;
        bytes.extend(SubmissionRecord { base, entries, head, tail, id: *id, completion_queue }.as_bytes());
    }
    for (id, queue) in completions {
        let CompletionQueue { base, entries, head, tail, phase, vector } = *queue;
        let (phase, interrupts) = (phase.into(), vector.is_some().into());
        let vector = vector.unwrap_or(0);
        let reserved = [0; 6];
        bytes.extend(
            CompletionRecord { base, entries, head, tail, id: *id, vector, phase, interrupts, reserved }
                .as_bytes(),
        );
    }
    for (queue, entry) in commands {
        bytes.extend(CommandRecord { entry: *entry, queue: *queue, reserved: [0; 6] }.as_bytes());
    }
    for end in ends {
        let Completion { sq, cq, sq_head, command_id, status, result } = *end;
        let status = status.bits();
        bytes.extend(EndRecord { result, sq, cq, sq_head, command_id, status, reserved: 0 }.as_bytes());
    }
    events.requests.iter().for_each(|request| bytes.extend(u32::from(*request).to_ne_bytes()));
    events.pending.iter().for_each(|event| bytes.extend(event.result().to_ne_bytes()));
    for error in &errors.entries {
        let ErrorEntry { count, queue, command_id, status, block, namespace } = *error;
        let reserved = [0; 6];
        bytes.extend(ErrorRecord { count, block, namespace, queue, command_id, status, reserved }.as_bytes());
    }
    bytes
}

/// Takes the records of lists off the front of the bytes.
struct Lists<'a> {
    left: &'a [u8],
}

impl Lists<'_> {
    /// Takes `count` records, of which there may be `most`.
    fn take<T: FromBytes + Immutable + KnownLayout>(&mut self, count: u32, most: usize) -> Option<Vec<T>> {
        let count = usize::try_from(count).ok().filter(|count| *count <= most)?;
        let (records, left) = self.left.split_at_checked(count * size_of::<T>())?;
        self.left = left;
        records.chunks_exact(size_of::<T>()).map(|record| T::read_from_bytes(record).ok()).collect()
    }
}

/// Decodes a state; `None` if no controller with these limits can have it.
pub(super) fn decode(bytes: &[u8], limits: &Limits) -> Option<Machine> {
    let (head, left) = Head::read_from_prefix(bytes).ok()?;
    let mut lists = Lists { left };
    let controller = decode_controller(&head, &mut lists, limits)?;
    let commands: Vec<CommandRecord> = lists.take(head.commands, MAX_IN_FLIGHT)?;
    let ends: Vec<EndRecord> = lists.take(head.ends, MAX_IN_FLIGHT)?;
    let requests: Vec<u32> = lists.take(head.requests, MAX_REQUESTS)?;
    let pending: Vec<u32> = lists.take(head.events, MAX_EVENTS)?;
    let errors: Vec<ErrorRecord> = lists.take(head.errors, MAX_ERRORS)?;
    if !lists.left.is_empty() || head.reserved_at_end != 0 || head.reserved != [0; 6] {
        return None;
    }
    let events = Events {
        requests: requests.into_iter().map(|request| u16::try_from(request).ok()).collect::<Option<_>>()?,
        pending: pending.into_iter().map(Event::from_result).collect::<Option<_>>()?,
        masked: head.masked_events,
    };
    let errors = ErrorLog {
        entries: errors.into_iter().map(decode_error).collect::<Option<_>>()?,
        count: head.error_count,
    };
    let commands = commands
        .into_iter()
        .map(|command| (command.reserved == [0; 6]).then_some((command.queue, command.entry)))
        .collect::<Option<Vec<_>>>()?;
    let completions = ends.into_iter().map(decode_end).collect::<Option<Vec<_>>>()?;
    let is_sound = events.are_sound()
        && commands.len() + completions.len() <= MAX_IN_FLIGHT
        && (controller.registers.ready
            || commands.is_empty() && completions.is_empty() && events.requests.is_empty())
        && have_room(&controller, &commands, &completions)?;
    is_sound.then_some(Machine {
        controller: Controller { events, errors, ..controller },
        commands,
        completions,
    })
}

/// Returns whether each completion queue has room for what it is going to get; `None` if a queue does not exist.
fn have_room(
    controller: &Controller,
    commands: &[(u16, SubmissionEntry)],
    completions: &[Completion],
) -> Option<bool> {
    let mut expected: BTreeMap<u16, u32> = BTreeMap::new();
    for (sq, _) in commands {
        *expected.entry(controller.submissions.get(sq)?.completion_queue).or_default() += 1;
    }
    for completion in completions {
        *expected.entry(completion.cq).or_default() += 1;
    }
    let mut has_room = true;
    for (cq, expected) in expected {
        let queue = controller.completions.get(&cq)?;
        let used = (queue.tail + queue.entries - queue.head) % queue.entries;
        has_room &= used + expected < queue.entries;
    }
    Some(has_room)
}

fn decode_controller(head: &Head, lists: &mut Lists<'_>, limits: &Limits) -> Option<Controller> {
    let submissions: Vec<SubmissionRecord> = lists.take(head.submissions, MAX_QUEUES)?;
    let completions: Vec<CompletionRecord> = lists.take(head.completions, MAX_QUEUES)?;
    if head.status >> 4 != 0 || head.feature_flags & !(WRITE_CACHE | TIMESTAMP_SET) != 0 {
        return None;
    }
    let registers = Registers {
        masked: head.masked,
        configuration: head.configuration,
        ready: head.status & READY != 0,
        failed: head.status & FAILED != 0,
        shutdown: Shutdown::from_bits(head.status >> 2 & 3)?,
        admin_attributes: head.admin_attributes,
        submission_base: head.submission_base,
        completion_base: head.completion_base,
    };
    let features = Features {
        arbitration: head.arbitration,
        over_temperature: head.over_temperature,
        under_temperature: head.under_temperature,
        error_recovery: head.error_recovery,
        write_cache: head.feature_flags & WRITE_CACHE != 0,
        submission_queues: head.submission_queues,
        completion_queues: head.completion_queues,
        coalescing: head.coalescing,
        not_coalesced: u128::from(head.not_coalesced[1]) << 64 | u128::from(head.not_coalesced[0]),
        write_atomicity: head.write_atomicity,
        event_configuration: head.event_configuration,
        timestamp: Timestamp {
            milliseconds: head.timestamp,
            at: Duration::ZERO,
            is_set: head.feature_flags & TIMESTAMP_SET != 0,
        },
        keep_alive: head.keep_alive,
    };
    let health = Health {
        read_blocks: head.read_blocks,
        written_blocks: head.written_blocks,
        reads: head.reads,
        writes: head.writes,
        media_errors: head.media_errors,
        unsafe_shutdowns: head.unsafe_shutdowns,
    };
    let mut controller = Controller { registers, features, health, ..Controller::new(limits.clone()) };
    for record in completions {
        let queue = decode_completion_queue(&record, limits)?;
        let is_new = controller.completions.insert(record.id, queue).is_none();
        if !is_new || !id_and_size_fit(record.id, record.entries, limits) {
            return None;
        }
    }
    for record in submissions {
        let SubmissionRecord { base, entries, head, tail, id, completion_queue } = record;
        let queue = SubmissionQueue { base, entries, completion_queue, head, tail };
        let is_new = controller.submissions.insert(id, queue).is_none();
        let has_completions = controller.completions.contains_key(&completion_queue);
        let has_own_kind = (id == ADMIN) == (completion_queue == ADMIN);
        let fits = id_and_size_fit(id, entries, limits) && queue.is_sound();
        if !(is_new && has_completions && has_own_kind && fits) {
            return None;
        }
    }
    // Queues exist as long as the controller is ready, or as it has failed since.
    let has_admin =
        controller.submissions.contains_key(&ADMIN) && controller.completions.contains_key(&ADMIN);
    let has_queues = !controller.submissions.is_empty() || !controller.completions.is_empty();
    let queues_fit =
        if has_queues { has_admin && controller.registers.is_enabled() } else { !registers.ready };
    let is_sound = registers.are_sound() && controller.features.are_sound(limits) && queues_fit;
    is_sound.then_some(controller)
}

fn id_and_size_fit(id: u16, entries: u32, limits: &Limits) -> bool {
    let most = if id == ADMIN { MAX_ADMIN_ENTRIES } else { MAX_QUEUE_ENTRIES };
    id <= limits.queues && entries <= most
}

fn decode_completion_queue(record: &CompletionRecord, limits: &Limits) -> Option<CompletionQueue> {
    let CompletionRecord { base, entries, head, tail, vector, phase, interrupts, reserved, .. } = *record;
    let flag = |value: u8| (value <= 1).then_some(value == 1);
    let has_vector = flag(interrupts)?;
    if reserved != [0; 6] || vector >= limits.vectors() || !has_vector && vector != 0 {
        return None;
    }
    let vector = has_vector.then_some(vector);
    let queue = CompletionQueue { base, entries, head, tail, phase: flag(phase)?, vector };
    queue.is_sound().then_some(queue)
}

fn decode_end(record: EndRecord) -> Option<Completion> {
    let EndRecord { result, sq, cq, sq_head, command_id, status, reserved } = record;
    let status = Status::from_bits(status).filter(|_| reserved == 0)?;
    Some(Completion { sq, cq, sq_head, command_id, status, result })
}

fn decode_error(record: ErrorRecord) -> Option<ErrorEntry> {
    let ErrorRecord { count, block, namespace, queue, command_id, status, reserved } = record;
    (reserved == [0; 6]).then_some(ErrorEntry { count, queue, command_id, status, block, namespace })
}
