//! Migrations that end well, and what their sections hold.

use std::io::{Read, Write};

use whimbrel_engine::archive::{self, Restore};
use whimbrel_engine::embedded::{Loading, Part, Saving};
use whimbrel_user::{Device, DeviceSetup, Migratable, State};

use crate::decoder::{account, decode};
use crate::vmm::{LIMIT, MODELS, contents, loading, open, receive, saving, send, set, source, states};

#[test]
fn a_set_arrives_with_state_and_setup_and_the_source_is_left_stopped() {
    let mut saving = saving(source());
    let sections = send(&mut saving).unwrap();
    let mut loading = loading(set("there", 0, ""));
    let parts = receive(&mut loading, &sections).unwrap();
    assert_eq!(parts[0], Part::Begun);
    assert!(matches!(parts[1], Part::Round { number: 1, initial: false }), "{:?}", parts[1]);
    assert!(matches!(parts[10], Part::Round { number: 10, initial: true }), "{:?}", parts[10]);
    assert_eq!(parts[11], Part::Complete);

    loading.run().unwrap();
    saving.finish().unwrap();
    let (mut here, mut there) = (saving.into_devices(), loading.into_devices());
    assert_eq!(states(&mut here), [State::Stop; 3]);
    assert_eq!(states(&mut there), [State::Running; 3]);
    assert!(contents(&mut here) == contents(&mut there));
    let setup = there[0].save_setup().unwrap().unwrap();
    assert_eq!(setup.config_space()[4..6], [6, 0], "bus master");
}

#[test]
fn rounds_keep_to_their_limit_and_begin_with_initial_data() {
    let mut saving = saving(source());
    saving.start(std::io::sink()).unwrap();
    let left = saving.left().unwrap();
    assert!(left.initial > 0 && left.total >= left.initial + left.dirty, "{left:?}");
    for limit in [0, 1, 7, left.initial, LIMIT] {
        let before = saving.left().unwrap();
        let mut section = Vec::new();
        let after = saving.iterate(&mut section, limit).unwrap();
        assert!(section.len() as u64 <= limit + 3 * 32 + 32, "{limit}: {}", section.len());
        assert_eq!(after.initial, before.initial.saturating_sub(limit), "{limit}");
    }
    saving.abort().unwrap();
}

#[test]
fn sections_lie_between_others_of_the_vmm_and_not_a_byte_more_is_read() {
    let mut saving = saving(source());
    let sections = send(&mut saving).unwrap();
    let mut stream = Vec::new();
    for section in &sections {
        stream.write_all(section).unwrap();
        stream.write_all(b"the VMM's own").unwrap();
    }
    let mut loading = loading(set("there", 0, ""));
    let mut stream = &stream[..];
    for _ in &sections {
        loading.load_part(&mut stream).unwrap();
        let mut own = [0; 13];
        stream.read_exact(&mut own).unwrap();
        assert_eq!(&own, b"the VMM's own");
    }
    assert!(stream.is_empty());
}

#[test]
fn the_sections_together_are_a_stream_of_the_document_that_files_take_as_well() {
    let mut saving = saving(source());
    let stream = send(&mut saving).unwrap().concat();
    let account = account(&decode(&stream).unwrap()).unwrap();
    assert_eq!((account.rounds, account.devices.len()), (10, 3));
    let setup = DeviceSetup::parse(account.devices[0].setup.as_deref().unwrap()).unwrap();
    assert_eq!(setup.config_space()[4..6], [6, 0]);

    archive::verify(&stream[..]).unwrap();
    let mut there = set("there", 0, "");
    let borrowed = there.iter_mut().map(|device| &mut **device as &mut dyn Migratable);
    Restore::new(borrowed).read_from(&stream[..]).unwrap();
    saving.finish().unwrap();
    assert!(contents(&mut saving.into_devices()) == contents(&mut there));
}

#[test]
fn devices_of_a_paused_machine_are_not_started_on_either_side() {
    let mut devices = source();
    for device in &mut devices {
        device.set_state(State::Stop).unwrap();
    }
    let mut saving = saving(devices);
    let sections = send(&mut saving).unwrap();
    let mut loading = loading(set("there", 0, ""));
    receive(&mut loading, &sections).unwrap();
    loading.keep_stopped().unwrap();
    saving.finish().unwrap();
    let (mut here, mut there) = (saving.into_devices(), loading.into_devices());
    assert_eq!((states(&mut here), states(&mut there)), (vec![State::Stop; 3], vec![State::Stop; 3]));
    assert!(contents(&mut here) == contents(&mut there));

    let mut saving = crate::vmm::saving(here);
    send(&mut saving).unwrap();
    saving.abort().unwrap();
    assert_eq!(states(&mut saving.into_devices()), [State::Stop; 3], "as it was");
}

#[test]
fn devices_are_borrowed_or_owned_as_the_vmm_likes() {
    let (mut here, mut there) = (open(MODELS[1], "here", ""), open(MODELS[1], "there", ""));
    here.write_region(0, 7, &[0x42]).unwrap();
    let mut sections = [Vec::new(), Vec::new()];
    let mut saving = Saving::new(vec![&mut here]).unwrap();
    saving.start(&mut sections[0]).unwrap();
    saving.stop().unwrap();
    saving.complete(&mut sections[1]).unwrap();
    let mut loading = Loading::new(vec![&mut there as &mut dyn Migratable]).unwrap();
    for section in &sections {
        loading.load_part(&section[..]).unwrap();
    }
    loading.run().unwrap();
    saving.finish().unwrap();
    drop((saving, loading));
    let mut scratch = [0];
    there.read_region(0, 7, &mut scratch).unwrap();
    assert_eq!((scratch, here.state().unwrap()), ([0x42], State::Stop));
}

#[test]
fn a_call_out_of_order_is_refused_and_changes_nothing() {
    let mut saving = saving(source());
    let sink = std::io::sink;
    let early = "was called before the start";
    assert!(saving.stop().unwrap_err().to_string().contains(early));
    assert!(saving.iterate(sink(), 1).unwrap_err().to_string().contains(early));
    assert!(saving.complete(sink()).unwrap_err().to_string().contains(early));
    saving.start(sink()).unwrap();
    assert_eq!(saving.start(sink()).unwrap_err().to_string(), "start was called while the devices run");
    assert!(saving.finish().is_err(), "the devices run");
    saving.stop().unwrap();
    assert!(saving.iterate(sink(), 1).is_err() && saving.may_stop().is_err());
    assert!(saving.finish().is_err(), "not all has been sent");
    saving.complete(sink()).unwrap();
    saving.finish().unwrap();
    assert_eq!(saving.finish().unwrap_err().to_string(), "finish was called after the end");
    saving.abort().unwrap();
    assert_eq!(states(&mut saving.into_devices()), [State::Stop; 3], "they may run there");

    let mut loading = loading(set("there", 0, ""));
    assert_eq!(loading.run().unwrap_err().to_string(), "run was called before all state was loaded");
    assert!(loading.keep_stopped().is_err());
    assert_eq!(states(&mut loading.into_devices()), [State::Running; 3]);
}
