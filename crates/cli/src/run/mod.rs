//! `whimbrel run`: runs an unmodified VFIO program on models.

mod signals;

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitCode, ExitStatus};
use std::sync::Arc;

use clap::Args;
use parking_lot::Mutex;
use rustix::process::{Pid, Resource, Rlimit, WaitId, WaitIdOptions, getrlimit, setrlimit, waitid};
use whimbrel_device::ResetRule;
use whimbrel_device::wrap::fault::Faults;
use whimbrel_engine::channel::Interrupt;
use whimbrel_interpose::run::{Address, Child, Command, RunError};
use whimbrel_interpose::trace::Options;
use whimbrel_models::Model;

use self::signals::Signals;
use crate::failure::Failure;
use crate::fault::{self, DeviceFaults};
use crate::output::{Output, note};
use crate::reset_rule;
use crate::target::parse_model;
use crate::trace::printing::{Printer, Printing};
use crate::unreachable_fault;
use crate::usage::json_beside;

/// Run an unmodified VFIO program on models
///
/// The program finds the devices in sysfs and /dev like those of a host, and uses them by group and container, or by
/// their own files and iommufd. Neither the kernel's VFIO nor any rights are needed. Its descendants are served too.
///
/// io_uring is refused (ENOSYS). The devices of the host are hidden from the program.
#[derive(Debug, Args)]
#[command(
    after_help = AFTER_HELP,
    arg = json_beside(JSON),
    mut_group("printing", |options| options.requires("trace"))
)]
pub(crate) struct Arguments {
    /// A model (serial, accel, legacy or nvme, with settings as in `whimbrel --help`), optionally with its PCI address as
    /// `,name=0100:00:00.0`. Repeat it for several devices
    #[arg(long = "device", value_name = "MODEL[,name=ADDRESS]", required = true, value_parser = parse_device)]
    devices: Vec<Device>,
    #[arg(long, value_name = "[ADDRESS] FAULT", help = fault::HELP, long_help = fault::long_help_with_addresses())]
    fault: Vec<DeviceFaults>,
    /// Show what the program asks of the devices: each request decoded, with result and duration, as `whimbrel trace` does,
    /// without ptrace. With --json each line is one object, on stderr or in FILE
    #[arg(long)]
    trace: bool,
    #[command(flatten)]
    printing: Printing,
    /// Effect of the program's reset of a device (VFIO_DEVICE_RESET) on a migration under way [default: ends-migration]
    ///
    /// In the kernel it ends the migration, so that a VMM whose guest resets a device in pre-copy has to try again. With
    /// keeps-precopy, a device in PRE_COPY or PRE_COPY_P2P is reset and keeps its state and session.
    #[arg(long, value_name = "RULE", value_parser = reset_rule::parse)]
    reset_rule: Option<ResetRule>,
    /// The program and its arguments
    #[arg(value_name = "PROGRAM", required = true, trailing_var_arg = true)]
    program: Vec<OsString>,
}

const JSON: &str = "Print a failure of this command as one JSON object to stderr: {\"error\": .., \"hint\": ..}, and with --trace \
each line of the trace as an object. Use -o with that, which keeps the objects apart from what the program prints";

const AFTER_HELP: &str = "\
The first device without an address gets 0100:00:00.0, the next one 0100:00:01.0, and so on, without those that are given \
to others. The addresses are printed.

The exit status is that of the program, and a signal that ends the program ends this too. 127: the program is missing, \
126: it cannot be executed, 2: wrong usage, 125: anything else has failed.

SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1 and SIGUSR2 are passed on to the program. Send them to this process, not to its \
process group: the program would get them twice.

Examples:
  whimbrel run --device serial -- whimbrel probe 0100:00:00.0
  whimbrel run --device serial -- qemu-system-x86_64 -device vfio-pci,host=0100:00:00.0
  whimbrel run --device 'accel?state=1GiB' --device serial,name=0200:03:00.0 -- ./my-vfio-test
  whimbrel run --device serial --trace -- whimbrel probe 0100:00:00.0
  whimbrel run --device serial --fault 'reset: EIO once' -- whimbrel reset 0100:00:00.0";

/// A device on the command line.
#[derive(Clone, Debug)]
struct Device {
    model: Model,
    address: Option<Address>,
}

/// A device that has been opened.
struct Opened<'a> {
    address: Address,
    model: &'a Model,
    faults: Faults,
}

/// The exit status of wrong usage.
const MISUSED: u8 = 2;

/// The exit status of any other failure of the run itself.
const FAILED: u8 = 125;

fn parse_device(text: &str) -> Result<Device, String> {
    let (model, address) = match text.rsplit_once(",name=") {
        Some((model, address)) => {
            (model, Some(address.parse().map_err(|error| format!("invalid name: {error}"))?))
        }
        None => (text, None),
    };
    let model = parse_model(model).map_err(|error| error.to_string())?;
    Ok(Device { model, address })
}

/// The reason why a program does not run.
enum Unstarted {
    /// A failure, with the exit status.
    Failed(Failure, u8),
    /// A signal would have killed the program, or has killed its process before it was the program.
    Killed(i32),
}

impl Unstarted {
    fn misused(failure: Failure) -> Unstarted {
        Unstarted::Failed(failure, MISUSED)
    }

    fn failed(failure: Failure) -> Unstarted {
        Unstarted::Failed(failure, FAILED)
    }
}

impl From<RunError> for Unstarted {
    fn from(error: RunError) -> Unstarted {
        match error {
            RunError::Killed(signal) => Unstarted::Killed(signal),
            error => Unstarted::Failed(Failure::from_error(&error).hint_if(error.advice()), error.status()),
        }
    }
}

/// Runs the command. A program that has run decides the exit status.
pub(crate) fn run(arguments: &Arguments, output: Output) -> ExitCode {
    let uncaught = |error| fail(output, &Failure::from_io("cannot catch signals", &error), FAILED);
    let interrupt = match Interrupt::new() {
        Ok(interrupt) => interrupt,
        Err(error) => return uncaught(error),
    };
    let printer = arguments.trace.then(|| Printer::open(&arguments.printing, output, &interrupt)).transpose();
    let printer = match printer {
        Ok(printer) => printer.map(|printer| Arc::new(Mutex::new(printer))),
        Err(failure) => return fail(output, &failure, FAILED),
    };
    // From here on a signal that ended this process alone would leave the program without its devices. Before, it ends the
    // wait for somebody who reads the trace.
    let signals = match Signals::catch() {
        Ok(signals) => signals,
        Err(error) => return uncaught(error),
    };
    let started = prepare(arguments, output, printer.clone()).and_then(|command| start(command, signals));
    let (child, signals) = match started {
        Ok(started) => started,
        Err(Unstarted::Failed(failure, status)) => return fail(output, &failure, status),
        Err(Unstarted::Killed(signal)) => return end_by(signal),
    };
    let status = supervise(child, signals, interrupt);
    // All that happened has been printed.
    let written = printer.as_ref().map_or(Ok(()), |printer| printer.lock().finish());
    match status.and_then(|status| written.map(|()| status)) {
        Ok(status) => {
            if !output.is_json() && printer.is_some_and(|printer| !printer.lock().has_seen()) {
                note("no VFIO request was seen: the program has not used its devices");
            }
            end_like(status)
        }
        Err(failure) => fail(output, &failure, FAILED),
    }
}

fn fail(output: Output, failure: &Failure, status: u8) -> ExitCode {
    // stdout is the program's.
    output.failure_beside(failure);
    ExitCode::from(status)
}

/// Returns the command that starts the program, with its devices, which are printed.
fn prepare(
    arguments: &Arguments,
    output: Output,
    printer: Option<Arc<Mutex<Printer>>>,
) -> Result<Command, Unstarted> {
    // It is required on the command line.
    let (program, rest) = arguments
        .program
        .split_first()
        .ok_or_else(|| Unstarted::misused(Failure::usage("no program is given")))?;
    let mut command = Command::new(program);
    command.args(rest);
    // Devices without an address get one of those that are left.
    let mut devices: Vec<&Device> = arguments.devices.iter().collect();
    devices.sort_by_key(|device| device.address.is_none());
    let mut opened: Vec<Opened<'_>> = Vec::new();
    for Device { model, address } in &devices {
        if let Some(twice) = address.filter(|address| opened.iter().any(|other| other.address == *address)) {
            let failure = Failure::usage(format!("two devices have the address {twice}"));
            return Err(Unstarted::misused(failure.hint("choose another address for one of them, or none")));
        }
        let address = address.map_or_else(|| command.free_address(), Ok)?;
        let faults = faults_of(address, &arguments.fault);
        let device = model.open_for_programs(address.to_string(), faults.clone()).map_err(|error| {
            Unstarted::failed(Failure::new(format!("'{model}' cannot be opened: {error}")))
        })?;
        let rule = arguments.reset_rule.unwrap_or_default();
        device.set_reset_rule(rule).map_err(|errno| {
            let why = format!(
                "'{model}' cannot have this --reset-rule, with which a reset {}: {errno}",
                rule.text()
            );
            Unstarted::failed(Failure::new(why))
        })?;
        command.device(device)?;
        opened.push(Opened { address, model, faults });
    }
    check_faults(&arguments.fault, &opened).map_err(Unstarted::misused)?;
    // Between objects for scripts there is no other line.
    if !(arguments.trace && arguments.printing.is_to_stderr() && output.is_json()) {
        for (files, Opened { model, .. }) in command.devices().iter().zip(opened) {
            let (group, cdev) = (files.group.display(), files.cdev.display());
            note(format_args!("{model} at {}: {group}, {cdev}", files.address));
        }
    }
    if let Some(printer) = printer {
        let options = Options::default().hex(arguments.printing.hex);
        command.trace(options, move |event| printer.lock().take(&event));
    }
    Ok(command)
}

/// Starts the program.
fn start(command: Command, mut signals: Signals) -> Result<(Child, Signals), Unstarted> {
    if let Some(signal) = signals.fatal_before_program() {
        return Err(Unstarted::Killed(signal));
    }
    let child = command.spawn()?;
    // Not before: the program is to have the limit that the user gave, and its data files have numbers near that.
    raise_open_files();
    Ok((child, signals))
}

/// Lets this process have as many descriptors as it may: each file that the program opens takes two here.
fn raise_open_files() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    // With the limit as it is, requests that lack descriptors are refused with a warning.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

/// Returns the faults of the device with this address.
fn faults_of(address: Address, faults: &[DeviceFaults]) -> Faults {
    let its = |faults: &&DeviceFaults| faults.address.is_none_or(|its| its == address);
    Faults::new(faults.iter().filter(its).flat_map(|its| its.faults.iter().cloned()))
}

/// Checks that each fault is for one of the devices, that it is clear for which, and that it can happen there.
fn check_faults(faults: &[DeviceFaults], devices: &[Opened<'_>]) -> Result<(), Failure> {
    let all: Vec<String> = devices.iter().map(|device| device.address.to_string()).collect();
    let all = all.join(", ");
    for DeviceFaults { address, faults } in faults {
        match address {
            Some(address) if !devices.iter().any(|device| device.address == *address) => {
                return Err(Failure::usage(format!(
                    "no device has the address {address} of --fault '{faults}'"
                ))
                .hint(format!("the addresses are {all}")));
            }
            None if devices.len() > 1 => {
                return Err(Failure::usage(format!(
                    "--fault '{faults}' does not say which device it is for"
                ))
                .hint(format!("begin it with one of the addresses {all}")));
            }
            _ => {}
        }
    }
    devices.iter().try_for_each(|Opened { address, model, faults }| {
        unreachable_fault::check(faults, model, &format!("device {address}"))
    })
}

/// Waits for the program, and passes signals on to it meanwhile. What it has started is served as long as it has a device
/// open; a signal ends that.
fn supervise(mut child: Child, signals: Signals, interrupt: Interrupt) -> Result<ExitStatus, Failure> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| Failure::new("the program's process has no number"))?;
    let running = Arc::new(Mutex::new(Some(pid)));
    signals
        .pass_on(running.clone(), child.stopper(), interrupt)
        .map_err(|error| Failure::from_io("cannot start a thread for signals", &error))?;
    // Its number is free for other processes only once it is waited for.
    while let Err(rustix::io::Errno::INTR) =
        waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT)
    {}
    *running.lock() = None;
    let status = child.wait().map_err(|error| Failure::from_io("cannot wait for the program", &error))?;
    child.wait_until_unused();
    Ok(status)
}

/// Ends this process as the program has ended.
fn end_like(status: ExitStatus) -> ExitCode {
    match status.signal() {
        Some(signal) => end_by(signal),
        None => ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(FAILED)),
    }
}

/// Ends this process by a signal.
fn end_by(signal: i32) -> ExitCode {
    // The core dump, if any, is the program's.
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    let _ = signal_hook::low_level::emulate_default_handler(signal);
    // A signal that cannot be raised: what a shell returns for it.
    ExitCode::from(u8::try_from(128 + signal).unwrap_or(FAILED))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_device_is_told_from_a_comma_in_its_settings() {
        let device = parse_device("accel?features=stop-copy,p2p,name=0200:03:00.0").unwrap();
        assert_eq!(device.address.unwrap().to_string(), "0200:03:00.0");
        assert!(device.model.to_string().contains("stop-copy,p2p"));
        assert!(parse_device("accel?features=stop-copy,p2p").unwrap().address.is_none());
    }

    #[test]
    fn a_name_that_is_no_address_is_refused() {
        assert_eq!(
            parse_device("serial,name=first").unwrap_err(),
            "invalid name: expected the address of a PCI function, such as 0100:00:00.0"
        );
    }
}
