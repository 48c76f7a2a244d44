//! `whimbrel devices`: the VFIO devices of this host.

use std::fmt;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use whimbrel_user::kernel::{self, Cdev, Group, HostDevice};
use whimbrel_user::{Device, Errno, region};

use crate::failure::Failure;
use crate::fsm::flag_names;
use crate::output::{self, Output};

/// List the VFIO devices of this host and whether they migrate
///
/// A device that is not in use is opened briefly to query its features.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  whimbrel devices\n  whimbrel devices --json")]
pub(crate) struct Arguments {
    /// Open no device: show only the information in sysfs
    #[arg(long)]
    no_open: bool,
}

/// One device.
#[derive(Debug, Serialize)]
struct Listed {
    name: String,
    bus: String,
    driver: Option<String>,
    group: Option<u32>,
    group_path: Option<PathBuf>,
    cdev_path: Option<PathBuf>,
    /// Processes that have it or its group open.
    holders: Vec<u32>,
    /// Its migration features: empty without migration support, null if unknown.
    migration: Option<Vec<&'static str>>,
    /// The reason why they are unknown. Scripts get the whole text.
    problem: Option<String>,
    #[serde(skip)]
    errno: Option<Errno>,
}

#[derive(Debug, Serialize)]
struct Devices {
    devices: Vec<Listed>,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments, output: Output) -> Result<(), Failure> {
    let found = kernel::list()?;
    let devices = found.into_iter().map(|device| look_at(device, !arguments.no_open)).collect();
    let devices = Devices { devices };
    output.result(&devices, &devices)
}

fn look_at(device: HostDevice, open: bool) -> Listed {
    let (migration, problem, errno) = match (&device.holders[..], open) {
        (_, false) => (None, None, None),
        ([], true) => match supported(&device) {
            Ok(flags) => (Some(flags), None, None),
            Err(error) => (None, Some(error.to_string()), error.errno()),
        },
        (holders, true) => {
            let who = if holders.len() == 1 { "process" } else { "processes" };
            (None, Some(format!("in use by {who} {}", output::names(holders))), None)
        }
    };
    let HostDevice { name, bus, driver, group, group_path, cdev_path, holders, .. } = device;
    Listed { name, bus, driver, group, group_path, cdev_path, holders, migration, problem, errno }
}

fn supported(device: &HostDevice) -> Result<Vec<&'static str>, whimbrel_user::Error> {
    let flags = |device: Box<dyn Device>| region::adapt(device)?.migration_flags();
    let through_group = || flags(Box::new(Group::find(&device.name)?));
    let flags = match &device.cdev_path {
        // A kernel may have the file without iommufd: then try the group. If that fails too, the first error counts.
        Some(_) => Cdev::find(&device.name)
            .and_then(|cdev| flags(Box::new(cdev)))
            .or_else(|error| through_group().map_err(|_| error)),
        None => through_group(),
    };
    Ok(flags?.map(flag_names).unwrap_or_default())
}

const NONE: &str = "\
This host has no VFIO device. One appears when
  - a device is bound to a vfio driver, for example
      driverctl set-override 0000:3b:00.2 mlx5_vfio_pci
    (with the IOMMU on: intel_iommu=on, or AMD's, which is on by default), or
  - a mediated device is created, for example with the kernel's sample module mtty
      modprobe mtty
      uuidgen > /sys/class/mdev_bus/mtty/mdev_supported_types/mtty-1/create
Without either, use a model: try `whimbrel probe model:serial`.";

impl fmt::Display for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.devices.is_empty() {
            return f.write_str(NONE);
        }
        let dash = || "-".to_string();
        let path =
            |path: &Option<PathBuf>| path.as_ref().map_or_else(dash, |path| path.display().to_string());
        let mut table = output::table(["NAME", "BUS", "DRIVER", "GROUP", "CDEV", "MIGRATION"]);
        for device in &self.devices {
            let migration = match (&device.migration, &device.problem) {
                (Some(flags), _) => output::names(flags),
                (None, Some(_)) => match device.errno {
                    Some(errno) => format!("{errno:?} (see below)"),
                    None => "? (see below)".into(),
                },
                (None, None) => "?".into(),
            };
            table.add_row([
                device.name.clone(),
                device.bus.clone(),
                device.driver.clone().unwrap_or_else(dash),
                path(&device.group_path),
                path(&device.cdev_path),
                migration,
            ]);
        }
        write!(f, "{}", table.trim_fmt())?;
        let mut problems = self.devices.iter().filter_map(|device| Some((device, device.problem.as_ref()?)));
        if let Some((device, problem)) = problems.next() {
            write!(f, "\n\nunknown migration support\n  {}: {problem}", device.name)?;
        }
        for (device, problem) in problems {
            write!(f, "\n  {}: {problem}", device.name)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(holders: Vec<u32>) -> HostDevice {
        let mut device = HostDevice::new("0000:3b:00.2", "pci");
        device.driver = Some("mlx5_vfio_pci".into());
        device.group = Some(12);
        device.group_path = Some("/dev/vfio/12".into());
        device.holders = holders;
        device
    }

    #[test]
    fn a_device_that_is_held_is_not_opened_and_its_holders_are_told() {
        let listed = look_at(held(vec![7, 9]), true);
        assert_eq!(listed.problem.as_deref(), Some("in use by processes 7, 9"));
        let text = Devices { devices: vec![listed] }.to_string();
        assert!(text.contains("0000:3b:00.2: in use by processes 7, 9"), "{text}");
    }

    #[test]
    fn a_device_that_cannot_be_opened_is_listed_with_the_reason() {
        let mut device = held(vec![]);
        device.cdev_path = Some("/dev/vfio/devices/none".into());
        let listed = look_at(device, true);
        assert!(listed.problem.as_ref().unwrap().contains("ENOENT"));
        assert_eq!(listed.migration, None);
        let text = Devices { devices: vec![listed] }.to_string();
        let row = text.lines().find(|line| line.starts_with("0000:3b:00.2")).unwrap();
        assert!(row.contains("mlx5_vfio_pci") && row.contains("/dev/vfio/12"), "what is known: {row}");
        assert!(row.ends_with("ENOENT (see below)"), "{row}");
    }

    #[test]
    fn a_device_without_migration_shows_none() {
        let mut listed = look_at(held(vec![]), false);
        listed.migration = Some(vec![]);
        let text = Devices { devices: vec![listed] }.to_string();
        assert!(text.trim_end().ends_with("none"), "{text}");
    }
}
