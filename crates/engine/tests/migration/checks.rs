//! Checks of a source: at a destination that waits, and at peers that answer something else, or nothing.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, memfd_create};
use whimbrel_engine::NoCpuLog;
use whimbrel_engine::channel::{Listener, Received as Frame, Receiver, Sender, Stream, Until, connect};
use whimbrel_engine::check::{CheckReport, Code, Severity};
use whimbrel_engine::proto::control::{Checked, Control, Fits, Reason};
use whimbrel_engine::proto::message::Message;
use whimbrel_engine::proto::negotiate::{Accept, VERSION};
use whimbrel_engine::set::MappedRam;
use whimbrel_models::Model;
use whimbrel_user::{Errno, FileOffset, Local, Memory, Migratable, MigrationFlags, Operation, State};

use crate::forward::forward;
use crate::support::engine::{Destination, DestinationOptions, Error, Source, SourceOptions};

fn device(model: &str) -> Box<dyn Migratable> {
    Box::new(Local::new(model.parse::<Model>().unwrap().open(model).unwrap()))
}

fn codes(report: &CheckReport) -> Vec<Code> {
    report.findings.iter().map(|finding| finding.code).collect()
}

fn soon() -> Until<'static> {
    Until::timeout(Duration::from_secs(30))
}

#[test]
fn ten_checks_change_nothing_and_the_migration_follows() {
    let mut listener = Listener::bind(&"127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.address().clone();
    let models = ["accel?state=64KiB", "serial"];
    let there = models.iter().map(|model| device(model)).collect();
    let destination = Destination::new(there).identify().unwrap();
    let receiver = std::thread::spawn(move || {
        let accepted = destination.accept(&mut listener, soon()).unwrap();
        destination.receive_accepted(accepted)
    });
    let options = SourceOptions::default().downtime_limit(Duration::from_secs(20));
    let mut source = Source::new(models.iter().map(|model| device(model)).collect()).options(options);
    for _ in 0..10 {
        let checked = source.check_with(connect(&address, soon()).unwrap());
        assert!(checked.report.can_migrate, "{:?}", checked.report);
        assert!(checked.report.link.unwrap().throughput_bytes_per_s.unwrap() > 0.0);
        let states: Vec<_> = checked.report.devices.iter().map(|device| device.state.clone()).collect();
        assert_eq!(states, [Some("RUNNING".to_string()), Some("RUNNING".to_string())]);
        source = checked.source.unwrap_or_else(|_| panic!("a driver hangs"));
    }
    let swapped = models.iter().rev().map(|model| device(model)).collect();
    let report = Source::new(swapped).check_with(connect(&address, soon()).unwrap()).report;
    assert!(!report.can_migrate);
    let models = report.findings.iter().filter(|finding| finding.code == Code::DeviceModel);
    let named: Vec<_> = models.map(|finding| finding.device.as_deref()).collect();
    assert_eq!(named, [Some("serial"), Some("accel?state=64KiB")]);

    source.send(connect(&address, soon()).unwrap()).result.unwrap();
    assert!(receiver.join().unwrap().result.unwrap().confirmed);
}

#[test]
fn a_local_check_finds_what_the_device_lacks_and_leaves_it_as_it_is() {
    let mut stopped = device("accel?features=stop-copy");
    stopped.go_to(State::Stop).unwrap();
    let checked = Source::new(vec![stopped, device("serial")]).check();
    assert_eq!(codes(&checked.report), [Code::NotRunning, Code::NoPreCopy, Code::NoP2p]);
    assert_eq!(checked.report.findings[0].severity, Severity::Blocks);
    assert!(checked.report.link.is_none() && !checked.report.can_migrate);
    assert!(checked.source.is_ok());
}

/// Checks at a destination that `answers` by hand. Returns the report and the time that it took.
fn check_at(answers: impl FnOnce(&mut Sender, &mut Receiver) + Send) -> (CheckReport, Duration) {
    let (near, far) = UnixStream::pair().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let channel = Arc::new(Stream::from(far));
            answers(&mut Sender::new(channel.clone()), &mut Receiver::new(channel));
        });
        let options = SourceOptions::default().timeout(Duration::from_secs(2));
        let began = Instant::now();
        let report =
            Source::new(vec![device("serial")]).options(options).check_with(Stream::from(near)).report;
        (report, began.elapsed())
    })
}

fn say(sender: &mut Sender, message: impl Into<Message<'static>>) {
    // The source may have closed the connection.
    let _ = sender.send_now(&message.into(), soon());
}

/// Reads the next message, unless the source has left.
fn hear(receiver: &mut Receiver) -> bool {
    receiver.next(soon()).is_ok()
}

fn accept() -> Control {
    accept_of(VERSION, &["check"])
}

fn accept_of(version: u32, features: &[&str]) -> Control {
    let features = features.iter().map(ToString::to_string).collect();
    Control::Accept(Accept { version, features, ..Accept::new(&BTreeSet::new()) })
}

fn failed(reason: &str) -> Control {
    Control::Failed(Reason { reason: reason.into() })
}

#[test]
fn each_refusal_and_each_wrong_answer_has_its_code() {
    let first = |control: Control, code: Code| {
        let (report, _) = check_at(|sender, receiver| {
            hear(receiver);
            say(sender, control.clone());
            hear(receiver);
        });
        assert_eq!(codes(&report)[0], code, "{control:?}: {report:?}");
        assert!(!report.can_migrate && report.link.is_none());
    };
    // As a release without checks says it.
    let lacks = "the source needs the feature 'check', which the destination does not have";
    first(failed(lacks), Code::CheckUnsupported);
    first(failed("busy: a migration from another sender is in progress"), Code::DestinationBusy);
    first(failed("the disk is full"), Code::DestinationRefused);
    first(Control::Handover, Code::InvalidAnswer);
    first(accept_of(VERSION, &[]), Code::InvalidAnswer);
    first(accept_of(9, &[]), Code::InvalidAnswer);

    let (report, _) = check_at(|sender, receiver| {
        hear(receiver);
        say(sender, accept());
        hear(receiver);
        say(sender, Control::Fits(Fits::default()));
        hear(receiver);
    });
    assert_eq!(codes(&report), [Code::InvalidAnswer]);
    let (report, _) = check_at(|_, _| {});
    assert_eq!(codes(&report), [Code::ConnectionLost]);
}

#[test]
fn a_destination_that_is_silent_or_never_ends_delays_the_check_no_longer_than_its_time() {
    let silent = |_: &mut Sender, receiver: &mut Receiver| while hear(receiver) {};
    let skippable = |sender: &mut Sender, _: &mut Receiver| {
        // Answers to questions that nobody has asked, without an end.
        while sender.send_now(&Control::Pong { id: 7 }.into(), soon()).is_ok() {}
    };
    let (report, took) = check_at(silent);
    assert_eq!(codes(&report), [Code::DestinationSilent]);
    assert!(took < Duration::from_secs(30), "{took:?}");
    let (report, _) = check_at(skippable);
    assert_eq!(codes(&report), [Code::InvalidAnswer]);
}

#[test]
fn a_destination_that_stops_in_the_midst_of_the_measurement_is_told_beside_what_it_has_answered() {
    let (report, _) = check_at(|sender, receiver| {
        hear(receiver);
        say(sender, accept());
        hear(receiver);
        say(sender, Control::Checked(Checked::default()));
        for _ in 0..5 {
            let Ok(Frame::Message(Message::Control(Control::Ping { id }))) = receiver.next(soon()) else {
                break;
            };
            say(sender, Control::Pong { id });
        }
        say(sender, failed("busy: a migration from another sender is in progress"));
        while hear(receiver) {}
    });
    assert_eq!(codes(&report), [Code::DestinationBusy]);
    assert!(report.link.unwrap().longest_round_trip_ms > 0.0);
}

#[test]
fn memory_is_compared_and_counts_in_the_downtime() {
    let memory = |size: u64| {
        let file = File::from(memfd_create("memory", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(size).unwrap();
        let memory = Memory::of_file(FileOffset::new(file, 0), size, true).unwrap();
        Arc::new(MappedRam::new([(0, memory)]).unwrap())
    };
    let mut listener = Listener::bind(&"127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.address().clone();
    let destination = Destination::new(vec![device("serial")]).memory(memory(0x8000)).identify().unwrap();
    let waiting = std::thread::spawn(move || {
        let accepted = destination.accept(&mut listener, soon()).unwrap();
        drop(accepted);
    });
    let check = |size| {
        let source = Source::new(vec![device("serial")]).memory(memory(size), NoCpuLog);
        source.check_with(connect(&address, soon()).unwrap()).report
    };
    let report = check(0x4000);
    assert_eq!(codes(&report)[0], Code::MemoryLayout);
    let report = check(0x8000);
    assert!(!codes(&report).contains(&Code::MemoryLayout), "{report:?}");
    assert_eq!(report.memory_bytes, 0x8000);
    assert!(report.downtime.most_bytes.unwrap() >= 0x8000);
    // Ends the wait.
    let source = Source::new(vec![device("serial")]).memory(memory(0x8000), NoCpuLog);
    source.send(connect(&address, soon()).unwrap()).result.unwrap_err();
    waiting.join().unwrap();
}

/// The defect of a driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Defect {
    /// It refuses the query of the state.
    Refuses,
    /// It does not return from any query.
    Hangs,
}

/// A device with such a driver.
struct Broken {
    device: Box<dyn Migratable>,
    defect: Defect,
}

impl Migratable for Broken {
    forward!(device: name, info, reset, probe_feature, set_state, data_size, enable_precopy_info_v2);
    forward!(device: dma_logging_start, dma_logging_stop, dma_logging_report);

    fn migration_flags(&mut self) -> whimbrel_user::Result<Option<MigrationFlags>> {
        if self.defect == Defect::Hangs {
            loop {
                std::thread::park();
            }
        }
        self.device.migration_flags()
    }

    fn state(&mut self) -> whimbrel_user::Result<State> {
        Err(whimbrel_user::Error::request(self.device.name(), Operation::SetState(State::Stop), Errno::EIO))
    }
}

#[test]
fn a_device_that_refuses_or_hangs_is_named_beside_the_others() {
    for (defect, code) in [(Defect::Refuses, Code::RequestRefused), (Defect::Hangs, Code::NoAnswer)] {
        let broken = Box::new(Broken { device: device("accel"), defect });
        let mut options = SourceOptions::default();
        options.call_timeout = Duration::from_secs(2);
        let checked = Source::new(vec![device("serial"), broken]).options(options).check();
        let found = &checked.report.findings[0];
        assert_eq!((found.code, found.device.as_deref()), (code, Some("accel")), "{:?}", checked.report);
        assert_eq!(checked.report.devices[0].state.as_deref(), Some("RUNNING"));
        assert_eq!(checked.report.devices[1].state, None);
        match checked.source {
            Ok(_) => assert_eq!(defect, Defect::Refuses),
            Err(devices) => assert!(devices[0].is_some() && devices[1].is_none()),
        }
    }
}

#[test]
fn a_destination_whose_device_hangs_is_told_so_before_it_waits() {
    let mut options = DestinationOptions::default();
    options.call_timeout = Duration::from_secs(2);
    let devices: Vec<Box<dyn Migratable>> =
        vec![device("serial"), Box::new(Broken { device: device("accel"), defect: Defect::Hangs })];
    let failed = Destination::new(devices).options(options).identify().unwrap_err();
    assert!(matches!(failed.error, Error::Overdue { .. }), "{failed:?}");
    assert!(failed.devices[0].is_some() && failed.devices[1].is_none());
}
