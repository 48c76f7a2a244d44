//! Marks and reports on several threads at once, and the memory of a user that copies the reported pages.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use whimbrel_memory::DirtyLog;
use whimbrel_protocol::dirty::{DirtyReport, LoggingRanges};

const PAGE: u64 = 4096;
/// Pages of both writers lie in both words of the log.
const PAGES: usize = 66;
const WRITERS: usize = 2;
const ROUNDS: u32 = 5_000;
const WRITES: u64 = 20;

/// Lets the writers go on to their end when a round has failed.
struct LetGo<'a>(&'a AtomicU32);

impl Drop for LetGo<'_> {
    fn drop(&mut self) {
        self.0.store(u32::MAX, Ordering::Release);
    }
}

/// Waits until `counter` is at least `value`.
fn wait_for(counter: &AtomicU32, value: u32) {
    let mut tries = 0u32;
    while counter.load(Ordering::Acquire) < value {
        tries += 1;
        if tries.is_multiple_of(64) {
            std::thread::yield_now();
        } else {
            std::hint::spin_loop();
        }
    }
}

#[test]
fn a_copy_of_the_pages_told_ends_equal_to_what_was_written_meanwhile() {
    let mut ranges = LoggingRanges::new(PAGE, 1).unwrap();
    ranges.push(0, PAGES as u64 * PAGE).unwrap();
    let log = DirtyLog::new(&ranges).unwrap();
    let memory: Vec<AtomicU64> = (0..PAGES).map(|_| AtomicU64::new(0)).collect();
    let mut copy = vec![0; PAGES];
    let (begun, done) = (AtomicU32::new(0), AtomicU32::new(0));
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (log, memory, begun, done) = (&log, &memory, &begun, &done);
            scope.spawn(move || {
                for round in 1..=ROUNDS {
                    wait_for(begun, round);
                    for write in 1..=WRITES {
                        // One page most of the time, so that its mark is often there already.
                        let page = if write % 8 == 0 { 64 + writer } else { writer };
                        memory[page].store(u64::from(round) * WRITES + write, Ordering::Relaxed);
                        log.mark(page as u64 * PAGE + 8, 8);
                    }
                    done.fetch_add(1, Ordering::Release);
                }
            });
        }
        let _let_go = LetGo(&begun);
        let mut words = [0; 2];
        let mut copy_what_is_told = || {
            words.fill(0);
            log.report(&mut DirtyReport::new(0, PAGES as u64 * PAGE, PAGE, &mut words).unwrap());
            for page in (0..PAGES).filter(|page| words[page / 64] >> (page % 64) & 1 == 1) {
                copy[page] = memory[page].load(Ordering::Relaxed);
            }
            copy.clone()
        };
        for round in 1..=ROUNDS {
            begun.store(round, Ordering::Release);
            while done.load(Ordering::Acquire) < round * WRITERS as u32 {
                copy_what_is_told();
            }
            let copied = copy_what_is_told();
            let written: Vec<u64> = memory.iter().map(|page| page.load(Ordering::Relaxed)).collect();
            assert_eq!(copied, written, "a write was lost in round {round}");
        }
    });
}
