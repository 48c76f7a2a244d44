//! The VFIO devices of this host, read from sysfs. No device is opened, so listing has no side effects.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use whimbrel_protocol::Errno;

use super::state_file;
use crate::error::{Error, Result};

/// A device of this host that VFIO can assign to a program.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HostDevice {
    /// Its name in sysfs: the address of a PCI device, the uuid of a mediated one.
    pub name: String,
    /// The bus, such as `pci` or `mdev`.
    pub bus: String,
    /// The driver it is bound to, if any.
    pub driver: Option<String>,
    /// The number of its IOMMU group.
    pub group: Option<u32>,
    /// The group's file. It may not exist: VFIO creates it when a vfio driver binds the first device of the
    /// group.
    pub group_path: Option<PathBuf>,
    /// The device's own file, if the kernel has created one.
    pub cdev_path: Option<PathBuf>,
    /// Processes that have one of these files open, as far as visible to this process. An open group file
    /// means that the whole group is in use.
    pub holders: Vec<u32>,
}

impl HostDevice {
    /// Returns a device of which only the name and the bus are known.
    pub fn new(name: impl Into<String>, bus: impl Into<String>) -> HostDevice {
        HostDevice {
            name: name.into(),
            bus: bus.into(),
            driver: None,
            group: None,
            group_path: None,
            cdev_path: None,
            holders: Vec::new(),
        }
    }
}

/// Returns the VFIO devices of this host, by bus and name.
pub fn list() -> Result<Vec<HostDevice>> {
    Host::here().list()
}

/// Returns a device of this host by its name in sysfs, with or without VFIO. The address of a PCI device may
/// omit its domain.
pub fn find(name: &str) -> Result<HostDevice> {
    Host::here().find(name)
}

/// The three file systems with information on devices.
struct Host {
    sys: PathBuf,
    dev: PathBuf,
    proc: PathBuf,
}

impl Host {
    fn here() -> Host {
        Host { sys: "/sys".into(), dev: "/dev".into(), proc: "/proc".into() }
    }

    fn list(&self) -> Result<Vec<HostDevice>> {
        let mut devices = Vec::new();
        for bus in self.buses()? {
            let folder = self.sys.join("bus").join(&bus).join("devices");
            for name in names_in(&folder) {
                let path = folder.join(&name);
                if is_vfio(&bus, &path) {
                    devices.push(self.describe(&bus, &name, &path));
                }
            }
        }
        let holders = self.holders();
        for device in &mut devices {
            device.holders = holders_of(device, &holders);
        }
        devices.sort_by(|a, b| (&a.bus, &a.name).cmp(&(&b.bus, &b.name)));
        Ok(devices)
    }

    fn find(&self, name: &str) -> Result<HostDevice> {
        if name.is_empty() || name.contains(['/', '\0']) || name == "." || name == ".." {
            let why = "invalid device name: expected the address of a PCI device, such as 0000:3b:00.2, or the UUID \
                       of a mediated device";
            return Err(Error::unusable(name, why));
        }
        // lspci omits a domain of 0.
        let with_domain = format!("0000:{name}");
        for bus in self.buses()? {
            let folder = self.sys.join("bus").join(&bus).join("devices");
            for name in [name, &with_domain] {
                let path = folder.join(name);
                if path.exists() {
                    let mut device = self.describe(&bus, name, &path);
                    device.holders = holders_of(&device, &self.holders());
                    return Ok(device);
                }
            }
        }
        // A uuid has hyphens, an address has none.
        let bus = if name.contains('-') { "mdev" } else { "pci" };
        Err(Error::Open {
            device: name.to_string(),
            path: self.sys.join("bus").join(bus).join("devices").join(name),
            errno: Errno::ENOENT,
        })
    }

    fn buses(&self) -> Result<Vec<String>> {
        let path = self.sys.join("bus");
        match fs::metadata(&path) {
            Ok(_) => Ok(names_in(&path)),
            Err(error) => {
                Err(Error::Open { device: "this host".into(), path, errno: state_file::errno(&error) })
            }
        }
    }

    fn describe(&self, bus: &str, name: &str, path: &Path) -> HostDevice {
        let group = link_name(&path.join("iommu_group"));
        let group_path = group.as_ref().map(|group| {
            // In no-IOMMU mode the file has another name.
            let bare = self.dev.join("vfio").join(format!("noiommu-{group}"));
            if bare.exists() { bare } else { self.dev.join("vfio").join(group) }
        });
        // Kernels without the cdev have the directory too: only the file itself counts.
        let cdev_path = names_in(&path.join("vfio-dev"))
            .into_iter()
            .map(|name| self.dev.join("vfio/devices").join(name))
            .find(|path| path.exists());
        HostDevice {
            name: name.to_string(),
            bus: bus.to_string(),
            driver: link_name(&path.join("driver")),
            group: group.and_then(|group| group.parse().ok()),
            group_path,
            cdev_path,
            holders: Vec::new(),
        }
    }

    /// Returns the processes that have VFIO files open, by file.
    fn holders(&self) -> BTreeMap<PathBuf, Vec<u32>> {
        let vfio = self.dev.join("vfio");
        let mut holders: BTreeMap<PathBuf, Vec<u32>> = BTreeMap::new();
        for pid in names_in(&self.proc).iter().filter_map(|name| name.parse::<u32>().ok()) {
            let folder = self.proc.join(pid.to_string()).join("fd");
            for fd in names_in(&folder) {
                let Ok(target) = fs::read_link(folder.join(fd)) else { continue };
                if target.starts_with(&vfio) {
                    holders.entry(target).or_default().push(pid);
                }
            }
        }
        holders
    }
}

fn holders_of(device: &HostDevice, holders: &BTreeMap<PathBuf, Vec<u32>>) -> Vec<u32> {
    let paths = device.group_path.iter().chain(&device.cdev_path);
    let mut pids: Vec<u32> = paths.filter_map(|path| holders.get(path)).flatten().copied().collect();
    pids.sort_unstable();
    pids.dedup();
    pids
}

/// Returns whether a device has a vfio driver. Kernels before 6.1 do not report it: the driver's name
/// decides.
fn is_vfio(bus: &str, path: &Path) -> bool {
    path.join("vfio-dev").exists()
        || (bus == "mdev" && path.join("iommu_group").exists())
        || link_name(&path.join("driver")).is_some_and(|driver| driver.contains("vfio"))
}

/// Returns the last component of a link's target.
fn link_name(link: &Path) -> Option<String> {
    Some(fs::read_link(link).ok()?.file_name()?.to_str()?.to_string())
}

/// Returns the names in a directory, sorted. Empty for a missing or unreadable directory, because entries
/// vanish at any time.
fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    let mut names: Vec<String> =
        entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const UUID: &str = "00000000-0000-4000-8000-000000000001";

    /// A host made of files.
    struct Tree {
        root: tempfile::TempDir,
        host: Host,
    }

    impl Tree {
        fn new() -> Tree {
            let root = tempfile::tempdir().unwrap();
            let at = |name: &str| root.path().join(name);
            let host = Host { sys: at("sys"), dev: at("dev"), proc: at("proc") };
            let tree = Tree { root, host };
            for folder in ["sys/bus/pci/devices", "sys/bus/mdev/devices", "dev/vfio/devices", "proc"] {
                fs::create_dir_all(tree.at(folder)).unwrap();
            }
            tree
        }

        fn at(&self, path: &str) -> PathBuf {
            self.root.path().join(path)
        }

        fn device(&self, bus: &str, name: &str, driver: &str, group: Option<u32>) -> PathBuf {
            let path = self.at(&format!("sys/bus/{bus}/devices/{name}"));
            fs::create_dir_all(&path).unwrap();
            symlink(format!("../../drivers/{driver}"), path.join("driver")).unwrap();
            if let Some(group) = group {
                symlink(format!("../../../kernel/iommu_groups/{group}"), path.join("iommu_group")).unwrap();
                // iommu_group leads somewhere on a real host.
                fs::create_dir_all(self.at(&format!("sys/bus/{bus}/kernel/iommu_groups/{group}"))).unwrap();
            }
            path
        }

        fn file(&self, path: &str) {
            fs::write(self.at(path), "").unwrap();
        }
    }

    #[test]
    fn devices_with_vfio_are_listed_with_their_files_and_others_are_not() {
        let tree = Tree::new();
        tree.device("pci", "0000:00:1f.0", "lpc_ich", Some(1));
        tree.device("pci", "0000:3b:00.2", "mlx5_vfio_pci", Some(12));
        let mdev = tree.device("mdev", UUID, "mtty", Some(0));
        fs::create_dir_all(mdev.join("vfio-dev/vfio4")).unwrap();
        tree.file("dev/vfio/0");
        tree.file("dev/vfio/devices/vfio4");
        let expected = [
            HostDevice {
                name: UUID.into(),
                bus: "mdev".into(),
                driver: Some("mtty".into()),
                group: Some(0),
                group_path: Some(tree.at("dev/vfio/0")),
                cdev_path: Some(tree.at("dev/vfio/devices/vfio4")),
                holders: Vec::new(),
            },
            HostDevice {
                name: "0000:3b:00.2".into(),
                bus: "pci".into(),
                driver: Some("mlx5_vfio_pci".into()),
                group: Some(12),
                group_path: Some(tree.at("dev/vfio/12")),
                cdev_path: None,
                holders: Vec::new(),
            },
        ];
        assert_eq!(tree.host.list().unwrap(), expected);
    }

    #[test]
    fn a_cdev_named_in_sysfs_without_its_file_is_none() {
        let tree = Tree::new();
        let path = tree.device("mdev", UUID, "mtty", Some(0));
        fs::create_dir_all(path.join("vfio-dev/vfio0")).unwrap();
        assert_eq!(tree.host.find(UUID).unwrap().cdev_path, None);
    }

    #[test]
    fn a_group_without_an_iommu_has_its_own_file_name() {
        let tree = Tree::new();
        tree.device("pci", "0000:3b:00.2", "vfio-pci", Some(3));
        tree.file("dev/vfio/noiommu-3");
        let found = tree.host.find("0000:3b:00.2").unwrap();
        assert_eq!(found.group_path, Some(tree.at("dev/vfio/noiommu-3")));
    }

    #[test]
    fn an_address_may_lack_its_domain() {
        let tree = Tree::new();
        tree.device("pci", "0000:3b:00.2", "vfio-pci", Some(3));
        assert_eq!(tree.host.find("3b:00.2").unwrap().name, "0000:3b:00.2");
    }

    #[test]
    fn processes_that_hold_the_group_or_the_device_are_told() {
        let tree = Tree::new();
        let path = tree.device("mdev", UUID, "mtty", Some(0));
        fs::create_dir_all(path.join("vfio-dev/vfio0")).unwrap();
        tree.file("dev/vfio/0");
        tree.file("dev/vfio/devices/vfio0");
        let open = |pid: u32, fd: u32, path: &Path| {
            let folder = tree.at(&format!("proc/{pid}/fd"));
            fs::create_dir_all(&folder).unwrap();
            symlink(path, folder.join(fd.to_string())).unwrap();
        };
        open(30, 5, &tree.at("dev/vfio/0"));
        open(30, 6, &tree.at("dev/vfio/devices/vfio0"));
        open(20, 3, &tree.at("dev/vfio/devices/vfio0"));
        open(40, 3, &tree.at("dev/vfio/1"));
        open(50, 3, Path::new("anon_inode:[vfio-device]"));
        assert_eq!(tree.host.find(UUID).unwrap().holders, [20, 30]);
        assert_eq!(tree.host.list().unwrap()[0].holders, [20, 30]);
    }

    #[test]
    fn a_device_that_is_not_there_is_named_with_the_path_that_was_tried() {
        let tree = Tree::new();
        for (name, path) in [(UUID, "sys/bus/mdev/devices"), ("0000:3b:00.2", "sys/bus/pci/devices")] {
            let error = tree.host.find(name).unwrap_err();
            let expected = tree.at(path).join(name);
            assert!(matches!(&error, Error::Open { path, .. } if *path == expected), "{error}");
            assert!(error.advice().is_some());
        }
    }

    #[test]
    fn names_that_lead_out_of_the_folder_are_refused() {
        let tree = Tree::new();
        for name in ["", ".", "..", "../pci", "/dev/vfio/0", "a\0b"] {
            let error = tree.host.find(name).unwrap_err();
            assert!(matches!(error, Error::Unusable { .. }), "{name:?}: {error}");
        }
    }

    #[test]
    fn a_host_without_sysfs_is_an_error_and_not_an_empty_list() {
        let host = Host { sys: "/nowhere".into(), dev: "/nowhere".into(), proc: "/nowhere".into() };
        let error = host.list().unwrap_err();
        assert!(error.to_string().contains("cannot open /nowhere/bus: ENOENT"), "{error}");
    }
}
