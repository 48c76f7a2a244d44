//! Data over TLS comes through whole, up to the end or to the first damage.

use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use super::{Hosts, working_pair};
use crate::channel::tests::soon;
use crate::channel::{
    Address, Channel, ChannelError, Received, Receiver, Sender, Stream, TlsStream, Until, connect,
};
use crate::proto::control::{Control, Reason};
use crate::proto::message::Message;

#[test]
fn frames_and_the_end_come_through_in_both_directions_at_once() {
    let (source, destination) = working_pair();
    let data: Vec<u8> = (0..1_u32 << 18).flat_map(u32::to_le_bytes).collect();
    let talk = |channel: Arc<TlsStream>| {
        let mut sender = Sender::new(channel.clone());
        let (data, mut receiver) = (&data, Receiver::new(channel));
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for address in 0..20 {
                    sender.send(&Message::Memory { address, data }, soon()).unwrap();
                    sender.send(&Message::Memory { address, data: &data[..100] }, soon()).unwrap();
                }
                sender.finish(soon()).unwrap();
            });
            for expected in 0..40 {
                let Received::Memory(mut memory) = receiver.next(soon()).unwrap() else { panic!() };
                assert_eq!(memory.address(), expected / 2);
                let mut place = vec![0; memory.len()];
                memory.read_into(&mut place, soon()).unwrap();
                memory.finish(soon()).unwrap();
                assert_eq!(place, data[..place.len()]);
            }
            assert!(matches!(receiver.next(soon()).unwrap_err(), ChannelError::Closed));
        });
    };
    std::thread::scope(|scope| {
        scope.spawn(|| talk(source));
        talk(destination);
    });
}

#[test]
fn the_last_bytes_are_sent_although_the_peer_reads_late() {
    let (source, destination) = working_pair();
    let data = vec![7; 1 << 20];
    let mut sender = Sender::new(source);
    while !sender.is_behind() {
        sender.send(&Message::Memory { address: 0, data: &data }, Until::now()).unwrap();
    }
    std::thread::scope(|scope| {
        scope.spawn(|| sender.finish(soon()).unwrap());
        let mut receiver = Receiver::new(destination);
        loop {
            match receiver.next(soon()) {
                Ok(Received::Memory(memory)) => assert_eq!(memory.len(), data.len()),
                Ok(other) => panic!("{other:?}"),
                Err(error) => return assert!(matches!(error, ChannelError::Closed), "{error}"),
            }
        }
    });
}

#[test]
fn the_reason_of_a_peer_that_has_gone_is_read_although_bytes_for_it_are_left() {
    let hosts = Hosts::new();
    let (left, right) = UnixStream::pair().unwrap();
    let unix: Address = "unix:/run/move.sock".parse().unwrap();
    let (source, destination) = std::thread::scope(|scope| {
        let accepted = scope.spawn(|| hosts.destination().accept(right.into(), soon()).unwrap());
        let source = hosts.source().peer("127.0.0.1").unwrap();
        (source.connect(left.into(), &unix, soon()).unwrap(), accepted.join().unwrap())
    });
    let source = Arc::new(source);
    let data = vec![7; 1 << 20];
    let mut sender = Sender::new(source.clone());
    while !sender.is_behind() {
        sender.send(&Message::Memory { address: 0, data: &data }, Until::now()).unwrap();
    }
    let reason = Reason { reason: "the disk is full".into() };
    Sender::new(Arc::new(destination)).send_now(&Control::Failed(reason).into(), soon()).unwrap();
    let mut receiver = Receiver::new(source);
    let told = receiver.next(soon()).unwrap();
    assert!(matches!(told, Received::Message(Message::Control(Control::Failed(_)))), "{told:?}");
}

#[test]
fn a_killed_peer_is_a_closed_connection() {
    let (source, destination) = working_pair();
    drop(source);
    let mut receiver = Receiver::new(destination);
    assert!(matches!(receiver.next(soon()).unwrap_err(), ChannelError::Closed));
}

/// A bit that is changed on the way, at any place: data is never taken as good.
#[test]
fn a_changed_bit_ends_the_connection() {
    let hosts = Hosts::new();
    for at in [0, 3, 700, 1500, 3000, 5000, 20_000, 60_000] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = TcpListener::bind("127.0.0.1:0").unwrap();
        let (to, address) = (listener.local_addr().unwrap(), proxy.local_addr().unwrap().to_string());
        let address: Address = address.parse().unwrap();
        let result = std::thread::scope(|scope| {
            scope.spawn(|| {
                let (left, right) = (proxy.accept().unwrap().0, TcpStream::connect(to).unwrap());
                let (mut from, mut into) = (right.try_clone().unwrap(), left.try_clone().unwrap());
                scope.spawn(move || {
                    let _ = io::copy(&mut from, &mut into);
                    let _ = into.shutdown(Shutdown::Both);
                });
                flip(left, right, at);
            });
            let source = scope.spawn(|| -> Result<(), String> {
                let stream = connect(&address, soon()).unwrap();
                let channel =
                    hosts.source().connect(stream, &address, soon()).map_err(|error| error.to_string())?;
                let data = vec![5; 1 << 17];
                let mut sender = Sender::new(Arc::new(channel));
                sender
                    .send_now(&Message::Memory { address: 0, data: &data }, soon())
                    .and_then(|()| sender.finish(soon()))
                    .map_err(|error| error.to_string())
            });
            let read = hosts
                .destination()
                .accept(listener.accept().unwrap().0.into(), soon())
                .map_err(|error| error.to_string())
                .and_then(|channel| {
                    let mut receiver = Receiver::new(Arc::new(channel));
                    match receiver.next(soon()).map_err(|error| error.to_string())? {
                        Received::Memory(memory) => memory.finish(soon()).map_err(|error| error.to_string()),
                        Received::Message(other) => Err(format!("{other:?}")),
                    }
                });
            let _ = source.join().unwrap();
            read
        });
        assert!(result.is_err(), "the bit at {at} was not missed");
    }
}

/// Copies one stream to another, with one bit changed.
fn flip(mut from: TcpStream, mut into: TcpStream, at: usize) {
    let (mut seen, mut buffer) = (0, vec![0; 4096]);
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if (seen..seen + count).contains(&at) {
            buffer[at - seen] ^= 1;
        }
        seen += count;
        if into.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = into.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}

/// Writes raw bytes, as a peer would that breaks the rules after the handshake.
#[test]
fn what_follows_garbage_is_not_read() {
    let (source, destination) = working_pair();
    let mut sender = Sender::new(source.clone());
    let reason = Reason { reason: "stop".into() };
    sender.send_now(&Control::Failed(reason).into(), soon()).unwrap();
    let raw = Stream::try_from(std::os::fd::AsFd::as_fd(&*source).try_clone_to_owned().unwrap()).unwrap();
    raw.try_write(&[IoSlice::new(&[0x17, 3, 3, 0, 32]), IoSlice::new(&[9; 32])]).unwrap();
    let mut receiver = Receiver::new(destination.clone());
    // What came before the garbage may be read or not.
    let error = loop {
        if let Err(error) = receiver.next(soon()) {
            break error;
        }
    };
    assert!(matches!(error, ChannelError::Failed(_)), "{error}");
    assert!(receiver.next(soon()).is_err());
    assert_eq!(destination.try_write(&[IoSlice::new(b"x")]).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    // The alert reaches the peer.
    assert!(matches!(Receiver::new(source).next(soon()).unwrap_err(), ChannelError::Failed(_)));
}
