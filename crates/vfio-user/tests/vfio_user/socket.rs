//! Messages and descriptors over a real socket: in any pieces, with nothing left open.

use std::fs::File;
use std::io::{IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use rustix::io::{FdFlags, fcntl_getfd};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use whimbrel_vfio_user::message::{Limits, MessageBuffer, RegionAccess, Request};
use whimbrel_vfio_user::{DescriptorError, MAX_FDS, Receiver, Sender, SocketError, connection};

fn pair() -> (Sender, Receiver) {
    let (here, there) = UnixStream::pair().unwrap();
    (connection(here, Limits::default()).1, connection(there, Limits::default()).0)
}

fn file() -> File {
    tempfile::tempfile().unwrap()
}

/// Whether two descriptors are of the same file.
fn same(one: impl AsFd, other: impl AsFd) -> bool {
    let [one, other] = [one.as_fd(), other.as_fd()].map(|fd| rustix::fs::fstat(fd).unwrap());
    (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
}

/// Sends bytes and descriptors in one piece, as a peer of any kind may.
fn send_raw(stream: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(fds.len()))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(fds.is_empty() || control.push(SendAncillaryMessage::ScmRights(fds)));
    let sent = sendmsg(stream, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL).unwrap();
    assert_eq!(sent, bytes.len());
}

fn message(id: u16, data: &[u8]) -> Vec<u8> {
    let mut out = MessageBuffer::new();
    let access = RegionAccess { offset: 0, region: 0, count: data.len() as u32 };
    out.request(id, false, &Request::RegionWrite(access, data));
    out.as_bytes().to_vec()
}

#[test]
fn each_message_has_the_descriptors_it_was_sent_with() {
    let (mut sender, mut receiver) = pair();
    let files: Vec<File> = (0..4).map(|_| file()).collect();
    let sets: [&[usize]; 5] = [&[], &[0], &[], &[1, 2], &[3]];
    for (id, set) in sets.iter().enumerate() {
        let fds: Vec<BorrowedFd<'_>> = set.iter().map(|index| files[*index].as_fd()).collect();
        sender.send(&message(id as u16, &[7; 100]), &fds).unwrap();
    }
    for (id, set) in sets.iter().enumerate() {
        let got = receiver.receive().unwrap().unwrap();
        assert_eq!(usize::from(got.header.id), id);
        let fds = got.descriptors.unwrap();
        assert_eq!(fds.len(), set.len(), "message {id}");
        for (fd, index) in fds.iter().zip(set.iter()) {
            assert!(same(fd, &files[*index]), "message {id}");
        }
    }
}

#[test]
fn descriptors_are_closed_on_exec() {
    let (mut sender, mut receiver) = pair();
    sender.send(&message(0, b"x"), &[file().as_fd()]).unwrap();
    let fds = receiver.receive().unwrap().unwrap().descriptors.unwrap();
    assert!(fcntl_getfd(&fds[0]).unwrap().contains(FdFlags::CLOEXEC));
}

#[test]
fn a_message_may_come_byte_by_byte_and_its_descriptors_with_any_of_them() {
    for at in 0..33 {
        let (here, there) = UnixStream::pair().unwrap();
        let mut receiver = connection(there, Limits::default()).0;
        let file = file();
        let bytes = message(5, b"x");
        assert_eq!(bytes.len(), 33);
        for (index, byte) in bytes.iter().enumerate() {
            let fds: &[BorrowedFd<'_>] = if index == at { &[file.as_fd()] } else { &[] };
            send_raw(&here, &[*byte], fds);
        }
        let got = receiver.receive().unwrap().unwrap();
        assert_eq!(got.payload[16..], *b"x");
        assert!(same(&got.descriptors.unwrap()[0], &file), "with byte {at}");
    }
}

#[test]
fn a_large_message_arrives_whole_while_it_is_still_being_sent() {
    let (mut sender, mut receiver) = pair();
    let data: Vec<u8> = (0..1 << 20).map(|index: u32| (index / 7) as u8).collect();
    let bytes = message(1, &data);
    let sending = std::thread::spawn(move || {
        for _ in 0..3 {
            sender.send(&bytes, &[file().as_fd()]).unwrap();
        }
    });
    for _ in 0..3 {
        let got = receiver.receive().unwrap().unwrap();
        assert_eq!(got.payload[16..], data);
        assert_eq!(got.descriptors.unwrap().len(), 1);
    }
    assert!(receiver.receive().unwrap().is_none(), "the peer has left");
    sending.join().unwrap();
}

#[test]
fn a_peer_may_hang_up_at_every_byte_of_a_message() {
    let bytes = message(1, b"x");
    for length in 0..bytes.len() {
        let (mut here, there) = UnixStream::pair().unwrap();
        let mut receiver = connection(there, Limits::default()).0;
        here.write_all(&bytes[..length]).unwrap();
        drop(here);
        match receiver.receive() {
            Ok(None) => assert_eq!(length, 0),
            Err(SocketError::HungUp { received, size }) => {
                assert_eq!(received, length);
                assert_eq!(size, if length < 16 { 16 } else { bytes.len() });
            }
            other => panic!("after {length} bytes: {other:?}"),
        }
    }
}

#[test]
fn too_many_descriptors_are_refused_and_the_next_message_is_whole() {
    let (here, there) = UnixStream::pair().unwrap();
    let mut receiver = connection(there, Limits::default()).0;
    let file = file();
    let many = vec![file.as_fd(); MAX_FDS];
    let bytes = message(1, b"x");
    for byte in &bytes[..3] {
        send_raw(&here, &[*byte], &many);
    }
    send_raw(&here, &bytes[3..], &[]);
    send_raw(&here, &message(2, b"y"), &[file.as_fd()]);
    let got = receiver.receive().unwrap().unwrap();
    assert_eq!(got.descriptors.unwrap_err(), DescriptorError::TooMany);
    let got = receiver.receive().unwrap().unwrap();
    assert_eq!((got.header.id, got.descriptors.unwrap().len()), (2, 1));
}

#[test]
fn descriptors_that_nobody_takes_are_closed() {
    let (here, there) = UnixStream::pair().unwrap();
    let mut receiver = connection(there, Limits::default()).0;
    // A pipe tells when the last of its writing ends is closed.
    let (read, write) = rustix::pipe::pipe().unwrap();
    let bytes = message(1, b"x");
    send_raw(&here, &bytes, &[write.as_fd()]);
    send_raw(&here, &bytes, &[write.as_fd()]);
    // The third is never complete.
    send_raw(&here, &bytes[..20], &[write.as_fd()]);
    drop(write);
    drop(receiver.receive().unwrap().unwrap());
    drop(receiver.receive().unwrap().unwrap().descriptors);
    drop(here);
    assert!(receiver.receive().is_err());
    drop(receiver);
    let mut byte = [0];
    assert_eq!(rustix::io::read(&read, &mut byte).unwrap(), 0, "an end is still open: {}", read.as_raw_fd());
}

#[test]
fn who_waits_is_told_when_the_connection_is_shut_down() {
    let (here, there) = UnixStream::pair().unwrap();
    let (_, mut sender) = connection(here.try_clone().unwrap(), Limits::default());
    let waiting = std::thread::spawn({
        let mut sender = sender.clone();
        // More than any socket holds, to a peer that reads nothing.
        move || sender.send(&vec![0; 64 << 20], &[])
    });
    sender.shutdown();
    assert!(waiting.join().unwrap().is_err());
    assert!(sender.send(b"x", &[]).is_err());
    drop(there);
}
