//! The main job with nothing but this machine: two processes, a device with work and its memory, moved live from one to
//! the other over TCP, and verified.
//!
//! This process only starts the two hosts, passes messages, and judges what they report ([`verify`]). What a host does
//! is in [`host`], the machine it has in [`machine`], the program that keeps the device busy in [`work`].

mod host;
mod machine;
mod messages;
mod verify;
mod work;

use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use whimbrel_engine::Observer;
use whimbrel_models::Model;

use self::messages::{Config, Event, Order, Role};
use self::verify::{Check, Findings};
use crate::failure::Failure;
use crate::output::{self, Output};
use crate::progress::Bar;

pub(crate) use self::host::{Arguments as HostArguments, run as run_host};

/// Move a working device and its memory live between two processes, and verify that nothing was lost.
///
/// Two processes are started on this machine. The first gives its device work through DMA memory: it fills, copies and
/// checks blocks, and every completion is checked. In the middle of that the device and all memory move to the second
/// process over TCP, where the work goes on. Nothing is needed but this program.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The device: model:accel with its settings, protocol=v1 and draft among them, or model:legacy
    #[arg(long, value_name = "TARGET", default_value = "model:accel?state=64MiB&rate=16MiB")]
    device: String,
    /// Memory of the machine, in bytes or with a unit such as 256MiB; 16 MiB at least
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = size)]
    memory: u64,
    /// Memory the device writes, in bytes per second or with a unit such as 64MiB; 1 MiB at least, so that there is work
    /// to lose
    #[arg(long, value_name = "BYTES/S", default_value = "64MiB", value_parser = rate)]
    dirty_rate: u64,
    /// The device is stopped once it is expected to stand still for no longer than this, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 300)]
    downtime_limit: u64,
    /// Give up after this many rounds without that
    #[arg(long, value_name = "N", default_value_t = 30)]
    max_rounds: u32,
    /// How long the device works before it moves, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 300)]
    work_before: u64,
    /// How long it works after it has moved, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 500)]
    work_after: u64,
}

/// The result. The names are stable: scripts read them.
#[derive(Debug, Serialize)]
struct Outcome {
    verified: bool,
    downtime_ms: f64,
    predicted_downtime_ms: f64,
    downtime_limit_ms: u64,
    total_ms: f64,
    inspection_ms: f64,
    rounds: u32,
    memory_bytes: u64,
    zero_bytes: u64,
    device_bytes: u64,
    final_bytes: u64,
    /// What the last bytes take at the measured speed.
    final_transfer_ms: f64,
    throughput_bytes_per_s: f64,
    /// Jobs the device had completed when it was stopped at the source.
    completions_before: u64,
    /// Jobs it had completed at the destination at the end, those before included.
    completions_total: u64,
    checks: Vec<Check>,
}

/// A size in bytes, as the models take it.
fn size(text: &str) -> Result<u64, String> {
    whimbrel_models::parse_size(text)
        .ok_or_else(|| "give a number of bytes, alone or with K, M, G, KiB, MiB or GiB".to_string())
}

/// A rate at which the device completes something before and after it moves.
fn rate(text: &str) -> Result<u64, String> {
    match size(text)? {
        bytes if bytes < 1 << 20 => Err("1 MiB a second is the least".to_string()),
        bytes => Ok(bytes),
    }
}

/// Runs the demo.
pub(crate) fn run(arguments: &Arguments, output: Output) -> Result<(), Failure> {
    let device = model(&arguments.device)?;
    machine::check_memory(arguments.memory)?;
    let config = Config {
        role: Role::Destination,
        device: device.clone(),
        memory: arguments.memory,
        dirty_rate: arguments.dirty_rate,
        downtime_limit_ms: arguments.downtime_limit,
        max_rounds: arguments.max_rounds,
        work_before_ms: arguments.work_before,
        work_after_ms: arguments.work_after,
    };
    let mut bar = Bar::migration(output);
    bar.message("starting two processes");
    let mut destination = Host::start(&config)?;
    let mut source = Host::start(&Config { role: Role::Source, ..config })?;
    let address = match destination.event()? {
        Event::Listening { address } => address,
        other => return Err(destination.unexpected(&other)),
    };
    bar.message("working");
    match source.event()? {
        Event::Working => {}
        other => return Err(source.unexpected(&other)),
    }
    source.order(&Order::Send { address })?;
    let (report, sent) = loop {
        match source.event()? {
            Event::Progress(progress) => bar.progress(&progress.into()),
            Event::Sent { report, evidence } => break (report, evidence),
            Event::NotSent { error, works_on } => {
                let after = if works_on { "its work goes on at the source" } else { "its work has stopped" };
                return Err(Failure::new(format!("the migration failed: {error} ({after})")));
            }
            other => return Err(source.unexpected(&other)),
        }
    };
    let received = match destination.event()? {
        Event::Received { evidence } => evidence,
        other => return Err(destination.unexpected(&other)),
    };
    bar.message("working at the destination");
    let finished = match destination.event()? {
        Event::Finished(finished) => finished,
        other => return Err(destination.unexpected(&other)),
    };
    drop(bar);

    let checks = verify::all(&Findings { sent: &sent, received: &received, finished: &finished });
    let verified = checks.iter().all(|check| check.ok);
    let final_transfer = if report.throughput_bytes_per_s > 0.0 {
        report.final_bytes as f64 / report.throughput_bytes_per_s * 1000.0
    } else {
        0.0
    };
    let outcome = Outcome {
        verified,
        downtime_ms: report.downtime_ms,
        predicted_downtime_ms: report.predicted_downtime_ms,
        downtime_limit_ms: arguments.downtime_limit,
        total_ms: report.total_ms,
        inspection_ms: report.inspection_ms,
        rounds: report.rounds,
        memory_bytes: report.memory_bytes,
        zero_bytes: report.zero_bytes,
        device_bytes: report.device_bytes,
        final_bytes: report.final_bytes,
        final_transfer_ms: final_transfer,
        throughput_bytes_per_s: report.throughput_bytes_per_s,
        completions_before: sent.program.completed,
        completions_total: finished.program.completed,
        checks,
    };
    if verified {
        return output.result(&outcome, text(&device, arguments.memory, &outcome));
    }
    output.partial(text(&device, arguments.memory, &outcome))?;
    Err(Failure::new("the move could not be verified: see the checks above").result(&outcome))
}

/// The model behind a demo's device, in the form the hosts parse again.
fn model(target: &str) -> Result<String, Failure> {
    let name = target.strip_prefix("model:").ok_or_else(|| {
        Failure::new(format!("the demo moves a model, and '{target}' is none"))
            .hint("give --device model:accel, with settings such as model:accel?state=64MiB&rate=16MiB")
    })?;
    match name.parse::<Model>() {
        Ok(Model::Accel(..) | Model::Legacy(_)) => Ok(name.to_string()),
        Ok(_) => {
            Err(Failure::new(format!("the demo gives its device work by DMA, which '{target}' cannot do"))
                .hint("give --device model:accel"))
        }
        Err(error) => Err(Failure::from_error(&error)),
    }
}

fn text(device: &str, memory: u64, outcome: &Outcome) -> String {
    let mut table = output::table(["", ""]);
    let rounds = match outcome.rounds {
        1 => "one round".to_string(),
        rounds => format!("{rounds} rounds"),
    };
    let rate = output::rate(outcome.throughput_bytes_per_s);
    let after = outcome.completions_total.saturating_sub(outcome.completions_before);
    table.add_row([
        "downtime".to_string(),
        format!(
            "{}, {} expected, {} ms allowed",
            output::milliseconds(outcome.downtime_ms),
            output::milliseconds(outcome.predicted_downtime_ms),
            outcome.downtime_limit_ms
        ),
    ]);
    table.add_row([
        "in all".to_string(),
        format!("{}, {rounds} while the device worked", output::milliseconds(outcome.total_ms)),
    ]);
    table.add_row([
        "carried".to_string(),
        format!(
            "{} of memory, {} of device state, {} of both while it stood still",
            output::bytes(outcome.memory_bytes),
            output::bytes(outcome.device_bytes),
            output::bytes(outcome.final_bytes)
        ),
    ]);
    table.add_row([
        "speed".to_string(),
        format!("{rate}, at which the last bytes take {}", output::milliseconds(outcome.final_transfer_ms)),
    ]);
    table.add_row([
        "work".to_string(),
        format!(
            "{} jobs completed at the source, {after} more at the destination",
            outcome.completions_before
        ),
    ]);
    let body: String =
        table.to_string().lines().skip(1).map(|line| format!("  {}\n", line.trim_end())).collect();
    let checks: String = outcome
        .checks
        .iter()
        .map(|check| {
            format!("  {} {}: {}\n", if check.ok { "ok    " } else { "FAILED" }, check.what, check.found)
        })
        .collect();
    let verdict = if outcome.verified { "verified" } else { "NOT verified" };
    format!(
        "moved {device} and {} of memory to another process while it worked\n{body}{verdict}\n{checks}",
        output::bytes(memory)
    )
}

/// One of the two processes. It is killed if this end goes away.
struct Host {
    role: Role,
    child: Child,
    orders: ChildStdin,
    events: Lines<BufReader<ChildStdout>>,
}

/// How long a process that has been told to end may take.
const ENDING: Duration = Duration::from_millis(20);

impl Host {
    fn start(config: &Config) -> Result<Host, Failure> {
        let program = std::env::current_exe()
            .map_err(|error| Failure::from_io("cannot find this program's own file", &error))?;
        let mut child = Command::new(program)
            .arg("demo-host")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| Failure::from_io("cannot start a second process", &error))?;
        let (Some(orders), Some(events)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Failure::new("a second process was started without its pipes"));
        };
        let mut host = Host { role: config.role, child, orders, events: BufReader::new(events).lines() };
        host.order(&Order::Begin(config.clone()))?;
        Ok(host)
    }

    fn order(&mut self, order: &Order) -> Result<(), Failure> {
        let sent = serde_json::to_string(order).map_err(std::io::Error::from).and_then(|line| {
            writeln!(self.orders, "{line}")?;
            self.orders.flush()
        });
        sent.map_err(|error| match self.death() {
            Some(failure) => failure,
            None => Failure::from_io(format!("cannot reach the {} process", self.role), &error),
        })
    }

    fn event(&mut self) -> Result<Event, Failure> {
        let event = match self.events.next() {
            Some(Ok(line)) => serde_json::from_str(&line)
                .map_err(|error| Failure::new(format!("the {} process said nonsense: {error}", self.role)))?,
            Some(Err(error)) => {
                return Err(Failure::from_io(format!("cannot hear the {} process", self.role), &error));
            }
            None => {
                // Its end of the pipe closes a moment before its status can be had.
                std::thread::sleep(ENDING);
                return Err(self.death().unwrap_or_else(|| {
                    Failure::new(format!("the {} process closed its output", self.role))
                }));
            }
        };
        match event {
            Event::Failed { error } => Err(Failure::new(format!("the {} process: {error}", self.role))),
            event => Ok(event),
        }
    }

    fn death(&mut self) -> Option<Failure> {
        let status = self.child.try_wait().ok()??;
        Some(Failure::new(format!("the {} process ended in the middle of the demo: {status}", self.role)))
    }

    fn unexpected(&self, event: &Event) -> Failure {
        Failure::new(format!("the {} process said {event:?} out of turn", self.role))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // It may have ended by itself, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
