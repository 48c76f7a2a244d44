//! Files of devices that migrate through a region, restored into others, into devices with migration v2, and from them.

use std::time::Duration;

use whimbrel_device::DeviceFile;
use whimbrel_device::wrap::migration_region::{Layout, Version};
use whimbrel_engine::archive::{self, Form};
use whimbrel_models::Model;
use whimbrel_user::{Device, Local, Migratable, State, region};

use crate::control::{At, Control};
use crate::decoder::wire::{frames, of_device, stream};
use crate::decoder::{account, decode};
use crate::device::{Shape, open_any};

/// A migration interface; a section carries so many bytes at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Interface {
    V2,
    Region(Version, u64),
}

use Interface::{Region, V2};

const ALL: [Interface; 3] = [V2, Region(Version::V1, 100), Region(Version::Draft, 100)];

const STATE: [u8; 7] = [7, 6, 5, 4, 3, 2, 1];

fn saved(interface: Interface) -> Vec<u8> {
    let (mut from, _, control) = with_state(interface);
    control.set_state(&STATE);
    let mut file = Vec::new();
    archive::save(&mut *from, &mut file, Form::Stream).unwrap();
    file
}

fn with_state(interface: Interface) -> (Box<dyn Device>, DeviceFile, Control) {
    let region = match interface {
        V2 => None,
        Region(version, room) => Some(Layout::trapped(version, room).unwrap()),
    };
    open_any("device", &Shape { size: STATE.len(), region, ..Shape::default() })
}

#[test]
fn the_state_of_another_model_is_refused_by_name_and_raw_by_the_driver() {
    let open = |name: &str| name.parse::<Model>().unwrap().open(name).unwrap().into_device();
    let file = open("legacy?state=3K");
    let mut here = region::adapt_as(Box::new(Local::new(file.clone())), Version::V1).unwrap();
    file.advance(Duration::ZERO);
    for (form, expected) in
        [(Form::Stream, "model is legacy, expected accel"), (Form::Raw, "write to data_fd: EINVAL")]
    {
        let mut saved = Vec::new();
        archive::save(&mut *here, &mut saved, form).unwrap();
        let mut there = Local::new(open("accel?state=3K"));
        let error = archive::restore(&mut there, &saved[..], form).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert_eq!(there.state().unwrap(), State::Running);
    }
}

#[test]
fn a_saved_state_is_restored_through_every_interface_whatever_it_was_saved_through() {
    for (from, to) in ALL.into_iter().flat_map(|from| ALL.into_iter().map(move |to| (from, to))) {
        let (mut device, _, control) = with_state(to);
        archive::restore(&mut *device, &saved(from)[..], Form::Stream).unwrap();
        assert_eq!(control.state(), STATE, "{from:?} to {to:?}");
    }
}

#[test]
fn a_file_says_what_its_device_spoke_and_how_its_state_is_divided() {
    for (interface, region, transactions) in [
        (V2, None, &[][..]),
        (Region(Version::V1, 5), Some("v1"), &[5, 5, 3]),
        (Region(Version::Draft, 100), Some("draft"), &[13]),
    ] {
        let file = saved(interface);
        let contents = archive::inspect(&file[..]);
        assert!(contents.complete, "{:?}", contents.problem);
        let device = &contents.devices[0];
        assert_eq!(device.identity.region.as_deref(), region);
        assert_eq!(device.identity.num_regions, 2, "the migration region is not counted");
        assert_eq!(device.transactions, transactions.len() as u64);
        assert_eq!(device.longest_transaction, transactions.iter().max().map_or(0, |size| *size as u64));
        assert_eq!(device.device_bytes, 13);
        let account = account(&decode(&file).unwrap()).unwrap();
        assert_eq!(account.devices[0].transactions, transactions);
    }
}

#[test]
fn a_v1_device_that_has_no_room_for_a_transaction_refuses_it_and_all_others_take_it() {
    let file = saved(Region(Version::V1, 10));
    for to in [V2, Region(Version::V1, 10), Region(Version::V1, 11), Region(Version::Draft, 3)] {
        let (mut device, _, control) = with_state(to);
        archive::restore(&mut *device, &file[..], Form::Stream).unwrap();
        assert_eq!(control.state(), STATE, "{to:?}");
    }
    let (mut device, _, control) = with_state(Region(Version::V1, 9));
    let error = archive::restore(&mut *device, &file[..], Form::Stream).unwrap_err();
    assert_eq!(
        error.to_string(),
        "device: a transaction of 10 bytes does not fit the 9 bytes of the destination's data section"
    );
    assert!(error.advice().is_some_and(|advice| advice.contains("data section")));
    assert!(control.is_fresh());
    assert_eq!(device.state().unwrap(), State::Running);
}

#[test]
fn a_state_that_nobody_has_divided_is_divided_by_the_room_there_is() {
    let (mut device, _, control) = with_state(Region(Version::V1, 4));
    archive::restore(&mut *device, &saved(V2)[..], Form::Stream).unwrap();
    assert_eq!(control.state(), STATE);
    let writes = control.requests().iter().filter(|at| **at == At::Write).count();
    assert_eq!(writes, 4, "13 bytes, at most 4 at a time");
}

/// A file with each byte of state in a frame of its own.
fn in_single_bytes(file: &[u8]) -> Vec<u8> {
    let mut single: Vec<(u16, Vec<u8>)> = Vec::new();
    for (kind, payload) in frames(file) {
        if kind != 7 {
            single.push((kind, payload.to_vec()));
            continue;
        }
        let (head, data) = payload.split_at(8);
        for (at, byte) in data.iter().enumerate() {
            let ends = u32::from(head[4] == 1 && at + 1 == data.len());
            single.push((7, of_device(0, ends, &[*byte])));
        }
    }
    stream(&single.iter().map(|(kind, payload)| (*kind, &payload[..])).collect::<Vec<_>>())
}

#[test]
fn a_transaction_of_many_frames_is_given_to_the_device_whole() {
    let (mut device, _, control) = with_state(Region(Version::V1, 10));
    let file = in_single_bytes(&saved(Region(Version::V1, 10)));
    archive::restore(&mut *device, &file[..], Form::Stream).unwrap();
    assert_eq!(control.state(), STATE);
    let taken = control.requests().iter().filter(|at| **at == At::Write).count();
    assert_eq!(taken, 2, "10 bytes and 3, as they were saved");
}

#[test]
fn a_last_transaction_without_an_end_is_refused_everywhere() {
    let whole = saved(Region(Version::V1, 10));
    let mut unended: Vec<(u16, Vec<u8>)> =
        frames(&whole).into_iter().map(|(kind, payload)| (kind, payload.to_vec())).collect();
    let last = unended.iter().rposition(|(kind, _)| *kind == 7).unwrap();
    unended[last].1[4] = 0;
    let file = stream(&unended.iter().map(|(kind, payload)| (*kind, &payload[..])).collect::<Vec<_>>());
    let expected = "the last 3 bytes of device state are a transaction without an end";
    assert!(archive::inspect(&file[..]).problem.unwrap().contains(expected));
    for to in ALL {
        let (mut device, _, control) = with_state(to);
        let error = archive::restore(&mut *device, &file[..], Form::Stream).unwrap_err().to_string();
        assert!(error.contains(expected), "{to:?}: {error}");
        assert!(control.is_fresh());
    }
}
