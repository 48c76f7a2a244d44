//! Writes that nobody waits for.

use std::time::Duration;

use whimbrel_uapi::type1::DmaMapFlags;
use whimbrel_user::{Device, DmaMap, Errno, Error, Migratable};
use whimbrel_vfio_user::message::{Command, DmaAccess, Kind, Limits, MessageBuffer, Reply, Request};
use whimbrel_vfio_user::{Client, ClientOptions};

use super::board::{BROKEN, PAGE, TARGET, board, memory};
use super::support::plain_server;

#[test]
fn what_is_read_later_is_what_was_written_before() {
    let (mut client, written) = board(&ClientOptions::default());
    for number in 0..5000_u64 {
        client.post_write(0, 0x100, &number.to_ne_bytes()).unwrap();
    }
    // One that fails is told to nobody.
    client.post_write(0, BROKEN, b"x").unwrap();
    client.post_write(9, 0, b"x").unwrap();
    client.post_write(0, 0, b"").unwrap();
    client.read_region(0, 0, &mut [0]).unwrap();
    let expected: Vec<(u64, Vec<u8>)> =
        (0..5000_u64).map(|number| (0x100, number.to_ne_bytes().to_vec())).collect();
    assert_eq!(*written.lock(), expected);
}

#[test]
fn what_is_longer_than_a_message_goes_in_pieces() {
    let capabilities = Client::capabilities().max_data_xfer_size(100);
    let (mut client, written) = board(&ClientOptions::default().capabilities(capabilities));
    let data: Vec<u8> = (0..250).collect();
    client.post_write(0, 0x100, &data).unwrap();
    client.read_region(0, 0, &mut [0]).unwrap();
    let pieces: Vec<(u64, Vec<u8>)> =
        [(0x100, &data[..100]), (0x164, &data[100..200]), (0x1c8, &data[200..])]
            .map(|(offset, data)| (offset, data.to_vec()))
            .to_vec();
    assert_eq!(*written.lock(), pieces);
}

#[test]
fn a_write_whose_device_asks_for_memory_is_not_stuck() {
    // Without descriptors all memory is asked for.
    let capabilities = Client::capabilities().max_msg_fds(0);
    let (mut client, written) = board(&ClientOptions::default().capabilities(capabilities));
    let both = DmaMapFlags::READ | DmaMapFlags::WRITE;
    client.map_dma(0, both, memory(PAGE)).unwrap();
    for at in 0..2000_u64 {
        client.post_write(0, TARGET, &at.to_ne_bytes()).unwrap();
    }
    client.read_region(0, 0, &mut [0]).unwrap();
    assert_eq!(written.lock().len(), 2000);
}

/// Writes until an error comes, which must come some time.
fn write_until_refused(client: &Client) -> Error {
    let data = vec![0; 64 << 10];
    let refused = (0..10_000).find_map(|_| client.post_write(0, 0, &data).err());
    refused.expect("640 MiB fit into no socket")
}

#[test]
fn a_server_that_takes_nothing_is_given_up() {
    let options = ClientOptions::default().request_timeout(Duration::from_secs(2));
    let (left, stay) = std::sync::mpsc::channel::<()>();
    let (client, thread) = plain_server(&options, move |_receiver, _sender| {
        let _ = stay.recv();
    });
    assert_eq!(write_until_refused(&client).errno(), Some(Errno::ETIMEDOUT));
    assert!(matches!(client.post_write(0, 0, b"x"), Err(Error::Unusable { .. })));
    drop(left);
    thread.join().unwrap();
}

#[test]
fn a_server_that_hangs_up_is_an_error() {
    let (client, thread) = plain_server(&ClientOptions::default(), |mut receiver, _| {
        receiver.receive().unwrap();
    });
    assert_eq!(write_until_refused(&client).errno(), Some(Errno::ECONNRESET));
    thread.join().unwrap();
}

#[test]
fn a_reply_to_what_wants_none_ends_the_connection() {
    let (mut client, thread) = plain_server(&ClientOptions::default(), |mut receiver, mut sender| {
        let message = receiver.receive().unwrap().unwrap();
        assert_eq!(message.header.kind, Kind::Command { no_reply: true });
        let mut out = MessageBuffer::new();
        out.error(message.header.id, message.header.command, Errno::EIO);
        sender.send(out.as_bytes(), &[]).unwrap();
        receiver.receive().unwrap();
    });
    client.post_write(0, 0, b"x").unwrap();
    let error = client.reset().unwrap_err();
    assert!(error.to_string().contains("reply to message 2 (VFIO_USER_REGION_WRITE)"), "{error}");
    thread.join().unwrap();
}

#[test]
fn a_server_that_asks_before_it_reads_does_not_block_who_writes_before_it_reads() {
    const ASKED: u64 = 500;
    const WRITES: usize = 64;
    let (client, thread) = plain_server(&ClientOptions::default(), |mut receiver, mut sender| {
        // More than sockets hold, in both directions, before anything is read.
        let mut out = MessageBuffer::new();
        for id in 0..ASKED {
            let data = [7; 4096];
            out.request(id as u16, false, &Request::DmaWrite { iova: 1 << 40, data: &data });
        }
        sender.send(out.as_bytes(), &[]).unwrap();
        let (mut answers, mut written) = (0, 0);
        while answers < ASKED || written < (WRITES as u64) << 20 {
            let message = receiver.receive().unwrap().unwrap();
            match message.header.kind {
                Kind::Error(errno) => {
                    assert_eq!(
                        (u64::from(message.header.id), errno),
                        (answers, Errno::EFAULT.raw_os_error().cast_unsigned())
                    );
                    answers += 1;
                }
                Kind::Command { no_reply: true } => {
                    let command = Command::try_from(message.header.command).unwrap();
                    let Ok(Request::RegionWrite(access, data)) =
                        Request::parse(command, message.payload, Limits::default())
                    else {
                        panic!("{command}")
                    };
                    assert_eq!(access.offset, written);
                    assert!(data.iter().all(|byte| *byte == (written >> 20) as u8));
                    written += data.len() as u64;
                }
                other => panic!("{other:?}"),
            }
        }
        // And now the client answers while it waits.
        let mut out = MessageBuffer::new();
        out.request(1, false, &Request::DmaRead(DmaAccess { iova: 0, count: 1 }));
        sender.send(out.as_bytes(), &[]).unwrap();
        let reset = receiver.receive().unwrap().unwrap().header;
        let mut out = MessageBuffer::new();
        out.reply(reset.id, &Reply::DeviceReset);
        sender.send(out.as_bytes(), &[]).unwrap();
        let answer = receiver.receive().unwrap().unwrap().header;
        assert_eq!(answer.kind, Kind::Error(Errno::EFAULT.raw_os_error().cast_unsigned()));
    });
    let mut client = client;
    for at in 0..WRITES {
        client.post_write(0, (at as u64) << 20, &vec![at as u8; 1 << 20]).unwrap();
    }
    // What the server still waits for, it gets while a reply is waited for.
    client.reset().unwrap();
    thread.join().unwrap();
}
