//! A server that takes over from another, as the client of both sees it: not at all.

use std::fs::File;
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::ioctl_fionread;
use tempfile::TempDir;
use whimbrel_device::{DeviceFile, Errno, IoeventfdWrite, IrqAction, IrqData, ResetRule, State, WriteWidth};
use whimbrel_models::{Model, accel};
use whimbrel_uapi::device::IrqSetFlags;
use whimbrel_uapi::feature::{Feature, FeatureFlags};
use whimbrel_vfio_user::BackendOptions;
use whimbrel_vfio_user::message::DmaAccessModes;
use whimbrel_vfio_user::message::{
    Command, DeviceFeature, DmaMap, DmaUnmap, LoggingReport, MessageBuffer, RegionAccess, Reply, Request,
    SetIrqs, Version,
};
use whimbrel_vfio_user::{Backend, MigrationExtensions, Served, Server, Stopper, Takeover, TakeoverError};

use super::support::*;

/// What the doorbell's eventfd writes: where the device puts its mark.
pub(crate) const RINGS_FOR: u64 = 0x10_0000;

/// Servers at one path, one after the other.
pub(crate) struct Line {
    folder: TempDir,
    pub(crate) backend: Backend,
    pub(crate) stopper: Stopper,
    pub(crate) thread: Option<JoinHandle<std::io::Result<Served>>>,
}

pub(crate) fn board() -> Backend {
    let doorbell = IoeventfdWrite::new(BAR, DOORBELL, WriteWidth::Eight, RINGS_FOR);
    Backend::with(Board::open(), BackendOptions::default().ioeventfds(vec![doorbell]))
}

impl Line {
    pub(crate) fn new() -> Line {
        Line::with(board())
    }

    pub(crate) fn with(backend: Backend) -> Line {
        Line::of(backend, Server::allow_takeover)
    }

    /// A first server with these settings.
    pub(crate) fn of(backend: Backend, set: impl FnOnce(Server) -> Server) -> Line {
        Line::run_by(backend, set, |server| server.run())
    }

    /// A first server that an event loop dispatches, and counts how often.
    pub(crate) fn dispatched(backend: Backend, count: Arc<AtomicU64>) -> Line {
        Line::gated(backend, Arc::default(), count)
    }

    /// The same, with no turn while the gate is held. One that waits for it is counted.
    pub(crate) fn gated(backend: Backend, gate: Arc<Mutex<()>>, count: Arc<AtomicU64>) -> Line {
        Line::run_by(backend, Server::allow_takeover, move |server| {
            loop {
                poll(&mut [PollFd::new(&server, PollFlags::IN)], None).unwrap();
                count.fetch_add(1, Ordering::Relaxed);
                let _turn = gate.lock();
                if let ControlFlow::Break(served) = server.dispatch()? {
                    return Ok(served);
                }
            }
        })
    }

    fn run_by(
        backend: Backend,
        set: impl FnOnce(Server) -> Server,
        run: impl FnOnce(Server) -> std::io::Result<Served> + Send + 'static,
    ) -> Line {
        let folder = TempDir::new().unwrap();
        let server = set(Server::bind(folder.path().join("socket"), backend.clone()).unwrap());
        let stopper = server.stopper();
        let thread = Some(std::thread::spawn(move || run(server)));
        Line { folder, backend, stopper, thread }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    pub(crate) fn client(&self) -> Peer {
        let mut peer = Peer::new(UnixStream::connect(self.path()).unwrap(), None);
        peer.agree(Backend::capabilities());
        peer
    }

    /// The next server takes over, and the one before ends by itself.
    pub(crate) fn take_over(&mut self) {
        self.take_over_with(board()).unwrap();
    }

    pub(crate) fn take_over_with(&mut self, backend: Backend) -> Result<(), TakeoverError> {
        let server = Server::take_over(self.path(), backend.clone())?.allow_takeover();
        self.stopper = server.stopper();
        let thread = std::thread::spawn(move || server.run());
        let old = self.thread.replace(thread).unwrap();
        assert!(old.join().unwrap().unwrap().taken_over);
        self.backend = backend;
        Ok(())
    }

    /// Waits until its server ends by itself.
    pub(crate) fn ended_with_path(mut self) -> std::io::Result<Served> {
        let ended = self.thread.take().unwrap().join().unwrap();
        assert!(self.path().exists(), "the socket is another's");
        ended
    }

    /// Stops its server, and waits until it has ended.
    pub(crate) fn stopped(mut self) -> std::io::Result<Served> {
        self.stopper.stop();
        self.thread.take().unwrap().join().unwrap()
    }

    pub(crate) fn device(&self) -> &DeviceFile {
        self.backend.device()
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.stopper.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn set_irqs(peer: &mut Peer, flags: IrqSetFlags, index: u32, signal: &Signal) {
    let set = SetIrqs { flags: flags.bits(), index, start: 0, count: 1, data: &[] };
    peer.ask_with(&Request::DeviceSetIrqs(set), &[signal.as_fd()]).unwrap();
}

pub(crate) fn set_msi(peer: &mut Peer, signal: &Signal) {
    set_irqs(peer, IrqSetFlags::DATA_EVENTFD | IrqSetFlags::ACTION_TRIGGER, MSI, signal);
}

pub(crate) fn feature(
    peer: &mut Peer,
    feature: Feature,
    flags: FeatureFlags,
    data: &[u8],
) -> Result<Vec<u8>, Errno> {
    let argsz = 8 + data.len().max(4096) as u32;
    let request = DeviceFeature { argsz, feature: feature.number(), flags, data };
    let answer = peer.ask(&Request::DeviceFeature(request))?;
    match answer.reply() {
        Reply::DeviceFeature(feature) => Ok(feature.data.to_vec()),
        other => panic!("{other:?}"),
    }
}

pub(crate) fn set_state(peer: &mut Peer, state: State) -> Result<(), Errno> {
    let data = [state.number().to_ne_bytes(), (-1_i32).to_ne_bytes()].concat();
    feature(peer, Feature::MigDeviceState, FeatureFlags::SET, &data).map(drop)
}

pub(crate) fn state(peer: &mut Peer) -> u32 {
    let data = feature(peer, Feature::MigDeviceState, FeatureFlags::GET, &[0; 8]).unwrap();
    u32::from_ne_bytes(*data.first_chunk().unwrap())
}

#[test]
fn the_client_goes_on_with_the_same_device_and_later_ones_come_to_the_new_server() {
    let mut line = Line::new();
    let mut peer = line.client();
    peer.write(BAR, 0, b"old").unwrap();
    for round in 0..3_u8 {
        line.take_over();
        assert_eq!(peer.read(BAR, 0, 3).unwrap(), b"old");
        assert_eq!(peer.read(BAR, 3, 1).unwrap(), [round]);
        peer.write(BAR, 3, &[round + 1]).unwrap();
    }
    let mut second = Peer::new(UnixStream::connect(line.path()).unwrap(), None);
    let proposal = Request::Version(Version::proposal(Backend::capabilities()));
    assert_eq!(second.ask(&proposal).err(), Some(Errno::EBUSY));
    drop(peer);
    let mut later = line.client();
    assert_eq!(later.read(BAR, 0, 4).unwrap(), b"old\x03");
    let path = line.path();
    drop(later);
    line.stopper.stop();
    let served = line.thread.take().unwrap().join().unwrap().unwrap();
    assert_eq!((served.clients, served.taken_over), (2, false));
    assert!(!path.exists(), "the last one takes the socket away");
}

#[test]
fn a_server_without_a_client_is_taken_over_with_its_device() {
    let mut line = Line::new();
    let mut peer = line.client();
    peer.write(BAR, 0, b"old").unwrap();
    drop(peer);
    line.take_over();
    line.take_over();
    assert_eq!(line.client().read(BAR, 0, 3).unwrap(), b"old");
}

#[test]
fn a_client_that_has_agreed_on_nothing_yet_agrees_with_the_new_server() {
    let mut line = Line::new();
    let mut peer = Peer::new(UnixStream::connect(line.path()).unwrap(), None);
    // Half of a header, so that it counts as a client.
    let whole = raw(1, Command::Version.number(), 0, &[0, 0, 1, 0]);
    peer.sender.send(&whole[..8], &[]).unwrap();
    line.take_over();
    peer.sender.send(&whole[8..], &[]).unwrap();
    assert!(peer.answer(1, Command::Version).is_ok());
    assert_eq!(peer.read(BAR, 0, 1).unwrap(), [0]);
}

#[test]
fn a_message_that_is_cut_at_any_byte_is_answered_by_the_new_server() {
    let mut line = Line::new();
    let mut peer = line.client();
    let file = memory(PAGE);
    let map = DmaMap { rights: BOTH, modes: DmaAccessModes::empty(), offset: 0, iova: 0, size: PAGE };
    let mut message = MessageBuffer::new();
    message.request(7, false, &Request::DmaMap(map));
    for cut in 1..message.len() {
        let (first, rest) = message.as_bytes().split_at(cut);
        peer.sender.send(first, &[file.as_fd()]).unwrap();
        line.take_over();
        peer.sender.send(rest, &[]).unwrap();
        peer.answer(7, Command::DmaMap).unwrap();
        let before = mark_in(&file);
        peer.write(BAR, DOORBELL, &0_u64.to_ne_bytes()).unwrap();
        assert_eq!(mark_in(&file), MARK, "cut at {cut}, with {before:#x} before");
        file.write_all_at(&[0; 8], 0).unwrap();
        peer.ask(&Request::DmaUnmap(DmaUnmap::All)).unwrap();
    }
}

#[test]
fn requests_that_nobody_waits_for_are_all_answered_in_their_order() {
    const COUNT: u16 = 20_000;
    let mut line = Line::new();
    let mut peer = line.client();
    let mut sender = peer.sender.clone();
    let sending = std::thread::spawn(move || {
        let mut out = MessageBuffer::new();
        for id in 0..COUNT {
            let data = id.to_ne_bytes();
            let access = RegionAccess { offset: 0, region: BAR, count: 2 };
            out.request(id, false, &Request::RegionWrite(access, &data));
            out.request(id, false, &Request::RegionRead(access));
            if out.len() > 4096 {
                sender.send(out.as_bytes(), &[]).unwrap();
                out.clear();
            }
        }
        sender.send(out.as_bytes(), &[]).unwrap();
    });
    let reading = std::thread::spawn(move || {
        for id in 0..COUNT {
            peer.answer(id, Command::RegionWrite).unwrap();
            let answer = peer.answer(id, Command::RegionRead).unwrap();
            let Reply::RegionRead(_, data) = answer.reply() else { panic!("{answer:?}") };
            assert_eq!(data, id.to_ne_bytes());
        }
        peer
    });
    while !reading.is_finished() {
        line.take_over();
    }
    sending.join().unwrap();
    let mut peer = reading.join().unwrap();
    line.take_over();
    assert_eq!(peer.read(BAR, 0, 2).unwrap(), (COUNT - 1).to_ne_bytes());
}

#[test]
fn a_vector_that_was_set_before_fires_after() {
    let mut line = Line::new();
    let mut peer = line.client();
    let (msi, other) = (Signal::new(), Signal::new());
    set_msi(&mut peer, &msi);
    for _ in 0..2 {
        line.take_over();
        assert_eq!(msi.take(), 0);
        peer.write(BAR, DOORBELL, &[0; 8]).unwrap();
        assert_eq!(msi.take(), 1);
    }
    // And can be changed as before.
    set_msi(&mut peer, &other);
    peer.write(BAR, DOORBELL, &[0; 8]).unwrap();
    assert_eq!((msi.take(), other.take()), (0, 1));
}

#[test]
fn a_masked_line_stays_masked_and_its_eventfd_unmasks_it() {
    let mut line = Line::new();
    let mut peer = line.client();
    let (intx, unmask) = (Signal::new(), Signal::new());
    set_irqs(&mut peer, IrqSetFlags::DATA_EVENTFD | IrqSetFlags::ACTION_TRIGGER, INTX, &intx);
    set_irqs(&mut peer, IrqSetFlags::DATA_EVENTFD | IrqSetFlags::ACTION_UNMASK, INTX, &unmask);
    line.device().bus().interrupts().set_line(true);
    assert_eq!(intx.take(), 1, "it masks itself");
    line.take_over();
    line.device().bus().interrupts().set_line(true);
    assert_eq!(intx.take(), 0, "it is masked");
    unmask.signal();
    intx.wait();
    // The client masks it by a request, which holds too.
    line.device().bus().interrupts().set_line(false);
    line.device().set_irqs(INTX, 0, IrqAction::Unmask, IrqData::None(1)).unwrap();
    let flags = (IrqSetFlags::DATA_NONE | IrqSetFlags::ACTION_MASK).bits();
    let mask = SetIrqs { flags, index: INTX, start: 0, count: 1, data: &[] };
    peer.ask(&Request::DeviceSetIrqs(mask)).unwrap();
    line.take_over();
    line.device().bus().interrupts().set_line(true);
    assert_eq!(intx.take(), 0);
    unmask.signal();
    intx.wait();
}

#[test]
fn memory_that_was_mapped_before_is_written_after() {
    let mut line = Line::new();
    let mut peer = line.client();
    let (one, two) = (memory(4 * PAGE), memory(PAGE));
    // Two mappings of one file, which go over as one.
    peer.map(0, PAGE, &one).unwrap();
    let map =
        DmaMap { rights: BOTH, modes: DmaAccessModes::empty(), offset: 2 * PAGE, iova: 2 * PAGE, size: PAGE };
    peer.ask_with(&Request::DmaMap(map), &[one.as_fd()]).unwrap();
    peer.map(8 * PAGE, PAGE, &two).unwrap();
    line.take_over();
    for iova in [0, 2 * PAGE, 8 * PAGE] {
        peer.write(BAR, DOORBELL, &iova.to_ne_bytes()).unwrap();
    }
    assert_eq!((mark_in(&one), mark_at(&one, 2 * PAGE), mark_in(&two)), (MARK, MARK, MARK));
    assert_eq!(peer.map(0, PAGE, &two), Err(Errno::EEXIST));
    let unmap = DmaUnmap::Range { iova: 0, size: PAGE, bitmap: None };
    peer.ask(&Request::DmaUnmap(unmap)).unwrap();
    assert_eq!(peer.map(0, PAGE, &two), Ok(()));
}

fn mark_at(memory: &File, offset: u64) -> u64 {
    let mut mark = [0; 8];
    memory.read_exact_at(&mut mark, offset).unwrap();
    u64::from_ne_bytes(mark)
}

#[test]
fn memory_that_is_read_and_written_goes_over_with_its_file() {
    let takes_foreign = || Backend::with(Board::open(), BackendOptions::default().foreign_memory(true));
    let mut line = Line::with(takes_foreign());
    let mut peer = line.client();
    let foreign = tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let files = [memory(2 * PAGE), foreign];
    let modes = DmaAccessModes::FILE_IO;
    for (file, iova) in files.iter().zip([0, PAGE]) {
        let map = DmaMap { rights: BOTH, modes, offset: PAGE, iova, size: PAGE };
        peer.ask_with(&Request::DmaMap(map), &[file.as_fd()]).unwrap();
    }
    let error = line.take_over_with(Backend::new(Board::open())).unwrap_err();
    assert!(error.to_string().contains("EINVAL"), "it takes no foreign memory: {error}");
    for _ in 0..2 {
        line.take_over_with(takes_foreign()).unwrap();
        for (file, iova) in files.iter().zip([0, PAGE]) {
            peer.write(BAR, DOORBELL, &iova.to_ne_bytes()).unwrap();
            let mut mark = [0; 8];
            file.read_exact_at(&mut mark, PAGE).unwrap();
            assert_eq!(u64::from_ne_bytes(mark), MARK);
            file.write_all_at(&[0; 8], PAGE).unwrap();
        }
        let mappings = line.device().bus().dma().mappings();
        assert_eq!(mappings.len(), files.len());
        assert!(mappings.iter().all(|mapped| mapped.file.is_none()), "none of it is mapped");
    }
    peer.leave().unwrap();
}

#[test]
fn many_mappings_of_one_file_go_over_with_one_descriptor() {
    // Both servers are in this process, which cannot have twice as many as a client.
    const COUNT: u64 = 20_000;
    let mut line = Line::new();
    let mut peer = line.client();
    let file = memory(PAGE);
    for iova in 0..COUNT {
        let map = DmaMap {
            rights: BOTH,
            modes: DmaAccessModes::empty(),
            offset: 0,
            iova: iova * 2 * PAGE,
            size: PAGE,
        };
        peer.ask_with(&Request::DmaMap(map), &[file.as_fd()]).unwrap();
    }
    line.take_over();
    let last = (COUNT - 1) * 2 * PAGE;
    peer.write(BAR, DOORBELL, &last.to_ne_bytes()).unwrap();
    assert_eq!(mark_in(&file), MARK);
    assert_eq!(line.device().bus().dma().mappings().len() as u64, COUNT);
}

/// An eventfd that rings the doorbell.
fn doorbell(peer: &mut Peer) -> Signal {
    let request = Request::DeviceGetRegionIoFds { argsz: 4096, index: BAR };
    let mut answer = peer.ask(&request).unwrap();
    Signal::from(answer.fds.pop().expect("there is a doorbell"))
}

#[test]
fn each_ring_of_a_doorbell_is_heard_by_one_of_the_servers() {
    let mut line = Line::new();
    let mut peer = line.client();
    let msi = Signal::new();
    set_msi(&mut peer, &msi);
    let bell = doorbell(&mut peer);
    bell.signal();
    msi.wait();
    for _ in 0..3 {
        line.take_over();
        bell.signal();
        msi.wait();
        assert_eq!(msi.take(), 0, "it is heard once");
    }
    // One that rings before anybody can hear is heard by who comes.
    let takeover = Takeover::connect(line.path()).unwrap();
    bell.signal();
    msi.wait();
    drop(takeover);
    bell.signal();
    msi.wait();
}

fn report(peer: &mut Peer, pages: u64) -> u64 {
    let asked = LoggingReport { iova: 0, length: pages * PAGE, page_size: PAGE };
    let data = feature(peer, Feature::DmaLoggingReport, FeatureFlags::GET, &asked.to_bytes()).unwrap();
    u64::from_le_bytes(*data[LoggingReport::SIZE..].first_chunk().unwrap())
}

#[test]
fn pages_written_before_are_reported_after_and_only_once() {
    for names_ranges in [true, false] {
        let mut line = Line::new();
        let mut peer = line.client();
        let file = memory(64 * PAGE);
        peer.map(0, 64 * PAGE, &file).unwrap();
        let count = u32::from(names_ranges);
        let mut start = [PAGE.to_ne_bytes(), u64::from(count).to_ne_bytes()].concat();
        if names_ranges {
            start.extend_from_slice(&0_u64.to_ne_bytes());
            start.extend_from_slice(&(64 * PAGE).to_ne_bytes());
        }
        feature(&mut peer, Feature::DmaLoggingStart, FeatureFlags::SET, &start).unwrap();
        let write = |peer: &mut Peer, page: u64| {
            peer.write(BAR, DOORBELL, &(page * PAGE).to_ne_bytes()).unwrap();
        };
        write(&mut peer, 3);
        line.take_over();
        write(&mut peer, 5);
        line.take_over();
        write(&mut peer, 63);
        assert_eq!(report(&mut peer, 4), 1 << 3, "in part");
        assert_eq!(report(&mut peer, 64), 1 << 5 | 1 << 63, "the rest");
        assert_eq!(report(&mut peer, 64), 0, "all is told");
        write(&mut peer, 9);
        assert_eq!(report(&mut peer, 64), 1 << 9);
        feature(&mut peer, Feature::DmaLoggingStop, FeatureFlags::SET, &[]).unwrap();
        line.take_over();
        assert!(feature(&mut peer, Feature::DmaLoggingStop, FeatureFlags::SET, &[]).is_ok());
    }
}

#[test]
fn what_was_dirty_is_not_lost_by_a_takeover_that_fails() {
    let mut line = Line::new();
    let mut peer = line.client();
    let file = memory(64 * PAGE);
    peer.map(0, 64 * PAGE, &file).unwrap();
    let start = [PAGE.to_ne_bytes(), 0_u64.to_ne_bytes()].concat();
    feature(&mut peer, Feature::DmaLoggingStart, FeatureFlags::SET, &start).unwrap();
    peer.write(BAR, DOORBELL, &(7 * PAGE).to_ne_bytes()).unwrap();
    // It takes all, and cannot go on with what the client has agreed on.
    let capabilities = Backend::capabilities().write_multiple(false);
    let less = Backend::with(Board::open(), BackendOptions::default().capabilities(capabilities));
    let error = line.take_over_with(less).unwrap_err();
    assert!(error.to_string().contains("does not support the client's negotiated capabilities"), "{error}");
    assert_eq!(report(&mut peer, 64), 1 << 7);
}

#[test]
fn the_state_of_the_state_machine_goes_over() {
    let mut line = Line::new();
    let mut peer = line.client();
    set_state(&mut peer, State::Stop).unwrap();
    line.take_over();
    assert_eq!(state(&mut peer), State::Stop.number());
    set_state(&mut peer, State::Running).unwrap();
    line.take_over();
    assert_eq!(state(&mut peer), State::Running.number());
}

#[test]
fn a_device_that_is_being_migrated_stays() {
    let mut line = Line::new();
    let mut peer = line.client();
    peer.write(BAR, 0, b"here").unwrap();
    for busy in [State::StopCopy, State::PreCopy, State::Resuming] {
        set_state(&mut peer, busy).unwrap();
        let error = line.take_over_with(board()).unwrap_err();
        assert!(matches!(error, TakeoverError::Refused(_)), "{error}");
        assert!(error.to_string().contains(&format!("the device is in {busy}")), "{error}");
        assert_eq!(state(&mut peer), busy.number());
        peer.ask(&Request::DeviceReset).unwrap();
    }
    line.take_over();
}

#[test]
fn a_client_that_may_have_mapped_a_region_keeps_its_server() {
    let mut line = Line::new();
    let mut peer = line.client();
    let answer = peer.ask(&Request::DeviceGetRegionInfo { argsz: 4096, index: MAPPED }).unwrap();
    assert_eq!(answer.fds.len(), 1);
    let error = line.take_over_with(board()).unwrap_err();
    assert!(error.to_string().contains("may have mapped a region's file"), "{error}");
    assert_eq!(peer.write(BAR, 0, b"x"), Ok(1));
    drop(peer);
    // The next one has mapped nothing.
    let mut next = line.client();
    line.take_over();
    assert_eq!(next.read(BAR, 0, 1).unwrap(), b"x");
}

/// Waits until a socket takes no more from its other end. A server that has answered less could still rest.
fn wait_until_full(socket: impl AsFd) {
    let deadline = Instant::now() + Duration::from_mins(1);
    let (mut unread, mut since) = (0, Instant::now());
    while unread == 0 || since.elapsed() < Duration::from_millis(500) {
        assert!(Instant::now() < deadline, "{unread} bytes of answers");
        std::thread::sleep(Duration::from_millis(10));
        let now = ioctl_fionread(&socket).unwrap();
        if now != unread {
            (unread, since) = (now, Instant::now());
        }
    }
}

#[test]
fn a_client_that_takes_no_answers_keeps_its_server() {
    let mut line = Line::new();
    let mut peer = line.client();
    let access = RegionAccess { offset: 0, region: BAR, count: PAGE as u32 };
    // At once, so that the requests fit into a socket and the answers do not.
    let mut out = MessageBuffer::new();
    (0..2000).for_each(|id| out.request(id, false, &Request::RegionRead(access)));
    peer.sender.send(out.as_bytes(), &[]).unwrap();
    wait_until_full(&peer.sender);
    let error = line.take_over_with(board()).unwrap_err();
    assert!(error.to_string().contains("the client does not read replies"), "{error}");
    for id in 0..2000 {
        peer.answer(id, Command::RegionRead).unwrap();
    }
    line.take_over();
    assert_eq!(peer.write(BAR, 0, b"x"), Ok(1));
}

#[test]
fn another_device_takes_nothing() {
    let mut line = Line::new();
    let mut peer = line.client();
    for model in ["serial", "accel?state=4KiB"] {
        let other = model.parse::<Model>().unwrap().open(model).unwrap();
        let error = line.take_over_with(Backend::new(other)).unwrap_err();
        assert!(matches!(error, TakeoverError::Mismatch { .. }), "{error}");
        assert!(error.advice().is_some());
        assert_eq!(peer.write(BAR, 0, b"x"), Ok(1));
    }
    line.take_over();
}

#[test]
fn a_new_server_keeps_the_rule_for_resets_that_the_client_was_told() {
    let serial = |rule| {
        let device = "serial".parse::<Model>().unwrap().open("serial").unwrap();
        Backend::with(device, BackendOptions::default().reset_rule(rule))
    };
    let [ends, keeps] = ResetRule::ALL;
    for (old, new) in [(ends, keeps), (keeps, ends)] {
        let mut line = Line::with(serial(old));
        let mut told = Peer::new(UnixStream::connect(line.path()).unwrap(), None);
        let agreed = told.agree(Backend::capabilities()).capabilities;
        assert_eq!(agreed.migration_reset_rule, Some(old));
        let error = line.take_over_with(serial(new)).unwrap_err().to_string();
        assert!(error.contains(old.text()) && error.contains(new.text()), "{error}");
        assert_eq!(state(&mut told), State::Running.number(), "the old server goes on");
        line.take_over_with(serial(old)).unwrap();
        assert_eq!(state(&mut told), State::Running.number());
    }
    // A client that was told nothing relies on neither.
    let mut line = Line::with(serial(ends));
    let mut untold = Peer::new(UnixStream::connect(line.path()).unwrap(), None);
    untold.agree(Backend::capabilities().migration_extensions(None));
    line.take_over_with(serial(keeps)).unwrap();
    set_state(&mut untold, State::PreCopy).unwrap();
    untold.ask(&Request::DeviceReset).unwrap();
    assert_eq!(state(&mut untold), State::PreCopy.number());
}

#[test]
fn a_backend_that_is_in_use_takes_nothing() {
    let mut line = Line::new();
    let other = Line::new();
    let _client = other.client();
    let error = line.take_over_with(other.backend.clone()).unwrap_err();
    assert!(error.to_string().contains("in use"), "{error}");
    line.take_over();
}

#[test]
fn a_device_without_migration_of_its_own_moves_through_its_region() {
    for model in
        ["serial?protocol=v1", "serial?protocol=draft", "accel?state=64KiB&protocol=v1", "legacy?state=64KiB"]
    {
        let open = || model.parse::<Model>().unwrap().open(model).unwrap();
        let first = open();
        let mut line = Line::with(Backend::new(first.device().clone()));
        let mut peer = line.client();
        let register = if model.starts_with("serial") { 7 } else { 0x14 };
        let width = if model.starts_with("serial") { 1 } else { 4 };
        let value = &[0x40, 0, 0, 0][..width];
        peer.write(BAR, register, value).unwrap();
        let second = open();
        line.take_over_with(Backend::new(second.device().clone()))
            .unwrap_or_else(|error| panic!("{model}: {error}"));
        assert_eq!(peer.read(BAR, register, width as u32).unwrap(), value, "{model}");
        drop(peer);
        drop(line);
    }
}

#[test]
fn the_configuration_space_goes_over() {
    const CONFIG: u32 = 7;
    let open = || "accel?state=4KiB".parse::<Model>().unwrap().open("accel").unwrap();
    let first = open();
    let mut line = Line::with(Backend::new(first.device().clone()));
    let mut peer = line.client();
    // Bus master and INTx disable, a base address, and an address for MSI.
    peer.write(CONFIG, 4, &[0x06, 0x04]).unwrap();
    peer.write(CONFIG, 0x10, &0xfe00_0000_u32.to_le_bytes()).unwrap();
    let before = peer.read(CONFIG, 0, 256).unwrap();
    let intx = Signal::new();
    set_irqs(&mut peer, IrqSetFlags::DATA_EVENTFD | IrqSetFlags::ACTION_TRIGGER, INTX, &intx);
    let second = open();
    line.take_over_with(Backend::new(second.device().clone())).unwrap();
    assert_eq!(peer.read(CONFIG, 0, 256).unwrap(), before);
    // A queue without rings is refused, which the device asserts the line for.
    peer.write(0, accel::REGISTER_INTERRUPT_ENABLE, &accel::INTERRUPT_ERROR.to_le_bytes()).unwrap();
    peer.write(0, accel::REGISTER_CONTROL, &accel::CONTROL_ENABLE.to_le_bytes()).unwrap();
    assert_eq!(intx.take(), 0, "the bit masks it here too");
    peer.write(CONFIG, 4, &[0x06, 0x00]).unwrap();
    assert_eq!(intx.take(), 1);
}

#[test]
fn a_device_that_asserts_its_line_asserts_it_behind_the_new_server_too() {
    let open = || "accel?state=4KiB".parse::<Model>().unwrap().open("accel").unwrap();
    let first = open();
    let mut line = Line::with(Backend::new(first.device().clone()));
    let mut peer = line.client();
    peer.write(0, accel::REGISTER_INTERRUPT_ENABLE, &accel::INTERRUPT_ERROR.to_le_bytes()).unwrap();
    peer.write(0, accel::REGISTER_CONTROL, &accel::CONTROL_ENABLE.to_le_bytes()).unwrap();
    let is_asserted = |peer: &mut Peer| peer.read(7, 6, 1).unwrap()[0] & 1 << 3 != 0;
    assert!(is_asserted(&mut peer));
    let second = open();
    line.take_over_with(Backend::new(second.device().clone())).unwrap();
    // A cause that was loaded is shown once the device has worked again.
    let deadline = std::time::Instant::now() + std::time::Duration::from_mins(1);
    while !is_asserted(&mut peer) {
        assert!(std::time::Instant::now() < deadline, "the line was lost");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

#[test]
fn a_device_that_was_let_sleep_sleeps_behind_the_new_server_too() {
    let open = || "accel?state=4KiB".parse::<Model>().unwrap().open("accel").unwrap();
    let first = open();
    let mut line = Line::with(Backend::new(first.device().clone()));
    let mut peer = Peer::new(UnixStream::connect(line.path()).unwrap(), None);
    let migration_extensions = Some(MigrationExtensions::ALL);
    peer.agree(Backend::capabilities().migration_extensions(migration_extensions));
    feature(&mut peer, Feature::LowPowerEntry, FeatureFlags::SET, &[]).unwrap();
    let second = open();
    line.take_over_with(Backend::new(second.device().clone())).unwrap();
    let again = feature(&mut peer, Feature::LowPowerEntry, FeatureFlags::SET, &[]);
    assert_eq!(again, Err(Errno::EINVAL), "it is let sleep already");
    feature(&mut peer, Feature::LowPowerExit, FeatureFlags::SET, &[]).unwrap();
    // A takeover that is refused leaves it as it is, too.
    feature(&mut peer, Feature::LowPowerEntry, FeatureFlags::SET, &[]).unwrap();
    line.take_over_with(board()).unwrap_err();
    let again = feature(&mut peer, Feature::LowPowerEntry, FeatureFlags::SET, &[]);
    assert_eq!(again, Err(Errno::EINVAL), "it is let sleep still");
}
