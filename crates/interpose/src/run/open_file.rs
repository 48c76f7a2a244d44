//! An open file of VFIO, as the program has it.

use std::sync::OnceLock;

use whimbrel_device::iommufd::Iommufd;
use whimbrel_device::{Cdev, Container, DataFile, DeviceFile, Errno, GroupFile, OpenDevice};
use whimbrel_protocol::session::Direction;

use super::mapping_calls::MappingCalls;
use super::traced::TracedFile;
use super::unread::Unread;

/// An open file of VFIO.
#[derive(Debug)]
pub(super) enum Object {
    Group(GroupFile),
    Container(Container),
    Iommufd(Iommufd),
    /// A device opened through its group.
    Device(OpenDevice),
    Cdev(Cdev),
    Data(DataFile),
}

/// An open file, and what the program opened for it, if it did.
#[derive(Debug)]
pub(super) struct OpenFile {
    pub(super) object: Object,
    /// The path of the plain file.
    pub(super) origin: Option<String>,
    /// The file as a trace knows it, if there is one. It ends after the object.
    pub(super) traced: OnceLock<TracedFile>,
    pub(super) mapping_calls: MappingCalls,
    /// Of a data file.
    pub(super) unread: Unread,
}

impl OpenFile {
    /// Returns the open file of an object that a request opens.
    pub(super) fn new(object: Object) -> OpenFile {
        OpenFile {
            object,
            origin: None,
            traced: OnceLock::new(),
            mapping_calls: MappingCalls::default(),
            unread: Unread::default(),
        }
    }

    /// Returns the path of the plain file that the program opened for it, if it did.
    pub(super) fn origin(&self) -> Option<&str> {
        self.origin.as_deref()
    }

    /// Returns the device behind it, for accesses to regions.
    pub(super) fn device(&self) -> Result<&DeviceFile, Errno> {
        match &self.object {
            Object::Device(device) => Ok(device),
            Object::Cdev(cdev) => cdev.device(),
            _ => Err(Errno::EINVAL),
        }
    }

    /// The name of its memory file, as it appears in `/proc/PID/fd`.
    pub(super) fn name(&self) -> &'static str {
        match &self.object {
            Object::Group(_) => "vfio-group",
            Object::Container(_) => "vfio-container",
            Object::Iommufd(_) => "iommufd",
            Object::Device(_) | Object::Cdev(_) => "vfio-device",
            Object::Data(_) => "vfio-migration",
        }
    }

    /// Returns whether the program may read and write its memory file. A data file is opened the other way round: an
    /// access that is not caught, through a duplicate of a low number, fails instead of finding no data.
    pub(super) fn rights(&self) -> (bool, bool) {
        match &self.object {
            Object::Data(data) => match data.direction() {
                Direction::Saving => (false, true),
                Direction::Resuming => (true, false),
            },
            _ => (true, true),
        }
    }
}
