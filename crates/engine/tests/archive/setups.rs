//! The setup of a PCI device in its file: configuration space and bus master come back with its state.

use std::os::fd::AsFd;

use rustix::event::{EventfdFlags, eventfd};
use whimbrel_engine::archive::{self, Form, Restore, Save};
use whimbrel_models::Model;
use whimbrel_user::{Device, DeviceSetup, Local, Migratable, State};

use crate::decoder::setup::{Interrupts, Setup, setup, written};
use crate::decoder::wire::{frames, of_device, stream};
use crate::decoder::{account, decode};

const CONFIG: u32 = 7;
const MSI: u32 = 1;
const COMMAND: u64 = 0x04;
/// Memory space alone, as after a reset.
const FRESH: [u8; 2] = [0x02, 0x00];
/// Memory space and bus master.
const ENABLED: [u8; 2] = [0x06, 0x00];

fn accel(name: &str) -> Local {
    let model: Model = "accel?state=4KiB&config=required".parse().unwrap();
    Local::new(model.open(name).unwrap())
}

fn command(device: &mut Local) -> [u8; 2] {
    let mut command = [0; 2];
    device.read_region(CONFIG, COMMAND, &mut command).unwrap();
    command
}

/// Two devices, the second of which has been set up.
fn saved() -> Vec<u8> {
    let (mut first, mut second) = (accel("first"), accel("second"));
    second.write_region(CONFIG, COMMAND, &ENABLED).unwrap();
    let mut file = Vec::new();
    Save::new([&mut first as &mut dyn Migratable, &mut second]).write_to(&mut file).unwrap();
    file
}

#[test]
fn each_device_gets_its_own_configuration_back() {
    let file = saved();
    let account = account(&decode(&file).unwrap()).unwrap();
    let of = |index: usize| DeviceSetup::parse(account.devices[index].setup.as_deref().unwrap()).unwrap();
    assert_eq!(of(0).config_space()[4..6], FRESH);
    assert_eq!(of(1).config_space()[4..6], ENABLED);
    let contents = archive::inspect(&file[..]);
    assert!(contents.needs.contains("setup") && contents.devices[1].setup_bytes > 64, "{contents:?}");

    let (mut first, mut second) = (accel("first"), accel("second"));
    Restore::new([&mut first as &mut dyn Migratable, &mut second]).read_from(&file[..]).unwrap();
    assert_eq!((command(&mut first), command(&mut second)), (FRESH, ENABLED));
}

#[test]
fn a_decoder_written_from_the_document_reads_and_writes_a_setup() {
    let mut device = accel("device");
    let eventfd = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    device.set_irq_triggers(MSI, 0, &[Some(eventfd.as_fd())]).unwrap();
    let mut file = Vec::new();
    Save::new([&mut device as &mut dyn Migratable]).write_to(&mut file).unwrap();
    let account = account(&decode(&file).unwrap()).unwrap();
    let bytes = account.devices[0].setup.as_deref().unwrap();
    let (read, engine) = (setup(bytes).unwrap(), DeviceSetup::parse(bytes).unwrap());
    assert_eq!(read.space, engine.config_space());
    assert_eq!(read.interrupts, [Interrupts { index: MSI, armed: 1, vectors: 1, masked: false }]);
    assert_eq!(written(&read), bytes);

    // By the document's numbers alone.
    let interrupts = [(1, 2, 4, true), (2, 1, 1, false)].map(|(index, armed, vectors, masked)| Interrupts {
        index,
        armed,
        vectors,
        masked,
    });
    let by_hand = Setup { space: (0..64).collect(), interrupts: interrupts.to_vec() };
    let parsed = DeviceSetup::parse(&written(&by_hand)).unwrap();
    assert_eq!(parsed.config_space(), by_hand.space);
    assert_eq!(parsed.to_bytes(), written(&by_hand));
}

/// Every byte counts, for both.
#[test]
fn the_decoder_and_the_library_refuse_the_same_setups() {
    let interrupts = [(1, 2, 4, true), (3, 1, 1, false)].map(|(index, armed, vectors, masked)| Interrupts {
        index,
        armed,
        vectors,
        masked,
    });
    let whole = written(&Setup { space: vec![7; 64], interrupts: interrupts.to_vec() });
    let mut taken = 0;
    for at in 0..whole.len() {
        assert!(DeviceSetup::parse(&whole[..at]).is_err() && setup(&whole[..at]).is_err(), "{at} bytes");
        for value in 0..=255 {
            let mut changed = whole.clone();
            changed[at] = value;
            let (ours, theirs) = (DeviceSetup::parse(&changed), setup(&changed));
            assert_eq!(ours.is_ok(), theirs.is_ok(), "byte {at} is {value}: {ours:?} {theirs:?}");
            taken += usize::from(ours.is_ok());
        }
    }
    // The whole space, and some numbers.
    assert!(taken > 64 * 256, "{taken}");
}

#[test]
fn a_setup_that_is_none_is_refused_and_leaves_nothing() {
    let file = saved();
    for setup in [&b"not a setup"[..], &vec![0xff; 65536]] {
        let payload = of_device(1, 0, setup);
        let mut changed = frames(&file);
        let at = changed.iter().rposition(|(kind, _)| *kind == 13).unwrap();
        changed[at].1 = &payload;
        let (mut first, mut second) = (accel("first"), accel("second"));
        let error = Restore::new([&mut first as &mut dyn Migratable, &mut second])
            .read_from(&stream(&changed)[..])
            .unwrap_err()
            .to_string();
        assert!(error.contains("the setup of device 1"), "{error}");
        for mut device in [first, second] {
            assert_eq!((command(&mut device), device.state().unwrap()), (FRESH, State::Running));
        }
    }
}

#[test]
fn a_raw_file_has_no_setup() {
    let mut device = accel("device");
    device.write_region(CONFIG, COMMAND, &ENABLED).unwrap();
    let mut file = Vec::new();
    archive::save(&mut device, &mut file, Form::Raw).unwrap();
    assert_eq!(command(&mut device), ENABLED);
    let mut other = accel("other");
    archive::restore(&mut other, &file[..], Form::Raw).unwrap();
    assert_eq!(command(&mut other), FRESH);
}
