//! Programs in trouble under trace: they end as without one, and no request is lost.

use libtest_mimic::Trial;
use whimbrel_interpose::trace::{Ended, Event, Options, Tracer};

use super::cgroup::Group;
use super::programs::{MANY, WORK};
use super::{command, skip, test, trace};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        test("endurance::many_threads_ask_at_once", crowd),
        test("endurance::many_children_that_live_for_a_moment_are_followed", children),
        test("endurance::signals_all_the_time_disturb_no_request", showered),
        test("endurance::a_program_that_is_stopped_and_continued_again_and_again_finishes", stopped),
        test("endurance::programs_that_are_killed_at_work_are_reported_as_killed", killed),
        test("endurance::a_program_that_is_frozen_again_and_again_finishes", frozen),
    ]
}

fn crowd() {
    assert_eq!(trace("crowd", 0).requests("VFIO_DEVICE_RESET").len(), MANY);
}

fn children() {
    assert_eq!(trace("children", 0).requests("VFIO_DEVICE_RESET").len(), MANY);
}

fn showered() {
    assert!(trace("showered", 0).requests("VFIO_DEVICE_RESET").len() >= WORK);
}

fn stopped() {
    assert_eq!(trace("stopped_again_and_again", 0).requests("VFIO_DEVICE_RESET").len(), WORK);
}

fn killed() {
    trace("killed_at_work", 0);
}

fn frozen() {
    let tracer = Tracer::start(&command("works"), Options::default()).unwrap();
    let group = match Group::with(tracer.process()) {
        Ok(group) => group,
        Err(error) => {
            return skip("a program that is frozen", &format!("no control group of its own: {error}"));
        }
    };
    let mut requests = 0;
    let ends = std::sync::atomic::AtomicBool::new(false);
    let ended = std::thread::scope(|scope| {
        scope.spawn(|| {
            // A thread that its tracer has stopped counts as frozen, and stays so until the group is thawed.
            while !ends.load(std::sync::atomic::Ordering::Relaxed) {
                group.freeze();
                group.thaw();
            }
        });
        let ended = tracer.run(&mut |event| requests += usize::from(matches!(event, Event::Record(_))));
        ends.store(true, std::sync::atomic::Ordering::Relaxed);
        ended
    });
    assert_eq!((ended.unwrap(), requests), (Ended::Exited(0), WORK));
}
