//! The files laid into the program's mount namespace, as a list of steps: sysfs folders of the devices, and the files of
//! VFIO. The steps are made in [`namespace`](super::namespace); here is no I/O.
//!
//! A tmpfs is mounted at [`STAGE`] and filled. Parts of it are laid over sysfs, so that the host's entries stay, and over
//! `/dev`. Then the stage is unmounted; what was laid over keeps it.

use std::ffi::CString;
use std::fmt;

use super::device::Placed;

/// A folder that every system has. What is in it is hidden while the namespace is set up.
pub(super) const STAGE: &str = "/tmp";

/// The device number of `/dev/full`, which is in place of a device's own file until its first request: programs open it,
/// and find a character device that sysfs names.
pub(super) const STAND_IN: &str = "1:7";

/// A step, made in the program's mount namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Mounts a tmpfs.
    Tmpfs(CString),
    /// Creates a folder.
    Folder(CString),
    /// Creates a file with these bytes.
    File(CString, Vec<u8>),
    /// Creates an empty file that every user may open, in the place of a device.
    Device(CString),
    /// Creates a symbolic link: target and path.
    Link(CString, CString),
    /// Mounts a file or folder, with all mounts in it, at another path: source and path.
    Bind(CString, CString),
    /// Keeps a file of the host at another path, if it still exists: source and path.
    KeepFile(CString, CString),
    /// Keeps a folder of the host, with all mounts in it, at another path, if it still exists: source and path.
    KeepFolder(CString, CString),
    /// Lays folders over the one at a path, read-only: mount data and path.
    Overlay(CString, CString),
    /// Unmounts what was mounted last at a path.
    Unmount(CString),
}

/// The step in few words.
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, path) = match self {
            Step::Tmpfs(path) => ("tmpfs", path),
            Step::Folder(path) => ("folder", path),
            Step::File(path, _) => ("file", path),
            Step::Device(path) => ("device file", path),
            Step::Link(_, path) => ("link", path),
            Step::Bind(_, path) | Step::KeepFile(_, path) | Step::KeepFolder(_, path) => ("bind mount", path),
            Step::Overlay(_, path) => ("overlay", path),
            Step::Unmount(path) => ("unmount", path),
        };
        write!(f, "{what} at {}", path.to_string_lossy())
    }
}

/// An entry at the top of the host's `/dev`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum DevEntry {
    /// A device, socket, FIFO or file.
    File(Vec<u8>),
    Folder(Vec<u8>),
    /// Name and target.
    Link(Vec<u8>, Vec<u8>),
}

/// The host's own files, which the layout keeps.
#[derive(Clone, Debug, Default)]
pub(super) struct Host {
    pub(super) dev: Vec<DevEntry>,
    /// Those of [`SYSFS_FOLDERS`] that exist.
    pub(super) sysfs: Vec<&'static str>,
}

/// The folders of sysfs with entries of devices, in the order in which they are tried: the host's own entries stay in each
/// that exists.
pub(super) const SYSFS_FOLDERS: [&str; 7] =
    ["bus/pci", "bus", "class", "devices", "kernel/iommu_groups", "kernel", "module"];

/// A list of steps as it grows.
#[derive(Default)]
struct Steps {
    steps: Vec<Step>,
    /// Folders that exist on the stage.
    folders: std::collections::BTreeSet<String>,
}

/// Returns all steps, in order.
pub(super) fn steps(devices: &[Placed], host: &Host) -> Vec<Step> {
    let mut steps = Steps::default();
    steps.push(Step::Tmpfs(text(STAGE)));
    steps.folder("sys");
    // A folder that no device uses is laid over all the same, so it must exist.
    for folder in &host.sysfs {
        steps.folder(&format!("sys/{folder}"));
    }
    for device in devices {
        steps.sysfs(device);
    }
    for module in ["vfio", "vfio_pci", "vfio_iommu_type1", "iommufd"] {
        steps.folder(&format!("sys/module/{module}"));
    }
    steps.dev(devices, host);
    let mut laid: Vec<&str> = Vec::new();
    for folder in &host.sysfs {
        // The inner one alone: what is below `bus/pci` is no part of an overlay of `bus`.
        if laid.iter().any(|inner| inner.starts_with(&format!("{folder}/"))) {
            continue;
        }
        laid.push(folder);
        let data = text(format!("lowerdir={STAGE}/sys/{folder}:/sys/{folder}"));
        steps.push(Step::Overlay(data, text(format!("/sys/{folder}"))));
    }
    steps.push(Step::Bind(text(format!("{STAGE}/dev")), text("/dev")));
    steps.push(Step::Unmount(text(STAGE)));
    steps.steps
}

impl Steps {
    fn push(&mut self, step: Step) {
        self.steps.push(step);
    }

    /// Creates a folder of the stage, with those around it.
    fn folder(&mut self, path: &str) {
        let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
        for end in ends {
            if self.folders.insert(path[..end].to_owned()) {
                self.push(Step::Folder(text(format!("{STAGE}/{}", &path[..end]))));
            }
        }
    }

    fn around(&mut self, path: &str) {
        if let Some((folder, _)) = path.rsplit_once('/') {
            self.folder(folder);
        }
    }

    fn file(&mut self, path: &str, bytes: impl Into<Vec<u8>>) {
        self.around(path);
        self.push(Step::File(text(format!("{STAGE}/{path}")), bytes.into()));
    }

    /// Creates a file of `/dev`. The program may become another user, whose rights the host's rules would grant.
    fn device(&mut self, path: &str) {
        self.around(path);
        self.push(Step::Device(text(format!("{STAGE}/{path}"))));
    }

    /// Creates a link from one path of the stage to another, relative as in sysfs.
    fn link(&mut self, path: &str, to: &str) {
        self.around(path);
        let common = path.split('/').zip(to.split('/')).take_while(|(one, other)| one == other).count();
        let up = path.split('/').count() - 1 - common;
        let down: Vec<&str> = to.split('/').skip(common).collect();
        let target = format!("{}{}", "../".repeat(up), down.join("/"));
        self.push(Step::Link(text(target), text(format!("{STAGE}/{path}"))));
    }

    /// The folder of a device in sysfs, and the links that lead to it.
    fn sysfs(&mut self, device: &Placed) {
        let address = device.address;
        let home = format!("sys/devices/pci{}/{address}", device.address.root_bus());
        for (name, value) in attributes(device) {
            self.file(&format!("{home}/{name}"), value);
        }
        self.file(&format!("{home}/config"), device.config.clone());
        self.file(&format!("{home}/resource"), resources(device));
        self.link(&format!("{home}/subsystem"), "sys/bus/pci");
        self.link(&format!("sys/bus/pci/devices/{address}"), &home);

        let driver = "sys/bus/pci/drivers/vfio-pci";
        self.link(&format!("{home}/driver"), driver);
        self.link(&format!("{driver}/{address}"), &home);

        let group = format!("sys/kernel/iommu_groups/{}", device.group);
        self.link(&format!("{home}/iommu_group"), &group);
        self.link(&format!("{group}/devices/{address}"), &home);
        self.file(&format!("{group}/type"), "DMA\n");
        self.file(&format!("{group}/reserved_regions"), "0x00000000fee00000 0x00000000feefffff msi\n");

        let name = format!("vfio{}", device.number);
        let own = format!("{home}/vfio-dev/{name}");
        self.file(&format!("{own}/dev"), format!("{STAND_IN}\n"));
        self.file(&format!("{own}/uevent"), format!("DEVNAME=vfio/devices/{name}\n"));
        self.link(&format!("{own}/device"), &home);
        self.link(&format!("{own}/subsystem"), "sys/class/vfio-dev");
        self.link(&format!("sys/class/vfio-dev/{name}"), &own);
    }

    /// `/dev`, with the host's entries, and with the files of VFIO in place of the host's.
    fn dev(&mut self, devices: &[Placed], host: &Host) {
        self.folder("dev");
        for entry in &host.dev {
            let (name, is_folder) = match entry {
                DevEntry::File(name) => (name, false),
                DevEntry::Folder(name) => (name, true),
                DevEntry::Link(name, target) => {
                    self.push(Step::Link(bytes(target), staged(name)));
                    continue;
                }
            };
            if name == b"vfio" || name == b"iommu" {
                continue;
            }
            let source = bytes(&[b"/dev/", name.as_slice()].concat());
            self.push(if is_folder {
                Step::KeepFolder(source, staged(name))
            } else {
                Step::KeepFile(source, staged(name))
            });
        }
        self.device("dev/iommu");
        self.device("dev/vfio/vfio");
        self.folder("dev/vfio/devices");
        for device in devices {
            self.device(&format!("dev/vfio/{}", device.group));
            let path = format!("dev/vfio/devices/vfio{}", device.number);
            self.file(&path, "");
            self.push(Step::Bind(text("/dev/full"), text(format!("{STAGE}/{path}"))));
        }
    }
}

/// Returns the attributes of a device that are text.
fn attributes(device: &Placed) -> Vec<(&'static str, String)> {
    let (vendor, id) = (device.word(0x00), device.word(0x02));
    let (subsystem_vendor, subsystem) = (device.word(0x2c), device.word(0x2e));
    let (revision, interface, sub, base) = (device.byte(8), device.byte(9), device.byte(10), device.byte(11));
    let class = format!("{base:02x}{sub:02x}{interface:02x}");
    let modalias = format!(
        "pci:v{vendor:08X}d{id:08X}sv{subsystem_vendor:08X}sd{subsystem:08X}bc{base:02X}sc{sub:02X}i{interface:02X}"
    );
    let uevent = format!(
        "DRIVER=vfio-pci\nPCI_CLASS={:X}\nPCI_ID={vendor:04X}:{id:04X}\nPCI_SUBSYS_ID={subsystem_vendor:04X}:\
         {subsystem:04X}\nPCI_SLOT_NAME={}\nMODALIAS={modalias}\n",
        u32::from_be_bytes([0, base, sub, interface]),
        device.address,
    );
    vec![
        ("vendor", format!("{vendor:#06x}\n")),
        ("device", format!("{id:#06x}\n")),
        ("subsystem_vendor", format!("{subsystem_vendor:#06x}\n")),
        ("subsystem_device", format!("{subsystem:#06x}\n")),
        ("class", format!("0x{class}\n")),
        ("revision", format!("{revision:#04x}\n")),
        ("modalias", format!("{modalias}\n")),
        ("uevent", uevent),
        ("driver_override", "vfio-pci\n".into()),
        ("enable", "0\n".into()),
        ("irq", "0\n".into()),
        ("numa_node", "-1\n".into()),
        ("reset_method", "flr\n".into()),
    ]
}

/// Returns the lines of `resource`: first and last address and flags of the BARs, the ROM and six resources that only
/// bridges and virtual functions have. No BAR has an address.
fn resources(device: &Placed) -> String {
    const UNSET: u64 = 0x2000_0000;
    const IO: u64 = 0x100;
    const MEMORY: u64 = 0x200;
    const PREFETCH: u64 = 0x2000;
    const MEMORY_64: u64 = 0x10_0000;
    const READ_ONLY: u64 = 0x4000;
    let line = |(index, size): (usize, u64)| {
        let register = device.byte(0x10 + 4 * index);
        let kind = match register {
            _ if index == 6 => MEMORY | PREFETCH | READ_ONLY,
            io if io & 1 != 0 => IO,
            memory => {
                let wide = if memory & 0b110 == 0b100 { MEMORY_64 } else { 0 };
                let prefetch = if memory & 0b1000 != 0 { PREFETCH } else { 0 };
                MEMORY | wide | prefetch
            }
        };
        let (last, flags) = if size == 0 { (0, 0) } else { (size - 1, kind | UNSET) };
        format!("{:#018x} {last:#018x} {flags:#018x}\n", 0)
    };
    let bars = device.region_sizes.iter().copied().chain([0; 6]);
    bars.enumerate().map(line).collect()
}

fn staged(name: &[u8]) -> CString {
    bytes(&[STAGE.as_bytes(), b"/dev/", name].concat())
}

fn text(path: impl AsRef<str>) -> CString {
    bytes(path.as_ref().as_bytes())
}

/// Returns the bytes as a C string. They are names of files and what is made of numbers here, without NUL.
fn bytes(path: &[u8]) -> CString {
    CString::new(path.iter().copied().take_while(|byte| *byte != 0).collect::<Vec<u8>>()).unwrap_or_default()
}
