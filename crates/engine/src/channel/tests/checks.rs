//! Checks at a listener: they are answered, however many and however hostile, and none ends the wait for a sender.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::listener::{expect_hello, listener, sender};
use super::soon;
use crate::channel::checks::MAX_CHECKS;
use crate::channel::{Address, Interrupt, Listener, Received, Receiver, Sender, Until, WaitError, connect};
use crate::proto::check::{CHECK_TIMEOUT, MAX_BYTES, MAX_QUESTIONS};
use crate::proto::control::{Checked, Control, Table};
use crate::proto::frame::CHUNK;
use crate::proto::greeting::{Answers, Terms};
use crate::proto::identity::DeviceIdentity;
use crate::proto::message::Message;
use crate::proto::negotiate::Offer;

/// The terms of a destination with one device.
fn terms() -> Terms {
    let device = DeviceIdentity { name: "there".into(), ..DeviceIdentity::default() };
    let table = Table { devices: vec![device], ..Table::default() };
    let checks = Some(Answers { table, setup: Duration::from_micros(7) });
    Terms { checks, ..Terms::default() }
}

/// Runs `work` while a listener waits on these terms, and then has it accept a sender.
fn while_waiting(work: impl FnOnce(&Address)) {
    let mut listener = listener();
    let address = listener.address().clone();
    let stop = Interrupt::new().unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| listener.accept_on(&terms(), Until::interrupted(&stop)));
        let worked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(&address)));
        if worked.is_err() {
            stop.set();
        }
        let stream = sender(&address, 42);
        let accepted = waiting.join().unwrap();
        worked.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        expect_hello(&accepted.unwrap(), 42);
        drop(stream);
    });
}

/// A peer that asks.
struct Asking {
    sender: Sender,
    receiver: Receiver,
}

impl Asking {
    /// Sends a greeting with this device.
    fn new(address: &Address, device: DeviceIdentity) -> Asking {
        let channel = Arc::new(connect(address, soon()).unwrap());
        let mut asking = Asking { sender: Sender::new(channel.clone()), receiver: Receiver::new(channel) };
        asking.say(&Control::Hello(Offer::for_check(9, &BTreeSet::new(), &BTreeSet::new())).into());
        match asking.hear() {
            Control::Accept(accept) => assert_eq!(accept.features, BTreeSet::from(["check".to_string()])),
            other => panic!("{other:?}"),
        }
        let table = Table { devices: vec![device], ..Table::default() };
        asking.say(&Control::Table(table).into());
        asking
    }

    /// Greets with a device that fits, and takes the answer.
    fn fitting(address: &Address) -> Asking {
        let mut asking = Asking::new(address, DeviceIdentity::default());
        assert_eq!(asking.hear(), Control::Checked(Checked { setup_us: 7, ..Checked::default() }));
        asking
    }

    /// Sends a message. The listener may have closed the connection.
    fn say(&mut self, message: &Message<'_>) {
        let _ = self.sender.send_now(message, soon());
    }

    fn hear(&mut self) -> Control {
        match self.receiver.next(soon()).unwrap() {
            Received::Message(Message::Control(control)) => control,
            other => panic!("{other:?}"),
        }
    }

    /// Reads up to the reason for which the check ends.
    fn refusal(&mut self) -> String {
        loop {
            if let Control::Failed(reason) = self.hear() {
                return reason.reason;
            }
        }
    }
}

#[test]
fn checks_are_answered_and_a_sender_comes_after_them() {
    while_waiting(|address| {
        for _ in 0..2 * MAX_CHECKS {
            let mut asking = Asking::fitting(address);
            let padding = vec![0; CHUNK];
            for number in 0..3 {
                asking.say(&Control::Ping { id: number }.into());
                assert_eq!(asking.hear(), Control::Pong { id: number });
                asking.say(&Message::Padding { data: &padding });
                asking.say(&Control::Round { number, initial: false }.into());
                assert_eq!(asking.hear(), Control::RoundDone { number });
            }
            // Its place is free once the listener has seen the end.
            drop(asking.sender.finish(soon()));
            assert!(asking.receiver.next(soon()).is_err());
        }
    });
}

#[test]
fn what_differs_is_told_with_its_code() {
    while_waiting(|address| {
        let other = DeviceIdentity { name: "here".into(), num_regions: 3, ..DeviceIdentity::default() };
        let Control::Checked(checked) = Asking::new(address, other).hear() else { panic!() };
        assert_eq!(checked.mismatches.len(), 1);
        let mismatch = &checked.mismatches[0];
        assert_eq!((mismatch.code.as_str(), mismatch.device), ("region-count", Some(0)));
        assert!(mismatch.text.contains("'here'") && mismatch.text.contains("'there'"), "{mismatch:?}");
    });
}

#[test]
fn a_check_that_does_anything_else_is_refused_with_the_reason() {
    while_waiting(|address| {
        let memory: Message<'_> = Message::Memory { address: 0, data: &[1; 64] };
        let cases = [
            (memory, "unexpected MEMORY"),
            (Message::DeviceState { device: 0, ends: false, data: &[1] }, "unexpected DEVICE_STATE"),
            (Control::Handover.into(), "unexpected HANDOVER"),
            (Control::End { memory_bytes: 0 }.into(), "unexpected END"),
        ];
        for (message, reason) in cases {
            let mut asking = Asking::fitting(address);
            asking.say(&message);
            let told = asking.refusal();
            assert!(told.contains(reason), "{told}");
        }
    });
}

#[test]
fn a_flood_is_cut_off_and_delays_no_sender() {
    while_waiting(|address| {
        let mut flooding = Asking::fitting(address);
        let padding = vec![0; CHUNK];
        for _ in 0..MAX_BYTES / CHUNK as u64 + 2 {
            flooding.say(&Message::Padding { data: &padding });
        }
        // Whether it can still read the reason depends on how much of its data is unread.
        let _ = flooding.receiver.next(soon());
        let mut asking = Asking::fitting(address);
        for id in 0..=MAX_QUESTIONS {
            asking.say(&Control::Ping { id }.into());
        }
        assert_eq!(asking.refusal(), "too much data for a check");
        // And one that is in the midst of it when the sender comes.
        let mut last = Asking::fitting(address);
        last.say(&Message::Padding { data: &padding });
    });
}

#[test]
fn of_too_many_checks_the_newest_is_told_that_the_destination_is_busy() {
    while_waiting(|address| {
        let others: Vec<_> = (0..MAX_CHECKS).map(|_| Asking::fitting(address)).collect();
        let told = Asking::new(address, DeviceIdentity::default()).refusal();
        assert!(told.starts_with("busy: "), "{told}");
        drop(others);
    });
}

#[test]
fn a_sender_ends_the_checks() {
    let mut asking = None;
    while_waiting(|address| asking = Some(Asking::fitting(address)));
    let told = asking.unwrap().refusal();
    assert!(told.starts_with("busy: "), "{told}");
}

#[test]
fn a_check_without_an_end_ends_with_its_time() {
    while_waiting(|address| {
        let began = std::time::Instant::now();
        assert_eq!(Asking::fitting(address).refusal(), "the check took too long");
        assert!(began.elapsed() >= CHECK_TIMEOUT);
    });
}

#[test]
fn a_listener_without_answers_refuses_checks_by_name() {
    let mut listener = listener();
    let address = listener.address().clone();
    let hello = Control::Hello(Offer::for_check(9, &BTreeSet::new(), &BTreeSet::new()));
    let channel = Arc::new(connect(&address, soon()).unwrap());
    Sender::new(channel.clone()).send_now(&hello.into(), soon()).unwrap();
    let waited = Listener::accept(&mut listener, Until::timeout(Duration::from_secs(1)));
    assert!(matches!(waited, Err(WaitError::TimedOut)));
    let Received::Message(Message::Control(Control::Failed(told))) =
        Receiver::new(channel).next(soon()).unwrap()
    else {
        panic!()
    };
    assert!(told.reason.contains("needs the feature 'check'"), "{told:?}");
}
