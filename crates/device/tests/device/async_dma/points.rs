//! A read that is held at each of its parts while something happens to its device: it is made once, again, or no more.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use parking_lot::Mutex;
use whimbrel_device::wrap::fault::{Faults, Faulty};
use whimbrel_device::{Errno, ResetRule, State};

use super::support::*;

/// The address of a read of two bytes, which its memory's owner is asked for one by one.
const IOVA: u64 = 2 * PAGE - 2;

/// A device with such memory.
struct Held {
    rig: Rig,
    asked: Receiver<u64>,
    answer: Sender<()>,
}

impl Held {
    /// Begins a read, and holds it at a part.
    fn at(part: u64, faults: &str) -> Held {
        let faults: Faults = faults.parse().unwrap();
        let rig = Rig::of(false, |copier| Faulty::new(copier, faults).into());
        let ((sender, asked), (answer, answers)) = (channel(), channel());
        let memory = Slow { asked: sender, answers: Mutex::new(answers), may_outlive: true, max_bytes: 1 };
        rig.device.bus().dma().map_remote(PAGE, PAGE, BOTH, Arc::new(memory)).unwrap();
        let held = Held { rig, asked, answer };
        held.rig.device.write_region(0, 0, &IOVA.to_ne_bytes()).unwrap();
        held.answer_parts(part);
        assert_eq!(held.next_asked(), IOVA + part);
        held
    }

    /// The next request to the memory's owner.
    fn next_asked(&self) -> u64 {
        self.asked.recv_timeout(Duration::from_secs(20)).unwrap()
    }

    /// Answers the requests for the first parts.
    fn answer_parts(&self, count: u64) {
        for part in 0..count {
            assert_eq!(self.next_asked(), IOVA + part);
            self.answer.send(()).unwrap();
        }
    }

    /// The driver sees this, in this order.
    fn sees(&self, expected: &[Seen]) {
        let seen: Vec<Seen> = expected.iter().map(|_| self.rig.next()).collect();
        assert_eq!(seen, expected);
    }

    /// The device makes its next access, and nothing more of the one before.
    fn is_over(&self) {
        self.rig.begin();
        self.rig.answer.send(()).unwrap();
        self.sees(&[Seen::Done(true)]);
        assert!(self.asked.try_recv().is_err(), "more of it is asked for");
    }

    /// The device makes the whole access again, once.
    fn is_made_again(&self) {
        self.answer_parts(2);
        self.sees(&[Seen::Done(true)]);
        self.is_over();
    }
}

#[test]
fn a_device_that_stops_and_runs_again_makes_the_whole_access_again_once() {
    for part in 0..2 {
        let held = Held::at(part, "");
        held.rig.device.set_mig_state(State::Stop).unwrap();
        held.rig.device.set_mig_state(State::Running).unwrap();
        held.answer.send(()).unwrap();
        held.sees(&[State::RunningP2p, State::Stop, State::RunningP2p, State::Running].map(Seen::Arc));
        held.is_made_again();
    }
}

#[test]
fn a_reset_ends_the_access_also_in_pre_copy() {
    for (part, rule) in (0..2).flat_map(|part| ResetRule::ALL.map(|rule| (part, rule))) {
        let held = Held::at(part, "");
        held.rig.device.set_reset_rule(rule).unwrap();
        held.rig.device.set_mig_state(State::PreCopy).unwrap();
        held.rig.device.reset().unwrap();
        held.answer.send(()).unwrap();
        held.sees(&[Seen::Arc(State::PreCopy), Seen::Reset]);
        held.is_over();
    }
}

#[test]
fn a_reset_that_fails_leaves_the_access() {
    for part in 0..2 {
        let held = Held::at(part, "reset: EIO once");
        assert_eq!(held.rig.device.reset(), Err(Errno::EIO));
        held.answer.send(()).unwrap();
        for next in part + 1..2 {
            assert_eq!(held.next_asked(), IOVA + next);
            held.answer.send(()).unwrap();
        }
        held.sees(&[Seen::Done(true)]);
        held.is_over();
    }
}

#[test]
fn a_device_in_error_has_no_access_until_it_is_reset() {
    for part in 0..2 {
        let held = Held::at(part, "arc *->STOP: EIO broken once");
        assert_eq!(held.rig.device.set_mig_state(State::Stop).map(drop), Err(Errno::EIO));
        assert_eq!(held.rig.device.mig_state(), Ok(State::Error));
        held.answer.send(()).unwrap();
        held.rig.device.reset().unwrap();
        held.sees(&[Seen::Arc(State::RunningP2p), Seen::Reset]);
        held.is_over();
    }
}

#[test]
fn a_device_that_may_sleep_sleeps_after_its_forgotten_access_and_makes_it_again_awake() {
    for part in 0..2 {
        let held = Held::at(part, "");
        held.rig.device.enter_low_power(None).unwrap();
        held.rig.device.set_mig_state(State::Stop).unwrap();
        held.answer.send(()).unwrap();
        held.sees(&[Seen::Arc(State::RunningP2p), Seen::Arc(State::Stop), Seen::Suspend]);
        held.rig.device.exit_low_power().unwrap();
        held.rig.device.set_mig_state(State::Running).unwrap();
        held.sees(&[Seen::Arc(State::RunningP2p), Seen::Arc(State::Running)]);
        held.is_made_again();
    }
}
