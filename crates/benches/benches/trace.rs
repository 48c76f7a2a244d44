//! The cost of `whimbrel trace` to a program: its VFIO requests, its other system calls, and whole programs, without a
//! trace, under our own, and under strace.
#![allow(clippy::unwrap_used)]
#![allow(unsafe_code, reason = "bare system calls are measured")]

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use whimbrel_interpose::trace::{Options, Tracer};

/// Set for the program whose calls are measured.
const INSIDE: &str = "WHIMBREL_BENCH_INSIDE";
/// Set for the process that traces the program.
const TRACER: &str = "WHIMBREL_BENCH_TRACER";

/// Runs of each measurement, of which the median counts.
const RUNS: usize = 5;

/// The ways to run a program.
const WAYS: [&str; 4] = ["bare", "trace", "trace --all-io", "strace"];

fn main() {
    if std::env::var_os(INSIDE).is_some() {
        return inside();
    }
    if let Ok(options) = std::env::var(TRACER) {
        return tracer(&options);
    }
    let has_strace = Command::new("strace").arg("-V").stdout(Stdio::null()).status().is_ok();
    let ways: Vec<&str> = WAYS.into_iter().filter(|way| *way != "strace" || has_strace).collect();
    println!("nanoseconds per call ({})", ways.join(", "));
    let own = std::env::current_exe().unwrap();
    let mut times: Vec<Vec<Vec<f64>>> = Vec::new();
    for _ in 0..RUNS {
        for (way, name) in ways.iter().enumerate() {
            let program = ["env".into(), format!("{INSIDE}=1").into(), own.clone().into()];
            let output = run(name, &program).stdout(Stdio::piped()).output().unwrap();
            let text = String::from_utf8(output.stdout).unwrap();
            for (call, line) in text.lines().enumerate() {
                let time = line.rsplit_once(' ').unwrap().1.parse().unwrap();
                times.resize(times.len().max(call + 1), vec![Vec::new(); ways.len()]);
                times[call][way].push(time);
            }
        }
    }
    for (name, times) in CALLS.iter().zip(times) {
        let medians: Vec<String> = times.into_iter().map(|times| format!("{:9.0}", median(times))).collect();
        println!("{name:24}{}", medians.join(" "));
    }
    println!("milliseconds per program");
    for (name, program) in [
        ("find /usr", vec!["find", "/usr", "-xdev", "-size", "+1G"]),
        ("tar /usr/include", vec!["sh", "-c", "tar cf - -C /usr include | cat"]),
        ("200 processes", vec!["sh", "-c", "i=0; while [ $i -lt 200 ]; do /bin/true; i=$((i+1)); done"]),
    ] {
        let program: Vec<OsString> = program.into_iter().map(OsString::from).collect();
        let mut times = vec![Vec::new(); ways.len()];
        for _ in 0..RUNS {
            for (way, name) in ways.iter().enumerate() {
                let begun = Instant::now();
                run(name, &program).stdout(Stdio::null()).status().unwrap();
                times[way].push(begun.elapsed().as_secs_f64() * 1e3);
            }
        }
        let medians: Vec<String> = times.into_iter().map(|times| format!("{:9.1}", median(times))).collect();
        println!("{name:24}{}", medians.join(" "));
    }
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// A command that runs a program in one of the ways.
fn run(way: &str, program: &[OsString]) -> Command {
    let mut command = match way {
        "bare" => Command::new(&program[0]),
        "strace" => {
            let mut command = Command::new("strace");
            command.args(["-f", "--seccomp-bpf", "-e", "trace=ioctl", "-o", "/dev/null"]).arg(&program[0]);
            command
        }
        way => {
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.env(TRACER, way).arg(&program[0]);
            command
        }
    };
    command.args(&program[1..]).stderr(Stdio::null());
    command
}

/// Traces a program as the command does, with its lines to nowhere.
fn tracer(options: &str) {
    let command: Vec<OsString> = std::env::args_os().skip(1).collect();
    let options = Options::default().all_io(options.ends_with("all-io"));
    let mut nowhere = File::create("/dev/null").unwrap();
    let mut print = |event| {
        if let whimbrel_interpose::trace::Event::Record(record) = event {
            writeln!(nowhere, "{record}").unwrap();
        }
    };
    Tracer::start(&command, options).unwrap().run(&mut print).unwrap();
}

/// The measured calls, in the order of `inside`.
const CALLS: [&str; 6] =
    ["ioctl of VFIO", "ioctl of others", "getppid", "read of 4 KiB", "pread of 64 KiB", "open and close"];

/// Measures calls, and prints a line for each.
fn inside() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&vec![1; 1 << 20]).unwrap();
    let null = File::open("/dev/null").unwrap();
    let zero = File::open("/dev/zero").unwrap();
    let fd = null.as_raw_fd();
    let mut page = [0; 4096];
    let mut large = vec![0; 64 << 10];
    // SAFETY: VFIO_DEVICE_RESET and TIOCGWINSZ of /dev/null are refused at once.
    measure(CALLS[0], || unsafe { drop_result(libc::ioctl(fd, 0x3b6f, 0)) });
    // SAFETY: as above.
    measure(CALLS[1], || unsafe { drop_result(libc::ioctl(fd, 0x5413, 0)) });
    // SAFETY: getppid takes nothing.
    measure(CALLS[2], || unsafe { drop_result(libc::getppid()) });
    measure(CALLS[3], || (&zero).read_exact(&mut page).unwrap());
    measure(CALLS[4], || file.read_exact_at(&mut large, 0).unwrap());
    measure(CALLS[5], || drop(File::open("/dev/null").unwrap()));
}

fn drop_result(_: i32) {}

/// Calls for a tenth of a second, in rounds, and prints the nanoseconds per call.
fn measure(name: &str, mut call: impl FnMut()) {
    let (begun, mut calls) = (Instant::now(), 0_u32);
    while begun.elapsed() < Duration::from_millis(100) {
        (0..64).for_each(|_| call());
        calls += 64;
    }
    println!("{name} {}", begun.elapsed().as_nanos() as f64 / f64::from(calls));
}
