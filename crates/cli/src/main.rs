//! The command line: parses arguments, calls the libraries and prints the results, with one file per command.

mod abi;
mod call_timeout;
mod check;
mod completions;
mod conform;
mod demo;
mod devices;
mod end;
mod failure;
mod fault;
#[cfg(test)]
mod fixed_device;
mod fsm;
mod inspect;
mod journal;
mod logging;
mod man;
mod model_text;
mod output;
mod probe;
mod progress;
mod receive;
mod remedy;
mod report;
mod reset;
mod reset_rule;
mod resolve;
mod restore;
mod run;
mod save;
mod send;
mod serve;
mod shown;
mod signals;
mod size;
mod state;
mod target;
mod tls;
mod trace;
mod unreachable_fault;
mod usage;
mod worker;

use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::output::Output;

/// Migrate VFIO devices live between hosts, and inspect and test their migration.
#[derive(Debug, Parser)]
#[command(name = "whimbrel", version = env!("WHIMBREL_VERSION"), arg_required_else_help = true, after_help = AFTER_HELP)]
struct CommandLine {
    #[command(flatten)]
    general: General,
    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
A TARGET names a device:
  0000:3b:00.2               a PCI device, opened by its own file, else by its group
  c9de1dcb-1f0c-...          a mediated device, by its UUID, opened likewise
  group:0000:3b:00.2         opened by its IOMMU group
  cdev:/dev/vfio/devices/vfio0
                             opened by its own file
  vfio-user:/run/accel       served by another process at this socket (`whimbrel serve`)
  model:serial               a model in this process, with optional settings:
  model:serial?ports=2&answers=mtty
                             1 or 2 ports; answers as vfio-pci or as mtty where they differ
  model:accel?state=1GiB&rate=10MiB&features=stop-copy,p2p,pre-copy
                             size of its state, rate of change per second
  model:nvme?image=disk.img&size=1GiB&readonly=no&queues=16
                             its blocks in a file or block device; size, to create it

Results go to stdout, everything else to stderr.
Exit status: 0 done, 1 failed, 2 wrong usage; conform also 3, nothing could be tested; run and trace
that of their program, 125 if they failed themselves.

Examples:
  whimbrel devices
  whimbrel probe 0000:3b:00.2
  whimbrel check 0000:3b:00.2 --to other-host:4000 --insecure
  whimbrel receive 0000:3b:00.2 --listen [::]:4000 --insecure   (on the destination; or with the options of TLS)
  whimbrel send 0000:3b:00.2 --to other-host:4000 --insecure    (on the source)
  whimbrel fsm RUNNING STOP_COPY";

#[derive(Debug, Args)]
#[command(next_help_heading = "General options")]
struct General {
    /// Print one JSON object to stdout instead of text; on failure and wrong usage {"error": .., "hint": ..}
    #[arg(long, global = true, display_order = 1000)]
    json: bool,
    /// Log to stderr (-vv for more detail). The variable WHIMBREL_LOG sets a filter, such as
    /// `whimbrel_engine=trace`
    #[arg(short, long, global = true, display_order = 1001, action = clap::ArgAction::Count)]
    verbose: u8,
}

#[derive(Debug, Subcommand)]
enum Command {
    Demo(demo::Arguments),
    #[command(hide = true)]
    DemoHost(demo::HostArguments),
    Devices(devices::Arguments),
    Probe(probe::Arguments),
    Check(Box<check::Arguments>),
    Save(save::Arguments),
    Restore(restore::Arguments),
    Send(send::Arguments),
    Receive(receive::Arguments),
    Resolve(resolve::Arguments),
    State(state::Arguments),
    Reset(reset::Arguments),
    Serve(serve::Arguments),
    Run(run::Arguments),
    Conform(Box<conform::Arguments>),
    #[command(hide = true)]
    ConformCases(conform::CasesArguments),
    Fsm(fsm::Arguments),
    #[command(hide = true)]
    FsmWalk(fsm::WalkArguments),
    Inspect(inspect::Arguments),
    Abi(abi::Arguments),
    Trace(trace::Arguments),
    Completions(completions::Arguments),
    Man(man::Arguments),
}

fn main() -> ExitCode {
    let CommandLine { general, command } = match CommandLine::try_parse() {
        Ok(command_line) => command_line,
        Err(answer) if usage::is_answer(&answer) => answer.exit(),
        Err(error) => {
            Output::new(usage::wants_json(std::env::args_os()), 0).wrong_usage(&error);
            return ExitCode::from(2);
        }
    };
    let output = Output::new(general.json, general.verbose);
    let started = logging::start(general.verbose);
    if let Command::Conform(arguments) = &command {
        return started.and_then(|()| conform::run(arguments, output)).unwrap_or_else(|failure| {
            output.failure(&failure);
            failure.status()
        });
    }
    if let Command::Trace(arguments) = &command {
        return match started {
            Ok(()) => trace::run(arguments, output),
            Err(failure) => {
                output.failure_beside(&failure);
                failure.status()
            }
        };
    }
    if let Command::Run(arguments) = &command {
        return match started {
            Ok(()) => run::run(arguments, output),
            Err(failure) => {
                output.failure_beside(&failure);
                ExitCode::from(125)
            }
        };
    }
    let result = started.and_then(|()| match &command {
        Command::Demo(arguments) => demo::run(arguments, output),
        Command::DemoHost(arguments) => demo::run_host(arguments),
        Command::Devices(arguments) => devices::run(arguments, output),
        Command::Probe(arguments) => probe::run(arguments, output),
        Command::Check(arguments) => check::run(arguments, output),
        Command::Save(arguments) => save::run(arguments, output),
        Command::Restore(arguments) => restore::run(arguments, output),
        Command::Send(arguments) => send::run(arguments, output),
        Command::Receive(arguments) => receive::run(arguments, output),
        Command::Resolve(arguments) => resolve::run(arguments, output),
        Command::State(arguments) => state::run(arguments, output),
        Command::Reset(arguments) => reset::run(arguments, output),
        Command::Serve(arguments) => serve::run(arguments, output),
        // Their exit status is a result.
        Command::Conform(_) | Command::Run(_) | Command::Trace(_) => Ok(()),
        Command::ConformCases(arguments) => conform::run_cases(arguments),
        Command::Fsm(arguments) => fsm::run(arguments, output),
        Command::FsmWalk(arguments) => fsm::run_walk(arguments),
        Command::Inspect(arguments) => inspect::run(arguments, output),
        Command::Abi(arguments) => abi::run(arguments, output),
        Command::Completions(arguments) => completions::run(arguments, CommandLine::command(), output),
        Command::Man(arguments) => man::run(arguments, CommandLine::command(), output),
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            match &command {
                Command::Save(arguments) if arguments.uses_stdout() => output.failure_beside(&failure),
                _ => output.failure(&failure),
            }
            failure.status()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        CommandLine::command().debug_assert();
    }
}
