//! The capabilities of a device and of its regions, for scripts and for people.

use serde_json::{Value, json};
use whimbrel_uapi::device::{
    PciAtomicFlags, VFIO_REGION_SUBTYPE_GFX_EDID, VFIO_REGION_SUBTYPE_MIGRATION_DEPRECATED,
    VFIO_REGION_TYPE_GFX, VFIO_REGION_TYPE_MIGRATION_DEPRECATED,
};
use whimbrel_user::{Capability, DeviceCapability};

use super::bit_names;
use crate::output;

/// A capability of a region, for scripts.
pub(super) fn of_region(capability: &Capability) -> Value {
    match capability {
        Capability::SparseMmap(areas) => json!({
            "name": "SPARSE_MMAP",
            "areas": areas
                .iter()
                .map(|area| json!({ "offset": area.offset, "size": area.size }))
                .collect::<Vec<_>>(),
        }),
        Capability::Type { region_type, subtype } => {
            json!({ "name": "TYPE", "type": region_type, "subtype": subtype })
        }
        Capability::MsixMappable => json!({ "name": "MSIX_MAPPABLE" }),
        Capability::Nvlink2Ssatgt { tgt } => json!({ "name": "NVLINK2_SSATGT", "tgt": tgt }),
        Capability::Nvlink2Lnkspd { link_speed } => {
            json!({ "name": "NVLINK2_LNKSPD", "link_speed": link_speed })
        }
        Capability::Other { id, version, data } => other_capability(*id, *version, data),
        _ => json!({ "name": "UNKNOWN" }),
    }
}

/// A capability of a device, for scripts.
pub(super) fn of_device(capability: &DeviceCapability) -> Value {
    match capability {
        DeviceCapability::ZpciBase(base) => json!({
            "name": "ZPCI_BASE",
            "start_dma": base.start_dma,
            "end_dma": base.end_dma,
            "pchid": base.pchid,
            "vfn": base.vfn,
            "fmb_length": base.fmb_length,
            "pft": base.pft,
            "gid": base.gid,
            "fh": base.fh,
            "ccdf_err_length": base.ccdf_err_length,
        }),
        DeviceCapability::ZpciGroup(group) => json!({
            "name": "ZPCI_GROUP",
            "dasm": group.dasm,
            "msi_addr": group.msi_addr,
            "flags": group.flags.bits(),
            "mui": group.mui,
            "noi": group.noi,
            "maxstbl": group.maxstbl,
            "version": group.version,
            "imaxstbl": group.imaxstbl,
        }),
        DeviceCapability::ZpciUtil(text) => json!({ "name": "ZPCI_UTIL", "ebcdic": hex(text) }),
        DeviceCapability::ZpciPfip(path) => json!({ "name": "ZPCI_PFIP", "path": hex(path) }),
        DeviceCapability::PciAtomicComp(flags) => json!({
            "name": "PCI_ATOMIC_COMP",
            "flags": bit_names(
                flags.iter_names().map(|(name, _)| name),
                flags.bits() & !PciAtomicFlags::all().bits(),
            ),
        }),
        DeviceCapability::Other { id, version, data } => other_capability(*id, *version, data),
        _ => json!({ "name": "UNKNOWN" }),
    }
}

fn other_capability(id: u16, version: u16, data: &[u8]) -> Value {
    json!({ "name": "OTHER", "id": id, "version": version, "bytes": data.len() })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A capability for people, from the form for scripts.
pub(super) fn text(capability: &Value) -> String {
    let number = |key: &str| capability[key].as_u64().unwrap_or_default();
    match capability["name"].as_str().unwrap_or_default() {
        "SPARSE_MMAP" => {
            let areas = capability["areas"].as_array().into_iter().flatten();
            let areas = areas.map(|area| {
                let number = |key: &str| area[key].as_u64().unwrap_or_default();
                format!("{} at {:#x}", output::bytes(number("size")), number("offset"))
            });
            format!("SPARSE_MMAP: {}", output::names(areas))
        }
        "TYPE" => {
            let (kind, subtype) = (number("type"), number("subtype"));
            let is = |of_type: u32, of_subtype: u32| {
                kind == u64::from(of_type) && subtype == u64::from(of_subtype)
            };
            let what = if is(VFIO_REGION_TYPE_MIGRATION_DEPRECATED, VFIO_REGION_SUBTYPE_MIGRATION_DEPRECATED)
            {
                " (migration v1)"
            } else if is(VFIO_REGION_TYPE_GFX, VFIO_REGION_SUBTYPE_GFX_EDID) {
                " (EDID)"
            } else {
                ""
            };
            format!("TYPE: type {kind:#x}, subtype {subtype:#x}{what}")
        }
        "ZPCI_BASE" => format!(
            "ZPCI_BASE: function {:#x}.{}, type {}, group {}, DMA {:#x} to {:#x}",
            number("pchid"),
            number("vfn"),
            number("pft"),
            number("gid"),
            number("start_dma"),
            number("end_dma")
        ),
        "ZPCI_GROUP" => format!(
            "ZPCI_GROUP: PCI version {}, {} MSIs at {:#x}, stores of {} bytes",
            number("version"),
            number("noi"),
            number("msi_addr"),
            number("maxstbl")
        ),
        "ZPCI_UTIL" => format!("ZPCI_UTIL: {}", capability["ebcdic"].as_str().unwrap_or_default()),
        "ZPCI_PFIP" => format!("ZPCI_PFIP: {}", capability["path"].as_str().unwrap_or_default()),
        "PCI_ATOMIC_COMP" => {
            let flags = capability["flags"].as_array().into_iter().flatten();
            format!("PCI_ATOMIC_COMP: {}", output::names(flags.filter_map(Value::as_str)))
        }
        "NVLINK2_SSATGT" => format!("NVLINK2_SSATGT: {:#x}", number("tgt")),
        "NVLINK2_LNKSPD" => format!("NVLINK2_LNKSPD: {:#x}", number("link_speed")),
        "OTHER" => {
            format!("id {}, version {}, {} bytes", number("id"), number("version"), number("bytes"))
        }
        name => name.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use whimbrel_protocol::info::ZpciBase;
    use whimbrel_user::MmapArea;

    use super::*;

    #[test]
    fn capabilities_are_told_by_what_they_mean() {
        let cases = [
            (Capability::MsixMappable, "MSIX_MAPPABLE"),
            (Capability::Type { region_type: 3, subtype: 1 }, "TYPE: type 0x3, subtype 0x1 (migration v1)"),
            (Capability::Type { region_type: 1, subtype: 1 }, "TYPE: type 0x1, subtype 0x1 (EDID)"),
            (Capability::SparseMmap(vec![MmapArea::new(0x1000, 0x2000)]), "SPARSE_MMAP: 8.00 KiB at 0x1000"),
            (Capability::Nvlink2Ssatgt { tgt: 0x200 }, "NVLINK2_SSATGT: 0x200"),
            (Capability::Nvlink2Lnkspd { link_speed: 9 }, "NVLINK2_LNKSPD: 0x9"),
            (Capability::Other { id: 9, version: 1, data: vec![0; 8] }, "id 9, version 1, 8 bytes"),
        ];
        for (one, text) in cases {
            assert_eq!(super::text(&of_region(&one)), text);
        }
        let mut base = ZpciBase::default();
        (base.start_dma, base.end_dma, base.pchid, base.pft) = (0x1000, 0x1fff, 0x1c0, 5);
        let cases = [
            (
                DeviceCapability::PciAtomicComp(PciAtomicFlags::COMP32 | PciAtomicFlags::COMP64),
                "PCI_ATOMIC_COMP: COMP32, COMP64",
            ),
            (
                DeviceCapability::ZpciBase(base),
                "ZPCI_BASE: function 0x1c0.0, type 5, group 0, DMA 0x1000 to 0x1fff",
            ),
            (DeviceCapability::ZpciUtil(vec![0xc1, 0x40]), "ZPCI_UTIL: c140"),
            (DeviceCapability::ZpciPfip(vec![0, 1]), "ZPCI_PFIP: 0001"),
            (DeviceCapability::Other { id: 9, version: 1, data: vec![] }, "id 9, version 1, 0 bytes"),
        ];
        for (one, text) in cases {
            assert_eq!(super::text(&of_device(&one)), text);
        }
    }
}
