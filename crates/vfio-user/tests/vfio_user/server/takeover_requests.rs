//! The device's requests for its client's memory, while a server is taken over: each is answered to the server that sent
//! it.

use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::io::ioctl_fionread;
use serde_json::json;
use whimbrel_device::dma::{DmaFault, FaultCause};
use whimbrel_device::{DeviceFile, Errno, State};
use whimbrel_vfio_user::message::{
    Command, DmaAccess, DmaAccessModes, DmaMap, MessageBuffer, RegionAccess, Reply, Request,
};
use whimbrel_vfio_user::{Backend, Takeover};

use super::hand::*;
use super::support::*;
use super::takeover::{Line, board};

#[test]
fn commands_that_wait_while_the_device_waits_for_memory_are_executed_by_the_new_server() {
    let mut line = Line::new();
    let mut peer = Peer::new(UnixStream::connect(line.path()).unwrap(), None);
    peer.agree(Backend::capabilities().twin_socket(None));
    let map = DmaMap { rights: BOTH, modes: DmaAccessModes::empty(), offset: 0, iova: 0, size: PAGE };
    peer.ask(&Request::DmaMap(map)).unwrap();
    for round in 0..5_u8 {
        let ring = peer
            .send(&Request::RegionWrite(RegionAccess { offset: DOORBELL, region: BAR, count: 8 }, &[0; 8]));
        // The device waits for the client, and these wait for the device.
        let asked = peer.receiver.receive().unwrap().expect("a request");
        assert_eq!(asked.header.command, Command::DmaWrite.number());
        let id = asked.header.id;
        let access = RegionAccess { offset: 0, region: BAR, count: 1 };
        let data = [round];
        let write = peer.send(&Request::RegionWrite(access, &data));
        let read = peer.send(&Request::RegionRead(access));
        let takeover = Takeover::connect(line.path()).unwrap();
        let backend = board();
        let taking = {
            let backend = backend.clone();
            std::thread::spawn(move || takeover.finish(backend).unwrap())
        };
        // Whether or not the old server is asked to rest by then, all is answered.
        std::thread::sleep(Duration::from_millis(20));
        let mut out = MessageBuffer::new();
        out.reply(id, &Reply::DmaWrite(DmaAccess { iova: 0, count: 8 }));
        peer.sender.send(out.as_bytes(), &[]).unwrap();
        let server = taking.join().unwrap().allow_takeover();
        line.stopper = server.stopper();
        let old = line.thread.replace(std::thread::spawn(move || server.run())).unwrap();
        assert!(old.join().unwrap().unwrap().taken_over);
        line.backend = backend;
        peer.answer(ring, Command::RegionWrite).unwrap();
        peer.answer(write, Command::RegionWrite).unwrap();
        let answer = peer.answer(read, Command::RegionRead).unwrap();
        let Reply::RegionRead(_, data) = answer.reply() else { panic!("{answer:?}") };
        assert_eq!(data, [round]);
    }
}

#[test]
fn a_client_that_has_not_answered_a_request_for_memory_keeps_its_server() {
    let mut line = Line::new();
    let mut peer = Peer::new(UnixStream::connect(line.path()).unwrap(), None);
    peer.agree(Backend::capabilities().twin_socket(None));
    let map = DmaMap { rights: BOTH, modes: DmaAccessModes::empty(), offset: 0, iova: 0, size: PAGE };
    peer.ask(&Request::DmaMap(map)).unwrap();
    let device = line.device().clone();
    // A thread of the device, which holds it no longer.
    let reading = std::thread::spawn(move || device.bus().dma().read(0, &mut [0; 4]));
    let asked = peer.receiver.receive().unwrap().expect("a request").header.id;
    let kept = line.take_over_with(board()).unwrap_err();
    assert!(
        kept.to_string().contains("the client has not answered a request for memory; try again"),
        "{kept}"
    );
    assert_eq!(line.device().mig_state(), Ok(State::Running));
    let mut out = MessageBuffer::new();
    out.reply(asked, &Reply::DmaRead { iova: 0, data: &[0; 4] });
    peer.sender.send(out.as_bytes(), &[]).unwrap();
    reading.join().unwrap().unwrap();
    line.take_over();
    assert_eq!(peer.write(BAR, 0, b"after"), Ok(5));
}

/// The part of a device that reads memory on a thread of its own, a chunk each time that it is told to.
struct Chunks {
    begin: Option<Sender<()>>,
    results: Receiver<Result<(), DmaFault>>,
    thread: Option<JoinHandle<()>>,
}

impl Chunks {
    fn of(device: DeviceFile) -> Chunks {
        let (begin, orders) = channel();
        let (sender, results) = channel();
        let thread = std::thread::spawn(move || {
            for () in orders {
                let _ = sender.send(device.bus().dma().read(0, &mut [0; 4]));
            }
        });
        Chunks { begin: Some(begin), results, thread: Some(thread) }
    }

    fn begin(&self) {
        self.begin.as_ref().unwrap().send(()).unwrap();
    }

    fn result(&self) -> Result<(), DmaFault> {
        self.results.recv().unwrap()
    }
}

impl Drop for Chunks {
    fn drop(&mut self) {
        self.begin = None;
        let _ = self.thread.take().unwrap().join();
    }
}

/// A client whose memory the device asks for, over the socket of its commands or another one.
struct Owner {
    peer: Peer,
    twin: Option<Peer>,
}

impl Owner {
    fn of(line: &Line, has_twin: bool) -> Owner {
        let mut peer = Peer::new(UnixStream::connect(line.path()).unwrap(), None);
        let capabilities = Backend::capabilities();
        let (_, twin) = peer.propose(if has_twin { capabilities } else { capabilities.twin_socket(None) });
        assert_eq!(twin.len(), usize::from(has_twin));
        let twin = twin.into_iter().next().map(|twin| Peer::new(UnixStream::from(twin), None));
        let map = DmaMap { rights: BOTH, modes: DmaAccessModes::empty(), offset: 0, iova: 0, size: PAGE };
        peer.ask(&Request::DmaMap(map)).unwrap();
        Owner { peer, twin }
    }

    /// The end of the socket at which the device asks.
    fn asked(&mut self) -> &mut Peer {
        self.twin.as_mut().unwrap_or(&mut self.peer)
    }

    /// Answers a chunk that the device reads.
    fn answer(&mut self) {
        let asked = self.asked();
        let id = asked.receiver.receive().unwrap().expect("a request").header.id;
        let mut out = MessageBuffer::new();
        out.reply(id, &Reply::DmaRead { iova: 0, data: &[0; 4] });
        asked.sender.send(out.as_bytes(), &[]).unwrap();
    }
}

/// How a new server that was offered everything leaves the device to the old one.
const ENDS: [fn(Hand); 4] = [
    drop,
    |mut hand| hand.say(&json!({"message": "failed", "why": "no"})),
    |mut hand| hand.say(&json!({"message": "accept"})),
    |mut hand| {
        hand.say(&json!({"message": "ready"}));
        assert_eq!(kind(&hand.hear().unwrap()), "handover");
        hand.say(&json!({"message": "failed", "why": "the device does not start"}));
    },
];

#[test]
fn the_next_chunk_of_a_read_is_not_asked_for_while_the_client_is_handed_over() {
    for has_twin in [false, true] {
        let mut line = Line::new();
        let mut owner = Owner::of(&line, has_twin);
        let chunks = Chunks::of(line.device().clone());
        for end in ENDS {
            chunks.begin();
            owner.answer();
            chunks.result().unwrap();
            // Between two chunks.
            let mut hand = Hand::connect(&line.path());
            listen_to_all(&mut hand);
            chunks.begin();
            let fault = chunks.result().unwrap_err();
            assert_eq!(fault.cause, FaultCause::Remote(Errno::EFAULT));
            assert_eq!(ioctl_fionread(&owner.asked().receiver).unwrap(), 0, "the client was asked");
            end(hand);
            // Once the old server answers, the device is its own again.
            owner.peer.write(BAR, 0, b"on").unwrap();
        }
        chunks.begin();
        owner.answer();
        chunks.result().unwrap();
        line.take_over();
        chunks.begin();
        chunks.result().unwrap_err();
        assert_eq!(owner.peer.read(BAR, 0, 2).unwrap(), b"on");
    }
}
