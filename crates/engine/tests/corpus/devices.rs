//! The devices that take a fuzzer's streams: one for each way in which state is loaded.

use std::sync::OnceLock;

use whimbrel_device::DeviceFile;
use whimbrel_engine::archive::{self, Save};
use whimbrel_engine::proto::identity::DeviceIdentity;
use whimbrel_models::accel::{Accel, AccelConfig};
use whimbrel_models::legacy::{Legacy, LegacyConfig};
use whimbrel_models::serial::{Serial, SerialConfig};
use whimbrel_user::{Device, Local, Migratable, SavingRead, State, Version, region};

/// Returns devices that run and are as after a reset: one with a state of a few bytes, a PCI device with a configuration
/// space, and one whose state comes in transactions.
pub(crate) fn devices() -> Vec<Box<dyn Migratable>> {
    let serial = DeviceFile::new("serial", |bus| Serial::new(SerialConfig::default(), bus));
    let config = AccelConfig::default().state_bytes(AccelConfig::MIN_STATE).needs_config(true);
    let accel = DeviceFile::try_new("accel", |bus| Accel::new(config, bus)).unwrap();
    let config = LegacyConfig::default().state_bytes(AccelConfig::MIN_STATE).section_bytes(128);
    let legacy = DeviceFile::try_new("legacy", |bus| Legacy::new(config, bus)).unwrap();
    let adapted: Box<dyn Device> = Box::new(Local::new(legacy));
    vec![
        Box::new(Local::new(serial)),
        Box::new(Local::new(accel)),
        region::adapt_as(adapted, Version::V1).unwrap(),
    ]
}

/// Returns the identities of the devices, which are always the same.
pub(crate) fn identities() -> Vec<DeviceIdentity> {
    static KNOWN: OnceLock<Vec<DeviceIdentity>> = OnceLock::new();
    let identities = || {
        let (mut devices, mut file) = (devices(), Vec::new());
        let borrowed = devices.iter_mut().map(|device| &mut **device as &mut dyn Migratable);
        Save::new(borrowed).write_to(&mut file).unwrap();
        archive::inspect(&file[..]).devices.into_iter().map(|device| device.identity).collect()
    };
    KNOWN.get_or_init(identities).clone()
}

/// Checks that all devices run, and hold no part of a state that was refused.
pub(crate) fn assert_fresh(devices: &mut [Box<dyn Migratable>]) {
    static FRESH: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    let states = || self::devices().iter_mut().map(|device| state(&mut **device)).collect();
    for (device, fresh) in devices.iter_mut().zip(FRESH.get_or_init(states)) {
        assert_eq!(device.state().unwrap(), State::Running, "{}", device.name());
        assert!(state(&mut **device) == *fresh, "{}: a refused state was kept", device.name());
    }
}

/// Returns the state of a device that runs, as its driver gives it. The device runs on.
pub(crate) fn state(device: &mut dyn Migratable) -> Vec<u8> {
    let mut data = device.set_state(State::StopCopy).unwrap().expect("a session");
    let (mut state, mut buffer) = (Vec::new(), [0; 4096]);
    while let SavingRead::Data(count) = data.read(&mut buffer).unwrap() {
        state.extend_from_slice(&buffer[..count]);
    }
    device.set_state(State::Running).unwrap();
    state
}
