//! The byte form of a journal's records, and what each journal permits after a restart.

use std::num::NonZeroUsize;

use proptest::prelude::*;
use whimbrel_protocol::handover::{
    Destination, DestinationAction, DestinationPhase, Entry, Message, Record, RecordError, Ruling, Source,
    SourceAction, SourcePhase, read_journal,
};

const ENTRIES: [Entry; 6] =
    [Entry::MayBeHandedOver, Entry::Returned, Entry::Gone, Entry::MayStart, Entry::Started, Entry::Discarded];

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
    assert_eq!(ENTRIES.map(Entry::number), [1, 2, 3, 4, 5, 6]);
}

#[test]
fn records_that_no_writer_wrote_are_refused_by_reason() {
    let invalid = |field| RecordError::Invalid { field };
    for (at, byte, error) in [
        (0, b'X', RecordError::NotARecord),
        (4, 2, RecordError::Version { version: 2 }),
        (6, 0, invalid("entry")),
        (6, 7, invalid("entry")),
        (7, 5, invalid("peer")),
        (7, 229, invalid("peer")),
        (25, 0xff, invalid("peer")),
        (200, 1, invalid("peer")),
    ] {
        assert_eq!(Record::from_bytes(&changed(at, byte)), Err(error), "{byte:#x} at {at}");
    }
    let long = "x".repeat(Record::MAX_PEER + 1);
    assert_eq!(Record::new(1, long, Entry::Gone), Err(RecordError::PeerTooLong { len: 229 }));
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
    fn every_record_is_read_as_it_was_written(migration: u128, peer in "\\PC{0,57}", number in 0..6_usize) {
        let record = Record::new(migration, peer, ENTRIES[number]).unwrap();
        prop_assert_eq!(Record::from_bytes(&record.to_bytes()), Ok(record));
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
        let (source, first) = Source::restart(&entries, any_runs);
        assert_eq!((source.phase(), first), (phase, action), "{entries:?} {any_runs}");
    }
}

#[test]
fn a_destination_that_crashed_is_where_its_journal_says() {
    let possible = Entry::MayStart;
    for (entries, phase, action) in [
        (vec![], DestinationPhase::Discarding, DestinationAction::Discard),
        (vec![possible], DestinationPhase::Unknown, DestinationAction::ReportUnknown),
        (vec![possible, Entry::Started], DestinationPhase::Owner, DestinationAction::Start),
        (vec![possible, Entry::Discarded], DestinationPhase::Discarded, DestinationAction::SendFailed),
        (vec![Entry::Started, Entry::Discarded], DestinationPhase::Unknown, DestinationAction::ReportUnknown),
    ] {
        let (destination, first) = Destination::restart(NonZeroUsize::MIN, &entries);
        assert_eq!((destination.phase(), first), (phase, action), "{entries:?}");
    }
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
    let (mut destination, _) = Destination::restart(NonZeroUsize::new(2).unwrap(), &[Entry::MayStart]);
    assert_eq!(destination.ruled(Ruling::Mine), DestinationAction::Start);
    assert_eq!(destination.started(0, true), DestinationAction::Wait);
    assert_eq!(destination.started(1, false), DestinationAction::ReportStranded);
    assert_eq!(destination.fail(), DestinationAction::Wait);
    assert_eq!(destination.ruled(Ruling::Theirs), DestinationAction::Wait, "a ruling is final");
    assert_eq!(destination.started(1, true), DestinationAction::SendRunning);
}
