//! The setup of a PCI device in its file: configuration space and bus master come back with its state.

use whimbrel_engine::archive::{self, Form, Restore, Save};
use whimbrel_models::Model;
use whimbrel_user::{Device, DeviceSetup, Local, Migratable, State};

use crate::decoder::wire::{frames, of_device, stream};
use crate::decoder::{account, decode};

const CONFIG: u32 = 7;
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
