//! Memory that was mapped without a descriptor: the server asks the client for each access, over a socket of
//! its own or over that of the commands.

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use whimbrel_device::Errno;
use whimbrel_device::dma::FaultCause;
use whimbrel_vfio_user::message::DmaAccessModes;
use whimbrel_vfio_user::message::{
    Command, DmaAccess, DmaMap, DmaUnmap, Header, Kind, Limits, MessageBuffer, RegionAccess, Reply, Request,
};
use whimbrel_vfio_user::{Backend, Capabilities, Receiver, Sender, ServeError, SocketError, connection};

use super::support::*;

const IOVA: u64 = 0x10_0000;
/// Longer than the server waits for an answer, on any machine.
const LONG: Duration = Duration::from_mins(1);

/// How the server's requests come.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Twin,
    Commands,
}

const WAYS: [Way; 2] = [Way::Twin, Way::Commands];

/// A client whose memory has no file.
struct Rig {
    host: Host,
    peer: Peer,
    /// The twin socket, if the requests come over that.
    twin: Option<(Receiver, Sender)>,
    memory: BTreeMap<u64, u8>,
}

/// A request of the server.
#[derive(Debug)]
struct Asked {
    id: u16,
    command: u16,
    iova: u64,
    count: u64,
    data: Vec<u8>,
}

impl Rig {
    fn new(way: Way) -> Rig {
        Rig::with(way, Backend::capabilities())
    }

    fn with(way: Way, capabilities: Capabilities) -> Rig {
        Rig::on(Host::new(), way, capabilities)
    }

    /// The next client of a server.
    fn on(host: Host, way: Way, capabilities: Capabilities) -> Rig {
        let (stream, thread) = host.connect();
        let mut peer = Peer::new(stream, Some(thread));
        let twin_socket = capabilities.twin_socket.filter(|_| way == Way::Twin);
        let (version, fds) = peer.propose(capabilities.twin_socket(twin_socket));
        let twin = fds.into_iter().next().map(|fd| connection(UnixStream::from(fd), Limits::default()));
        assert_eq!((version.capabilities.twin_socket.is_some(), twin.is_some()), {
            let is_twin = way == Way::Twin;
            (is_twin, is_twin)
        });
        Rig { host, peer, twin, memory: BTreeMap::new() }
    }

    fn map(&mut self, iova: u64, size: u64) -> Result<(), Errno> {
        let map = DmaMap { rights: BOTH, modes: DmaAccessModes::empty(), offset: 0, iova, size };
        self.peer.ask(&Request::DmaMap(map)).map(drop)
    }

    fn faults(&self) -> u64 {
        self.host.backend.device().bus().dma().faults()
    }

    /// Sends a write to the doorbell, which makes the device write to an address before it is answered.
    fn ring(&mut self, iova: u64) -> u16 {
        self.peer.send(&Request::RegionWrite(doorbell(), &iova.to_ne_bytes()))
    }

    fn rang(&mut self, id: u16) {
        self.peer.answer(id, Command::RegionWrite).unwrap();
    }

    fn asked(&mut self) -> Asked {
        let receiver = self.twin.as_mut().map_or(&mut self.peer.receiver, |(receiver, _)| receiver);
        asked(receiver)
    }

    fn sender(&mut self) -> &mut Sender {
        self.twin.as_mut().map_or(&mut self.peer.sender, |(_, sender)| sender)
    }

    fn say(&mut self, bytes: &[u8]) {
        self.sender().send(bytes, &[]).unwrap();
    }

    /// Answers a request as a client does.
    fn obey(&mut self, asked: &Asked) {
        let addresses = asked.iova..asked.iova + asked.count;
        let mut out = MessageBuffer::new();
        if asked.command == Command::DmaRead.number() {
            let data: Vec<u8> =
                addresses.map(|iova| self.memory.get(&iova).copied().unwrap_or_default()).collect();
            out.reply(asked.id, &Reply::DmaRead { iova: asked.iova, data: &data });
        } else {
            assert_eq!(asked.data.len() as u64, asked.count);
            self.memory.extend(addresses.zip(asked.data.iter().copied()));
            let written = DmaAccess { iova: asked.iova, count: asked.count };
            out.reply(asked.id, &Reply::DmaWrite(written));
        }
        self.say(out.as_bytes());
    }

    /// A thread of the device that reads memory.
    fn worker(&self, iova: u64, count: usize) -> JoinHandle<Result<Vec<u8>, FaultCause>> {
        let device = self.host.backend.device().clone();
        std::thread::spawn(move || {
            let mut data = vec![0; count];
            device.bus().dma().read(iova, &mut data).map(|()| data).map_err(|fault| fault.cause)
        })
    }
}

fn asked(receiver: &mut Receiver) -> Asked {
    let got = receiver.receive().unwrap().expect("the server has hung up");
    let Header { id, command, kind, .. } = got.header;
    assert_eq!(kind, Kind::Command { no_reply: false });
    let (iova, count, data) =
        match Request::parse(Command::try_from(command).unwrap(), got.payload, Limits::default()).unwrap() {
            Request::DmaRead(access) => (access.iova, access.count, vec![]),
            Request::DmaWrite { iova, data } => (iova, data.len() as u64, data.to_vec()),
            other => panic!("{other:?}"),
        };
    Asked { id, command, iova, count, data }
}

fn doorbell() -> RegionAccess {
    RegionAccess { offset: DOORBELL, region: BAR, count: 8 }
}

fn mark(rig: &Rig, iova: u64) -> Vec<u8> {
    (iova..iova + 8).map(|iova| rig.memory.get(&iova).copied().unwrap_or_default()).collect()
}

#[test]
fn a_command_that_makes_the_device_write_memory_is_answered_after_it() {
    for way in WAYS {
        let mut rig = Rig::new(way);
        rig.map(IOVA, PAGE).unwrap();
        let id = rig.ring(IOVA + 8);
        let asked = rig.asked();
        assert_eq!((asked.command, asked.iova, asked.count), (12, IOVA + 8, 8), "{way:?}");
        rig.obey(&asked);
        rig.rang(id);
        assert_eq!(mark(&rig, IOVA + 8), MARK.to_ne_bytes(), "{way:?}");
        assert_eq!(rig.faults(), 0, "{way:?}");
        rig.peer.leave().unwrap();
    }
}

#[test]
fn commands_that_come_before_the_answer_are_executed_in_their_order() {
    for way in WAYS {
        let mut rig = Rig::new(way);
        rig.map(IOVA, PAGE).unwrap();
        let id = rig.ring(IOVA);
        let access = RegionAccess { offset: 0, region: BAR, count: 3 };
        let ids: Vec<u16> = [&b"one"[..], b"two"]
            .into_iter()
            .flat_map(|data| {
                [Request::RegionWrite(access, data), Request::RegionRead(access)]
                    .map(|request| rig.peer.send(&request))
            })
            .collect();
        let asked = rig.asked();
        rig.obey(&asked);
        rig.rang(id);
        for (pair, expected) in ids.chunks(2).zip([b"one", b"two"]) {
            rig.peer.answer(pair[0], Command::RegionWrite).unwrap();
            let answer = rig.peer.answer(pair[1], Command::RegionRead).unwrap();
            assert_eq!(answer.reply(), Reply::RegionRead(access, expected), "{way:?}");
        }
        rig.peer.leave().unwrap();
    }
}

#[test]
fn a_worker_of_the_device_reaches_memory_while_the_server_waits_for_commands() {
    for way in WAYS {
        let mut rig = Rig::new(way);
        rig.map(IOVA, PAGE).unwrap();
        rig.memory.extend((IOVA..).zip(*b"far"));
        let worker = rig.worker(IOVA, 3);
        let asked = rig.asked();
        assert_eq!((asked.command, asked.iova, asked.count), (11, IOVA, 3));
        // Commands are executed while the worker waits.
        if way == Way::Twin {
            assert_eq!(rig.peer.write(BAR, 0, b"in between"), Ok(10));
        }
        rig.obey(&asked);
        assert_eq!(worker.join().unwrap().unwrap(), b"far", "{way:?}");
        assert_eq!(rig.peer.write(BAR, 0, b"after"), Ok(5));
        rig.peer.leave().unwrap();
    }
}

#[test]
fn a_worker_that_holds_the_device_gets_its_answer_while_commands_wait_for_the_device() {
    for way in WAYS {
        let mut rig = Rig::new(way);
        rig.map(IOVA, PAGE).unwrap();
        let device = rig.host.backend.device().clone();
        // As a driver does that works by itself: the device is taken until its memory has come.
        let worker = std::thread::spawn(move || device.write_region(BAR, DOORBELL, &IOVA.to_ne_bytes()));
        let asked = rig.asked();
        let access = RegionAccess { offset: 0, region: BAR, count: 1 };
        let ids: Vec<u16> = (0..10).map(|_| rig.peer.send(&Request::RegionRead(access))).collect();
        rig.obey(&asked);
        assert_eq!(worker.join().unwrap(), Ok(8), "{way:?}");
        for id in ids {
            rig.peer.answer(id, Command::RegionRead).unwrap();
        }
        assert_eq!(
            (mark(&rig, IOVA).as_slice(), rig.faults()),
            (MARK.to_ne_bytes().as_slice(), 0),
            "{way:?}"
        );
        rig.peer.leave().unwrap();
    }
}

#[test]
fn many_threads_ask_at_once_and_each_gets_its_own_answer() {
    for way in WAYS {
        let mut rig = Rig::new(way);
        rig.map(IOVA, 64 * PAGE).unwrap();
        rig.memory.extend((0..64).map(|index| (IOVA + index * PAGE, index as u8 + 1)));
        let workers: Vec<_> = (0..64).map(|index| rig.worker(IOVA + index * PAGE, 1)).collect();
        let id = rig.ring(IOVA + 8);
        let mut asked: Vec<Asked> = (0..65).map(|_| rig.asked()).collect();
        // In no order that they came in.
        asked.sort_by_key(|asked| asked.iova.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        for asked in &asked {
            rig.obey(asked);
        }
        for (index, worker) in workers.into_iter().enumerate() {
            assert_eq!(worker.join().unwrap().unwrap(), [index as u8 + 1], "{way:?}");
        }
        rig.rang(id);
        rig.peer.leave().unwrap();
    }
}

#[test]
fn an_unmap_waits_for_the_access_under_way_and_hinders_its_answer_not() {
    for way in WAYS {
        let mut rig = Rig::new(way);
        rig.map(IOVA, PAGE).unwrap();
        let worker = rig.worker(IOVA, 4);
        let asked = rig.asked();
        let id = rig.peer.send(&Request::DmaUnmap(DmaUnmap::Range { iova: IOVA, size: PAGE, bitmap: None }));
        // By now the serving thread may wait for the mappings; if not, it will.
        std::thread::yield_now();
        rig.obey(&asked);
        rig.peer.answer(id, Command::DmaUnmap).unwrap();
        assert_eq!(worker.join().unwrap().unwrap(), [0; 4], "{way:?}");
        assert_eq!(rig.worker(IOVA, 4).join().unwrap(), Err(FaultCause::NotMapped));
        assert_eq!(rig.peer.write(BAR, 0, b"after"), Ok(5));
        rig.peer.leave().unwrap();
    }
}

#[test]
fn what_was_read_ahead_is_executed_when_the_last_such_mapping_is_gone() {
    let mut rig = Rig::new(Way::Commands);
    rig.map(IOVA, PAGE).unwrap();
    let worker = rig.worker(IOVA, 4);
    let asked = rig.asked();
    let unmap = rig.peer.send(&Request::DmaUnmap(DmaUnmap::All));
    let ids: Vec<u16> = (0..100).map(|_| rig.peer.send(&Request::DeviceReset)).collect();
    rig.obey(&asked);
    rig.peer.answer(unmap, Command::DmaUnmap).unwrap();
    for id in ids {
        rig.peer.answer(id, Command::DeviceReset).unwrap();
    }
    worker.join().unwrap().unwrap();
    rig.peer.leave().unwrap();
}

#[test]
fn the_last_such_mapping_goes_while_the_device_waits_for_it_and_commands_go_on() {
    let mut rig = Rig::new(Way::Commands);
    rig.memory.extend((IOVA..).zip(*b"late"));
    for round in 0..50_u8 {
        rig.map(IOVA, PAGE).unwrap();
        let worker = rig.worker(IOVA, 4);
        let asked = rig.asked();
        let unmap = rig.peer.send(&Request::DmaUnmap(DmaUnmap::All));
        rig.peer.answer(unmap, Command::DmaUnmap).unwrap();
        assert_eq!(rig.peer.write(BAR, 0, &[round]), Ok(1));
        rig.obey(&asked);
        assert_eq!(rig.peer.read(BAR, 0, 1).unwrap(), [round]);
        assert_eq!(worker.join().unwrap().unwrap(), b"late");
        assert_eq!(rig.worker(IOVA, 4).join().unwrap(), Err(FaultCause::NotMapped));
    }
    rig.peer.leave().unwrap();
}

#[test]
fn an_access_is_split_as_was_agreed() {
    for way in WAYS {
        let capabilities = Backend::capabilities().max_data_xfer_size(100);
        let mut rig = Rig::with(way, capabilities);
        rig.map(IOVA, PAGE).unwrap();
        rig.memory.extend((0..250_u8).map(|at| (IOVA + 1 + u64::from(at), at)));
        let worker = rig.worker(IOVA + 1, 250);
        for (iova, count) in [(IOVA + 1, 100), (IOVA + 101, 100), (IOVA + 201, 50)] {
            let asked = rig.asked();
            assert_eq!((asked.iova, asked.count), (iova, count), "{way:?}");
            rig.obey(&asked);
        }
        assert_eq!(worker.join().unwrap().unwrap(), (0..250_u8).collect::<Vec<u8>>());
        rig.peer.leave().unwrap();
    }
}

#[test]
fn a_read_is_split_into_requests_whose_replies_fit_the_buffer_of_a_clients_socket() {
    const MAX: u64 = 64 << 10;
    for way in WAYS {
        let mut rig = Rig::new(way);
        rig.map(IOVA, 4 * MAX).unwrap();
        let worker = rig.worker(IOVA + 1, 3 * MAX as usize);
        for part in 0..3 {
            let asked = rig.asked();
            assert_eq!((asked.iova, asked.count), (IOVA + 1 + part * MAX, MAX), "{way:?}");
            rig.obey(&asked);
        }
        worker.join().unwrap().unwrap();
        rig.peer.leave().unwrap();
    }
}

#[test]
fn no_later_part_of_an_access_is_asked_for_once_the_unmap_is_answered() {
    for way in WAYS {
        let mut rig = Rig::with(way, Backend::capabilities().max_data_xfer_size(100));
        rig.map(IOVA, PAGE).unwrap();
        rig.map(IOVA + PAGE, PAGE).unwrap();
        let worker = rig.worker(IOVA, 150);
        let first = rig.asked();
        let unmap = DmaUnmap::Range { iova: IOVA, size: PAGE, bitmap: None };
        rig.peer.ask(&Request::DmaUnmap(unmap)).unwrap();
        let other = rig.worker(IOVA + PAGE, 1);
        let second = rig.asked();
        rig.obey(&first);
        assert_eq!(worker.join().unwrap(), Err(FaultCause::NotMapped), "{way:?}");
        assert_eq!(second.iova, IOVA + PAGE, "{way:?}");
        rig.obey(&second);
        assert_eq!(other.join().unwrap().unwrap(), [0], "{way:?}");
        rig.peer.leave().unwrap();
    }
}

#[test]
fn mappings_with_and_without_a_descriptor_make_one_memory() {
    let mut rig = Rig::new(Way::Commands);
    let file = memory(PAGE);
    rig.peer.map(IOVA, PAGE, &file).unwrap();
    rig.map(IOVA + PAGE, PAGE).unwrap();
    assert_eq!(rig.map(IOVA, 2 * PAGE), Err(Errno::EEXIST));
    let id = rig.ring(IOVA + PAGE - 4);
    let asked = rig.asked();
    assert_eq!((asked.iova, asked.count), (IOVA + PAGE, 4));
    rig.obey(&asked);
    rig.rang(id);
    let mark = MARK.to_ne_bytes();
    assert_eq!(rig.memory.values().copied().collect::<Vec<u8>>(), mark[4..]);
    let worker = rig.worker(IOVA + PAGE - 4, 8);
    let asked = rig.asked();
    rig.obey(&asked);
    assert_eq!(worker.join().unwrap().unwrap(), mark);
    rig.peer.leave().unwrap();
}

#[test]
fn both_lengths_of_the_answer_to_a_write_are_understood() {
    let long = [IOVA.to_ne_bytes(), 8_u64.to_ne_bytes()].concat();
    for payload in [&long[..], &long[..12]] {
        let mut rig = Rig::new(Way::Twin);
        rig.map(IOVA, PAGE).unwrap();
        let id = rig.ring(IOVA);
        let asked = rig.asked();
        rig.say(&raw(asked.id, 12, 1, payload));
        rig.rang(id);
        assert_eq!(rig.faults(), 0, "{} bytes", payload.len());
        rig.peer.leave().unwrap();
    }
}

#[test]
fn an_answer_that_cannot_be_one_is_a_fault_and_the_connection_goes_on() {
    let fields = |iova: u64, count: u64| [iova.to_ne_bytes(), count.to_ne_bytes()].concat();
    let with = |iova, count, data: &[u8]| [fields(iova, count), data.to_vec()].concat();
    let error = |errno: u32| (0x21, errno, vec![]);
    let cases = [
        ("nothing", (1, 0, vec![]), Errno::EIO),
        ("short data", (1, 0, with(IOVA, 4, b"abc")), Errno::EIO),
        ("fewer bytes", (1, 0, with(IOVA, 3, b"abc")), Errno::EIO),
        ("more bytes", (1, 0, with(IOVA, 5, b"abcde")), Errno::EIO),
        ("another address", (1, 0, with(IOVA + 1, 4, b"abcd")), Errno::EIO),
        ("a count of all bits", (1, 0, with(IOVA, u64::MAX, b"abcd")), Errno::EIO),
        ("a short payload", (1, 0, fields(IOVA, 4)[..15].to_vec()), Errno::EIO),
        ("EFAULT", error(Errno::EFAULT.raw_os_error().cast_unsigned()), Errno::EFAULT),
        ("EPERM", error(Errno::EPERM.raw_os_error().cast_unsigned()), Errno::EPERM),
        ("errno 0", error(0), Errno::EIO),
        ("an errno that there is not", error(u32::MAX), Errno::EIO),
    ];
    for way in WAYS {
        let mut rig = Rig::new(way);
        rig.map(IOVA, PAGE).unwrap();
        for (what, (flags, errno, payload), expected) in &cases {
            let worker = rig.worker(IOVA, 4);
            let asked = rig.asked();
            let mut bytes = raw(asked.id, 11, *flags, payload);
            bytes[12..16].copy_from_slice(&errno.to_ne_bytes());
            rig.say(&bytes);
            assert_eq!(worker.join().unwrap(), Err(FaultCause::Remote(*expected)), "{way:?}: {what}");
        }
        assert_eq!(rig.faults(), cases.len() as u64);
        let worker = rig.worker(IOVA, 4);
        let asked = rig.asked();
        rig.obey(&asked);
        worker.join().unwrap().unwrap();
        rig.peer.leave().unwrap();
    }
}

#[test]
fn answers_that_nobody_waits_for_are_ignored() {
    for way in WAYS {
        let mut rig = Rig::new(way);
        rig.map(IOVA, PAGE).unwrap();
        let payload = [IOVA.to_ne_bytes().as_slice(), &1_u64.to_ne_bytes(), &[9]].concat();
        rig.say(&raw(0x7777, 11, 1, &payload));
        let worker = rig.worker(IOVA, 1);
        let asked = rig.asked();
        for (id, command, flags) in [
            (asked.id.wrapping_add(1), 11, 1),
            (asked.id ^ 0x8000, 11, 0x21),
            (asked.id, 12, 1),
            (asked.id, 99, 1),
        ] {
            rig.say(&raw(id, command, flags, &payload));
        }
        rig.obey(&asked);
        assert_eq!(worker.join().unwrap().unwrap(), [0], "{way:?}");
        // Once more, now that it has been answered.
        rig.say(&raw(asked.id, 11, 1, &payload));
        let id = rig.ring(IOVA);
        let asked = rig.asked();
        rig.obey(&asked);
        rig.rang(id);
        rig.peer.leave().unwrap();
    }
}

#[test]
fn a_client_that_does_not_answer_loses_its_connection_and_the_device_its_access() {
    let before = Instant::now();
    let threads: Vec<_> = WAYS
        .into_iter()
        .flat_map(|way| [(way, false), (way, true)])
        .map(|(way, by_command)| {
            std::thread::spawn(move || {
                let mut rig = Rig::new(way);
                rig.map(IOVA, PAGE).unwrap();
                let worker = if by_command {
                    rig.ring(IOVA);
                    None
                } else {
                    Some(rig.worker(IOVA, 1))
                };
                let asked = rig.asked();
                // What is no answer does not count as one.
                rig.say(&raw(asked.id.wrapping_add(1), asked.command, 1, &[0; 24]));
                if let Some(worker) = worker {
                    assert_eq!(worker.join().unwrap(), Err(FaultCause::Remote(Errno::ETIMEDOUT)));
                }
                let Rig { host, peer, twin, .. } = rig;
                let error = peer.end().unwrap_err();
                let name = Command::try_from(asked.command).unwrap();
                assert!(matches!(&error, ServeError::NoAnswer(command) if *command == name), "{error}");
                let dma = host.backend.device().bus().dma();
                assert_eq!((dma.faults(), dma.is_empty()), (1, true));
                drop(twin);
                // The next client finds all as it was.
                let mut next = host.client();
                assert_eq!(next.write(BAR, 0, b"next"), Ok(4));
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    assert!(before.elapsed() < LONG);
}

#[test]
fn a_client_that_reads_nothing_loses_its_connection_and_the_device_its_access() {
    let much = 4 << 20;
    // What cannot be sent is the request, or the replies before it.
    let threads = [false, true].map(|is_behind_replies| {
        std::thread::spawn(move || {
            let mut rig = Rig::new(Way::Commands);
            rig.map(IOVA, much as u64).unwrap();
            if is_behind_replies {
                let access = RegionAccess { offset: 0, region: BAR, count: PAGE as u32 };
                for _ in 0..200 {
                    rig.peer.send(&Request::RegionRead(access));
                }
            }
            let device = rig.host.backend.device().clone();
            let written = device.bus().dma().write(IOVA, &vec![1; much]).map_err(|fault| fault.cause);
            assert_eq!(written, Err(FaultCause::Remote(Errno::ETIMEDOUT)));
            let error = rig.peer.end().unwrap_err();
            assert!(matches!(error, ServeError::NoAnswer(Command::DmaWrite)), "{error}");
            assert!(device.bus().dma().is_empty());
        })
    });
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn a_client_that_hangs_up_at_any_byte_of_its_answer_ends_the_access_at_once() {
    for way in WAYS {
        let mut rig = Rig::new(way);
        let answer = |id| {
            let mut out = MessageBuffer::new();
            out.reply(id, &Reply::DmaRead { iova: IOVA, data: b"late" });
            out.as_bytes().to_vec()
        };
        for length in 0..answer(0).len() {
            rig.map(IOVA, PAGE).unwrap();
            let worker = rig.worker(IOVA, 4);
            let asked = rig.asked();
            let answer = answer(asked.id);
            rig.say(&answer[..length]);
            let Rig { host, peer, twin, memory } = rig;
            let before = Instant::now();
            // The twin too, or the socket of the commands alone.
            let twin = twin.filter(|_| length % 2 == 0);
            let left = peer.leave();
            assert_eq!(worker.join().unwrap(), Err(FaultCause::Remote(Errno::ENOTCONN)), "{way:?} {length}");
            assert!(before.elapsed() < Duration::from_secs(4), "it waited for an answer");
            match left {
                Ok(()) => {}
                Err(ServeError::Socket(SocketError::HungUp { received, .. })) => assert_eq!(received, length),
                other => panic!("{way:?}: after {length} bytes: {other:?}"),
            }
            drop(twin);
            let next = Rig::on(host, way, Backend::capabilities());
            rig = Rig { memory, ..next };
        }
    }
}

#[test]
fn a_client_that_hangs_up_while_a_command_waits_for_it_is_left_at_once() {
    for way in WAYS {
        let mut rig = Rig::new(way);
        rig.map(IOVA, PAGE).unwrap();
        rig.ring(IOVA);
        rig.asked();
        let Rig { host, peer, .. } = rig;
        let before = Instant::now();
        // The reply to the command may have gone nowhere.
        let _ = peer.leave();
        assert!(before.elapsed() < Duration::from_secs(4), "{way:?}: it waited for an answer");
        let dma = host.backend.device().bus().dma();
        assert_eq!((dma.faults(), dma.is_empty()), (1, true));
    }
}

#[test]
fn a_client_that_closes_its_twin_alone_has_left() {
    let mut rig = Rig::new(Way::Twin);
    rig.map(IOVA, PAGE).unwrap();
    rig.twin = None;
    assert_eq!(rig.worker(IOVA, 1).join().unwrap(), Err(FaultCause::Remote(Errno::ENOTCONN)));
    let Rig { host, peer, .. } = rig;
    peer.end().unwrap();
    assert!(host.backend.device().bus().dma().is_empty());
}

#[test]
fn a_command_over_the_twin_ends_the_connection() {
    let mut rig = Rig::new(Way::Twin);
    rig.map(IOVA, PAGE).unwrap();
    let worker = rig.worker(IOVA, 1);
    rig.asked();
    rig.say(&raw(1, 13, 0, &[]));
    assert_eq!(worker.join().unwrap(), Err(FaultCause::Remote(Errno::ENOTCONN)));
    assert!(matches!(rig.peer.end(), Err(ServeError::CommandOverTwin(13))));
}

#[test]
fn what_is_no_message_ends_the_access_and_the_connection() {
    for way in WAYS {
        let mut rig = Rig::new(way);
        rig.map(IOVA, PAGE).unwrap();
        let worker = rig.worker(IOVA, 1);
        rig.asked();
        rig.say(&[0xff; 16]);
        assert_eq!(worker.join().unwrap(), Err(FaultCause::Remote(Errno::ENOTCONN)), "{way:?}");
        assert!(matches!(rig.peer.end(), Err(ServeError::Socket(SocketError::Frame(_)))), "{way:?}");
    }
}

#[test]
fn a_flood_of_commands_instead_of_an_answer_ends_the_connection() {
    for payload in [0, 60_000] {
        let mut rig = Rig::new(Way::Commands);
        rig.map(IOVA, PAGE).unwrap();
        rig.ring(IOVA);
        rig.asked();
        let message = raw(1, 99, 0x10, &vec![0; payload]);
        let many = message.repeat((1 << 20) / message.len());
        let mut sent = 0_usize;
        while rig.peer.sender.send(&many, &[]).is_ok() {
            sent += many.len();
            assert!(sent < 1 << 30, "it keeps all of it");
        }
        let error = rig.peer.end().unwrap_err();
        assert!(matches!(error, ServeError::Flood { .. }), "{error}");
        assert_eq!(rig.host.backend.device().bus().dma().faults(), 1);
    }
}

#[test]
fn descriptors_of_commands_that_wait_are_bounded_and_closed() {
    let mut rig = Rig::new(Way::Commands);
    rig.map(IOVA, PAGE).unwrap();
    rig.ring(IOVA);
    rig.asked();
    let memory = rustix::fs::memfd_create("flood", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let fds = vec![std::os::fd::AsFd::as_fd(&memory); 100];
    let message = raw(1, 99, 0x10, &[]);
    let mut sent = 0;
    while rig.peer.sender.send(&message, &fds).is_ok() {
        sent += fds.len();
        assert!(sent < 1 << 20, "it keeps all of them");
    }
    assert!(matches!(rig.peer.end(), Err(ServeError::Flood { .. })));
    let links = std::fs::read_dir("/proc/self/fd").unwrap();
    let links = links.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
    let open = links.filter(|link| link.as_os_str() == "/memfd:flood (deleted)").count();
    assert_eq!(open, 1, "this test's own is the last");
}

#[test]
fn a_client_that_sends_much_before_it_reads_is_read_while_it_is_sent_to() {
    const MUCH: usize = 1 << 20;
    let mut rig = Rig::new(Way::Commands);
    rig.map(IOVA, MUCH as u64).unwrap();
    let device = rig.host.backend.device().clone();
    let worker = std::thread::spawn(move || {
        device.bus().dma().write(IOVA, &vec![7; MUCH]).map_err(|fault| fault.cause)
    });
    // More than the socket holds, while the server has more to send than it holds.
    let message = raw(1, 99, 0x10, &vec![0; 60_000]);
    for _ in 0..100 {
        rig.say(&message);
    }
    let asked = rig.asked();
    assert_eq!((asked.iova, asked.count), (IOVA, MUCH as u64));
    let mut out = MessageBuffer::new();
    out.reply(asked.id, &Reply::DmaWrite(DmaAccess { iova: IOVA, count: asked.count }));
    rig.say(out.as_bytes());
    worker.join().unwrap().unwrap();
    rig.peer.leave().unwrap();
}

#[test]
fn a_client_that_takes_no_descriptor_gets_no_twin() {
    let host = Host::new();
    let (stream, thread) = host.connect();
    let mut peer = Peer::new(stream, Some(thread));
    let (version, fds) = peer.propose(Backend::capabilities().max_msg_fds(0));
    assert_eq!((version.capabilities.twin_socket, fds.len()), (None, 0));
    peer.leave().unwrap();
}
