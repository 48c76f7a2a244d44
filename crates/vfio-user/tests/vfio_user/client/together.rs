//! Many requests under way at once.

use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;
use std::time::Duration;

use whimbrel_uapi::type1::{DmaMapFlags, DmaUnmapFlags};
use whimbrel_user::{Device, DmaMap, Errno, Error};
use whimbrel_vfio_user::message::{
    Command, DmaUnmap, DmaUnmapReply, HEADER, Kind, Limits, MessageBuffer, RegionAccess, Reply, Request,
};
use whimbrel_vfio_user::{Client, ClientOptions, DmaMapping, Receiver, RegionRead};

use super::board::{BROKEN, PAGE, TARGET, board, memory};
use super::support::plain_server;

const BOTH: DmaMapFlags = DmaMapFlags::READ.union(DmaMapFlags::WRITE);
const IOVA: u64 = 1 << 30;

fn options(max_data_xfer_size: u32, max_msg_fds: u32) -> ClientOptions {
    let capabilities = Client::capabilities().max_data_xfer_size(max_data_xfer_size).max_msg_fds(max_msg_fds);
    ClientOptions::default().capabilities(capabilities)
}

/// Reads at these offsets, each as long as its place in the list says.
fn read(client: &Client, offsets: &[u64]) -> (Result<(), Error>, Vec<Vec<u8>>) {
    let mut data: Vec<Vec<u8>> = (0..offsets.len()).map(|at| vec![0xee; at % 40]).collect();
    let mut reads: Vec<RegionRead<'_>> =
        offsets.iter().zip(&mut data).map(|(offset, data)| RegionRead::new(0, *offset, data)).collect();
    (client.read_regions(&mut reads), data)
}

#[test]
fn each_read_gets_what_is_at_its_place() {
    for most in [1 << 20, 7] {
        let (client, _) = board(&options(most, 253));
        let offsets: Vec<u64> = (0..1000).map(|at| at * 2).collect();
        let (outcome, data) = read(&client, &offsets);
        outcome.unwrap();
        for (at, (offset, data)) in offsets.iter().zip(&data).enumerate() {
            // The board fills what is read at once with where that begins.
            let expected: Vec<u8> = (0..at as u64 % 40)
                .map(|byte| (offset + byte / u64::from(most) * u64::from(most)) as u8)
                .collect();
            assert_eq!(*data, expected, "read {at}, {most} bytes at a time");
        }
        client.read_regions(&mut []).unwrap();
    }
}

#[test]
fn a_read_that_fails_is_the_error_and_keeps_no_other_from_being_made() {
    let (client, _) = board(&ClientOptions::default());
    let mut offsets = vec![3; 200];
    (offsets[101], offsets[150]) = (BROKEN, PAGE);
    let (outcome, data) = read(&client, &offsets);
    let error = outcome.unwrap_err();
    assert_eq!(
        error.to_string(),
        "board: VFIO_USER_REGION_READ of region 0 at 0x800: EIO: Input/output error"
    );
    for (at, data) in data.iter().enumerate() {
        let expected = if [101, 150].contains(&at) { 0xee } else { 3 };
        assert!(data.iter().all(|byte| *byte == expected), "read {at}");
    }
}

fn mappings(count: u64) -> Vec<DmaMapping> {
    (0..count).map(|at| DmaMapping::new(IOVA + 2 * at * PAGE, BOTH, memory(PAGE))).collect()
}

fn first_byte(mapping: &DmaMapping) -> u8 {
    let memory = mapping.memory.file().unwrap();
    let mut byte = [0];
    std::os::unix::fs::FileExt::read_exact_at(memory.file(), &mut byte, memory.start()).unwrap();
    byte[0]
}

#[test]
fn all_memory_is_mapped_with_descriptors_and_without() {
    for max_msg_fds in [253, 0] {
        let (mut client, _) = board(&options(1 << 20, max_msg_fds));
        let mappings = mappings(300);
        client.map_dma_all(mappings.clone()).unwrap();
        for mapping in &mappings {
            client.write_region(0, TARGET, &mapping.iova.to_ne_bytes()).unwrap();
            assert_eq!(first_byte(mapping), b'x', "{:#x}", mapping.iova);
        }
        client.map_dma_all(vec![]).unwrap();
        assert_eq!(client.unmap_dma(mappings[7].iova, PAGE).unwrap(), PAGE);
        assert_eq!(client.unmap_all_dma().unwrap(), 299 * PAGE);
    }
}

#[test]
fn if_one_mapping_is_refused_none_is_made() {
    for max_msg_fds in [253, 0] {
        let (mut client, _) = board(&options(1 << 20, max_msg_fds));
        let mut all = mappings(200);
        let before = DmaMapping::new(all[150].iova, BOTH, memory(PAGE));
        client.map_dma(before.iova, before.rights, before.memory.clone()).unwrap();
        let error = client.map_dma_all(all.clone()).unwrap_err();
        assert_eq!(error.errno(), Some(Errno::EEXIST), "{error}");
        for mapping in [&all[0], &all[149], &all[199]] {
            let touched = client.write_region(0, TARGET, &mapping.iova.to_ne_bytes());
            assert_eq!(touched.unwrap_err().errno(), Some(Errno::EFAULT));
        }
        client.write_region(0, TARGET, &before.iova.to_ne_bytes()).unwrap();
        assert_eq!(first_byte(&before), b'x', "what was mapped before is");
        all.remove(150);
        client.map_dma_all(all).unwrap();
        assert_eq!(client.unmap_all_dma().unwrap(), 200 * PAGE);
    }
}

/// The id of the next request, which is to read a region, and what it asks.
fn next(receiver: &mut Receiver) -> (u16, RegionAccess) {
    let message = receiver.receive().unwrap().unwrap();
    let command = Command::try_from(message.header.command).unwrap();
    match Request::parse(command, message.payload, Limits::default()).unwrap() {
        Request::RegionRead(access) => (message.header.id, access),
        other => panic!("{other:?}"),
    }
}

fn answer(out: &mut MessageBuffer, (id, access): (u16, RegionAccess)) {
    out.reply(id, &Reply::RegionRead(access, &vec![1; access.count as usize]));
}

#[test]
fn answers_in_another_order_end_the_connection() {
    let (client, thread) = plain_server(&ClientOptions::default(), |mut receiver, mut sender| {
        let asked = [next(&mut receiver), next(&mut receiver), next(&mut receiver)];
        let mut out = MessageBuffer::new();
        for at in [0, 2, 1] {
            answer(&mut out, asked[at]);
        }
        sender.send(out.as_bytes(), &[]).unwrap();
    });
    // The first read is of nothing, and asks nothing.
    let (outcome, data) = read(&client, &[0, 1, 2, 3]);
    let error = outcome.unwrap_err().to_string();
    assert!(error.starts_with("card: VFIO_USER_REGION_READ of region 0 at 0x2: "), "{error}");
    assert!(error.contains("reply to message 4"), "{error}");
    assert_eq!(data, [vec![], vec![1], vec![0xee; 2], vec![0xee; 3]], "nothing of it was taken");
    assert!(matches!(read(&client, &[0, 1]).0, Err(Error::Unusable { .. })));
    thread.join().unwrap();
}

#[test]
fn an_answer_of_another_length_or_place_is_refused_and_those_behind_it_count() {
    for (case, spoil) in [
        ("fewer bytes", (|access| access.count -= 1) as fn(&mut RegionAccess)),
        ("more bytes", |access| access.count += 1),
        ("another offset", |access| access.offset ^= 1 << 63),
        ("another region", |access| access.region = 1),
    ] {
        let (client, thread) = plain_server(&ClientOptions::default(), move |mut receiver, mut sender| {
            let mut out = MessageBuffer::new();
            for at in 0..3 {
                let (id, mut access) = next(&mut receiver);
                if at == 1 {
                    spoil(&mut access);
                }
                answer(&mut out, (id, access));
            }
            sender.send(out.as_bytes(), &[]).unwrap();
            assert!(matches!(receiver.receive(), Ok(None)));
        });
        // The first read is of nothing, and asks nothing.
        let (outcome, data) = read(&client, &[0, 1, 2, 3]);
        assert!(matches!(outcome, Err(Error::Answer { .. })), "{case}: {outcome:?}");
        assert_eq!(data, [vec![], vec![1], vec![0xee; 2], vec![1; 3]], "{case}");
        drop(client);
        thread.join().unwrap();
    }
}

#[test]
fn a_server_that_hangs_up_between_answers_is_an_error() {
    for answered in [0, 1, 70, 199] {
        let (client, thread) = plain_server(&ClientOptions::default(), move |mut receiver, mut sender| {
            for _ in 0..answered {
                let mut out = MessageBuffer::new();
                answer(&mut out, next(&mut receiver));
                sender.send(out.as_bytes(), &[]).unwrap();
            }
        });
        let mut data = [0; 200];
        let mut reads: Vec<RegionRead<'_>> =
            data.chunks_mut(1).zip(0..).map(|(data, offset)| RegionRead::new(0, offset, data)).collect();
        let error = client.read_regions(&mut reads).unwrap_err();
        assert_eq!(error.errno(), Some(Errno::ECONNRESET), "{answered}: {error}");
        assert_eq!(data.iter().take_while(|byte| **byte == 1).count(), answered);
        thread.join().unwrap();
    }
}

#[test]
fn a_server_that_answers_no_more_is_given_up() {
    let options = ClientOptions::default().request_timeout(Duration::from_secs(2));
    let (client, thread) = plain_server(&options, |mut receiver, mut sender| {
        let mut out = MessageBuffer::new();
        answer(&mut out, next(&mut receiver));
        sender.send(out.as_bytes(), &[]).unwrap();
        while let Ok(Some(_)) = receiver.receive() {}
    });
    let (outcome, _) = read(&client, &[1; 100]);
    assert_eq!(outcome.unwrap_err().errno(), Some(Errno::ETIMEDOUT));
    thread.join().unwrap();
}

#[test]
fn descriptors_that_come_with_answers_are_closed() {
    let (mut kept, given) = UnixStream::pair().unwrap();
    let (client, thread) = plain_server(&ClientOptions::default(), move |mut receiver, mut sender| {
        for _ in 0..3 {
            let mut out = MessageBuffer::new();
            answer(&mut out, next(&mut receiver));
            sender.send(out.as_bytes(), &[given.as_fd(), given.as_fd()]).unwrap();
        }
    });
    read(&client, &[0, 1, 2, 3]).0.unwrap();
    thread.join().unwrap();
    assert_eq!(kept.read(&mut [0]).unwrap(), 0, "nobody holds the other end");
}

#[test]
fn what_the_server_asks_between_its_answers_is_answered() {
    let (client, thread) = plain_server(&ClientOptions::default(), |mut receiver, mut sender| {
        let (mut out, mut asked) = (MessageBuffer::new(), Vec::new());
        for _ in 0..64 {
            asked.push(next(&mut receiver));
        }
        for (at, asked) in (0..).zip(asked) {
            out.request(at, false, &Request::DeviceReset);
            answer(&mut out, asked);
        }
        sender.send(out.as_bytes(), &[]).unwrap();
        let mut refused = 0;
        while let Ok(Some(message)) = receiver.receive() {
            match message.header.kind {
                Kind::Error(errno) => {
                    assert_eq!(
                        (message.header.id, errno),
                        (refused, Errno::ENOTTY.raw_os_error().cast_unsigned())
                    );
                    assert_eq!(message.header.size as usize, HEADER);
                    refused += 1;
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(refused, 64);
    });
    let mut data = [0; 64];
    let mut reads: Vec<RegionRead<'_>> = data.chunks_mut(1).map(|data| RegionRead::new(0, 0, data)).collect();
    client.read_regions(&mut reads).unwrap();
    assert_eq!(data, [1; 64]);
    drop(client);
    thread.join().unwrap();
}

/// A server that answers requests about memory, each by the number of those before it, until the client
/// leaves.
fn mapping_server(
    errno: impl Fn(usize) -> Option<Errno> + Send + 'static,
) -> (Client, JoinHandle<Vec<Command>>) {
    let (sender, asked) = std::sync::mpsc::channel();
    let (client, thread) = plain_server(&ClientOptions::default(), move |mut receiver, mut replies| {
        let mut number = 0;
        while let Ok(Some(message)) = receiver.receive() {
            let (id, command) = (message.header.id, Command::try_from(message.header.command).unwrap());
            let mut out = MessageBuffer::new();
            match (errno(number), Request::parse(command, message.payload, Limits::default()).unwrap()) {
                (Some(errno), _) => out.error(id, command.number(), errno),
                (None, Request::DmaMap(_)) => out.reply(id, &Reply::DmaMap),
                (None, Request::DmaUnmap(DmaUnmap::Range { iova, size, bitmap: None })) => {
                    let flags = DmaUnmapFlags::empty();
                    out.reply(id, &Reply::DmaUnmap(DmaUnmapReply { flags, iova, size, bitmap: None }));
                }
                (None, other) => panic!("{other:?}"),
            }
            replies.send(out.as_bytes(), &[]).unwrap();
            sender.send(command).unwrap();
            number += 1;
        }
    });
    (
        client,
        std::thread::spawn(move || {
            thread.join().unwrap();
            asked.iter().collect()
        }),
    )
}

#[test]
fn a_server_that_maps_over_what_is_mapped_is_told_to_unmap_the_rest() {
    let (client, thread) = mapping_server(|_| None);
    let mut twice = mappings(3);
    twice.push(twice[1].clone());
    let error = client.map_dma_all(twice).unwrap_err().to_string();
    assert!(error.contains("accepted a mapping that overlaps an earlier one"), "{error}");
    drop(client);
    assert_eq!(thread.join().unwrap(), [[Command::DmaMap; 4].as_slice(), &[Command::DmaUnmap; 3]].concat());
}

#[test]
fn what_was_mapped_is_unmapped_even_if_the_server_does_not_want_it() {
    let (mut client, thread) = mapping_server(|number| match number {
        50 => Some(Errno::ENOSPC),
        100.. => Some(Errno::EPERM),
        _ => None,
    });
    let error = client.map_dma_all(mappings(100)).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::ENOSPC), "the first error, and not that of an unmap: {error}");
    // The client holds nothing any more, and can be asked for all of it again.
    let again = client.map_dma(IOVA, BOTH, memory(PAGE)).unwrap_err();
    assert_eq!(again.errno(), Some(Errno::EPERM));
    drop(client);
    let asked = thread.join().unwrap();
    assert_eq!(asked.iter().filter(|command| **command == Command::DmaUnmap).count(), 99);
}

#[test]
fn a_server_that_hangs_up_while_memory_is_mapped_is_an_error() {
    let (client, thread) = plain_server(&ClientOptions::default(), |mut receiver, _| {
        for _ in 0..10 {
            assert_eq!(receiver.receive().unwrap().unwrap().descriptors.unwrap().len(), 1);
        }
    });
    let error = client.map_dma_all(mappings(1000)).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::ECONNRESET), "{error}");
    assert!(matches!(client.map_dma_all(mappings(1)), Err(Error::Unusable { .. })));
    thread.join().unwrap();
}
