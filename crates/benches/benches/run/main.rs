//! The cost of `whimbrel run` to a program: its system calls, its accesses to a device, whole programs, and DMA to its
//! memory; bare, under `run`, and under `trace`, in turns.
//!
//! A name after `--` runs one part: calls, memory, fio, qemu, or program with a command.
#![allow(clippy::unwrap_used)]
#![allow(unsafe_code, reason = "bare system calls are measured")]

mod calls;
mod memory;
mod programs;

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::hint::black_box;
use std::process::{Command, Stdio};

use whimbrel_interpose::run;
use whimbrel_interpose::trace::{Ended, Event, Options, Tracer};
use whimbrel_models::Model;

/// Set for a program that is measured, to the part.
const INSIDE: &str = "WHIMBREL_BENCH_INSIDE";
/// Set for the process that serves a program, to the model of the device.
const SERVER: &str = "WHIMBREL_BENCH_SERVER";
/// Set for a process that serves a program with a trace.
const TRACED: &str = "WHIMBREL_BENCH_TRACED";
/// Set for the process that traces a program.
const TRACER: &str = "WHIMBREL_BENCH_TRACER";
/// Set for a program that has a device, to the path of the device's own file.
const DEVICE: &str = "WHIMBREL_BENCH_DEVICE";

/// A way to run a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Bare,
    /// On a device of this model.
    Run(&'static str),
    /// The same, with a trace of what it asks.
    RunTraced(&'static str),
    /// Without a device, under ptrace.
    Trace,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Way::Bare => "bare",
            Way::Run(_) => "run",
            Way::RunTraced(_) => "run --trace",
            Way::Trace => "trace",
        })
    }
}

fn main() {
    // The program inherits what its server or tracer was told.
    match std::env::var(INSIDE).as_deref() {
        Ok("calls") => return calls::inside(),
        Ok("memory") => return memory::inside(),
        _ => {}
    }
    if let Ok(model) = std::env::var(SERVER) {
        return serve(&model);
    }
    if std::env::var_os(TRACER).is_some() {
        return trace();
    }
    // Cargo adds an option of its own.
    let mut arguments = std::env::args_os().skip(1).filter(|argument| argument != "--bench");
    let part = arguments.next();
    let is = |name: &str| part.as_ref().is_none_or(|part| part == name);
    if part.as_deref() == Some(OsStr::new("program")) {
        return programs::measure("program", &arguments.collect::<Vec<_>>());
    }
    if is("calls") {
        calls::measure();
    }
    if is("memory") {
        memory::measure();
    }
    if is("fio") {
        programs::measure_fio();
    }
    if is("qemu") {
        programs::measure_qemu();
    }
}

/// Returns a command that runs a program in one of the ways.
fn command(way: Way, program: &[OsString]) -> Command {
    let mut command = match way {
        Way::Bare => Command::new(&program[0]),
        Way::Run(model) => served(SERVER, model, &program[0]),
        Way::RunTraced(model) => {
            let mut command = served(SERVER, model, &program[0]);
            command.env(TRACED, "1");
            command
        }
        Way::Trace => served(TRACER, "", &program[0]),
    };
    command.args(&program[1..]).stdin(Stdio::null());
    command
}

fn served(name: &str, value: &str, program: &OsStr) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env(name, value).arg(program);
    command
}

/// Returns a command that measures a part inside, in one of the ways.
fn measurement(way: Way, part: &str) -> Command {
    let inside = ["env".into(), format!("{INSIDE}={part}").into(), std::env::current_exe().unwrap().into()];
    command(way, &inside)
}

/// Serves a program, as the command does.
fn serve(model: &str) {
    let mut arguments = std::env::args_os().skip(1);
    let mut command = run::Command::new(arguments.next().unwrap());
    let address = command.free_address().unwrap().to_string();
    let model: Model = model.parse().unwrap();
    command
        .device(model.open_for_programs(address, whimbrel_device::wrap::fault::Faults::default()).unwrap())
        .unwrap();
    let device = command.devices().remove(0);
    command.args(arguments).env(DEVICE, device.cdev).env_remove(SERVER);
    if std::env::var_os(TRACED).is_some() {
        command.trace(Options::default(), |event| print(&event));
    }
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{error}: {:?}", error.advice()));
    let status = child.wait().unwrap();
    assert!(status.success(), "{status}");
}

/// Traces a program as the command does.
fn trace() {
    let command: Vec<OsString> = std::env::args_os().skip(1).collect();
    let ended = Tracer::start(&command, Options::default()).unwrap().run(&mut |event| print(&event)).unwrap();
    assert_eq!(ended, Ended::Exited(0));
}

/// Makes the line of a record, for nobody.
fn print(event: &Event) {
    if let Event::Record(record) = event {
        black_box(record.to_string());
    }
}

/// Returns the lines that a measurement inside prints: a name and a number each.
fn lines(mut command: Command) -> Vec<(String, f64)> {
    let output = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", output.status);
    let text = String::from_utf8(output.stdout).unwrap();
    let line = |line: &str| {
        let (name, value) = line.rsplit_once(' ').unwrap();
        (name.to_string(), value.parse().unwrap())
    };
    text.lines().map(line).collect()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
