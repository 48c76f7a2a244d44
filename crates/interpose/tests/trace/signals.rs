//! Signals reach the program as without a trace.

use libtest_mimic::Trial;

use super::{test, trace};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        test("signals::each_signal_is_delivered_once", handlers),
        test("signals::a_stopped_process_stays_stopped_until_it_is_continued", stopped),
        test("signals::a_killed_child_is_killed_for_its_parent_too", killed_in_a_child),
        test("signals::a_program_has_the_default_of_sigpipe", pipe_signal),
    ]
}

fn handlers() {
    let traced = trace("handlers", 4);
    assert_eq!(traced.requests("VFIO_DEVICE_RESET").len(), 4);
}

fn stopped() {
    let traced = trace("stopped", 0);
    assert_eq!(traced.requests("VFIO_DEVICE_RESET").len(), 1);
}

fn killed_in_a_child() {
    trace("killed_in_a_child", 0);
}

fn pipe_signal() {
    trace("pipe_signal", 0);
}
