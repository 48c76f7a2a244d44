//! Migrations that compress memory and device state: what arrives, what crosses the link, and what a hostile source can do.

use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

use vm_memory::{Bytes, GuestAddress};
use whimbrel_engine::channel::{Connector, Listener, Until, connect};
use whimbrel_engine::proto::control::{Control, Table};
use whimbrel_engine::proto::lanes::STRIPE;
use whimbrel_engine::proto::message::{Compressed, Message};
use whimbrel_engine::proto::negotiate::{Accept, Feature, Offer};
use whimbrel_engine::proto::operation::{Command, Done, Event, Operation, Sent};
use whimbrel_engine::proto::source::{Plan, Source};

use crate::live::assert_same_memory;
use crate::machines::{answer, yields};
use crate::support::certificates::trusting;
use crate::support::engine::{Error, Received, Report, SourceOptions};
use crate::support::peer::{ID, Peer, hello, table};
use crate::support::{Ended, Rig, Shape};

const MIB: usize = 1 << 20;
const WITHIN: Duration = Duration::from_secs(30);
/// Two regions, of which the second begins in the middle of a stripe.
const REGIONS: [(u64, usize); 2] = [(0, 9 * MIB + 0x3000), ((1 << 40) + 0x5000, 5 * MIB)];

fn noise(length: usize) -> Vec<u8> {
    let mut noise = vec![0; length];
    fastrand::Rng::with_seed(7).fill(&mut noise);
    noise
}

/// Text, noise and holes. The state of the devices is text as well.
fn rig() -> Rig {
    let shape = Shape { size: 60_000, ..Shape::default() };
    let mut rig = Rig::set(3, &shape).with_memory(&REGIONS);
    rig.options = rig.options.compression(true);
    let (here, there) = rig.memory.as_ref().unwrap();
    let text: Vec<u8> =
        (0..6 * MIB).map(|at| b"some words and others "[at % 22] ^ (at >> 16) as u8).collect();
    here.write_slice(&text, GuestAddress(0x1000)).unwrap();
    here.write_slice(&noise(MIB), GuestAddress(7 * MIB as u64)).unwrap();
    here.write_slice(&text[..4 * MIB], GuestAddress(REGIONS[1].0)).unwrap();
    // What is zero at the source is not at the destination.
    there.write_obj(u64::MAX, GuestAddress(REGIONS[1].0 + 5 * MIB as u64 - 8)).unwrap();
    rig
}

fn assert_compressed(mut ended: Ended, channels: usize) -> Report {
    ended.assert_sane("compressed");
    assert_same_memory(ended.rig.memory.as_ref().unwrap());
    let (report, received) = (ended.sent.unwrap(), ended.received.unwrap());
    assert!(report.compression && report.lanes.len() == channels, "{report:?}");
    assert_eq!(received.memory_bytes, report.memory_bytes);
    assert_eq!(received.device_bytes, report.device_bytes);
    // The noise alone is as large as it was.
    let data = report.memory_bytes - report.zero_bytes;
    assert!(data >= 11 * MIB as u64);
    assert!(report.memory_wire_bytes > MIB as u64, "{report:?}");
    assert!(report.memory_wire_bytes < 2 * MIB as u64, "{report:?}");
    assert!(report.memory_wire_bytes + report.device_wire_bytes <= report.wire_bytes, "{report:?}");
    report
}

#[test]
fn memory_and_devices_arrive_whole_and_take_less_of_the_link() {
    let ended = rig().migrate();
    assert_compressed(ended, 1);
    // Without compression the same takes all of it.
    let mut rig = rig();
    rig.options = rig.options.compression(false);
    let report = rig.migrate().sent.unwrap();
    assert!(!report.compression);
    assert!(report.memory_wire_bytes >= report.memory_bytes - report.zero_bytes, "{report:?}");
    assert!(report.device_wire_bytes >= report.device_bytes, "{report:?}");
}

#[test]
fn device_state_is_compressed_without_memory_too() {
    let mut rig = Rig::new(&Shape { initial: 4 << 20, ..Shape::default() });
    rig.options = rig.options.compression(true);
    let ended = rig.migrate();
    let (report, mut rig) = (ended.sent.unwrap(), ended.rig);
    assert!(report.device_bytes >= 4 * MIB as u64);
    assert!(report.device_wire_bytes < report.device_bytes / 2, "{report:?}");
    assert_eq!(report.memory_wire_bytes, 0);
    rig.assert_destination_has_it("after the migration");
}

#[test]
fn each_lane_compresses_its_own_share_also_with_tls() {
    let folder = tempfile::tempdir().unwrap();
    let [here, there] = trusting(folder.path());
    let until = || Until::timeout(WITHIN);
    for channels in [2, 4] {
        for tls in [false, true] {
            let listener = Listener::bind(&"127.0.0.1:0".parse().unwrap()).unwrap();
            let listener = if tls { listener.tls(there.clone()).unwrap() } else { listener };
            let address = listener.address().clone();
            let mut rig = rig();
            rig.options = rig.options.channels(channels);
            let (connector, to) = (Connector::new(address.clone()), address.clone());
            let ended = if tls {
                let its = here.clone();
                let control = move || its.connect(connect(&to, until()).unwrap(), &to, until()).unwrap();
                rig.migrate_at(listener, control, |source| source.connector(connector.tls(here.clone())))
            } else {
                let control = move || connect(&to, until()).unwrap();
                rig.migrate_at(listener, control, |source| source.connector(connector))
            };
            let report = assert_compressed(ended, channels as usize);
            assert!(report.lanes.iter().all(|lane| lane.wire_bytes < 2 * STRIPE), "{:?}", report.lanes);
        }
    }
}

#[test]
fn a_destination_that_cannot_decompress_gets_plain_data_and_the_source_is_warned() {
    let mut rig = rig();
    rig.there.features.retain(|feature| *feature != Feature::Zstd);
    let ended = rig.migrate();
    assert_same_memory(ended.rig.memory.as_ref().unwrap());
    let report = ended.sent.unwrap();
    assert!(!report.compression);
    assert!(report.memory_wire_bytes >= report.memory_bytes - report.zero_bytes, "{report:?}");
    let told = "nothing is compressed: the destination cannot decompress".to_string();
    assert!(report.warnings.contains(&told), "{:?}", report.warnings);
}

#[test]
fn the_bandwidth_limit_is_that_of_the_link() {
    let mut rig = rig();
    // Uncompressed, the data would take 11 s and more.
    let limit = MIB as u64;
    rig.options = rig.options.bandwidth(limit.try_into().unwrap()).downtime_limit(Duration::from_mins(1));
    let report = assert_compressed(rig.migrate(), 1);
    let seconds = (report.memory_wire_bytes + report.device_wire_bytes) as f64 / limit as f64;
    // The last frame goes as soon as those before it have had their time, and a pause is made up for in part.
    assert!(report.total_ms > (seconds - 0.6) * 1e3, "{report:?}");
    assert!(report.total_ms < 10.5e3, "{report:?}");
}

/// The downtime that a source predicts after a round in which 100 MiB of memory took 25 MiB of a link, in a second, with so much
/// memory left.
fn predicted(accepts: &Accept, memory_left: usize) -> Duration {
    let offer = Offer::new(ID, &BTreeSet::from(Feature::ALL), &BTreeSet::new());
    let options = SourceOptions::default().downtime_limit(WITHIN);
    let mut source = Source::new(Plan { offer, table: table(100 * MIB as u64), options }, Duration::ZERO);
    let mut now = Duration::ZERO;
    while let Some(command) = source.poll() {
        let Command::Start { id, operation, .. } = command else { panic!("{command:?}") };
        let done = match &operation {
            Operation::Record { .. } => break,
            Operation::SendMemory => {
                now += Duration::from_secs(1);
                Done::Sent(Sent { bytes: 100 << 20, wire: 25 << 20, ..Sent::default() })
            }
            Operation::CollectMemoryLogs { .. } => Done::Bytes(memory_left as u64),
            other => yields(other),
        };
        source.input(Event::Done { id, result: Ok(done) }, now);
        match &operation {
            Operation::Send(Control::Hello(_)) => {
                source.input(Event::Received(Control::Accept(accepts.clone())), now);
            }
            Operation::Send(control) => {
                if let Some(answer) = answer(control) {
                    source.input(Event::Received(answer), now);
                }
            }
            _ => {}
        }
    }
    source.progress(0, now).expected_downtime.expect("a round is over")
}

#[test]
fn the_downtime_is_predicted_from_the_bytes_that_data_takes_on_the_link() {
    let compresses = Accept::new(&BTreeSet::from([Feature::Zstd]));
    assert_eq!(predicted(&compresses, 40 * MIB), Duration::from_millis(400));
    // All of it goes once more, and takes as long as the first time.
    assert_eq!(predicted(&compresses, 100 * MIB), Duration::from_secs(1));
    // Without compression the link carries as many bytes of data as of anything.
    assert_eq!(predicted(&Accept::new(&BTreeSet::new()), 40 * MIB), Duration::from_millis(1600));
}

/// Lets a source by hand say something to a destination with memory, and returns what comes of it.
fn receive(features: &[Feature], says: &[Message<'_>]) -> Result<Received, Error> {
    let shape = Shape { size: 4, ..Shape::default() };
    let mut rig = Rig::new(&shape).with_memory(&[(0, MIB)]);
    let (mut peer, link) = Peer::new();
    let features = features.iter().copied().collect();
    let greeting = Message::Control(Control::Hello(Offer::new(ID, &features, &[].into())));
    let fitting = Message::Control(Control::Table(Table { ..table(MIB as u64) }));
    let received = thread::scope(|scope| {
        scope.spawn(move || {
            peer.tell(&[&[greeting, fitting], says].concat());
            peer.finish();
        });
        rig.receive_from(link)
    });
    if let Err(error) = &received {
        rig.assert_destination_is_fresh(&error.to_string());
    }
    received
}

fn compressed(data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; data.len() + 1000];
    let count = zstd_safe::compress(&mut bytes[..], data, 1).unwrap();
    bytes.truncate(count);
    bytes
}

#[test]
fn compressed_data_that_is_not_what_it_claims_is_refused_and_leaves_the_device_fresh() {
    let page = compressed(&[7; 4096]);
    let bomb = compressed(&vec![0; 100 * MIB]);
    assert!(bomb.len() < 64 << 10, "{}", bomb.len());
    let garbage = noise(2000);
    // A frame that claims more than it has, and one that claims less: the size is in its head.
    let (mut less, mut more) = (page.clone(), page.clone());
    let at = page.windows(2).position(|two| two == (4096_u16 - 256).to_le_bytes()).unwrap();
    less[at..at + 2].copy_from_slice(&(4000_u16 - 256).to_le_bytes());
    more[at..at + 2].copy_from_slice(&(5000_u16 - 256).to_le_bytes());
    let twice = [&page[..], &page[..]].concat();
    let cases: Vec<(&str, u32, &[u8])> = vec![
        ("fewer bytes than it claims", 5000, &page),
        ("more bytes than it claims", 4000, &page),
        ("a head that claims less", 4000, &less),
        ("a head that claims more", 5000, &more),
        ("a bomb", 4096 * 16, &bomb),
        ("garbage", 4096, &garbage),
        ("cut", 4096, &page[..page.len() - 1]),
        ("a second one behind it", 4096, &twice),
        ("nothing", 4096, &[]),
        ("as many bytes as before", page.len() as u32, &page),
        ("more than a frame may have", MIB as u32 + 1, &page),
    ];
    for (what, length, bytes) in cases {
        let data = Compressed { length, bytes };
        for message in [
            Message::CompressedMemory { address: 0, data },
            Message::CompressedState { device: 0, ends: false, data },
        ] {
            let error = receive(&Feature::ALL, &[message]).expect_err(what);
            assert!(matches!(error, Error::Protocol(_) | Error::Malformed(_)), "{what}: {error}");
        }
    }
}

#[test]
fn compressed_data_is_refused_where_plain_data_is_and_without_the_feature() {
    let page = compressed(&[7; 4096]);
    let data = Compressed { length: 4096, bytes: &page };
    let memory = |address| Message::CompressedMemory { address, data };
    let state = |device| Message::CompressedState { device, ends: false, data };
    let cases = [
        ("outside of the memory", memory(MIB as u64)),
        ("over its end", memory(MIB as u64 - 4095)),
        ("over the end of all addresses", memory(u64::MAX)),
        ("another device", state(1)),
    ];
    for (what, message) in cases {
        let error = receive(&Feature::ALL, &[message]).expect_err(what);
        assert!(matches!(error, Error::Protocol(_)), "{what}: {error}");
    }
    for message in [memory(0), state(0)] {
        let error = receive(&[Feature::Ping], &[message]).unwrap_err().to_string();
        assert!(error.contains("without the feature 'zstd'"), "{error}");
    }
    let mut rig = Rig::new(&Shape::default()).with_memory(&[(0, MIB)]);
    let (mut peer, link) = Peer::new();
    let received = thread::scope(|scope| {
        scope.spawn(move || {
            peer.tell(&[hello(), memory(0)]);
            peer.finish();
        });
        rig.receive_from(link)
    });
    let error = received.unwrap_err().to_string();
    assert!(error.contains("before the table was accepted"), "{error}");
}

#[test]
fn compressed_memory_of_a_source_by_hand_is_in_its_place() {
    let shape = Shape { size: 4, ..Shape::default() };
    let mut rig = Rig::new(&shape).with_memory(&[(0, MIB)]);
    let text: Vec<u8> = (0..MIB / 2).map(|at| b"words and others "[at % 17]).collect();
    let bytes = compressed(&text);
    let (mut peer, link) = Peer::new();
    let memory = Message::CompressedMemory {
        address: 77,
        data: Compressed { length: text.len() as u32, bytes: &bytes },
    };
    thread::scope(|scope| {
        scope.spawn(move || {
            let fitting = Message::Control(Control::Table(table(MIB as u64)));
            let round = Message::Control(Control::Round { number: 1, initial: true });
            // Nothing more is said before the answer to ROUND: all before it has been processed.
            peer.tell(&[hello(), fitting, memory, round]);
            peer.finish();
        });
        rig.receive_from(link).unwrap_err();
    });
    let mut found = vec![0; text.len()];
    rig.memory.as_ref().unwrap().1.read_slice(&mut found, GuestAddress(77)).unwrap();
    assert!(found == text);
}
