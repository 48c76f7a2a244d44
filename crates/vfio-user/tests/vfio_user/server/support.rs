//! A device that does a little of everything, and a client that speaks to it message by message.

use std::fs::File;
use std::io::IoSliceMut;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use whimbrel_device::{
    ArcError, Capability, Context, DeviceFile, DeviceInfoFlags, DmaLogging, Driver, Errno, Info,
    IoeventfdWrite, Irq, IrqInfoFlags, Migration, MigrationFlags, MmapArea, Region, RegionInfoFlags, State,
    WriteWidth,
};
use whimbrel_memory::{DirtyLog, FileOffset};
use whimbrel_protocol::dirty::{DirtyReport, LoggingRanges};
use whimbrel_uapi::type1::DmaMapFlags;
use whimbrel_vfio_user::BackendOptions;
use whimbrel_vfio_user::message::DmaAccessModes;
use whimbrel_vfio_user::message::{
    Command, DmaMap, Kind, Limits, MessageBuffer, RegionAccess, Reply, Request, Version,
};
use whimbrel_vfio_user::{
    Backend, Capabilities, MigrationExtensions, Receiver, Sender, ServeError, connection,
};

pub(crate) const PAGE: u64 = 4096;
/// BAR 0: memory, and at its end what makes the device act.
pub(crate) const BAR: u32 = 0;
/// An IOVA written here gets [`MARK`] written to it by DMA, and MSI 0 is sent.
pub(crate) const DOORBELL: u64 = 0xff0;
pub(crate) const MARK: u64 = 0x5745_4d4f_5645_4421;
/// A region of two pages, the second of which can be mapped.
pub(crate) const MAPPED: u32 = 2;
/// A region that can be mapped in two parts which no one file holds.
pub(crate) const SCATTERED: u32 = 3;
pub(crate) const MSI: u32 = 1;
pub(crate) const INTX: u32 = 0;
pub(crate) const BOTH: DmaMapFlags = DmaMapFlags::READ.union(DmaMapFlags::WRITE);

pub(crate) fn memory(size: u64) -> File {
    let file = File::from(memfd_create("test", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(size).unwrap();
    file
}

pub(crate) struct Board {
    bar: Vec<u8>,
    mapped: File,
    log: Option<Arc<DirtyLog>>,
    /// What was given of the state, or taken.
    at: usize,
}

impl Board {
    pub(crate) fn open() -> DeviceFile {
        let bar = vec![0; PAGE as usize];
        DeviceFile::new("board", |_| Board { bar, mapped: memory(2 * PAGE), log: None, at: 0 })
    }
}

impl Driver for Board {
    fn info(&self) -> Info {
        let flags = DeviceInfoFlags::PCI | DeviceInfoFlags::RESET;
        Info::new(flags).num_regions(9).num_irqs(5)
    }

    fn region(&self, index: u32) -> Result<Region, Errno> {
        let access = RegionInfoFlags::READ | RegionInfoFlags::WRITE;
        let areas = |areas: &[u64]| {
            let areas = areas.iter().map(|offset| MmapArea::new(*offset, PAGE));
            vec![Capability::SparseMmap(areas.collect())]
        };
        let (flags, size, capabilities) = match index {
            BAR => (access, PAGE, vec![]),
            MAPPED => (access | RegionInfoFlags::MMAP, 2 * PAGE, areas(&[PAGE])),
            SCATTERED => (access | RegionInfoFlags::MMAP, 2 * PAGE, areas(&[0, PAGE])),
            _ => return Ok(Region::absent(0)),
        };
        Ok(Region::new(flags, size).capabilities(capabilities))
    }

    fn irq(&self, index: u32) -> Result<Irq, Errno> {
        let (flags, count) = match index {
            INTX => (IrqInfoFlags::EVENTFD | IrqInfoFlags::MASKABLE | IrqInfoFlags::AUTOMASKED, 1),
            MSI => (IrqInfoFlags::EVENTFD | IrqInfoFlags::NORESIZE, 4),
            _ => (IrqInfoFlags::empty(), 0),
        };
        Ok(Irq::new(flags, count))
    }

    fn read_region(&mut self, _: &Context, index: u32, offset: u64, data: &mut [u8]) -> Result<usize, Errno> {
        if index != BAR {
            return Err(Errno::EIO);
        }
        data.copy_from_slice(&self.bar[offset as usize..][..data.len()]);
        Ok(data.len())
    }

    fn write_region(
        &mut self,
        context: &Context,
        index: u32,
        offset: u64,
        data: &[u8],
    ) -> Result<usize, Errno> {
        if index != BAR {
            return Err(Errno::EIO);
        }
        self.bar[offset as usize..][..data.len()].copy_from_slice(data);
        if let (DOORBELL, Ok(iova)) = (offset, data.try_into()) {
            // What is not mapped is counted as a fault.
            let _ = context.bus().dma().write(u64::from_ne_bytes(iova), &MARK.to_ne_bytes());
            context.bus().interrupts().trigger(MSI, 0);
        }
        Ok(data.len())
    }

    fn mmap(&mut self, _: &Context, index: u32, offset: u64, _length: u64) -> Result<FileOffset, Errno> {
        let file = self.mapped.try_clone().map_err(|_| Errno::EMFILE)?;
        match index {
            // The second page is the first of its file's second half.
            MAPPED => Ok(FileOffset::new(file, offset)),
            SCATTERED => Ok(FileOffset::new(file, PAGE - offset)),
            _ => Err(Errno::EINVAL),
        }
    }

    fn reset(&mut self, _: &Context) -> Result<(), Errno> {
        self.bar.fill(0);
        Ok(())
    }

    fn migration(&mut self) -> Option<&mut dyn Migration> {
        Some(self)
    }

    fn dma_logging(&mut self) -> Option<&mut dyn DmaLogging> {
        Some(self)
    }
}

impl Migration for Board {
    fn flags(&self) -> MigrationFlags {
        MigrationFlags::STOP_COPY | MigrationFlags::PRE_COPY
    }

    fn arc(&mut self, _: &Context, from: State, to: State) -> Result<(), ArcError> {
        match (from, to) {
            (State::PreCopy, State::StopCopy) => {}
            (State::Resuming, State::Stop) if self.at < self.bar.len() => return Err(Errno::EINVAL.into()),
            _ => self.at = 0,
        }
        Ok(())
    }

    fn data_size(&mut self, _: &Context) -> Result<u64, Errno> {
        Ok(self.bar.len() as u64)
    }

    /// In short pieces, as a driver may.
    fn read(&mut self, _: &Context, buffer: &mut [u8]) -> Result<usize, Errno> {
        let count = buffer.len().min(100).min(self.bar.len() - self.at);
        buffer[..count].copy_from_slice(&self.bar[self.at..][..count]);
        self.at += count;
        Ok(count)
    }

    fn write(&mut self, _: &Context, data: &[u8]) -> Result<usize, Errno> {
        let count = data.len().min(100).min(self.bar.len() - self.at);
        if count == 0 && !data.is_empty() {
            return Err(Errno::ENOMEM);
        }
        self.bar[self.at..][..count].copy_from_slice(&data[..count]);
        self.at += count;
        Ok(count)
    }
}

impl DmaLogging for Board {
    fn start(&mut self, context: &Context, ranges: &LoggingRanges) -> Result<u64, Errno> {
        if self.log.is_some() {
            return Err(Errno::EINVAL);
        }
        let log = Arc::new(DirtyLog::new(ranges)?);
        context.bus().dma().set_log(Some(log.clone()));
        let page_size = log.page_size();
        self.log = Some(log);
        Ok(page_size)
    }

    fn stop(&mut self, context: &Context) -> Result<(), Errno> {
        self.log = None;
        context.bus().dma().set_log(None);
        Ok(())
    }

    fn report(&mut self, _: &Context, report: &mut DirtyReport<'_>) -> Result<(), Errno> {
        self.log.as_ref().ok_or(Errno::EINVAL)?.report(report);
        Ok(())
    }
}

/// A server of a [`Board`], on a thread for each connection.
pub(crate) struct Host {
    pub(crate) backend: Backend,
}

impl Host {
    pub(crate) fn new() -> Host {
        Host::with(Backend::capabilities())
    }

    pub(crate) fn with(capabilities: Capabilities) -> Host {
        let doorbell = IoeventfdWrite::new(BAR, DOORBELL, WriteWidth::Eight, 0x10_0000);
        Host {
            backend: Backend::with(
                Board::open(),
                BackendOptions::default().capabilities(capabilities).ioeventfds(vec![doorbell]),
            ),
        }
    }

    /// The client's end of a new connection, and what becomes of the server's.
    pub(crate) fn connect(&self) -> (UnixStream, JoinHandle<Result<(), ServeError>>) {
        let (server, client) = UnixStream::pair().unwrap();
        let backend = self.backend.clone();
        (client, std::thread::spawn(move || backend.serve(server)))
    }

    /// A client that has agreed on everything the server can do in the plain protocol.
    pub(crate) fn client(&self) -> Peer {
        self.client_with(None)
    }

    /// A client that has agreed on everything, with these parts of the extension.
    pub(crate) fn client_with(&self, extensions: Option<MigrationExtensions>) -> Peer {
        let (stream, thread) = self.connect();
        let mut peer = Peer::new(stream, Some(thread));
        peer.agree(Backend::capabilities().migration_extensions(extensions));
        peer
    }
}

/// Fills an eventfd's counter and drains it on threads of their own, at any moment, while `job` runs. A write that waits
/// for room would wait for the one that drains.
pub(crate) fn while_filled_and_drained(eventfd: BorrowedFd<'_>, job: impl FnOnce()) {
    let (is_over, has_filled) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                rustix::io::write(eventfd, &(u64::MAX - 1).to_ne_bytes()).unwrap();
            }
            has_filled.store(true, Ordering::Relaxed);
        });
        scope.spawn(|| {
            let mut counter = [0; 8];
            while !has_filled.load(Ordering::Relaxed) {
                let mut into = [IoSliceMut::new(&mut counter)];
                let _ = rustix::io::preadv2(eventfd, &mut into, u64::MAX, rustix::io::ReadWriteFlags::NOWAIT);
            }
        });
        job();
        is_over.store(true, Ordering::Relaxed);
    });
}

/// A client.
pub(crate) struct Peer {
    pub(crate) receiver: Receiver,
    pub(crate) sender: Sender,
    thread: Option<JoinHandle<Result<(), ServeError>>>,
    next_id: u16,
}

/// A reply as it came.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) payload: Vec<u8>,
    pub(crate) fds: Vec<OwnedFd>,
    command: Command,
}

impl Answer {
    pub(crate) fn reply(&self) -> Reply<'_> {
        Reply::parse(self.command, &self.payload, Limits::default()).unwrap()
    }
}

impl Peer {
    pub(crate) fn new(stream: UnixStream, thread: Option<JoinHandle<Result<(), ServeError>>>) -> Peer {
        let (receiver, sender) = connection(stream, Limits::default());
        Peer { receiver, sender, thread, next_id: 100 }
    }

    pub(crate) fn agree(&mut self, capabilities: Capabilities) -> Version {
        self.propose(capabilities).0
    }

    /// What the server answers to a proposal, and its descriptors.
    pub(crate) fn propose(&mut self, capabilities: Capabilities) -> (Version, Vec<OwnedFd>) {
        let answer = self.ask(&Request::Version(Version::proposal(capabilities))).unwrap();
        match answer.reply() {
            Reply::Version(version) => (version, answer.fds),
            other => panic!("{other:?}"),
        }
    }

    /// Asks without waiting, and says the request's id.
    pub(crate) fn send(&mut self, request: &Request<'_>) -> u16 {
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        let mut out = MessageBuffer::new();
        out.request(id, false, request);
        self.sender.send(out.as_bytes(), &[]).unwrap();
        id
    }

    pub(crate) fn ask(&mut self, request: &Request<'_>) -> Result<Answer, Errno> {
        self.ask_with(request, &[])
    }

    pub(crate) fn ask_with(
        &mut self,
        request: &Request<'_>,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Answer, Errno> {
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        let mut out = MessageBuffer::new();
        out.request(id, false, request);
        self.sender.send(out.as_bytes(), fds).unwrap();
        self.answer(id, request.command())
    }

    /// Sends what may be no message, and takes the answer to it.
    pub(crate) fn ask_raw(&mut self, id: u16, command: u16, payload: &[u8]) -> Result<Vec<u8>, Errno> {
        self.sender.send(&raw(id, command, 0, payload), &[]).unwrap();
        let got = self.receiver.receive().unwrap().expect("an answer");
        assert_eq!((got.header.id, got.header.command), (id, command));
        match got.header.kind {
            Kind::Error(errno) => Err(Errno::try_from(errno).unwrap_or(Errno::EIO)),
            _ => Ok(got.payload.to_vec()),
        }
    }

    pub(crate) fn answer(&mut self, id: u16, command: Command) -> Result<Answer, Errno> {
        let got = self.receiver.receive().unwrap().expect("the server has hung up");
        assert_eq!((got.header.id, got.header.command), (id, command.number()));
        match got.header.kind {
            Kind::Reply => Ok(Answer {
                payload: got.payload.to_vec(),
                fds: got.descriptors.unwrap().into_vec(),
                command,
            }),
            Kind::Error(errno) => {
                assert!(got.payload.is_empty(), "an error has a header alone");
                Err(Errno::try_from(errno).unwrap_or(Errno::EIO))
            }
            Kind::Command { .. } => panic!("the server asks nothing"),
        }
    }

    pub(crate) fn map(&mut self, iova: u64, size: u64, file: &File) -> Result<(), Errno> {
        let map = DmaMap { rights: BOTH, modes: DmaAccessModes::empty(), offset: 0, iova, size };
        self.ask_with(&Request::DmaMap(map), &[file.as_fd()]).map(drop)
    }

    pub(crate) fn read(&mut self, region: u32, offset: u64, count: u32) -> Result<Vec<u8>, Errno> {
        let access = RegionAccess { offset, region, count };
        let answer = self.ask(&Request::RegionRead(access))?;
        match answer.reply() {
            Reply::RegionRead(_, data) => Ok(data.to_vec()),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<u32, Errno> {
        let count = data.len() as u32;
        let access = RegionAccess { offset, region, count };
        let answer = self.ask(&Request::RegionWrite(access, data))?;
        match answer.reply() {
            Reply::RegionWrite(written) => Ok(written.count),
            other => panic!("{other:?}"),
        }
    }

    /// That the server has hung up.
    pub(crate) fn is_over(&mut self) -> bool {
        matches!(self.receiver.receive(), Ok(None))
    }

    /// Why the server is done with this client, which has not left.
    pub(crate) fn end(mut self) -> Result<(), ServeError> {
        self.thread.take().map_or(Ok(()), |thread| thread.join().unwrap())
    }

    /// Leaves, and waits until the server has noticed.
    pub(crate) fn leave(self) -> Result<(), ServeError> {
        let Peer { receiver, sender, thread, .. } = self;
        drop((receiver, sender));
        thread.map_or(Ok(()), |thread| thread.join().unwrap())
    }
}

/// A message of any content.
pub(crate) fn raw(id: u16, command: u16, flags: u32, payload: &[u8]) -> Vec<u8> {
    let size = 16 + payload.len() as u32;
    let mut bytes = id.to_ne_bytes().to_vec();
    bytes.extend_from_slice(&command.to_ne_bytes());
    bytes.extend_from_slice(&size.to_ne_bytes());
    bytes.extend_from_slice(&flags.to_ne_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(payload);
    bytes
}

/// An eventfd that the device signals.
pub(crate) struct Signal(OwnedFd);

impl Signal {
    pub(crate) fn new() -> Signal {
        Signal(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap())
    }

    /// How often it was signalled since it was last asked.
    pub(crate) fn take(&self) -> u64 {
        let mut count = [0; 8];
        rustix::io::read(&self.0, &mut count).map_or(0, |_| u64::from_ne_bytes(count))
    }

    /// Signals it, as the client does.
    pub(crate) fn signal(&self) {
        rustix::io::write(&self.0, &1_u64.to_ne_bytes()).unwrap();
    }

    pub(crate) fn wait(&self) {
        poll(&mut [PollFd::new(&self.0, PollFlags::IN)], None).unwrap();
        assert_ne!(self.take(), 0);
    }
}

impl From<OwnedFd> for Signal {
    fn from(eventfd: OwnedFd) -> Signal {
        Signal(eventfd)
    }
}

impl AsFd for Signal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// What the device has written to the start of a memory.
pub(crate) fn mark_in(memory: &File) -> u64 {
    use std::os::unix::fs::FileExt;
    let mut mark = [0; 8];
    memory.read_exact_at(&mut mark, 0).unwrap();
    u64::from_ne_bytes(mark)
}
