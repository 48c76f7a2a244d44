//! A side that does not know the outcome is settled by its journal, its devices and an arbiter; and a journal that cannot be
//! written.

use std::convert::Infallible;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use whimbrel_device::{ArcError, Errno};
use whimbrel_engine::{Evidence, GuestError, Resolve, Resolved};
use whimbrel_protocol::handover::{Arbiter, Entry, JournalArbiter, Record, Ruling, Side};
use whimbrel_user::{Migratable, State};

use crate::support::control::History;
use crate::support::engine::{Error, Journal, Outcome};
use crate::support::{At, Control, Program, Rig, Shape, open_in};

const MIGRATION: u128 = 7;

/// Two devices that have survived their process, and its journal.
struct Left {
    folder: tempfile::TempDir,
    devices: Vec<Option<Box<dyn Migratable>>>,
    controls: Vec<Control>,
    history: History,
}

impl Left {
    fn new(entries: &[Entry], states: [State; 2]) -> Left {
        let folder = tempfile::tempdir().unwrap();
        let history = History::default();
        let (mut devices, mut controls) = (Vec::new(), Vec::new());
        for (number, state) in states.into_iter().enumerate() {
            let (device, _, control) =
                open_in(&format!("device {number}"), &Shape::default(), number, &history);
            control.set_state(&[number as u8 + 1; 16]);
            let mut device: Box<dyn Migratable> = device;
            device.set_state(state).unwrap();
            devices.push(Some(device));
            controls.push(control);
        }
        let mut journal = Journal::open(folder.path().join("journal"), "host-b").unwrap();
        for entry in entries {
            journal.append(MIGRATION, *entry).unwrap();
        }
        Left { folder, devices, controls, history }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("journal")
    }

    fn look(&mut self) -> Resolve {
        let devices = std::mem::take(&mut self.devices);
        Resolve::look(Journal::open_existing(self.path()).unwrap(), devices).unwrap()
    }

    fn settle<A: Arbiter>(&mut self, arbiter: &mut A) -> Result<Option<Entry>, Error>
    where
        A::Error: Into<GuestError>,
    {
        let Resolved { result, devices, .. } = self.look().settle(arbiter);
        self.devices = devices;
        result
    }

    fn states(&mut self) -> Vec<State> {
        self.devices.iter_mut().flatten().map(|device| device.state().unwrap()).collect()
    }
}

fn entries(path: &Path) -> Vec<Entry> {
    Journal::read(path).unwrap().iter().filter_map(Record::entry).collect()
}

/// An arbiter that must not be asked.
struct Nobody;

impl Arbiter for Nobody {
    type Error = Infallible;

    fn ask(&mut self, side: Side) -> Result<Ruling, Infallible> {
        panic!("the {side:?} asks although the outcome is proven")
    }

    fn recorded(&mut self, _: Entry) -> Result<(), Infallible> {
        Ok(())
    }
}

#[test]
fn a_source_of_which_a_device_still_runs_lets_all_run_again_in_two_steps() {
    let mut left = Left::new(&[Entry::MayBeHandedOver], [State::StopCopy, State::PreCopyP2p]);
    let before = left.history.list().len();
    assert_eq!(left.settle(&mut Nobody).unwrap(), Some(Entry::Returned));
    assert_eq!(left.states(), [State::Running; 2]);
    assert_eq!(left.controls[0].state(), [1; 16]);
    assert_eq!(entries(&left.path()), [Entry::MayBeHandedOver, Entry::Returned]);
    let asked: Vec<At> = left.history.list()[before..].iter().map(|moment| moment.at).collect();
    let first = |wanted: fn(&At) -> bool| asked.iter().position(wanted).unwrap();
    let quiesced = first(|at| matches!(at, At::Arc(State::Stop, State::RunningP2p)));
    let runs = first(|at| matches!(at, At::Arc(_, State::Running)));
    assert!(quiesced < runs, "{asked:?}");
}

#[test]
fn a_stopped_source_does_what_the_other_journal_says() {
    for (word, outcome, state) in [
        (Entry::Discarded, Some(Entry::Returned), State::Running),
        (Entry::Started, Some(Entry::Gone), State::Stop),
        (Entry::Discarding, None, State::StopCopy),
        (Entry::MayStart, None, State::StopCopy),
    ] {
        let mut left = Left::new(&[Entry::MayBeHandedOver], [State::StopCopy; 2]);
        let mut arbiter = JournalArbiter::new();
        arbiter.read(word);
        assert_eq!(left.settle(&mut arbiter).unwrap(), outcome, "{word:?}");
        assert_eq!(left.states(), [state; 2], "{word:?}");
        let mut expected = vec![Entry::MayBeHandedOver];
        expected.extend(outcome);
        assert_eq!(entries(&left.path()), expected, "{word:?}");
    }
}

#[test]
fn a_destination_is_settled_by_the_states_of_its_devices() {
    let may_start = vec![Entry::MayStart];
    let discarding = vec![Entry::MayStart, Entry::Discarding];
    for (journal, found, outcome) in [
        (&may_start, [State::Stop, State::Resuming], Entry::Discarded),
        (&may_start, [State::Stop, State::Running], Entry::Started),
        (&may_start, [State::RunningP2p, State::Stop], Entry::Started),
        (&discarding, [State::Running, State::Stop], Entry::Discarded),
    ] {
        let mut left = Left::new(journal, found);
        assert_eq!(left.settle(&mut Nobody).unwrap(), Some(outcome), "{found:?}");
        assert_eq!(left.states(), [State::Running; 2], "{found:?}");
        let has_state = left.controls.iter().all(|control| control.state() != [0; 16]);
        assert_eq!(has_state, outcome == Entry::Started, "{found:?}");
        let mut expected = journal.clone();
        if outcome == Entry::Discarded && !journal.contains(&Entry::Discarding) {
            expected.push(Entry::Discarding);
        }
        expected.push(outcome);
        assert_eq!(entries(&left.path()), expected, "{found:?}");
    }
}

#[test]
fn a_destination_that_may_have_been_ready_asks() {
    for (ruling, outcome) in [(Side::Destination, Entry::Started), (Side::Source, Entry::Discarded)] {
        let mut left = Left::new(&[Entry::MayStart], [State::Stop; 2]);
        let mut arbiter = JournalArbiter::new();
        assert_eq!(left.settle(&mut arbiter).unwrap(), None, "the source has not asked");
        assert_eq!(left.states(), [State::Stop; 2]);
        arbiter.ask(Side::Source);
        arbiter.choose(ruling).unwrap();
        assert_eq!(left.settle(&mut arbiter).unwrap(), Some(outcome));
        assert_eq!(left.states(), [State::Running; 2]);
        let source = arbiter.ruling(Side::Source);
        assert_eq!(source, if ruling == Side::Source { Ruling::Mine } else { Ruling::Theirs });
    }
}

#[test]
fn a_device_that_cannot_be_reset_keeps_the_question_open() {
    let mut left = Left::new(&[Entry::MayStart], [State::Stop, State::Resuming]);
    left.controls[1].fail(At::Reset, 0, ArcError::Stays(Errno::EIO));
    left.controls[1].fail(At::Arc(State::Resuming, State::Stop), 0, ArcError::Stays(Errno::EIO));
    let error = left.settle(&mut Nobody).unwrap_err().to_string();
    assert!(error.contains("device 1") && error.contains("EIO"), "{error}");
    assert_eq!(entries(&left.path()), [Entry::MayStart, Entry::Discarding]);
    // The other one was reset and runs, which proves nothing now.
    assert_eq!(left.settle(&mut Nobody).unwrap(), Some(Entry::Discarded));
    assert_eq!(left.states(), [State::Running; 2]);
}

#[test]
fn a_device_that_does_not_start_is_named_and_tried_again() {
    let mut left = Left::new(&[Entry::MayStart], [State::Running, State::Stop]);
    left.controls[1].fail(At::Arc(State::RunningP2p, State::Running), 0, ArcError::Stays(Errno::EBUSY));
    let error = left.settle(&mut Nobody).unwrap_err();
    assert!(matches!(error, Error::NotStarted(_)) && error.to_string().contains("device 1"), "{error}");
    assert_eq!(entries(&left.path()), [Entry::MayStart]);
    assert_eq!(left.settle(&mut Nobody).unwrap(), Some(Entry::Started));
}

#[test]
fn a_device_whose_state_is_lost_gives_the_set_to_the_other_side() {
    let mut left = Left::new(&[Entry::MayStart], [State::Stop; 2]);
    left.devices[1] = None;
    let resolve = left.look();
    assert_eq!(resolve.judgement().owner, Some(Side::Source));
    assert_eq!(resolve.judgement().evidence, Evidence::Lost { device: "device 1".into() });
    let resolved = resolve.settle(&mut Nobody);
    assert_eq!(resolved.result.unwrap(), Some(Entry::Discarded));
    // At the source one that is left may be needed: it is kept.
    let mut left = Left::new(&[Entry::MayBeHandedOver], [State::StopCopy; 2]);
    left.devices[1] = None;
    assert_eq!(left.settle(&mut JournalArbiter::new()).unwrap(), None);
    left.devices = vec![None, None];
    assert_eq!(left.settle(&mut Nobody).unwrap(), Some(Entry::Gone));
}

#[test]
fn an_arbiter_that_cannot_be_reached_changes_nothing() {
    struct Unreachable;
    impl Arbiter for Unreachable {
        type Error = std::io::Error;

        fn ask(&mut self, _: Side) -> Result<Ruling, Self::Error> {
            Err(std::io::ErrorKind::TimedOut.into())
        }

        fn recorded(&mut self, _: Entry) -> Result<(), Self::Error> {
            Ok(())
        }
    }
    let mut left = Left::new(&[Entry::MayStart], [State::Stop; 2]);
    let error = left.settle(&mut Unreachable).unwrap_err().to_string();
    assert_eq!(error, "the arbiter: timed out");
    assert_eq!(left.states(), [State::Stop; 2]);
}

#[test]
fn a_journal_without_a_question_has_nothing_to_resolve() {
    let left = Left::new(&[Entry::MayStart, Entry::Started], [State::Running; 2]);
    let journal = Journal::open_existing(left.path()).unwrap();
    let error = Resolve::look(journal, left.devices).unwrap_err();
    assert!(matches!(error, Error::NothingToResolve { .. }), "{error}");
}

/// A journal in memory that can be filled up.
struct Disk(File);

impl Disk {
    fn new() -> Disk {
        Disk(memfd_create(c"journal", MemfdFlags::ALLOW_SEALING).unwrap().into())
    }

    fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }

    /// Lets every later record fail.
    fn fill(&self) -> impl FnOnce() + Send + 'static {
        let file = self.0.try_clone().unwrap();
        move || fcntl_add_seals(&file, SealFlags::GROW).unwrap()
    }
}

#[test]
fn a_source_whose_journal_fails_before_the_stop_runs_on() {
    let disk = Disk::new();
    let mut rig = Rig::set(2, &Shape::default());
    rig.here.journal = Some(disk.path());
    rig.here.units[0].control.when(At::Arc(State::Running, State::PreCopy), 0, disk.fill());
    let mut ended = rig.migrate();
    let error = ended.sent.unwrap_err();
    assert!(matches!(error.cause, Error::Journal { .. }), "{error}");
    assert!(matches!(error.outcome, Outcome::RunsOn), "{error}");
    ended.rig.assert_source_runs("a journal that cannot be written");
    let told = ended.received.unwrap_err().to_string();
    assert!(told.contains("the source ended the migration: the journal /proc/self/fd/"), "{told}");
    assert_eq!(entries(&disk.path()), []);
}

#[test]
fn a_destination_whose_journal_fails_before_ready_says_so_and_is_reset() {
    let disk = Disk::new();
    let mut rig = Rig::set(2, &Shape::default());
    rig.there.journal = Some(disk.path());
    rig.there.units[0].control.when(At::Arc(State::Stop, State::Resuming), 0, disk.fill());
    let mut ended = rig.migrate();
    let error = ended.sent.unwrap_err();
    assert!(error.to_string().contains("the destination ended the migration: the journal"), "{error}");
    assert!(matches!(error.outcome, Outcome::RunsOn), "{error}");
    assert!(matches!(ended.received, Err(Error::Journal { .. })), "{:?}", ended.received);
    assert_eq!(ended.rig.there.states(), [Some(State::Running); 2]);
    ended.rig.assert_source_runs("a journal that cannot be written");
}

#[test]
fn a_destination_that_cannot_record_its_discard_leaves_its_devices_for_resolve() {
    let disk = Disk::new();
    let mut rig = Rig::set(2, &Shape::default());
    rig.there.journal = Some(disk.path());
    rig.there.program = Program::refusing("inspect");
    rig.there.units[0].control.when(At::Arc(State::Resuming, State::Stop), 0, disk.fill());
    let mut ended = rig.migrate();
    assert!(matches!(ended.sent.unwrap_err().outcome, Outcome::RunsOn));
    ended.rig.assert_source_runs("a destination without a word");
    let error = ended.received.unwrap_err();
    assert!(matches!(error, Error::NotDiscarded { .. }), "{error}");
    assert_eq!(ended.rig.there.states(), [Some(State::Stop); 2]);
    assert_eq!(entries(&disk.path()), [Entry::MayStart]);

    // The disk has room again.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    std::fs::copy(disk.path(), &path).unwrap();
    let devices = ended.rig.there.units.into_iter().map(|unit| unit.device).collect();
    let resolve = Resolve::look(Journal::open_existing(&path).unwrap(), devices).unwrap();
    let mut arbiter = JournalArbiter::new();
    arbiter.read(Entry::Returned);
    assert_eq!(resolve.settle(&mut arbiter).result.unwrap(), Some(Entry::Discarded));
}
