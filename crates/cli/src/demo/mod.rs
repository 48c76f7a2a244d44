//! `whimbrel demo`: a live migration on a single machine. Busy devices and their memory migrate from one process to
//! another over TCP, and the result is verified. Each of the two hosts uses each of its devices over vfio-user, from a
//! server in a process of its own, as with a real device back end; or in its own process.
//!
//! This process only starts the others ([`processes`]), passes messages, verifies their reports ([`verify`]), and
//! explains failures ([`explain`]). A host ([`host`]) has a machine ([`machine`]) with devices ([`attachment`]), and a
//! program for each that keeps it busy ([`work`]).

mod attachment;
mod certificates;
mod cutter;
mod error;
mod evidence;
mod explain;
mod host;
mod image;
mod jobs;
mod machine;
mod messages;
mod outcome;
mod pairs;
mod pieces;
mod processes;
mod verify;
mod work;

use std::time::Duration;

use clap::Args;
use whimbrel_engine::Observer;

use self::attachment::Kind;
use self::certificates::Authority;
use self::error::DemoError;
use self::messages::{Config, Event, Evidence, Figures, Finished, Order, Place, Role};
use self::outcome::{Outcome, Text};
use self::pairs::{DeviceArgument, Pair, pair};
use self::processes::{Processes, unexpected};
use self::verify::Findings;
use crate::failure::Failure;
use crate::output::{self, Output};
use crate::progress::Bar;
use crate::size;
use crate::target::Target;

pub(crate) use self::host::{Arguments as HostArguments, run as run_host};

/// Migrate working devices and their memory live between two processes, and verify that nothing was lost.
///
/// Starts two hosts on this machine, each a process, with another process for each device that serves it over vfio-user.
/// The first host gives its devices work: an accel fills, copies and checks blocks of memory by DMA, a disk is written and
/// read, a serial echoes bytes, and every result is checked. Meanwhile the devices and all memory migrate together to the
/// second host over TCP, where the work continues. Needs only this program, and leaves nothing behind.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Arguments {
    /// A device; several migrate together. model:accel or model:serial with settings, including protocol=v1 and
    /// protocol=draft; model:nvme, a disk on an image of its own, or on the one in its settings, which is overwritten;
    /// model:legacy, whose state is transferred 8 bytes at a time, which is slow with a server (see --in-process); or
    /// vfio-user:SOCKET, together with --destination
    #[arg(
        long = "device", value_name = "TARGET", default_value = "model:accel?state=64MiB&rate=16MiB",
        value_parser = DeviceArgument::parse
    )]
    devices: Vec<DeviceArgument>,
    /// The destination of a vfio-user:SOCKET in --device: a second socket, which serves the same model. Several are in
    /// the order of their devices. The demo resets both devices before it begins, and leaves their servers running
    #[arg(long = "destination", value_name = "TARGET")]
    destinations: Vec<Target>,
    /// Run the models inside the two demo processes, without servers
    #[arg(long, conflicts_with = "destinations")]
    in_process: bool,
    /// Encrypt the connection by TLS 1.3, with certificates that are made for this demo and removed with it
    #[arg(long)]
    tls: bool,
    /// Number of connections to spread memory and state over, 1 to 16
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=16))]
    channels: u32,
    /// Compress memory and device state
    #[arg(long)]
    compress: bool,
    /// Cut the connection this many times before the devices stop, or one of several in turn: the hosts replace it, with all
    /// others, and the migration goes on
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=100))]
    cuts: u32,
    /// Guest memory, in bytes or with a unit such as 256MiB; at least 16 MiB for each device, and at most half of the
    /// available memory
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = memory)]
    memory: u64,
    /// Rate at which each device with DMA writes memory, in bytes per second or with a unit such as 64MiB; at least
    /// 1 MiB, so that a loss would show
    #[arg(long, value_name = "BYTES/S", default_value = "64MiB", value_parser = rate)]
    dirty_rate: u64,
    /// Downtime limit, in milliseconds: stop once the predicted downtime is at most this. The downtime of the
    /// demo includes its own verification, which is shown apart and has no limit
    #[arg(long, value_name = "MS", default_value_t = 300)]
    downtime_limit: u64,
    /// Give up after this many pre-copy rounds if the migration does not converge
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
    max_rounds: u32,
    /// Time that the devices work before the migration, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 300)]
    work_before: u64,
    /// Time that the devices work after the migration, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 500)]
    work_after: u64,
}

const AFTER_HELP: &str = "\
Examples:
  whimbrel demo
  whimbrel demo --device model:accel --device model:serial
  whimbrel demo --device 'model:nvme'
  whimbrel demo --cuts 2
  whimbrel demo --channels 4 --tls --compress
  whimbrel demo --device 'model:accel?state=1GiB&rate=64MiB' --memory 1GiB --dirty-rate 256MiB
  whimbrel demo --device vfio-user:a --destination vfio-user:b   (`whimbrel serve accel` serves at each)";

/// Parses the size of a machine's memory.
fn memory(text: &str) -> Result<u64, String> {
    size::parse(text).and_then(machine::check_memory).and_then(machine::check_available)
}

/// Parses a rate that is high enough for a device to complete jobs before and after the migration.
fn rate(text: &str) -> Result<u64, String> {
    match size::parse(text)? {
        bytes if bytes < 1 << 20 => Err("expected at least 1MiB (bytes per second)".to_string()),
        bytes => Ok(bytes),
    }
}

/// The findings of a complete demo.
struct Found {
    report: Figures,
    sent: Evidence,
    received: Evidence,
    finished: Vec<Finished>,
}

/// Runs the demo.
pub(crate) fn run(arguments: &Arguments, output: Output) -> Result<(), Failure> {
    let pairs = pair(&arguments.devices, &arguments.destinations, arguments.in_process)?;
    check_shares(arguments.memory, pairs.len())?;
    let mut bar = Bar::migration(output);
    let mut processes = Processes::new()?;
    let found = perform(arguments, &pairs, &mut processes, &mut bar);
    let found = found.map_err(|error| processes.explain(error));
    // Before anything is printed: a reader of the result finds nothing left behind.
    drop(processes);
    drop(bar);

    let Found { report, sent, received, finished } = found?;
    let findings = Findings { sent: &sent, received: &received, finished: &finished };
    let outcome = Outcome::new(&pairs, arguments.downtime_limit, arguments.tls, &report, &findings);
    let text = Text { outcome: &outcome, pairs: &pairs, memory: arguments.memory };
    if outcome.verified {
        return output.result(&outcome, text);
    }
    output.partial(text)?;
    Err(Failure::new("the migration could not be verified: see the checks above").result(&outcome))
}

/// Checks that every device has enough of the memory.
fn check_shares(memory: u64, devices: usize) -> Result<(), Failure> {
    let least = machine::MIN_MEMORY.saturating_mul(devices as u64);
    if memory < least {
        return Err(Failure::usage(format!(
            "--memory {} is too little for {devices} devices: expected at least {}",
            output::bytes(memory),
            output::bytes(least)
        ))
        .hint("each device needs 16 MiB: give more memory or fewer devices"));
    }
    Ok(())
}

/// Starts the processes, and follows them to the end.
fn perform(
    arguments: &Arguments,
    pairs: &[Pair],
    processes: &mut Processes,
    bar: &mut Bar,
) -> Result<Found, DemoError> {
    let served = pairs.iter().filter(|pair| matches!(pair, Pair::Served(_))).count();
    bar.message(format!("starting {} processes", 2 + 2 * served));
    for role in [Role::Destination, Role::Source] {
        processes.start_host(role)?;
    }
    let mut place = |role, number, pair: &Pair| {
        Ok::<_, Failure>(match (pair, role) {
            (Pair::Inside(model), _) => Place::Inside { model: image::complete(model, number, processes)? },
            (Pair::Served(model), role) => {
                let model = image::complete(model, number, processes)?;
                let number = (pairs.len() > 1).then_some(number + 1);
                let socket = processes.start_server(role, number, &model)?;
                Place::Served { socket, model: Some(model) }
            }
            (Pair::Running(socket, _), Role::Source) | (Pair::Running(_, socket), Role::Destination) => {
                Place::Served { socket: socket.clone(), model: None }
            }
        })
    };
    let mut places = |role| {
        let places = pairs.iter().enumerate().map(|(number, pair)| place(role, number, pair));
        Ok::<_, Failure>((role, places.collect::<Result<Vec<_>, _>>()?))
    };
    let places = [places(Role::Destination)?, places(Role::Source)?];
    let authority = if arguments.tls { Some(Authority::new(processes.folder()?)?) } else { None };
    processes.wait_for_servers()?;
    for (role, devices) in places {
        processes.begin(Config {
            role,
            devices,
            certificates: authority.as_ref().map(|authority| authority.of(role)),
            memory: arguments.memory,
            dirty_rate: arguments.dirty_rate,
            downtime_limit_ms: arguments.downtime_limit,
            max_rounds: arguments.max_rounds,
            channels: arguments.channels,
            compress: arguments.compress,
            cuts: arguments.cuts,
            work_before_ms: arguments.work_before,
            work_after_ms: arguments.work_after,
        })?;
    }
    let (address, verification) = begin(processes, bar)?;
    processes.order(Role::Destination, &Order::Expect { verification })?;
    processes.order(Role::Source, &Order::Send { address })?;
    follow(processes, bar)
}

/// Waits until both ends are ready. Returns the destination's address, and how long the verification is expected to take.
fn begin(processes: &mut Processes, bar: &Bar) -> Result<(String, Duration), DemoError> {
    let (mut listening, mut working) = (None, None);
    loop {
        match processes.event()? {
            (Role::Destination, Event::Listening { address, devices }) => {
                bar.message("working");
                listening = Some((address, devices));
            }
            (Role::Source, Event::Working { devices, verification }) => {
                working = Some((devices, verification));
            }
            (role, event) => return Err(unexpected(role, &event).into()),
        }
        if let (Some((address, there)), Some((here, verification))) = (&listening, &working) {
            check_equal(here, there)?;
            return Ok((address.clone(), *verification));
        }
    }
}

/// Checks that both ends have the same kinds of devices.
fn check_equal(here: &[Kind], there: &[Kind]) -> Result<(), Failure> {
    match here.iter().zip(there).find(|(here, there)| here != there) {
        None => Ok(()),
        Some((here, there)) => {
            Err(Failure::new(format!("the devices differ: {here} at the source, {there} at the destination"))
                .hint("serve the same model with the same settings at both sockets"))
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
