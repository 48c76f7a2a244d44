//! The connection of a demo host to one of its devices: in its own process, or over a vfio-user socket.

use std::fmt;

use serde::{Deserialize, Serialize};
use whimbrel_device::WorkingDevice;
use whimbrel_models::accel::{
    ID, REGISTER_ID, REGISTER_STATE_BYTES, REGISTER_VERSION, REGISTERS_BYTES, VERSION,
};
use whimbrel_models::{AccelConfig, Model};
use whimbrel_uapi::pci::{
    VFIO_PCI_BAR0_REGION_INDEX, VFIO_PCI_BAR1_REGION_INDEX, VFIO_PCI_CONFIG_REGION_INDEX,
    VFIO_PCI_MSI_IRQ_INDEX, VFIO_PCI_MSIX_IRQ_INDEX,
};
use whimbrel_user::{Device, Local, Migratable, State, Version, region};
use whimbrel_vfio_user::{Client, ClientOptions};

use super::messages::Place;
use crate::failure::Failure;
use crate::model_text::ModelText;
use crate::target::region_version;

/// Interface, subclass and class of a 16550 serial controller, in their order in configuration space.
const SERIAL_CLASS: [u8; 3] = [0x02, 0x00, 0x07];
/// The same of an NVM Express controller.
const NVME_CLASS: [u8; 3] = [0x02, 0x08, 0x01];
/// Offset of the class in configuration space.
const CLASS: u64 = 0x09;
/// Size of a 16550's registers, in bytes.
const PORT_BYTES: u64 = 8;

/// A device's kind, which decides its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    /// A DMA engine with so many bytes of its own state.
    Engine { state_bytes: u64 },
    /// A serial card with so many ports.
    Serial { ports: u64 },
    /// A disk, which is an NVM Express controller.
    Disk,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kind::Engine { state_bytes } => write!(f, "a DMA engine with {state_bytes} bytes of own state"),
            Kind::Serial { ports: 1 } => f.write_str("a serial card with 1 port"),
            Kind::Serial { ports } => write!(f, "a serial card with {ports} ports"),
            Kind::Disk => f.write_str("a disk"),
        }
    }
}

/// A device with any number of users in this process.
pub(super) struct Attachment {
    way: Way,
    /// The version of the device's migration region, if it has one.
    version: Version,
    pub(super) kind: Kind,
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
                let model = parsed(model)?;
                let opened = model.open(name).map_err(|error| Failure::from_error(&error))?;
                (Way::Inside(opened), region_version(&model))
            }
            Place::Served { socket, model } => {
                let version = match model {
                    Some(model) => region_version(&parsed(model)?),
                    None => Version::V1,
                };
                (Way::Served(Client::connect(socket, &ClientOptions::default())?), version)
            }
        };
        let mut device = adapted(&way, version)?;
        let kind = kind(&mut *device)?;
        if let Way::Served(_) = way {
            device.reset()?;
            let state = device.state()?;
            if state != State::Running {
                let name = device.name();
                return Err(Failure::new(format!("{name}: state {state} after a reset, expected RUNNING")));
            }
        }
        Ok(Attachment { way, version, kind })
    }

    /// Another handle to the device.
    pub(super) fn device(&self) -> Result<Box<dyn Device>, Failure> {
        adapted(&self.way, self.version)
    }

    /// Returns whether the device can no longer be reached.
    pub(super) fn is_lost(&self) -> bool {
        match &self.way {
            Way::Inside(_) => false,
            Way::Served(client) => client.clone().info().is_err(),
        }
    }
}

fn parsed(model: &ModelText) -> Result<Model, Failure> {
    model.model().map_err(|error| Failure::from_error(&error))
}

fn adapted(way: &Way, version: Version) -> Result<Box<dyn Device>, Failure> {
    let device: Box<dyn Device> = match way {
        Way::Inside(model) => Box::new(Local::new(model.device().clone())),
        Way::Served(client) => Box::new(client.clone()),
    };
    Ok(region::adapt_as(device, version)?)
}

/// Checks that the device has what the demo's programs need, and returns its kind.
fn kind(device: &mut dyn Device) -> Result<Kind, Failure> {
    let name = device.name().to_string();
    let unfit = |why: String| {
        Failure::new(format!("{name}: the device does not suit the demo: {why}")).hint(
            "the demo drives the registers of an accel, a serial or an nvme: `whimbrel serve accel --socket PATH` \
             serves one",
        )
    };
    if device.migration_flags()?.is_none() {
        return Err(unfit("it does not support migration".to_string()));
    }
    let index = VFIO_PCI_BAR0_REGION_INDEX;
    let size = match device.region_info(index) {
        Ok(region) => region.size,
        Err(error) if error.errno().is_some() && device.info().is_ok() => {
            return Err(unfit(format!("it has no BAR 0 ({error})")));
        }
        Err(error) => return Err(error.into()),
    };
    if has_class(device, NVME_CLASS)? {
        return match device.irq_info(VFIO_PCI_MSIX_IRQ_INDEX)?.count {
            0..2 => Err(unfit("it has no MSI-X vector for a queue".to_string())),
            _ => Ok(Kind::Disk),
        };
    }
    if size == PORT_BYTES && has_class(device, SERIAL_CLASS)? {
        let second = device.region_info(VFIO_PCI_BAR1_REGION_INDEX)?.size == PORT_BYTES;
        return Ok(Kind::Serial { ports: 1 + u64::from(second) });
    }
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
    match u64::from_le_bytes(state_bytes) {
        state_bytes @ AccelConfig::MIN_STATE..=AccelConfig::MAX_STATE => Ok(Kind::Engine { state_bytes }),
        bytes => Err(unfit(format!("it reports an invalid size of its own state: {bytes} bytes"))),
    }
}

fn has_class(device: &mut dyn Device, expected: [u8; 3]) -> Result<bool, Failure> {
    let mut class = [0; 3];
    device.read_region(VFIO_PCI_CONFIG_REGION_INDEX, CLASS, &mut class)?;
    Ok(class == expected)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixed_device;

    #[test]
    fn a_device_that_does_not_suit_the_demo_is_named_with_the_reason() {
        let mut device = fixed_device::open();
        let failure = kind(&mut device).unwrap_err();
        let why = "fixed: the device does not suit the demo: it does not support migration";
        assert_eq!(failure.message(), why);
        assert!(failure.advice().unwrap().contains("`whimbrel serve accel --socket PATH`"));
    }

    #[test]
    fn every_model_is_told_by_its_registers() {
        let cases = [
            ("accel?state=2MiB", Kind::Engine { state_bytes: 2 << 20 }),
            ("legacy?state=64KiB", Kind::Engine { state_bytes: 64 << 10 }),
            ("serial", Kind::Serial { ports: 1 }),
            ("serial?ports=2", Kind::Serial { ports: 2 }),
            ("serial?answers=mtty", Kind::Serial { ports: 1 }),
            ("nvme?size=1MiB&queues=1", Kind::Disk),
        ];
        let folder = tempfile::tempdir().unwrap();
        for (model, kind) in cases {
            let text = ModelText::parse(model).unwrap();
            let text = if text.lacks_image() { text.with_image(folder.path().join("disk")) } else { text };
            let place = Place::Inside { model: text };
            assert_eq!(Attachment::open("x", &place).map(|opened| opened.kind).ok(), Some(kind), "{model}");
        }
    }
}
