//! What is asked of devices before a migration: a driver that does not answer, and a system without threads for the
//! questions.

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use whimbrel_models::Model;
use whimbrel_user::{Identity, Local, Migratable, Result, State, Timed};

use crate::forward::forward;
use crate::support::control::Gate;
use crate::support::engine::{
    Destination, DestinationOptions, Error, Outcome, Source, SourceOptions, Stream,
};
use crate::support::migrate_between;

const CALL_TIMEOUT: Duration = Duration::from_millis(1500);
/// For a busy machine.
const SLACK: Duration = Duration::from_secs(6);

/// A device that describes itself once its gate is open.
struct Slow {
    device: Local,
    gate: Option<Gate>,
}

impl Migratable for Slow {
    forward!(device: name, info, reset, probe_feature, migration_flags, state, set_state, data_size);
    forward!(device: enable_precopy_info_v2, dma_logging_start, dma_logging_stop, dma_logging_report);

    fn identity(&mut self) -> Result<Identity> {
        if let Some(gate) = &self.gate {
            gate.wait();
        }
        self.device.identity()
    }
}

/// Three devices, of which the second waits for the gate.
fn three(side: &str, gate: Option<&Gate>) -> Vec<Box<dyn Migratable>> {
    let model: Model = "serial".parse().unwrap();
    let device = |index| {
        let device = Local::new(model.open(format!("{side}{index}")).unwrap());
        let gate = gate.filter(|_| index == 1).cloned();
        Box::new(Slow { device, gate }) as Box<dyn Migratable>
    };
    (0..3).map(device).collect()
}

fn states(devices: Vec<Option<Box<dyn Migratable>>>) -> Vec<Option<State>> {
    devices.into_iter().map(|device| device.map(|mut device| device.state().unwrap())).collect()
}

const RUNNING: Option<State> = Some(State::Running);

#[test]
fn a_driver_that_does_not_describe_its_device_is_named_and_the_others_come_back() {
    for at_source in [true, false] {
        let gate = Gate::default();
        let (here, there) = if at_source { (Some(&gate), None) } else { (None, Some(&gate)) };
        let (left, right) = UnixStream::pair().unwrap();
        let destination = Destination::new(three("there", there))
            .options(DestinationOptions::default().call_timeout(CALL_TIMEOUT));
        let source =
            Source::new(three("here", here)).options(SourceOptions::default().call_timeout(CALL_TIMEOUT));
        let started = Instant::now();
        let (sent, arrived) = migrate_between(source, destination, Stream::from(left), Stream::from(right));
        assert!(started.elapsed() < CALL_TIMEOUT + SLACK, "{:?}", started.elapsed());

        let (sent_error, received) = (sent.result.unwrap_err(), arrived.result.unwrap_err());
        let (cause, name) = if at_source { (&sent_error.cause, "here1") } else { (&received, "there1") };
        assert!(matches!(cause, Error::Overdue { device, .. } if device == name), "{cause}");
        let text = format!("{name}: GET of the device's identity has not returned for 1500 ms");
        assert_eq!(cause.to_string(), text);
        assert!(matches!(sent_error.outcome, Outcome::Untouched), "{sent_error}");
        if !at_source {
            assert!(sent_error.to_string().contains(&text), "the source is told: {sent_error}");
        }
        let second = |is_hung: bool| if is_hung { None } else { RUNNING };
        assert_eq!(states(sent.devices), [RUNNING, second(at_source), RUNNING]);
        assert_eq!(states(arrived.devices), [RUNNING, second(!at_source), RUNNING]);
        gate.open();
    }
}

/// Runs a function whose thread can start no other.
fn without_threads<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let refused = SeccompAction::Errno(libc::EAGAIN.cast_unsigned());
    let rules = [libc::SYS_clone, libc::SYS_clone3].map(|call| (call, Vec::new())).into();
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refused, arch).unwrap();
    let filter = BpfProgram::try_from(filter).unwrap();
    let thread = std::thread::spawn(move || {
        seccompiler::apply_filter(&filter).unwrap();
        work()
    });
    thread.join().unwrap()
}

#[test]
fn the_devices_come_back_from_a_system_that_has_no_more_threads() {
    let (left, _right) = UnixStream::pair().unwrap();
    let source = Source::new(three("here", None));
    let sent = without_threads(move || source.send(Stream::from(left)));
    let error = sent.result.unwrap_err();
    assert!(
        matches!(&error.cause, Error::Thread(error) if error.raw_os_error() == Some(libc::EAGAIN)),
        "{error}"
    );
    assert!(matches!(error.outcome, Outcome::Untouched), "{error}");
    assert_eq!(states(sent.devices), [RUNNING; 3]);

    let (left, right) = UnixStream::pair().unwrap();
    let destination = Destination::new(three("there", None));
    let arrived =
        std::thread::spawn(move || without_threads(move || destination.receive(Stream::from(right))));
    let sent = Source::new(three("here", None)).send(Stream::from(left));
    let arrived = arrived.join().unwrap();
    let (received, error) = (arrived.result.unwrap_err(), sent.result.unwrap_err());
    assert!(matches!(received, Error::Thread(_)), "{received}");
    assert!(error.to_string().contains(&received.to_string()), "the source is told: {error}");
    assert!(matches!(error.outcome, Outcome::Untouched), "{error}");
    assert_eq!(states(arrived.devices), [RUNNING; 3]);
    assert_eq!(states(sent.devices), [RUNNING; 3]);
}

#[test]
fn a_device_comes_back_from_a_system_that_has_no_thread_for_its_timeout() {
    let model: Model = "serial".parse().unwrap();
    let device = Box::new(Local::new(model.open("nic").unwrap()));
    let mut refused = without_threads(move || Timed::new(device, CALL_TIMEOUT)).unwrap_err();
    let text = refused.to_string();
    assert!(text.starts_with("nic: no thread can be started for its calls: EAGAIN"), "{text}");
    assert_eq!(refused.device.state().unwrap(), State::Running);
}
