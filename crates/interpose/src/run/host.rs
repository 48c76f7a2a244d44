//! The host's own devices and files: those that the program keeps, and the numbers that they have.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use super::error::RunError;
use super::layout::{DevEntry, Host, SYSFS_FOLDERS};

/// The domain of devices without an address of their own, unless the host has it.
const FIRST_DOMAIN: u16 = 0x0100;

/// The numbers of the host that devices must not have.
#[derive(Debug)]
pub(super) struct Numbers {
    pub(super) addresses: BTreeSet<String>,
    pub(super) first_group: u32,
    pub(super) first_number: u32,
    pub(super) domain: u16,
}

impl Numbers {
    pub(super) fn of_host() -> Numbers {
        let addresses: BTreeSet<String> = names("/sys/bus/pci/devices").collect();
        let has_domain =
            |domain: u16| addresses.iter().any(|name| name.starts_with(&format!("{domain:04x}:")));
        let domain = (FIRST_DOMAIN..=u16::MAX).find(|domain| !has_domain(*domain)).unwrap_or(FIRST_DOMAIN);
        let after = |folder: &str, prefix: &str| {
            let numbers = names(folder).filter_map(|name| name.strip_prefix(prefix)?.parse::<u32>().ok());
            numbers.max().map_or(0, |last| last.saturating_add(1))
        };
        let first_group = after("/sys/kernel/iommu_groups", "");
        let first_number = after("/sys/class/vfio-dev", "vfio");
        Numbers { addresses, first_group, first_number, domain }
    }
}

fn names(folder: impl AsRef<Path>) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    entries.filter_map(|entry| entry.file_name().into_string().ok())
}

/// Returns what the layout has to keep of this host.
pub(super) fn host() -> Result<Host, RunError> {
    let mut dev = Vec::new();
    for entry in fs::read_dir("/dev")? {
        let entry = entry?;
        let name = entry.file_name().into_vec();
        // It may have gone meanwhile.
        let Ok(kind) = entry.file_type() else { continue };
        dev.push(if kind.is_symlink() {
            let Ok(target) = fs::read_link(entry.path()) else { continue };
            DevEntry::Link(name, target.as_os_str().as_bytes().to_vec())
        } else if kind.is_dir() {
            DevEntry::Folder(name)
        } else {
            DevEntry::File(name)
        });
    }
    let sysfs = SYSFS_FOLDERS.into_iter().filter(|folder| Path::new("/sys").join(folder).is_dir()).collect();
    Ok(Host { dev, sysfs })
}
