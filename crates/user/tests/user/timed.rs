//! Devices whose driver hangs: each call ends within its timeout, and a result that is late is not used.

use std::collections::VecDeque;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use whimbrel_models::Model;
use whimbrel_protocol::dirty::{DirtyReport, IovaRange};
use whimbrel_uapi::device::DeviceInfoFlags;
use whimbrel_uapi::feature::{Feature, FeatureFlags};
use whimbrel_user::{
    DataFile, Device, DeviceSetup, Direction, Errno, Error, Identity, Info, Local, Migratable,
    MigrationFlags, PrecopyReport, Result, SavingRead, SessionState, State, StateFile, Timed, region,
};

/// Long enough for a driver that does not hang, on a busy machine.
const TIMEOUT: Duration = Duration::from_millis(1500);

/// A test's hold on the driver.
#[derive(Default)]
struct Gate {
    /// The call in which the driver hangs.
    hangs_in: Mutex<Option<&'static str>>,
    opened: Condvar,
    calls: Mutex<Vec<&'static str>>,
}

impl Gate {
    fn hang_in(&self, call: &'static str) {
        *self.hangs_in.lock().unwrap() = Some(call);
    }

    /// Lets the driver return from the call that it is in, and hang in another.
    fn move_to(&self, call: &'static str) {
        self.hang_in(call);
        self.opened.notify_all();
    }

    fn wait_for(&self, call: &'static str) {
        while !self.calls().contains(&call) {
            std::thread::yield_now();
        }
    }

    fn open(&self) {
        *self.hangs_in.lock().unwrap() = None;
        self.opened.notify_all();
    }

    fn pass(&self, call: &'static str) {
        self.calls.lock().unwrap().push(call);
        let hangs = self.hangs_in.lock().unwrap();
        drop(self.opened.wait_while(hangs, |hangs_in| *hangs_in == Some(call)).unwrap());
    }

    fn calls(&self) -> Vec<&'static str> {
        self.calls.lock().unwrap().clone()
    }
}

/// A device that does what a test says.
struct Scripted {
    gate: Arc<Gate>,
    state: State,
    session: SessionState,
    /// Tells that the device was closed, and by which thread.
    closed: Sender<Option<String>>,
}

struct Script {
    gate: Arc<Gate>,
    data: VecDeque<u8>,
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.gate.pass("close of the device");
        let _ = self.closed.send(std::thread::current().name().map(String::from));
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        self.gate.pass("close");
    }
}

impl StateFile for Script {
    fn read(&mut self, buffer: &mut [u8]) -> std::result::Result<usize, Errno> {
        self.gate.pass("read");
        let count = buffer.len().min(self.data.len());
        buffer.iter_mut().zip(self.data.drain(..count)).for_each(|(to, byte)| *to = byte);
        Ok(count)
    }

    fn write(&mut self, data: &[u8]) -> std::result::Result<usize, Errno> {
        self.gate.pass("write");
        if data == b"bad" { Err(Errno::EINVAL) } else { Ok(data.len()) }
    }

    fn precopy_info(&mut self) -> std::result::Result<PrecopyReport, Errno> {
        self.gate.pass("precopy_info");
        Ok(PrecopyReport::new(1, 2))
    }

    fn take_failure(&mut self) -> Option<Error> {
        Some(Error::answer("nic", "write", "the driver's own words"))
    }
}

impl Migratable for Scripted {
    #[expect(clippy::unnecessary_literal_bound, reason = "the trait's devices have names of their own")]
    fn name(&self) -> &str {
        "nic"
    }

    fn info(&mut self) -> Result<Info> {
        self.gate.pass("info");
        Ok(Info::new(DeviceInfoFlags::empty()))
    }

    fn identity(&mut self) -> Result<Identity> {
        self.gate.pass("identity");
        Ok(Identity::new("nic", &Info::new(DeviceInfoFlags::empty()), None, None))
    }

    fn reset(&mut self) -> Result<()> {
        self.gate.pass("reset");
        self.state = State::Running;
        Ok(())
    }

    fn probe_feature(&mut self, _: Feature, _: FeatureFlags) -> Result<bool> {
        self.gate.pass("probe_feature");
        Ok(true)
    }

    fn migration_flags(&mut self) -> Result<Option<MigrationFlags>> {
        self.gate.pass("migration_flags");
        Ok(Some(MigrationFlags::STOP_COPY))
    }

    fn state(&mut self) -> Result<State> {
        self.gate.pass("state");
        Ok(self.state)
    }

    fn set_state(&mut self, state: State) -> Result<Option<DataFile>> {
        self.gate.pass("set_state");
        assert_ne!(state, State::Error, "a driver that is asked for nonsense");
        self.state = state;
        self.session.set(state);
        let direction = match state {
            State::StopCopy | State::PreCopy => Direction::Saving,
            State::Resuming => Direction::Resuming,
            _ => return Ok(None),
        };
        let file = Script { gate: self.gate.clone(), data: (0..5).collect() };
        Ok(Some(DataFile::new("nic", direction, self.session.clone(), Box::new(file))))
    }

    fn data_size(&mut self) -> Result<u64> {
        self.gate.pass("data_size");
        Ok(5)
    }

    fn enable_precopy_info_v2(&mut self) -> Result<bool> {
        self.gate.pass("enable_precopy_info_v2");
        Ok(true)
    }

    fn dma_logging_start(&mut self, page_size: u64, _: &[IovaRange]) -> Result<u64> {
        self.gate.pass("dma_logging_start");
        Ok(page_size)
    }

    fn dma_logging_stop(&mut self) -> Result<()> {
        self.gate.pass("dma_logging_stop");
        Ok(())
    }

    fn dma_logging_report(&mut self, report: &mut DirtyReport<'_>) -> Result<()> {
        self.gate.pass("dma_logging_report");
        report.set(0x1000, 1);
        Ok(())
    }

    fn save_setup(&mut self) -> Result<Option<DeviceSetup>> {
        self.gate.pass("save_setup");
        Ok(None)
    }

    fn restore_setup(&mut self, _: &DeviceSetup) -> Result<()> {
        self.gate.pass("restore_setup");
        Ok(())
    }
}

type Closed = mpsc::Receiver<Option<String>>;

fn scripted() -> (Box<Scripted>, Arc<Gate>, Closed) {
    let gate = Arc::new(Gate::default());
    let (closed, told) = mpsc::channel();
    let device =
        Scripted { gate: gate.clone(), state: State::Running, session: SessionState::default(), closed };
    (Box::new(device), gate, told)
}

fn timed() -> (Timed<Box<Scripted>>, Arc<Gate>, Closed) {
    let (device, gate, closed) = scripted();
    (Timed::new(device, TIMEOUT).unwrap(), gate, closed)
}

/// Waits until the call that was late has returned, and returns the state, which is asked for then.
fn state_after_the_return(device: &mut Timed<Box<Scripted>>) -> State {
    loop {
        match device.state() {
            Err(Error::Lost { .. }) => std::thread::yield_now(),
            other => return other.unwrap(),
        }
    }
}

fn setup() -> DeviceSetup {
    let model: Model = "accel?state=4KiB".parse().unwrap();
    Local::new(model.open("other").unwrap()).save_setup().unwrap().unwrap()
}

fn report(device: &mut dyn Migratable, words: &mut [u64]) -> Result<()> {
    device.dma_logging_report(&mut DirtyReport::new(0, 0x8000, 0x1000, words).unwrap())
}

type Call = fn(&mut Timed<Box<Scripted>>) -> Result<()>;

/// Every call into a device: its name in the script, the request in the error, and the call.
const CALLS: [(&str, &str, Call); 14] = [
    ("info", "VFIO_DEVICE_GET_INFO", |device| device.info().map(drop)),
    ("identity", "GET of the device's identity", |device| device.identity().map(drop)),
    ("reset", "VFIO_DEVICE_RESET", |device| device.reset()),
    ("probe_feature", "PROBE of VFIO_DEVICE_FEATURE_MIGRATION", |device| {
        device.probe_feature(Feature::Migration, FeatureFlags::GET).map(drop)
    }),
    ("migration_flags", "VFIO_DEVICE_FEATURE_MIGRATION", |device| device.migration_flags().map(drop)),
    ("state", "VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE", |device| device.state().map(drop)),
    ("set_state", "VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE to STOP", |device| {
        device.set_state(State::Stop).map(drop)
    }),
    ("data_size", "VFIO_DEVICE_FEATURE_MIG_DATA_SIZE", |device| device.data_size().map(drop)),
    ("enable_precopy_info_v2", "VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2", |device| {
        device.enable_precopy_info_v2().map(drop)
    }),
    ("dma_logging_start", "VFIO_DEVICE_FEATURE_DMA_LOGGING_START", |device| {
        device.dma_logging_start(0x1000, &[]).map(drop)
    }),
    ("dma_logging_stop", "VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP", |device| device.dma_logging_stop()),
    ("dma_logging_report", "VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT", |device| report(device, &mut [0])),
    ("save_setup", "save of the device's setup", |device| device.save_setup().map(drop)),
    ("restore_setup", "restore of the device's setup", |device| device.restore_setup(&setup())),
];

/// Runs a test for each case at the same time, because each waits for its timeout.
fn for_each<T: Sync>(cases: &[T], test: impl Fn(&T) + Sync) {
    std::thread::scope(|scope| {
        for case in cases {
            scope.spawn(|| test(case));
        }
    });
}

#[test]
fn a_call_that_hangs_fails_after_its_timeout_and_every_other_one_at_once_until_it_returns() {
    for_each(&CALLS, |(name, request, call)| {
        let (mut device, gate, _closed) = timed();
        call(&mut device).unwrap();
        gate.hang_in(name);
        let error = call(&mut device).unwrap_err();
        assert_eq!(error.to_string(), format!("nic: {request} has not returned for 1500 ms"));
        assert!(matches!(error, Error::Overdue { .. }), "{error:?}");
        let calls = gate.calls();
        for (_, other, call) in CALLS {
            let error = call(&mut device).unwrap_err();
            let Error::Lost { waited, .. } = error else { panic!("{name}: {error:?}") };
            assert!(waited >= TIMEOUT);
            let waited = waited.as_millis();
            let text = format!("nic: {other} was not made: {request} has not returned for {waited} ms");
            assert_eq!(error.to_string(), text);
        }
        assert_eq!(gate.calls(), calls, "nothing is asked of a lost device, also not later");
        gate.open();
        state_after_the_return(&mut device);
        if *name != "dma_logging_report" {
            call(&mut device).unwrap();
        }
    });
}

/// A call into a session.
type Act = fn(&mut DataFile) -> Result<()>;

#[test]
fn a_call_into_a_session_that_hangs_ends_the_session_for_good() {
    let read = |data: &mut DataFile| data.read(&mut [0; 8]).map(drop);
    let write = |data: &mut DataFile| data.write_all(&[1; 8]);
    let piece = |data: &mut DataFile| data.write_piece(&[1; 8], true);
    let precopy = |data: &mut DataFile| data.precopy_info().map(drop);
    let cases: [(&str, State, &str, Act); 4] = [
        ("read", State::StopCopy, "read of data_fd", read),
        ("write", State::Resuming, "write to data_fd", write),
        ("write", State::Resuming, "write to data_fd", piece),
        ("precopy_info", State::PreCopy, "VFIO_MIG_GET_PRECOPY_INFO", precopy),
    ];
    for_each(&cases, |(name, state, request, act)| {
        let (mut device, gate, _closed) = timed();
        let mut data = device.set_state(*state).unwrap().unwrap();
        act(&mut data).unwrap();
        gate.hang_in(name);
        let error = act(&mut data).unwrap_err();
        assert_eq!(error.to_string(), format!("nic: {request} has not returned for 1500 ms"));
        assert!(matches!(act(&mut data), Err(Error::Lost { .. })));
        assert!(matches!(device.state(), Err(Error::Lost { .. })));
        gate.open();
        assert_eq!(state_after_the_return(&mut device), *state);
        let error = act(&mut data).unwrap_err();
        let text = format!(
            "nic: {request} was not made: {request} had not returned within 1500 ms, and data may have been lost"
        );
        assert_eq!(error.to_string(), text);
        assert!(gate.calls().contains(&"close"), "{name}: what it had given is gone");
        act(&mut device.set_state(*state).unwrap().unwrap()).unwrap();
    });
}

#[test]
fn a_session_that_opens_late_is_closed_and_the_state_is_asked_for_again() {
    let (mut device, gate, _closed) = timed();
    gate.hang_in("set_state");
    assert!(matches!(device.set_state(State::StopCopy), Err(Error::Overdue { .. })));
    gate.open();
    assert_eq!(state_after_the_return(&mut device), State::StopCopy);
    assert_eq!(gate.calls(), ["set_state", "close", "state"]);
    device.set_state(State::Running).unwrap();
}

#[test]
fn a_dirty_log_whose_report_is_late_has_lost_pages_until_it_starts_over() {
    let (mut device, gate, _closed) = timed();
    device.dma_logging_start(0x1000, &[]).unwrap();
    let mut words = [0b100];
    report(&mut device, &mut words).unwrap();
    assert_eq!(words, [0b110], "bits are added to those that are set");

    gate.hang_in("dma_logging_report");
    assert!(matches!(report(&mut device, &mut words), Err(Error::Overdue { .. })));
    gate.open();
    state_after_the_return(&mut device);
    let error = report(&mut device, &mut words).unwrap_err();
    assert!(matches!(error, Error::Torn { .. }), "{error:?}");
    device.dma_logging_stop().unwrap();
    assert!(report(&mut device, &mut words).is_err());
    device.dma_logging_start(0x1000, &[]).unwrap();
    report(&mut device, &mut words).unwrap();

    gate.hang_in("dma_logging_start");
    assert!(device.dma_logging_start(0x1000, &[]).is_err());
    gate.open();
    state_after_the_return(&mut device);
    let calls = gate.calls();
    assert_eq!(calls[calls.len() - 3..], ["dma_logging_start", "dma_logging_stop", "state"]);
}

#[test]
fn a_device_that_is_dropped_during_a_call_is_closed_by_its_thread_once_the_call_returns() {
    for keeps_session in [false, true] {
        let (mut device, gate, closed) = timed();
        let data = device.set_state(State::StopCopy).unwrap();
        gate.hang_in("state");
        assert!(matches!(device.state(), Err(Error::Overdue { .. })));
        let data = data.filter(|_| keeps_session);
        drop(device);
        assert!(closed.try_recv().is_err(), "the driver is still in the call");
        gate.open();
        assert_eq!(closed.recv().unwrap().as_deref(), Some("nic"), "the name of its thread");
        assert!(gate.calls().contains(&"close"));
        drop(data);
    }
}

#[test]
fn a_device_and_its_sessions_are_closed_before_their_drops_return() {
    let (mut device, gate, closed) = timed();
    drop(device.set_state(State::StopCopy).unwrap());
    assert_eq!(gate.calls(), ["set_state", "close"]);
    drop(device);
    closed.try_recv().unwrap();
}

#[test]
fn a_session_that_does_not_close_is_left_to_the_thread_and_named() {
    let (mut device, gate, closed) = timed();
    let data = device.set_state(State::StopCopy).unwrap();
    gate.hang_in("close");
    drop(data);
    let error = device.state().unwrap_err().to_string();
    assert!(error.contains(": close of data_fd has not returned for "), "{error}");
    drop(device);
    assert!(closed.try_recv().is_err());
    gate.open();
    closed.recv().unwrap();
}

#[test]
fn an_idle_device_comes_back_and_one_in_a_call_only_later() {
    let (mut device, gate, closed) = timed();
    let mut data = device.set_state(State::StopCopy).unwrap().unwrap();
    gate.hang_in("state");
    assert!(device.state().is_err());
    let Err(refused) = device.into_inner() else { panic!("it came back during a call") };
    assert!(matches!(*refused.error, Error::Lost { .. }), "{refused}");
    gate.open();
    let mut device = refused.device;
    state_after_the_return(&mut device);
    assert!(data.read(&mut [0; 8]).is_err());
    let mut again = device.set_state(State::StopCopy).unwrap().unwrap();

    let mut scripted: Box<Scripted> = device.into_inner().unwrap();
    assert_eq!(scripted.state().unwrap(), State::StopCopy);
    let error = again.read(&mut [0; 8]).unwrap_err();
    assert_eq!(error.errno(), None);
    assert_eq!(gate.calls().iter().filter(|call| **call == "close").count(), 2);
    assert!(closed.try_recv().is_err(), "it was given back, not closed");
}

#[test]
fn the_return_of_a_device_that_takes_too_long_leaves_it_where_it_is() {
    let (mut device, gate, closed) = timed();
    let data = device.set_state(State::StopCopy).unwrap();
    gate.hang_in("close");
    let Err(refused) = device.into_inner() else { panic!("it came back during a call") };
    assert!(matches!(*refused.error, Error::Overdue { .. }), "{refused}");
    gate.open();
    let mut device = refused.device;
    assert_eq!(state_after_the_return(&mut device), State::StopCopy);
    device.into_inner().unwrap();
    drop(data);
    closed.recv().unwrap();
}

#[test]
fn a_request_that_waits_for_one_on_another_thread_is_not_made_if_that_hangs() {
    let (mut device, gate, _closed) = timed();
    let mut data = device.set_state(State::StopCopy).unwrap().unwrap();
    gate.hang_in("read");
    let reading = std::thread::spawn(move || data.read(&mut [0; 8]).unwrap_err().to_string());
    gate.wait_for("read");
    let error = device.set_state(State::Running).unwrap_err();
    assert!(matches!(error, Error::Lost { .. }), "{error}");
    let error = reading.join().unwrap();
    assert!(error.contains("read of data_fd has not returned"), "{error}");
    gate.open();
    assert_eq!(state_after_the_return(&mut device), State::StopCopy);
    assert_eq!(gate.calls().iter().filter(|call| **call == "set_state").count(), 1);
}

#[test]
fn a_request_that_waited_for_one_on_another_thread_has_its_whole_timeout() {
    const TIMEOUT: Duration = Duration::from_secs(5);
    /// Two of them are more than the timeout.
    const SLOW: Duration = Duration::from_secs(3);
    let (device, gate, _closed) = scripted();
    let mut device = Timed::new(device, TIMEOUT).unwrap();
    let mut data = device.set_state(State::PreCopy).unwrap().unwrap();
    gate.hang_in("read");
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| data.read(&mut [0; 8]).unwrap());
        gate.wait_for("read");
        let asking = scope.spawn(|| device.state());
        std::thread::sleep(SLOW);
        gate.move_to("state");
        reading.join().unwrap();
        gate.wait_for("state");
        std::thread::sleep(SLOW);
        gate.open();
        assert_eq!(asking.join().unwrap().unwrap(), State::PreCopy);
    });
    data.read(&mut [0; 8]).unwrap();
}

#[test]
fn a_close_that_was_left_to_the_thread_and_hangs_is_named_instead_of_the_next_request() {
    let (mut device, gate, closed) = timed();
    let mut data = device.set_state(State::StopCopy).unwrap().unwrap();
    gate.hang_in("state");
    device.state().unwrap_err();
    drop(device);
    gate.move_to("close of the device");
    gate.wait_for("close of the device");
    for _ in 0..2 {
        let error = data.read(&mut [0; 8]).unwrap_err();
        let Error::Lost { waited, .. } = error else { panic!("{error:?}") };
        let text = "nic: read of data_fd was not made: close of the device has not returned for ";
        assert_eq!(error.to_string(), format!("{text}{} ms", waited.as_millis()));
    }
    gate.open();
    closed.recv().unwrap();
}

#[test]
fn a_driver_that_panics_costs_its_device_and_not_the_caller() {
    let (mut device, _gate, closed) = timed();
    let error = device.set_state(State::Error).unwrap_err().to_string();
    assert!(
        error.starts_with("nic: VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE to ERROR: the driver panicked"),
        "{error}"
    );
    closed.recv().unwrap();
    assert_eq!(device.state().unwrap_err().to_string(), error, "the request in which it panicked");
}

#[test]
fn errors_of_the_driver_arrive_unchanged() {
    let (mut device, _gate, _closed) = timed();
    let mut data = device.set_state(State::Resuming).unwrap().unwrap();
    let error = data.write_all(b"bad").unwrap_err();
    assert_eq!(error.to_string(), "nic: write: invalid reply from the device: the driver's own words");
    let error = Timed::new(Box::new(local("serial")), TIMEOUT)
        .unwrap()
        .data_size()
        .map_err(|error| error.to_string());
    assert_eq!(error, local("serial").data_size().map_err(|error| error.to_string()));
}

fn local(model: &str) -> Local {
    Local::new(model.parse::<Model>().unwrap().open("device").unwrap())
}

fn adapted(model: &str) -> Box<dyn Device> {
    region::adapt(Box::new(local(model))).unwrap()
}

/// The pieces of a device's state, and whether each ended a transaction.
fn saved(device: &mut dyn Migratable, room: usize) -> (Vec<u8>, Vec<(usize, bool)>) {
    let mut data = device.set_state(State::StopCopy).unwrap().unwrap();
    let (mut state, mut pieces, mut buffer) = (Vec::new(), Vec::new(), vec![0; room]);
    while let SavingRead::Data(count) = data.read(&mut buffer).unwrap() {
        state.extend_from_slice(&buffer[..count]);
        pieces.push((count, data.ends_transaction()));
    }
    device.set_state(State::Running).unwrap();
    (state, pieces)
}

#[test]
fn data_passes_in_any_pieces_and_transactions_keep_their_ends() {
    for model in ["accel?state=3MiB", "accel?state=3MiB&protocol=v1", "legacy?state=3MiB&section=4MiB"] {
        let mut plain = adapted(model);
        // Nothing hangs here, however slow the machine is.
        let mut timed = Timed::new(adapted(model), Duration::from_mins(1)).unwrap();
        assert_eq!(timed.region_version(), plain.region_version());
        assert_eq!(timed.identity().unwrap(), plain.identity().unwrap());
        for room in [1000, 1 << 20] {
            assert!(saved(&mut timed, room) == saved(&mut *plain, room), "{model} {room}");
        }
        // Whole transactions, of which some are more than one call takes.
        let (state, pieces) = saved(&mut timed, 1 << 20);
        let mut data = timed.set_state(State::Resuming).unwrap().unwrap();
        let (mut begin, mut end) = (0, 0);
        for (count, ends) in pieces {
            end += count;
            if ends || end == state.len() {
                data.write_piece(&state[begin..end], true).unwrap();
                begin = end;
            }
        }
        drop(data);
        timed.set_state(State::Running).unwrap();
        assert!(saved(&mut timed, 1 << 20).0 == state, "{model}");
        assert_eq!(timed.into_inner().unwrap().state().unwrap(), State::Running);
    }
}
