//! Drivers that do not return from a call, behind a timeout: each call of the VMM ends all the same, and the others work.

use std::time::Instant;

use whimbrel_engine::Error;
use whimbrel_user::{Migratable, State};

use crate::hooked::{SLACK, TIMEOUT, assert_names, in_each, states_of_the_others, three};
use crate::vmm::{loading, receive, saving, send};

/// A whole migration at the source, up to its last call.
fn leave(devices: Vec<Box<dyn Migratable>>) -> (Result<(), Error>, Vec<Box<dyn Migratable>>) {
    let mut saving = match whimbrel_engine::embedded::Saving::new(devices) {
        Ok(saving) => saving,
        Err(refused) => return (Err(*refused.error), refused.devices),
    };
    let result = send(&mut saving).and_then(|_| saving.finish());
    (result, saving.into_devices())
}

/// A whole migration at the destination.
fn arrive(
    devices: Vec<Box<dyn Migratable>>,
    sections: &[Vec<u8>],
) -> (Result<(), Error>, Vec<Box<dyn Migratable>>) {
    let mut loading = match whimbrel_engine::embedded::Loading::new(devices) {
        Ok(loading) => loading,
        Err(refused) => return (Err(*refused.error), refused.devices),
    };
    let result = receive(&mut loading, sections).and_then(|_| loading.run());
    (result, loading.into_devices())
}

#[test]
fn a_driver_that_hangs_at_the_source_is_named_and_the_others_run_on() {
    let (devices, calls) = three("here");
    leave(devices).0.unwrap();
    let calls = calls.made();
    let stops = calls.iter().rposition(|call| call.ends_with(" to STOP")).unwrap();
    assert!(calls.contains(&"VFIO_MIG_GET_PRECOPY_INFO".to_string()), "{calls:?}");
    in_each(&calls, |number, call| {
        let (devices, calls) = three("here");
        let hung = calls.hang_in(number);
        let started = Instant::now();
        let (result, mut devices) = leave(devices);
        assert!(started.elapsed() < TIMEOUT + SLACK, "{call}: {:?}", started.elapsed());
        assert_names(&result.unwrap_err(), "here", call);
        // Once all has been sent, they are the destination's; the close of the session is the first call after it.
        let expected = if number + 1 < stops { State::Running } else { State::Stop };
        assert_eq!(states_of_the_others(&mut devices), [expected; 2], "{number}: {call}");
        drop(devices);
        drop(hung);
    });
}

#[test]
fn a_driver_that_hangs_in_the_estimate_of_its_size_fails_the_query_and_not_the_next_call() {
    let (devices, calls) = three("here");
    let mut first = saving(devices);
    first.start(std::io::sink()).unwrap();
    let before = calls.made().len();
    first.left().unwrap();
    let size = "VFIO_DEVICE_FEATURE_MIG_DATA_SIZE";
    let number = before + calls.made()[before..].iter().position(|call| call == size).unwrap();
    let (devices, calls) = three("here");
    let mut second = saving(devices);
    second.start(std::io::sink()).unwrap();
    let hung = calls.hang_in(number);
    assert_names(&second.left().unwrap_err(), "here", size);
    assert_eq!(states_of_the_others(&mut second.into_devices()), [State::Running; 2]);
    drop(hung);
}

#[test]
fn a_driver_that_hangs_at_the_destination_is_named_and_the_others_are_reset() {
    let sections = send(&mut saving(three("here").0)).unwrap();
    let (devices, calls) = three("there");
    arrive(devices, &sections).0.unwrap();
    let calls = calls.made();
    in_each(&calls, |number, call| {
        let (devices, calls) = three("there");
        let hung = calls.hang_in(number);
        let started = Instant::now();
        let (result, mut devices) = arrive(devices, &sections);
        assert!(started.elapsed() < TIMEOUT + SLACK, "{call}: {:?}", started.elapsed());
        let error = result.unwrap_err();
        assert_names(&error, "there", call);
        assert_eq!(states_of_the_others(&mut devices), [State::Running; 2], "{call}");
        let was_touched = calls.made().iter().any(|call| call.contains(" to RUNNING_P2P"));
        assert_eq!(matches!(error, Error::NotReset { .. }), was_touched, "{call}: {error}");
        drop(devices);
        drop(hung);
    });
}

#[test]
fn dropping_a_migration_whose_driver_hangs_does_not_wait_for_it() {
    let (devices, calls) = three("here");
    let mut first = saving(devices);
    first.start(std::io::sink()).unwrap();
    let hung = calls.hang_in(calls.made().len());
    let started = Instant::now();
    drop(first);
    assert!(started.elapsed() < TIMEOUT + SLACK, "{:?}", started.elapsed());

    let sections = send(&mut saving(three("here").0)).unwrap();
    let (devices, calls) = three("there");
    let mut second = loading(devices);
    second.load_part(&sections[0][..]).unwrap();
    let hung_too = calls.hang_in(calls.made().len());
    let started = Instant::now();
    drop(second);
    assert!(started.elapsed() < TIMEOUT + SLACK, "{:?}", started.elapsed());
    drop((hung, hung_too));
}
