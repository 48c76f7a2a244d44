//! When devices may be stopped: after their initial data, acknowledged if the VMM says so, and REINIT counts.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};

use whimbrel_engine::embedded::{Left, Saving};
use whimbrel_protocol::dirty::{DirtyReport, IovaRange};
use whimbrel_protocol::info::Info;
use whimbrel_protocol::precopy::PrecopyReport;
use whimbrel_protocol::session::Direction;
use whimbrel_uapi::device::DeviceInfoFlags;
use whimbrel_uapi::feature::{Feature, FeatureFlags};
use whimbrel_user::{DataFile, Errno, Migratable, MigrationFlags, Result, SessionState, State, StateFile};

/// What a device reports next; the last report stays.
type Reports = Arc<Mutex<VecDeque<PrecopyReport>>>;

/// A device that reports what a test says. Every read yields one byte.
struct Scripted {
    state: State,
    reports: Reports,
}

struct Script(Reports);

impl StateFile for Script {
    fn read(&mut self, buffer: &mut [u8]) -> std::result::Result<usize, Errno> {
        buffer[0] = 7;
        Ok(1)
    }

    fn write(&mut self, _: &[u8]) -> std::result::Result<usize, Errno> {
        Err(Errno::EINVAL)
    }

    fn precopy_info(&mut self) -> std::result::Result<PrecopyReport, Errno> {
        let mut reports = self.0.lock().unwrap();
        let report = *reports.front().unwrap();
        if reports.len() > 1 {
            reports.pop_front();
        }
        Ok(report)
    }
}

impl Migratable for Scripted {
    #[expect(clippy::unnecessary_literal_bound, reason = "the trait's devices have names of their own")]
    fn name(&self) -> &str {
        "scripted"
    }

    fn info(&mut self) -> Result<Info> {
        Ok(Info::new(DeviceInfoFlags::empty()))
    }

    fn reset(&mut self) -> Result<()> {
        panic!("nothing has failed")
    }

    fn probe_feature(&mut self, _: Feature, _: FeatureFlags) -> Result<bool> {
        Ok(true)
    }

    fn migration_flags(&mut self) -> Result<Option<MigrationFlags>> {
        Ok(Some(MigrationFlags::STOP_COPY | MigrationFlags::PRE_COPY))
    }

    fn state(&mut self) -> Result<State> {
        Ok(self.state)
    }

    fn set_state(&mut self, state: State) -> Result<Option<DataFile>> {
        self.state = state;
        let file = Box::new(Script(self.reports.clone()));
        let is_new = state == State::PreCopy;
        Ok(is_new.then(|| DataFile::new("scripted", Direction::Saving, SessionState::new(state), file)))
    }

    fn data_size(&mut self) -> Result<u64> {
        Ok(500)
    }

    fn enable_precopy_info_v2(&mut self) -> Result<bool> {
        Ok(true)
    }

    fn dma_logging_start(&mut self, _: u64, _: &[IovaRange]) -> Result<u64> {
        panic!("the VMM reads the logs")
    }

    fn dma_logging_stop(&mut self) -> Result<()> {
        panic!("the VMM reads the logs")
    }

    fn dma_logging_report(&mut self, _: &mut DirtyReport<'_>) -> Result<()> {
        panic!("the VMM reads the logs")
    }
}

fn started() -> (Saving<Box<Scripted>>, Reports) {
    let reports: Reports = Arc::new(Mutex::new([PrecopyReport::new(8, 40)].into()));
    let device = Box::new(Scripted { state: State::Running, reports: reports.clone() });
    let mut saving = Saving::new(vec![device]).unwrap();
    saving.start(io::sink()).unwrap();
    (saving, reports)
}

/// The device reports this from now on.
fn report(reports: &Reports, report: PrecopyReport) {
    *reports.lock().unwrap() = [report].into();
}

fn of(left: Left) -> (u64, u64, u64) {
    (left.initial, left.dirty, left.total)
}

#[test]
fn initial_data_counts_down_and_then_the_device_may_stop() {
    let (mut saving, reports) = started();
    assert_eq!(of(saving.left().unwrap()), (8, 40, 500));
    assert!(!saving.may_stop().unwrap());
    report(&reports, PrecopyReport::new(0, 30));
    saving.iterate(io::sink(), 8).unwrap();
    assert!(saving.may_stop().unwrap());
    assert_eq!(of(saving.left().unwrap()), (0, 30, 500));
    report(&reports, PrecopyReport::new(0, 600));
    assert_eq!(of(saving.left().unwrap()), (0, 600, 600), "never less than is known");
}

#[test]
fn initial_data_that_starts_over_is_sent_before_the_device_may_stop() {
    let (mut saving, reports) = started();
    report(&reports, PrecopyReport::new(0, 30));
    saving.iterate(io::sink(), 8).unwrap();
    assert!(saving.may_stop().unwrap());
    report(&reports, PrecopyReport::new(5, 30));
    assert!(saving.may_stop().unwrap(), "a count that rises without REINIT does not delay the stop");
    reports.lock().unwrap().push_front(PrecopyReport::new(5, 30).reinit(true));
    assert!(!saving.may_stop().unwrap(), "between the decision and the stop");
    assert_eq!(saving.left().unwrap().initial, 5);
    report(&reports, PrecopyReport::new(0, 30));
    saving.iterate(io::sink(), 5).unwrap();
    assert!(saving.may_stop().unwrap());
}

#[test]
fn a_vmm_with_a_return_path_waits_for_the_acknowledgement_of_a_round_with_all_initial_data() {
    let (saving, reports) = started();
    let mut saving = saving.needs_acknowledgement();
    saving.iterate(io::sink(), 3).unwrap();
    report(&reports, PrecopyReport::new(0, 30));
    saving.iterate(io::sink(), 20).unwrap();
    assert!(!saving.may_stop().unwrap());
    for early in [0, 1, 3, u32::MAX] {
        saving.acknowledge(early);
        assert!(!saving.may_stop().unwrap(), "round {early}");
    }
    saving.acknowledge(2);
    assert!(saving.may_stop().unwrap());

    reports.lock().unwrap().push_front(PrecopyReport::new(5, 30).reinit(true));
    assert!(!saving.may_stop().unwrap());
    saving.iterate(io::sink(), 20).unwrap();
    saving.acknowledge(2);
    assert!(!saving.may_stop().unwrap(), "that was before it started over");
    saving.acknowledge(3);
    assert!(saving.may_stop().unwrap());
    saving.stop().unwrap();
    saving.abort().unwrap();
}
