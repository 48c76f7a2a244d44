//! A report of dirty pages: 32 GiB in pages of 4 KiB, a bitmap of 1 MiB. Beside it its parts, each alone: the transport of
//! as many bytes, the log, and the merge into a caller's bitmap.

use std::hint::black_box;
use std::time::Instant;

use whimbrel_memory::DirtyLog;
use whimbrel_protocol::dirty::{DirtyReport, IovaRange, LoggingRanges, PageBitmap};
use whimbrel_uapi::feature::{Feature, FeatureFlags};
use whimbrel_user::{Device, Migratable};
use whimbrel_vfio_user::message::{LoggingReport, LoggingStart, Request};
use whimbrel_vfio_user::{Client, ClientOptions};

use crate::devices::NULL;
use crate::logged::{DIRTIES, LOGGED, mark_one_of};
use crate::peer::{Build, Peer};
use crate::rounds::{Subject, alternate};
use crate::wire::{Wire, feature, message, register};

const ROUNDS: usize = 15;
/// Reports in one turn.
const REPORTS: usize = 8;
const PAGE: u64 = 4096;
/// Bytes of the bitmap.
const BITMAP: usize = (LOGGED / PAGE / 8) as usize;
/// One page of so many is dirty; 0 for none.
const DIRTY: [(&str, u32); 3] = [("clean", 0), ("1 % dirty", 100), ("all dirty", 1)];

/// Returns the microseconds that `work` takes, each time after `prepare`.
fn timed<T>(it: &mut T, prepare: impl Fn(&mut T), work: impl Fn(&mut T)) -> f64 {
    let mut spent = 0.0;
    for _ in 0..REPORTS {
        prepare(it);
        let before = Instant::now();
        work(it);
        spent += before.elapsed().as_secs_f64();
    }
    spent * 1e6 / REPORTS as f64
}

/// The parts of a report that are ours, without a server.
fn parts<'a>() -> Vec<Subject<'a>> {
    let mut parts = Vec::new();
    for (name, every) in DIRTY {
        let mut ranges = LoggingRanges::new(PAGE, 1).unwrap();
        ranges.push(0, LOGGED).unwrap();
        let mut it = (DirtyLog::new(&ranges).unwrap(), vec![0_u64; BITMAP / 8]);
        // So that the log has memory of its own.
        it.0.mark(0, LOGGED);
        parts.push(Subject::new(format!("the log alone, {name}"), move || {
            let prepare = |it: &mut (DirtyLog, Vec<u64>)| {
                mark_one_of(&it.0, every);
                it.1.fill(0);
            };
            timed(&mut it, prepare, |(log, words)| {
                log.report(&mut DirtyReport::new(0, LOGGED, PAGE, words).unwrap());
            })
        }));
    }
    let mut it = (PageBitmap::new(BITMAP * 8), vec![1_u64; BITMAP / 8]);
    parts.push(Subject::new("the merge into a bitmap alone", move || {
        timed(&mut it, |(bitmap, _)| bitmap.clear(), |(bitmap, words)| bitmap.merge(black_box(words)))
    }));
    parts
}

pub(crate) fn run() {
    let report = LoggingReport { iova: 0, length: LOGGED, page_size: PAGE }.to_bytes();
    let report = message(false, &feature(Feature::DmaLoggingReport, FeatureFlags::GET, &report));
    let mut wires = Vec::new();
    for build in Build::all() {
        for (name, every) in DIRTY {
            let mut wire = Wire::new(build.device(NULL));
            let mut room = [[0; 16]];
            let start = LoggingStart::new(PAGE, &[(0, LOGGED)], &mut room).to_bytes();
            wire.request(&feature(Feature::DmaLoggingStart, FeatureFlags::SET, &start));
            wires.push((build.name(name), every, wire));
        }
    }
    // The reply repeats the request, and adds the bitmap.
    let answer = report.len() + BITMAP;
    let mut bare = Wire::bare(Peer::bare(report.len(), answer));
    let mut small = Wire::bare(Peer::bare(report.len(), report.len()));
    let mut clients: Vec<_> = DIRTY
        .map(|(name, every)| {
            let peer = Build::all().remove(0).device(NULL);
            let mut client = Client::connect(peer.path(), &ClientOptions::default()).unwrap();
            client.dma_logging_start(PAGE, &[IovaRange::new(0, LOGGED).unwrap()]).unwrap();
            (name, every, (client, vec![0; BITMAP / 8]), peer)
        })
        .into();
    let asked = |wire: &mut Wire, answer: usize, every: u32| {
        let prepare = |wire: &mut Wire| {
            if every > 0 {
                wire.request(&Request::RegionWrite(register(DIRTIES), &every.to_ne_bytes()));
            }
        };
        timed(wire, prepare, |wire| wire.ask(&report, answer))
    };
    let mut subjects = vec![
        Subject::new("bare round trip", || asked(&mut small, report.len(), 0)),
        Subject::new("bare, as many bytes", || asked(&mut bare, answer, 0)),
    ];
    for (name, every, wire) in &mut wires {
        subjects.push(Subject::new(name.as_str(), || asked(wire, answer, *every)));
    }
    for (name, every, it, _) in &mut clients {
        subjects.push(Subject::new(format!("{name}, by our client"), || {
            let prepare = |(client, words): &mut (Client, Vec<u64>)| {
                if *every > 0 {
                    client.write_region(0, DIRTIES, &every.to_ne_bytes()).unwrap();
                }
                words.fill(0);
            };
            timed(it, prepare, |(client, words)| {
                let mut report = DirtyReport::new(0, LOGGED, PAGE, words).unwrap();
                client.dma_logging_report(&mut report).unwrap();
            })
        }));
    }
    subjects.extend(parts());
    println!("DMA_LOGGING_REPORT of 32 GiB");
    alternate(ROUNDS, subjects).print("us", "bare, as many bytes");
}
