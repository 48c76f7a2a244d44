//! A device that fails takes the others with it: all run at the source again, or it is said which does not.

use whimbrel_device::{ArcError, Errno};
use whimbrel_user::State;

use super::{AFTER_HANDOVER, AT_SOURCE, BEFORE_HANDOVER, three};
use crate::support::engine::{Error, Outcome};
use crate::support::{At, Program};

#[test]
fn a_request_that_one_device_refuses_at_the_source_leaves_all_running_there() {
    for (at, passes, request) in AT_SOURCE {
        for device in 0..3 {
            let what = format!("here{device}: {at:?} after {passes}");
            let rig = three();
            let control = rig.here.units[device].control.clone();
            control.fail(at, passes, ArcError::Stays(Errno::EIO));
            let mut ended = rig.migrate();
            let (sent, received) = ended.refused(&what);
            assert!(!control.has_faults_left(), "{what}: it was never asked");
            let why = format!("{request}: EIO");
            for text in [&sent, &received] {
                assert!(text.contains(&format!("here{device}: ")) && text.contains(&why), "{what}: {text}");
            }
            assert!(sent.ends_with("the devices run on at the source"), "{what}: {sent}");
        }
    }
}

#[test]
fn a_request_that_one_device_refuses_at_the_destination_leaves_all_running_at_the_source() {
    for (at, request) in BEFORE_HANDOVER.into_iter().chain(AFTER_HANDOVER) {
        for device in 0..3 {
            for error in [ArcError::Stays(Errno::EIO), ArcError::Broken(Errno::EIO)] {
                let what = format!("there{device}: {at:?} {error:?}");
                let rig = three();
                rig.there.units[device].control.fail(at, 0, error);
                let mut ended = rig.migrate();
                let (sent, received) = ended.refused(&what);
                let why = format!("{request}EIO");
                assert!(received.starts_with(&format!("there{device}: ")), "{what}: {received}");
                assert!(received.contains(&why) && sent.contains(&why), "{what}: {received} / {sent}");
                assert!(sent.starts_with("the destination ended the migration: there"), "{what}: {sent}");
            }
        }
    }
}

#[test]
fn a_device_that_breaks_at_the_source_is_reset_and_the_others_keep_their_state() {
    for (at, passes, _) in AT_SOURCE.into_iter().filter(|(at, ..)| matches!(at, At::Arc(..))) {
        for device in 0..3 {
            let what = format!("here{device}: {at:?}");
            let rig = three();
            rig.here.units[device].control.fail(at, passes, ArcError::Broken(Errno::EIO));
            let mut ended = rig.migrate();
            let error = ended.sent.unwrap_err();
            let name = format!("here{device}");
            assert!(
                matches!(&error.outcome, Outcome::RunsOnAfterReset { devices } if *devices == [name]),
                "{what}: {error}"
            );
            for (number, unit) in ended.rig.here.units.iter_mut().enumerate() {
                assert_eq!(unit.state(), State::Running, "{what}");
                assert_eq!(unit.control.is_fresh(), number == device, "{what}: {number}");
                assert!(!unit.control.is_logging(), "{what}: {number}");
            }
            assert!(!ended.rig.here.program.calls.is_paused(), "{what}: all work again");
            ended.rig.assert_destination_is_fresh(&what);
        }
    }
}

#[test]
fn a_device_that_cannot_be_brought_back_is_named_and_the_others_run() {
    for device in 0..3 {
        let what = format!("here{device}");
        let mut rig = three();
        rig.there.program = Program::refusing("inspect");
        let control = rig.here.units[device].control.clone();
        control.fail(At::Arc(State::Stop, State::RunningP2p), 0, ArcError::Stays(Errno::EBUSY));
        // Once more where the engine tries another way.
        control.fail(At::Arc(State::Stop, State::RunningP2p), 0, ArcError::Stays(Errno::EBUSY));
        control.fail(At::Reset, 0, ArcError::Stays(Errno::EIO));
        let mut ended = rig.migrate();
        let error = ended.sent.unwrap_err();
        assert!(matches!(error.outcome, Outcome::Stranded(_)), "{what}: {error}");
        let text = error.to_string();
        assert!(text.contains(&format!("here{device}: VFIO_DEVICE_RESET: EIO")), "{what}: {text}");
        assert!(text.contains("it does not inspect"), "{what}: {text}");
        for (number, unit) in ended.rig.here.units.iter_mut().enumerate() {
            assert_eq!(unit.state() == State::Running, number != device, "{what}: {number}");
            assert!(!unit.control.is_logging(), "{what}: {number}");
        }
        assert!(ended.rig.here.program.calls.is_paused(), "{what}: a program without its device was let go");
        ended.rig.assert_destination_is_fresh(&what);
    }
}

#[test]
fn a_device_that_cannot_be_reset_at_the_destination_is_named_and_the_source_runs_on() {
    for (at, _) in BEFORE_HANDOVER {
        for device in 0..3 {
            let what = format!("there{device}: {at:?}");
            let rig = three();
            let control = rig.there.units[device].control.clone();
            control.fail(at, 0, ArcError::Stays(Errno::EIO));
            control.fail(At::Reset, 0, ArcError::Stays(Errno::EBUSY));
            let mut ended = rig.migrate();
            let (sent, received) = (ended.sent.unwrap_err(), ended.received.unwrap_err());
            assert!(matches!(received, Error::NotReset { .. }), "{what}: {received}");
            for text in [received.to_string(), sent.to_string()] {
                assert!(text.contains(&format!("there{device}: VFIO_DEVICE_RESET: EBUSY")), "{what}: {text}");
            }
            assert!(matches!(sent.outcome, Outcome::RunsOn | Outcome::Untouched), "{what}: {sent}");
            ended.rig.assert_source_runs(&what);
            for (number, unit) in ended.rig.there.units.iter().enumerate() {
                assert!(number == device || unit.control.is_fresh(), "{what}: {number}");
            }
        }
    }
}

#[test]
fn a_destination_with_one_device_that_may_run_does_not_say_that_it_failed() {
    for device in 0..3 {
        let what = format!("there{device}");
        let rig = three();
        let control = rig.there.units[device].control.clone();
        control.fail(At::Arc(State::RunningP2p, State::Running), 0, ArcError::Stays(Errno::EIO));
        control.fail(At::Reset, 0, ArcError::Stays(Errno::EIO));
        control.fail(At::Arc(State::RunningP2p, State::Stop), 1, ArcError::Stays(Errno::EIO));
        let mut ended = rig.migrate();
        assert!(matches!(ended.received.unwrap_err(), Error::NotReset { .. }), "{what}");
        assert!(matches!(ended.sent.unwrap_err().outcome, Outcome::Unknown), "{what}");
        ended.rig.assert_source_stands(&what);
    }
}
