//! A report of dirty pages: 32 GiB in pages of 4 KiB, a bitmap of 1 MiB.

use std::time::Instant;

use whimbrel_uapi::feature::{Feature, FeatureFlags};
use whimbrel_vfio_user::message::{LoggingReport, LoggingStart, Request};

use crate::devices::NULL;
use crate::logged::{DIRTIES, LOGGED};
use crate::peer::{Build, Peer};
use crate::rounds::{Subject, alternate};
use crate::wire::{Wire, feature, message, register};

const ROUNDS: usize = 15;
/// Reports in one turn.
const REPORTS: usize = 8;

pub(crate) fn run() {
    let report = LoggingReport { iova: 0, length: LOGGED, page_size: 4096 }.to_bytes();
    let report = message(false, &feature(Feature::DmaLoggingReport, FeatureFlags::GET, &report));
    let mut wires = Vec::new();
    for build in Build::all() {
        for (name, every) in [("clean", 0_u32), ("1 % dirty", 100), ("all dirty", 1)] {
            let mut wire = Wire::new(build.device(NULL));
            let mut room = [[0; 16]];
            let start = LoggingStart::new(4096, &[(0, LOGGED)], &mut room).to_bytes();
            wire.request(&feature(Feature::DmaLoggingStart, FeatureFlags::SET, &start));
            wires.push((build.name(name), every, wire));
        }
    }
    // The reply repeats the request, and adds the bitmap.
    let answer = report.len() + (LOGGED / 4096 / 8) as usize;
    let mut bare = Wire::bare(Peer::bare(report.len(), answer));
    let mut small = Wire::bare(Peer::bare(report.len(), report.len()));
    let timed = |wire: &mut Wire, answer: usize, every: u32| {
        let mut spent = 0.0;
        for _ in 0..REPORTS {
            if every > 0 {
                wire.request(&Request::RegionWrite(register(DIRTIES), &every.to_ne_bytes()));
            }
            let before = Instant::now();
            wire.ask(&report, answer);
            spent += before.elapsed().as_secs_f64();
        }
        spent * 1e6 / REPORTS as f64
    };
    let mut subjects = vec![
        Subject::new("bare round trip", || timed(&mut small, report.len(), 0)),
        Subject::new("bare, as many bytes", || timed(&mut bare, answer, 0)),
    ];
    for (name, every, wire) in &mut wires {
        subjects.push(Subject::new(name.as_str(), || timed(wire, answer, *every)));
    }
    println!("DMA_LOGGING_REPORT of 32 GiB");
    alternate(ROUNDS, subjects).print("us", "bare, as many bytes");
}
