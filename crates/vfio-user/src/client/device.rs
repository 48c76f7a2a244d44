//! [`Device`] implemented by messages.

use std::fs::File;
use std::os::fd::{BorrowedFd, OwnedFd};

use whimbrel_memory::survive_lost_memory;
use whimbrel_protocol::Errno;
use whimbrel_uapi::device::{IrqSetFlags, RegionInfoFlags};
use whimbrel_user::{
    ArmedInterrupts, Capability, Device, DmaMap, Error, FileOffset, Irq, IrqAction, IrqData, MappedRegion,
    Region, Result,
};

use super::Client;
use super::connection::Connection;
use super::current::ConnectionGuard;
use super::reconnect::Copies;
use crate::message::{Command, RegionAccess, Reply, Request, SetIrqs};

/// Initial room for capabilities in a reply.
pub(super) const ROOM: u32 = 4096;

impl Client {
    pub(super) fn connection(&self) -> ConnectionGuard {
        self.current.lock()
    }

    /// Sets eventfds in several messages if some of them are missing or they exceed the descriptors of one message:
    /// all are removed first, then those present are set.
    fn send_irqs(
        &self,
        connection: &mut Connection,
        index: u32,
        start: u32,
        action: IrqAction,
        data: IrqData<'_>,
    ) -> Result<()> {
        let action = match action {
            IrqAction::Mask => IrqSetFlags::ACTION_MASK,
            IrqAction::Unmask => IrqSetFlags::ACTION_UNMASK,
            IrqAction::Trigger => IrqSetFlags::ACTION_TRIGGER,
        };
        let set = |data_type: IrqSetFlags, start: u32, count: u32, data| {
            let flags = (data_type | action).bits();
            SetIrqs { flags, index, start, count, data }
        };
        let eventfds = match data {
            IrqData::None(count) => {
                return set_irqs(connection, set(IrqSetFlags::DATA_NONE, start, count, &[]), &[]);
            }
            IrqData::Bool(items) => {
                let bytes: Vec<u8> = items.iter().map(|item| u8::from(*item)).collect();
                return set_irqs(connection, set(IrqSetFlags::DATA_BOOL, start, count(items), &bytes), &[]);
            }
            IrqData::Eventfd(items) => items,
        };
        let tie = |start, count| set(IrqSetFlags::DATA_EVENTFD, start, count, &[]);
        let most = connection.agreed.max_msg_fds as usize;
        let all: Option<Vec<BorrowedFd<'_>>> = eventfds.iter().copied().collect();
        if let Some(all) = all
            && all.len() <= most
        {
            return set_irqs(connection, tie(start, count(eventfds)), &all);
        }
        if most == 0 && eventfds.iter().any(Option::is_some) {
            let why =
                "the server accepts no descriptors (max_msg_fds is 0): eventfds cannot be set for interrupts";
            return Err(Error::unusable(&self.name, why));
        }
        set_irqs(connection, tie(start, count(eventfds)), &[])?;
        let mut at = 0;
        for run in eventfds.chunk_by(|one, next| one.is_some() == next.is_some()) {
            let present: Vec<BorrowedFd<'_>> = run.iter().copied().flatten().collect();
            let mut from = at;
            for piece in present.chunks(most.max(1)) {
                let first = u32::try_from(from).ok().and_then(|from| start.checked_add(from));
                let first = first.ok_or_else(|| connection.refused(Command::DeviceSetIrqs, Errno::EINVAL))?;
                set_irqs(connection, tie(first, count(piece)), piece)?;
                from += piece.len();
            }
            at += run.len();
        }
        Ok(())
    }
}

/// Returns a region, and the file that maps it.
pub(super) fn region(connection: &mut Connection, index: u32) -> Result<(Region, Option<OwnedFd>)> {
    let what = || format!("{} of region {index}", Command::DeviceGetRegionInfo);
    let mut argsz = ROOM;
    loop {
        let most = connection.limits().message() as u32;
        let request = Request::DeviceGetRegionInfo { argsz, index };
        let answer = connection.ask(what, &request, &[])?;
        let (reply, descriptors) = match answer.reply {
            Reply::DeviceGetRegionInfo(reply) => (reply, answer.descriptors),
            _ => return Err(connection.invalid_reply(what(), "not a region info")),
        };
        if reply.index() != index {
            return Err(connection.invalid_reply(what(), format_args!("info of region {}", reply.index())));
        }
        let mut descriptors = descriptors.map_err(|error| connection.invalid_reply(what(), error))?;
        if descriptors.len() > 1 {
            return Err(connection.invalid_reply(what(), "more than one descriptor"));
        }
        if !reply.is_whole() && argsz < reply.needed() && reply.needed() <= most {
            argsz = reply.needed();
            continue;
        }
        return Ok((reply.region().clone(), descriptors.pop()));
    }
}

/// Sends one VFIO_USER_DEVICE_SET_IRQS.
fn set_irqs(connection: &mut Connection, set: SetIrqs<'_>, eventfds: &[BorrowedFd<'_>]) -> Result<()> {
    let what = || format!("{} of index {}", Command::DeviceSetIrqs, set.index);
    connection.ask(what, &Request::DeviceSetIrqs(set), eventfds).map(drop)
}

/// The problem of a reply about something else.
pub(super) const ANOTHER_PLACE: &str = "reply for a different region or offset";

/// Describes the problem of a reply about an access other than the requested one.
pub(super) fn wrong_access(asked: RegionAccess, told: RegionAccess) -> String {
    if (RegionAccess { count: asked.count, ..told }) == asked {
        return format!("short transfer: {} of {} bytes", told.count, asked.count);
    }
    ANOTHER_PLACE.to_string()
}

/// Returns the number of items in the protocol's type.
fn count<T>(items: &[T]) -> u32 {
    u32::try_from(items.len()).unwrap_or(u32::MAX)
}

impl Device for Client {
    /// The region's offset is a position in the server's file for it; 0 without a file.
    fn region_info(&mut self, index: u32) -> Result<Region> {
        region(&mut self.connection(), index).map(|(region, _)| region)
    }

    fn irq_info(&mut self, index: u32) -> Result<Irq> {
        let connection = &mut *self.connection();
        let what = || format!("{} of index {index}", Command::DeviceGetIrqInfo);
        let request = Request::DeviceGetIrqInfo { argsz: 16, index };
        let answer = connection.ask(what, &request, &[])?;
        match answer.reply {
            Reply::DeviceGetIrqInfo(reply) if reply.index == index => Ok(reply.irq),
            _ => Err(connection.invalid_reply(what(), "reply for a different IRQ index")),
        }
    }

    fn read_region(&mut self, index: u32, offset: u64, data: &mut [u8]) -> Result<()> {
        let connection = &mut *self.connection();
        let most = connection.agreed.max_data_xfer_size as usize;
        let mut done = 0;
        for piece in data.chunks_mut(most) {
            let at = offset.wrapping_add(done);
            let what = || format!("{} of region {index} at {at:#x}", Command::RegionRead);
            let asked = RegionAccess { offset: at, region: index, count: count(piece) };
            let answer = connection.ask(what, &Request::RegionRead(asked), &[])?;
            let wrong = match answer.reply {
                Reply::RegionRead(access, bytes) if access == asked && bytes.len() == piece.len() => {
                    piece.copy_from_slice(bytes);
                    None
                }
                Reply::RegionRead(access, _) => Some(wrong_access(asked, access)),
                _ => Some(ANOTHER_PLACE.to_string()),
            };
            if let Some(wrong) = wrong {
                return Err(connection.invalid_reply(what(), wrong));
            }
            done += u64::from(asked.count);
        }
        Ok(())
    }

    fn write_region(&mut self, index: u32, offset: u64, data: &[u8]) -> Result<()> {
        let connection = &mut *self.connection();
        let most = connection.piece();
        let mut done = 0;
        for piece in data.chunks(most) {
            let at = offset.wrapping_add(done);
            let what = || format!("{} to region {index} at {at:#x}", Command::RegionWrite);
            let asked = RegionAccess { offset: at, region: index, count: count(piece) };
            let answer = connection.ask_repeating(what, &Request::RegionWrite(asked, piece), &[])?;
            let wrong = match answer.map(|answer| answer.reply) {
                None => None,
                Some(Reply::RegionWrite(access)) if access == asked => None,
                Some(Reply::RegionWrite(access)) => Some(wrong_access(asked, access)),
                Some(_) => Some(ANOTHER_PLACE.to_string()),
            };
            if let Some(wrong) = wrong {
                return Err(connection.invalid_reply(what(), wrong));
            }
            done += u64::from(asked.count);
        }
        Ok(())
    }

    fn map_region(&mut self, index: u32, offset: u64, length: u64) -> Result<MappedRegion> {
        let connection = &mut *self.connection();
        let what = || format!("mmap of {length:#x} bytes at {offset:#x} of region {index}");
        let (region, descriptor) = region(connection, index)?;
        let areas = region.capabilities.iter().find_map(|capability| match capability {
            Capability::SparseMmap(areas) => Some(areas.as_slice()),
            _ => None,
        });
        let end = offset.checked_add(length).filter(|end| *end <= region.size && length > 0);
        let holds = |start: u64, size: u64| {
            end.is_some_and(|end| start <= offset && start.checked_add(size).is_some_and(|last| end <= last))
        };
        let is_allowed = match areas {
            Some(areas) => areas.iter().any(|area| holds(area.offset, area.size)),
            None => holds(0, region.size),
        };
        if !is_allowed || !region.flags.contains(RegionInfoFlags::MMAP) {
            return Err(connection.refused(what(), Errno::EINVAL));
        }
        let Some(descriptor) = descriptor else {
            return Err(
                connection.invalid_reply(what(), "the region is mappable, but the reply has no descriptor")
            );
        };
        let file = File::from(descriptor);
        let start = region.offset.checked_add(offset);
        let last = start.and_then(|start| start.checked_add(length));
        // Past the end of a file each access would kill this process.
        let is_there = file
            .metadata()
            .is_ok_and(|metadata| !metadata.is_file() || last.is_some_and(|last| last <= metadata.len()));
        match start {
            Some(start) if is_there => {
                let file = FileOffset::new(file, start);
                // A server may make it shorter later.
                survive_lost_memory().map_err(|error| {
                    let why = format!("cannot install the SIGBUS handler, needed in case the server truncates the file: {error}");
                    Error::unusable(&self.name, why)
                })?;
                MappedRegion::of_file(&self.name, index, &region, file, offset, length)
            }
            _ => Err(connection.invalid_reply(what(), "the region's file is shorter than the region")),
        }
    }

    fn set_irqs(&mut self, index: u32, start: u32, action: IrqAction, data: IrqData<'_>) -> Result<()> {
        let connection = &mut *self.connection();
        let copies = connection.kept.is_some().then(|| Copies::of(data)).transpose().map_err(|error| {
            let why = format!("cannot keep the eventfds of interrupt index {index}: {error}");
            Error::unusable(&self.name, why)
        })?;
        self.send_irqs(connection, index, start, action, data)?;
        connection.interrupts.record(index, start, action, data);
        if let (Some(kept), Some(copies)) = (&mut connection.kept, copies) {
            kept.interrupts.record(index, start, action, data, copies);
        }
        Ok(())
    }

    fn armed_interrupts(&mut self) -> Vec<ArmedInterrupts> {
        self.connection().interrupts.armed()
    }

    fn dma_map(&mut self) -> Option<&mut dyn DmaMap> {
        Some(self)
    }
}
