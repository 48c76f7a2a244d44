//! A guest that resets its device while the device is migrated, at each request of the source, by both rules for resets.

use std::sync::{Arc, Mutex};

use whimbrel_device::DeviceFile;
use whimbrel_protocol::dirty::DirtyReport;
use whimbrel_user::{
    DataFile, DeviceSetup, Errno, Migratable, PrecopyReport, ResetRule, Result, SessionState, State,
    StateFile,
};

use crate::forward::forward;
use crate::support::engine::{Error, Outcome};
use crate::support::{Control, Ended, Rig, Shape};
use State::{PreCopy, PreCopyP2p, Resuming, Running, StopCopy};

/// A request of the migration to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Request {
    State,
    Set(State),
    DataSize,
    PrecopyInfo,
    /// In the state that the device is in.
    Read(State),
    Write,
    LogReport,
    SaveSetup,
}

/// The guest of a device, which resets it right before a request, once, and sets it up again.
struct Guest {
    file: DeviceFile,
    control: Control,
    before: Request,
    passes: u32,
    has_reset: bool,
}

/// What the device's guest has made of its state after the reset.
const SET_UP: u8 = 77;

impl Guest {
    fn look(&mut self, request: Request) {
        let now = self.file.mig_state().unwrap();
        let request = if let Request::Read(_) = request { Request::Read(now) } else { request };
        if self.has_reset || request != self.before {
            return;
        }
        if self.passes > 0 {
            self.passes -= 1;
            return;
        }
        self.has_reset = true;
        self.file.reset().unwrap();
        self.control.set_state(&vec![SET_UP; self.control.state().len()]);
    }
}

/// A device of the migration, whose guest watches.
struct Watched {
    device: Box<dyn Migratable>,
    known: SessionState,
    guest: Arc<Mutex<Guest>>,
}

impl Watched {
    fn on(&mut self, request: Request) -> &mut dyn Migratable {
        self.guest.lock().unwrap().look(request);
        &mut *self.device
    }
}

impl Migratable for Watched {
    forward!(device: name, info, reset, probe_feature, migration_flags, enable_precopy_info_v2);
    forward!(device: dma_logging_start, dma_logging_stop, restore_setup);

    fn state(&mut self) -> Result<State> {
        let state = self.on(Request::State).state()?;
        self.known.set(state);
        Ok(state)
    }

    fn set_state(&mut self, state: State) -> Result<Option<DataFile>> {
        let opened = self.on(Request::Set(state)).set_state(state)?;
        self.known.set(state);
        Ok(opened.map(|inner| {
            let (name, direction) = (self.device.name().to_string(), inner.direction());
            let file = WatchedFile { inner, guest: self.guest.clone() };
            DataFile::new(name, direction, self.known.clone(), Box::new(file))
        }))
    }

    fn data_size(&mut self) -> Result<u64> {
        self.on(Request::DataSize).data_size()
    }

    fn dma_logging_report(&mut self, report: &mut DirtyReport<'_>) -> Result<()> {
        self.on(Request::LogReport).dma_logging_report(report)
    }

    fn save_setup(&mut self) -> Result<Option<DeviceSetup>> {
        self.on(Request::SaveSetup).save_setup()
    }
}

struct WatchedFile {
    inner: DataFile,
    guest: Arc<Mutex<Guest>>,
}

impl WatchedFile {
    fn on(&mut self, request: Request) -> &mut dyn StateFile {
        self.guest.lock().unwrap().look(request);
        self.inner.file_mut()
    }
}

impl StateFile for WatchedFile {
    fn read(&mut self, buffer: &mut [u8]) -> std::result::Result<usize, Errno> {
        self.on(Request::Read(StopCopy)).read(buffer)
    }

    fn write(&mut self, data: &[u8]) -> std::result::Result<usize, Errno> {
        self.on(Request::Write).write(data)
    }

    fn precopy_info(&mut self) -> std::result::Result<PrecopyReport, Errno> {
        self.on(Request::PrecopyInfo).precopy_info()
    }
}

/// A rig whose first device, here or there, is reset by its guest.
fn rig(
    count: usize,
    at_source: bool,
    before: Request,
    passes: u32,
    rule: ResetRule,
) -> (Rig, Arc<Mutex<Guest>>) {
    let mut rig = Rig::set(count, &Shape::default()).with_memory(&[(0, 0x4000)]);
    let side = if at_source { &mut rig.here } else { &mut rig.there };
    let (file, control) = (side.file(), side.control().clone());
    file.set_reset_rule(rule).unwrap();
    let guest = Arc::new(Mutex::new(Guest { file, control, before, passes, has_reset: false }));
    let its = guest.clone();
    side.wrap(0, |device, _| Box::new(Watched { device, known: SessionState::default(), guest: its }));
    (rig, guest)
}

/// The state in which the guest resets its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    /// Without a session.
    Running,
    /// Between SET of PRE_COPY and GET, which makes sure of it.
    Entering,
    InPrecopy,
    Stopped,
}

/// Where a guest resets its device: in each phase of a source.
const MOMENTS: [(Request, u32, When); 20] = [
    (Request::Set(PreCopy), 0, When::Running),
    (Request::State, 1, When::Entering),
    (Request::PrecopyInfo, 0, When::InPrecopy),
    (Request::DataSize, 0, When::InPrecopy),
    (Request::Read(PreCopy), 0, When::InPrecopy),
    (Request::Read(PreCopy), 1, When::InPrecopy),
    (Request::Read(PreCopy), 2, When::InPrecopy),
    (Request::LogReport, 0, When::InPrecopy),
    (Request::PrecopyInfo, 1, When::InPrecopy),
    (Request::DataSize, 1, When::InPrecopy),
    (Request::PrecopyInfo, 2, When::InPrecopy),
    (Request::DataSize, 2, When::InPrecopy),
    (Request::Set(StopCopy), 0, When::InPrecopy),
    (Request::State, 2, When::Stopped),
    (Request::LogReport, 1, When::Stopped),
    (Request::SaveSetup, 0, When::Stopped),
    (Request::Read(StopCopy), 0, When::Stopped),
    (Request::Read(StopCopy), 1, When::Stopped),
    // Before HANDOVER.
    (Request::State, 3, When::Stopped),
    // The device is the destination's.
    (Request::Set(State::Stop), 0, When::Running),
];

/// What holds after a migration that a reset has ended.
fn assert_ended_by_the_reset(ended: &mut Ended, name: &str, what: &str) {
    let error = ended.sent.as_ref().expect_err(what);
    let Error::ResetMeanwhile { device, found, .. } = &error.cause else { panic!("{what}: {error}") };
    assert_eq!(device, name, "{what}: {error}");
    assert!(matches!(found, None | Some(Running)), "{what}: {error}");
    let text = error.to_string();
    assert!(
        text.contains("it was reset meanwhile") && text.ends_with("the devices run on at the source"),
        "{text}"
    );
    let received = ended.received.as_ref().expect_err(what).to_string();
    assert!(
        received.contains("the source ended the migration") && received.contains("it was reset meanwhile"),
        "{received}"
    );
    assert_runs_on(ended, what);
}

/// The device runs here, as its guest has set it up again.
fn assert_runs_on(ended: &mut Ended, what: &str) {
    let error = ended.sent.as_ref().expect_err(what);
    assert!(matches!(error.outcome, Outcome::RunsOn), "{what}: {error}");
    assert_eq!(ended.rig.here.state(), Running, "{what}");
    let control = ended.rig.here.control();
    assert!(control.state().iter().all(|byte| *byte == SET_UP), "{what}: its guest's work is lost");
    assert!(!control.is_logging(), "{what}: the log was left running");
    assert!(!ended.rig.here.program.calls.is_paused(), "{what}: the program was left paused");
    ended.rig.assert_destination_is_fresh(what);
}

#[test]
fn a_guest_that_resets_its_device_ends_the_migration_and_both_sides_name_the_reset_by_the_kernels_rule() {
    for (before, passes, when) in MOMENTS {
        let what = format!("before {before:?} after {passes}");
        let (rig, guest) = rig(1, true, before, passes, ResetRule::EndsMigration);
        let mut ended = rig.migrate();
        assert!(guest.lock().unwrap().has_reset, "{what}: there was no such request");
        match when {
            When::Running => assert_moved(&mut ended, before == Request::Set(State::Stop), &what),
            When::Entering => {
                let error = ended.sent.as_ref().expect_err(&what);
                assert!(error.to_string().contains("in RUNNING, as after a reset"), "{what}: {error}");
                assert_runs_on(&mut ended, &what);
            }
            When::InPrecopy | When::Stopped => assert_ended_by_the_reset(&mut ended, "here", &what),
        }
    }
}

/// What holds after a migration that went well.
fn assert_moved(ended: &mut Ended, was_reset_after_it: bool, what: &str) {
    ended.sent.as_ref().unwrap_or_else(|error| panic!("{what}: {error}"));
    ended.received.as_ref().unwrap_or_else(|error| panic!("{what}: {error}"));
    ended.rig.assert_source_stands(what);
    assert_eq!(ended.rig.there.state(), Running, "{what}");
    let is_set_up = |control: &Control| control.state().iter().all(|byte| *byte == SET_UP);
    assert_eq!(
        is_set_up(ended.rig.there.control()),
        !was_reset_after_it,
        "{what}: the state after the reset"
    );
}

#[test]
fn a_migration_survives_the_resets_of_its_guest_in_precopy_by_the_rule_that_keeps_it() {
    for (before, passes, when) in MOMENTS {
        let what = format!("before {before:?} after {passes}");
        let (rig, guest) = rig(1, true, before, passes, ResetRule::KeepsPrecopy);
        let mut ended = rig.migrate();
        assert!(guest.lock().unwrap().has_reset, "{what}: there was no such request");
        if when == When::Stopped {
            assert_ended_by_the_reset(&mut ended, "here", &what);
        } else {
            assert_moved(&mut ended, before == Request::Set(State::Stop), &what);
        }
    }
}

#[test]
fn a_reset_of_one_device_of_a_set_ends_the_migration_of_all_or_of_none() {
    for rule in ResetRule::ALL {
        for before in [Request::Set(PreCopyP2p), Request::Set(StopCopy)] {
            let what = format!("{rule:?} before {before:?}");
            let (rig, guest) = rig(2, true, before, 0, rule);
            let mut ended = rig.migrate();
            assert!(guest.lock().unwrap().has_reset, "{what}");
            match rule {
                ResetRule::EndsMigration => assert_ended_by_the_reset(&mut ended, "here0", &what),
                ResetRule::KeepsPrecopy => assert_moved(&mut ended, false, &what),
            }
        }
    }
}

#[test]
fn a_reset_of_the_device_at_the_destination_is_named_and_no_empty_device_runs_there() {
    for (before, passes) in [(Request::Write, 0), (Request::Write, 1), (Request::State, 2)] {
        let what = format!("before {before:?} after {passes}");
        let (rig, guest) = rig(1, false, before, passes, ResetRule::EndsMigration);
        let mut ended = rig.migrate();
        assert!(guest.lock().unwrap().has_reset, "{what}");
        let error = ended.received.as_ref().expect_err(&what);
        assert!(
            matches!(error, Error::ResetMeanwhile { device, expected: Resuming, found: Some(Running) } if device == "there"),
            "{what}: {error}"
        );
        ended.rig.assert_source_runs(&what);
        ended.rig.assert_destination_is_fresh(&what);
    }
}
