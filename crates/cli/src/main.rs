//! The command line. It parses, calls one floor down, and prints; what it prints and when is the business of one file
//! a command.

mod devices;
mod failure;
mod fsm;
mod inspect;
mod logging;
mod output;
mod probe;
mod progress;
mod receive;
mod restore;
mod save;
mod send;
mod target;

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::output::Output;

/// Move VFIO devices between hosts while they work, and look at how they do it.
#[derive(Debug, Parser)]
#[command(name = "whimbrel", version, arg_required_else_help = true, after_help = AFTER_HELP)]
struct CommandLine {
    #[command(flatten)]
    general: General,
    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
A TARGET names a device:
  0000:3b:00.2            a PCI device of this host: by its own file where it has one, else by its group
  c9de1dcb-...            a mediated device of this host, likewise
  group:0000:3b:00.2      by its IOMMU group, whatever else there is
  cdev:/dev/vfio/devices/vfio0
                          by its own file (iommufd)
  model:serial?ports=2    a model that lives in this process, with its settings

Results go to stdout, all else to stderr. The exit status is 0 if it is done, 1 if it failed, 2 for wrong usage.

Examples:
  whimbrel devices                                   what this host has
  whimbrel probe 0000:3b:00.2                        everything a device says of itself
  whimbrel receive 0000:3b:00.2 --listen [::]:4000   on the host that takes the device
  whimbrel send 0000:3b:00.2 --to other-host:4000    on the host that gives it away
  whimbrel fsm RUNNING STOP_COPY                     the arcs a driver executes on the way";

#[derive(Debug, Args)]
struct General {
    /// Print one JSON object to stdout instead of text. A failure prints {"error": .., "hint": ..} there as well
    #[arg(long, global = true)]
    json: bool,
    /// Tell on stderr what is done; twice: in detail. The variable WHIMBREL_LOG, a filter such as
    /// `whimbrel_engine=trace`, says it more exactly
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
}

#[derive(Debug, Subcommand)]
enum Command {
    Devices(devices::Arguments),
    Probe(probe::Arguments),
    Save(save::Arguments),
    Restore(restore::Arguments),
    Send(send::Arguments),
    Receive(receive::Arguments),
    Fsm(fsm::Arguments),
    Inspect(inspect::Arguments),
}

fn main() -> ExitCode {
    let CommandLine { general, command } = CommandLine::parse();
    let output = Output::new(general.json, general.verbose > 0);
    let result = logging::start(general.verbose).and_then(|()| match &command {
        Command::Devices(arguments) => devices::run(arguments, output),
        Command::Probe(arguments) => probe::run(arguments, output),
        Command::Save(arguments) => save::run(arguments, output),
        Command::Restore(arguments) => restore::run(arguments, output),
        Command::Send(arguments) => send::run(arguments, output),
        Command::Receive(arguments) => receive::run(arguments, output),
        Command::Fsm(arguments) => fsm::run(arguments, output),
        Command::Inspect(arguments) => inspect::run(arguments, output),
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output.failure(&failure);
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        CommandLine::command().debug_assert();
    }
}
