//! Links that are lost in pre-copy and come back: nothing is lost with them, and nobody else gets in.

use std::collections::{BTreeSet, VecDeque};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use whimbrel_device::Worker;
use whimbrel_device::wrap::migration_region::{Layout, Version};
use whimbrel_engine::Phase;
use whimbrel_engine::channel::{Address, Channel, Connect, ConnectorError, Listener, Stream, Tls, Until};
use whimbrel_engine::proto::control::{Control, Fits};
use whimbrel_engine::proto::join::{Join, Purpose, Resumed, Secret};
use whimbrel_engine::proto::message::Message;
use whimbrel_engine::proto::negotiate::{Accept, Feature, Offer};
use whimbrel_user::MigrationFlags;

use crate::live::{Cpu, REGIONS, assert_same_memory};
use crate::support::certificates::trusting;
use crate::support::engine::{Error, Outcome, SendError};
use crate::support::links::{Links, Net, Passed, WITHIN, passed, resuming};
use crate::support::peer::{ID, Peer, table};
use crate::support::wire::{boundaries, frames, kind};
use crate::support::{Cut, Ended, Rig, Shape, try_all};

/// The smallest migration that has everything in it, or some state more.
fn small(shape: &Shape) -> Rig {
    let rig = Rig::new(shape).with_memory(&[(0, 0x2000)]);
    vm_memory::Bytes::write_obj(&rig.memory.as_ref().unwrap().0, 1u8, vm_memory::GuestAddress(0)).unwrap();
    resuming(rig, WITHIN)
}

/// What must hold after the first of the links was cut.
fn assert_outlived(ended: &mut Ended, links: &[Passed], what: &str) {
    ended.assert_sane(what);
    let (from_source, from_destination) = &links[0];
    // STOPPING may have been cut off.
    let has_stopped = matches!(&ended.sent, Err(error) if error.report.stopped_at_ms.is_some());
    let is_in_precopy =
        from_destination.contains(&kind::FITS) && !from_source.contains(&kind::STOPPING) && !has_stopped;
    let is_whole = from_destination.contains(&kind::RUNNING);
    if is_in_precopy {
        let report = ended.sent.as_ref().unwrap_or_else(|error| panic!("{what}: {error}: {links:?}"));
        let received = ended.received.as_ref().unwrap();
        assert!(report.reconnections >= 1 && received.reconnections >= 1, "{what}: {report:?}");
        assert_eq!(report.memory_bytes, received.memory_bytes, "{what}");
        assert_eq!(report.device_bytes, received.device_bytes, "{what}");
        assert!(
            report.warnings.iter().any(|warning| warning.contains("was lost and replaced")),
            "{what}: {report:?}"
        );
        assert_same_memory(ended.rig.memory.as_ref().unwrap());
    } else if !is_whole {
        assert_eq!(links.len(), 1, "{what}: nothing is replaced outside of pre-copy: {links:?}");
    }
}

/// The end of the first frame of a kind in a recording of a whole stream.
fn end_of(recording: &[u8], wanted: u16) -> usize {
    let index = frames(recording).iter().position(|(kind, _)| *kind == wanted).unwrap();
    boundaries(recording)[index + 1]
}

/// Cuts the link once the source is known to the destination, after any of many bytes.
fn cut_after_many_bytes(shape: &Shape, step: usize) {
    let mut net = Net::new(&[]);
    let made = net.links.made.clone();
    let whole = small(shape).migrate_over_links(&mut net.listener, net.links, |source| source);
    assert!(whole.sent.is_ok(), "{:?}", whole.sent);
    let (source, destination) = made.lock().pop().unwrap().end();
    let from_source = (end_of(&source, kind::TABLE)..source.len()).step_by(step).map(Cut::FromSource);
    // A link that is cut as ACCEPT has passed brings no TABLE.
    let from_destination = end_of(&destination, kind::ACCEPT) + 1..destination.len();
    let cuts = from_source.chain(from_destination.step_by(step).map(Cut::FromDestination));
    let outlived = Mutex::new(0);
    try_all(cuts, |cut| {
        let mut rig = small(shape);
        rig.ends_together = true;
        let (mut ended, links) = Net::new(&[cut]).migrate(rig);
        assert_outlived(&mut ended, &links, &format!("{cut:?}"));
        *outlived.lock() += u32::from(links.len() > 1);
    });
    let outlived = outlived.into_inner();
    assert!(outlived > 20, "{outlived} links were replaced");
}

#[test]
fn a_migration_outlives_a_link_cut_after_any_of_many_bytes_of_precopy() {
    cut_after_many_bytes(&Shape { size: 2, initial: 1, ..Shape::default() }, 11);
}

#[test]
fn a_migration_of_a_v1_region_outlives_a_link_cut_after_any_of_many_bytes_of_precopy() {
    let layout = Layout::trapped(Version::V1, 5).unwrap();
    cut_after_many_bytes(&Shape { size: 2, initial: 9, region: Some(layout), ..Shape::default() }, 29);
}

#[test]
fn a_source_with_more_state_than_it_keeps_waits_until_that_has_arrived() {
    let shape = Shape { initial: 40 << 20, ..Shape::default() };
    let mut net = Net::new(&[Cut::FromSource(20 << 20), Cut::FromSource(9 << 20)]);
    let rig = resuming(Rig::new(&shape), WITHIN);
    let ended = rig.migrate_over_links(&mut net.listener, net.links, |source| source);
    let (report, received, mut rig) = (ended.sent.unwrap(), ended.received.unwrap(), ended.rig);
    assert_eq!((report.reconnections, received.reconnections), (2, 2));
    assert!(report.device_bytes > 40 << 20);
    // What was lost crossed the links, too.
    assert!(report.wire_bytes > report.device_bytes, "{report:?}");
    assert_eq!(report.lanes[0].wire_bytes, report.wire_bytes);
    assert_eq!(report.device_bytes, received.device_bytes);
    rig.assert_destination_has_it("after the migration");
}

#[test]
fn a_device_at_work_with_much_state_moves_over_links_that_are_cut_twice_in_a_row_and_while_they_come_back() {
    let shape = Shape { dma_pages: 512, size: 3000, initial: 3 << 20, ..Shape::default() };
    let mut rig = resuming(Rig::new(&shape).with_memory(&REGIONS), WITHIN);
    rig.options = rig.options.max_rounds(50);
    let half: Vec<u8> = (0..3 << 20).map(|index: usize| (index % 251) as u8 + 1).collect();
    vm_memory::Bytes::write_slice(&rig.memory.as_ref().unwrap().0, &half, vm_memory::GuestAddress(0))
        .unwrap();
    let worker = Worker::start(rig.here.file()).unwrap();
    let cpu = Cpu::new(&rig.here.program);
    let memory = rig.memory.as_ref().unwrap().0.clone();
    // In the first round, as JOIN is sent, as RESUMED is, in what is sent again, and a silent one.
    let cuts = [
        Cut::FromSource(2_500_000),
        Cut::FromSource(30),
        Cut::FromDestination(30),
        Cut::FromSource(400_000),
        Cut::FromSource(3_000_000),
    ];
    let mut net = Net::new(&cuts);
    let made = net.links.made.clone();
    let (ended, written) = cpu.works_during(&memory, || {
        rig.migrate_over_links(&mut net.listener, net.links, |source| source.guest(cpu.clone()))
    });
    drop(worker);
    let links = passed(&made);
    let (report, received, mut rig) = (ended.sent.unwrap(), ended.received.unwrap(), ended.rig);
    assert_eq!(links.len(), 6, "{report:?}");
    assert_eq!(report.reconnections, 3, "of those that RESUMED came back on");
    assert!(received.reconnections >= 3);
    assert!(written > 0);
    assert_same_memory(rig.memory.as_ref().unwrap());
    rig.assert_source_stands("after the migration");
    rig.assert_destination_has_it("after the migration");
    assert_eq!((received.memory_bytes, received.device_bytes), (report.memory_bytes, report.device_bytes));
    assert_eq!(received.rounds, report.rounds);
}

#[test]
fn a_link_that_falls_silent_in_precopy_is_replaced() {
    let mut rig = small(&Shape { initial: 3000, ..Shape::default() });
    rig.options = rig.options.timeout(Duration::from_millis(500));
    let (mut ended, links) = Net::new(&[Cut::SilentFromSource(3000)]).migrate(rig);
    assert_outlived(&mut ended, &links, "a silent link");
    assert_eq!(links.len(), 2);
}

#[test]
fn a_source_that_was_silent_for_too_long_learns_that_and_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("door");
    let mut listener = Listener::bind(&Address::Unix(path.clone())).unwrap();
    let mut rig = Rig::new(&Shape { size: 4, ..Shape::default() }).with_memory(&[(0, 0x2000)]);
    rig.there_options =
        rig.there_options.reconnect(Duration::from_secs(2)).timeout(Duration::from_millis(300));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut silent = Peer::from(UnixStream::connect(&path).unwrap());
            let features = Feature::ALL.into_iter().collect();
            let offer = Offer::new(ID, &features, &features).with_reconnect(WITHIN);
            silent.say(&Message::Control(Control::Hello(offer)));
            let accept = silent.hear_until(kind::ACCEPT).unwrap();
            let accept: Accept = serde_json::from_slice(&accept).unwrap();
            silent.say(&Message::Control(Control::Table(table(0x2000))));
            silent.hear_until(kind::FITS).unwrap();
            assert_eq!(silent.hear(), None, "the destination gives the connection up, and not the migration");
            let mut again = Peer::from(UnixStream::connect(&path).unwrap());
            let join = Join::new(ID, accept.secret.unwrap(), Purpose::Resumption(1));
            again.say(&Message::Control(Control::Join(join)));
            assert_eq!(again.hear().map(|(kind, _)| kind), Some(kind::RESUMED));
            again.finish();
        });
        rig.listen(&mut listener).unwrap_err();
    });
}

#[test]
fn a_link_with_tls_is_replaced_by_one_with_tls_and_the_same_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let [here, there] = trusting(folder.path());
    let mut net = Net::new(&[Cut::FromSource(100_000)]);
    net.listener = net.listener.tls(there.clone()).unwrap();
    net.links.tls = Some(here.clone());
    let shape = Shape { initial: 300_000, ..Shape::default() };
    let ended = small(&shape).migrate_over_links(&mut net.listener, net.links, |source| source);
    assert_eq!(ended.sent.unwrap().reconnections, 1);
    assert_same_memory(ended.rig.memory.as_ref().unwrap());

    // The destination's own is as good, but it is not that of the source.
    let mut net = Net::new(&[Cut::FromSource(100_000)]);
    net.listener = net.listener.tls(there.clone()).unwrap();
    net.links.tls = Some(here);
    let mut rig = small(&shape);
    rig.there_options = rig.there_options.reconnect(Duration::from_millis(500));
    let connector = Disguised { links: net.links, other: Some(there) };
    let mut ended = rig.migrate_over_links(&mut net.listener, connector, |source| source);
    let (sent, _) = ended.refused("another certificate");
    assert!(sent.contains("no such migration"), "{sent}");
}

/// Links of which all but the first show another certificate.
struct Disguised {
    links: Links,
    other: Option<Tls>,
}

impl Connect for Disguised {
    fn connect(&mut self, until: Until<'_>) -> Result<Arc<dyn Channel>, ConnectorError> {
        let connected = self.links.connect(until);
        self.links.tls = self.other.take().or_else(|| self.links.tls.take());
        connected
    }
}

#[test]
fn nobody_without_the_secret_replaces_a_lost_link_and_the_source_still_does() {
    let mut net = Net::new(&[Cut::FromSource(3000)]);
    let (path, tried) = (net.path(), Arc::new(Mutex::new(Vec::new())));
    let answers = tried.clone();
    net.links.between = Box::new(move || {
        let shapes = [(ID, 1), (0, 9)]
            .map(|(id, number)| Join::new(id, Secret::new([7; 32]), Purpose::Resumption(number)));
        for join in shapes {
            let mut peer = Peer::from(UnixStream::connect(&path)?);
            peer.say(&Message::Control(Control::Join(join)));
            answers.lock().push(peer.hear_until(kind::FAILED));
        }
        Ok(())
    });
    let (mut ended, links) = net.migrate(small(&Shape { initial: 3000, ..Shape::default() }));
    assert_outlived(&mut ended, &links, "with strangers");
    let tried = tried.lock();
    assert_eq!(tried.len(), 2);
    for answer in &*tried {
        assert_eq!(answer.as_deref(), Some(&br#"{"reason":"no such migration"}"#[..]));
    }
}

#[test]
fn a_link_that_does_not_come_back_in_time_leaves_the_devices_at_the_source_and_both_say_so() {
    let mut net = Net::new(&[Cut::FromSource(3000)]);
    net.links.between = Box::new(|| Err("no route".into()));
    let rig = resuming(small(&Shape { initial: 3000, ..Shape::default() }), Duration::from_millis(700));
    let began = Instant::now();
    let (mut ended, _) = net.migrate(rig);
    assert!(began.elapsed() >= Duration::from_millis(700));
    let (sent, received) = ended.refused("no way back");
    assert!(sent.contains("could not be reached again within 700 ms (no route)"), "{sent}");
    assert!(sent.ends_with("; the devices run on at the source"), "{sent}");
    assert!(received.contains("did not come back on another connection within 700 ms"), "{received}");
    assert!(matches!(
        ended.sent,
        Err(SendError { cause: Error::NotResumed { .. }, outcome: Outcome::RunsOn, .. })
    ));
}

#[test]
fn a_total_timeout_while_the_link_is_lost_tells_of_the_loss() {
    let mut net = Net::new(&[Cut::FromSource(3000)]);
    net.links.between = Box::new(|| Err("no route".into()));
    let mut rig = small(&Shape { initial: 3000, ..Shape::default() });
    rig.options = rig.options.total_timeout(Duration::from_secs(3));
    rig.ends_together = true;
    let (mut ended, _) = net.migrate(rig);
    let (sent, _) = ended.refused("out of time");
    assert!(sent.contains("not done within 3 s"), "{sent}");
    let warnings = &ended.sent.as_ref().unwrap_err().warnings;
    assert!(warnings.iter().any(|warning| warning.contains("was lost meanwhile: ")), "{warnings:?}");
}

#[test]
fn the_shorter_time_of_both_sides_counts_and_none_of_one_side_means_none() {
    for (here, there, told) in [(20_000, 500, "within 500 ms"), (500, 20_000, "within 500 ms")] {
        let mut net = Net::new(&[Cut::FromSource(3000)]);
        net.links.between = Box::new(|| Err("no route".into()));
        let mut rig = small(&Shape { initial: 3000, ..Shape::default() });
        rig.options = rig.options.reconnect(Duration::from_millis(here));
        rig.there_options = rig.there_options.reconnect(Duration::from_millis(there));
        let (mut ended, _) = net.migrate(rig);
        let (sent, received) = ended.refused("no way back");
        assert!(sent.contains(told) && received.contains(told), "{sent}; {received}");
    }
    for (here, there) in [(0, 20_000), (20_000, 0)] {
        let mut rig = small(&Shape { initial: 3000, ..Shape::default() });
        rig.options = rig.options.reconnect(Duration::from_millis(here));
        rig.there_options = rig.there_options.reconnect(Duration::from_millis(there));
        let (mut ended, links) = Net::new(&[Cut::FromSource(3000)]).migrate(rig);
        ended.refused("one side does not");
        let warnings = &ended.sent.as_ref().unwrap_err().warnings;
        let is_warned =
            warnings.iter().any(|warning| warning.contains("a lost connection will end the migration"));
        assert_eq!(is_warned, here > 0, "it was asked for in vain: {warnings:?}");
        assert_eq!(links.len(), 1);
        assert!(!links[0].0.contains(&kind::STOPPING));
    }
}

#[test]
fn a_destination_that_is_another_one_by_now_ends_the_migration_at_once() {
    let net = Net::new(&[Cut::FromSource(3000)]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("door");
    let mut other = Listener::bind(&Address::Unix(path.clone())).unwrap();
    let waiting = std::thread::spawn(move || other.accept(Until::timeout(Duration::from_secs(3))).map(drop));
    let mut links = net.links;
    let made = links.made.clone();
    let (first, second) = (links.address.clone(), Address::Unix(path));
    links.between = Box::new(|| Ok(()));
    let mut there = net.listener;
    let mut rig = small(&Shape { initial: 3000, ..Shape::default() });
    rig.there_options = rig.there_options.reconnect(Duration::from_millis(500));
    rig.options = rig.options.reconnect(Duration::from_secs(20));
    let began = Instant::now();
    let mut ended =
        rig.migrate_over_links(&mut there, Elsewhere { links, first: Some(first), second }, |source| source);
    let (sent, _) = ended.refused("another destination");
    let told = "closed the connection before the migration was complete; the destination was reached again, and did not go on \
                (the destination ended the migration: no such migration)";
    assert!(sent.contains(told), "{sent}");
    assert!(began.elapsed() < Duration::from_secs(10));
    drop(passed(&made));
    assert!(waiting.join().unwrap().is_err(), "its listener waits on");
}

/// Links of which all but the first lead elsewhere.
struct Elsewhere {
    links: Links,
    first: Option<Address>,
    second: Address,
}

impl Connect for Elsewhere {
    fn connect(&mut self, until: Until<'_>) -> Result<Arc<dyn Channel>, ConnectorError> {
        self.links.address = self.first.take().unwrap_or_else(|| self.second.clone());
        self.links.connect(until)
    }
}

#[test]
fn a_cancel_while_the_link_is_lost_ends_the_migration_at_once() {
    for is_here in [true, false] {
        let mut net = Net::new(&[Cut::FromSource(3000)]);
        net.links.between = Box::new(|| Err("no route".into()));
        let mut rig = small(&Shape { initial: 3000, ..Shape::default() });
        rig.there_options = rig.there_options.reconnect(Duration::from_secs(2));
        let side = if is_here { &mut rig.here } else { &mut rig.there };
        let cancel = side.cancel.clone();
        side.observer = Some(Box::new(move |progress| {
            if progress.phase == Phase::Reconnecting {
                cancel.cancel("an operator");
            }
        }));
        let (mut ended, _) = net.migrate(rig);
        let (sent, received) = ended.refused("cancelled");
        let cancelled = if is_here { &sent } else { &received };
        assert!(cancelled.starts_with("cancelled: an operator"), "{sent}; {received}");
    }
}

/// Links whose other ends are held by the test.
struct Pairs(VecDeque<UnixStream>);

impl Connect for Pairs {
    fn connect(&mut self, _: Until<'_>) -> Result<Arc<dyn Channel>, ConnectorError> {
        let stream = self.0.pop_front().ok_or("there is no other link")?;
        Ok(Arc::new(Stream::from(stream)))
    }
}

#[test]
fn a_destination_that_claims_to_have_what_was_not_sent_ends_the_migration() {
    let claims: [(&str, u32, &[u64]); 5] = [
        ("a round that is not over", 1, &[0]),
        ("a later round", 2, &[0]),
        ("other devices", 0, &[0, 0]),
        ("no device", 0, &[]),
        ("more state than was sent", 0, &[1 << 40]),
    ];
    for (what, round, devices) in claims {
        let (links, peers): (VecDeque<_>, Vec<_>) = (0..2).map(|_| UnixStream::pair().unwrap()).unzip();
        let [mut first, mut second] = <[_; 2]>::try_from(peers).unwrap().map(Peer::from);
        // More than the links hold, so that the round is not over when the first one is lost.
        let flags = MigrationFlags::STOP_COPY | MigrationFlags::P2P;
        let rig = Rig::new(&Shape { flags, ..Shape::default() }).with_memory(&[(0, 8 << 20)]);
        let noise: Vec<u8> = (0..8 << 20).map(|index: usize| (index % 251) as u8 + 1).collect();
        let memory = &rig.memory.as_ref().unwrap().0;
        vm_memory::Bytes::write_slice(memory, &noise, vm_memory::GuestAddress(0)).unwrap();
        let mut rig = resuming(rig, WITHIN);
        let fits = Message::Control(Control::Fits(Fits::default()));
        let error = std::thread::scope(|scope| {
            scope.spawn(move || {
                first.hear_until(kind::HELLO).unwrap();
                let features = BTreeSet::from([Feature::Resume]);
                let accept = Accept {
                    secret: Some(Secret::new([7; 32])),
                    reconnect_ms: Some(20_000),
                    ..Accept::new(&features)
                };
                first.say(&Message::Control(Control::Accept(accept)));
                first.hear_until(kind::TABLE).unwrap();
                first.say(&fits);
                first.hear_until(kind::MEMORY).unwrap();
                drop(first);
                second.hear().expect("JOIN");
                let resumed = Resumed { round, devices: devices.to_vec() };
                second.say(&Message::Control(Control::Resumed(resumed)));
                assert_eq!(second.hear_until(kind::ROUND), None, "{what}: it goes on");
            });
            rig.send_over(Pairs(links)).expect_err(what)
        });
        assert!(matches!(error.cause, Error::Protocol(_)), "{what}: {error}");
        assert!(matches!(error.outcome, Outcome::RunsOn), "{what}: {error}");
    }
}

#[test]
fn compressed_data_is_sent_again_after_links_that_were_lost() {
    let shape = Shape { initial: 3 << 20, ..Shape::default() };
    let mut rig = resuming(Rig::new(&shape).with_memory(&REGIONS), WITHIN);
    rig.options = rig.options.compression(true);
    let mut data: Vec<u8> = (0..2 << 20).map(|index: usize| (index % 251) as u8 + 1).collect();
    // What does not become smaller, so that the links have something to carry.
    fastrand::Rng::with_seed(7).fill(&mut data[1 << 20..]);
    vm_memory::Bytes::write_slice(&rig.memory.as_ref().unwrap().0, &data, vm_memory::GuestAddress(0))
        .unwrap();
    let cuts = [Cut::FromSource(400_000), Cut::FromSource(200_000)];
    let (mut ended, links) = Net::new(&cuts).migrate(rig);
    ended.assert_sane("compressed");
    let (report, received) = (ended.sent.unwrap(), ended.received.unwrap());
    assert!(report.compression && report.reconnections == 2, "{report:?}");
    assert_eq!(report.device_bytes, received.device_bytes);
    assert!(links.iter().any(|(source, _)| source.contains(&kind::MEMORY_ZSTD)), "{links:?}");
    assert!(links.iter().any(|(source, _)| source.contains(&kind::DEVICE_STATE_ZSTD)), "{links:?}");
    assert_same_memory(ended.rig.memory.as_ref().unwrap());
    ended.rig.assert_destination_has_it("after the migration");
}
