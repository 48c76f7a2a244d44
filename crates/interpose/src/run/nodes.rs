//! The plain files that are laid into the program's `/dev`, and the devices behind them.

use std::collections::HashMap;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Stat, major, minor, statat};
use whimbrel_device::iommufd::{Iommu, Iommufd};
use whimbrel_device::{Cdev, Container, ContainerSettings, DeviceFile, Errno, Group};

use super::open_file::Object;
use super::task::{FileId, Task};

/// A device, and the files by which it can be opened.
#[derive(Clone, Debug)]
pub(super) struct Served {
    pub(super) device: DeviceFile,
    pub(super) group: Group,
    pub(super) group_number: u32,
    pub(super) iommu: Iommu,
    pub(super) number: u32,
}

/// A plain file laid into `/dev`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Node {
    Group(usize),
    Container,
    Iommufd,
    Cdev(usize),
}

/// All plain files.
#[derive(Debug)]
pub(super) struct Nodes {
    devices: Vec<Served>,
    /// Those without the cdevs.
    plain: HashMap<FileId, Node>,
    /// Kept, so that no later file has their inodes.
    _dev: OwnedFd,
}

impl Nodes {
    /// Returns the plain files of a program whose `/dev` is `dev`.
    pub(super) fn new(devices: Vec<Served>, dev: OwnedFd) -> Result<Nodes, rustix::io::Errno> {
        let id = |path: &str| statat(&dev, path, AtFlags::empty()).map(|stat| FileId::of(&stat));
        let mut plain = HashMap::from([(id("vfio/vfio")?, Node::Container), (id("iommu")?, Node::Iommufd)]);
        for (index, served) in devices.iter().enumerate() {
            plain.insert(id(&format!("vfio/{}", served.group_number))?, Node::Group(index));
        }
        Ok(Nodes { devices, plain, _dev: dev })
    }

    /// Returns the plain file behind a descriptor.
    pub(super) fn find(&self, task: &Task<'_>, fd: i32, stat: &Stat) -> Option<Node> {
        if let Some(node) = self.plain.get(&FileId::of(stat)) {
            return Some(*node);
        }
        // The file of a device is a bind mount of /dev/full, which only its path tells from others. The program may have
        // mounted its /dev elsewhere.
        let is_stand_in = stat.st_mode & libc::S_IFMT == libc::S_IFCHR
            && (major(stat.st_rdev), minor(stat.st_rdev)) == (1, 7);
        let path = is_stand_in.then(|| task.link(fd).ok())??;
        let number = cdev_number(&path)?;
        self.devices.iter().position(|served| served.number == number).map(Node::Cdev)
    }

    /// Opens what a plain file stands for.
    pub(super) fn open(&self, node: Node) -> Result<Object, Errno> {
        Ok(match node {
            Node::Group(index) => Object::Group(self.devices[index].group.open()?),
            Node::Container => Object::Container(Container::new(ContainerSettings::default())),
            Node::Iommufd => Object::Iommufd(Iommufd::new()),
            Node::Cdev(index) => {
                let served = &self.devices[index];
                Object::Cdev(Cdev::new(served.device.clone(), served.iommu.clone()))
            }
        })
    }
}

/// Returns the number of the device whose own file has this path, in whatever folder `/dev` is mounted.
fn cdev_number(path: &[u8]) -> Option<u32> {
    let (folder, name) = path.split_at(path.iter().rposition(|byte| *byte == b'/')?);
    let digits = name.strip_prefix(b"/vfio").filter(|digits| digits.iter().all(u8::is_ascii_digit))?;
    let number = std::str::from_utf8(digits).ok()?.parse().ok()?;
    folder.ends_with(b"/vfio/devices").then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_known_by_the_end_of_its_path() {
        let cases: [(&[u8], Option<u32>); 7] = [
            (b"/dev/vfio/devices/vfio3", Some(3)),
            (b"/var/jail/\xff/dev/vfio/devices/vfio12", Some(12)),
            (b"/dev/full", None),
            (b"/dev/vfio/devices/vfio", None),
            (b"/dev/vfio/devices/vfio+3", None),
            (b"/dev/myvfio/devices/vfio3", None),
            (b"/dev/vfio/devices/vfio99999999999", None),
        ];
        for (path, number) in cases {
            assert_eq!(cdev_number(path), number, "{}", String::from_utf8_lossy(path));
        }
    }
}
