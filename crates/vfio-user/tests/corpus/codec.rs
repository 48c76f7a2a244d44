//! The codec alone. The first byte says which part of it reads the rest, the second the limits that hold.
//!
//! Whatever can be read is written and read again, and must be the same; what is held for a stream has a bound
//! that no stream can move.

use whimbrel_protocol::info::{Capability, DeviceCapability, Info, Region};
use whimbrel_vfio_user::message::{
    Command, Deframer, FrameError, HEADER, Header, Kind, Limits, LoggingReport, LoggingStart, MessageBuffer,
    Reply, Request, Version,
};
use whimbrel_vfio_user::{Backend, Capabilities, negotiate};

use super::input::Input;

const SIZES: [u32; 5] = [1, 64, 4096, 1 << 16, 1 << 20];

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let part = input.u8() % 5;
    let limits = Limits::new(SIZES[usize::from(input.u8()) % SIZES.len()]);
    match part {
        0 => stream(&mut input, limits),
        1 => {
            let command = Command::ALL[usize::from(input.u8()) % Command::ALL.len()];
            payload(command, input.rest(), limits);
        }
        2 => version_data(input.rest()),
        3 => chains(input.rest()),
        _ => logging(input.rest()),
    }
}

/// A stream in pieces, whose sizes the next four bytes give in turn: what comes out does not depend on them.
///
/// The stream is either all that is left, or messages as long as two bytes say, which are empty.
fn stream(input: &mut Input<'_>, limits: Limits) {
    let sizes: Vec<usize> = (0..4).map(|_| usize::from(input.u8())).map(|size| 1 + size * size).collect();
    let mut long = Vec::new();
    while input.u8() % 2 == 1 && long.len() < 1 << 20 {
        let size = 16 * (1 + u32::from(input.u16()));
        let header = [u32::from(input.u8()) << 16, size, input.u8().into(), 0].map(u32::to_ne_bytes);
        long.extend_from_slice(header.as_flattened());
        long.resize(long.len() + size as usize - HEADER, 0);
    }
    long.extend_from_slice(input.rest());
    let stream = long.as_slice();
    let mut deframer = Deframer::new(limits);
    let mut left = stream;
    let mut rest = stream;
    for size in sizes.into_iter().cycle() {
        loop {
            assert!(deframer.partial().is_none() || !deframer.is_ready(), "it is both whole and not");
            let ready = deframer.is_ready();
            match deframer.next_message() {
                Ok(Some(message)) => {
                    assert!(ready);
                    let (header, payload) = cut(&mut rest, limits).unwrap().expect("it was not sent");
                    assert_eq!((message.header, message.payload), (header, payload));
                    understood(header, payload, limits);
                }
                Ok(None) => {
                    assert!(!ready);
                    break;
                }
                Err(error) => {
                    assert!(ready);
                    assert_eq!(cut(&mut rest, limits), Err(error));
                    return;
                }
            }
        }
        assert!(deframer.capacity() <= limits.message() + HEADER, "{} bytes", deframer.capacity());
        if left.is_empty() {
            break;
        }
        let room = deframer.room().expect("what it has was judged");
        let count = room.len().min(size).min(left.len());
        assert_ne!(count, 0);
        room[..count].copy_from_slice(&left[..count]);
        left = &left[count..];
        deframer.filled(count);
    }
    assert_eq!(cut(&mut rest, limits), Ok(None));
    assert_eq!(deframer.received(), stream.len() as u64);
    assert_eq!(deframer.taken(), (stream.len() - rest.len()) as u64);
}

/// The first message of a stream that is there at once.
fn cut<'a>(stream: &mut &'a [u8], limits: Limits) -> Result<Option<(Header, &'a [u8])>, FrameError> {
    let Some(bytes) = stream.first_chunk::<HEADER>() else { return Ok(None) };
    let header = Header::parse(*bytes, limits)?;
    assert_eq!(Header::parse(header.to_bytes(), limits), Ok(header));
    let Some((message, left)) = stream.split_at_checked(header.size as usize) else { return Ok(None) };
    *stream = left;
    Ok(Some((header, &message[HEADER..])))
}

fn understood(header: Header, bytes: &[u8], limits: Limits) {
    let Ok(command) = Command::try_from(header.command) else { return };
    match header.kind {
        Kind::Command { .. } => request(command, bytes, limits),
        Kind::Reply => reply(command, bytes, limits),
        Kind::Error(_) => {}
    }
}

fn payload(command: Command, bytes: &[u8], limits: Limits) {
    request(command, bytes, limits);
    reply(command, bytes, limits);
}

fn request(command: Command, bytes: &[u8], limits: Limits) {
    let Ok(request) = Request::parse(command, bytes, limits) else { return };
    assert_eq!(request.command(), command);
    let mut out = MessageBuffer::new();
    out.request(1, false, &request);
    assert!(out.len() <= limits.message().max(HEADER + bytes.len()), "{request:?}");
    let again = Request::parse(command, &out.as_bytes()[HEADER..], limits);
    assert_eq!(again.expect("it was read before"), request);
}

fn reply(command: Command, bytes: &[u8], limits: Limits) {
    let Ok(reply) = Reply::parse(command, bytes, limits) else { return };
    assert_eq!(reply.command(), command);
    let mut out = MessageBuffer::new();
    out.reply(1, &reply);
    let again = Reply::parse(command, &out.as_bytes()[HEADER..], limits).expect("it was read before");
    match (&reply, &again) {
        (Reply::DeviceGetInfo(one), Reply::DeviceGetInfo(two)) => same_info(one.info(), two.info()),
        (Reply::DeviceGetRegionInfo(one), Reply::DeviceGetRegionInfo(two)) => {
            assert_eq!(one.index(), two.index());
            same_region(one.region(), two.region());
        }
        _ => assert_eq!(again, reply),
    }
}

/// Links are padded on the way, and what padding is cannot be told of a link without a form.
fn same_info(one: &Info, two: &Info) {
    assert_eq!((one.num_regions, one.num_irqs), (two.num_regions, two.num_irqs));
    assert_eq!(one.capabilities.len(), two.capabilities.len());
    for links in one.capabilities.iter().zip(&two.capabilities) {
        match links {
            (
                DeviceCapability::Other { id: one, version: before, data },
                DeviceCapability::Other { id: two, version: after, data: padded },
            ) => {
                assert_eq!((one, before), (two, after));
                is_padded(data, padded);
            }
            (one, two) => assert_eq!(one, two),
        }
    }
}

fn same_region(one: &Region, two: &Region) {
    assert_eq!((one.size, one.offset), (two.size, two.offset));
    assert_eq!(one.capabilities.len(), two.capabilities.len());
    for links in one.capabilities.iter().zip(&two.capabilities) {
        match links {
            (
                Capability::Other { id: one, version: before, data },
                Capability::Other { id: two, version: after, data: padded },
            ) => {
                assert_eq!((one, before), (two, after));
                is_padded(data, padded);
            }
            (one, two) => assert_eq!(one, two),
        }
    }
}

fn is_padded(data: &[u8], padded: &[u8]) {
    let padding = padded.strip_prefix(data).expect("it begins the same");
    assert!(padding.len() < 8 && padding.iter().all(|byte| *byte == 0));
}

/// The text of VFIO_USER_VERSION.
fn version_data(text: &[u8]) {
    let Ok(client) = Capabilities::from_json(text) else { return };
    assert_eq!(Capabilities::from_json(client.to_json().as_bytes()).expect("it is ours"), client);
    let server = Backend::capabilities();
    let Ok(agreed) = negotiate(&server, &client) else { return };
    for side in [&server, &client] {
        assert!(agreed.max_msg_fds <= side.max_msg_fds);
        assert!((1..=side.max_data_xfer_size).contains(&agreed.max_data_xfer_size));
        assert!(agreed.max_dma_maps <= side.max_dma_maps);
        assert!(agreed.pgsizes != 0 && agreed.pgsizes & !side.pgsizes == 0);
        assert!(side.write_multiple || !agreed.write_multiple);
    }
    // To agree again on what was agreed changes nothing.
    assert_eq!(negotiate(&server, &agreed).expect("it was agreed"), agreed);
    let proposal = Version::proposal(client);
    assert_eq!(proposal.answer(&server).expect("it was agreed").capabilities, agreed);
}

/// What devices and regions say of themselves. A chain makes no more of its bytes than they are.
fn chains(bytes: &[u8]) {
    if let Ok(info) = Info::from_bytes(bytes) {
        assert!(info.capabilities.len() * 8 <= bytes.len());
        same_info(&info, &Info::from_bytes(&info.to_bytes()).expect("it was read before"));
    }
    if let Ok(region) = Region::from_bytes(bytes) {
        assert!(region.capabilities.len() * 8 <= bytes.len());
        let held = region.capabilities.iter().map(|capability| match capability {
            Capability::SparseMmap(areas) => areas.len() * 16,
            Capability::Other { data, .. } => data.len(),
            _ => 0,
        });
        assert!(held.sum::<usize>() <= bytes.len());
        same_region(&region, &Region::from_bytes(&region.to_bytes(3)).expect("it was read before"));
    }
}

fn logging(bytes: &[u8]) {
    if let Ok(start) = LoggingStart::parse(bytes) {
        assert!(start.ranges().len() <= 256);
        let written = start.to_bytes();
        assert_eq!(LoggingStart::parse(&written).expect("it was read before"), start);
        assert_eq!(
            written[..],
            bytes[..written.len()]
                .iter()
                .enumerate()
                .map(|(at, byte)| if (12..16).contains(&at) { 0 } else { *byte })
                .collect::<Vec<u8>>()
        );
    }
    if let Ok((report, bitmap)) = LoggingReport::parse(bytes) {
        assert_eq!([&report.to_bytes(), bitmap].concat(), bytes);
    }
}
