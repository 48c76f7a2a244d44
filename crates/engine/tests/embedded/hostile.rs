//! Streams that are damaged, cut, foreign, or of other devices.

use whimbrel_user::{Migratable, State};

use crate::decoder::wire::{frames, of_device, stream};
use crate::vmm::{MODELS, assert_fresh, loading, open, saving, send, set, source, states};

fn sections() -> Vec<Vec<u8>> {
    send(&mut saving(source())).unwrap()
}

/// Loads parts of one stream until an error.
fn load(mut bytes: &[u8]) -> (Result<(), String>, Vec<Box<dyn Migratable>>) {
    let mut loading = loading(set("there", 0, ""));
    let result = loop {
        match loading.load_part(&mut bytes) {
            Ok(whimbrel_engine::embedded::Part::Complete) => break Ok(()),
            Ok(_) => {}
            Err(error) => break Err(error.to_string()),
        }
    };
    (result, loading.into_devices())
}

#[test]
fn a_stream_that_is_cut_or_damaged_anywhere_leaves_nothing() {
    let whole = sections().concat();
    for at in (0..whole.len()).step_by(997) {
        let (result, mut devices) = load(&whole[..at]);
        assert!(result.is_err(), "cut at {at}");
        assert_fresh(&mut devices, &format!("cut at {at}"));
        let mut damaged = whole.clone();
        damaged[at] ^= 4;
        let (result, mut devices) = load(&damaged);
        assert!(result.is_err(), "damaged at {at}");
        assert_fresh(&mut devices, &format!("damaged at {at}"));
    }
}

#[test]
fn other_devices_are_refused_before_they_are_touched() {
    let sections = sections();
    for (models, why) in [
        (vec![MODELS[1], MODELS[0], MODELS[2]], "model is accel, expected serial"),
        (vec![MODELS[0], MODELS[1]], "the source sends 3 devices"),
    ] {
        let device = |model: &&str| Box::new(open(model, "there", "arc *->*: EIO")) as Box<dyn Migratable>;
        let mut loading = loading(models.iter().map(device).collect());
        let error = loading.load_part(&sections[0][..]).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
        let states = states(&mut loading.into_devices());
        assert!(states.iter().all(|state| *state == State::Running), "{states:?}");
    }
}

#[test]
fn frames_that_such_a_stream_does_not_have_and_rounds_out_of_order_are_refused() {
    let whole = sections().concat();
    let frames = frames(&whole);
    let place = |kind: u16| frames.iter().position(|(of, _)| *of == kind).unwrap();
    let (round, end) = (place(9), place(8));
    let number = |number: u32| of_device(number, 0, &[]);
    let cases: [(usize, u16, Vec<u8>, &str); 6] = [
        (round, 9, number(2), "unexpected ROUND"),
        (round, 9, number(0), "unexpected ROUND"),
        (round, 5, vec![0; 16], "unexpected MEMORY"),
        (round, 17, vec![], "unexpected HANDOVER"),
        (round, 14, [&[1, 0, 0, 0, 1, 0, 0, 0][..], b"x"].concat(), "BLOB"),
        (end + 1, 9, number(11), "ROUND after DEVICE_END"),
    ];
    for (at, kind, payload, why) in cases {
        let mut changed = frames.clone();
        changed.insert(at, (kind, &payload));
        let (result, mut devices) = load(&stream(&changed));
        let error = result.unwrap_err();
        assert!(error.contains(why), "{why}: {error}");
        assert_fresh(&mut devices, why);
    }
}
