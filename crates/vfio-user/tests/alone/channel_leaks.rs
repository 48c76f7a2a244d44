//! Data sessions that are over leave neither descriptors nor threads, however they end.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use super::leaks::open;
use whimbrel_models::Model;
use whimbrel_uapi::feature::{Feature, FeatureFlags};
use whimbrel_user::{Migratable, State};
use whimbrel_vfio_user::message::{DeviceFeature, Limits, MessageBuffer, Request, Version};
use whimbrel_vfio_user::{Backend, Client, ClientOptions, Receiver, Sender, connection};

/// A client by messages, which takes what descriptors come.
struct Peer {
    receiver: Receiver,
    sender: Sender,
}

impl Peer {
    fn new(stream: UnixStream) -> Peer {
        let (receiver, sender) = connection(stream, Limits::default());
        Peer { receiver, sender }
    }

    fn ask(&mut self, no_reply: bool, request: &Request<'_>) -> Vec<OwnedFd> {
        let mut out = MessageBuffer::new();
        out.request(1, no_reply, request);
        self.sender.send(out.as_bytes(), &[]).unwrap();
        if no_reply {
            return Vec::new();
        }
        self.receiver.receive().unwrap().unwrap().descriptors.unwrap().into_vec()
    }

    fn set(&mut self, no_reply: bool, state: State) -> Vec<OwnedFd> {
        let data = [state.number().to_ne_bytes(), [0; 4]].concat();
        let (feature, flags) = (Feature::MigDeviceState.number(), FeatureFlags::SET);
        self.ask(no_reply, &Request::DeviceFeature(DeviceFeature { argsz: 16, feature, flags, data: &data }))
    }
}

/// Sessions of one connection, ended in each way in which a client can.
fn by_messages(backend: &Backend, round: usize) {
    let (server, stream) = UnixStream::pair().unwrap();
    let serving = std::thread::spawn({
        let backend = backend.clone();
        move || backend.serve(server)
    });
    let mut peer = Peer::new(stream);
    let capabilities = Backend::capabilities().twin_socket(None);
    peer.ask(false, &Request::Version(Version::proposal(capabilities)));
    let mut held = Vec::new();
    for state in [State::PreCopy, State::StopCopy, State::Resuming] {
        // Its channel is closed at once, in the middle of a message, after a request that waits, or held.
        let channel = peer.set(false, state).into_iter().map(UnixStream::from).next();
        match (channel, round % 4) {
            (None, _) | (_, 0) => {}
            (Some(mut channel), 1) => channel.write_all(&[1, 0, 17]).unwrap(),
            (Some(channel), 2) => {
                Peer::new(channel).ask(true, &Request::MigDataRead { size: 1 << 20 });
            }
            (Some(channel), _) => {
                let mut channel = Peer::new(channel);
                channel.sender.send(&many_reads(), &[]).unwrap();
                held.push(channel);
            }
        }
        peer.ask(false, &Request::DeviceReset);
        peer.set(true, state);
        peer.ask(false, &Request::DeviceReset);
    }
    held.extend(peer.set(false, State::StopCopy).into_iter().map(|fd| Peer::new(fd.into())));
    drop(peer);
    let _ = serving.join().unwrap();
    backend.device().reset().unwrap();
}

/// Reads whose answers nobody takes.
fn many_reads() -> Vec<u8> {
    let mut out = MessageBuffer::new();
    for id in 0..16 {
        out.request(id, false, &Request::MigDataRead { size: 1 << 20 });
    }
    out.as_bytes().to_vec()
}

/// Sessions of a client that is a device.
fn by_a_device(backend: &Backend, round: usize) {
    let (server, stream) = UnixStream::pair().unwrap();
    let serving = std::thread::spawn({
        let backend = backend.clone();
        move || backend.serve(server)
    });
    let mut client = Client::new("device", stream, &ClientOptions::default()).unwrap();
    let mut first = client.set_state(State::PreCopy).unwrap().unwrap();
    let _ = first.read(&mut [0; 100]).unwrap();
    let second = client.set_state(State::Resuming).unwrap().unwrap();
    match round % 3 {
        0 => drop((first, client, second)),
        1 => drop((second, first, client)),
        _ => {
            client.reset().unwrap();
            drop((client, first, second));
        }
    }
    let _ = serving.join().unwrap();
    backend.device().reset().unwrap();
}

pub(crate) fn sessions_that_are_over_leave_neither_descriptors_nor_threads() {
    let model = "accel?state=1MiB".parse::<Model>().unwrap().open("accel 0").unwrap();
    let backend = Backend::new(model);
    let round = |number: usize| {
        by_messages(&backend, number);
        by_a_device(&backend, number);
    };
    // What is opened once and for all.
    round(0);
    let before = open(None);
    (0..60).for_each(round);
    let after = open(Some(before));
    assert!(after.0 <= before.0 && after.1 <= before.1, "{before:?} descriptors and threads, then {after:?}");
}
