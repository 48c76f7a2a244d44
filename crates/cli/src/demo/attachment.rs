//! The connection of a demo host to its device: in its own process, or over a vfio-user socket.

use whimbrel_device::WorkingDevice;
use whimbrel_models::accel::{
    ID, REGISTER_ID, REGISTER_STATE_BYTES, REGISTER_VERSION, REGISTERS_BYTES, VERSION,
};
use whimbrel_models::{AccelConfig, Model};
use whimbrel_uapi::pci::{VFIO_PCI_BAR0_REGION_INDEX, VFIO_PCI_MSI_IRQ_INDEX};
use whimbrel_user::{Device, Local, Migratable, State, Version, region};
use whimbrel_vfio_user::{Client, ClientOptions};

use super::messages::Place;
use crate::failure::Failure;
use crate::target::region_version;

/// A device with any number of users in this process.
pub(super) struct Attachment {
    way: Way,
    /// The version of the device's migration region, if it has one.
    version: Version,
    /// Bytes of the device's own state.
    pub(super) state_bytes: u64,
}

enum Way {
    /// Keeps the device at work.
    Inside(WorkingDevice),
    Served(Client),
}

impl Attachment {
    /// Opens the device and checks that it suits the demo. `name` is for a device in this process; a served device may
    /// have been used before, and is reset.
    pub(super) fn open(name: &str, place: &Place) -> Result<Attachment, Failure> {
        let (way, version) = match place {
            Place::Inside { model } => {
                let model = parse(model)?;
                let opened = model.open(name).map_err(|error| Failure::from_error(&error))?;
                (Way::Inside(opened), region_version(&model))
            }
            Place::Served { socket, model } => {
                let version = match model {
                    Some(model) => region_version(&parse(model)?),
                    None => Version::V1,
                };
                (Way::Served(Client::connect(socket, &ClientOptions::default())?), version)
            }
        };
        let mut attachment = Attachment { way, version, state_bytes: 0 };
        let mut device = attachment.device()?;
        attachment.state_bytes = check(&mut *device)?;
        if let Way::Served(_) = attachment.way {
            device.reset()?;
            let state = device.state()?;
            if state != State::Running {
                let name = device.name();
                return Err(Failure::new(format!("{name}: state {state} after a reset, expected RUNNING")));
            }
        }
        Ok(attachment)
    }

    /// Another handle to the device.
    pub(super) fn device(&self) -> Result<Box<dyn Device>, Failure> {
        let device: Box<dyn Device> = match &self.way {
            Way::Inside(model) => Box::new(Local::new(model.device().clone())),
            Way::Served(client) => Box::new(client.clone()),
        };
        Ok(region::adapt_as(device, self.version)?)
    }

    /// Returns whether the device can no longer be reached.
    pub(super) fn is_lost(&self) -> bool {
        match &self.way {
            Way::Inside(_) => false,
            Way::Served(client) => client.clone().info().is_err(),
        }
    }
}

fn parse(model: &str) -> Result<Model, Failure> {
    model.parse().map_err(|error| Failure::from_error(&error))
}

/// Checks that the device has what the demo's program needs, and returns the size of its own state, in bytes.
fn check(device: &mut dyn Device) -> Result<u64, Failure> {
    let name = device.name().to_string();
    let unfit = |why: String| {
        Failure::new(format!("{name}: the device does not suit the demo: {why}")).hint(
            "the demo drives the registers of an accel: `whimbrel serve accel --socket PATH` serves one",
        )
    };
    let index = VFIO_PCI_BAR0_REGION_INDEX;
    let size = match device.region_info(index) {
        Ok(region) => region.size,
        Err(error) if error.errno().is_some() && device.info().is_ok() => {
            return Err(unfit(format!("it has no BAR 0 ({error})")));
        }
        Err(error) => return Err(error.into()),
    };
    if size < REGISTERS_BYTES {
        return Err(unfit(format!("BAR 0 has {size} bytes, expected at least {REGISTERS_BYTES}")));
    }
    let (mut id, mut version, mut state_bytes) = ([0; 4], [0; 4], [0; 8]);
    device.read_region(index, REGISTER_ID, &mut id)?;
    device.read_region(index, REGISTER_VERSION, &mut version)?;
    device.read_region(index, REGISTER_STATE_BYTES, &mut state_bytes)?;
    let (id, version) = (u32::from_le_bytes(id), u32::from_le_bytes(version));
    if (id, version) != (ID, VERSION) {
        return Err(unfit(format!(
            "BAR 0 has id {id:#010x} and version {version}, expected {ID:#010x} and {VERSION}"
        )));
    }
    if device.irq_info(VFIO_PCI_MSI_IRQ_INDEX)?.count == 0 {
        return Err(unfit("it has no MSI".to_string()));
    }
    if device.migration_flags()?.is_none() {
        return Err(unfit("it does not support migration".to_string()));
    }
    match u64::from_le_bytes(state_bytes) {
        bytes @ AccelConfig::MIN_STATE..=AccelConfig::MAX_STATE => Ok(bytes),
        bytes => Err(unfit(format!("it reports an invalid size of its own state: {bytes} bytes"))),
    }
}
