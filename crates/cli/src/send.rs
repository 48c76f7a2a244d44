//! `whimbrel send`: the source of a migration.

use std::fmt;
use std::io;
use std::time::Duration;

use clap::Args;
use whimbrel_engine::{Address, Error, Link, Outcome, Report, SendError, Source, SourceOptions};

use crate::failure::Failure;
use crate::output::{self, Output};
use crate::progress::Bar;
use crate::remedy;
use crate::target::{Closing, Target};

/// Migrate a device to a host where `whimbrel receive` is waiting
///
/// Migrates one device, without memory. The device runs until the predicted downtime is within the limit, then stops
/// at the source and runs at the destination. After a failure before the handover it continues at the source.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Arguments {
    /// The device (`whimbrel --help` says how to name it)
    #[arg(value_name = "TARGET")]
    target: Target,
    /// Address of `whimbrel receive`: HOST:PORT (IPv6 in brackets) or unix:PATH
    #[arg(long, value_name = "ADDR", value_parser = parse_address)]
    to: Address,
    /// Downtime limit, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 300, value_parser = parse_milliseconds)]
    downtime_limit: u64,
    /// Give up after this many pre-copy rounds if the migration does not converge
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
    max_rounds: u32,
    /// Timeout for data from the destination, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
    /// Retry to connect for this long while nothing listens at ADDR, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=86_400))]
    patience: u64,
}

fn parse_milliseconds(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| "expected a whole number of milliseconds, without a unit".to_string())
}

const AFTER_HELP: &str = "\
Examples:
  whimbrel send 0000:3b:00.2 --to other-host:4000
  whimbrel send model:accel --to unix:/run/move.sock --downtime-limit 50 --patience 10";

/// Runs the command.
pub(crate) fn run(arguments: &Arguments, output: Output) -> Result<(), Failure> {
    let address = &arguments.to;
    let mut opened = arguments.target.open()?.migratable()?;
    opened.end_abandoned_sending()?;
    let link = connect(address, Duration::from_secs(arguments.patience), output)?;
    let options = SourceOptions::default()
        .downtime_limit(Duration::from_millis(arguments.downtime_limit))
        .max_rounds(arguments.max_rounds)
        .timeout(Duration::from_secs(arguments.timeout));
    let sent = Source::new(&mut *opened).options(options).observer(Bar::migration(output)).send(link);
    let report = sent.map_err(|error| failed(error, &arguments.target, address))?;
    output.result(&report, Text { report: &report, address })
}

/// Parses an address to connect to or to listen at.
pub(crate) fn parse_address(text: &str) -> Result<Address, String> {
    text.parse().map_err(|_| "expected HOST:PORT, [IPV6]:PORT or unix:PATH".to_string())
}

fn connect(address: &Address, patience: Duration, output: Output) -> Result<Link, Failure> {
    let bar = Bar::waiting(output, format!("connecting to {address}"));
    let connected = Link::connect(address, patience);
    drop(bar);
    connected.map_err(|error| {
        let failure = Failure::from_io(format!("cannot connect to {address}"), &error);
        match error.kind() {
            io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => failure.hint(
                "no process listens there: start `whimbrel receive` on that host, or wait for it with --patience SECONDS",
            ),
            io::ErrorKind::TimedOut | io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
                failure.hint("check the address, and whether a firewall blocks it")
            }
            _ => failure,
        }
    })
}

fn failed(error: SendError, target: &Target, address: &Address) -> Failure {
    let hint = match (&error.outcome, &error.cause) {
        (Outcome::Unknown, _) => Some(unknown(target, address)),
        (Outcome::Stranded(back), _) => remedy::stranded(back, target),
        (_, Error::NotConverging { .. }) => {
            Some("--downtime-limit MS and --max-rounds N set the bounds".to_string())
        }
        (_, cause) => remedy::after(cause, target),
    };
    Failure::from(error).hint_if(hint)
}

/// The hint after a handover without a confirmation.
fn unknown(target: &Target, address: &Address) -> String {
    let check = format!("check at {address} whether the device runs there");
    match target.closing() {
        Closing::Keeps => format!("{check}; {}", remedy::resume(target)),
        Closing::Resets => format!(
            "{check}; if it does not, its state is lost: the kernel resets this one when this command closes it"
        ),
        Closing::Ends => format!("{check}; the model here ends with this command"),
    }
}

struct Text<'a> {
    report: &'a Report,
    address: &'a Address,
}

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = self.report;
        writeln!(f, "{} now runs at {}", report.device, self.address)?;
        writeln!(
            f,
            "  downtime      {} ({} expected)",
            output::milliseconds(report.downtime_ms),
            output::milliseconds(report.predicted_downtime_ms)
        )?;
        let rounds = if report.rounds == 1 { "round" } else { "rounds" };
        writeln!(
            f,
            "  total         {}, {} pre-copy {rounds}",
            output::milliseconds(report.total_ms),
            report.rounds
        )?;
        writeln!(f, "  device state  {}", output::exact_bytes(report.device_bytes))?;
        if report.memory_bytes > 0 {
            writeln!(
                f,
                "  memory        {}, {} of zeros",
                output::exact_bytes(report.memory_bytes),
                output::bytes(report.zero_bytes)
            )?;
        }
        writeln!(f, "  final bytes   {}", output::exact_bytes(report.final_bytes))?;
        writeln!(f, "  on the wire   {}", output::exact_bytes(report.wire_bytes))?;
        writeln!(f, "  throughput    {}", output::rate(report.throughput_bytes_per_s))?;
        let mut table = output::table(["ROUND", "DEVICE", "MEMORY", "TOOK", "LEFT", "EXPECTED DOWNTIME"]);
        output::align_right(&mut table, 0..6);
        for round in &report.round_list {
            table.add_row([
                round.number.to_string(),
                output::bytes(round.device_bytes),
                output::bytes(round.memory_bytes),
                output::milliseconds(round.ms),
                output::bytes(round.device_left.saturating_add(round.memory_left)),
                round.expected_downtime_ms.map_or_else(|| "?".into(), output::milliseconds),
            ]);
        }
        write!(f, "\n{}", table.trim_fmt())
    }
}
