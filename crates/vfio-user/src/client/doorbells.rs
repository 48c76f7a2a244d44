//! VFIO_USER_DEVICE_GET_REGION_IO_FDS: parts of a region to which accesses can be made without a message.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use whimbrel_user::Result;

use super::Client;
use super::connection::Connection;
use super::device::{ROOM, region};
use crate::eventfd::only_eventfd;
use crate::message::{Command, IoFdKind, Reply, Request, SubRegion};

/// A part of a region whose accesses the server takes through a descriptor.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RegionIoFd {
    /// Offset in bytes within the region.
    pub offset: u64,
    /// Bytes of the part, which lies within the region. 0 where the width of an access does not matter.
    pub size: u64,
    /// The descriptor, and what it takes.
    pub access: IoAccess,
}

/// How accesses are made through a descriptor. Several parts can have the same one.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum IoAccess {
    /// A write signals an eventfd, which can be given to KVM_IOEVENTFD: a guest's write then leads to the
    /// server, and the VMM does not see it. Who signals it itself has made the write without a message.
    ///
    /// KVM never waits to signal one. A write(2) waits while the counter is full, unless the server has made
    /// the eventfd otherwise (EFD_NONBLOCK, as ours does): who trusts a server less looks for room with poll(2).
    Ioeventfd {
        /// What is signalled.
        eventfd: Arc<OwnedFd>,
        /// The only value whose write signals; `None` for any.
        datamatch: Option<u64>,
        /// All flags of KVM_IOEVENTFD, as the server wants them.
        flags: u32,
    },
    /// An ioregionfd, over which accesses of any kind go as messages of their own (a proposal of 2021 to KVM
    /// which no kernel has taken up). The descriptor may be of any kind.
    Ioregionfd {
        /// Where the messages go.
        fd: Arc<OwnedFd>,
        /// Flags of the proposal.
        flags: u32,
        /// What each message has in it.
        user_data: u64,
    },
}

impl Client {
    /// The parts of a region that the server takes accesses to through descriptors, such as doorbells that a
    /// VMM leaves to KVM; empty if there are none. ENOTTY or EINVAL from a server that does not know the
    /// request.
    ///
    /// Each part lies within the region and each ioeventfd is an eventfd, which was checked. The size of an
    /// ioeventfd need not be one that KVM takes (0, 1, 2, 4 or 8).
    ///
    /// ```
    /// use std::os::unix::net::UnixStream;
    /// # use whimbrel_device::{
    /// #     Bus, DeviceFile, DeviceInfoFlags, Driver, Errno, Info, IoeventfdWrite, Region, RegionInfoFlags, WriteWidth,
    /// # };
    /// use whimbrel_vfio_user::{Backend, Client, ClientOptions, IoAccess};
    /// # struct Bell;
    /// # impl Driver for Bell {
    /// #     fn info(&self) -> Info {
    /// #         Info { flags: DeviceInfoFlags::PCI, num_regions: 1, num_irqs: 0, capabilities: vec![] }
    /// #     }
    /// #     fn region(&self, _index: u32) -> Result<Region, Errno> {
    /// #         Ok(Region { flags: RegionInfoFlags::WRITE, size: 0x1000, offset: 0, capabilities: vec![] })
    /// #     }
    /// #     fn doorbells(&self) -> Vec<IoeventfdWrite> {
    /// #         vec![IoeventfdWrite { region: 0, offset: 0x80, width: WriteWidth::Four, data: 1 }]
    /// #     }
    /// # }
    /// # let device = DeviceFile::new("bell", Bus::new(), Box::new(Bell));
    ///
    /// let (server, stream) = UnixStream::pair()?;
    /// std::thread::spawn(move || Backend::new(device).serve(server));
    /// let client = Client::new("bell", stream, &ClientOptions::default())?;
    /// for part in client.region_io_fds(0)? {
    ///     let IoAccess::Ioeventfd { eventfd, datamatch, .. } = part.access else { continue };
    ///     // kvm_vm.register_ioevent(&eventfd, &IoEventAddress::Mmio(bar + part.offset), datamatch)
    ///     assert_eq!((part.offset, part.size, datamatch), (0x80, 4, Some(1)));
    ///     rustix::io::write(&eventfd, &1_u64.to_ne_bytes())?;
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn region_io_fds(&self, index: u32) -> Result<Vec<RegionIoFd>> {
        let connection = &mut *self.connection();
        let what = || format!("{} of region {index}", Command::DeviceGetRegionIoFds);
        let (size, _) = region(connection, index).map(|(region, file)| (region.size, file))?;
        let (sub_regions, descriptors) = sub_regions(connection, index)?;
        let mut descriptors = Descriptors::new(descriptors);
        let mut parts = Vec::with_capacity(sub_regions.len());
        for SubRegion { offset, size: length, fd_index, kind } in sub_regions {
            // A part without a size is still somewhere.
            if offset.checked_add(length.max(1)).is_none_or(|end| end > size) {
                let wrong =
                    format_args!("{length:#x} bytes at {offset:#x} are not in the region").to_string();
                return Err(connection.nonsense(what(), wrong));
            }
            let access = descriptors.access(fd_index, kind);
            let access = access.map_err(|wrong| connection.nonsense(what(), wrong))?;
            parts.push(RegionIoFd { offset, size: length, access });
        }
        Ok(parts)
    }
}

/// What the server says, asked again with as much room as it wants.
fn sub_regions(connection: &mut Connection, index: u32) -> Result<(Vec<SubRegion>, Vec<OwnedFd>)> {
    let what = || format!("{} of region {index}", Command::DeviceGetRegionIoFds);
    let most = connection.limits().message() as u32;
    let mut argsz = ROOM;
    loop {
        let answer = connection.ask(what, &Request::DeviceGetRegionIoFds { argsz, index }, &[])?;
        let (reply, descriptors) = match answer.reply {
            Reply::DeviceGetRegionIoFds(reply) if reply.index() == index => (reply, answer.descriptors),
            _ => return Err(connection.nonsense(what(), "it is of another region")),
        };
        if reply.is_whole() {
            let descriptors = descriptors.map_err(|error| connection.nonsense(what(), error))?;
            return Ok((reply.sub_regions().to_vec(), descriptors));
        }
        if argsz != ROOM || reply.needed() <= argsz || reply.needed() > most {
            let wrong = format!("it has no room in {argsz} bytes and wants {}", reply.needed());
            return Err(connection.nonsense(what(), wrong));
        }
        argsz = reply.needed();
    }
}

/// The descriptors of a reply, each of which becomes what it is first used for. Those that nothing uses are
/// closed in the end.
struct Descriptors(Vec<Descriptor>);

enum Descriptor {
    Unused(OwnedFd),
    Eventfd(Arc<OwnedFd>),
    Other(Arc<OwnedFd>),
    Refused,
}

impl Descriptors {
    fn new(descriptors: Vec<OwnedFd>) -> Descriptors {
        Descriptors(descriptors.into_iter().map(Descriptor::Unused).collect())
    }

    fn access(&mut self, index: u32, kind: IoFdKind) -> std::result::Result<IoAccess, String> {
        let count = self.0.len();
        let Some(descriptor) = self.0.get_mut(index as usize) else {
            return Err(format!("descriptor {index} is meant, and {count} came"));
        };
        let taken = std::mem::replace(descriptor, Descriptor::Refused);
        *descriptor = match (taken, kind) {
            (Descriptor::Unused(fd), IoFdKind::Ioeventfd { .. }) => {
                let eventfd = only_eventfd(fd);
                Descriptor::Eventfd(Arc::new(eventfd.map_err(|_| not_an_eventfd(index))?))
            }
            (Descriptor::Unused(fd), IoFdKind::Ioregionfd { .. }) => Descriptor::Other(Arc::new(fd)),
            (taken, _) => taken,
        };
        match (&*descriptor, kind) {
            (Descriptor::Eventfd(eventfd), IoFdKind::Ioeventfd { flags, datamatch }) => {
                let datamatch = (flags & IoFdKind::DATAMATCH != 0).then_some(datamatch);
                Ok(IoAccess::Ioeventfd { eventfd: eventfd.clone(), datamatch, flags })
            }
            (Descriptor::Other(fd), IoFdKind::Ioregionfd { flags, user_data }) => {
                Ok(IoAccess::Ioregionfd { fd: fd.clone(), flags, user_data })
            }
            _ => Err(format!("descriptor {index} is meant for an eventfd and for something else")),
        }
    }
}

fn not_an_eventfd(index: u32) -> String {
    format!("descriptor {index} is meant for an eventfd and is none")
}
