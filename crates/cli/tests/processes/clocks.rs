//! Clocks that jump, and hosts whose clocks differ.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::host::{Host, MODELS, serve};
use crate::migration::{PATIENT, receive, send_within};
use crate::root::is_allowed;
use crate::seed::trials;
use crate::started::{Started, started_by};
use crate::support::skip;

/// The library of the package `libfaketime`, which changes the time of day for one process.
fn library() -> Option<PathBuf> {
    let found = fs::read_dir("/usr/lib").ok()?.filter_map(Result::ok).map(|entry| entry.path());
    let mut files = found.map(|folder| folder.join("faketime/libfaketimeMT.so.1"));
    let file = files.find(|file| file.exists());
    if file.is_none() {
        skip("a clock that jumps", "the package libfaketime is not installed");
    }
    file
}

/// Lets a command see the time of day that a file says.
fn with_clock(mut command: Command, library: &Path, file: &Path) -> Command {
    command.env("LD_PRELOAD", library).env("FAKETIME_TIMESTAMP_FILE", file);
    command.env("FAKETIME_NO_CACHE", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    command
}

/// Sets a clock, at once: a file that is only half written says no time.
fn set(file: &Path, time: &str) {
    let new = file.with_extension("new");
    fs::write(&new, format!("@{time}\n")).unwrap();
    fs::rename(&new, file).unwrap();
}

const TIMES: [&str; 3] = ["2040-01-01 00:00:00", "2000-01-01 00:00:00", "2040-06-01 00:00:00"];

/// Ends the jumps, also when a test fails.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_time_of_day_that_jumps_years_changes_nothing() {
    let Some(library) = library() else { return };
    let folder = tempfile::tempdir().unwrap();
    let clock = folder.path().join("clock");
    for time in TIMES {
        set(&clock, time);
        let mut date = Command::new("date");
        date.arg("+%Y");
        let year = with_clock(date, &library, &clock).output().unwrap().stdout;
        assert_eq!(String::from_utf8(year).unwrap().trim_end(), &time[..4], "the clock is not in force");
    }
    let serves = |model: &str, socket: &Path| with_clock(serve(model, socket), &library, &clock);
    let [source, destination] = [(); 2].map(|()| Host::try_with(&MODELS, serves).unwrap());
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _ends = Ends(&is_over);
        scope.spawn(|| {
            let mut times = TIMES.iter().cycle();
            while !is_over.load(Ordering::Relaxed) {
                set(&clock, times.next().unwrap());
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        trials("a_time_of_day_that_jumps", 2, 20, |seed, rng| {
            let [from, to] = if seed % 2 == 0 { [&source, &destination] } else { [&destination, &source] };
            from.reset();
            from.work(rng);
            let contents = from.contents();
            let address = to.new_address();
            let mut receiver = Started::plain(with_clock(receive(to, &address), &library, &clock));
            receiver.wait_for("listening at ").unwrap();
            let send = send_within(from, &address, &[PATIENT, "--timeout=60"]);
            Started::plain(with_clock(send, &library, &clock)).end().succeeded();
            receiver.end().succeeded();
            to.assert_runs_with(&contents, "the clock jumped");
        });
    });
}

/// A command on a host that has been up for 50 days longer.
fn on_an_older_host(command: &Command) -> Command {
    let days = (50 * 24 * 3600).to_string();
    started_by(&["unshare", "--time", "--monotonic", &days, "--boottime", &days, "--kill-child"], command)
}

#[test]
fn hosts_that_have_been_up_for_different_times_migrate_both_ways() {
    if !is_allowed(
        "hosts with other clocks",
        "unshare --time --monotonic 5000 --boottime 5000 --kill-child true",
    ) {
        return;
    }
    trials("been_up_for_different_times", 1, 10, |_, rng| {
        let young = Host::start();
        let old = Host::try_with(&MODELS, |model, socket| on_an_older_host(&serve(model, socket))).unwrap();
        young.work(rng);
        let contents = young.contents();
        for is_old in [true, false] {
            let [from, to] = if is_old { [&young, &old] } else { [&old, &young] };
            let on = |is_old: bool, command: Command| {
                Started::plain(if is_old { on_an_older_host(&command) } else { command })
            };
            let address = to.new_address();
            let mut receiver = on(is_old, receive(to, &address));
            receiver.wait_for("listening at ").unwrap();
            on(!is_old, send_within(from, &address, &[PATIENT])).end().succeeded();
            receiver.end().succeeded();
            to.assert_runs_with(&contents, "another clock");
        }
    });
}
