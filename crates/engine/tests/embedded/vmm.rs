//! A VMM's migration thread, as small as it can be.

use whimbrel_device::wrap::fault::Faults;
use whimbrel_engine::Error;
use whimbrel_engine::embedded::{Loading, Part, Saving};
use whimbrel_models::Model;
use whimbrel_user::{Device, Local, Migratable, SavingRead, State};

/// The models of a set: both migrate differently, and one is a PCI device with a setup.
pub(crate) const MODELS: [&str; 3] =
    ["accel?state=64KiB&config=required", "serial", "accel?state=4KiB&features=stop-copy,p2p"];

/// Bytes that a round sends at most.
pub(crate) const LIMIT: u64 = 20_000;

pub(crate) fn open(model: &str, name: impl Into<String>, faults: &str) -> Local {
    let faults: Faults = faults.parse().unwrap();
    Local::new(model.parse::<Model>().unwrap().open_with_faults(name, faults).unwrap())
}

/// The devices of one side, of which the one with this number has faults.
pub(crate) fn set(side: &str, failing: usize, faults: &str) -> Vec<Box<dyn Migratable>> {
    let device = |(index, model): (usize, &&str)| {
        let faults = if index == failing { faults } else { "" };
        Box::new(open(model, format!("{side}{index}"), faults)) as Box<dyn Migratable>
    };
    MODELS.iter().enumerate().map(device).collect()
}

/// Devices without faults, of which the source's have a state of their own.
pub(crate) fn source() -> Vec<Box<dyn Migratable>> {
    let mut first = open(MODELS[0], "here0", "");
    // Memory space and bus master.
    first.write_region(7, 4, &[6, 0]).unwrap();
    let mut second = open(MODELS[1], "here1", "");
    // The scratch register of its port.
    second.write_region(0, 7, &[0x5a]).unwrap();
    vec![Box::new(first), Box::new(second), Box::new(open(MODELS[2], "here2", ""))]
}

pub(crate) fn saving(devices: Vec<Box<dyn Migratable>>) -> Saving<Box<dyn Migratable>> {
    Saving::new(devices).unwrap()
}

pub(crate) fn loading(devices: Vec<Box<dyn Migratable>>) -> Loading<Box<dyn Migratable>> {
    Loading::new(devices).unwrap()
}

/// Sends everything, section by section, up to the moment at which the destination may run.
pub(crate) fn send(saving: &mut Saving<Box<dyn Migratable>>) -> Result<Vec<Vec<u8>>, Error> {
    let mut sections = vec![Vec::new()];
    saving.start(&mut sections[0])?;
    for _ in 0..10 {
        let mut section = Vec::new();
        saving.iterate(&mut section, LIMIT)?;
        sections.push(section);
    }
    assert!(saving.may_stop()?);
    saving.stop()?;
    let mut section = Vec::new();
    saving.complete(&mut section)?;
    sections.push(section);
    Ok(sections)
}

/// Loads all sections, and returns what each of them was.
pub(crate) fn receive(
    loading: &mut Loading<Box<dyn Migratable>>,
    sections: &[Vec<u8>],
) -> Result<Vec<Part>, Error> {
    sections.iter().map(|section| loading.load_part(&section[..])).collect()
}

pub(crate) fn states(devices: &mut [Box<dyn Migratable>]) -> Vec<State> {
    devices.iter_mut().map(|device| device.state().unwrap()).collect()
}

/// The whole state of each device, which stays in its state.
pub(crate) fn contents(devices: &mut [Box<dyn Migratable>]) -> Vec<Vec<u8>> {
    let contents = |device: &mut Box<dyn Migratable>| {
        let before = device.state().unwrap();
        let mut data = device.set_state(State::StopCopy).unwrap().unwrap();
        let (mut state, mut buffer) = (Vec::new(), vec![0; 1 << 16]);
        while let SavingRead::Data(count) = data.read(&mut buffer).unwrap() {
            state.extend_from_slice(&buffer[..count]);
        }
        device.set_state(before).unwrap();
        state
    };
    devices.iter_mut().map(contents).collect()
}

/// Nothing of a state that was refused is left in the devices, and they work.
pub(crate) fn assert_fresh(devices: &mut [Box<dyn Migratable>], what: &str) {
    assert_eq!(states(devices), [State::Running; 3], "{what}");
    assert!(contents(devices) == contents(&mut set("there", 0, "")), "{what}: a part of a state was kept");
}

/// The devices run on with the state that they had.
pub(crate) fn assert_runs_on(devices: &mut [Box<dyn Migratable>], before: &[Vec<u8>], what: &str) {
    assert_eq!(states(devices), [State::Running; 3], "{what}");
    assert!(contents(devices) == before, "{what}: the source lost its state");
}
