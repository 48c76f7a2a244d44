//! Drivers that do not return from a call, behind a timeout: a save and a restore end all the same, and the others work.

use std::time::Instant;

use whimbrel_engine::archive::{Restore, Save};
use whimbrel_user::{Migratable, State};

use crate::hooked::{SLACK, TIMEOUT, assert_names, in_each, states_of_the_others, three};

fn save(devices: &mut [Box<dyn Migratable>]) -> Save<'_> {
    Save::new(devices.iter_mut().map(|device| &mut **device as &mut dyn Migratable))
}

fn restore(devices: &mut [Box<dyn Migratable>]) -> Restore<'_> {
    Restore::new(devices.iter_mut().map(|device| &mut **device as &mut dyn Migratable))
}

#[test]
fn a_save_does_not_go_on_to_the_next_call_when_the_estimate_of_its_size_hangs() {
    let (mut devices, calls) = three("here");
    save(&mut devices).write_to(Vec::new()).unwrap();
    let size = "VFIO_DEVICE_FEATURE_MIG_DATA_SIZE";
    let number = calls.made().iter().position(|call| call == size).unwrap();
    let (mut devices, calls) = three("here");
    let hung = calls.hang_in(number);
    let error = save(&mut devices).write_to(Vec::new()).unwrap_err().to_string();
    assert!(error.starts_with(&format!("here1: {size} has not returned for 1500 ms")), "{error}");
    drop(devices);
    drop(hung);
}

#[test]
fn a_driver_that_hangs_during_a_save_is_named_and_the_others_run_on() {
    let (mut devices, calls) = three("here");
    save(&mut devices).write_to(Vec::new()).unwrap();
    let calls = calls.made();
    assert!(calls.len() > 10, "{calls:?}");
    in_each(&calls, |number, call| {
        let folder = tempfile::tempdir().unwrap();
        let (mut devices, calls) = three("here");
        let hung = calls.hang_in(number);
        let started = Instant::now();
        let error = save(&mut devices).write_to_path(&folder.path().join("file")).unwrap_err();
        assert!(started.elapsed() < TIMEOUT + SLACK, "{call}: {:?}", started.elapsed());
        assert_names(&error, "here", call);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "{call}: no file is left");
        assert_eq!(states_of_the_others(&mut devices), [State::Running; 2], "{call}");
        assert!(error.advice().is_some_and(|advice| advice.contains("dmesg")), "{call}: {error}");
        let was_touched = calls.made().iter().any(|call| call.contains(" to RUNNING_P2P"));
        let is_unknown =
            error.to_string().contains("it is unknown whether the device has returned to RUNNING");
        assert_eq!(is_unknown, was_touched, "{call}: {error}");
        drop(devices);
        drop(hung);
    });
}

#[test]
fn a_driver_that_hangs_during_a_restore_is_named_and_the_others_are_reset() {
    let mut file = Vec::new();
    let (mut devices, _) = three("here");
    save(&mut devices).write_to(&mut file).unwrap();
    let (mut devices, calls) = three("there");
    restore(&mut devices).read_from(&file[..]).unwrap();
    let calls = calls.made();
    assert!(calls.contains(&"restore of the device's setup".to_string()), "{calls:?}");
    in_each(&calls, |number, call| {
        let (mut devices, calls) = three("there");
        let hung = calls.hang_in(number);
        let started = Instant::now();
        let error = restore(&mut devices).read_from(&file[..]).unwrap_err();
        assert!(started.elapsed() < TIMEOUT + SLACK, "{call}: {:?}", started.elapsed());
        assert_names(&error, "there", call);
        assert_eq!(states_of_the_others(&mut devices), [State::Running; 2], "{call}");
        let was_touched = calls.made().iter().any(|call| call.contains(" to RUNNING_P2P"));
        let is_unknown = error
            .to_string()
            .contains("it is unknown whether the device holds the received state, or runs with it");
        assert_eq!(is_unknown, was_touched, "{call}: {error}");
        drop(devices);
        drop(hung);
    });
}

/// A restore of what does not fit, so that a device in the middle of its state is reset.
#[test]
fn a_driver_that_hangs_in_its_reset_is_named_and_the_others_are_reset() {
    let mut file = Vec::new();
    let (mut devices, _) = three("here");
    save(&mut devices).write_to(&mut file).unwrap();
    file.pop();
    let (mut devices, calls) = three("there");
    let failed = restore(&mut devices).read_from(&file[..]).unwrap_err().to_string();
    let calls = calls.made();
    assert_eq!(calls.last().map(String::as_str), Some("VFIO_DEVICE_RESET"), "{calls:?}");

    let (mut devices, its_calls) = three("there");
    let hung = its_calls.hang_in(calls.len() - 1);
    let error = restore(&mut devices).read_from(&file[..]).unwrap_err();
    assert_names(&error, "there", "VFIO_DEVICE_RESET");
    assert!(error.to_string().starts_with(&failed), "{error}");
    assert_eq!(states_of_the_others(&mut devices), [State::Running; 2]);
    drop(hung);
}
