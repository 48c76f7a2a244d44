//! The byte form of a journal's records, and what each journal permits after a restart.

use proptest::prelude::*;
use whimbrel_protocol::State;
use whimbrel_protocol::handover::{
    Destination, DestinationAction, DestinationPhase, DeviceRecord, Entry, History, Message, Record,
    RecordError, Ruling, Side, Source, SourceAction, SourcePhase, read_journal,
};

const ENTRIES: [Entry; 7] = [
    Entry::MayBeHandedOver,
    Entry::Returned,
    Entry::Gone,
    Entry::MayStart,
    Entry::Started,
    Entry::Discarded,
    Entry::Discarding,
];

fn record(entry: Entry) -> Record {
    Record::new(0x0102, "host-b", entry).unwrap()
}

/// The record with one byte changed and the checksum made right again.
fn changed(at: usize, byte: u8) -> [u8; Record::SIZE] {
    let mut bytes = record(Entry::Gone).to_bytes();
    bytes[at] = byte;
    let checksum = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, &bytes[..252]) as u32;
    bytes[252..].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

#[test]
fn a_record_has_its_documented_bytes() {
    let bytes = record(Entry::Gone).to_bytes();
    let mut expected = [0; 256];
    expected[..8].copy_from_slice(b"WHJR\x01\x00\x03\x06");
    expected[8..10].copy_from_slice(&[0x02, 0x01]);
    expected[24..30].copy_from_slice(b"host-b");
    assert_eq!(bytes[..252], expected[..252]);
    assert_eq!(bytes, changed(24, b'h'), "the checksum is that of CRC-32C");
    assert_eq!(ENTRIES.map(Entry::number), [1, 2, 3, 4, 5, 6, 7]);
}

#[test]
fn records_that_no_writer_wrote_are_refused_by_reason() {
    let invalid = |field| RecordError::Invalid { field };
    for (at, byte, error) in [
        (0, b'X', RecordError::NotARecord),
        (4, 2, RecordError::Version { version: 2 }),
        (6, 0, invalid("kind")),
        (6, 8, invalid("kind")),
        (6, 131, invalid("kind")),
        (7, 5, invalid("text")),
        (7, 229, invalid("text")),
        (25, 0xff, invalid("text")),
        (200, 1, invalid("text")),
    ] {
        assert_eq!(Record::from_bytes(&changed(at, byte)), Err(error), "{byte:#x} at {at}");
    }
    let long = "x".repeat(Record::MAX_TEXT + 1);
    assert_eq!(Record::new(1, long, Entry::Gone), Err(RecordError::TextTooLong { len: 229 }));
}

#[test]
fn a_record_cut_by_a_crash_is_left_out_and_a_damaged_one_is_an_error() {
    let journal: Vec<u8> =
        [record(Entry::MayBeHandedOver), record(Entry::Gone)].iter().flat_map(Record::to_bytes).collect();
    for cut in 0..=journal.len() {
        let records = read_journal(&journal[..cut]).unwrap();
        assert_eq!(records.len(), cut / Record::SIZE);
    }
    let mut grown = journal.clone();
    grown.resize(1000, 0);
    assert_eq!(read_journal(&grown).unwrap().len(), 2, "the file has grown, and nothing was written");
    for at in 0..Record::SIZE {
        let mut damaged = journal.clone();
        damaged[at] ^= 0x10;
        assert!(read_journal(&damaged).is_err(), "byte {at}");
    }
    let hole = [&[0; Record::SIZE], journal.as_slice()].concat();
    assert_eq!(read_journal(&hole), Err(RecordError::NotARecord));
}

proptest! {
    #[test]
    fn every_record_is_read_as_it_was_written(migration: u128, peer in "\\PC{0,57}", number in 0..ENTRIES.len()) {
        let record = Record::new(migration, peer, ENTRIES[number]).unwrap();
        prop_assert_eq!(Record::from_bytes(&record.to_bytes()), Ok(record));
    }

    #[test]
    fn every_record_of_a_device_is_read_as_it_was_written(
        name in "[^\\x00]{0,40}", holder in proptest::option::of("\\PC{0,16}")
    ) {
        let devices = [DeviceRecord::new(name, holder), DeviceRecord::new("b", None)];
        for side in [Side::Source, Side::Destination] {
            for record in Record::begin(side, &devices).unwrap() {
                prop_assert_eq!(Record::from_bytes(&record.to_bytes()), Ok(record));
            }
        }
    }

    #[test]
    fn bytes_of_any_kind_are_read_without_a_panic(bytes: Vec<u8>, magic: bool) {
        let mut bytes = bytes;
        bytes.resize(bytes.len() + Record::SIZE, 1);
        if magic {
            bytes[..4].copy_from_slice(b"WHJR");
        }
        prop_assert!(read_journal(&bytes).is_err());
    }
}

#[test]
fn a_source_that_crashed_is_where_its_journal_says() {
    let possible = Entry::MayBeHandedOver;
    for (entries, any_runs, phase, action) in [
        (vec![], false, SourcePhase::Returned, SourceAction::RunHere),
        (vec![possible], true, SourcePhase::Returned, SourceAction::RunHere),
        (vec![possible], false, SourcePhase::Asking, SourceAction::ReportUnknown),
        (vec![possible, Entry::Returned], false, SourcePhase::Returned, SourceAction::RunHere),
        (vec![possible, Entry::Gone], false, SourcePhase::Gone, SourceAction::Release),
        (vec![possible, Entry::Gone], true, SourcePhase::Gone, SourceAction::Release),
        (vec![Entry::Returned, Entry::Gone], true, SourcePhase::Asking, SourceAction::ReportUnknown),
    ] {
        let found = [State::Stop, if any_runs { State::PreCopyP2p } else { State::StopCopy }];
        let (source, first) = Source::restart(&entries, &found);
        assert_eq!((source.phase(), first), (phase, action), "{entries:?} {any_runs}");
    }
}

#[test]
fn a_destination_that_crashed_is_where_its_journal_and_its_devices_say() {
    use DestinationAction::{Discard, ReportUnknown, SendFailed, Start};
    use DestinationPhase::{Discarded, Discarding, Owner, Unknown};
    let possible = Entry::MayStart;
    let stopped = [State::Stop; 2];
    for (entries, found, phase, action) in [
        (vec![], stopped, Discarding, Discard),
        (vec![], [State::Resuming, State::Running], Discarding, Discard),
        (vec![possible], stopped, Unknown, ReportUnknown),
        (vec![possible], [State::Stop, State::StopCopy], Unknown, ReportUnknown),
        (vec![possible], [State::Resuming, State::Stop], Discarding, Discard),
        (vec![possible], [State::Running, State::Resuming], Discarding, Discard),
        (vec![possible], [State::Running, State::Error], Discarding, Discard),
        (vec![possible], [State::Stop, State::RunningP2p], Owner, Start),
        (vec![possible], [State::Running; 2], Owner, Start),
        (vec![possible, Entry::Discarding], [State::Running; 2], Discarding, Discard),
        (vec![possible, Entry::Started], stopped, Owner, Start),
        (vec![possible, Entry::Discarding, Entry::Discarded], stopped, Discarded, SendFailed),
        (vec![Entry::Started, Entry::Discarded], stopped, Unknown, ReportUnknown),
    ] {
        let (destination, first) = Destination::restart(&entries, &found);
        assert_eq!((destination.phase(), first), (phase, action), "{entries:?} {found:?}");
    }
}

#[test]
fn a_journal_tells_of_each_migration_its_side_devices_and_outcome() {
    let device = |name: &str| DeviceRecord::new(name, Some("pid 7".into()));
    let begin = |side, names: &[&str]| {
        Record::begin(side, &names.iter().map(|name| device(name)).collect::<Vec<_>>()).unwrap()
    };
    let entry = |migration, entry| Record::new(migration, "host-b", entry).unwrap();
    let mut records = begin(Side::Source, &["a", "b"]);
    records.extend([entry(1, Entry::MayBeHandedOver), entry(1, Entry::Gone)]);
    records.extend(begin(Side::Source, &["refused"]));
    records.extend(begin(Side::Destination, &["a"]));
    records.extend([entry(3, Entry::MayStart), entry(3, Entry::Discarding)]);
    let histories = History::of(&records).unwrap();
    let [sent, received] = &histories[..] else { panic!("{histories:?}") };
    assert_eq!((sent.migration, sent.side), (1, Side::Source));
    assert_eq!(sent.devices, [device("a"), device("b")]);
    assert_eq!((sent.outcome(), sent.is_open()), (Some(Entry::Gone), false));
    assert_eq!((received.migration, received.side, received.peer.as_str()), (3, Side::Destination, "host-b"));
    assert_eq!((received.outcome(), received.is_open()), (None, true));
    assert_eq!(received.devices, [device("a")]);
    records.extend(begin(Side::Source, &["interrupted"]));
    let histories = History::of(&records).unwrap();
    let [.., last] = &histories[..] else { panic!("{histories:?}") };
    assert!(histories.len() == 3 && last.is_unrecorded() && !last.is_open(), "{last:?}");
    for second in [entry(1, Entry::MayStart), begin(Side::Source, &["a", "late"]).remove(1)] {
        let migration = second.migration();
        let records = [entry(1, Entry::MayBeHandedOver), second];
        assert_eq!(History::of(&records), Err(RecordError::Contradictory { migration }));
    }
    let both = [Entry::MayBeHandedOver, Entry::Returned, Entry::Gone].map(|it| entry(4, it));
    assert!(History::of(&both).unwrap()[0].is_open(), "outcomes that contradict each other settle nothing");
}

#[test]
fn running_settles_nothing_once_the_arbiter_has_been_asked() {
    let mut source = Source::new();
    source.receive(Message::Ready).unwrap();
    assert_eq!(source.ask(), None, "nothing is unknown yet");
    source.fail();
    assert_eq!(source.ruled(Ruling::Mine), SourceAction::Wait, "nobody was asked");
    assert!(source.ask().is_some());
    assert_eq!(source.receive(Message::Running), Ok(SourceAction::Wait));
    assert_eq!(source.phase(), SourcePhase::Asking);
    assert_eq!(source.receive(Message::Failed), Ok(SourceAction::RunHere));
}

#[test]
fn a_destination_that_was_given_the_devices_by_the_arbiter_never_gives_them_back() {
    let (mut destination, _) = Destination::restart(&[Entry::MayStart], &[State::Stop; 2]);
    assert_eq!(destination.ruled(Ruling::Mine), DestinationAction::Start);
    assert_eq!(destination.started(0, true), DestinationAction::Wait);
    assert_eq!(destination.started(1, false), DestinationAction::ReportStranded);
    assert_eq!(destination.fail(), DestinationAction::Wait);
    assert_eq!(destination.ruled(Ruling::Theirs), DestinationAction::Wait, "a ruling is final");
    assert_eq!(destination.started(1, true), DestinationAction::SendRunning);
}
