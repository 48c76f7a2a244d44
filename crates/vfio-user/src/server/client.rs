//! One client: its messages, one after the other, each with its answer.

use std::collections::BTreeMap;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use parking_lot::MutexGuard;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use whimbrel_device::{DataFile, DeviceFile, Errno, IoeventfdWrite, IrqAction, IrqData};
use whimbrel_protocol::dirty::DirtyReport;
use whimbrel_uapi::device::{IrqInfoFlags, IrqSetFlags, VFIO_IRQ_SET_DATA_TYPE_MASK};
use whimbrel_uapi::ioctl::VFIO_DEVICE_SET_IRQS;

use super::feature::{Log, put_words};
use super::mappings::Mappings;
use super::process::Caller;
use super::{ServeError, Shared, region_info};
use crate::message::{
    BitmapRequest, Command, DeviceInfoReply, DirtyBitmap, DmaMap, DmaUnmap, DmaUnmapReply, IoFdKind,
    IrqInfoReply, Kind, Limits, LoggingReport, MessageBuffer, RegionAccess, RegionInfoReply,
    RegionIoFdsReply, Reply, Request, SetIrqs, SubRegion, Version, WriteMulti,
};
use crate::socket::{DescriptorError, Incoming, Receiver, Sender, SocketError};
use crate::{Capabilities, eventfd};

/// Replies that are sent together at most, in bytes, beside the last.
const BATCH: usize = 64 * 1024;

/// What the server knows of its client. What the client has set up ends with it; the device's state stays.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) backend: Arc<Shared>,
    sender: Sender,
    /// Replies that were not sent yet.
    pub(super) out: MessageBuffer,
    /// Descriptors for the last of them.
    descriptors: Vec<OwnedFd>,
    /// What VFIO_USER_VERSION has agreed on; nothing else is answered before.
    agreed: Option<Capabilities>,
    pub(super) mappings: Option<Mappings>,
    pub(super) log: Option<Log>,
    ioeventfds: BTreeMap<IoeventfdWrite, EventFd>,
    /// The bitmap of the last report, kept for its memory.
    pub(super) words: Vec<u64>,
}

impl Client {
    pub(super) fn new(backend: Arc<Shared>, sender: Sender) -> Client {
        Client {
            backend,
            sender,
            out: MessageBuffer::new(),
            descriptors: Vec::new(),
            agreed: None,
            mappings: None,
            log: None,
            ioeventfds: BTreeMap::new(),
            words: Vec::new(),
        }
    }

    pub(super) fn device(&self) -> &DeviceFile {
        &self.backend.device
    }

    pub(super) fn data_file(&self) -> MutexGuard<'_, Option<DataFile>> {
        self.backend.data_file.lock()
    }

    /// What one message may carry.
    pub(super) fn limits(&self) -> Limits {
        let agreed = self.agreed.as_ref().unwrap_or(&self.backend.capabilities);
        Limits { max_data_xfer_size: agreed.max_data_xfer_size }
    }

    /// Serves until the client leaves.
    pub(super) fn run(mut self, mut receiver: Receiver) -> Result<(), ServeError> {
        loop {
            if !receiver.is_ready() || self.out.len() >= BATCH {
                self.flush()?;
            }
            let next = match receiver.receive() {
                Ok(Some(message)) => self.message(message)?,
                Ok(None) => return Ok(()),
                Err(error) => {
                    if let SocketError::Frame(frame) = &error
                        && !frame.is_reply
                    {
                        self.out.error(frame.id, frame.command, frame.errno());
                        self.flush()?;
                    }
                    return Err(error.into());
                }
            };
            if let ControlFlow::Break(error) = next {
                self.flush()?;
                return Err(error);
            }
            receiver.set_limits(self.limits());
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        if !self.out.is_empty() {
            let sent = self.sender.send(self.out.as_bytes(), &[]);
            self.out.clear();
            sent?;
        }
        Ok(())
    }

    fn message(&mut self, message: Incoming<'_>) -> io::Result<ControlFlow<ServeError>> {
        let Incoming { header, payload, descriptors } = message;
        let Kind::Command { no_reply } = header.kind else {
            tracing::debug!(id = header.id, command = header.command_name(), "a reply that nobody asked for");
            return Ok(ControlFlow::Continue(()));
        };
        let before = self.out.len();
        let (answer, next) = self.command(header.id, header.command, payload, descriptors);
        if let Err(errno) = answer {
            tracing::debug!(id = header.id, command = header.command_name(), %errno, "refused");
            self.out.shrink(self.out.len() - before);
            self.descriptors.clear();
            self.out.error(header.id, header.command, errno);
        }
        if no_reply {
            self.out.shrink(self.out.len() - before);
            self.descriptors.clear();
        }
        if !self.descriptors.is_empty() {
            let descriptors: Vec<_> = self.descriptors.iter().map(AsFd::as_fd).collect();
            let (earlier, last) = self.out.as_bytes().split_at(before);
            self.sender.send(earlier, &[])?;
            self.sender.send(last, &descriptors)?;
            self.out.clear();
            self.descriptors.clear();
        }
        Ok(next)
    }

    /// Executes one command and writes its reply. After some errors the connection is over.
    fn command(
        &mut self,
        id: u16,
        number: u16,
        payload: &[u8],
        descriptors: Result<Vec<OwnedFd>, DescriptorError>,
    ) -> (Result<(), Errno>, ControlFlow<ServeError>) {
        let command = Command::try_from(number);
        if self.agreed.is_none() && command != Ok(Command::Version) {
            return (Err(Errno::EINVAL), ControlFlow::Break(ServeError::NoVersion(number)));
        }
        let request = match command {
            Ok(command) => Request::parse(command, payload, self.limits()),
            Err(_) => return (Err(Errno::ENOTTY), ControlFlow::Continue(())),
        };
        let request = match request {
            Ok(request) => request,
            Err(error) => {
                tracing::debug!(id, %error, "malformed");
                let errno = error.errno();
                // Without a version nothing else can be said.
                return match self.agreed {
                    Some(_) => (Err(errno), ControlFlow::Continue(())),
                    None => (Err(errno), ControlFlow::Break(ServeError::NoVersion(number))),
                };
            }
        };
        if let Request::Version(version) = &request {
            return self.version(id, version);
        }
        let answer = match self.take(&request, descriptors) {
            Ok(descriptors) => self.execute(id, &request, descriptors),
            Err(errno) => Err(errno),
        };
        (answer, ControlFlow::Continue(()))
    }

    /// The descriptors of a request, if it may have as many.
    fn take(
        &self,
        request: &Request<'_>,
        descriptors: Result<Vec<OwnedFd>, DescriptorError>,
    ) -> Result<Vec<OwnedFd>, Errno> {
        let descriptors = descriptors.map_err(|error| match error {
            DescriptorError::TooMany => Errno::EINVAL,
            DescriptorError::Lost => Errno::EMFILE,
        })?;
        let most = match request {
            Request::DmaMap(_) => 1,
            Request::DeviceSetIrqs(_) => self.backend.capabilities.max_msg_fds as usize,
            _ => 0,
        };
        if descriptors.len() > most { Err(Errno::EINVAL) } else { Ok(descriptors) }
    }

    fn version(&mut self, id: u16, proposed: &Version) -> (Result<(), Errno>, ControlFlow<ServeError>) {
        if self.agreed.is_some() {
            return (Err(Errno::EINVAL), ControlFlow::Continue(()));
        }
        match proposed.answer(&self.backend.capabilities) {
            Ok(answer) => {
                let page_size = answer.capabilities.pgsizes & answer.capabilities.pgsizes.wrapping_neg();
                let most = answer.capabilities.max_dma_maps;
                self.mappings = Some(Mappings::new(self.device().clone(), page_size, most));
                self.agreed = Some(answer.capabilities.clone());
                self.out.reply(id, &Reply::Version(answer));
                (Ok(()), ControlFlow::Continue(()))
            }
            Err(error) => (Err(error.errno()), ControlFlow::Break(error.into())),
        }
    }

    fn execute(&mut self, id: u16, request: &Request<'_>, descriptors: Vec<OwnedFd>) -> Result<(), Errno> {
        match request {
            Request::DmaMap(map) => self.dma_map(id, *map, descriptors),
            Request::DmaUnmap(unmap) => self.dma_unmap(id, *unmap),
            Request::DeviceGetInfo { argsz } => {
                let reply = DeviceInfoReply::new(self.device().info(), *argsz);
                self.out.reply(id, &Reply::DeviceGetInfo(reply));
                Ok(())
            }
            Request::DeviceGetRegionInfo { argsz, index } => {
                let takes_file = self.agreed.as_ref().is_some_and(|agreed| agreed.max_msg_fds > 0);
                let (region, file) = region_info::describe(self.device(), *index, takes_file)?;
                self.descriptors.extend(file);
                let reply = RegionInfoReply::new(*index, region, *argsz);
                self.out.reply(id, &Reply::DeviceGetRegionInfo(reply));
                Ok(())
            }
            Request::DeviceGetRegionIoFds { argsz, index } => self.region_io_fds(id, *argsz, *index),
            Request::DeviceGetIrqInfo { index, .. } => {
                let irq = self.device().irq_info(*index)?;
                self.out.reply(id, &Reply::DeviceGetIrqInfo(IrqInfoReply { index: *index, irq }));
                Ok(())
            }
            Request::DeviceSetIrqs(set) => self.set_irqs(id, set, descriptors),
            Request::RegionRead(access) => self.region_read(id, *access),
            Request::RegionWrite(access, data) => {
                let count = self.device().write_region(access.region, access.offset, data)? as u32;
                self.out.reply(id, &Reply::RegionWrite(RegionAccess { count, ..*access }));
                Ok(())
            }
            Request::RegionWriteMulti(writes) => self.write_multi(id, writes),
            Request::DeviceReset => {
                self.device().reset()?;
                self.out.reply(id, &Reply::DeviceReset);
                Ok(())
            }
            Request::DeviceFeature(feature) => self.device_feature(id, feature),
            Request::MigDataRead { size } => self.mig_data_read(id, *size),
            Request::MigDataWrite { data } => self.mig_data_write(id, data),
            // Answered before, and commands that only a server sends.
            Request::Version(_) | Request::DmaRead(_) | Request::DmaWrite { .. } => Err(Errno::ENOTTY),
        }
    }

    fn dma_map(&mut self, id: u16, map: DmaMap, mut descriptors: Vec<OwnedFd>) -> Result<(), Errno> {
        self.mappings.as_mut().ok_or(Errno::EINVAL)?.map(map, descriptors.pop())?;
        self.out.reply(id, &Reply::DmaMap);
        Ok(())
    }

    fn dma_unmap(&mut self, id: u16, unmap: DmaUnmap) -> Result<(), Errno> {
        let mappings = self.mappings.as_mut().ok_or(Errno::EINVAL)?;
        let flags = unmap.flags();
        let (iova, size, bitmap) = match unmap {
            DmaUnmap::All => {
                let size = mappings.unmap_all();
                let reply = DmaUnmapReply { flags, iova: 0, size, bitmap: None };
                self.out.reply(id, &Reply::DmaUnmap(reply));
                return Ok(());
            }
            DmaUnmap::Range { iova, size, bitmap } => (iova, size, bitmap),
        };
        let Some(BitmapRequest { page_size, size: bits }) = bitmap else {
            let size = mappings.unmap(iova, size)?;
            let reply = DmaUnmapReply { flags, iova, size, bitmap: None };
            self.out.reply(id, &Reply::DmaUnmap(reply));
            return Ok(());
        };
        // The checks of `vfio_iommu_type1_unmap_dma()`: all before anything is unmapped.
        let range = DirtyReport::check(iova, size, page_size).map_err(|_| Errno::EINVAL)?;
        let words = DirtyReport::words_needed(range.length(), page_size);
        if self.log.is_none() || words == 0 || bits < words.saturating_mul(8) {
            return Err(Errno::EINVAL);
        }
        // The log is asked for the pages when the device can no longer write them.
        let mapped: Vec<(u64, u64)> = mappings.ranges().collect();
        let unmapped = mappings.unmap(iova, size)?;
        self.report(LoggingReport { iova, length: size, page_size }, &mapped)?;
        let mut bytes = MessageBuffer::new();
        put_words(&mut bytes, &self.words);
        bytes.grow(bits as usize - bytes.len()).fill(0);
        let bitmap = Some(DirtyBitmap { page_size, bits: bytes.as_bytes() });
        self.out.reply(id, &Reply::DmaUnmap(DmaUnmapReply { flags, iova, size: unmapped, bitmap }));
        Ok(())
    }

    fn region_io_fds(&mut self, id: u16, argsz: u32, index: u32) -> Result<(), Errno> {
        self.device().region_info(index)?;
        let most = self.agreed.as_ref().map_or(0, |agreed| agreed.max_msg_fds as usize);
        let backend = self.backend.clone();
        let writes: Vec<IoeventfdWrite> =
            backend.ioeventfds.iter().filter(|write| write.region == index).take(most).copied().collect();
        let sub_regions: Vec<SubRegion> = writes
            .iter()
            .zip(0..)
            .map(|(write, fd_index)| SubRegion {
                offset: write.offset,
                size: write.width.bytes() as u64,
                fd_index,
                kind: IoFdKind::Ioeventfd { flags: IoFdKind::DATAMATCH, datamatch: write.data },
            })
            .collect();
        let reply = RegionIoFdsReply::new(index, sub_regions, argsz);
        if reply.is_whole() {
            for write in writes {
                let fd = self.ioeventfd(write)?;
                self.descriptors.push(fd);
            }
        }
        self.out.reply(id, &Reply::DeviceGetRegionIoFds(reply));
        Ok(())
    }

    /// The eventfd that makes a write, for the client.
    fn ioeventfd(&mut self, write: IoeventfdWrite) -> Result<OwnedFd, Errno> {
        let errno = |error: io::Error| error.raw_os_error().map_or(Errno::EMFILE, Errno::from_raw);
        if !self.ioeventfds.contains_key(&write) {
            let made = EventFd::new(EFD_NONBLOCK).map_err(errno)?;
            self.device().set_ioeventfd(write, Some(made.try_clone().map_err(errno)?))?;
            self.ioeventfds.insert(write, made);
        }
        let eventfd = self.ioeventfds.get(&write).ok_or(Errno::EMFILE)?;
        eventfd::to_descriptor(eventfd).map_err(errno)
    }

    /// As the raw request, whose array of descriptors is made of those that came: each is the number of its
    /// place.
    fn set_irqs(&mut self, id: u16, set: &SetIrqs<'_>, descriptors: Vec<OwnedFd>) -> Result<(), Errno> {
        /// Bytes before the array.
        const HEAD: u32 = 20;
        let data_type = IrqSetFlags::from_bits_retain(set.flags & VFIO_IRQ_SET_DATA_TYPE_MASK);
        let with_eventfds = data_type == IrqSetFlags::DATA_EVENTFD;
        let right_count = if with_eventfds { set.count as usize } else { 0 };
        if !descriptors.is_empty() && descriptors.len() != right_count {
            return Err(Errno::EINVAL);
        }
        let data: Vec<u8> = if with_eventfds {
            (0_i32..).take(descriptors.len()).flat_map(i32::to_ne_bytes).collect()
        } else {
            set.data.to_vec()
        };
        // Without descriptors the array is -1 as far as it goes.
        let filler = (with_eventfds && descriptors.is_empty()).then_some(0xff);
        let size = if with_eventfds { set.count.saturating_mul(4) } else { data.len() as u32 };
        let fields = [HEAD.saturating_add(size), set.flags, set.index, set.start, set.count];
        let mut memory: Vec<u8> = fields.into_iter().flat_map(u32::to_ne_bytes).collect();
        memory.extend_from_slice(&data);
        let mut caller = Caller { memory, filler, descriptors, ..Caller::default() };
        self.device().ioctl(VFIO_DEVICE_SET_IRQS.number(), 0, &mut caller)?;
        self.out.reply(id, &Reply::DeviceSetIrqs);
        Ok(())
    }

    fn region_read(&mut self, id: u16, access: RegionAccess) -> Result<(), Errno> {
        /// Where a reply has its count.
        const COUNT: usize = 12;
        let message = self.out.begin(id, Command::RegionRead.number(), Kind::Reply);
        access.put(&mut self.out);
        let room = self.out.grow(access.count as usize);
        let count = self.backend.device.read_region(access.region, access.offset, room)?;
        self.out.shrink(access.count as usize - count);
        self.out.patch_u32(&message, COUNT, count as u32);
        self.out.finish(message);
        Ok(())
    }

    fn write_multi(&mut self, id: u16, writes: &WriteMulti<'_>) -> Result<(), Errno> {
        if !self.agreed.as_ref().is_some_and(|agreed| agreed.write_multiple) {
            return Err(Errno::ENOTTY);
        }
        let mut completed = 0;
        for write in writes.iter() {
            match self.device().write_region(write.region(), write.offset(), write.data()) {
                Ok(count) if count == write.data().len() => completed += 1,
                Err(errno) if completed == 0 => return Err(errno),
                // What was done is told, as the kernel tells of a write that ends early.
                Ok(_) | Err(_) => break,
            }
        }
        self.out.reply(id, &Reply::RegionWriteMulti { completed });
        Ok(())
    }

    /// Fewer bytes than asked for mean that there are no more, for good or for now: so it reads until one or
    /// the other.
    fn mig_data_read(&mut self, id: u16, size: u32) -> Result<(), Errno> {
        let backend = self.backend.clone();
        let data_file = backend.data_file.lock();
        // As a descriptor that was never given.
        let data_file = data_file.as_ref().ok_or(Errno::EBADF)?;
        let message = self.out.begin(id, Command::MigDataRead.number(), Kind::Reply);
        self.out.put(&[0; 8]);
        let room = self.out.grow(size as usize);
        let mut filled = 0;
        while filled < room.len() {
            match data_file.read(&mut room[filled..]) {
                Ok(0) | Err(Errno::ENOMSG) => break,
                Ok(count) => filled += count,
                Err(errno) => return Err(errno),
            }
        }
        self.out.shrink(size as usize - filled);
        self.out.patch_u32(&message, 0, 8 + filled as u32);
        self.out.patch_u32(&message, 4, filled as u32);
        self.out.finish(message);
        Ok(())
    }

    fn mig_data_write(&mut self, id: u16, mut data: &[u8]) -> Result<(), Errno> {
        let backend = self.backend.clone();
        let data_file = backend.data_file.lock();
        let data_file = data_file.as_ref().ok_or(Errno::EBADF)?;
        // A write of nothing is judged too.
        loop {
            let taken = data_file.write(data)?;
            data = &data[taken.min(data.len())..];
            match (data.is_empty(), taken) {
                (true, _) => break,
                // Nothing would ever change.
                (false, 0) => return Err(Errno::EIO),
                (false, _) => {}
            }
        }
        self.out.reply(id, &Reply::MigDataWrite);
        Ok(())
    }
}

/// The client leaves: what it has set up goes with it.
impl Drop for Client {
    fn drop(&mut self) {
        let device = &self.backend.device;
        for index in 0..device.info().num_irqs {
            let has_eventfds = |irq: &whimbrel_device::Irq| irq.flags.contains(IrqInfoFlags::EVENTFD);
            if device.irq_info(index).is_ok_and(|irq| irq.count > 0 && has_eventfds(&irq)) {
                // One that was not set up has nothing to end.
                let _ = device.set_irqs(index, 0, IrqAction::Trigger, IrqData::None(0));
            }
        }
        for write in self.ioeventfds.keys() {
            let _ = device.set_ioeventfd(*write, None);
        }
        if self.log.is_some() {
            // Nobody is left to be told.
            let _ = device.dma_logging_stop();
        }
        self.mappings = None;
        // Whoever else holds the socket, the client sees its end, and can come again.
        self.sender.shutdown();
    }
}
