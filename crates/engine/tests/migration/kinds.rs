//! Devices that are not of a kind are refused before a byte of state moves.

use whimbrel_models::Model;
use whimbrel_user::{Local, Migratable, State};

use crate::support::engine::{Destination, Error, Outcome, Source};
use crate::support::wire::{frames, kind};
use crate::support::{Cut, migrate_between, proxy};

fn open(model: &str, name: &str) -> Vec<Box<dyn Migratable>> {
    vec![Box::new(Local::new(model.parse::<Model>().unwrap().open(name).unwrap()))]
}

#[test]
fn a_device_of_another_kind_is_refused_before_a_byte_of_state() {
    for (here, there) in [("serial", "accel"), ("accel", "serial")] {
        let what = format!("{here} to {there}");
        let (left, right, recording) = proxy(Cut::Never);
        let destination = Destination::new(open(there, "there"));
        let source = Source::new(open(here, "here"));
        let (mut sent, mut arrived) = migrate_between(source, destination, left, right);
        let (sent_error, received) = (sent.result.unwrap_err(), arrived.result.unwrap_err());
        assert!(matches!(sent_error.outcome, Outcome::Untouched), "{what}: {sent_error}");
        assert!(matches!(received, Error::Unfit(_)), "{what}: {received}");
        for text in [sent_error.to_string(), received.to_string()] {
            assert!(text.contains("'here'") && text.contains("'there'"), "{what}: {text}");
        }
        for device in [&mut sent.devices[0], &mut arrived.devices[0]] {
            assert_eq!(device.as_mut().unwrap().state().unwrap(), State::Running, "{what}");
        }
        let (from_source, _) = recording.end();
        let kinds: Vec<u16> = frames(&from_source).into_iter().map(|(kind, _)| kind).collect();
        assert_eq!(kinds[..2], [kind::HELLO, kind::TABLE], "{what}");
        assert!(!kinds.contains(&kind::DEVICE_STATE), "{what}: {kinds:?}");
    }
}
