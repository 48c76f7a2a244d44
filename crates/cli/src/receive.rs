//! `whimbrel receive`: the destination of a migration.

use std::fmt;
use std::io;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use whimbrel_engine::stream::Problem;
use whimbrel_engine::{Address, Destination, Error, Listener, Received};

use crate::end::End;
use crate::failure::Failure;
use crate::output::{self, Output, note};
use crate::progress::Bar;
use crate::remedy;
use crate::send::parse_address;
use crate::target::Target;

/// Wait for a device from `whimbrel send`, and run it here
///
/// Receives one device, without memory, from one sender, and rejects other senders meanwhile. After a failure before
/// the handover the device is reset and the received state is discarded.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Arguments {
    /// The device that receives the state (`whimbrel --help` says how to name it)
    #[arg(value_name = "TARGET")]
    target: Target,
    /// Address to listen on: HOST:PORT (IPv6 in brackets) or unix:PATH. With port 0 the system chooses a port; the
    /// address is printed to stderr
    #[arg(long, value_name = "ADDR", value_parser = parse_address)]
    listen: Address,
    /// Timeout for data from the source, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
    /// Keep the device open afterwards, until stdin ends or SIGINT or SIGTERM arrives. Otherwise the device is closed,
    /// and its driver may reset it
    #[arg(long)]
    keep: bool,
}

const AFTER_HELP: &str = "\
Anyone who can reach the address can send a device: listen where only the other host can connect.

Examples:
  whimbrel receive 0000:3b:00.2 --listen [::]:4000 --keep
  whimbrel receive model:accel --listen unix:/run/move.sock";

/// The result, for scripts.
#[derive(Debug, Serialize)]
struct Taken {
    device: String,
    address: String,
    #[serde(flatten)]
    received: Received,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments, output: Output) -> Result<(), Failure> {
    let mut opened = arguments.target.open()?.migratable()?;
    opened.end_abandoned_receiving()?;
    let address = &arguments.listen;
    let mut listener = Listener::bind(address).map_err(|error| cannot_listen(address, &error))?;
    let address = listener.address().map_err(|error| cannot_listen(address, &error))?;
    note(format_args!("listening at {address}"));

    let bar = Bar::waiting(output, format!("waiting for {} at {address}", arguments.target));
    let link = listener.accept().map_err(|error| cannot_listen(&address, &error))?;
    bar.message(format!("receiving {}", arguments.target));
    let taken = Destination::new(&mut *opened).timeout(Duration::from_secs(arguments.timeout)).receive(link);
    drop(bar);
    let received = taken.map_err(|error| failed(error, &arguments.target))?;
    drop(listener);

    let taken = Taken { device: opened.name().to_string(), address: address.to_string(), received };
    output.result(&taken, &taken)?;
    if arguments.keep {
        let end = End::new().map_err(|error| cannot_wait(&error))?;
        note("keeping the device open until stdin ends or SIGINT or SIGTERM arrives");
        end.wait().map_err(|error| cannot_wait(&error))?;
    }
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

fn failed(error: Error, target: &Target) -> Failure {
    let hint = match &error {
        Error::Stream(error) if error.problem == Problem::Foreign => {
            Some("the peer is not `whimbrel send`: listen where only the source can connect".to_string())
        }
        _ => remedy::after(&error, target),
    };
    Failure::from(error).hint_if(hint)
}

impl fmt::Display for Taken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let received = &self.received;
        writeln!(f, "{} now runs here (at the source: {})", self.device, received.from_device)?;
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
        if !received.confirmed {
            write!(
                f,
                "\n  The source could not be notified: it keeps its device stopped and does not know that this one runs."
            )?;
        }
        Ok(())
    }
}

fn cannot_wait(error: &io::Error) -> Failure {
    Failure::from_io("the device runs here, but this process cannot keep it open", error)
}
