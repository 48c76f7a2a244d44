//! The process that runs the cases of `whimbrel conform`: it opens the devices, and reports each event in a line.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use clap::Args;
use serde::{Deserialize, Serialize};
use whimbrel_conformance::models::set_hooks;
use whimbrel_conformance::witness::{KernelLog, Witness};
use whimbrel_conformance::{Config, Event, Planned, plan, run_suite};

use super::subject::{self, Subject};
use super::{Settings, parse_known_failures};
use crate::failure::Failure;

/// The process that runs the cases of `whimbrel conform`, started by it
#[derive(Debug, Args)]
pub(crate) struct Arguments {}

/// The task of the process, a line on its stdin. Once its stdin ends, it ends too, after the case that runs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Order {
    pub(super) target: Subject,
    pub(super) second: Option<Subject>,
    pub(super) settings: Settings,
    /// The text of the list.
    pub(super) known_failures: Option<String>,
    /// Results that an earlier process has reported.
    pub(super) reported: usize,
    /// The file for the requests of the case that runs.
    pub(super) requests: Option<PathBuf>,
    /// Only says which cases would run.
    pub(super) plan: bool,
}

/// A line of its stdout.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Told {
    Event(Event),
    /// The cases, or why nothing could be tested.
    Plan(Result<Vec<Planned>, String>),
    /// The process runs, and so its own timeout for each request does.
    Heartbeat,
}

/// Interval between two heartbeats.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// Runs the cases, and reports on stdout.
pub(crate) fn run(_: &Arguments) -> Result<(), Failure> {
    let mut line = String::new();
    let order = io::stdin().read_line(&mut line);
    order.map_err(|error| Failure::from_io("cannot read from stdin", &error))?;
    let order: Order = serde_json::from_str(&line).map_err(|error| Failure::from_error(&error))?;
    let mut config = order.config()?;
    std::thread::Builder::new()
        .name("heartbeat".into())
        .spawn(|| {
            // Nobody listens any more once it fails.
            while tell(&Told::Heartbeat).is_ok() {
                std::thread::sleep(HEARTBEAT);
            }
        })
        .map_err(|error| Failure::from_io("cannot start a thread", &error))?;
    if let Some(identity) = order.target.identity(config.timeout) {
        set_hooks(&mut config, &identity);
    }
    let stop = config.stop.clone();
    std::thread::Builder::new()
        .name("end".into())
        .spawn(move || {
            // An input that cannot be read counts as ended: the process that reads the report is gone.
            let _ = io::copy(&mut io::stdin(), &mut io::sink());
            stop.store(true, Ordering::Relaxed);
        })
        .map_err(|error| Failure::from_io("cannot start a thread", &error))?;
    let subjects = subject::open(&order.target, order.second.as_ref(), config.timeout);
    if order.plan {
        return tell(&Told::Plan(plan(&subjects, &config)));
    }
    let mut witnesses: Vec<Box<dyn Witness>> = Vec::new();
    if order.target.is_of_kernel() {
        witnesses.push(Box::new(KernelLog::open()));
    }
    run_suite(&subjects, &config, &mut witnesses, &mut |event| {
        if tell(&Told::Event(event.clone())).is_err() {
            config.stop.store(true, Ordering::Relaxed);
        }
    });
    Ok(())
}

fn tell(told: &Told) -> Result<(), Failure> {
    let line = serde_json::to_string(told).map_err(|error| Failure::from_error(&error))?;
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")
        .and_then(|()| out.flush())
        .map_err(|error| Failure::from_io("cannot report to the parent process", &error))
}

impl Order {
    /// The suite's settings.
    pub(super) fn config(&self) -> Result<Config, Failure> {
        let mut config = self.settings.config();
        config.reported = self.reported;
        // What an earlier process has left is no copy of a migrated device.
        config.force |= self.reported > 0;
        // Without it a case that kills this process is reported without its requests.
        let requests =
            self.requests.as_ref().and_then(|path| File::options().read(true).write(true).open(path).ok());
        config.requests = requests.map(Arc::new);
        if let Some(text) = &self.known_failures {
            config.known_failures =
                parse_known_failures(text).map_err(|error| Failure::from_error(&error))?;
        }
        config.stream = self.settings.read_stream()?.map(Into::into);
        Ok(config)
    }
}
