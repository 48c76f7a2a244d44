//! Servers that are dispatched by an event loop: several on one thread, none of which a client can hold up.

use std::io::Write;
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tempfile::TempDir;
use vm_memory::{Bytes, MmapRegion, VolatileMemory};
use whimbrel_device::{Context, DeviceFile, DeviceInfoFlags, Driver, Errno, Info, Region, RegionInfoFlags};
use whimbrel_user::{Device, DmaMap as _, DmaRegion};
use whimbrel_vfio_user::message::{
    Command, DmaAccess, DmaAccessModes, DmaMap, Kind, MessageBuffer, RegionAccess, Reply, Request, Version,
};
use whimbrel_vfio_user::{
    Backend, BackendOptions, Capabilities, Client, ClientOptions, Served, Server, Stopper,
};

use super::support::*;
use super::takeover::{RINGS_FOR, board, set_msi};

const IOVA: u64 = 0x10_0000;

/// Dispatches servers, each until it ends.
fn dispatch(servers: &[&Server]) -> Vec<Served> {
    let mut served: Vec<Option<Served>> = vec![None; servers.len()];
    while served.iter().any(Option::is_none) {
        let mut asked: Vec<PollFd<'_>> =
            servers.iter().map(|server| PollFd::new(server, PollFlags::IN)).collect();
        poll(&mut asked, None).unwrap();
        let ready: Vec<bool> = asked.iter().map(|asked| !asked.revents().is_empty()).collect();
        for (index, server) in servers.iter().enumerate().filter(|(index, _)| ready[*index]) {
            if served[index].is_none()
                && let ControlFlow::Break(ended) = server.dispatch().unwrap()
            {
                served[index] = Some(ended);
            }
        }
    }
    served.into_iter().flatten().collect()
}

/// A server that this test dispatches itself, step by step.
struct Stepped {
    folder: TempDir,
    server: Server,
}

impl Stepped {
    fn new() -> Stepped {
        Stepped::with(Backend::new(Board::open()))
    }

    fn with(backend: Backend) -> Stepped {
        let folder = TempDir::new().unwrap();
        let server = Server::bind(folder.path().join("socket"), backend).unwrap();
        Stepped { folder, server }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    fn is_ready(&self) -> bool {
        poll(&mut [PollFd::new(&self.server, PollFlags::IN)], Some(&Timespec::default())).unwrap() > 0
    }

    /// Dispatches as long as there is something to do.
    fn settle(&self) {
        while self.is_ready() {
            assert!(self.server.dispatch().unwrap().is_continue());
        }
    }

    /// A client whose answers come only when this is dispatched.
    fn client(&self) -> Peer {
        let stream = UnixStream::connect(self.path()).unwrap();
        let mut peer = Peer::new(stream, None);
        let id = peer.send(&Request::Version(Version::proposal(plain())));
        self.settle();
        peer.answer(id, Command::Version).unwrap();
        peer
    }

    fn read(&self, peer: &mut Peer, offset: u64, count: u32) -> Vec<u8> {
        let id = peer.send(&Request::RegionRead(RegionAccess { offset, region: BAR, count }));
        self.settle();
        let answer = peer.answer(id, Command::RegionRead).unwrap();
        match answer.reply() {
            Reply::RegionRead(_, data) => data.to_vec(),
            other => panic!("{other:?}"),
        }
    }
}

fn plain() -> Capabilities {
    let mut plain = Backend::capabilities();
    (plain.twin_socket, plain.migration_extensions) = (None, None);
    plain
}

/// A thread that dispatches one server.
pub(super) fn dispatched(server: Server) -> (Stopper, JoinHandle<Served>) {
    let stopper = server.stopper();
    (stopper, std::thread::spawn(move || dispatch(&[&server])[0]))
}

#[test]
fn two_devices_are_served_by_one_thread_to_clients_that_use_them_at_the_same_time() {
    let folder = TempDir::new().unwrap();
    let paths = ["first", "second"].map(|name| folder.path().join(name));
    let servers = paths.each_ref().map(|path| Server::bind(path, Backend::new(Board::open())).unwrap());
    let stoppers = servers.each_ref().map(Server::stopper);
    let serving = std::thread::spawn(move || dispatch(&[&servers[0], &servers[1]]));
    for _ in 0..2 {
        let mut devices =
            paths.each_ref().map(|path| Client::connect(path, &ClientOptions::default()).unwrap());
        for round in 0..100_u8 {
            for device in &mut devices {
                device.write_region(BAR, 8, &[round; 4]).unwrap();
            }
            for device in &mut devices {
                let mut read = [0; 4];
                device.read_region(BAR, 8, &mut read).unwrap();
                assert_eq!(read, [round; 4]);
            }
        }
    }
    for stopper in stoppers {
        stopper.stop();
    }
    let served = serving.join().unwrap();
    assert_eq!(served.iter().map(|served| served.clients).collect::<Vec<_>>(), [2, 2]);
    assert!(!paths[0].exists(), "the socket goes away with the server");
}

#[test]
fn a_server_is_ready_before_its_first_dispatch_and_not_while_there_is_nothing_to_do() {
    let stepped = Stepped::new();
    assert!(stepped.is_ready());
    stepped.settle();
    assert!(!stepped.is_ready());
    let mut peer = stepped.client();
    assert!(!stepped.is_ready());
    assert_eq!(stepped.read(&mut peer, 0, 1), [0]);
    drop(peer);
    assert!(stepped.is_ready(), "its client has left");
    stepped.settle();
    stepped.server.stopper().stop();
    assert!(stepped.is_ready());
    let ControlFlow::Break(served) = stepped.server.dispatch().unwrap() else { panic!("it is stopped") };
    assert_eq!((served.clients, served.taken_over), (1, false));
}

#[test]
fn a_client_that_sends_byte_after_byte_is_answered_in_the_end_and_holds_up_nobody() {
    let (dripped, other) = (Stepped::new(), Stepped::new());
    let mut neighbour = other.client();
    let mut out = MessageBuffer::new();
    out.request(7, false, &Request::Version(Version::proposal(plain())));
    out.request(8, false, &Request::RegionRead(RegionAccess { offset: 0, region: BAR, count: 4 }));
    let mut stream = UnixStream::connect(dripped.path()).unwrap();
    for byte in out.as_bytes() {
        stream.write_all(&[*byte]).unwrap();
        dripped.settle();
        assert!(!dripped.is_ready(), "it waits for the rest");
        assert_eq!(other.read(&mut neighbour, 0, 1), [0]);
    }
    let mut peer = Peer::new(stream, None);
    peer.answer(7, Command::Version).unwrap();
    assert_eq!(peer.answer(8, Command::RegionRead).unwrap().payload.len(), 16 + 4);
}

#[test]
fn a_client_that_takes_no_answers_is_asked_for_no_more_and_loses_none() {
    let stepped = Stepped::new();
    let mut peer = stepped.client();
    let sent = 4000_u16;
    let mut out = MessageBuffer::new();
    for id in 0..sent {
        out.request(id, false, &Request::RegionRead(RegionAccess { offset: 0, region: BAR, count: 1024 }));
    }
    let writer = peer.sender.as_fd().try_clone_to_owned().unwrap();
    let bytes = out.as_bytes().to_vec();
    let sending = std::thread::spawn(move || UnixStream::from(writer).write_all(&bytes).unwrap());
    // Until it is ready for nothing but room: the answers are larger than all that fits into the sockets.
    while !(sending.is_finished() || is_full(&peer)) {
        stepped.settle();
    }
    stepped.settle();
    for id in 0..sent {
        // What is read makes room for more.
        while poll(&mut [PollFd::new(&peer.receiver, PollFlags::IN)], Some(&Timespec::default())).unwrap()
            == 0
            && !peer.receiver.is_ready()
        {
            stepped.settle();
        }
        let got = peer.receiver.receive().unwrap().unwrap();
        assert_eq!((got.header.id, got.header.kind), (id, Kind::Reply));
        assert_eq!(got.payload.len(), 16 + 1024);
        stepped.settle();
    }
    sending.join().unwrap();
}

/// Whether nothing more can be sent, because nothing more is read.
fn is_full(peer: &Peer) -> bool {
    poll(&mut [PollFd::new(&peer.sender, PollFlags::OUT)], Some(&Timespec::default())).unwrap() == 0
}

#[test]
fn a_second_client_is_told_that_the_device_is_in_use() {
    let stepped = Stepped::new();
    let mut peer = stepped.client();
    let mut second = Peer::new(UnixStream::connect(stepped.path()).unwrap(), None);
    let id = second.send(&Request::Version(Version::proposal(plain())));
    stepped.settle();
    assert_eq!(second.answer(id, Command::Version).err(), Some(Errno::EBUSY));
    assert_eq!(stepped.read(&mut peer, 0, 1), [0]);
}

#[test]
fn what_is_no_message_ends_the_connection_and_not_the_loop() {
    let stepped = Stepped::new();
    let mut peer = stepped.client();
    peer.sender.send(&[0xff; 64], &[]).unwrap();
    stepped.settle();
    while let Ok(Some(_)) = peer.receiver.receive() {}
    let mut next = stepped.client();
    assert_eq!(stepped.read(&mut next, 0, 1), [0]);
}

/// A device whose driver panics at a write.
struct Fragile;

impl Driver for Fragile {
    fn info(&self) -> Info {
        Info::new(DeviceInfoFlags::PCI).num_regions(1)
    }

    fn region(&self, _index: u32) -> Result<Region, Errno> {
        let flags = RegionInfoFlags::READ | RegionInfoFlags::WRITE;
        Ok(Region::new(flags, PAGE))
    }

    fn write_region(&mut self, _: &Context, _: u32, _: u64, _: &[u8]) -> Result<usize, Errno> {
        panic!("the driver panics, as it should here");
    }
}

#[test]
fn a_server_whose_driver_panicked_in_a_dispatch_ends_and_so_does_its_clients_connection() {
    let stepped = Stepped::with(Backend::new(DeviceFile::new("fragile", |_| Fragile)));
    let mut peer = stepped.client();
    peer.send(&Request::RegionWrite(RegionAccess { offset: 0, region: BAR, count: 1 }, &[1]));
    assert!(stepped.is_ready());
    std::panic::catch_unwind(AssertUnwindSafe(|| stepped.server.dispatch())).unwrap_err();
    let ended = stepped.server.dispatch().unwrap_err();
    assert!(ended.to_string().contains("panicked"), "{ended}");
    assert!(matches!(peer.receiver.receive(), Ok(None)), "no part of an answer, and the end");
    let again = stepped.server.dispatch().unwrap_err();
    assert!(again.to_string().contains("has ended"), "{again}");
}

#[test]
fn a_client_without_files_to_share_is_asked_for_its_memory_over_either_socket() {
    for twin in [None, Client::capabilities().twin_socket] {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("socket");
        let (stopper, serving) = dispatched(Server::bind(&path, Backend::new(Board::open())).unwrap());
        let capabilities = Client::capabilities().twin_socket(twin);
        let options = ClientOptions::default().capabilities(capabilities);
        let mut device = Client::connect(&path, &options).unwrap();
        let memory = MmapRegion::<()>::new(PAGE as usize).unwrap();
        let memory = Arc::new(memory);
        device.map_dma(IOVA, BOTH, DmaRegion::from(memory.clone())).unwrap();
        device.write_region(BAR, DOORBELL, &IOVA.to_ne_bytes()).unwrap();
        // The answer to the write came after the device had reached the memory.
        assert_eq!(VolatileMemory::as_volatile_slice(&*memory).read_obj::<u64>(0).unwrap(), MARK);
        drop(device);
        stopper.stop();
        assert_eq!(serving.join().unwrap().clients, 1);
    }
}

#[test]
fn memory_that_is_asked_for_is_answered_while_the_loop_waits_and_commands_behind_it_keep_their_order() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("socket");
    let (stopper, serving) = dispatched(Server::bind(&path, Backend::new(Board::open())).unwrap());
    let mut peer = Peer::new(UnixStream::connect(&path).unwrap(), None);
    peer.agree(plain());
    let map = DmaMap { rights: BOTH, modes: DmaAccessModes::empty(), offset: 0, iova: IOVA, size: PAGE };
    peer.ask(&Request::DmaMap(map)).unwrap();
    let access = RegionAccess { offset: DOORBELL, region: BAR, count: 8 };
    let ring = peer.send(&Request::RegionWrite(access, &IOVA.to_ne_bytes()));
    let behind = peer.send(&Request::RegionRead(RegionAccess { offset: 0, region: BAR, count: 1 }));
    let asked = peer.receiver.receive().unwrap().unwrap();
    assert_eq!(asked.header.command, Command::DmaWrite.number());
    let (id, written) = (asked.header.id, DmaAccess { iova: IOVA, count: 8 });
    let mut out = MessageBuffer::new();
    out.reply(id, &Reply::DmaWrite(written));
    peer.sender.send(out.as_bytes(), &[]).unwrap();
    peer.answer(ring, Command::RegionWrite).unwrap();
    peer.answer(behind, Command::RegionRead).unwrap();
    stopper.stop();
    serving.join().unwrap();
}

#[test]
fn commands_are_executed_while_a_thread_of_the_device_waits_for_memory_and_after_it() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("socket");
    let device = Board::open();
    let (stopper, serving) = dispatched(Server::bind(&path, Backend::new(device.clone())).unwrap());
    let stream = UnixStream::connect(&path).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut peer = Peer::new(stream, None);
    peer.agree(plain());
    let map = DmaMap { rights: BOTH, modes: DmaAccessModes::empty(), offset: 0, iova: IOVA, size: PAGE };
    peer.ask(&Request::DmaMap(map)).unwrap();
    for round in 0..200_u64 {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let mut data = [0; 8];
                device.bus().dma().read(IOVA, &mut data).map(|()| u64::from_ne_bytes(data))
            });
            let asked = peer.receiver.receive().unwrap().unwrap().header;
            assert_eq!(asked.command, Command::DmaRead.number());
            // Read by the thread that waits, or by the loop.
            peer.read(BAR, 0, 1).unwrap();
            let mut out = MessageBuffer::new();
            out.reply(asked.id, &Reply::DmaRead { iova: IOVA, data: &round.to_ne_bytes() });
            peer.sender.send(out.as_bytes(), &[]).unwrap();
            assert_eq!(thread.join().unwrap(), Ok(round));
        });
        peer.read(BAR, 0, 1).unwrap();
    }
    stopper.stop();
    serving.join().unwrap();
}

#[test]
fn a_server_that_takes_no_memory_to_ask_for_refuses_it() {
    let options = BackendOptions::default().remote_memory(false);
    let stepped = Stepped::with(Backend::with(Board::open(), options));
    let mut peer = stepped.client();
    let map = DmaMap { rights: BOTH, modes: DmaAccessModes::empty(), offset: 0, iova: IOVA, size: PAGE };
    let id = peer.send(&Request::DmaMap(map));
    stepped.settle();
    assert_eq!(peer.answer(id, Command::DmaMap).err(), Some(Errno::EINVAL));
}

#[test]
fn a_server_in_an_event_loop_is_taken_over_with_its_client_and_by_one_in_another() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("socket");
    let (_, old) = dispatched(Server::bind(&path, board()).unwrap().allow_takeover());
    let mut peer = Peer::new(UnixStream::connect(&path).unwrap(), None);
    peer.agree(Backend::capabilities());
    peer.write(BAR, 0, b"old").unwrap();
    let memory = memory(PAGE);
    peer.map(RINGS_FOR, PAGE, &memory).unwrap();
    let (stopper, new) = dispatched(Server::take_over(&path, board()).unwrap());
    assert!(old.join().unwrap().taken_over);
    assert_eq!(peer.read(BAR, 0, 3).unwrap(), b"old");
    peer.write(BAR, DOORBELL, &RINGS_FOR.to_ne_bytes()).unwrap();
    assert_eq!(mark_in(&memory), MARK);
    stopper.stop();
    assert_eq!(new.join().unwrap().clients, 1);
}

#[test]
fn a_server_in_an_event_loop_keeps_its_client_when_a_takeover_fails() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("socket");
    let (stopper, serving) = dispatched(Server::bind(&path, board()).unwrap().allow_takeover());
    let mut peer = Peer::new(UnixStream::connect(&path).unwrap(), None);
    peer.agree(Backend::capabilities());
    peer.write(BAR, 0, b"stays").unwrap();
    // After all was agreed on, and the client was handed over: the new server takes no mapping without a file.
    let map = DmaMap { rights: BOTH, modes: DmaAccessModes::empty(), offset: 0, iova: IOVA, size: PAGE };
    peer.ask(&Request::DmaMap(map)).unwrap();
    let signal = Signal::new();
    set_msi(&mut peer, &signal);
    let other = Board::open();
    let backend = Backend::with(other.clone(), BackendOptions::default().remote_memory(false));
    let error = Server::take_over(&path, backend).unwrap_err();
    assert!(error.to_string().contains("cannot map"), "{error}");
    other.bus().interrupts().trigger(MSI, 0);
    assert_eq!(signal.take(), 0, "the other device signals the client no more");
    assert_eq!(peer.read(BAR, 0, 5).unwrap(), b"stays");
    drop(peer);
    stopper.stop();
    assert!(!serving.join().unwrap().taken_over);
}
