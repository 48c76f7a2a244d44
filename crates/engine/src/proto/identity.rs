//! The identity of a device, as sent by the source, and the check whether another device can load its state.

use serde::{Deserialize, Serialize};
use whimbrel_protocol::text::printable;
use whimbrel_uapi::device::DeviceInfoFlags;

use super::check::Code;

/// The longest name of a device, in characters.
const MAX_NAME: usize = 100;
/// The longest name of a model, in characters.
const MAX_MODEL: usize = 64;
/// The longest name of a version of the migration region, in characters.
const MAX_REGION: usize = 16;

/// A device's identity. The destination compares it with its own device's before any state is sent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceIdentity {
    /// The name at the source, for operators.
    pub name: String,
    /// `vfio_device_info.flags`.
    pub flags: u32,
    /// `vfio_device_info.num_regions`, a migration region not counted.
    pub num_regions: u32,
    /// `vfio_device_info.num_irqs`.
    pub num_irqs: u32,
    /// `vfio_device_feature_migration.flags`.
    pub migration_flags: u64,
    /// The identity in PCI configuration space, of a PCI device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pci: Option<PciIdentity>,
    /// The name of the implementation, given by the driver or the back end, such as a model's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The version of the state's format, if the driver has one. A newer driver accepts older state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_version: Option<u32>,
    /// Compatibility data of the driver or the owner, in hexadecimal digits. It must be equal on both sides. May be
    /// empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub compatibility: String,
    /// `v1` or `draft`, if the device migrates through a region of that version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Set if the state comes in transactions whose ends are marked.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub transactions: bool,
}

/// The identity of a PCI device, from its configuration space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciIdentity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Subsystem vendor ID.
    pub subsystem_vendor: u16,
    /// Subsystem ID.
    pub subsystem_device: u16,
    /// Class code: base class, subclass and programming interface. 24 bits.
    pub class: u32,
    /// Revision ID. It may differ.
    pub revision: u8,
}

/// The reason why a device cannot load another one's state.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the source's device '{source_name}' does not fit the destination's '{destination_name}': {} is {theirs}, expected {ours}",
    property(*.code)
)]
#[non_exhaustive]
pub struct Difference {
    /// The property that differs.
    pub code: Code,
    /// The device's name at the source.
    pub source_name: String,
    /// The device's name at the destination.
    pub destination_name: String,
    /// The source's value.
    pub theirs: String,
    /// The destination's value.
    pub ours: String,
}

impl DeviceIdentity {
    /// Checks that the destination's device `here` can load the state of this one, as far as that is known without the
    /// state. Only the driver can validate the state itself.
    pub fn fits(&self, here: &DeviceIdentity) -> Result<(), Difference> {
        self.differences(here).into_iter().next().map_or(Ok(()), Err)
    }

    /// Returns every difference that prevents the destination's device `here` from loading the state of this one.
    pub fn differences(&self, here: &DeviceIdentity) -> Vec<Difference> {
        // In the same form as the one that arrived.
        let here = &here.for_people();
        let mut found = Vec::new();
        let mut compare = |code: Code, theirs: String, ours: String| {
            let is_equal = theirs == ours;
            if !is_equal {
                found.push(self.difference(code, &theirs, &ours, here));
            }
            is_equal
        };
        compare(Code::DeviceKind, kind(self.flags), kind(here.flags));
        // Both sides know the model, whose name says more than the number of regions.
        let mut has_same_model = false;
        if let (Some(theirs), Some(ours)) = (&self.model, &here.model) {
            has_same_model = compare(Code::DeviceModel, theirs.clone(), ours.clone());
        }
        if let (Some(theirs), Some(ours)) = (self.pci, here.pci) {
            let pair = |vendor: u16, device: u16| format!("{vendor:04x}:{device:04x}");
            let id = |pci: PciIdentity| pair(pci.vendor, pci.device);
            compare(Code::PciId, id(theirs), id(ours));
            let subsystem = |pci: PciIdentity| pair(pci.subsystem_vendor, pci.subsystem_device);
            compare(Code::PciSubsystemId, subsystem(theirs), subsystem(ours));
            let class = |pci: PciIdentity| format!("{:06x}", pci.class);
            compare(Code::PciClass, class(theirs), class(ours));
        }
        let number = |of: u32| of.to_string();
        compare(Code::RegionCount, number(self.num_regions), number(here.num_regions));
        compare(Code::InterruptCount, number(self.num_irqs), number(here.num_irqs));
        // The states of different models have nothing in common.
        let has_other_model = self.model.is_some() && here.model.is_some() && !has_same_model;
        if let (Some(theirs), Some(ours)) = (self.state_version, here.state_version)
            && theirs > ours
            && !has_other_model
        {
            compare(Code::StateVersion, number(theirs), format!("at most {ours}"));
        }
        let (theirs, ours) = (&self.compatibility, &here.compatibility);
        // A device whose driver gives no model cannot be compared.
        if has_same_model && !theirs.eq_ignore_ascii_case(ours) {
            let differs = |(left, right): &(u8, u8)| !left.eq_ignore_ascii_case(right);
            let same = theirs.bytes().zip(ours.bytes()).take_while(|pair| !differs(pair)).count();
            compare(Code::CompatibilityData, excerpt(theirs, same), excerpt(ours, same));
        }
        found
    }

    fn difference(&self, code: Code, theirs: &str, ours: &str, here: &DeviceIdentity) -> Difference {
        let shown = |text: &str| printable(text, 100);
        Difference {
            code,
            source_name: shown(&self.name),
            destination_name: here.name.clone(),
            theirs: shown(theirs),
            ours: shown(ours),
        }
    }

    /// Returns the kind of device for people and scripts: the name of its model, or its PCI ID.
    pub fn kind(&self) -> Option<String> {
        let pci = || self.pci.map(|pci| format!("pci {:04x}:{:04x}", pci.vendor, pci.device));
        self.model.as_deref().map(|model| printable(model, MAX_MODEL)).or_else(pci)
    }

    /// Returns the identity with its texts made safe to display.
    pub(super) fn for_people(&self) -> DeviceIdentity {
        let shown = |text: &Option<String>, most| text.as_deref().map(|text| printable(text, most));
        DeviceIdentity {
            name: printable(&self.name, MAX_NAME),
            model: shown(&self.model, MAX_MODEL),
            region: shown(&self.region, MAX_REGION),
            ..self.clone()
        }
    }
}

/// The name of the property that a code is of.
const fn property(code: Code) -> &'static str {
    match code {
        Code::DeviceKind => "kind",
        Code::DeviceModel => "model",
        Code::PciId => "PCI ID",
        Code::PciSubsystemId => "PCI subsystem ID",
        Code::PciClass => "PCI class",
        Code::RegionCount => "number of regions",
        Code::InterruptCount => "number of interrupt indexes",
        Code::StateVersion => "version of the state",
        Code::CompatibilityData => "compatibility data",
        other => other.name(),
    }
}

/// The part of compatibility data that holds its first difference from other data, after `same` equal digits.
fn excerpt(digits: &str, same: usize) -> String {
    const SHOWN: usize = 32;
    let start = if same < SHOWN { 0 } else { same - SHOWN / 2 };
    let shown: String = digits.chars().skip(start).take(2 * SHOWN).collect();
    let before = if start > 0 { ".." } else { "" };
    let after = if start + 2 * SHOWN < digits.len() { ".." } else { "" };
    if digits.is_empty() { "none".to_string() } else { format!("{before}{shown}{after}") }
}

/// The kind of device that the flags name.
fn kind(flags: u32) -> String {
    let kind = DeviceInfoFlags::from_bits_retain(flags) - DeviceInfoFlags::RESET - DeviceInfoFlags::CAPS;
    let names: Vec<&str> = kind.iter_names().map(|(name, _)| name).collect();
    let unknown = kind.bits() & !DeviceInfoFlags::all().bits();
    match (names.is_empty(), unknown) {
        (true, 0) => "none".to_string(),
        (true, unknown) => format!("{unknown:#x}"),
        (false, 0) => names.join("|"),
        (false, unknown) => format!("{}|{unknown:#x}", names.join("|")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nic() -> DeviceIdentity {
        DeviceIdentity {
            name: "nic0".into(),
            flags: (DeviceInfoFlags::PCI | DeviceInfoFlags::RESET).bits(),
            num_regions: 9,
            num_irqs: 5,
            migration_flags: 7,
            pci: Some(PciIdentity {
                vendor: 0x15b3,
                device: 0x101e,
                class: 0x02_0000,
                ..PciIdentity::default()
            }),
            model: Some("mlx5".into()),
            state_version: Some(3),
            compatibility: "0a0b".into(),
            ..DeviceIdentity::default()
        }
    }

    #[test]
    fn names_revisions_and_capabilities_may_differ() {
        let mut here = nic();
        here.name = "nic1".into();
        here.flags = (DeviceInfoFlags::PCI | DeviceInfoFlags::CAPS).bits();
        here.migration_flags = 1;
        here.pci.as_mut().unwrap().revision = 2;
        here.region = Some("v1".into());
        here.state_version = Some(4);
        assert_eq!(nic().fits(&here), Ok(()));
    }

    #[test]
    fn what_one_side_does_not_know_is_not_compared() {
        let here = DeviceIdentity { pci: None, model: None, state_version: None, ..nic() };
        assert_eq!(nic().fits(&here), Ok(()));
        assert_eq!(here.fits(&nic()), Ok(()));
    }

    #[test]
    fn every_other_difference_is_told_with_both_devices_and_both_values() {
        let with = |change: fn(&mut DeviceIdentity)| {
            let mut here = DeviceIdentity { name: "nic1".into(), ..nic() };
            change(&mut here);
            here
        };
        let cases = [
            (with(|here| here.flags = DeviceInfoFlags::PLATFORM.bits()), "kind is PCI, expected PLATFORM"),
            (with(|here| here.model = Some("ice".into())), "model is mlx5, expected ice"),
            (with(|here| here.pci.as_mut().unwrap().device = 1), "PCI ID is 15b3:101e, expected 15b3:0001"),
            (
                with(|here| here.pci.as_mut().unwrap().subsystem_vendor = 1),
                "PCI subsystem ID is 0000:0000, expected 0001:0000",
            ),
            (with(|here| here.pci.as_mut().unwrap().class = 1), "PCI class is 020000, expected 000001"),
            (with(|here| here.num_regions = 8), "number of regions is 9, expected 8"),
            (with(|here| here.num_irqs = 4), "number of interrupt indexes is 5, expected 4"),
            (with(|here| here.state_version = Some(2)), "version of the state is 3, expected at most 2"),
            (with(|here| here.compatibility.clear()), "compatibility data is 0a0b, expected none"),
        ];
        for (here, why) in cases {
            let text = nic().fits(&here).unwrap_err().to_string();
            assert!(text.ends_with(why) && text.contains("'nic0'") && text.contains("'nic1'"), "{text}");
        }
    }

    #[test]
    fn long_compatibility_data_is_shown_where_it_differs_and_case_does_not_count() {
        let with = |data: String| DeviceIdentity { compatibility: data, ..nic() };
        let theirs = with(format!("{}{}", "0".repeat(500), "1".repeat(500)));
        let ours = with(format!("{}{}", "0".repeat(500), "2".repeat(500)));
        let text = theirs.fits(&ours).unwrap_err().to_string();
        assert!(text.contains("..00") && text.contains("0011") && text.contains("0022"), "{text}");
        assert_eq!(with("0a0b".into()).fits(&with("0A0B".into())), Ok(()));
    }

    #[test]
    fn texts_of_a_peer_cannot_control_a_terminal() {
        let hostile = DeviceIdentity { name: "\u{1b}[2J".into(), model: Some("\u{7}".into()), ..nic() };
        let text = hostile.fits(&nic()).unwrap_err().to_string();
        assert!(!text.contains('\u{1b}') && !text.contains('\u{7}'), "{text}");
    }
}
