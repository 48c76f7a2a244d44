//! Several devices in one file: all or none, stopped and started together.

use std::io;

use whimbrel_device::{ArcError, Errno};
use whimbrel_engine::Error;
use whimbrel_engine::archive::{self, Restore, Save};
use whimbrel_models::Model;
use whimbrel_user::{Local, Migratable, MigrationFlags, State};

use crate::control::At;
use crate::device::Shape;
use crate::owners::Program;
use crate::trio::{NAMES, Trio, decoded};

#[test]
fn a_set_comes_back_from_one_file() {
    let file = Trio::new().saved();
    let account = decoded(&file);
    assert_eq!(account.devices.iter().map(|device| device.name.as_str()).collect::<Vec<_>>(), NAMES);
    let contents = archive::inspect(&file[..]);
    assert!(contents.complete, "{:?}", contents.problem);
    assert_eq!((contents.devices.len(), contents.device_bytes()), (3, 30));

    let mut trio = Trio::new();
    trio.controls.iter().for_each(|control| control.set_state(&[9; 4]));
    let restored = trio.restore().read_from(&file[..]).unwrap();
    assert_eq!(restored.devices.iter().map(|device| device.device_bytes).collect::<Vec<_>>(), [10, 10, 10]);
    assert_eq!(restored.warnings, [""; 0]);
    trio.assert_works("restored");
}

#[test]
fn no_device_stops_while_another_one_runs() {
    let mut trio = Trio::new();
    let file = trio.saved();
    let all = |state: &str| NAMES.map(|name| format!("{name} {state}"));
    let expected = [all("RUNNING_P2P"), all("STOP_COPY"), all("RUNNING_P2P"), all("RUNNING")].concat();
    assert_eq!(trio.log(), expected);
    trio.restore().read_from(&file[..]).unwrap();
    let expected =
        [all("RUNNING_P2P"), all("RESUMING"), all("STOP"), all("RUNNING_P2P"), all("RUNNING")].concat();
    assert_eq!(trio.log(), expected);
}

#[test]
fn a_device_that_cannot_be_quiesced_is_saved_with_the_others_and_the_user_is_told() {
    let mut trio = Trio::of(&Shape { size: 4, flags: MigrationFlags::STOP_COPY, ..Shape::default() });
    let saved = trio.save().write_to(io::sink()).unwrap();
    assert_eq!(saved.warnings.len(), 1);
    assert!(saved.warnings[0].starts_with("two cannot be quiesced"), "{:?}", saved.warnings);
    assert!(!trio.log().contains(&"two RUNNING_P2P".to_string()));
    trio.assert_works("saved");
}

#[test]
fn each_device_goes_back_to_the_state_it_was_in() {
    let mut trio = Trio::new();
    trio.devices[1].set_state(State::Stop).unwrap();
    trio.devices[2].set_state(State::RunningP2p).unwrap();
    let saved = trio.save().write_to(io::sink()).unwrap();
    let states: Vec<&str> = saved.devices.iter().map(|device| device.state.as_str()).collect();
    assert_eq!(states, ["RUNNING", "STOP", "RUNNING_P2P"]);
    for (device, state) in trio.devices.iter_mut().zip([State::Running, State::Stop, State::RunningP2p]) {
        assert_eq!(device.state().unwrap(), state);
    }
}

#[test]
fn a_request_that_fails_at_one_device_of_a_save_brings_all_back() {
    use State::{Running, RunningP2p, Stop, StopCopy};
    for (index, name) in NAMES.iter().enumerate() {
        for at in [
            At::Arc(Running, RunningP2p),
            At::Arc(RunningP2p, Stop),
            At::Arc(Stop, StopCopy),
            At::Read(StopCopy),
        ] {
            let mut trio = Trio::new();
            trio.controls[index].fail(at, 0, ArcError::Stays(Errno::EIO));
            let error = trio.save().write_to(io::sink()).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{name}: ")) && error.contains("EIO"), "{error}");
            trio.assert_works(&format!("{index} {at:?}"));
        }
    }
}

#[test]
fn devices_that_do_not_come_back_are_all_named_and_the_guest_stays_paused() {
    use State::{RunningP2p, Stop};
    let mut trio = Trio::new();
    for index in [0, 2] {
        for _ in 0..2 {
            trio.controls[index].fail(At::Arc(Stop, RunningP2p), 0, ArcError::Stays(Errno::EBUSY));
        }
    }
    let guest = Program::default();
    let error = trio.save().guest(guest.clone()).write_to(io::sink()).unwrap_err().to_string();
    assert!(error.contains("zero") && error.contains("two") && !error.contains("one:"), "{error}");
    assert_eq!(trio.devices[1].state().unwrap(), State::Running);
    assert_eq!(guest.calls(), ["pause", "save"]);
}

#[test]
fn a_request_that_fails_at_one_device_of_a_restore_leaves_all_fresh() {
    use State::{Resuming, Running, RunningP2p, Stop};
    let file = Trio::new().saved();
    for (index, name) in NAMES.iter().enumerate() {
        for at in [
            At::Arc(Running, RunningP2p),
            At::Arc(Stop, Resuming),
            At::Write,
            At::Arc(Resuming, Stop),
            At::Arc(Stop, RunningP2p),
            At::Arc(RunningP2p, Running),
        ] {
            let mut trio = Trio::new();
            trio.controls[index].fail(at, 0, ArcError::Stays(Errno::EIO));
            let error = trio.restore().read_from(&file[..]).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{name}: ")) && error.contains("EIO"), "{error}");
            trio.assert_fresh(&format!("{index} {at:?}"));
        }
    }
    let mut trio = Trio::new();
    for index in [1, 2] {
        trio.controls[index].fail(At::Reset, 0, ArcError::Stays(Errno::EBUSY));
    }
    trio.controls[0].fail(At::Write, 0, ArcError::Stays(Errno::EIO));
    let error = trio.restore().read_from(&file[..]).unwrap_err().to_string();
    assert!(error.contains("one: ") && error.contains("two: "), "{error}");
    assert!(trio.controls[0].is_fresh());
}

#[test]
fn a_set_of_another_size_or_order_is_refused_before_any_device_is_touched() {
    let (mut trio, other) = (Trio::new(), Shape { size: 4, regions: 5, ..Shape::default() });
    let file = trio.saved();
    trio.log();
    let two = trio.devices.iter_mut().take(2).map(|device| device as &mut dyn Migratable);
    let error = Restore::new(two).read_from(&file[..]).unwrap_err().to_string();
    assert!(error.contains("3 devices") && error.contains("has 2"), "{error}");
    assert_eq!(trio.log(), [""; 0]);
    let mut trio = Trio::of(&other);
    let error = trio.restore().read_from(&file[..]).unwrap_err().to_string();
    assert!(error.contains("number of regions is 2, expected 5"), "{error}");
    assert_eq!(trio.log(), [""; 0]);
    trio.assert_works("refused");
    assert!(matches!(Save::new([]).write_to(io::sink()), Err(Error::Unfit(_))));
}

#[test]
fn devices_can_be_a_part_of_another_stream() {
    let stream = [&Trio::new().saved()[..], b"what the VMM wrote next"].concat();
    let mut trio = Trio::new();
    let mut rest = &stream[..];
    trio.restore().read_part(&mut rest).unwrap();
    trio.assert_works("restored");
    assert_eq!(rest, b"what the VMM wrote next");
    let error = trio.restore().read_from(&stream[..]).unwrap_err();
    assert!(error.to_string().contains("data follows the end"), "{error}");
    trio.assert_fresh("refused");
}

#[test]
fn models_of_every_kind_come_back_from_one_file_by_way_of_the_document() {
    let names = ["serial?ports=2", "accel?state=3MiB", "legacy?state=300K", "serial"];
    let open = || {
        names.map(|name| {
            let model: Model = name.parse().unwrap();
            whimbrel_user::region::adapt(Box::new(Local::new(model.open(name).unwrap()))).unwrap()
        })
    };
    let mut devices = open();
    let mut file = Vec::new();
    let saved = Save::new(devices.iter_mut().map(|device| &mut **device as &mut dyn Migratable))
        .write_to(&mut file)
        .unwrap();
    let account = decoded(&file);
    for (device, summary) in account.devices.iter().zip(&saved.devices) {
        assert_eq!((&device.name, device.state.len() as u64), (&summary.device, summary.device_bytes));
        assert!(!device.state.is_empty());
    }
    let mut devices = open();
    Restore::new(devices.iter_mut().map(|device| &mut **device as &mut dyn Migratable))
        .read_from(&file[..])
        .unwrap();
    let mut again = Vec::new();
    Save::new(devices.iter_mut().map(|device| &mut **device as &mut dyn Migratable))
        .write_to(&mut again)
        .unwrap();
    assert_eq!(decoded(&again).devices.len(), names.len());
}

#[test]
fn devices_that_claim_any_size_are_saved() {
    let shape = Shape { claims: Some(u64::MAX), ..Shape::default() };
    let (mut one, _) = crate::device::open("one", &shape);
    let (mut two, _) = crate::device::open("two", &shape);
    Save::new([&mut one as &mut dyn Migratable, &mut two]).write_to(Vec::new()).unwrap();
}
