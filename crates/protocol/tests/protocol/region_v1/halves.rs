//! The two halves against each other: a device moves from one region to another, or both sides know that it
//! did not.

use proptest::prelude::*;
use whimbrel_protocol::arc::ArcError;
use whimbrel_protocol::region::{Layout, Outcome, Phase, TEXT_TRANSITIONS, User, UserError, Version, drive};
use whimbrel_protocol::{Errno, MigrationFlags, State};

use super::support::*;

fn flags() -> impl Strategy<Value = MigrationFlags> {
    prop_oneof![Just(1), Just(3), Just(5), Just(7)].prop_map(MigrationFlags::from_bits_retain)
}

fn layout(version: Version) -> impl Strategy<Value = Layout> {
    let made = move |layout: Result<Layout, _>| layout.unwrap();
    prop_oneof![
        (1u64..200).prop_map(move |bytes| made(Layout::trapped(version, bytes))),
        (100u64..150, 1u64..100).prop_map(move |(at, bytes)| made(Layout::new(version, at, bytes, vec![]))),
        (1u64..3).prop_map(move |pages| made(Layout::mapped(version, pages * 4096))),
        (0u64..50).prop_map(move |bytes| made(Layout::partly_mapped(version, 4096, bytes))),
    ]
}

fn transactions() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let length = prop_oneof![1usize..20, 1usize..300, 4000usize..5000];
    proptest::collection::vec(
        length.prop_flat_map(|length| proptest::collection::vec(any::<u8>(), length)),
        0..6,
    )
}

fn version() -> impl Strategy<Value = Version> {
    prop_oneof![Just(Version::V1), Just(Version::Draft)]
}

/// What the vendor half gives of these transactions: as they are, cut where the section ends.
fn cut(transactions: &[Vec<u8>], capacity: usize) -> Vec<Vec<u8>> {
    transactions.iter().flat_map(|data| data.chunks(capacity)).map(<[u8]>::to_vec).collect()
}

#[derive(Debug)]
struct Move {
    source: Rig,
    from: User,
    destination: Rig,
    to: User,
}

impl Move {
    fn new(layouts: (Layout, Layout), flags: MigrationFlags, early: &[Vec<u8>], late: &[Vec<u8>]) -> Move {
        let mut device = Device::new(flags);
        let precopy = flags.contains(MigrationFlags::PRE_COPY);
        device.early = if precopy { early.to_vec() } else { Vec::new() };
        device.late = if precopy { late.to_vec() } else { [early, late].concat() };
        let expects = device.all_data().len();
        let source = Rig::new(layouts.0, device);
        let destination = Rig::new(layouts.1, Device { expects: Some(expects), ..Device::new(flags) });
        let (from, to) = (source.user(), destination.user());
        Move { source, from, destination, to }
    }

    /// Carries the next transaction. `false`: there is none now.
    fn carry(&mut self) -> Result<bool, UserError> {
        self.from.save();
        let Outcome::Saved(transaction) = drive(&mut self.from, &mut self.source)? else {
            panic!("a save came to something else");
        };
        let Some(transaction) = transaction else { return Ok(false) };
        self.to.load(transaction);
        drive(&mut self.to, &mut self.destination)?;
        Ok(true)
    }

    /// All of it; at most `iterations` in pre-copy.
    fn run(&mut self, iterations: usize) -> Result<(), UserError> {
        self.destination.phase(&mut self.to, Phase::Resuming)?;
        self.source.phase(&mut self.from, Phase::PreCopy)?;
        for _ in 0..iterations {
            if !self.carry()? {
                break;
            }
        }
        self.source.phase(&mut self.from, Phase::StopAndCopy)?;
        while self.carry()? {}
        self.source.phase(&mut self.from, Phase::Stop)?;
        self.destination.phase(&mut self.to, Phase::Running)
    }
}

proptest! {
    #[test]
    fn bytes_and_boundaries_arrive_exactly(
        flags in flags(),
        from in version().prop_flat_map(layout),
        to in version().prop_flat_map(layout),
        early in transactions(),
        late in transactions(),
        iterations in 0usize..8,
        trapped in any::<bool>(),
    ) {
        let mut world = Move::new((from, to), flags, &early, &late);
        if trapped {
            world.from = User::new(world.from.view().clone().trapped());
            world.to = User::new(world.to.view().clone().trapped());
        }
        let room = world.destination.vendor.layout().capacity();
        let capacity = world.source.vendor.layout().capacity();
        match world.run(iterations) {
            Ok(()) => {
                prop_assert!(world.destination.device.state.is_running());
                prop_assert_eq!(world.source.device.state, State::Stop);
                let all = [&early[..], &late[..]].concat();
                prop_assert_eq!(&world.destination.device.loaded, &cut(&all, capacity));
            }
            Err(UserError::NoRoom { bytes, room: told }) => {
                // Only if the destination's section is smaller than a transaction; then nothing of it was
                // given.
                prop_assert_eq!(told, room as u64);
                prop_assert!(bytes > told);
                prop_assert!(!world.destination.device.state.is_running());
            }
            Err(error) => prop_assert!(false, "{}", error),
        }
    }

    /// A cut-up transaction is taken where its owner allows it, and every byte arrives.
    #[test]
    fn a_user_that_may_split_carries_every_byte(
        from in layout(Version::V1),
        to in layout(Version::Draft),
        late in transactions(),
    ) {
        let mut world = Move::new((from, to), MigrationFlags::all(), &[], &late);
        world.to = world.to.with_splitting();
        world.run(0).unwrap();
        prop_assert_eq!(world.destination.device.loaded.concat(), late.concat());
    }

    /// One access goes wrong, at either end, before or after it was done: either all arrives, or a user
    /// knows; then the destination does not run, and the source runs again.
    #[test]
    fn a_failure_at_any_access_is_known(
        flags in flags(),
        versions in (version(), version()),
        early in transactions(),
        late in transactions(),
        iterations in 0usize..4,
        at in 0usize..120,
        before in any::<bool>(),
        at_source in any::<bool>(),
    ) {
        let layouts = (Layout::trapped(versions.0, 5000).unwrap(), Layout::mapped(versions.1, 8192).unwrap());
        let mut world = Move::new(layouts, flags, &early, &late);
        let fault = Some((at, if before { Fault::Before } else { Fault::After }));
        if at_source {
            world.source.fault = fault;
        } else {
            world.destination.fault = fault;
        }
        let all = [&early[..], &late[..]].concat();
        let result = world.run(iterations);
        let hit = if at_source { world.source.fault.is_none() } else { world.destination.fault.is_none() };
        match result {
            Ok(()) => {
                prop_assert!(!hit, "a failure was swallowed");
                prop_assert_eq!(&world.destination.device.loaded, &all);
            }
            Err(error) => {
                prop_assert!(hit, "{}", error);
                // The last write of all may have been done, and its answer lost; v1's user then reads where
                // it led.
                let started = world.destination.device.state.is_running() && !world.to_never_resumed();
                if started {
                    prop_assert_eq!(&world.destination.device.loaded, &all);
                }
                world.source.fault = None;
                world.source.phase(&mut world.from, Phase::Running).unwrap();
                prop_assert!(world.source.device.state.is_running());
            }
        }
    }

    /// Requests of the source are left at any access and begun again: nothing is lost, nothing comes twice.
    #[test]
    fn leaving_early_loses_nothing(
        flags in flags(),
        from in layout(Version::V1),
        early in transactions(),
        late in transactions(),
        leave in proptest::collection::vec((0usize..40, 0u8..4), 0..12),
        switch_at in 0usize..12,
    ) {
        let to = Layout::trapped(Version::V1, 10_000).unwrap();
        let mut world = Move::new((from, to), flags, &early, &late);
        let capacity = world.source.vendor.layout().capacity();
        world.destination.phase(&mut world.to, Phase::Resuming).unwrap();
        world.source.phase(&mut world.from, Phase::PreCopy).unwrap();
        let mut got = Vec::new();
        for (number, (accesses, other)) in leave.iter().enumerate() {
            if number == switch_at {
                world.source.phase(&mut world.from, Phase::StopAndCopy).unwrap();
            }
            world.from.save();
            let mut left = true;
            for _ in 0..*accesses {
                if let Some(Ok(Outcome::Saved(data))) = step(&mut world.from, &mut world.source) {
                    got.extend(data);
                    left = false;
                    break;
                }
            }
            if left {
                // An access may be under way, whose answer nobody hears.
                match other {
                    0 => world.from.leave(),
                    1 => {
                        world.from.pending();
                        drive(&mut world.from, &mut world.source).unwrap();
                    }
                    2 => got.extend(lose_answer(&mut world.from, &mut world.source)),
                    _ => {
                        world.from.get_phase();
                        drive(&mut world.from, &mut world.source).unwrap();
                    }
                }
            }
        }
        world.source.phase(&mut world.from, Phase::StopAndCopy).unwrap();
        loop {
            world.from.save();
            match drive(&mut world.from, &mut world.source).unwrap() {
                Outcome::Saved(Some(data)) => got.push(data),
                _ => break,
            }
        }
        let all = [&early[..], &late[..]].concat();
        prop_assert_eq!(got, cut(&all, capacity));
    }

    /// Any states in any order, with arcs that fail: the region never says other than the device does, and a
    /// user is told where it is.
    #[test]
    fn the_region_says_what_the_device_does(
        flags in flags(),
        version in version(),
        registers in proptest::collection::vec(0u32..8, 1..30),
        failing in proptest::collection::vec(any::<(prop::sample::Index, prop::sample::Index, bool)>(), 0..6),
    ) {
        let mut rig = Rig::new(Layout::trapped(version, 64).unwrap(), Device::new(flags));
        rig.device.early = vec![vec![1; 10]; 3];
        rig.device.late = vec![vec![2; 10]; 3];
        let mut failing = failing.into_iter();
        for (number, register) in registers.into_iter().enumerate() {
            rig.device.fail_arc = if number % 3 == 2 {
                failing.next().map(|(from, to, broken)| {
                    let stays = ArcError::Stays(Errno::EBUSY);
                    let failure = if broken { ArcError::Broken(Errno::EIO) } else { stays };
                    (*from.get(&State::ALL), *to.get(&State::ALL), failure)
                })
            } else {
                None
            };
            let before = rig.state();
            let written = rig.set_state(register);
            let Some(phase) = rig.vendor.phase() else {
                prop_assert!(written.is_err());
                let told = if version == Version::V1 { Ok(ERROR) } else { Err(Errno::EIO) };
                prop_assert_eq!(rig.state(), told);
                rig.device.reset();
                rig.vendor.reset();
                continue;
            };
            prop_assert_eq!(rig.state(), if written.is_ok() { Ok(register) } else { before });
            prop_assert_eq!(rig.device.state, rig.vendor.state_behind());
            prop_assert_eq!(rig.device.state.is_running(), phase.is_running());
            prop_assert_eq!(rig.device.tracking, phase.is_saving());
        }
    }
}

impl Move {
    /// The destination was never stopped: it runs as it did before anything began.
    fn to_never_resumed(&self) -> bool {
        self.destination.device.arcs.is_empty()
    }
}

/// One access of a request, or its end.
fn step(user: &mut User, rig: &mut Rig) -> Option<Result<Outcome, UserError>> {
    use whimbrel_protocol::region::{Next, RegionAccess};
    match user.next_access() {
        Next::Read { offset, length, way } => {
            let mut data = vec![0; length];
            let read = RegionAccess::read(rig, offset, way, &mut data);
            user.read_done(read.map(|()| data.as_slice()));
            None
        }
        Next::Write { offset, data, way } => {
            let written = RegionAccess::write(rig, offset, way, data);
            user.write_done(written);
            None
        }
        Next::Finished(result) => Some(result),
        Next::Idle => None,
    }
}

/// The next access is done, and the user leaves before it hears of it.
fn lose_answer(user: &mut User, rig: &mut Rig) -> Option<Vec<u8>> {
    use whimbrel_protocol::region::{Next, RegionAccess};
    let mut came = None;
    match user.next_access() {
        Next::Read { offset, length, way } => {
            RegionAccess::read(rig, offset, way, &mut vec![0; length]).unwrap();
        }
        Next::Finished(Ok(Outcome::Saved(data))) => came = data,
        other => panic!("{other:?}"),
    }
    user.leave();
    came
}

#[test]
fn every_change_of_the_text_can_be_asked_for_by_the_user() {
    for version in [Version::V1, Version::Draft] {
        for (from, to) in TEXT_TRANSITIONS {
            let mut rig = Rig::new(Layout::trapped(version, 64).unwrap(), Device::new(MigrationFlags::all()));
            let mut user = rig.user();
            rig.phase(&mut user, from).unwrap();
            rig.phase(&mut user, to).unwrap();
            assert_eq!(rig.vendor.phase(), Some(to));
        }
    }
}

#[test]
fn a_transaction_whose_answer_was_lost_is_not_sent_again() {
    for fault in [Fault::Before, Fault::After] {
        let mut rig = Rig::v1(64, Device::new(MigrationFlags::all()));
        let mut user = rig.user();
        rig.phase(&mut user, Phase::Resuming).unwrap();
        // data_offset, the data in one piece, data_size
        rig.fault = Some((rig.made.len() + 1, fault));
        user.load(vec![7; 8]);
        assert!(matches!(drive(&mut user, &mut rig), Err(UserError::Access { .. })));
        assert!(rig.device.loaded.is_empty());
        // Nothing was handed over yet: the same transaction can be sent again.
        user.load(vec![7; 8]);
        assert_eq!(drive(&mut user, &mut rig), Ok(Outcome::Loaded));
        rig.fault = Some((rig.made.len() + 2, fault));
        user.load(vec![8; 8]);
        assert!(matches!(drive(&mut user, &mut rig), Err(UserError::Access { field: "data_size", .. })));
        // Nobody knows whether it was taken.
        user.load(vec![8; 8]);
        assert_eq!(drive(&mut user, &mut rig), Err(UserError::NotWhole));
        rig.device.reset();
        rig.vendor.reset();
        user.reset();
        rig.phase(&mut user, Phase::Resuming).unwrap();
        user.load(vec![8; 8]);
        assert_eq!(drive(&mut user, &mut rig), Ok(Outcome::Loaded));
    }
}

#[test]
fn a_load_left_while_it_is_handed_over_is_not_known_to_be_whole() {
    for (accesses, whole) in [(0, true), (1, true), (2, false)] {
        let mut rig = Rig::v1(64, Device::new(MigrationFlags::all()));
        let mut user = rig.user();
        rig.phase(&mut user, Phase::Resuming).unwrap();
        user.load(vec![7; 8]);
        for _ in 0..accesses {
            step(&mut user, &mut rig);
        }
        // The next access is under way.
        user.next_access();
        user.leave();
        user.load(vec![7; 8]);
        let again = drive(&mut user, &mut rig);
        assert_eq!(again, if whole { Ok(Outcome::Loaded) } else { Err(UserError::NotWhole) }, "{accesses}");
    }
}

#[test]
fn a_change_left_while_it_is_asked_for_is_not_known() {
    let mut rig = Rig::v1(64, Device::new(MigrationFlags::all()));
    let mut user = rig.user();
    user.set_phase(Phase::PreCopy);
    step(&mut user, &mut rig);
    assert_eq!(user.phase(), Some(Phase::Running));
    user.next_access();
    user.leave();
    assert_eq!(user.phase(), None);
    user.get_phase();
    assert_eq!(drive(&mut user, &mut rig), Ok(Outcome::Phase(Phase::Running)));
}

#[test]
fn a_buffer_left_open_is_not_gone_on_with_once_saving_has_ended() {
    let mut rig = Rig::v1(64, Device::with_data(&[b"early"], &[b"late"]));
    let mut user = rig.user();
    rig.phase(&mut user, Phase::PreCopy).unwrap();
    user.save();
    step(&mut user, &mut rig);
    step(&mut user, &mut rig);
    rig.phase(&mut user, Phase::Running).unwrap();
    rig.phase(&mut user, Phase::PreCopy).unwrap();
    rig.made.clear();
    user.save();
    assert_eq!(drive(&mut user, &mut rig), Ok(Outcome::Saved(Some(b"early".to_vec()))));
    assert_eq!(rig.made[0], Made::Read(PENDING_BYTES, 8), "{:?}", rig.made);
}
