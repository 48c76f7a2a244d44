//! Tests: every message survives a round trip, and no input makes the codec panic or exceed its memory limit.
#![allow(clippy::many_single_char_names, reason = "numbers that are whatever a field needs")]

use proptest::collection::vec;
use proptest::prelude::*;
use whimbrel_protocol::compatibility::Compatibility;
use whimbrel_protocol::info::{Capability, DeviceCapability, Info, Irq, MmapArea, Region};
use whimbrel_protocol::reset::ResetRule;
use whimbrel_uapi::device::{DeviceInfoFlags, IrqInfoFlags, PciAtomicFlags, RegionInfoFlags};
use whimbrel_uapi::feature::FeatureFlags;
use whimbrel_uapi::migration::PrecopyInfo;
use whimbrel_uapi::type1::{DmaMapFlags, DmaUnmapFlags};

use super::*;
use crate::{Capabilities, MigrationCapability, MigrationExtensions, TwinSocket};

const LIMITS: Limits = Limits::new(4096);

fn compatibility() -> impl Strategy<Value = Compatibility> {
    ("[ -~]{1,64}", any::<u32>(), vec(any::<u8>(), 0..=Compatibility::MAX_DATA))
        .prop_map(|(model, version, data)| Compatibility::new(model, version).data(data))
}

fn capabilities() -> impl Strategy<Value = Capabilities> {
    let twin = (any::<bool>(), any::<Option<u32>>())
        .prop_map(|(supported, fd_index)| TwinSocket { supported, fd_index });
    let migration = (any::<Option<u64>>(), any::<Option<u64>>())
        .prop_map(|(pgsize, max_bitmap_size)| MigrationCapability { pgsize, max_bitmap_size });
    let extensions = any::<[bool; 8]>().prop_map(|has| {
        let [
            data_size,
            precopy_info,
            read_end,
            p2p,
            data_channel,
            device_features,
            compatibility,
            reset_rule,
        ] = has;
        MigrationExtensions {
            data_size,
            precopy_info,
            read_end,
            p2p,
            data_channel,
            device_features,
            compatibility,
            reset_rule,
        }
    });
    (
        any::<(u32, u32, u32, u64, bool)>(),
        proptest::option::of(twin),
        proptest::option::of(migration),
        proptest::option::of(extensions),
        proptest::option::of(compatibility()),
        proptest::option::of(proptest::sample::select(&ResetRule::ALL[..])),
    )
        .prop_map(
            |((fds, size, maps, pgsizes, write_multiple), twin_socket, migration, extensions, told, rule)| {
                Capabilities {
                    max_msg_fds: fds,
                    max_data_xfer_size: size,
                    max_dma_maps: maps,
                    pgsizes,
                    twin_socket,
                    write_multiple,
                    migration,
                    migration_extensions: extensions,
                    migration_compatibility: told,
                    migration_reset_rule: rule,
                }
            },
        )
}

fn version() -> impl Strategy<Value = Version> {
    (any::<(u16, u16)>(), capabilities()).prop_map(|((major, minor), capabilities)| Version {
        major,
        minor,
        capabilities,
    })
}

fn bulk() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..=LIMITS.max_data_xfer_size as usize)
}

/// The borrowed parts of a message, and the numbers that it is made of.
#[derive(Clone, Debug)]
struct Parts {
    data: Vec<u8>,
    long: [u64; 3],
    short: [u32; 4],
    writes: Vec<WriteOne>,
    version: Version,
    flag: bool,
    capabilities: Vec<MmapArea>,
}

fn parts() -> impl Strategy<Value = Parts> {
    let write = (any::<(u32, u64)>(), vec(any::<u8>(), 0..=8))
        .prop_map(|((region, offset), data)| WriteOne::new(region, offset, &data).expect("at most eight"));
    let area = any::<(u64, u64)>().prop_map(|(offset, size)| MmapArea::new(offset, size));
    (
        bulk(),
        any::<[u64; 3]>(),
        any::<[u32; 4]>(),
        vec(write, 0..20),
        version(),
        any::<bool>(),
        vec(area, 0..5),
    )
        .prop_map(|(data, long, short, writes, version, flag, capabilities)| Parts {
            data,
            long,
            short,
            writes,
            version,
            flag,
            capabilities,
        })
}

fn count(number: u64) -> u64 {
    number % (u64::from(LIMITS.max_data_xfer_size) + 1)
}

/// A request of each command, made of `parts`.
fn requests<'a>(parts: &'a Parts, room: &'a mut [[u8; 24]]) -> Vec<Request<'a>> {
    let Parts { data, long: [a, b, c], short: [d, e, f, g], version, flag, .. } = parts;
    let data = data.as_slice();
    let rights = [DmaMapFlags::READ, DmaMapFlags::WRITE, DmaMapFlags::READ | DmaMapFlags::WRITE];
    let access = |count: u32| RegionAccess { offset: *a, region: *d, count };
    let bitmap = flag.then(|| BitmapRequest { page_size: *c, size: count(*a) });
    let argsz = |least: u32| least.max(*e);
    vec![
        Request::Version(version.clone()),
        Request::DmaMap(DmaMap {
            rights: rights[*d as usize % 3],
            modes: DmaAccessModes::empty(),
            offset: *a,
            iova: *b,
            size: *c,
        }),
        Request::DmaUnmap(DmaUnmap::Range { iova: *a, size: *b, bitmap }),
        Request::DmaUnmap(DmaUnmap::All),
        Request::DeviceGetInfo { argsz: argsz(16) },
        Request::DeviceGetRegionInfo { argsz: argsz(32), index: *f },
        Request::DeviceGetRegionIoFds { argsz: argsz(16), index: *f },
        Request::DeviceGetIrqInfo { argsz: argsz(16), index: *f },
        Request::DeviceSetIrqs(SetIrqs { flags: *d, index: *e, start: *f, count: *g, data }),
        Request::RegionRead(access(count(*b) as u32)),
        Request::RegionWrite(access(data.len() as u32), data),
        Request::DmaRead(DmaAccess { iova: *a, count: count(*b) }),
        Request::DmaWrite { iova: *a, data },
        Request::DeviceReset,
        Request::RegionWriteMulti(WriteMulti::new(&parts.writes, room)),
        Request::DeviceFeature(DeviceFeature {
            argsz: argsz(8),
            feature: *f as u16,
            flags: FeatureFlags::from_bits_truncate(*g),
            data,
        }),
        Request::MigDataRead { size: count(*b) as u32 },
        Request::MigDataWrite { data },
        Request::MigGetPrecopyInfo(PrecopyInfo { argsz: *e, flags: *f, initial_bytes: *a, dirty_bytes: *b }),
    ]
}

/// A reply to each command, made of `parts`.
fn replies(parts: &Parts) -> Vec<Reply<'_>> {
    let Parts { data, long: [a, b, c], short: [d, e, f, g], version, flag, capabilities, .. } = parts;
    let data = data.as_slice();
    let info = Info::new(DeviceInfoFlags::from_bits_retain(*d)).num_regions(*e).num_irqs(*f).capabilities(
        flag.then(|| DeviceCapability::PciAtomicComp(PciAtomicFlags::from_bits_retain(*g)))
            .into_iter()
            .collect(),
    );
    let region = Region::new(RegionInfoFlags::from_bits_retain(*d), *a).offset(*b).capabilities(
        if capabilities.is_empty() {
            vec![]
        } else {
            vec![
                Capability::SparseMmap(capabilities.clone()),
                Capability::Type { region_type: *e, subtype: *f },
            ]
        },
    );
    let kinds =
        [IoFdKind::Ioeventfd { flags: *d, datamatch: *a }, IoFdKind::Ioregionfd { flags: *e, user_data: *b }];
    let sub_regions: Vec<SubRegion> = capabilities
        .iter()
        .map(|area| SubRegion {
            offset: area.offset,
            size: area.size,
            fd_index: *g,
            kind: kinds[*d as usize % 2],
        })
        .collect();
    let flags = if *flag { DmaUnmapFlags::GET_DIRTY_BITMAP } else { DmaUnmapFlags::empty() };
    let bitmap = flag.then_some(DirtyBitmap { page_size: *c, bits: data });
    let access = RegionAccess { offset: *a, region: *d, count: data.len() as u32 };
    vec![
        Reply::Version(version.clone()),
        Reply::DmaMap,
        Reply::DmaUnmap(DmaUnmapReply { flags, iova: *a, size: *b, bitmap }),
        Reply::DeviceGetInfo(DeviceInfoReply::new(info, *g % 64)),
        Reply::DeviceGetRegionInfo(RegionInfoReply::new(*e, region, *g % 256)),
        Reply::DeviceGetRegionIoFds(RegionIoFdsReply::new(*e, sub_regions, *g % 256)),
        Reply::DeviceGetIrqInfo(IrqInfoReply {
            index: *e,
            irq: Irq::new(IrqInfoFlags::from_bits_retain(*f), *g),
        }),
        Reply::DeviceSetIrqs,
        Reply::RegionRead(access, data),
        Reply::RegionWrite(access),
        Reply::DmaRead { iova: *a, data },
        Reply::DmaWrite(DmaAccess { iova: *a, count: count(*b) }),
        Reply::DeviceReset,
        Reply::RegionWriteMulti { completed: *a },
        Reply::DeviceFeature(DeviceFeature {
            argsz: (*e).max(8),
            feature: *f as u16,
            flags: FeatureFlags::from_bits_truncate(*g),
            data,
        }),
        Reply::MigDataRead { data },
        Reply::MigDataWrite,
        Reply::MigGetPrecopyInfo(PrecopyInfo { argsz: *e, flags: *f, initial_bytes: *a, dirty_bytes: *b }),
    ]
}

/// Everything a stream holds, given to the codec in pieces of at most `piece` bytes.
fn deframe(stream: &[u8], piece: usize, mut each: impl FnMut(Message<'_>)) -> Result<usize, FrameError> {
    let mut deframer = Deframer::new(LIMITS);
    let mut left = stream;
    let mut largest = 0;
    loop {
        while let Some(message) = deframer.next_message()? {
            each(message);
        }
        largest = largest.max(deframer.capacity());
        if left.is_empty() {
            return Ok(largest);
        }
        let room = deframer.room()?;
        let count = room.len().min(piece).min(left.len());
        room[..count].copy_from_slice(&left[..count]);
        left = &left[count..];
        deframer.filled(count);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_request_comes_back_as_it_was_written(parts in parts(), piece in 1_usize..5000) {
        let mut room = vec![[0; 24]; parts.writes.len()];
        let requests = requests(&parts, &mut room);
        let mut out = MessageBuffer::new();
        for (id, request) in requests.iter().enumerate() {
            out.request(id as u16, parts.flag, request);
        }
        let mut expected = requests.iter().enumerate();
        deframe(out.as_bytes(), piece, |message| {
            let (id, request) = expected.next().expect("no more than were written");
            assert_eq!(usize::from(message.header.id), id);
            assert_eq!(message.header.kind, Kind::Command { no_reply: parts.flag });
            let command = Command::try_from(message.header.command).expect("a command");
            assert_eq!(&Request::parse(command, message.payload, LIMITS).expect("it is valid"), request);
        }).expect("every frame is valid");
        prop_assert!(expected.next().is_none());
    }

    #[test]
    fn every_reply_comes_back_as_it_was_written(parts in parts(), piece in 1_usize..5000) {
        let replies = replies(&parts);
        let mut out = MessageBuffer::new();
        for (id, reply) in replies.iter().enumerate() {
            out.reply(id as u16, reply);
        }
        let mut expected = replies.iter().enumerate();
        deframe(out.as_bytes(), piece, |message| {
            let (id, reply) = expected.next().expect("no more than were written");
            assert_eq!(usize::from(message.header.id), id);
            assert_eq!(message.header.kind, Kind::Reply);
            let command = Command::try_from(message.header.command).expect("a command");
            assert_eq!(&Reply::parse(command, message.payload, LIMITS).expect("it is valid"), reply);
        }).expect("every frame is valid");
        prop_assert!(expected.next().is_none());
    }

    #[test]
    fn any_payload_is_parsed_or_refused(number in prop_oneof![0_u16..20, Just(0x3b79)], payload in vec(any::<u8>(), 0..300)) {
        if let Ok(command) = Command::try_from(number) {
            let _ = Request::parse(command, &payload, LIMITS);
            let _ = Reply::parse(command, &payload, LIMITS);
        }
        let _ = LoggingStart::parse(&payload);
        let _ = LoggingReport::parse(&payload);
    }

    #[test]
    fn a_valid_payload_with_a_byte_changed_or_cut_is_parsed_or_refused(
        parts in parts(), at in any::<prop::sample::Index>(), value in any::<u8>(), cut in any::<prop::sample::Index>(),
    ) {
        let mut room = vec![[0; 24]; parts.writes.len()];
        for request in requests(&parts, &mut room) {
            let mut out = MessageBuffer::new();
            out.request(0, false, &request);
            let mut payload = out.as_bytes()[HEADER..].to_vec();
            if !payload.is_empty() {
                let index = at.index(payload.len());
                payload[index] = value;
                payload.truncate(cut.index(payload.len()) + 1);
            }
            let _ = Request::parse(request.command(), &payload, LIMITS);
        }
        for reply in replies(&parts) {
            let mut out = MessageBuffer::new();
            out.reply(0, &reply);
            let mut payload = out.as_bytes()[HEADER..].to_vec();
            if !payload.is_empty() {
                let index = at.index(payload.len());
                payload[index] = value;
                payload.truncate(cut.index(payload.len()) + 1);
            }
            let _ = Reply::parse(reply.command(), &payload, LIMITS);
        }
    }

    #[test]
    fn any_stream_ends_or_goes_on_and_holds_no_more_than_a_message(
        stream in vec(any::<u8>(), 0..4000), sizes in vec(0_u32..6000, 1..20), piece in 1_usize..600,
    ) {
        // Sizes that can be right, so that not every stream ends at its first header.
        let mut stream = stream;
        let mut at = 0;
        for size in sizes {
            if let Some(header) = stream.get_mut(at..at + HEADER) {
                header[4..8].copy_from_slice(&size.to_ne_bytes());
                header[8] &= 0xf1;
                at += (size as usize).max(HEADER);
            }
        }
        if let Ok(largest) = deframe(&stream, piece, |_| ()) {
            prop_assert!(largest <= LIMITS.message() + HEADER, "{largest}");
        }
    }
}

#[test]
fn a_header_that_begins_no_message_is_refused_as_soon_as_it_is_there() {
    let header = |size: u32, flags: u32| {
        let mut bytes = [0; HEADER];
        bytes[..2].copy_from_slice(&9_u16.to_ne_bytes());
        bytes[2..4].copy_from_slice(&4_u16.to_ne_bytes());
        bytes[4..8].copy_from_slice(&size.to_ne_bytes());
        bytes[8..12].copy_from_slice(&flags.to_ne_bytes());
        bytes
    };
    let most = LIMITS.message();
    let cases = [
        ("size 0", header(0, 0), FrameProblem::TooSmall(0), Errno::EINVAL),
        ("size 15", header(15, 0), FrameProblem::TooSmall(15), Errno::EINVAL),
        (
            "one too large",
            header(most as u32 + 1, 0),
            FrameProblem::TooLarge { size: most as u32 + 1, most },
            Errno::EMSGSIZE,
        ),
        (
            "the largest",
            header(u32::MAX, 0),
            FrameProblem::TooLarge { size: u32::MAX, most },
            Errno::EMSGSIZE,
        ),
        ("type 2", header(16, 2), FrameProblem::Type(2), Errno::EINVAL),
    ];
    for (what, bytes, problem, errno) in cases {
        let error = Header::parse(bytes, LIMITS).unwrap_err();
        assert_eq!((error.id, error.command, error.problem), (9, 4, problem), "{what}");
        assert_eq!(error.errno(), errno, "{what}");
        let mut deframer = Deframer::new(LIMITS);
        deframer.room().unwrap()[..HEADER].copy_from_slice(&bytes);
        deframer.filled(HEADER);
        assert!(deframer.is_ready(), "{what}");
        assert_eq!(deframer.next_message(), Err(error), "{what}");
    }
}

#[test]
fn counts_that_the_payload_does_not_hold_are_refused() {
    let words = |values: &[u32]| values.iter().flat_map(|value| value.to_ne_bytes()).collect::<Vec<u8>>();
    let most = LIMITS.max_data_xfer_size;
    let cases: [(&str, Command, Vec<u8>); 16] = [
        ("a read of more than was agreed", Command::RegionRead, words(&[0, 0, 0, most + 1])),
        ("a write with less data than it says", Command::RegionWrite, words(&[0, 0, 0, 8, 1])),
        ("a write with more data than it says", Command::RegionWrite, words(&[0, 0, 0, 2, 1])),
        ("a DMA read whose count overflows", Command::DmaRead, words(&[0, 0, u32::MAX, u32::MAX])),
        ("more short writes than there are", Command::RegionWriteMulti, words(&[2, 0, 0, 0, 0, 4, 0, 0])),
        ("a number of short writes that overflows", Command::RegionWriteMulti, words(&[u32::MAX, u32::MAX])),
        ("a short write of nine bytes", Command::RegionWriteMulti, words(&[1, 0, 0, 0, 0, 9, 0, 0])),
        ("migration data with less than it says", Command::MigDataWrite, words(&[12, 5, 0])),
        ("a read of migration data without room", Command::MigDataRead, words(&[8, 1])),
        ("half of the counts of pre-copy", Command::MigGetPrecopyInfo, words(&[24, 0, 0, 0])),
        ("a read of too much migration data", Command::MigDataRead, words(&[u32::MAX, most + 1])),
        (
            "a bitmap that overflows",
            Command::DmaUnmap,
            words(&[40, 1, 0, 0, 0, 0, 4096, 0, u32::MAX, u32::MAX]),
        ),
        ("a bitmap without room", Command::DmaUnmap, words(&[40, 1, 0, 0, 0, 0, 4096, 0, 8, 0])),
        ("all with a size", Command::DmaUnmap, words(&[24, 2, 0, 0, 1, 0])),
        ("a map with unknown flags", Command::DmaMap, words(&[32, 8, 0, 0, 0, 0, 0, 0])),
        ("a map with no right", Command::DmaMap, words(&[32, 0, 0, 0, 0, 0, 0, 0])),
    ];
    for (what, command, payload) in cases {
        let error = Request::parse(command, &payload, LIMITS).expect_err(what);
        assert_eq!(error.errno(), Errno::EINVAL, "{what}: {error}");
    }
}

#[test]
fn ranges_of_a_log_are_counted_before_they_are_read() {
    let data = |count: u32| {
        let mut data = 4096_u64.to_ne_bytes().to_vec();
        data.extend_from_slice(&count.to_ne_bytes());
        data.extend_from_slice(&[0; 4 + 16]);
        data
    };
    assert_eq!(LoggingStart::parse(&data(1)).unwrap().ranges().len(), 1);
    assert_eq!(LoggingStart::parse(&data(2)).unwrap_err().errno(), Errno::EINVAL);
    assert_eq!(LoggingStart::parse(&data(257)).unwrap_err().errno(), Errno::E2BIG);
    assert_eq!(LoggingStart::parse(&data(u32::MAX)).unwrap_err().errno(), Errno::E2BIG);
}

#[test]
fn an_answer_without_room_for_capabilities_says_how_much_it_needs() {
    let capability = Capability::Type { region_type: 1, subtype: 2 };
    let flags = RegionInfoFlags::READ;
    let region = Region::new(flags, 0x1000).capabilities(vec![capability]);
    let short = RegionInfoReply::new(3, region.clone(), 32);
    assert!(!short.is_whole());
    let mut out = MessageBuffer::new();
    out.reply(0, &Reply::DeviceGetRegionInfo(short.clone()));
    assert_eq!(out.len(), HEADER + 32);
    let whole = RegionInfoReply::new(3, region, short.needed());
    assert!(whole.is_whole());
    out.clear();
    out.reply(0, &Reply::DeviceGetRegionInfo(whole));
    assert_eq!(out.len(), HEADER + short.needed() as usize);
}

#[test]
fn a_buffer_that_grows_keeps_what_was_written() {
    let mut out = MessageBuffer::new();
    let mut expected = Vec::new();
    for round in 0..3 {
        for (id, length) in [(1, 0), (2, 100), (3, 5), (4, 4096), (5, 70)] {
            let data = vec![id as u8; length];
            let reply = Reply::MigDataRead { data: &data };
            let mut alone = MessageBuffer::new();
            alone.reply(id, &reply);
            out.reply(id, &reply);
            expected.extend_from_slice(alone.as_bytes());
            assert_eq!(out.as_bytes(), expected, "round {round}, {length} bytes");
            assert!(out.as_bytes().as_ptr().addr().is_multiple_of(64));
        }
        out.clear();
        expected.clear();
    }
}

#[test]
fn commands_are_those_of_the_protocol() {
    for number in 0..=u16::MAX {
        let known = matches!(number, 1..=13 | 15..=18 | 0x3b79);
        assert_eq!(Command::try_from(number).is_ok(), known, "{number}");
    }
}

#[test]
fn a_stream_of_messages_each_longer_than_the_last_takes_no_more_than_the_longest() {
    let limits = Limits::new(1 << 16);
    let mut deframer = Deframer::new(limits);
    for size in [17_000, 40_000, limits.message()] {
        let header = Header { id: 1, command: 9, size: size as u32, kind: Kind::Reply }.to_bytes();
        let mut left = size;
        let mut bytes = header.as_slice();
        while left > 0 {
            let room = deframer.room().unwrap();
            let count = room.len().min(left).min(if bytes.is_empty() { left } else { bytes.len() });
            room[..count].copy_from_slice(bytes.get(..count).unwrap_or(&vec![0; count]));
            bytes = &bytes[count.min(bytes.len())..];
            left -= count;
            deframer.filled(count);
        }
        assert_eq!(deframer.next_message().unwrap().unwrap().payload.len(), size - HEADER);
        assert!(deframer.capacity() <= limits.message() + HEADER, "{} bytes", deframer.capacity());
    }
}

#[test]
fn what_follows_the_parts_of_a_region_is_none_of_them() {
    let kind = IoFdKind::Ioeventfd { flags: 0, datamatch: 1 };
    let one = SubRegion { offset: 0, size: 4, fd_index: 0, kind };
    let mut out = MessageBuffer::new();
    out.reply(0, &Reply::DeviceGetRegionIoFds(RegionIoFdsReply::new(0, vec![one], 56)));
    let mut payload = [&out.as_bytes()[HEADER..], &[0; 40]].concat();
    payload[..4].copy_from_slice(&96_u32.to_ne_bytes());
    let Reply::DeviceGetRegionIoFds(reply) =
        Reply::parse(Command::DeviceGetRegionIoFds, &payload, LIMITS).unwrap()
    else {
        panic!("another reply")
    };
    assert_eq!((reply.sub_regions(), reply.needed()), (&[one][..], 56));
}

#[test]
fn words_follow_messages_of_any_length_and_change_none_of_them() {
    for length in 0..80 {
        let mut out = MessageBuffer::new();
        let earlier: Vec<u8> = (1..=length).collect();
        for _ in 0..3 {
            out.clear();
            out.put(&earlier);
            for word in 1..=2_u64 {
                out.grow_words(2).copy_from_slice(&[word, u64::MAX]);
                out.put(&[9]);
            }
            let words = |word: u64| [&word.to_ne_bytes()[..], &[0xff; 8], &[9]].concat();
            assert_eq!(out.as_bytes(), [&earlier[..], &words(1), &words(2)].concat());
        }
    }
}
