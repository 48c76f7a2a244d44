//! `whimbrel receive`: the destination of a migration.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use whimbrel_engine::channel::{Address, Listener, Until, WaitError};
use whimbrel_engine::{Destination, DestinationOptions, Error, Journal, Received};

use crate::call_timeout::CallTimeout;
use crate::end::End;
use crate::failure::Failure;
use crate::journal;
use crate::output::{self, Output, note, warn};
use crate::progress::Bar;
use crate::remedy;
use crate::send::parse_address;
use crate::signals::Signals;
use crate::size;
use crate::target::{Opened, Target, list};
use crate::tls::{self, Protection};

/// Wait for devices from `whimbrel send`, and run them here
///
/// Receives one or more devices, without memory, from one sender: all of them or none. Connections that do not complete a
/// sender's greeting within 5 seconds are dropped, with a warning if they began like a sender, and the wait goes on. Other
/// senders are rejected during the migration. After a failure before the handover the devices are reset and the received
/// state is discarded. SIGINT and SIGTERM before the handover cancel the migration.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Arguments {
    /// The devices that receive the state, in the source's order (`whimbrel --help` says how to name one)
    #[arg(value_name = "TARGET", required = true)]
    targets: Vec<Target>,
    /// Address to listen on: HOST:PORT (IPv6 in brackets) or unix:PATH. With port 0 the system chooses a port; the
    /// address is printed to stderr
    #[arg(long, value_name = "ADDR", value_parser = parse_address)]
    listen: Address,
    /// Timeout for data from the source, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
    /// After a connection is lost before the devices stop, wait for this long for the source to come back, in seconds.
    /// The source needs --reconnect as well; the shorter time counts. 0: the loss ends the migration
    #[arg(long, value_name = "SECONDS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=86_400))]
    reconnect: u64,
    /// Allow the source this many connections at most, 1 to 16
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=16))]
    channels: u32,
    /// Hold at most this much received device state that no device has taken yet, in bytes or with a unit such as 64MiB. Each
    /// connection needs little more than 3 MiB of it: with less, fewer are allowed
    #[arg(long, value_name = "SIZE", default_value = "64MiB", value_parser = parse_receive_memory)]
    receive_memory: u64,
    /// Keep the devices open afterwards, until stdin ends or SIGINT or SIGTERM arrives. Otherwise they are closed, and
    /// their drivers may reset them
    #[arg(long)]
    keep: bool,
    /// Record the migration in this file, so that `whimbrel resolve` can settle its outcome after a crash. It is created if
    /// it does not exist. Of use for devices that outlive this command, such as served ones
    #[arg(long, value_name = "FILE")]
    journal: Option<PathBuf>,
    #[command(flatten)]
    protection: Protection,
}

/// Parses a size that is enough for one connection.
fn parse_receive_memory(text: &str) -> Result<u64, String> {
    match size::parse(text)? {
        bytes if bytes < 4 << 20 => Err("expected at least 4MiB".to_string()),
        bytes => Ok(bytes),
    }
}

const AFTER_HELP: &str = "\
Without TLS anyone who can reach the address can send a device. With TLS anyone can whose certificate --tls-ca has signed,
unless --tls-peer names one.

Examples:
  whimbrel receive 0000:3b:00.2 --listen [::]:4000 --keep --tls-cert host.pem --tls-key host.key --tls-ca authority.pem
  whimbrel receive vfio-user:/run/accel --listen 192.168.77.2:4000 --insecure --journal /var/lib/whimbrel/accel.journal
  whimbrel receive model:accel --listen unix:/run/move.sock";

/// The result, for scripts.
#[derive(Debug, Serialize)]
struct Taken {
    devices: Vec<String>,
    address: String,
    #[serde(flatten)]
    received: Received,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments, output: Output) -> Result<(), Failure> {
    let address = &arguments.listen;
    let tls = arguments.protection.tls(address)?;
    let path = arguments.journal.as_deref();
    let mut journal = path.map(|path| journal::open(path, &address.to_string())).transpose()?;
    // Until the devices are closed.
    let lock = journal.as_ref().map(Journal::lock).transpose()?;
    let targets = &journal::names(&arguments.targets, path)?;
    let mut opened = CallTimeout::default().open_set(targets)?;
    for device in &mut opened {
        device.end_abandoned_receiving()?;
    }
    // Before a signal that arrives during the migration: it ends the wait afterwards, too.
    let end = arguments.keep.then(End::new).transpose().map_err(|error| cannot_wait(&error))?;
    let signals = Signals::catch()?;
    let names = opened.iter().map(|device| device.name().to_string()).collect();
    let mut destination = Destination::new(opened.into_iter().map(Opened::into_migratable).collect())
        .options(
            DestinationOptions::default()
                .timeout(Duration::from_secs(arguments.timeout))
                .channels(arguments.channels)
                .receive_memory(arguments.receive_memory)
                .reconnect(Duration::from_secs(arguments.reconnect)),
        )
        .cancel(signals.cancel())
        .identify()
        .map_err(|unidentified| failed(unidentified.error, targets, path))?;
    let mut listener = Listener::bind(address).map_err(|error| cannot_listen(address, &error))?;
    if let Some(tls) = tls {
        listener = listener.tls(tls).map_err(|error| tls::failure(&error))?;
    }
    let address = listener.address().clone();
    note(format_args!("listening at {address}"));

    let bar = Bar::waiting(output, format!("waiting for {} at {address}", list(targets)));
    if let Some(journal) = journal.take() {
        destination = destination.journal(journal);
    }
    let until = Until::interrupted(signals.interrupt());
    let accepted = destination.accept(&mut listener, until).map_err(|error| match error {
        WaitError::Failed(error) => cannot_listen(&address, &error),
        _ => Failure::new(format!(
            "cancelled while waiting at {address}: {}; nothing was received",
            signals.arrived().unwrap_or_default()
        )),
    })?;
    drop(bar);
    // Only now: a terminal shows one bar at a time.
    destination = destination.observer(Bar::arrival(output, format!("receiving {}", list(targets))));
    if let Some(peer) = accepted.peer {
        destination = destination.journal_peer(&peer.to_string());
    }
    let arrived = destination.receive_accepted(accepted);
    drop(listener);
    let received = match arrived.result {
        Ok(received) => received,
        Err(error) => {
            // The devices are closed before anything is said of where they are.
            drop(arrived.devices);
            drop(lock);
            return Err(failed(error, targets, path));
        }
    };
    warn(&received.warnings);
    journal::warn_if_open(path);
    let taken = Taken { devices: names, address: address.to_string(), received };
    output.result(&taken, &taken)?;
    if let Some(end) = end {
        let them = if targets.len() == 1 { "the device" } else { "the devices" };
        note(format_args!("keeping {them} open until stdin ends or SIGINT or SIGTERM arrives"));
        end.wait().map_err(|error| cannot_wait(&error))?;
    }
    drop(arrived.devices);
    drop(lock);
    Ok(())
}

fn cannot_listen(address: &Address, error: &io::Error) -> Failure {
    let failure = Failure::from_io(format!("cannot listen at {address}"), error);
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            failure.hint("another process listens there: choose another port or path")
        }
        io::ErrorKind::AddrNotAvailable => {
            failure.hint("this host does not have that address: `ip addr` lists its addresses")
        }
        io::ErrorKind::NotFound => failure.hint("check that the socket's folder exists"),
        _ => failure,
    }
}

fn failed(error: Error, targets: &[Target], journal: Option<&Path>) -> Failure {
    let hint = journal::remedy(journal).or_else(|| remedy::after(&error, targets));
    Failure::from(error).hint_if(hint)
}

impl fmt::Display for Taken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let received = &self.received;
        let runs = if self.devices.len() == 1 { "runs" } else { "run" };
        let from = output::names(&received.from_devices);
        writeln!(f, "{} now {runs} here (at the source: {from})", output::names(&self.devices))?;
        writeln!(f, "  device state  {}", output::exact_bytes(received.device_bytes))?;
        if received.memory_bytes > 0 {
            writeln!(f, "  memory        {}", output::exact_bytes(received.memory_bytes))?;
        }
        let rounds = if received.rounds == 1 { "round" } else { "rounds" };
        write!(
            f,
            "  total         {}, {} pre-copy {rounds}",
            output::milliseconds(received.total_ms),
            received.rounds
        )?;
        if let [_, _, ..] = &received.lane_bytes[..] {
            write!(f, "\n  connections   {}", received.lane_bytes.len())?;
        }
        if !received.confirmed {
            write!(
                f,
                "\n  The source could not be notified: it keeps its side stopped and does not know that this one runs."
            )?;
        }
        Ok(())
    }
}

fn cannot_wait(error: &io::Error) -> Failure {
    Failure::from_io("the device runs here, but this process cannot keep it open", error)
}
