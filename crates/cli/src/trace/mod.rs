//! `whimbrel trace`: shows what a program asks of VFIO devices.

pub(crate) mod printing;
mod target;

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::process::ExitCode;

use clap::Args;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::SignalsInfo;
use signal_hook::iterator::exfiltrator::raw::WithRawSiginfo;
use whimbrel_engine::channel::Interrupt;
use whimbrel_interpose::trace::{Event, Options, TraceError, Tracer};

use self::printing::{Printer, Printing};
use crate::failure::Failure;
use crate::output::{Output, note};
use crate::signals::is_ignored;
use crate::usage::json_beside;

/// Run a program and show what it asks of VFIO devices: each request decoded, with result and duration
///
/// Works with any program and any device: the program's VFIO and iommufd requests are stopped by a seccomp filter and read
/// by ptrace. Its other system calls run untouched, unless --all-io is used. Processes and threads that it starts are
/// traced too.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP, arg = json_beside(JSON))]
pub(crate) struct Arguments {
    /// The program and its arguments
    #[arg(value_name = "PROGRAM", required = true, trailing_var_arg = true)]
    command: Vec<OsString>,
    #[command(flatten)]
    printing: Printing,
    /// Show every open, read, write, mmap, dup and close of a VFIO file. Slows down all such calls of the program
    ///
    /// Without this option these are shown: accesses at offsets from 2^40 on (the regions of the kernel's drivers but
    /// region 0), and, while a data file is open, the calls of threads that opened it or make a request meanwhile.
    #[arg(long)]
    all_io: bool,
}

const JSON: &str = "Print each line of the trace as a JSON object, and a failure as {\"error\": .., \"hint\": ..} to stderr. Use -o \
with it, which keeps the objects apart from warnings and from what the program prints";

const AFTER_HELP: &str = "\
The program runs with no_new_privs: setuid programs get no rights. It is killed if the trace is killed. SIGINT and SIGQUIT \
end the trace only by ending the program; SIGTERM and SIGHUP are passed to the program. Send them to this process, not to its \
process group: the program would get them twice.

Exit status: that of the program, 128 + N if signal N killed it; 125 if the trace failed, 126 if the program cannot be \
executed, 127 if it does not exist, 2 for wrong usage.

Examples:
  whimbrel trace -- whimbrel probe 0000:3b:00.2
  whimbrel trace --summary -- ./my-vmm --device 0000:3b:00.2
  whimbrel trace --json -o requests.jsonl -- qemu-system-x86_64 -device vfio-pci,host=3b:00.2";

/// Signals with their senders.
type Caught = SignalsInfo<WithRawSiginfo>;

/// The exit status of a failure of the trace itself.
const FAILED: u8 = 125;

/// Runs the command. The exit status is the program's.
pub(crate) fn run(arguments: &Arguments, output: Output) -> ExitCode {
    match trace(arguments, output) {
        Ok(status) => ExitCode::from(status),
        Err((failure, status)) => {
            output.failure_beside(&failure);
            ExitCode::from(status)
        }
    }
}

fn trace(arguments: &Arguments, output: Output) -> Result<u8, (Failure, u8)> {
    let own = |failure: Failure| (failure, FAILED);
    let signal = Interrupt::new().map_err(|error| own(Failure::from_io("cannot catch signals", &error)))?;
    let mut printer = Printer::open(&arguments.printing, output, &signal).map_err(own)?;
    let signals = caught().map_err(|error| own(Failure::from_io("cannot catch signals", &error)))?;
    let options = Options::default().all_io(arguments.all_io).hex(arguments.printing.hex);
    let tracer = Tracer::start(&arguments.command, options).map_err(not_traced)?;
    pass_on(signals, &tracer, signal).map_err(own)?;
    let ended = tracer.run(&mut |event: Event| printer.take(&event)).map_err(not_traced)?;
    printer.finish().map_err(own)?;
    if !printer.has_seen() && !output.is_json() {
        note("no VFIO request was seen; those that `whimbrel run` answers do not reach a trace");
    }
    Ok(ended.status())
}

fn not_traced(error: TraceError) -> (Failure, u8) {
    // Its message has the cause.
    (Failure::new(error.to_string()).hint_if(error.advice()), error.status())
}

/// Catches the signals that would end the trace before the program, but for those that are ignored: the program must
/// ignore them too.
fn caught() -> io::Result<Caught> {
    Caught::new([SIGINT, SIGQUIT, SIGTERM, SIGHUP].into_iter().filter(|signal| !is_ignored(*signal)))
}

/// Passes signals on to the program until it ends. Those of the terminal reach the program by themselves.
fn pass_on(mut signals: Caught, tracer: &Tracer, signal: Interrupt) -> Result<(), Failure> {
    let program: Option<OwnedFd> = i32::try_from(tracer.process())
        .ok()
        .and_then(Pid::from_raw)
        .and_then(|process| pidfd_open(process, PidfdFlags::empty()).ok());
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            for info in signals.forever() {
                signal.set();
                let passed = match info.si_signo {
                    SIGTERM => Signal::TERM,
                    SIGHUP => Signal::HUP,
                    _ => continue,
                };
                // Sent by a process, not by the terminal.
                if let (Some(program), ..=0) = (&program, info.si_code) {
                    // It fails once the program has ended.
                    let _ = pidfd_send_signal(program, passed);
                }
            }
        })
        .map(|_| ())
        .map_err(|error| Failure::from_io("cannot start a thread for signals", &error))
}
