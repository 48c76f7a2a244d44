//! VFIO_USER_DEVICE_GET_REGION_IO_FDS: parts of a region that can be accessed without a message.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use whimbrel_user::Result;

use super::Client;
use super::connection::Connection;
use super::device::{ROOM, region};
use super::reconnect::Doorbell;
use crate::eventfd::only_eventfd;
use crate::message::{Command, IoFdKind, Reply, Request, SubRegion};

/// A part of a region that can be accessed through a descriptor.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RegionIoFd {
    /// Offset in bytes within the region.
    pub offset: u64,
    /// Size in bytes. The part lies within the region. 0 if the width of an access does not matter.
    pub size: u64,
    /// The descriptor and its kind of access.
    pub access: IoAccess,
}

/// The kind of access through a descriptor. Several parts can share one.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum IoAccess {
    /// A write signals an eventfd, which can be given to KVM_IOEVENTFD: a guest's write then goes to the server
    /// without an exit to the VMM. A caller that signals the eventfd itself has made the write without a message.
    ///
    /// KVM never blocks when it signals an eventfd. A write(2) blocks while the counter is full, unless the server
    /// has set EFD_NONBLOCK, as ours does: if you do not trust the server, check for room with poll(2).
    Ioeventfd {
        /// The eventfd to signal.
        eventfd: Arc<OwnedFd>,
        /// The only value whose write signals; `None` for any.
        datamatch: Option<u64>,
        /// All flags of KVM_IOEVENTFD, as the server requests them.
        flags: u32,
    },
    /// An ioregionfd, which carries accesses of any kind as its own messages (a proposal of 2021 to KVM that is not
    /// in the kernel). The descriptor may be of any kind.
    Ioregionfd {
        /// The descriptor that the messages are sent to.
        fd: Arc<OwnedFd>,
        /// Flags of the proposal.
        flags: u32,
        /// Data that each message includes.
        user_data: u64,
    },
}

impl Client {
    /// Returns the parts of a region that the server accepts accesses to through descriptors, such as doorbells that
    /// a VMM gives to KVM; empty without any. ENOTTY or EINVAL from a server that does not support the request.
    ///
    /// After a [reconnection](super::Reconnect) the eventfds given before remain valid. Another call for the region returns
    /// those of the new server, and those given before do nothing any more. An ioregionfd ends with its server.
    ///
    /// Each part is checked to lie within the region, and each ioeventfd to be an eventfd. The size of an ioeventfd
    /// may be one that KVM does not support (KVM has 0, 1, 2, 4 and 8).
    ///
    /// ```
    /// use std::os::unix::net::UnixStream;
    /// # use whimbrel_device::{
    /// #     DeviceFile, DeviceInfoFlags, Driver, Errno, Info, IoeventfdWrite, Region, RegionInfoFlags, WriteWidth,
    /// # };
    /// use whimbrel_vfio_user::{Backend, Client, ClientOptions, IoAccess};
    /// # struct Bell;
    /// # impl Driver for Bell {
    /// #     fn info(&self) -> Info {
    /// #         Info::new(DeviceInfoFlags::PCI).num_regions(1)
    /// #     }
    /// #     fn region(&self, _index: u32) -> Result<Region, Errno> {
    /// #         Ok(Region::new(RegionInfoFlags::WRITE, 0x1000))
    /// #     }
    /// #     fn doorbells(&self) -> Vec<IoeventfdWrite> {
    /// #         vec![IoeventfdWrite::new(0, 0x80, WriteWidth::Four, 1)]
    /// #     }
    /// # }
    /// # let device = DeviceFile::new("bell", |_| Bell);
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
                let wrong = format_args!("sub-region of {length:#x} bytes at {offset:#x} exceeds the region")
                    .to_string();
                return Err(connection.invalid_reply(what(), wrong));
            }
            let access = descriptors.access(fd_index, kind);
            let access = access.map_err(|wrong| connection.invalid_reply(what(), wrong))?;
            parts.push(RegionIoFd { offset, size: length, access });
        }
        if let Some(kept) = &mut connection.kept {
            let doorbells = parts.iter().filter_map(|part| match &part.access {
                IoAccess::Ioeventfd { eventfd, datamatch, flags } => {
                    Some(Doorbell::new((part.offset, part.size), (*flags, *datamatch), eventfd.clone()))
                }
                IoAccess::Ioregionfd { .. } => None,
            });
            kept.doorbells.given(index, doorbells.collect());
        }
        Ok(parts)
    }
}

/// Requests the sub-regions, again with as much room as the server needs.
fn sub_regions(connection: &mut Connection, index: u32) -> Result<(Vec<SubRegion>, Vec<OwnedFd>)> {
    let what = || format!("{} of region {index}", Command::DeviceGetRegionIoFds);
    let most = connection.limits().message() as u32;
    let mut argsz = ROOM;
    loop {
        let answer = connection.ask(what, &Request::DeviceGetRegionIoFds { argsz, index }, &[])?;
        let (reply, descriptors) = match answer.reply {
            Reply::DeviceGetRegionIoFds(reply) if reply.index() == index => (reply, answer.descriptors),
            _ => return Err(connection.invalid_reply(what(), "reply for a different region")),
        };
        if reply.is_whole() {
            let descriptors = descriptors.map_err(|error| connection.invalid_reply(what(), error))?;
            return Ok((reply.sub_regions().to_vec(), descriptors));
        }
        if argsz != ROOM || reply.needed() <= argsz || reply.needed() > most {
            let wrong =
                format!("argsz {argsz} is too small for the server, which asks for {}", reply.needed());
            return Err(connection.invalid_reply(what(), wrong));
        }
        argsz = reply.needed();
    }
}

/// The descriptors of a reply, each of which gets the type of its first use. Unused ones are closed.
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
            return Err(format!("descriptor index {index}, but the message has {count} descriptors"));
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
            _ => Err(format!("descriptor {index} is used both as an eventfd and as something else")),
        }
    }
}

fn not_an_eventfd(index: u32) -> String {
    format!("descriptor {index} is not an eventfd")
}
