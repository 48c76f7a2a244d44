//! `whimbrel demo`: a live migration on a single machine. A busy device and its memory migrate from one process to
//! another over TCP, and the result is verified. Each of the two hosts uses its device over vfio-user, from a server in
//! a process of its own, as with a real device back end; or in its own process.
//!
//! This process only starts the others ([`processes`]), passes messages, verifies their reports ([`verify`]), and
//! explains failures ([`explain`]). A host ([`host`]) has a machine ([`machine`]) with a device ([`attachment`]), and a
//! program that keeps the device busy ([`work`]).

mod attachment;
mod error;
mod evidence;
mod explain;
mod host;
mod jobs;
mod machine;
mod messages;
mod outcome;
mod processes;
mod verify;
mod work;

use std::path::PathBuf;

use clap::Args;
use whimbrel_engine::Observer;
use whimbrel_models::Model;

use self::error::DemoError;
use self::messages::{Config, Event, Evidence, Figures, Finished, Order, Place, Role};
use self::outcome::{Outcome, Text};
use self::processes::{Processes, unexpected};
use self::verify::Findings;
use crate::failure::Failure;
use crate::output::Output;
use crate::progress::Bar;
use crate::size;
use crate::target::Target;

pub(crate) use self::host::{Arguments as HostArguments, run as run_host};

/// Migrate a working device and its memory live between two processes, and verify that nothing was lost.
///
/// Starts two hosts on this machine, each a process, with a second process that serves its device over vfio-user. The
/// first host gives its device work through DMA memory: it fills, copies and checks blocks, and every completion is
/// checked. Meanwhile the device and all memory migrate to the second host over TCP, where the work continues. Needs
/// only this program, and leaves nothing behind.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Arguments {
    /// The device: model:accel with its settings, including protocol=v1 and protocol=draft; model:legacy, whose state
    /// is transferred 8 bytes at a time, which is slow with a server (see --in-process); or vfio-user:SOCKET, together
    /// with --destination
    #[arg(long, value_name = "TARGET", default_value = "model:accel?state=64MiB&rate=16MiB")]
    device: Target,
    /// The destination of a vfio-user:SOCKET in --device: a second socket, which serves the same model. The demo resets
    /// both devices before it begins, and leaves their servers running
    #[arg(long, value_name = "TARGET")]
    destination: Option<Target>,
    /// Run the models inside the two demo processes, without servers
    #[arg(long, conflicts_with = "destination")]
    in_process: bool,
    /// Guest memory, in bytes or with a unit such as 256MiB; at least 16 MiB, and at most half of the available memory
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = memory)]
    memory: u64,
    /// Rate at which the device writes memory, in bytes per second or with a unit such as 64MiB; at least 1 MiB, so
    /// that a loss would show
    #[arg(long, value_name = "BYTES/S", default_value = "64MiB", value_parser = rate)]
    dirty_rate: u64,
    /// Downtime limit, in milliseconds: stop once the predicted downtime is at most this
    #[arg(long, value_name = "MS", default_value_t = 300)]
    downtime_limit: u64,
    /// Give up after this many pre-copy rounds if the migration does not converge
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
    max_rounds: u32,
    /// Time that the device works before the migration, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 300)]
    work_before: u64,
    /// Time that the device works after the migration, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 500)]
    work_after: u64,
}

const AFTER_HELP: &str = "\
Examples:
  whimbrel demo
  whimbrel demo --device 'model:accel?state=1GiB&rate=64MiB' --memory 1GiB --dirty-rate 256MiB
  whimbrel demo --device vfio-user:a --destination vfio-user:b   (`whimbrel serve accel` serves at each)";

/// Parses the size of a machine's memory.
fn memory(text: &str) -> Result<u64, String> {
    size::parse(text).and_then(machine::check_memory).and_then(machine::check_available)
}

/// Parses a rate that is high enough for the device to complete jobs before and after the migration.
fn rate(text: &str) -> Result<u64, String> {
    match size::parse(text)? {
        bytes if bytes < 1 << 20 => Err("expected at least 1MiB (bytes per second)".to_string()),
        bytes => Ok(bytes),
    }
}

/// The devices that the demo migrates between.
#[derive(Debug, PartialEq, Eq)]
enum Devices {
    /// A model in each host, by a name that the hosts parse again.
    Inside(String),
    /// A model in two servers that the demo starts.
    Served(String),
    /// The devices of two running servers, at these sockets.
    Running(PathBuf, PathBuf),
}

impl Devices {
    fn new(device: &Target, destination: Option<&Target>, in_process: bool) -> Result<Devices, Failure> {
        match (device.clone(), destination.cloned()) {
            (Target::Model(model, name), None) => {
                if let Model::Serial(..) = model {
                    return Err(Failure::usage(format!(
                        "the demo needs a device with DMA, which '{device}' does not have"
                    ))
                    .hint("give --device model:accel"));
                }
                Ok(if in_process { Devices::Inside(name) } else { Devices::Served(name) })
            }
            (Target::Model(..), Some(_)) => Err(Failure::usage(
                "--destination is only for servers that run already: the demo itself serves a model at both ends",
            )
            .hint("omit --destination, or give --device vfio-user:SOCKET too")),
            (Target::VfioUser(_), None) => {
                Err(Failure::usage(format!("'{device}' is a single device: the demo needs a second one as the destination"))
                    .hint("serve the same model at a second socket, and give --destination vfio-user:SOCKET"))
            }
            (Target::VfioUser(_), Some(_)) if in_process => {
                Err(Failure::usage(format!("'{device}' is in its server's process: --in-process is for models")))
            }
            (Target::VfioUser(source), Some(Target::VfioUser(destination))) => {
                let is_same = |one: &PathBuf, other: &PathBuf| match (one.canonicalize(), other.canonicalize()) {
                    (Ok(one), Ok(other)) => one == other,
                    _ => one == other,
                };
                if is_same(&source, &destination) {
                    return Err(Failure::usage(format!("'{device}' cannot be migrated to itself"))
                        .hint("serve the same model at a second socket, and give that as --destination"));
                }
                Ok(Devices::Running(source, destination))
            }
            (Target::VfioUser(_), Some(other)) => Err(not_movable(&other)),
            (Target::Group(_) | Target::Cdev(_) | Target::Host(_), _) => Err(not_movable(device)),
        }
    }

    /// The TARGETs of source and destination.
    fn targets(&self) -> (String, String) {
        match self {
            Devices::Inside(model) | Devices::Served(model) => {
                (format!("model:{model}"), format!("model:{model}"))
            }
            Devices::Running(source, destination) => (
                Target::VfioUser(source.clone()).to_string(),
                Target::VfioUser(destination.clone()).to_string(),
            ),
        }
    }
}

fn not_movable(target: &Target) -> Failure {
    Failure::usage(format!("the demo migrates models, and '{target}' is not one"))
        .hint("give --device model:accel, with settings such as model:accel?state=64MiB&rate=16MiB")
}

/// The findings of a complete demo.
struct Found {
    report: Figures,
    sent: Evidence,
    received: Evidence,
    finished: Finished,
}

/// Runs the demo.
pub(crate) fn run(arguments: &Arguments, output: Output) -> Result<(), Failure> {
    let devices = Devices::new(&arguments.device, arguments.destination.as_ref(), arguments.in_process)?;
    let mut bar = Bar::migration(output);
    let mut processes = Processes::new()?;
    let found = perform(arguments, &devices, &mut processes, &mut bar);
    let found = found.map_err(|error| processes.explain(error));
    // Before anything is printed: a reader of the result finds nothing left behind.
    drop(processes);
    drop(bar);

    let Found { report, sent, received, finished } = found?;
    let findings = Findings { sent: &sent, received: &received, finished: &finished };
    let outcome = Outcome::new(&devices, arguments.downtime_limit, &report, &findings);
    let text = Text { outcome: &outcome, devices: &devices, memory: arguments.memory };
    if outcome.verified {
        return output.result(&outcome, text);
    }
    output.partial(text)?;
    Err(Failure::new("the migration could not be verified: see the checks above").result(&outcome))
}

/// Starts the processes, and follows them to the end.
fn perform(
    arguments: &Arguments,
    devices: &Devices,
    processes: &mut Processes,
    bar: &mut Bar,
) -> Result<Found, DemoError> {
    bar.message(match devices {
        Devices::Served(_) => "starting four processes",
        Devices::Inside(_) | Devices::Running(..) => "starting two processes",
    });
    for role in [Role::Destination, Role::Source] {
        processes.start_host(role)?;
    }
    let mut place = |role| {
        Ok::<_, Failure>(match (devices, role) {
            (Devices::Inside(model), _) => Place::Inside { model: model.clone() },
            (Devices::Served(model), role) => {
                let socket = processes.start_server(role, model)?;
                Place::Served { socket, model: Some(model.clone()) }
            }
            (Devices::Running(socket, _), Role::Source)
            | (Devices::Running(_, socket), Role::Destination) => {
                Place::Served { socket: socket.clone(), model: None }
            }
        })
    };
    let places = [(Role::Destination, place(Role::Destination)?), (Role::Source, place(Role::Source)?)];
    processes.wait_for_servers()?;
    for (role, device) in places {
        processes.begin(Config {
            role,
            device,
            memory: arguments.memory,
            dirty_rate: arguments.dirty_rate,
            downtime_limit_ms: arguments.downtime_limit,
            max_rounds: arguments.max_rounds,
            work_before_ms: arguments.work_before,
            work_after_ms: arguments.work_after,
        })?;
    }
    let address = begin(processes, bar)?;
    processes.order(Role::Source, &Order::Send { address })?;
    follow(processes, bar)
}

/// Waits until both ends are ready, and returns the destination's address.
fn begin(processes: &mut Processes, bar: &Bar) -> Result<String, DemoError> {
    let (mut listening, mut working) = (None, None);
    loop {
        match processes.event()? {
            (Role::Destination, Event::Listening { address, state_bytes }) => {
                bar.message("working");
                listening = Some((address, state_bytes));
            }
            (Role::Source, Event::Working { state_bytes }) => working = Some(state_bytes),
            (role, event) => return Err(unexpected(role, &event).into()),
        }
        if let (Some((address, there)), Some(here)) = (&listening, working) {
            if *there != here {
                return Err(Failure::new(format!(
                    "the devices differ: {here} bytes of own state at the source, {there} at the destination"
                ))
                .hint("serve the same model with the same settings at both sockets")
                .into());
            }
            return Ok(address.clone());
        }
    }
}

/// Follows the migration until both ends have reported everything. Neither waits for the other's report.
fn follow(processes: &mut Processes, bar: &mut Bar) -> Result<Found, DemoError> {
    let (mut all_sent, mut all_received, mut all_finished) = (None, None, None);
    loop {
        match processes.event()? {
            (Role::Source, Event::Progress(progress)) => bar.progress(&progress.into()),
            (Role::Source, Event::Sent { report, evidence }) => all_sent = Some((report, evidence)),
            (Role::Destination, Event::Received { evidence }) => {
                bar.message("working at the destination");
                all_received = Some(evidence);
            }
            (Role::Destination, Event::Finished(finished)) => all_finished = Some(finished),
            (role, event) => return Err(unexpected(role, &event).into()),
        }
        (all_sent, all_received, all_finished) = match (all_sent, all_received, all_finished) {
            (Some((report, sent)), Some(received), Some(finished)) => {
                return Ok(Found { report, sent, received, finished });
            }
            not_yet => not_yet,
        };
    }
}
