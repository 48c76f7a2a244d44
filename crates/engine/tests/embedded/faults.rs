//! Devices, outputs and inputs that fail: everything is as before, or the error reports what is not.

use std::io::{self, Write};

use whimbrel_engine::Error;
use whimbrel_user::{Migratable, ResetRule, State};

use crate::vmm::{
    MODELS, assert_fresh, assert_runs_on, contents, loading, open, receive, saving, send, set, source, states,
};

/// Faults of a device with pre-copy at the source, before it is handed over.
const AT_SOURCE: [&str; 6] = [
    "arc RUNNING->PRE_COPY: EIO once",
    "read after 100: EIO once",
    "arc PRE_COPY->PRE_COPY_P2P: EBUSY once",
    "arc PRE_COPY_P2P->STOP_COPY: EIO once",
    "read after 60KiB: EIO once",
    "arc *->STOP_COPY: EIO once",
];

#[test]
fn a_device_that_fails_at_the_source_leaves_all_running_and_the_next_try_succeeds() {
    for fault in AT_SOURCE {
        let mut devices = set("here", 0, fault);
        // The fault counts bytes of a session: what is there at first is not read here.
        let others = contents(&mut set("here", 0, ""));
        let mut saving = saving(std::mem::take(&mut devices));
        let error = send(&mut saving).unwrap_err();
        assert!(error.to_string().starts_with("here0: "), "{fault}: {error}");
        assert!(saving.start(io::sink()).is_err(), "{fault}: it is over");
        let mut devices = saving.into_devices();
        assert_eq!(states(&mut devices), [State::Running; 3], "{fault}");

        let mut again = crate::vmm::saving(devices);
        let sections = send(&mut again).unwrap();
        let mut arriving = loading(set("there", 0, ""));
        receive(&mut arriving, &sections).unwrap();
        arriving.run().unwrap();
        again.finish().unwrap();
        assert!(contents(&mut arriving.into_devices()) == others, "{fault}");
    }
}

#[test]
fn a_device_that_breaks_at_the_source_is_named_and_the_others_run() {
    let mut saving = saving(set("here", 0, "arc PRE_COPY_P2P->STOP_COPY: EIO broken"));
    let error = send(&mut saving).unwrap_err();
    assert!(matches!(error, Error::NotBack { state: State::Running, .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("here0: it is in ERROR; only a reset"), "{text}");
    let states = states(&mut saving.into_devices());
    assert_eq!(states, [State::Error, State::Running, State::Running]);
}

/// An output that takes so many bytes.
struct Full(usize);

impl Write for Full {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let count = data.len().min(self.0);
        self.0 -= count;
        if count == 0 && !data.is_empty() { Err(io::ErrorKind::StorageFull.into()) } else { Ok(count) }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn an_output_that_fails_in_any_section_leaves_the_devices_running() {
    for room in [0, 1, 16, 40, 500] {
        for failing in 0..3 {
            let what = format!("{room} bytes of section {failing}");
            let mut devices = source();
            let before = contents(&mut devices);
            let mut saving = saving(devices);
            let output = |section: usize| Full(if section == failing { room } else { usize::MAX });
            let result = saving
                .start(output(0))
                .and_then(|()| saving.iterate(output(1), 10_000))
                .and_then(|_| saving.stop())
                .and_then(|()| saving.complete(output(2)));
            let error = result.unwrap_err();
            assert!(matches!(error, Error::File { .. }), "{what}: {error}");
            assert_runs_on(&mut saving.into_devices(), &before, &what);
        }
    }
}

#[test]
fn a_migration_that_is_dropped_before_all_is_sent_or_aborted_leaves_the_devices_running() {
    for moment in 0..4 {
        for is_dropped in [true, false] {
            if is_dropped && moment > 2 {
                continue;
            }
            let what = format!("moment {moment}, dropped: {is_dropped}");
            let mut devices = source();
            let before = contents(&mut devices);
            let borrowed: Vec<&mut dyn Migratable> =
                devices.iter_mut().map(|device| &mut **device as &mut dyn Migratable).collect();
            let mut saving = whimbrel_engine::embedded::Saving::new(borrowed).unwrap();
            if moment > 0 {
                saving.start(io::sink()).unwrap();
                saving.iterate(io::sink(), 10_000).unwrap();
            }
            if moment > 1 {
                saving.stop().unwrap();
            }
            if moment > 2 {
                saving.complete(io::sink()).unwrap();
            }
            if !is_dropped {
                saving.abort().unwrap();
            }
            drop(saving);
            assert_runs_on(&mut devices, &before, &what);
        }
    }
}

#[test]
fn a_migration_that_is_dropped_after_all_is_sent_leaves_the_devices_stopped() {
    let mut devices = source();
    let before = contents(&mut devices);
    let borrowed: Vec<&mut dyn Migratable> =
        devices.iter_mut().map(|device| &mut **device as &mut dyn Migratable).collect();
    let handed_over = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let mut saving = whimbrel_engine::embedded::Saving::new(borrowed).unwrap();
        saving.start(io::sink()).unwrap();
        saving.stop().unwrap();
        saving.complete(io::sink()).unwrap();
        panic!("the VMM has handed over");
    }));
    assert!(handed_over.is_err());
    assert_eq!(states(&mut devices), [State::StopCopy; 3]);

    // They were not handed over after all.
    for device in &mut devices {
        device.set_state(State::Running).unwrap();
    }
    assert_runs_on(&mut devices, &before, "set to RUNNING");
    let mut saving = saving(devices);
    send(&mut saving).unwrap();
    assert_eq!(states(&mut saving.into_devices()), [State::StopCopy; 3], "taken back");
}

/// Faults at the destination, and the call in which they appear.
const AT_DESTINATION: [(&str, &str); 6] = [
    ("arc RUNNING->RUNNING_P2P: EIO once", "load"),
    ("arc STOP->RESUMING: EIO once", "load"),
    ("write after 100: ENOSPC once", "load"),
    ("arc RESUMING->STOP: EINVAL once", "load"),
    ("arc STOP->RUNNING_P2P: EIO once", "run"),
    ("arc RUNNING_P2P->RUNNING: EIO broken once", "run"),
];

#[test]
fn a_device_that_fails_at_the_destination_leaves_nothing_there_and_the_source_runs_on() {
    for (fault, call) in AT_DESTINATION {
        let mut devices = source();
        let before = contents(&mut devices);
        let mut saving = saving(devices);
        let sections = send(&mut saving).unwrap();
        let mut loading = loading(set("there", 0, fault));
        let loaded = receive(&mut loading, &sections);
        assert_eq!(loaded.is_err(), call == "load", "{fault}");
        let error = loaded.and_then(|_| loading.run()).unwrap_err();
        assert!(error.to_string().starts_with("there0: "), "{fault}: {error}");
        assert!(loading.load_part(&sections[0][..]).is_err(), "{fault}: it is over");
        assert_fresh(&mut loading.into_devices(), fault);
        saving.abort().unwrap();
        assert_runs_on(&mut saving.into_devices(), &before, fault);
    }
}

#[test]
fn a_reset_that_fails_is_reported_with_its_cause() {
    let sections = send(&mut saving(source())).unwrap();
    let mut loading = loading(set("there", 0, "write after 100: ENOSPC once; reset: EIO once"));
    let error = receive(&mut loading, &sections).unwrap_err();
    assert!(matches!(error, Error::NotReset { .. }), "{error}");
    assert!(error.to_string().contains("ENOSPC") && error.to_string().contains("do not use it"), "{error}");
}

#[test]
fn an_arrival_that_is_dropped_or_aborted_at_any_moment_leaves_nothing() {
    let sections = send(&mut saving(source())).unwrap();
    for count in [0, 1, 2, sections.len()] {
        for is_dropped in [true, false] {
            let what = format!("after {count} sections, dropped: {is_dropped}");
            let mut devices = set("there", 0, "");
            let borrowed: Vec<&mut dyn Migratable> =
                devices.iter_mut().map(|device| &mut **device as &mut dyn Migratable).collect();
            let mut loading = whimbrel_engine::embedded::Loading::new(borrowed).unwrap();
            for section in &sections[..count] {
                loading.load_part(&section[..]).unwrap();
            }
            if !is_dropped {
                loading.abort().unwrap();
            }
            drop(loading);
            assert_fresh(&mut devices, &what);
        }
    }
}

/// The call before which a guest resets the first device of the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    Round,
    Question,
    Stop,
    Rest,
}

#[test]
fn a_guest_that_resets_its_device_ends_the_migration_by_name_or_not_at_all_by_the_device_s_rule() {
    use Moment::{Question, Rest, Round, Stop};
    for rule in ResetRule::ALL {
        for moment in [Round, Question, Stop, Rest] {
            let what = format!("{rule:?}, {moment:?}");
            let local = open(MODELS[0], "here0", "");
            let file = local.driver_side().clone();
            file.set_reset_rule(rule).unwrap();
            let mut devices = set("here", usize::MAX, "");
            devices[0] = Box::new(local);
            let mut saving = saving(devices);
            let mut sections = vec![Vec::new(); 4];
            let reset = |now| {
                if now == moment {
                    file.reset().unwrap();
                }
            };
            let mut migrate = || {
                saving.start(&mut sections[0])?;
                reset(Round);
                saving.iterate(&mut sections[1], u64::MAX)?;
                reset(Question);
                saving.left()?;
                saving.iterate(&mut sections[2], u64::MAX)?;
                reset(Stop);
                saving.stop()?;
                reset(Rest);
                saving.complete(&mut sections[3])
            };
            let result = migrate();
            if rule == ResetRule::KeepsPrecopy && moment != Rest {
                result.unwrap_or_else(|error| panic!("{what}: {error}"));
                let mut arriving = loading(set("there", 0, ""));
                receive(&mut arriving, &sections).unwrap();
                continue;
            }
            let error = result.unwrap_err();
            assert!(
                matches!(&error, Error::ResetMeanwhile { device, .. } if device == "here0"),
                "{what}: {error}"
            );
            assert_eq!(states(&mut saving.into_devices()), [State::Running; 3], "{what}");
        }
    }
}
