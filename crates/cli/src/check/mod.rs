//! `whimbrel check`: whether devices can migrate and why not, before anything moves.

mod devices;
mod text;

use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use whimbrel_engine::channel::{Address, ConnectError, Tls, TlsError, Until, WaitError, connect_once};
use whimbrel_engine::check::{CheckReport, Code, Finding, History};
use whimbrel_engine::{Source, SourceOptions};

use crate::failure::Failure;
use crate::output::Output;
use crate::send::{OnTimeout, parse_address, parse_bandwidth, parse_milliseconds, unreachable};
use crate::target::{Target, check_distinct, list};
use crate::tls::{self, Protection};

/// Show whether devices can migrate and why not, before anything moves
///
/// Asks the devices, and with --to a waiting `whimbrel receive` whether its devices fit; that one goes on waiting. Measures the
/// link for about a second with up to 32 MiB. No device changes its state; a device that nobody uses may be reset by its
/// kernel driver when it is opened. Each finding has a reason code that never changes: docs/check.md lists them. Exits
/// with 0 if the devices can migrate, and with 1 if a finding blocks that.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Arguments {
    /// The devices, in the order in which the destination names its own (`whimbrel --help` says how to name one)
    #[arg(value_name = "TARGET", required = true)]
    targets: Vec<Target>,
    /// Address of `whimbrel receive`: HOST:PORT (IPv6 in brackets) or unix:PATH
    #[arg(long, value_name = "ADDR", value_parser = parse_address)]
    to: Option<Address>,
    /// Downtime limit of the migration, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 300, value_parser = parse_milliseconds)]
    downtime_limit: u64,
    /// The limit up to which the migration may raise it, in milliseconds
    #[arg(long, value_name = "MS", value_parser = parse_milliseconds)]
    downtime_max: Option<u64>,
    /// Action of the migration if the downtime does not fit the limit
    #[arg(long, value_name = "ACTION", default_value = "cancel")]
    on_timeout: OnTimeout,
    /// Bandwidth limit of the migration, in bytes or with a unit such as 100MiB
    #[arg(long, value_name = "BYTES/S", value_parser = parse_bandwidth)]
    bandwidth: Option<NonZeroU64>,
    /// The report of an earlier migration of the same kind of devices, from `whimbrel send --json`: the costs of transitions
    /// are taken from it. May be given several times
    #[arg(long, value_name = "FILE")]
    history: Vec<PathBuf>,
    /// Timeout for the destination, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
    #[command(flatten)]
    protection: Protection,
}

const AFTER_HELP: &str = "\
Examples:
  whimbrel check 0000:3b:00.2
  whimbrel check 0000:3b:00.2 --to other-host:4000 --tls-cert host.pem --tls-key host.key --tls-ca authority.pem
  whimbrel check vfio-user:/run/accel --to 192.168.77.2:4000 --insecure --history earlier.json --json";

/// The result, for scripts.
#[derive(Debug, Serialize)]
struct Checked<'a> {
    to: Option<String>,
    #[serde(flatten)]
    report: &'a CheckReport,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments, output: Output) -> Result<(), Failure> {
    let targets = &arguments.targets;
    check_distinct(targets)?;
    let destination = match &arguments.to {
        Some(address) => Some((address, arguments.protection.tls(address)?)),
        None => None,
    };
    let histories = arguments.history.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    let report = check(arguments, histories, destination);
    let to = arguments.to.as_ref().map(Address::to_string);
    let text = text::Text { report: &report, devices: &list(targets), to: to.as_deref() };
    let checked = Checked { to: to.clone(), report: &report };
    if report.can_migrate {
        return output.result(&checked, text);
    }
    output.partial(text)?;
    let Some(first) = report.findings.first() else {
        return Err(Failure::new("the devices cannot migrate").result(&checked));
    };
    Err(Failure::new(format!("{} cannot migrate: {}", list(targets), first.text))
        .hint(&first.remedy)
        .result(&checked))
}

fn read(path: &PathBuf) -> Result<History, Failure> {
    let told = format!("--history {}", path.display());
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::usage(Failure::from_io(&told, &error).message()))?;
    History::parse(&text).map_err(|error| {
        Failure::usage(format!("{told}: {error}"))
            .hint("write one with `whimbrel send --json > FILE` during a migration")
    })
}

/// Asks the devices and the destination.
fn check(
    arguments: &Arguments,
    histories: Vec<History>,
    destination: Option<(&Address, Option<Tls>)>,
) -> CheckReport {
    let targets = &arguments.targets;
    let timeout = Duration::from_secs(arguments.timeout);
    let mut options = SourceOptions::default()
        .downtime_limit(Duration::from_millis(arguments.downtime_limit))
        .on_timeout(arguments.on_timeout.into())
        .timeout(timeout);
    options.downtime_max = arguments.downtime_max.map(Duration::from_millis);
    options.bandwidth = arguments.bandwidth;
    let opened = devices::open(targets);
    let source = Source::new(opened.devices).options(options);
    let source = histories.into_iter().fold(source, Source::history);
    // Only all devices together can be compared.
    let destination = destination.filter(|_| opened.failed.is_empty());
    let mut report = match destination {
        _ if opened.failed.len() == targets.len() => CheckReport::default(),
        None => source.check().report,
        Some((address, tls)) => through(source, address, tls.as_ref(), timeout),
    };
    devices::complete(&mut report, targets, opened.failed, &opened.has_space_log);
    report
}

/// Checks through a connection to the destination. Without one, checks what can be without it.
fn through(source: Source, address: &Address, tls: Option<&Tls>, timeout: Duration) -> CheckReport {
    let until = Until::timeout(timeout);
    let stream = match connect_once(address, until) {
        Ok(stream) => stream,
        Err(error) => return without(source, not_connected(address, &error)),
    };
    let Some(tls) = tls else { return source.check_with(stream).report };
    match tls.connect(stream, address, until) {
        Ok(stream) => source.check_with(stream).report,
        Err(error) => without(source, not_protected(address, &error)),
    }
}

fn without(source: Source, finding: Finding) -> CheckReport {
    let mut report = source.check().report;
    report.add(finding);
    report
}

fn not_connected(address: &Address, error: &ConnectError) -> Finding {
    of(Code::Unreachable, &unreachable(address, error))
}

fn not_protected(address: &Address, error: &TlsError) -> Finding {
    let code = match error {
        TlsError::Wait(WaitError::TimedOut) => Code::DestinationSilent,
        TlsError::Wait(_) => Code::ConnectionLost,
        _ => Code::TlsRefused,
    };
    of(code, &Failure::new(format!("cannot connect to {address}: {error}")).hint_if(tls::advice(error)))
}

/// Returns a failure as a finding, with its hint in place of the general remedy.
fn of(code: Code, failure: &Failure) -> Finding {
    let finding = Finding::new(code, failure.message());
    match failure.advice() {
        Some(hint) => finding.remedy(hint),
        None => finding,
    }
}
