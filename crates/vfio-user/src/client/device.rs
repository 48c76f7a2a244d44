//! Each request of [`Device`], in messages.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;

use parking_lot::MutexGuard;
use vm_memory::FileOffset;
use vmm_sys_util::eventfd::EventFd;
use whimbrel_memory::survive_lost_memory;
use whimbrel_protocol::dirty::{DirtyReport, IovaRange, MAX_LOGGING_RANGES};
use whimbrel_protocol::{Errno, MigrationFlags, State, session};
use whimbrel_uapi::device::{IrqSetFlags, RegionInfoFlags};
use whimbrel_uapi::feature::{Feature, FeatureFlags};
use whimbrel_uapi::type1::DmaMapFlags;
use whimbrel_user::{
    Capability, DataFile, Device, DmaRegion, Error, Info, Irq, IrqAction, IrqData, MappedRegion, Region,
    Result,
};

use super::connection::Connection;
use super::migration_state::{is_p2p, state};
use super::reset::reset;
use super::slips::Slip;
use super::state_channel::StateChannel;
use super::state_file::RemoteFile;
use super::{Client, data_size, feature, feature_with_descriptors, get};
use crate::eventfd;
use crate::message::{
    Command, DmaAccessModes, DmaMap, DmaUnmap, LoggingReport, LoggingStart, RegionAccess, Reply, Request,
    SetIrqs,
};

/// Room for capabilities when they are first asked for.
pub(super) const ROOM: u32 = 4096;

impl Client {
    pub(super) fn connection(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock()
    }
}

/// A region, and the file through which it can be mapped.
pub(super) fn region(connection: &mut Connection, index: u32) -> Result<(Region, Option<OwnedFd>)> {
    let what = || format!("{} of region {index}", Command::DeviceGetRegionInfo);
    let mut argsz = ROOM;
    loop {
        let most = connection.limits().message() as u32;
        let request = Request::DeviceGetRegionInfo { argsz, index };
        let answer = connection.ask(what, &request, &[])?;
        let (reply, descriptors) = match answer.reply {
            Reply::DeviceGetRegionInfo(reply) => (reply, answer.descriptors),
            _ => return Err(connection.nonsense(what(), "it is no region")),
        };
        if reply.index() != index {
            return Err(connection.nonsense(what(), format_args!("it is of region {}", reply.index())));
        }
        let mut descriptors = descriptors.map_err(|error| connection.nonsense(what(), error))?;
        if descriptors.len() > 1 {
            return Err(connection.nonsense(what(), "it has more than one descriptor"));
        }
        if !reply.is_whole() && argsz < reply.needed() && reply.needed() <= most {
            argsz = reply.needed();
            continue;
        }
        return Ok((reply.region().clone(), descriptors.pop()));
    }
}

/// The states of P2P are there where they were agreed on, whatever the flag of the plain protocol says.
fn migration_flags(connection: &mut Connection) -> Result<MigrationFlags> {
    let data = get(connection, Feature::Migration)?;
    let hidden =
        if connection.agreed.extensions().p2p { MigrationFlags::empty() } else { MigrationFlags::P2P };
    Ok(MigrationFlags::from_bits_retain(u64::from_ne_bytes(data)).difference(hidden))
}

/// The channel that came with the reply to a change of state; `data_fd` says which descriptor it is. Why it
/// cannot be one, if so.
fn channel(
    connection: &Connection,
    reply: &[u8],
    mut descriptors: Vec<OwnedFd>,
) -> std::result::Result<Option<StateChannel>, &'static str> {
    if !connection.agreed.extensions().data_channel {
        return Ok(None);
    }
    let data_fd = reply.get(4..).and_then(|data_fd| data_fd.first_chunk()).copied().map(i32::from_ne_bytes);
    match (data_fd, descriptors.pop(), descriptors.is_empty()) {
        (Some(-1), None, _) => Ok(None),
        (Some(0), Some(socket), true) => {
            let name = connection.name().to_owned();
            let (limits, patience) = (connection.limits(), connection.patience);
            let channel = StateChannel::new(name, socket, limits, patience, connection.slips.clone());
            channel.map(Some).map_err(|_| "the descriptor of the session is no stream socket")
        }
        _ => Err("its data_fd does not go with its descriptors"),
    }
}

/// One VFIO_USER_DEVICE_SET_IRQS.
fn set_irqs(connection: &mut Connection, set: SetIrqs<'_>, eventfds: &[&EventFd]) -> Result<()> {
    let what = || format!("{} of index {}", Command::DeviceSetIrqs, set.index);
    let descriptors: std::io::Result<Vec<OwnedFd>> =
        eventfds.iter().map(|eventfd| eventfd::to_descriptor(eventfd)).collect();
    let descriptors = descriptors
        .map_err(|error| connection.refused(what(), Errno::from_io_error(&error).unwrap_or(Errno::EMFILE)))?;
    let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    connection.ask(what, &Request::DeviceSetIrqs(set), &descriptors).map(drop)
}

/// What is wrong with a reply that is about something else.
pub(super) const ANOTHER_PLACE: &str = "it is of another place";

/// What is wrong with a reply about another access than the one that was asked for.
pub(super) fn wrong_access(asked: RegionAccess, told: RegionAccess) -> String {
    if (RegionAccess { count: asked.count, ..told }) == asked {
        return format!("{} of {} bytes were transferred", told.count, asked.count);
    }
    ANOTHER_PLACE.to_string()
}

/// A count of items as the protocol has them.
fn count<T>(items: &[T]) -> u32 {
    u32::try_from(items.len()).unwrap_or(u32::MAX)
}

impl Device for Client {
    fn name(&self) -> &str {
        &self.name
    }

    fn info(&mut self) -> Result<Info> {
        let connection = &mut *self.connection();
        let what = || Command::DeviceGetInfo.to_string();
        let mut argsz = ROOM;
        loop {
            let most = connection.limits().message() as u32;
            let answer = connection.ask(what, &Request::DeviceGetInfo { argsz }, &[])?;
            let Reply::DeviceGetInfo(reply) = answer.reply else {
                return Err(connection.nonsense(what(), "it is no device"));
            };
            if !reply.is_whole() && argsz < reply.needed() && reply.needed() <= most {
                argsz = reply.needed();
                continue;
            }
            return Ok(reply.info().clone());
        }
    }

    /// The region's offset is one in the file that the server has for it; 0 where there is none.
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
            _ => Err(connection.nonsense(what(), "it is of another index")),
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
                return Err(connection.nonsense(what(), wrong));
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
                return Err(connection.nonsense(what(), wrong));
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
                connection.nonsense(what(), "the region can be mapped, and no descriptor came with it")
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
                survive_lost_memory().map_err(|error| Error::Unusable {
                    device: self.name.clone(),
                    why: format!("SIGBUS cannot be handled, and the server could cause it: {error}"),
                })?;
                MappedRegion::of_file(&self.name, index, &region, file, offset, length)
            }
            _ => Err(connection.nonsense(what(), "the file that came with it is shorter than the region")),
        }
    }

    /// Eventfds of which some are missing, or that are more than one message can carry, are set in several
    /// messages: first all are untied, then those that are there tied.
    fn set_irqs(&mut self, index: u32, start: u32, action: IrqAction, data: IrqData<'_>) -> Result<()> {
        let connection = &mut *self.connection();
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
        let all: Option<Vec<&EventFd>> = eventfds.iter().copied().collect();
        if let Some(all) = all
            && all.len() <= most
        {
            return set_irqs(connection, tie(start, count(eventfds)), &all);
        }
        if most == 0 && eventfds.iter().any(Option::is_some) {
            return Err(Error::Unusable {
                device: self.name.clone(),
                why: "the server takes no descriptors (max_msg_fds is 0), so interrupts cannot have eventfds"
                    .into(),
            });
        }
        set_irqs(connection, tie(start, count(eventfds)), &[])?;
        let mut at = 0;
        for run in eventfds.chunk_by(|one, next| one.is_some() == next.is_some()) {
            let present: Vec<&EventFd> = run.iter().copied().flatten().collect();
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

    /// The device is in RUNNING then, and all of its contents are gone: a server that does not do so by itself is
    /// led there, and never lets a stopped device run with what it holds.
    fn reset(&mut self) -> Result<()> {
        reset(&mut self.connection())
    }

    fn probe_feature(&mut self, asked: Feature, directions: FeatureFlags) -> Result<bool> {
        let flags = FeatureFlags::PROBE | (directions & (FeatureFlags::GET | FeatureFlags::SET));
        let what = || format!("{} of {asked} with PROBE", Command::DeviceFeature);
        match feature(&mut self.connection(), what, asked, flags, &[], 0) {
            Ok(_) => Ok(true),
            Err(error) if matches!(error.errno(), Some(Errno::ENOTTY | Errno::EINVAL)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn migration_flags(&mut self) -> Result<Option<MigrationFlags>> {
        let connection = &mut *self.connection();
        match migration_flags(connection) {
            Ok(flags) => {
                connection.has_migration = true;
                Ok(Some(flags))
            }
            Err(error) if error.errno() == Some(Errno::ENOTTY) => Ok(None),
            Err(error) if error.errno() == Some(Errno::EINVAL) => {
                connection.slips.live_with(Slip::MigrationInvalid, Feature::Migration);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn state(&mut self) -> Result<State> {
        state(&mut self.connection())
    }

    /// Whether a session begins is known from where the device stood: a reply that comes with a channel says
    /// so too, and one without says nothing.
    fn set_state(&mut self, to: State) -> Result<Option<DataFile>> {
        let connection = &mut *self.connection();
        let extensions = connection.agreed.extensions();
        let what = || format!("{} to {to}", Feature::MigDeviceState);
        if is_p2p(to) && !extensions.p2p {
            return Err(connection.refused(what(), Errno::EINVAL));
        }
        let flags = migration_flags(connection)?;
        let from = state(connection)?;
        let data = [to.number().to_ne_bytes(), (-1_i32).to_ne_bytes()].concat();
        let (asked, set) = (Feature::MigDeviceState, FeatureFlags::SET);
        let (reply, descriptors) = feature_with_descriptors(connection, what, asked, set, &data, 0)?;
        if reply.first_chunk() != Some(&to.number().to_ne_bytes()) {
            return Err(connection.nonsense(what(), "the device is in another state"));
        }
        let opened = session::opened_by(flags, from, to);
        let channel = match channel(connection, &reply, descriptors) {
            Ok(channel) if channel.is_none() || opened.is_some() => channel,
            Ok(_) => return Err(connection.nonsense(what(), "a channel came where no session begins")),
            Err(why) => return Err(connection.nonsense(what(), why)),
        };
        Ok(opened.map(|direction| {
            connection.sessions.fetch_add(1, Ordering::AcqRel);
            let sessions = connection.sessions.clone();
            let file = RemoteFile::new(self.connection.clone(), channel, extensions, sessions);
            DataFile::new(self.name.clone(), direction, Box::new(file))
        }))
    }

    fn data_size(&mut self) -> Result<u64> {
        data_size(&mut self.connection())
    }

    /// Without VFIO_USER_MIG_GET_PRECOPY_INFO there is nobody to tell it to.
    fn enable_precopy_info_v2(&mut self) -> Result<bool> {
        let connection = &mut *self.connection();
        if !connection.agreed.extensions().precopy_info {
            return Ok(false);
        }
        let asked = Feature::MigPrecopyInfoV2;
        match feature(connection, || asked.to_string(), asked, FeatureFlags::SET, &[], 0) {
            Ok(_) => Ok(true),
            Err(error) if matches!(error.errno(), Some(Errno::EINVAL | Errno::ENOTTY)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn dma_logging_start(&mut self, page_size: u64, ranges: &[IovaRange]) -> Result<u64> {
        let connection = &mut *self.connection();
        let asked = Feature::DmaLoggingStart;
        let what = || asked.to_string();
        let ranges: Vec<(u64, u64)> = ranges.iter().map(|range| (range.iova(), range.length())).collect();
        let mut room = vec![[0; 16]; ranges.len()];
        let data = LoggingStart::new(page_size, &ranges, &mut room).to_bytes();
        if ranges.len() > MAX_LOGGING_RANGES as usize {
            return Err(connection.refused(what(), Errno::E2BIG));
        }
        let reply = feature(connection, what, asked, FeatureFlags::SET, &data, 0)?;
        let kept = reply.first_chunk().map(|bytes| u64::from_ne_bytes(*bytes)).unwrap_or_default();
        if kept.is_power_of_two() {
            return Ok(kept);
        }
        Err(connection.nonsense(what(), format_args!("it logs in pages of {kept} bytes")))
    }

    fn dma_logging_stop(&mut self) -> Result<()> {
        let asked = Feature::DmaLoggingStop;
        feature(&mut self.connection(), || asked.to_string(), asked, FeatureFlags::SET, &[], 0).map(drop)
    }

    fn dma_logging_report(&mut self, report: &mut DirtyReport<'_>) -> Result<()> {
        let connection = &mut *self.connection();
        let asked = Feature::DmaLoggingReport;
        let what = || asked.to_string();
        let (range, page_size) = (report.range(), report.page_size());
        // A bitmap as large as a message allows, in whole words.
        let words = (connection.agreed.max_data_xfer_size as usize / 8).max(1);
        let step = page_size.saturating_mul(64).saturating_mul(words as u64);
        let mut at = 0;
        let mut first = 0;
        // A range of nothing is asked about too: the server judges it.
        loop {
            let length = step.min(range.length() - at);
            let part = LoggingReport { iova: range.iova() + at, length, page_size };
            let count = DirtyReport::words_needed(length, page_size) as usize;
            let data = part.to_bytes();
            let room = LoggingReport::SIZE + count * 8;
            let reply = feature(connection, what, asked, FeatureFlags::GET, &data, room)?;
            let bitmap = match LoggingReport::parse(&reply) {
                Ok((told, bitmap)) if told == part && bitmap.len() == count * 8 => bitmap,
                Ok(_) => return Err(connection.nonsense(what(), "its bitmap is of another range")),
                Err(error) => return Err(connection.nonsense(what(), error)),
            };
            let (bitmap, _) = bitmap.as_chunks::<8>();
            for (word, bits) in report.words_mut().iter_mut().skip(first).zip(bitmap) {
                *word |= u64::from_le_bytes(*bits);
            }
            at += length;
            first += count;
            if at >= range.length() {
                return Ok(());
            }
        }
    }

    fn map_dma(&mut self, iova: u64, rights: DmaMapFlags, memory: DmaRegion) -> Result<()> {
        let connection = &mut *self.connection();
        let what = || format!("{} at {iova:#x}", Command::DmaMap);
        let file = memory.file().cloned().filter(|_| connection.agreed.max_msg_fds > 0);
        if file.is_none() {
            connection.attend(&self.connection).map_err(|error| Error::Unusable {
                device: self.name.clone(),
                why: format!("{}: no thread to answer the server's requests for memory: {error}", what()),
            })?;
        }
        let offset = file.as_ref().map_or(0, FileOffset::start);
        let map = DmaMap { rights, modes: DmaAccessModes::empty(), offset, iova, size: memory.size() };
        let descriptors: Vec<_> = file.iter().map(|file| file.file().as_fd()).collect();
        // The device may ask for it before the server says that it is mapped.
        let size = memory.size();
        let is_new = connection.memory.insert(iova, rights, memory);
        match connection.ask(what, &Request::DmaMap(map), &descriptors).map(drop) {
            Ok(()) if is_new => Ok(()),
            Ok(()) => Err(connection.nonsense(what(), "it is mapped over what is mapped already")),
            Err(error) => {
                if is_new {
                    connection.memory.remove(iova, size);
                }
                Err(error)
            }
        }
    }

    /// Mappings that fill the range are taken away one by one, for servers that take no more at a time.
    fn unmap_dma(&mut self, iova: u64, size: u64) -> Result<u64> {
        let connection = &mut *self.connection();
        let mut ranges = connection.memory.filling(iova, size);
        if ranges.is_empty() {
            ranges.push((iova, size));
        }
        let mut unmapped = 0;
        for (iova, size) in ranges {
            let what = || format!("{} at {iova:#x}", Command::DmaUnmap);
            let request = Request::DmaUnmap(DmaUnmap::Range { iova, size, bitmap: None });
            let answer = connection.ask_repeating(what, &request, &[])?;
            match answer.map(|answer| answer.reply) {
                None => unmapped += size,
                Some(Reply::DmaUnmap(reply)) if reply.iova == iova && reply.size <= size => {
                    unmapped += reply.size;
                }
                _ => return Err(connection.nonsense(what(), "it is of another range")),
            }
            connection.memory.remove(iova, size);
        }
        Ok(unmapped)
    }
}
