//! Files whose frames hold but whose contents are anything: a device holds a whole state afterwards, or none.

use proptest::prelude::*;
use whimbrel_engine::archive::{self, Form, Restore};
use whimbrel_user::{Migratable, State};

use crate::decoder::wire::{flagged, little, of_device, preamble, stream};
use crate::decoder::{account, decode};
use crate::device::{Shape, open};

fn shape() -> Shape {
    Shape { size: 2, initial: 0, ..Shape::default() }
}

const HELLO: &[u8] =
    br#"{"migration":"00000000000000000000000000000000","versions":[2],"features":["blobs","setup"]}"#;
const DEVICE: &str = r#"{"name":"a","flags":1,"num_regions":2,"num_irqs":0,"migration_flags":7}"#;

/// The driver's own bytes of the state 7, 8.
const IMAGE: [u8; 8] = [0xcc, 2, 0, 0, 0, 7, 8, 225];

fn table(devices: usize) -> Vec<u8> {
    let devices = vec![DEVICE; devices].join(",");
    format!(r#"{{"devices":[{devices}],"blobs":[{{"name":"cpu","version":1}}]}}"#).into_bytes()
}

fn check_everything_that_reads(bytes: &[u8]) {
    let (mut one, first) = open("one", &shape());
    let (mut two, second) = open("two", &shape());
    let guest = Loads;
    let both = Restore::new([&mut one as &mut dyn Migratable, &mut two]).guest(guest).read_from(bytes);
    let states = [first.state(), second.state()];
    match both {
        Ok(_) => assert_eq!(states, [[7, 8], [7, 8]]),
        Err(error) => assert_eq!(states, [[0, 0], [0, 0]], "{error}"),
    }
    assert_eq!((one.state().unwrap(), two.state().unwrap()), (State::Running, State::Running));
    let (mut alone, control) = open("alone", &shape());
    match archive::restore(&mut alone, bytes, Form::Stream) {
        Ok(_) => assert_eq!(control.state(), [7, 8]),
        Err(error) => assert!(control.is_fresh(), "{error}"),
    }
    let contents = archive::inspect(bytes);
    assert_eq!(contents.complete, contents.problem.is_none());
    assert!(contents.file_bytes <= bytes.len() as u64);
    // What the engine takes the document allows.
    if contents.complete {
        account(&decode(bytes).unwrap()).unwrap();
    }
}

/// Takes a blob, whatever is in it.
struct Loads;

impl whimbrel_engine::Guest for Loads {
    fn loads(&self) -> Vec<whimbrel_engine::BlobName> {
        vec![whimbrel_engine::BlobName { name: "cpu".into(), version: 1 }]
    }
}

/// Kind and payload of a frame that has a place in a file, or nearly.
fn any_frame() -> impl Strategy<Value = (u16, Vec<u8>)> {
    let device = 0..3u32;
    let count = prop_oneof![Just(8u64), Just(0), any::<u64>()];
    let blob =
        |last: bool, data: Vec<u8>| [&[1, 0, 0, 0, 3, 0, u8::from(last), 0][..], b"cpu", &data].concat();
    prop_oneof![
        6 => device.clone().prop_map(|device| (7, of_device(device, 0, &IMAGE))),
        2 => (device.clone(), proptest::collection::vec(any::<u8>(), 0..9))
            .prop_map(|(device, data)| (7, of_device(device, 1, &data))),
        6 => (device.clone(), count.clone()).prop_map(|(device, total)| (8, of_device(device, 0, &little(&[total])))),
        3 => (any::<bool>(), any::<Vec<u8>>()).prop_map(move |(last, data)| (14, blob(last, data))),
        1 => device.prop_map(|device| (13, of_device(device, 0, b"setup"))),
        3 => prop_oneof![Just(0u64), count].prop_map(|total| (15, little(&[total]))),
        1 => (1..24u16, any::<Vec<u8>>()),
        1 => Just((17, Vec::new())),
        1 => Just((1, HELLO.to_vec())),
        1 => (0..3usize).prop_map(|devices| (3, table(devices))),
    ]
}

#[test]
fn the_image_is_a_state() {
    for devices in [1, 2] {
        let mut frames = vec![(1, HELLO.to_vec()), (3, table(devices))];
        for device in 0..devices as u32 {
            frames.push((7, of_device(device, 0, &IMAGE)));
            frames.push((8, of_device(device, 0, &little(&[8]))));
        }
        frames.push((14, [&[1, 0, 0, 0, 3, 0, 1, 0][..], b"cpu!"].concat()));
        frames.push((15, little(&[0])));
        let file = stream(&frames.iter().map(|(kind, payload)| (*kind, &payload[..])).collect::<Vec<_>>());
        assert_eq!(archive::inspect(&file[..]).problem, None);
        check_everything_that_reads(&file);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn arbitrary_bytes_are_taken_by_nobody(bytes: Vec<u8>, after_preamble: bool) {
        let start = if after_preamble { preamble(2, 0) } else { Vec::new() };
        check_everything_that_reads(&[start, bytes].concat());
    }

    #[test]
    fn frames_in_any_order_leave_whole_states_or_none(
        frames in proptest::collection::vec(any_frame(), 0..12),
        flags in prop_oneof![Just(0u16), any::<u16>()],
        devices in 0..3usize,
    ) {
        let mut bytes = preamble(2, 0);
        bytes.extend(flagged(1, flags, 0, HELLO));
        bytes.extend(flagged(3, flags, 1, &table(devices)));
        for (sequence, (kind, payload)) in (2..).zip(&frames) {
            bytes.extend(flagged(*kind, flags, sequence, payload));
        }
        check_everything_that_reads(&bytes);
    }
}
