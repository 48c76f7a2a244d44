//! Devices whose calls are counted, and of which one hangs in the call that a test names, behind a timeout.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use whimbrel_models::Model;
use whimbrel_protocol::dirty::{DirtyReport, IovaRange};
use whimbrel_protocol::info::Info;
use whimbrel_protocol::precopy::PrecopyReport;
use whimbrel_uapi::feature::{Feature, FeatureFlags};
use whimbrel_user::{
    DataFile, DeviceSetup, Errno, Identity, Local, Migratable, MigrationFlags, Operation, Result, SavingRead,
    SessionState, State, StateFile, Timed,
};

/// Long enough for a driver that does not hang, on a busy machine.
pub(crate) const TIMEOUT: Duration = Duration::from_millis(1500);
/// For the way back, and for a busy machine.
pub(crate) const SLACK: Duration = Duration::from_secs(6);

/// A device with pre-copy and a setup.
const MODEL: &str = "accel?state=4KiB&config=required";

/// The calls into a driver, in their order, until it hangs in one.
#[derive(Clone, Default)]
pub(crate) struct Calls(Arc<(Mutex<Inner>, Condvar)>);

#[derive(Default)]
struct Inner {
    made: Vec<String>,
    /// The number of the call in which the driver hangs.
    hangs_in: Option<usize>,
}

impl Calls {
    fn pass(&self, call: impl ToString) {
        let (inner, opened) = &*self.0;
        let mut inner = inner.lock();
        let number = inner.made.len();
        inner.made.push(call.to_string());
        while inner.hangs_in == Some(number) {
            opened.wait(&mut inner);
        }
    }

    pub(crate) fn made(&self) -> Vec<String> {
        self.0.0.lock().made.clone()
    }

    /// Lets the driver hang in the call of this number.
    pub(crate) fn hang_in(&self, number: usize) -> Hung {
        self.0.0.lock().hangs_in = Some(number);
        Hung(self.clone())
    }
}

/// Ends the call at the end of a test, however that ends.
pub(crate) struct Hung(Calls);

impl Drop for Hung {
    fn drop(&mut self) {
        self.0.0.0.lock().hangs_in = None;
        self.0.0.1.notify_all();
    }
}

struct Hooked {
    device: Local,
    calls: Calls,
}

struct HookedFile {
    data: DataFile,
    calls: Calls,
}

impl Drop for HookedFile {
    fn drop(&mut self) {
        self.calls.pass("close of data_fd");
    }
}

fn errno(error: &whimbrel_user::Error) -> Errno {
    error.errno().unwrap_or(Errno::EIO)
}

impl StateFile for HookedFile {
    fn read(&mut self, buffer: &mut [u8]) -> std::result::Result<usize, Errno> {
        self.calls.pass(Operation::ReadData);
        match self.data.read(buffer) {
            Ok(SavingRead::Data(count)) => Ok(count),
            Ok(_) => Ok(0),
            Err(error) => Err(errno(&error)),
        }
    }

    fn write(&mut self, data: &[u8]) -> std::result::Result<usize, Errno> {
        self.calls.pass(Operation::WriteData);
        self.data.write_all(data).map(|()| data.len()).map_err(|error| errno(&error))
    }

    fn precopy_info(&mut self) -> std::result::Result<PrecopyReport, Errno> {
        self.calls.pass(Operation::PrecopyInfo);
        self.data.precopy_info().map_err(|error| errno(&error))
    }
}

impl Migratable for Hooked {
    fn name(&self) -> &str {
        self.device.name()
    }

    fn info(&mut self) -> Result<Info> {
        panic!("part of the identity")
    }

    fn identity(&mut self) -> Result<Identity> {
        self.calls.pass("GET of the device's identity");
        self.device.identity()
    }

    fn reset(&mut self) -> Result<()> {
        self.calls.pass("VFIO_DEVICE_RESET");
        self.device.reset()
    }

    fn probe_feature(&mut self, _: Feature, _: FeatureFlags) -> Result<bool> {
        panic!("part of a log")
    }

    fn migration_flags(&mut self) -> Result<Option<MigrationFlags>> {
        self.calls.pass(Feature::Migration);
        self.device.migration_flags()
    }

    fn state(&mut self) -> Result<State> {
        self.calls.pass(Feature::MigDeviceState);
        self.device.state()
    }

    fn set_state(&mut self, state: State) -> Result<Option<DataFile>> {
        self.calls.pass(Operation::SetState(state));
        Ok(self.device.set_state(state)?.map(|data| {
            let (direction, calls) = (data.direction(), self.calls.clone());
            let file = Box::new(HookedFile { data, calls });
            // Its reads end where those of the data file end.
            DataFile::new(self.device.name(), direction, SessionState::new(State::StopCopy), file)
        }))
    }

    fn data_size(&mut self) -> Result<u64> {
        self.calls.pass(Feature::MigDataSize);
        self.device.data_size()
    }

    fn enable_precopy_info_v2(&mut self) -> Result<bool> {
        self.calls.pass(Feature::MigPrecopyInfoV2);
        self.device.enable_precopy_info_v2()
    }

    fn dma_logging_start(&mut self, _: u64, _: &[IovaRange]) -> Result<u64> {
        panic!("part of a log")
    }

    fn dma_logging_stop(&mut self) -> Result<()> {
        panic!("part of a log")
    }

    fn dma_logging_report(&mut self, _: &mut DirtyReport<'_>) -> Result<()> {
        panic!("part of a log")
    }

    fn save_setup(&mut self) -> Result<Option<DeviceSetup>> {
        self.calls.pass("save of the device's setup");
        self.device.save_setup()
    }

    fn restore_setup(&mut self, setup: &DeviceSetup) -> Result<()> {
        self.calls.pass("restore of the device's setup");
        self.device.restore_setup(setup)
    }
}

/// Three devices with timeouts, and the calls into the second.
pub(crate) fn three(side: &str) -> (Vec<Box<dyn Migratable>>, Calls) {
    let model: Model = MODEL.parse().unwrap();
    let calls = Calls::default();
    let device = |index| -> Box<dyn Migratable> {
        let device = Local::new(model.open(format!("{side}{index}")).unwrap());
        let calls = if index == 1 { calls.clone() } else { Calls::default() };
        Box::new(Timed::new(Box::new(Hooked { device, calls }), TIMEOUT).unwrap())
    };
    ((0..3).map(device).collect(), calls)
}

/// Where the devices are that do not hang.
pub(crate) fn states_of_the_others(devices: &mut [Box<dyn Migratable>]) -> [State; 2] {
    [0, 2].map(|index| devices[index].state().unwrap())
}

/// Runs `trial` with a driver that hangs in each of these calls in turn: at the same time, because each waits for its
/// timeout.
pub(crate) fn in_each(calls: &[String], trial: impl Fn(usize, &str) + Sync) {
    std::thread::scope(|scope| {
        for (number, call) in calls.iter().enumerate() {
            let trial = &trial;
            scope.spawn(move || trial(number, call));
        }
    });
}

/// Whether an error names the second device, and the call that has not returned.
#[track_caller]
pub(crate) fn assert_names(error: &impl ToString, side: &str, call: &str) {
    let error = error.to_string();
    assert!(error.contains(&format!("{side}1: ")), "{call}: {error}");
    let waited = error.split(&format!("{call} has not returned for ")).nth(1);
    let waited = waited.and_then(|rest| rest.split_once(" ms")?.0.parse().ok());
    assert!(waited.is_some_and(|ms: u128| ms >= TIMEOUT.as_millis()), "{call}: {error}");
}
