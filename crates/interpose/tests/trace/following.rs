//! Threads and processes are followed wherever they come from.

use std::collections::BTreeMap;

use libtest_mimic::Trial;
use whimbrel_interpose::trace::Options;

use super::programs::{RESETS, THREADS};
use super::{test, trace, trace_with};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        test("following::each_request_of_each_thread_is_seen_once", threads),
        test("following::children_and_their_children_are_followed", forks),
        test("following::programs_that_are_started_are_followed", spawns),
        test("following::a_thread_that_becomes_another_program_is_followed", exec_in_a_thread),
        test("following::what_outlives_the_program_is_followed_to_its_end", daemon),
    ]
}

fn threads() {
    for options in [Options::default(), Options::default().all_io(true)] {
        let traced = trace_with("threads", options, 0);
        let mut by_thread = BTreeMap::new();
        for (record, _) in traced.requests("VFIO_DEVICE_RESET") {
            *by_thread.entry(record.thread).or_insert(0) += 1;
            assert_eq!(record.process, traced.records()[0].process);
        }
        assert_eq!(by_thread.values().copied().collect::<Vec<_>>(), vec![RESETS; THREADS]);
    }
}

fn forks() {
    let traced = trace("fork", 0);
    let resets = traced.requests("VFIO_DEVICE_RESET");
    let processes: std::collections::BTreeSet<u32> =
        resets.iter().map(|(record, _)| record.process).collect();
    assert_eq!((resets.len(), processes.len()), (3, 3), "{resets:?}");
    assert!(
        resets.iter().all(|(record, _)| record.process == record.thread && &*record.on.name == "/dev/null")
    );
}

fn spawns() {
    let traced = trace("spawn", 0);
    assert_eq!(traced.requests("VFIO_DEVICE_RESET").len(), 3);
}

fn exec_in_a_thread() {
    let traced = trace("exec_in_a_thread", 7);
    let (before, after) = (traced.requests("VFIO_DEVICE_RESET"), traced.requests("VFIO_DEVICE_FEATURE"));
    assert_eq!((before.len(), after.len()), (1, 1));
    let (before, after) = (before[0].0, after[0].0);
    assert_eq!(
        (after.process, after.thread),
        (before.process, before.thread),
        "it has taken over the process"
    );
}

fn daemon() {
    let traced = trace("daemon", 6);
    assert_eq!(traced.requests("VFIO_DEVICE_RESET").len(), 1);
}
