//! The engine on the move while it works.

use std::os::fd::AsFd;
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};
use proptest::prelude::*;
use whimbrel_device::{DeviceFile, Errno, MigrationFlags, Next, State};
use whimbrel_models::accel::{self, Completion, Descriptor, SLICE_BYTES};

use super::guest::{DATA, Guest, Memory, config, load, own_state, read_all, registers, resuming, save};

const STATE: u64 = 256 << 10;

/// A guest with a job of four slices of which one is done, and another job behind it.
fn in_the_middle(memory: &Memory) -> Guest {
    let mut guest = Guest::start(memory, memory.device(config(STATE)), 8);
    guest.put(&Descriptor::fill(1, DATA, 4 * SLICE_BYTES, u64::MAX));
    guest.put(&Descriptor::checksum(2, DATA, 4 * SLICE_BYTES));
    guest.ring();
    assert_eq!(guest.device.advance(Duration::ZERO), Next::Now);
    assert_ne!(memory.read(DATA, 1), [0], "one slice is done");
    guest
}

#[test]
fn it_supports_what_it_was_told_to_and_stop_copy_always() {
    let memory = Memory::new();
    for flags in MigrationFlags::all().iter().chain([MigrationFlags::empty(), MigrationFlags::all()]) {
        let device = memory.device(config(STATE).flags(flags));
        assert_eq!(device.migration_flags(), Ok(flags | MigrationFlags::STOP_COPY));
    }
}

#[test]
fn in_the_p2p_states_it_starts_no_dma_and_takes_doorbells() {
    for (p2p, running) in [(State::RunningP2p, State::Running), (State::PreCopyP2p, State::PreCopy)] {
        let memory = Memory::new();
        let mut guest = in_the_middle(&memory);
        guest.device.set_mig_state(p2p).unwrap();
        let before = memory.read(super::guest::BASE, super::guest::MEMORY);
        guest.ring();
        assert_eq!(
            guest.device.advance(Duration::ZERO),
            Next::Idle,
            "it does not spin on what it may not do"
        );
        assert!(memory.read(super::guest::BASE, super::guest::MEMORY) == before, "{p2p}");
        guest.submit(&Descriptor::fill(3, DATA, 8, 0));
        assert_eq!(guest.get32(accel::REGISTER_TAIL), 3);
        guest.device.set_mig_state(running).unwrap();
        guest.run();
        let tags: Vec<u64> = guest.completions().iter().map(|completion| completion.tag).collect();
        assert_eq!(tags, [1, 2, 3], "{p2p}");
    }
}

#[test]
fn while_it_is_stopped_nothing_changes_and_nothing_can_be_written() {
    for state in [State::Stop, State::StopCopy] {
        let memory = Memory::new();
        let guest = in_the_middle(&memory);
        guest.device.set_mig_state(state).unwrap();
        let before = (registers(&guest.device), own_state(&guest.device), memory.read(DATA, 4 * SLICE_BYTES));
        assert_eq!(guest.device.advance(Duration::from_secs(100)), Next::Idle);
        let tail = guest.device.write_region(0, accel::REGISTER_TAIL, &3u32.to_le_bytes());
        assert_eq!(tail, Err(Errno::EBUSY));
        let after = (registers(&guest.device), own_state(&guest.device), memory.read(DATA, 4 * SLICE_BYTES));
        assert!(before == after, "{state}");
    }
}

#[test]
fn time_in_which_it_was_stopped_does_not_change_the_state() {
    let memory = Memory::new();
    let device = memory.device(config(STATE).state_rate(1 << 20));
    device.advance(Duration::from_secs(1));
    device.set_mig_state(State::Stop).unwrap();
    device.set_mig_state(State::Running).unwrap();
    let before = own_state(&device);
    device.advance(Duration::from_secs(100));
    assert!(own_state(&device) == before);
}

#[test]
fn a_job_in_the_middle_goes_on_at_the_destination() {
    let memory = Memory::new();
    let mut guest = in_the_middle(&memory);
    let stream = save(&guest.device);
    let destination = memory.device(config(STATE));
    load(&destination, &stream, 1 << 20);
    assert!(registers(&destination) == registers(&guest.device));
    assert!(own_state(&destination) == own_state(&guest.device));
    // The source's slice is not done again.
    memory.write(DATA, b"mark");
    destination.set_mig_state(State::Running).unwrap();
    guest.move_to(destination);
    guest.run();
    assert_eq!(memory.read(DATA, 8), *b"mark\xff\xff\xff\xff");
    assert_eq!(memory.read(DATA + 4 * SLICE_BYTES - 8, 8), [0xff; 8]);
    let tags: Vec<u64> = guest.completions().iter().map(|completion| completion.tag).collect();
    assert_eq!(tags, [1, 2]);
}

#[test]
fn a_cause_that_waits_interrupts_again_where_it_was_loaded() {
    for (acknowledged, signals) in [(false, true), (true, false)] {
        let memory = Memory::new();
        let mut guest = Guest::start(&memory, memory.device(config(STATE)), 8);
        guest.set32(accel::REGISTER_INTERRUPT_ENABLE, accel::INTERRUPT_COMPLETION);
        guest.execute(&Descriptor::fill(1, DATA, 8, 1));
        if acknowledged {
            guest.set32(accel::REGISTER_INTERRUPT_STATUS, accel::INTERRUPT_COMPLETION);
        }
        let destination = memory.device(config(STATE));
        let eventfd = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
        destination
            .set_irq_triggers(1, 0, vec![Some(eventfd.as_fd().try_clone_to_owned().unwrap())])
            .unwrap();
        load(&destination, &save(&guest.device), 1 << 20);
        assert!(eventfd.read().is_err(), "a stopped device does not interrupt");
        destination.set_mig_state(State::Running).unwrap();
        destination.advance(Duration::ZERO);
        destination.advance(Duration::ZERO);
        assert_eq!(eventfd.read().ok(), signals.then_some(1));
    }
}

#[test]
fn after_a_failed_save_the_source_goes_on_as_if_nothing_had_been() {
    for abandon_in in [State::PreCopy, State::PreCopyP2p, State::StopCopy] {
        let memory = Memory::new();
        let mut guest = in_the_middle(&memory);
        let data = guest.device.set_mig_state(abandon_in).unwrap().unwrap();
        data.read(&mut [0; 100]).unwrap();
        guest.device.set_mig_state(State::Running).unwrap();
        assert_eq!(data.read(&mut [0; 100]), Err(Errno::ENODEV));
        guest.run();
        assert_eq!(guest.completions().len(), 2, "{abandon_in}");
    }
}

#[test]
fn reset_leads_back_to_power_on_from_every_state() {
    for state in State::ALL.into_iter().filter(|state| *state != State::Error) {
        let memory = Memory::new();
        let guest = in_the_middle(&memory);
        let data = guest.device.set_mig_state(state).unwrap();
        if let (true, Some(data)) = (state.is_saving(), data) {
            data.read(&mut [0; 10]).unwrap();
        }
        guest.device.reset().unwrap();
        assert_eq!(guest.device.mig_state(), Ok(State::Running));
        let fresh = memory.device(config(STATE));
        assert!(registers(&guest.device) == registers(&fresh), "{state}");
        assert!(own_state(&guest.device) == own_state(&fresh), "{state}");
        assert_eq!(guest.device.mig_data_size(), fresh.mig_data_size(), "{state}");
        assert_eq!(guest.device.advance(Duration::ZERO), Next::Idle, "{state}");
    }
}

#[test]
fn entering_resuming_empties_the_device_and_shows_nothing_until_a_state_is_there() {
    let memory = Memory::new();
    let mut guest = Guest::start(&memory, memory.device(config(STATE)), 8);
    guest.execute(&Descriptor::scramble(1, 0, STATE, 1));
    let stream = save(&memory.device(config(STATE)));
    let data = resuming(&guest.device);
    for region in [0, accel::STATE_REGION_INDEX] {
        assert_eq!(guest.device.read_region(region, 0, &mut [0; 8]), Err(Errno::EBUSY));
    }
    assert_eq!(guest.device.write_region(0, accel::REGISTER_TAIL, &[0; 4]), Err(Errno::EBUSY));
    assert_eq!(guest.device.write_region(7, 4, &[6]), Ok(1), "the configuration space is the user's");
    data.write(&stream).unwrap();
    guest.device.set_mig_state(State::Stop).unwrap();
    assert_eq!(guest.get32(accel::REGISTER_CONTROL), 0);
    assert!(own_state(&guest.device) == own_state(&memory.device(config(STATE))));
}

/// One job, by numbers that may be anything.
fn job() -> impl Strategy<Value = Descriptor> {
    let slot = || (0u64..7).prop_map(|slot| DATA + (slot << 20));
    let length = || {
        prop_oneof![1u64..10_000, Just(SLICE_BYTES), Just(SLICE_BYTES * 2 + 8), Just(SLICE_BYTES * 3 + 1),]
    };
    prop_oneof![
        (slot(), slot(), length())
            .prop_map(|(source, destination, length)| { Descriptor::copy(0, source, destination, length) }),
        (slot(), length(), any::<u64>())
            .prop_map(|(at, length, pattern)| Descriptor::fill(0, at, length, pattern)),
        (slot(), length()).prop_map(|(at, length)| Descriptor::checksum(0, at, length)),
        (0..STATE / 8, 1..STATE / 8, any::<u64>())
            .prop_map(|(offset, words, seed)| { Descriptor::scramble(0, offset * 8, words * 8, seed) }),
        Just(Descriptor::default()),
        length().prop_map(|length| Descriptor::fill(0, u64::MAX / 2, length, 1)),
    ]
}

/// One move to another device: when, and how.
#[derive(Clone, Debug)]
struct Hop {
    after_calls: usize,
    /// Bytes read before each further call in PRE_COPY; `None` for no pre-copy.
    precopy: Option<Vec<usize>>,
    read_cut: usize,
    write_cut: usize,
}

fn hop() -> impl Strategy<Value = Hop> {
    let reads = proptest::collection::vec(0usize..100_000, 0..6);
    (0usize..6, proptest::option::of(reads), 1usize..100_000, 1usize..100_000).prop_map(
        |(after_calls, precopy, read_cut, write_cut)| Hop { after_calls, precopy, read_cut, write_cut },
    )
}

/// Submits as many of the jobs as there is room for.
fn feed(guest: &mut Guest, jobs: &mut std::slice::Iter<'_, Descriptor>, seen: &mut Vec<Completion>) {
    seen.extend(guest.completions());
    while guest.room() > 0 {
        let Some(job) = jobs.next() else { break };
        guest.submit(job);
    }
}

fn finish(guest: &mut Guest, jobs: &mut std::slice::Iter<'_, Descriptor>, seen: &mut Vec<Completion>) {
    loop {
        feed(guest, jobs, seen);
        if guest.device.advance(Duration::ZERO) == Next::Idle && jobs.len() == 0 {
            seen.extend(guest.completions());
            return;
        }
    }
}

fn carry(hop: &Hop, source: &DeviceFile, destination: &DeviceFile) {
    let mut stream = Vec::new();
    let mut opened = None;
    if let Some(reads) = &hop.precopy {
        let data = source.set_mig_state(State::PreCopy).unwrap().unwrap();
        for count in reads {
            let mut part = vec![0; *count];
            if let Ok(read) = data.read(&mut part) {
                stream.extend_from_slice(&part[..read]);
            }
            source.advance(Duration::ZERO);
        }
        opened = Some(data);
    }
    let data = source.set_mig_state(State::StopCopy).unwrap().or(opened).unwrap();
    stream.extend(read_all(&data, hop.read_cut));
    load(destination, &stream, hop.write_cut);
    assert!(registers(destination) == registers(source));
    assert!(own_state(destination) == own_state(source));
    destination.set_mig_state(State::Running).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn however_often_and_wherever_it_is_moved_no_completion_is_lost_or_doubled(
        jobs in proptest::collection::vec(job(), 1..24),
        hops in proptest::collection::vec(hop(), 1..4),
    ) {
        let jobs: Vec<Descriptor> =
            (100..).zip(jobs).map(|(tag, job)| Descriptor { tag, ..job }).collect();
        let still = Memory::new();
        let mut stays = Guest::start(&still, still.device(config(STATE)), 8);
        let mut expected = Vec::new();
        finish(&mut stays, &mut jobs.iter(), &mut expected);
        prop_assert_eq!(expected.len(), jobs.len());

        let memory = Memory::new();
        let mut moves = Guest::start(&memory, memory.device(config(STATE)), 8);
        let mut seen = Vec::new();
        let mut waiting = jobs.iter();
        for hop in &hops {
            for _ in 0..hop.after_calls {
                feed(&mut moves, &mut waiting, &mut seen);
                moves.device.advance(Duration::ZERO);
            }
            let destination = memory.device(config(STATE));
            carry(hop, &moves.device, &destination);
            moves.move_to(destination);
        }
        finish(&mut moves, &mut waiting, &mut seen);

        prop_assert_eq!(seen, expected);
        prop_assert!(registers(&moves.device) == registers(&stays.device));
        prop_assert!(own_state(&moves.device) == own_state(&stays.device));
        prop_assert!(memory.read(DATA, 7 << 20) == still.read(DATA, 7 << 20));
    }
}
