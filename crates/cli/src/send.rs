//! `whimbrel send`: the source of a migration.

use std::fmt;
use std::io;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use parking_lot::Mutex;
use whimbrel_engine::channel::{
    Address, ConnectError, Connector, Stream, Tls, TlsError, TlsStream, Until, WaitError, connect,
    connect_once,
};
use whimbrel_engine::{Error, Journal, Outcome, Report, SendError, Source, SourceOptions};

use crate::call_timeout::CallTimeout;
use crate::failure::Failure;
use crate::journal;
use crate::output::{self, Output, warn};
use crate::progress::Bar;
use crate::remedy;
use crate::report::{self, Ended, Samples, Watching};
use crate::signals::Signals;
use crate::size;
use crate::target::{Closing, Opened, Target, list};
use crate::tls::{self, Protection};

/// Migrate devices to a host where `whimbrel receive` is waiting
///
/// Migrates one or more devices, without memory: all of them or none. They run until the predicted downtime is within the
/// limit, then stop at the source and run at the destination. After a failure before the handover they continue at the
/// source. SIGINT and SIGTERM before the handover cancel the migration.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Arguments {
    /// The devices, in the order in which the destination names its own (`whimbrel --help` says how to name one)
    #[arg(value_name = "TARGET", required = true)]
    targets: Vec<Target>,
    /// Address of `whimbrel receive`: HOST:PORT (IPv6 in brackets) or unix:PATH
    #[arg(long, value_name = "ADDR", value_parser = parse_address)]
    to: Address,
    /// Downtime limit, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 300, value_parser = parse_milliseconds)]
    downtime_limit: u64,
    /// Raise the downtime limit up to this, in milliseconds, in four steps: one for each round that gets no better
    #[arg(long, value_name = "MS", value_parser = parse_milliseconds)]
    downtime_max: Option<u64>,
    /// Action if the downtime does not fit the limit after --max-rounds or --total-timeout
    #[arg(long, value_name = "ACTION", default_value = "cancel")]
    on_timeout: OnTimeout,
    /// Longest time until the devices stop, in seconds
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    total_timeout: Option<u64>,
    /// Send at most this much in a second, within 5 %, in bytes or with a unit such as 100MiB, also while the devices are
    /// stopped
    #[arg(long, value_name = "BYTES/S", value_parser = parse_bandwidth)]
    bandwidth: Option<NonZeroU64>,
    /// Compress device state (Zstandard), for a slow link: 100 Mbit/s, or 1 Gbit/s with a processor to spare. A destination that
    /// cannot decompress gets it as it is, with a warning
    #[arg(long)]
    compress: bool,
    /// Number of connections to spread memory and state over, 1 to 16. The destination may allow fewer
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=16))]
    channels: u32,
    /// Number of pre-copy rounds after which --on-timeout applies
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
    max_rounds: u32,
    /// Timeout for data from the destination, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
    /// Retry to connect for this long while nothing listens at ADDR, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=86_400))]
    patience: u64,
    /// After a connection is lost before the devices stop, try for this long to reach the destination again and go on,
    /// in seconds. The destination needs --reconnect as well; the shorter time counts. 0: the loss ends the migration.
    /// Of several connections (--channels), all are replaced when one is lost
    #[arg(long, value_name = "SECONDS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=86_400))]
    reconnect: u64,
    /// Record the migration in this file, so that `whimbrel resolve` can settle its outcome after a crash. It is created if
    /// it does not exist. Of use for devices that outlive this command, such as served ones
    #[arg(long, value_name = "FILE")]
    journal: Option<PathBuf>,
    /// Write a report with plots to this file, as one HTML page, whether the migration succeeds or fails. None is written if
    /// the destination cannot be reached
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    #[command(flatten)]
    protection: Protection,
}

/// An action on a migration that takes too long.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum OnTimeout {
    /// Cancel the migration; the devices continue
    Cancel,
    /// Stop the devices whatever the downtime is
    Switch,
    /// Go on, with a warning
    Ignore,
}

impl From<OnTimeout> for whimbrel_engine::OnTimeout {
    fn from(action: OnTimeout) -> whimbrel_engine::OnTimeout {
        match action {
            OnTimeout::Cancel => whimbrel_engine::OnTimeout::Cancel,
            OnTimeout::Switch => whimbrel_engine::OnTimeout::Switch,
            OnTimeout::Ignore => whimbrel_engine::OnTimeout::Ignore,
        }
    }
}

/// Parses a rate that lets a frame pass in good time.
pub(crate) fn parse_bandwidth(text: &str) -> Result<NonZeroU64, String> {
    let bytes = NonZeroU64::new(size::parse(text)?).filter(|bytes| bytes.get() >= 64 << 10);
    bytes.ok_or_else(|| "expected at least 64KiB (bytes per second)".to_string())
}

pub(crate) fn parse_milliseconds(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| "expected a whole number of milliseconds, without a unit".to_string())
}

const AFTER_HELP: &str = "\
Examples:
  whimbrel send 0000:3b:00.2 --to other-host:4000 --tls-cert host.pem --tls-key host.key --tls-ca authority.pem
  whimbrel send 0000:3b:00.2 0000:3b:00.3 --to 192.168.77.2:4000 --insecure
  whimbrel send vfio-user:/run/accel --to 192.168.77.2:4000 --insecure --journal /var/lib/whimbrel/accel.journal
  whimbrel send model:accel --to unix:/run/move.sock --downtime-limit 50 --patience 10";

/// Runs the command.
pub(crate) fn run(arguments: &Arguments, output: Output) -> Result<(), Failure> {
    let address = &arguments.to;
    let tls = arguments.protection.tls(address)?;
    if let Some(tls) = &tls {
        tls.check_address(address).map_err(|error| tls::failure(&error))?;
    }
    if arguments.downtime_max.is_some_and(|max| max < arguments.downtime_limit) {
        let limit = arguments.downtime_limit;
        return Err(Failure::usage(format!("--downtime-max is less than --downtime-limit ({limit} ms)"))
            .hint("the limit is raised from the one to the other: omit --downtime-max if it is not to be raised"));
    }
    if let Some(file) = &arguments.report {
        report::check(file)?;
    }
    let path = arguments.journal.as_deref();
    let journal = path.map(|path| journal::open(path, &address.to_string())).transpose()?;
    let lock = journal.as_ref().map(Journal::lock).transpose()?;
    let targets = &journal::names(&arguments.targets, path)?;
    let mut opened = CallTimeout::default().open_set(targets)?;
    for device in &mut opened {
        device.end_abandoned_sending()?;
    }
    // From here on a device may be in a state that somebody has to bring it back from.
    let signals = Signals::catch()?;
    let timeout = Duration::from_secs(arguments.timeout);
    let stream = reach(arguments, tls.as_ref(), timeout, &signals, output)?;
    let mut options = SourceOptions::default()
        .downtime_limit(Duration::from_millis(arguments.downtime_limit))
        .max_rounds(arguments.max_rounds)
        .on_timeout(arguments.on_timeout.into())
        .channels(arguments.channels)
        .compression(arguments.compress)
        .timeout(timeout)
        .reconnect(Duration::from_secs(arguments.reconnect));
    options.downtime_max = arguments.downtime_max.map(Duration::from_millis);
    options.total_timeout = arguments.total_timeout.map(Duration::from_secs);
    options.bandwidth = arguments.bandwidth;
    let samples = Arc::new(Mutex::new(Samples::default()));
    let mut source = Source::new(opened.into_iter().map(Opened::into_migratable).collect())
        .options(options)
        .connector(match &tls {
            Some(tls) => Connector::new(address.clone()).tls(tls.clone()),
            None => Connector::new(address.clone()),
        })
        .observer(Watching { inner: Bar::migration(output), samples: samples.clone(), began: Instant::now() })
        .cancel(signals.cancel());
    if let Some(journal) = journal {
        source = source.journal(journal);
    }
    let sent = match stream {
        Reached::Plain(stream) => source.send(stream),
        Reached::Tls(stream) => source.send(*stream),
    };
    // The devices are closed before anything is said of where they are.
    drop(sent.devices);
    drop(lock);
    if let Some(file) = &arguments.report {
        let (report, error) = match &sent.result {
            Ok(report) => (report, None),
            Err(error) => (&*error.report, Some(error)),
        };
        let (devices, to) = (&list(targets), &address.to_string());
        let written = report::write(file, Ended { report, devices, error, to }, &samples.lock());
        // It is not the migration that has failed.
        if let Err(failure) = written {
            warn(&[failure.message()]);
        }
    }
    let report = sent.result.map_err(|error| failed(error, targets, address, path))?;
    journal::warn_if_open(path);
    warn(&report.warnings);
    output.result(&report, Text { report: &report, address })
}

/// Parses an address to connect to or to listen at.
pub(crate) fn parse_address(text: &str) -> Result<Address, String> {
    text.parse().map_err(|_| "expected HOST:PORT, [IPV6]:PORT or unix:PATH".to_string())
}

/// A connection to the destination.
enum Reached {
    Plain(Stream),
    Tls(Box<TlsStream>),
}

/// Connects to the destination.
fn reach(
    arguments: &Arguments,
    tls: Option<&Tls>,
    timeout: Duration,
    signals: &Signals,
    output: Output,
) -> Result<Reached, Failure> {
    let address = &arguments.to;
    let patience = Duration::from_secs(arguments.patience);
    let bar = Bar::waiting(output, format!("connecting to {address}"));
    // A destination that does not answer is given as much time as later.
    let until = |time| Until::new(Instant::now() + time, signals.interrupt());
    let connected = match arguments.patience {
        0 => connect_once(address, until(timeout)),
        _ => connect(address, until(patience)),
    };
    let stream = connected.map_err(|error| match error {
        ConnectError::Interrupted(_) => cancelled(address, signals),
        error => unreachable(address, &error),
    })?;
    let Some(tls) = tls else { return Ok(Reached::Plain(stream)) };
    let reached = tls.connect(stream, address, until(timeout)).map_err(|error| match error {
        TlsError::Wait(WaitError::Interrupted) => cancelled(address, signals),
        error => Failure::new(format!("cannot connect to {address}: {error}")).hint_if(tls::advice(&error)),
    });
    drop(bar);
    reached.map(|stream| Reached::Tls(Box::new(stream)))
}

/// The failure to connect to an address.
pub(crate) fn unreachable(address: &Address, error: &ConnectError) -> Failure {
    match error {
        ConnectError::Failed { error, .. } | ConnectError::Resolve { error, .. } => {
            let failure = Failure::from_io(format!("cannot connect to {address}"), error);
            match error.kind() {
                io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => failure.hint(
                    "no process listens there: start `whimbrel receive` on that host, or wait for it with --patience \
                     SECONDS",
                ),
                io::ErrorKind::TimedOut | io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
                    failure.hint(FIREWALL)
                }
                _ => failure,
            }
        }
        ConnectError::TimedOut(_) => Failure::from_error(error).hint(FIREWALL),
        _ => Failure::from_error(error),
    }
}

/// The failure after a signal before the migration began.
fn cancelled(address: &Address, signals: &Signals) -> Failure {
    Failure::new(format!(
        "cancelled while connecting to {address}: {}; the migration did not begin",
        signals.arrived().unwrap_or_default()
    ))
}

const FIREWALL: &str = "check the address, and whether a firewall blocks it";

fn failed(error: SendError, targets: &[Target], address: &Address, journal: Option<&Path>) -> Failure {
    warn(&error.warnings);
    let settles = journal::remedy(journal);
    let hint = match (&error.outcome, &error.cause) {
        (Outcome::Unknown, _) if settles.is_some() => settles,
        (Outcome::Unknown, _) => Some(unknown(targets, address)),
        (Outcome::Stranded(back), _) => remedy::stranded(back, targets),
        (_, Error::NotConverging { .. } | Error::OutOfTime { .. }) => Some(
            "--downtime-limit MS, --downtime-max MS, --max-rounds N and --total-timeout SECONDS set the bounds; --on-timeout \
             switch stops the devices nevertheless"
                .to_string(),
        ),
        (_, Error::Budget { .. }) => {
            Some("the link became too slow; a higher --downtime-limit MS allows more time".to_string())
        }
        (_, cause) => remedy::after(cause, targets).or(settles),
    };
    Failure::from(error).hint_if(hint)
}

/// The hint after a handover without a confirmation.
fn unknown(targets: &[Target], address: &Address) -> String {
    let check = format!("check at {address} whether the device runs there");
    let of = |closing| targets.iter().filter(move |target| target.closing() == closing).cloned();
    let lasting: Vec<Target> = of(Closing::Keeps).collect();
    if !lasting.is_empty() {
        format!("{check}; {}", remedy::resume(&lasting))
    } else if of(Closing::Resets).next().is_some() {
        format!(
            "{check}; if it does not, its state is lost unless its driver kept it: most kernel drivers have reset this one when \
             this command closed it"
        )
    } else {
        format!("{check}; the model here ends with this command")
    }
}

struct Text<'a> {
    report: &'a Report,
    address: &'a Address,
}

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = self.report;
        let names = report.devices.iter().map(|device| device.name.as_str());
        let runs = if report.devices.len() == 1 { "runs" } else { "run" };
        writeln!(f, "{} now {runs} at {}", output::names(names), self.address)?;
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
        if let [_, _, ..] = &report.devices[..] {
            for device in &report.devices {
                writeln!(f, "    {}: {}", device.name, output::exact_bytes(device.device_bytes))?;
            }
        }
        writeln!(f, "  final bytes   {}", output::exact_bytes(report.final_bytes))?;
        writeln!(f, "  on the wire   {}", output::exact_bytes(report.wire_bytes))?;
        let data = report.memory_bytes - report.zero_bytes + report.device_bytes;
        let wire = report.memory_wire_bytes + report.device_wire_bytes;
        // What was sent again after a lost connection is in the one and not in the other.
        if report.compression && report.reconnections == 0 && wire < data {
            writeln!(f, "  compressed    {} to {}", output::bytes(data), output::bytes(wire))?;
        }
        writeln!(f, "  throughput    {}", output::rate(report.throughput_bytes_per_s))?;
        if let [_, _, ..] = &report.lanes[..] {
            writeln!(f, "  connections   {}", report.lanes.len())?;
            for (number, lane) in (1..).zip(&report.lanes) {
                let (bytes, rate) = (output::exact_bytes(lane.wire_bytes), output::rate(lane.bytes_per_s));
                writeln!(f, "    {number}: {bytes}, {rate} while it sent")?;
            }
        }
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
