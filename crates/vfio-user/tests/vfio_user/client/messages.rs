//! Memory that the server cannot map: it asks for what the device wants of it.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, memfd_create};
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};
use whimbrel_models::accel::Descriptor;
use whimbrel_models::accel::guest::{GuestDriver, Rings};
use whimbrel_uapi::type1::DmaMapFlags;
use whimbrel_user::{DmaMap, DmaRegion, Errno, Error, Migratable};
use whimbrel_vfio_user::message::{
    Command, DmaAccess, DmaUnmapReply, Kind, Limits, MessageBuffer, Reply, Request, Version,
};
use whimbrel_vfio_user::{Capabilities, Client, ClientOptions, Receiver, Sender, TwinSocket, connection};

use super::guest::Seat;
use super::support::Served;

const BOTH: DmaMapFlags = DmaMapFlags::READ.union(DmaMapFlags::WRITE);
const PAGE: u64 = 4096;
const IOVA: u64 = 0x10_0000;

/// What a client proposes so that it has a twin socket or none.
pub(crate) fn options(has_twin: bool) -> ClientOptions {
    let all = Client::capabilities();
    let twin_socket = all.twin_socket.filter(|_| has_twin);
    ClientOptions::default().capabilities(all.twin_socket(twin_socket))
}

/// Memory without a file.
fn private(size: u64) -> Arc<MmapRegion> {
    Arc::new(MmapRegion::new(size as usize).unwrap())
}

fn shared(size: u64) -> Arc<MmapRegion> {
    let file = File::from(memfd_create("shared", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(size).unwrap();
    Arc::new(MmapRegion::from_file(FileOffset::new(file, 0), size as usize).unwrap())
}

/// Lets an accel fill memory on its own thread, and waits for the completion without asking it anything.
fn fill(client: &mut Client, memory: &Arc<MmapRegion>, pattern: u64) {
    client.reset().unwrap();
    let seat = Seat { client, memory: memory.clone(), base: IOVA };
    let mut driver = GuestDriver::start(seat, Rings::new(IOVA, IOVA + 0x4000, 2)).unwrap();
    let job = Descriptor::fill(1, IOVA + 0x8000, 0x7000, pattern);
    let deadline = Instant::now() + Duration::from_mins(1);
    let wait = |_: &mut Seat<'_>| {
        assert!(Instant::now() < deadline, "the job was not done");
        std::thread::sleep(Duration::from_millis(1));
        Ok(())
    };
    let done = driver.execute(&job, wait).unwrap();
    assert!(driver.verify(&job, &done).unwrap());
}

#[test]
fn a_device_works_in_memory_without_a_file_while_nothing_is_asked_of_it() {
    for has_twin in [true, false] {
        let mut served = Served::with("accel?state=4KiB", &options(has_twin));
        let client = served.client();
        assert_eq!(client.agreed().twin_socket.is_some(), has_twin);
        let memory = private(0x10000);
        client.map_dma(IOVA, BOTH, DmaRegion::from(memory.clone())).unwrap();
        for round in 1..=3 {
            fill(client, &memory, round * 0x0101_0101_0101_0101);
        }
        assert_eq!(client.unmap_dma(IOVA, 0x10000).unwrap(), 0x10000);
    }
}

#[test]
fn a_server_that_takes_no_descriptors_reaches_all_memory() {
    let none = Client::capabilities().max_msg_fds(0);
    let options = ClientOptions::default().capabilities(none);
    let mut served = Served::with("accel?state=4KiB", &options);
    let client = served.client();
    assert_eq!(client.agreed().twin_socket, None, "it would come as a descriptor");
    let memory = shared(0x10000);
    client.map_dma(IOVA, BOTH, DmaRegion::from(memory.clone())).unwrap();
    fill(client, &memory, 0x1234_5678_9abc_def0);
}

#[test]
fn memory_with_and_without_a_file_make_one() {
    for has_twin in [true, false] {
        let mut served = Served::with("accel?state=4KiB", &options(has_twin));
        let client = served.client();
        let memory = private(0x10000);
        client.map_dma(IOVA, BOTH, DmaRegion::from(memory.clone())).unwrap();
        let end = shared(0x1000);
        client.map_dma(IOVA + 0x10000, BOTH, DmaRegion::from(end.clone())).unwrap();
        let error = client.map_dma(IOVA, BOTH, DmaRegion::from(private(0x1000))).unwrap_err();
        assert_eq!(error.errno(), Some(Errno::EEXIST));
        fill(client, &memory, 7);
        assert_eq!(client.unmap_dma(IOVA, 0x11000).unwrap(), 0x11000);
    }
}

/// A server that does as it is told.
struct Fake {
    receiver: Receiver,
    sender: Sender,
}

impl Fake {
    fn send(&mut self, write: impl FnOnce(&mut MessageBuffer)) {
        self.send_with(write, &[]);
    }

    fn send_with(&mut self, write: impl FnOnce(&mut MessageBuffer), descriptors: &[BorrowedFd<'_>]) {
        let mut out = MessageBuffer::new();
        write(&mut out);
        self.sender.send(out.as_bytes(), descriptors).unwrap();
    }

    /// The id of the client's next command, which must be this one.
    fn expect(&mut self, command: Command) -> u16 {
        let header = self.receiver.receive().unwrap().expect("client disconnected").header;
        assert_eq!((header.command, header.kind), (command.number(), Kind::Command { no_reply: false }));
        header.id
    }

    fn agree(&mut self, twin_socket: Option<TwinSocket>, descriptors: &[BorrowedFd<'_>]) {
        let id = self.expect(Command::Version);
        let version = Version::proposal(Capabilities::default().twin_socket(twin_socket));
        self.send_with(|out| out.reply(id, &Reply::Version(version)), descriptors);
    }

    /// Takes a mapping, which the client must not have sent with a descriptor.
    fn map(&mut self) {
        let id = self.mapping();
        self.send(|out| out.reply(id, &Reply::DmaMap));
    }

    fn mapping(&mut self) -> u16 {
        let message = self.receiver.receive().unwrap().expect("client disconnected");
        assert_eq!(message.header.command, Command::DmaMap.number());
        assert_eq!(message.descriptors.unwrap().len(), 0);
        message.header.id
    }

    fn is_over(&mut self) -> bool {
        matches!(self.receiver.receive(), Ok(None))
    }
}

/// What the client answers to a request.
fn asked(receiver: &mut Receiver, sender: &mut Sender, request: &Request<'_>) -> Result<Vec<u8>, Errno> {
    let mut out = MessageBuffer::new();
    out.request(77, false, request);
    sender.send(out.as_bytes(), &[]).unwrap();
    answer(receiver, request)
}

fn answer(receiver: &mut Receiver, request: &Request<'_>) -> Result<Vec<u8>, Errno> {
    let got = receiver.receive().unwrap().expect("the client has hung up");
    assert_eq!((got.header.id, got.header.command), (77, request.command().number()));
    match got.header.kind {
        Kind::Error(errno) => Err(Errno::try_from(errno).unwrap_or(Errno::EIO)),
        _ => match Reply::parse(request.command(), got.payload, Limits::default()).unwrap() {
            Reply::DmaRead { data, .. } => Ok(data.to_vec()),
            Reply::DmaWrite(_) => Ok(vec![]),
            other => panic!("{other:?}"),
        },
    }
}

fn read(iova: u64, count: u64) -> Request<'static> {
    Request::DmaRead(DmaAccess { iova, count })
}

/// A client of a server that does `serve`.
fn client_of<T: Send + 'static>(
    options: &ClientOptions,
    serve: impl FnOnce(Fake) -> T + Send + 'static,
) -> (whimbrel_user::Result<Client>, JoinHandle<T>) {
    let (server, stream) = UnixStream::pair().unwrap();
    let (receiver, sender) = connection(server, Limits::default());
    let thread = std::thread::spawn(move || serve(Fake { receiver, sender }));
    (Client::new("card", stream, options), thread)
}

#[test]
fn a_twin_socket_that_cannot_be_one_ends_the_connection() {
    let twin = |supported, fd_index| Some(TwinSocket::new(supported, fd_index));
    let cases = [
        ("no index", twin(true, None), 1, true, "without fd_index"),
        (
            "no descriptor",
            twin(true, Some(0)),
            0,
            true,
            "fd_index 0 for the twin socket, but the message has 0",
        ),
        (
            "an index past the end",
            twin(true, Some(1)),
            1,
            true,
            "fd_index 1 for the twin socket, but the message has 1",
        ),
        ("the largest index", twin(true, Some(u32::MAX)), 1, true, "fd_index 4294967295"),
        ("a pipe", twin(true, Some(0)), 1, true, "is not a stream socket"),
        ("one that was not asked for", twin(true, Some(0)), 1, false, "not requested"),
    ];
    for (what, answer, count, is_asked, said) in cases {
        let (client, thread) = client_of(&options(is_asked), move |mut fake| {
            let (read, write) = rustix::pipe::pipe().unwrap();
            fake.agree(answer, &vec![write.as_fd(); count]);
            assert!(fake.is_over(), "{what}");
            drop(write);
            assert_eq!(rustix::io::read(&read, &mut [0_u8]).unwrap(), 0, "{what}: it is still open");
        });
        let error = client.unwrap_err();
        assert!(matches!(error, Error::Answer { .. }) && error.to_string().contains(said), "{what}: {error}");
        thread.join().unwrap();
    }
}

#[test]
fn a_server_need_not_have_a_twin_socket() {
    for answer in [None, Some(TwinSocket::default()), Some(TwinSocket::new(false, Some(0)))] {
        let (client, thread) = client_of(&options(true), move |mut fake| {
            let (mut kept, given) = UnixStream::pair().unwrap();
            fake.agree(answer, &[given.as_fd()]);
            drop(given);
            assert_eq!(kept.read(&mut [0]).unwrap(), 0, "nobody holds the other end");
        });
        assert_eq!(client.unwrap().agreed().twin_socket, None);
        thread.join().unwrap();
    }
}

/// A server whose twin socket is the second of three descriptors.
fn with_twin<T: Send + 'static>(
    serve: impl FnOnce(Fake, Receiver, Sender) -> T + Send + 'static,
) -> (Client, JoinHandle<T>) {
    let (client, thread) = client_of(&options(true), |mut fake| {
        let (own, theirs) = UnixStream::pair().unwrap();
        // Whatever it was before.
        theirs.set_nonblocking(true).unwrap();
        let other = rustix::pipe::pipe().unwrap();
        let twin = TwinSocket::new(true, Some(1));
        fake.agree(Some(twin), &[other.0.as_fd(), theirs.as_fd(), other.1.as_fd()]);
        drop((theirs, other));
        let (receiver, sender) = connection(own, Limits::default());
        serve(fake, receiver, sender)
    });
    (client.unwrap(), thread)
}

#[test]
fn the_twin_socket_is_served_whatever_else_happens() {
    let memory = private(PAGE);
    let (mut client, thread) = with_twin(|mut fake, mut receiver, mut sender| {
        let write = Request::DmaWrite { iova: IOVA + 8, data: b"from afar" };
        let id = fake.expect(Command::DeviceReset);
        assert_eq!(asked(&mut receiver, &mut sender, &write), Err(Errno::EFAULT), "nothing is mapped");
        fake.send(|out| out.reply(id, &Reply::DeviceReset));
        // Before the client knows that it is mapped.
        let id = fake.mapping();
        assert_eq!(asked(&mut receiver, &mut sender, &write), Ok(vec![]));
        fake.send(|out| out.reply(id, &Reply::DmaMap));
        // While a request waits, and with nothing to answer.
        let id = fake.expect(Command::DeviceReset);
        let mut out = MessageBuffer::new();
        out.request(5, true, &Request::DmaWrite { iova: IOVA, data: b"silent" });
        sender.send(out.as_bytes(), &[]).unwrap();
        assert_eq!(asked(&mut receiver, &mut sender, &read(IOVA, 17)).unwrap(), b"silent\0\0from afar");
        fake.send(|out| out.reply(id, &Reply::DeviceReset));
        // What no client knows, and what cannot be right.
        assert_eq!(asked(&mut receiver, &mut sender, &Request::DeviceReset), Err(Errno::ENOTTY));
        assert_eq!(asked(&mut receiver, &mut sender, &read(IOVA, 2 << 20)), Err(Errno::EINVAL));
        assert_eq!(asked(&mut receiver, &mut sender, &read(IOVA + PAGE - 1, 2)), Err(Errno::EFAULT));
        assert_eq!(asked(&mut receiver, &mut sender, &read(u64::MAX, 2)), Err(Errno::EFAULT));
        // After the unmap nothing is reached.
        let id = fake.expect(Command::DmaUnmap);
        let reply = DmaUnmapReply {
            flags: whimbrel_uapi::type1::DmaUnmapFlags::empty(),
            iova: IOVA,
            size: PAGE,
            bitmap: None,
        };
        fake.send(|out| out.reply(id, &Reply::DmaUnmap(reply)));
        let id = fake.expect(Command::DeviceReset);
        assert_eq!(asked(&mut receiver, &mut sender, &read(IOVA, 1)), Err(Errno::EFAULT));
        fake.send(|out| out.reply(id, &Reply::DeviceReset));
        assert!(matches!(receiver.receive(), Ok(None)), "the twin ends with the connection");
        assert!(fake.is_over());
    });
    client.reset().unwrap();
    client.map_dma(IOVA, BOTH, DmaRegion::from(memory.clone())).unwrap();
    client.reset().unwrap();
    client.unmap_dma(IOVA, PAGE).unwrap();
    client.reset().unwrap();
    let mut kept = [0; 9];
    memory.as_volatile_slice().read_slice(&mut kept, 8).unwrap();
    assert_eq!(&kept, b"from afar");
    drop(client);
    thread.join().unwrap();
}

#[test]
fn a_twin_socket_that_goes_wrong_ends_alone() {
    for bytes in [vec![0xff; 16], vec![0; 7], vec![]] {
        let (mut client, thread) = with_twin(move |mut fake, mut receiver, mut sender| {
            sender.send(&bytes, &[]).unwrap();
            if bytes.len() < 16 {
                drop((receiver, sender));
            } else {
                assert!(matches!(receiver.receive(), Ok(None)), "the server is told");
            }
            let id = fake.expect(Command::DeviceReset);
            fake.send(|out| out.reply(id, &Reply::DeviceReset));
            assert!(fake.is_over());
        });
        client.reset().unwrap();
        drop(client);
        thread.join().unwrap();
    }
}

#[test]
fn a_client_leaves_although_its_server_reads_no_answers() {
    let (mut client, thread) = with_twin(|mut fake, receiver, mut sender| {
        fake.map();
        let mut out = MessageBuffer::new();
        for id in 0..64 {
            out.request(id, false, &read(IOVA, 1 << 20));
        }
        sender.send(out.as_bytes(), &[]).unwrap();
        let id = fake.expect(Command::DeviceReset);
        fake.send(|out| out.reply(id, &Reply::DeviceReset));
        assert!(fake.is_over());
        drop(receiver);
    });
    client.map_dma(IOVA, BOTH, DmaRegion::from(private(1 << 20))).unwrap();
    client.reset().unwrap();
    drop(client);
    thread.join().unwrap();
}

#[test]
fn without_a_twin_requests_are_answered_also_between_those_of_the_client() {
    let (client, thread) = client_of(&options(true), |mut fake| {
        fake.agree(None, &[]);
        fake.map();
        let Fake { mut receiver, mut sender } = fake;
        // Nothing is asked any more.
        let write = Request::DmaWrite { iova: IOVA, data: b"quiet" };
        assert_eq!(asked(&mut receiver, &mut sender, &write), Ok(vec![]));
        assert_eq!(asked(&mut receiver, &mut sender, &read(IOVA, 5)).unwrap(), b"quiet");
        assert_eq!(asked(&mut receiver, &mut sender, &Request::DeviceReset), Err(Errno::ENOTTY));
        Fake { receiver, sender }
    });
    let mut client = client.unwrap();
    client.map_dma(IOVA, BOTH, DmaRegion::from(private(PAGE))).unwrap();
    let mut fake = thread.join().unwrap();
    // The client goes on as before.
    let thread = std::thread::spawn(move || {
        let id = fake.expect(Command::DeviceReset);
        fake.send(|out| out.reply(id, &Reply::DeviceReset));
        assert!(fake.is_over());
    });
    client.reset().unwrap();
    drop(client);
    thread.join().unwrap();
}

#[test]
fn a_request_that_comes_with_a_reply_is_answered_at_once() {
    let (client, thread) = client_of(&options(true), |mut fake| {
        fake.agree(None, &[]);
        let id = fake.mapping();
        // In one piece, so that one read finds both.
        fake.send(|out| {
            out.reply(id, &Reply::DmaMap);
            out.request(77, false, &read(IOVA, 4));
            out.request(77, false, &read(IOVA + 4, 4));
        });
        assert_eq!(answer(&mut fake.receiver, &read(IOVA, 4)).unwrap(), b"this");
        assert_eq!(answer(&mut fake.receiver, &read(IOVA, 4)).unwrap(), b"that");
        assert!(fake.is_over());
    });
    let mut client = client.unwrap();
    let memory = private(PAGE);
    memory.as_volatile_slice().write_slice(b"thisthat", 0).unwrap();
    client.map_dma(IOVA, BOTH, DmaRegion::from(memory)).unwrap();
    drop(client);
    thread.join().unwrap();
}

#[test]
fn a_client_that_writes_without_end_and_waits_for_nothing_answers_meanwhile() {
    const MUCH: usize = 256 << 20;
    let (client, thread) = client_of(&options(true), |mut fake| {
        fake.agree(None, &[]);
        fake.map();
        // It has begun to write.
        fake.receiver.receive().unwrap().unwrap();
        fake.send(|out| out.request(77, false, &read(IOVA, 4)));
        // As a server does whose device waits: it takes what comes before the answer.
        let mut before = 0;
        loop {
            let got = fake.receiver.receive().unwrap().unwrap();
            if got.header.kind == Kind::Reply {
                break;
            }
            before += got.payload.len();
        }
        while let Ok(Some(_)) = fake.receiver.receive() {}
        before
    });
    let mut client = client.unwrap();
    client.map_dma(IOVA, BOTH, DmaRegion::from(private(PAGE))).unwrap();
    // One call, in which nobody else has the connection.
    client.post_write(0, 0, &vec![0; MUCH]).unwrap();
    drop(client);
    let before = thread.join().unwrap();
    assert!(before < MUCH / 2, "the answer came behind {before} bytes");
}

#[test]
fn a_mapping_that_was_refused_is_not_reached() {
    let (client, thread) = client_of(&options(true), |mut fake| {
        fake.agree(None, &[]);
        let id = fake.mapping();
        fake.send(|out| {
            out.request(77, false, &read(IOVA, 4));
            out.error(id, Command::DmaMap.number(), Errno::ENOSPC);
            // Read with the refusal, and answered with it.
            out.request(77, false, &Request::DeviceReset);
        });
        assert_eq!(answer(&mut fake.receiver, &read(IOVA, 4)), Ok(vec![0; 4]));
        assert_eq!(answer(&mut fake.receiver, &Request::DeviceReset), Err(Errno::ENOTTY));
        let id = fake.expect(Command::DeviceReset);
        fake.send(|out| {
            out.request(77, false, &read(IOVA, 4));
            out.reply(id, &Reply::DeviceReset);
        });
        assert_eq!(answer(&mut fake.receiver, &read(IOVA, 4)), Err(Errno::EFAULT));
        assert!(fake.is_over());
    });
    let mut client = client.unwrap();
    let error = client.map_dma(IOVA, BOTH, DmaRegion::from(private(PAGE))).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::ENOSPC));
    client.reset().unwrap();
    drop(client);
    thread.join().unwrap();
}

#[test]
fn what_nobody_waits_for_between_requests_ends_the_connection() {
    let reply = |out: &mut MessageBuffer| out.reply(9, &Reply::DeviceReset);
    let rubbish = |out: &mut MessageBuffer| out.put(&[0xff; 16]);
    for write in [reply as fn(&mut MessageBuffer), rubbish] {
        let (client, thread) = client_of(&options(true), move |mut fake| {
            fake.agree(None, &[]);
            fake.map();
            fake.send(write);
            assert!(fake.is_over());
        });
        let mut client = client.unwrap();
        client.map_dma(IOVA, BOTH, DmaRegion::from(private(PAGE))).unwrap();
        thread.join().unwrap();
        assert!(client.reset().is_err());
    }
}

#[test]
fn a_server_that_hangs_up_in_the_middle_of_a_request_ends_the_connection() {
    let mut out = MessageBuffer::new();
    out.request(77, false, &Request::DmaWrite { iova: IOVA, data: b"half" });
    let whole = out.as_bytes().to_vec();
    for length in 0..whole.len() {
        let part = whole[..length].to_vec();
        let (client, thread) = client_of(&options(true), move |mut fake| {
            fake.agree(None, &[]);
            fake.map();
            fake.sender.send(&part, &[]).unwrap();
        });
        let mut client = client.unwrap();
        let memory = private(PAGE);
        client.map_dma(IOVA, BOTH, DmaRegion::from(memory.clone())).unwrap();
        thread.join().unwrap();
        assert!(client.reset().is_err(), "{length}");
        assert_eq!(memory.as_volatile_slice().read_obj::<u32>(0).unwrap(), 0, "no part is executed");
    }
}

#[test]
fn a_client_that_is_dropped_by_its_own_thread_leaves() {
    // The thread that answers between requests may have the last hold of a connection.
    for _ in 0..50 {
        let (client, thread) = client_of(&options(true), |mut fake| {
            fake.agree(None, &[]);
            fake.map();
            let mut out = MessageBuffer::new();
            (0..20).for_each(|_| out.request(77, false, &read(IOVA, 4)));
            // It may have left already.
            let _ = fake.sender.send(out.as_bytes(), &[]);
            while let Ok(Some(_)) = fake.receiver.receive() {}
        });
        let mut client = client.unwrap();
        client.map_dma(IOVA, BOTH, DmaRegion::from(private(PAGE))).unwrap();
        drop(client);
        thread.join().unwrap();
    }
}
