//! Devices that migrate through a region: to others, to devices with migration v2, and from them.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use vm_memory::{Bytes, GuestAddress};
use whimbrel_device::wrap::migration_region::{Layout, Version};
use whimbrel_device::{ArcError, DeviceFile, Errno, MigrationFlags, Worker};
use whimbrel_engine::proto::control::Control as Said;
use whimbrel_engine::proto::message::Message;
use whimbrel_models::Model;
use whimbrel_user::{Device, Local, Migratable, SavingRead, State, region};

use crate::live::assert_same_memory;
use crate::support::engine::{Destination, Outcome, SendError, Source, SourceOptions, Stream};
use crate::support::peer::{Peer, hello, table};
use crate::support::{At, OwnLog, Rig, Shape, memory, migrate_between, open_any, to_device};

/// A migration interface; a section carries so many bytes at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Interface {
    V2,
    Region(Version, u64),
}

use Interface::{Region, V2};

const V1: Interface = Region(Version::V1, 100);
const DRAFT: Interface = Region(Version::Draft, 100);

impl Interface {
    fn of(self, shape: &Shape) -> Shape {
        let region = match self {
            V2 => None,
            Region(version, room) => Some(Layout::trapped(version, room).unwrap()),
        };
        Shape { region, ..shape.clone() }
    }
}

const ALL: [Interface; 3] = [V2, V1, DRAFT];

fn pairs() -> impl Iterator<Item = (Interface, Interface)> {
    ALL.into_iter().flat_map(|from| ALL.into_iter().map(move |to| (from, to)))
}

const MIB: usize = 1 << 20;

#[test]
fn a_device_that_works_moves_with_its_memory_from_every_interface_to_every_other() {
    for (from, to) in pairs() {
        let what = format!("{from:?} to {to:?}");
        let shape = Shape { dma_pages: 512, size: 3000, ..Shape::default() };
        let rig = Rig::of(&from.of(&shape), &to.of(&shape)).with_memory(&[(0, 2 * MIB + 0x3000)]);
        let half: Vec<u8> = (0..MIB).map(|index| (index % 251) as u8 + 1).collect();
        rig.memory.as_ref().unwrap().0.write_slice(&half, GuestAddress(0)).unwrap();
        rig.memory.as_ref().unwrap().1.write_slice(&[9; 4096], GuestAddress(2 << 20)).unwrap();
        let worker = Worker::start(rig.here.file()).unwrap();
        while rig.here.control().written() < 50 {
            std::thread::sleep(Duration::from_millis(1));
        }
        let mut ended = rig.migrate();
        drop(worker);
        ended.assert_sane(&what);
        assert_same_memory(ended.rig.memory.as_ref().unwrap());
        let report = ended.sent.unwrap();
        assert_eq!(ended.received.unwrap().device_bytes, report.device_bytes, "{what}");
        // The first round carries all memory; after it only what was written, which a log knows of.
        let first = report.round_list[0].memory_bytes;
        assert!(report.memory_bytes < 2 * first, "{what}: {} of {first}", report.memory_bytes);
    }
}

#[test]
fn a_device_without_anything_to_say_before_it_stops_moves_too() {
    for (from, to) in pairs() {
        let shape = Shape { flags: MigrationFlags::STOP_COPY, logging: false, ..Shape::default() };
        let mut ended = Rig::of(&from.of(&shape), &to.of(&shape)).with_memory(&[(0, 0x4000)]).migrate();
        ended.assert_sane(&format!("{from:?} to {to:?}"));
        ended.sent.unwrap();
    }
}

#[test]
fn a_section_that_is_mapped_in_part_carries_what_lies_in_both_parts() {
    for version in [Version::V1, Version::Draft] {
        let layout = Layout::partly_mapped(version, 0x1000, 100).unwrap();
        let shape = Shape { size: 20_000, region: Some(layout), ..Shape::default() };
        let mut ended = Rig::new(&shape).migrate();
        ended.assert_sane(&format!("{version:?}"));
        assert_eq!(ended.sent.unwrap().final_bytes, 20_006);
        let accesses = ended.rig.here.control().requests().iter().filter(|at| **at == At::Region).count();
        assert!(accesses < 300, "{accesses} accesses: the mapping was not used");
    }
}

#[test]
fn a_request_behind_a_region_that_fails_leaves_one_owner() {
    use State::{PreCopy, PreCopyP2p, Resuming, Running, RunningP2p, Stop, StopCopy};
    let at_source = [
        At::Arc(Running, PreCopy),
        At::Read(PreCopy),
        At::Arc(PreCopy, PreCopyP2p),
        At::Arc(PreCopyP2p, StopCopy),
        At::Read(StopCopy),
    ];
    let at_destination = [
        At::Arc(Stop, Resuming),
        At::Write,
        At::Arc(Resuming, Stop),
        At::Arc(Stop, RunningP2p),
        At::Arc(RunningP2p, Running),
    ];
    for interface in [V1, DRAFT] {
        for (at, here) in
            at_source.map(|at| (at, true)).into_iter().chain(at_destination.map(|at| (at, false)))
        {
            let what = format!("{interface:?}: {at:?}");
            let rig = Rig::new(&interface.of(&Shape::default())).with_memory(&[(0, 0x2000)]);
            let control = if here { &rig.here.control() } else { &rig.there.control() };
            // Twice where a refusal is not the end: the device is asked again when it is to run.
            let times = if at == At::Arc(Resuming, Stop) { 2 } else { 1 };
            for _ in 0..times {
                control.fail(at, 0, ArcError::Stays(Errno::EBUSY));
            }
            let mut ended = rig.migrate();
            ended.refused(&what);
        }
    }
}

#[test]
fn a_v1_device_that_breaks_is_reset_and_the_source_says_so() {
    for interface in [V1, DRAFT] {
        let rig = Rig::new(&interface.of(&Shape::default()));
        let at = At::Arc(State::PreCopyP2p, State::StopCopy);
        rig.here.control().fail(at, 0, ArcError::Broken(Errno::EIO));
        let mut ended = rig.migrate();
        let error = ended.sent.unwrap_err();
        assert!(error.to_string().contains("EIO"), "{error}");
        assert!(matches!(error.outcome, Outcome::RunsOnAfterReset { .. }), "{error}");
        assert_eq!(ended.rig.here.state(), State::Running);
        ended.rig.assert_destination_is_fresh("a device that broke");
    }
}

#[test]
fn pre_copy_left_anywhere_with_reads_of_any_size_loses_nothing() {
    let state: Vec<u8> = (0..100).collect();
    let shape = Shape { size: state.len(), initial: 9, ..Shape::default() };
    for version in [Version::V1, Version::Draft] {
        for (room, buffer, leave_after) in (0..8).flat_map(|leave| {
            [(7, 1, leave), (7, 5, leave), (7, 100, leave), (64, 3, leave), (500, 64, leave)]
        }) {
            let what =
                format!("{version:?}, {room} bytes of room, reads of {buffer}, left after {leave_after}");
            let (mut from, _, control) = open_any("from", &Region(version, room).of(&shape));
            control.set_state(&state);
            let (mut to, _, taken) = open_any("to", &Region(version, room).of(&shape));
            let mut data = from.set_state(State::PreCopy).unwrap().unwrap();
            let mut into = to.set_state(State::Resuming).unwrap().unwrap();
            let mut buffer = vec![0; buffer];
            for reads in 0.. {
                if reads == leave_after {
                    assert!(
                        from.set_state(State::StopCopy).unwrap().is_none(),
                        "{what}: the session goes on"
                    );
                }
                match data.read(&mut buffer).unwrap() {
                    SavingRead::Data(count) => {
                        into.write_piece(&buffer[..count], data.ends_transaction()).unwrap();
                    }
                    SavingRead::TemporaryEnd => {}
                    SavingRead::End => break,
                }
            }
            to.set_state(State::Stop).unwrap();
            assert_eq!(taken.state(), state, "{what}");
        }
    }
}

/// A model's device with the driver side.
fn model(name: &str) -> (Box<dyn Device>, DeviceFile) {
    let file = name.parse::<Model>().unwrap().open(name).unwrap().into_device();
    let version = if name.contains("draft") { Version::Draft } else { Version::V1 };
    (region::adapt_as(Box::new(Local::new(file.clone())), version).unwrap(), file)
}

/// All that can be seen of a model from outside but its configuration space and migration.
fn digest(file: &DeviceFile, width: usize) -> Vec<Vec<u8>> {
    let mut device = Local::new(file.clone());
    let count = device.info().unwrap().num_regions;
    let mut adapted = Box::new(Local::new(file.clone())) as Box<dyn Device>;
    adapted = region::adapt_or_keep(adapted, Version::V1).0;
    let last = count - u32::from(adapted.region_version().is_some());
    (0..last)
        .filter(|index| *index != 7)
        .map(|index| {
            let size = device.region_info(index).map_or(0, |region| region.size);
            let mut bytes = vec![0; size as usize];
            for (at, part) in bytes.chunks_mut(width).enumerate() {
                let _ = device.read_region(index, (at * width) as u64, part);
            }
            bytes
        })
        .collect()
}

#[test]
fn models_move_from_every_interface_to_every_other() {
    let protocols = ["v2", "v1", "draft"];
    let legacy = "legacy?state=300K&rate=10M&section=1000".to_string();
    let mut names = vec![(legacy.clone(), legacy)];
    for kind in ["accel?state=300K&rate=10M&protocol=", "serial?ports=2&protocol="] {
        for from in protocols {
            names.extend(protocols.map(|to| (format!("{kind}{from}"), format!("{kind}{to}"))));
        }
    }
    for (from, to) in names {
        let (mut here, file) = model(&from);
        let (mut there, there_file) = model(&to);
        file.advance(Duration::ZERO);
        file.advance(Duration::from_millis(10));
        if from.starts_with("serial") {
            here.write_region(0, 7, &[0x5a]).unwrap();
        }
        let both = (memory(&[(0, 0x4000)]), memory(&[(0, 0x4000)]));
        to_device(&both.0, &mut *here);
        to_device(&both.1, &mut *there);
        both.0.write_slice(b"a page", GuestAddress(0x1800)).unwrap();
        // What is as wide as the model's registers.
        let width = if from.starts_with("serial") { 1 } else { 4 };
        let before = digest(&there_file, width);
        let (left, right) = UnixStream::pair().unwrap();
        let destination = Destination::new(vec![there]).memory(Arc::new(both.1.clone()));
        let options = SourceOptions::default().downtime_limit(Duration::from_secs(20));
        let source =
            Source::new(vec![here]).memory(Arc::new(both.0.clone()), OwnLog(both.0.clone())).options(options);
        let (mut sent, mut arrived) =
            migrate_between(source, destination, Stream::from(left), Stream::from(right));
        sent.result.unwrap_or_else(|error| panic!("{from} to {to}: {error}"));
        arrived.result.unwrap();
        let state = |device: &mut Option<Box<dyn Migratable>>| device.as_mut().unwrap().state().unwrap();
        assert_eq!(state(&mut sent.devices[0]), State::Stop);
        assert_eq!(state(&mut arrived.devices[0]), State::Running);
        let (ours, theirs) = (digest(&file, width), digest(&there_file, width));
        assert!(ours == theirs, "{from} to {to}");
        assert!(before != theirs, "{from} to {to}: nothing was to be moved");
        assert_same_memory(&both);
    }
}

#[test]
fn a_last_transaction_without_an_end_is_refused_everywhere() {
    for to in ALL {
        let mut rig = Rig::new(&to.of(&Shape { size: 7, ..Shape::default() }));
        let (mut peer, link) = Peer::new();
        let sending = std::thread::spawn(move || {
            let mut table = table(0x1000);
            table.memory.clear();
            table.devices[0].region = Some("v1".into());
            table.devices[0].transactions = true;
            peer.tell(&[
                hello(),
                Said::Table(table).into(),
                Message::DeviceState { device: 0, ends: true, data: b"whole" },
                Message::DeviceState { device: 0, ends: false, data: b"not" },
                Said::DeviceEnd { device: 0, bytes: 8 }.into(),
                Said::End { memory_bytes: 0 }.into(),
            ]);
            peer.finish();
        });
        let error = rig.receive_from(link).unwrap_err().to_string();
        sending.join().unwrap();
        let expected = "the last 3 bytes of device state are a transaction without an end";
        assert!(error.contains(expected), "{to:?}: {error}");
        rig.assert_destination_is_fresh("an open transaction");
    }
}

/// Fails one access after the other, until there are no more, and looks who has the device.
fn every_access_fails(from: Interface, to: Interface, at_source: bool) -> u32 {
    for count in 0.. {
        let what = format!(
            "{from:?} to {to:?}, access {count} of the {}",
            if at_source { "source" } else { "destination" }
        );
        let shape = Shape { size: 150, ..Shape::default() };
        let rig = Rig::of(&from.of(&shape), &to.of(&shape)).with_memory(&[(0, 0x2000)]);
        let control = if at_source { &rig.here.control() } else { &rig.there.control() };
        control.fail(At::Region, count, ArcError::Stays(Errno::EIO));
        let mut ended = rig.migrate();
        let rig = &mut ended.rig;
        let control = if at_source { &rig.here.control() } else { &rig.there.control() };
        let beyond = control.has_faults_left();
        control.forget_faults();
        match (&ended.sent, &ended.received) {
            (Ok(_), Ok(_)) => {
                // What fails after the handover cannot take it back.
                assert!(!rig.here.state().is_running(), "{what}");
                rig.assert_destination_has_it(&what);
            }
            (Err(SendError { outcome: Outcome::RunsOn | Outcome::Untouched, .. }), Err(_)) => {
                rig.assert_source_runs(&what);
                rig.assert_destination_is_fresh(&what);
            }
            (sent, received) => panic!("{what}: {sent:?}, {received:?}"),
        }
        if beyond {
            assert!(ended.sent.is_ok(), "{what}: nothing has failed");
            return count;
        }
    }
    unreachable!("counting has no end")
}

#[test]
fn any_access_to_a_region_that_fails_leaves_one_owner() {
    for version in [Version::V1, Version::Draft] {
        // Large enough for a few transactions, with accesses of every width.
        let interface = Region(version, 61);
        assert!(every_access_fails(interface, V2, true) > 50);
        assert!(every_access_fails(V2, interface, false) > 30);
    }
    assert!(every_access_fails(Region(Version::V1, 61), Region(Version::V1, 61), true) > 50);
}
