//! The process that runs the cases of `whimbrel conform`: it opens the devices, and reports each event in a line.

use std::io::{self, Write};
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use clap::Args;
use serde::{Deserialize, Serialize};
use whimbrel_conformance::witness::{KernelLog, Witness};
use whimbrel_conformance::{Config, Event, Planned, Subjects, plan, run_suite};
use whimbrel_user::{Device, State};
use whimbrel_vfio_user::ClientOptions;

use super::{Settings, parse_known_failures};
use crate::failure::Failure;
use crate::target::{Target, kernel_release};

/// The process that runs the cases of `whimbrel conform`, started by it
#[derive(Debug, Args)]
pub(crate) struct Arguments {}

/// The task of the process, a line on its stdin. Once its stdin ends, it ends too, after the case that runs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Order {
    pub(super) target: Target,
    pub(super) second: Option<Target>,
    pub(super) settings: Settings,
    /// The text of the list.
    pub(super) known_failures: Option<String>,
    /// Results that an earlier process has reported.
    pub(super) reported: usize,
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
}

/// Runs the cases, and reports on stdout.
pub(crate) fn run(_: &Arguments) -> Result<(), Failure> {
    let mut line = String::new();
    let order = io::stdin().read_line(&mut line);
    order.map_err(|error| Failure::from_io("cannot read from stdin", &error))?;
    let order: Order = serde_json::from_str(&line).map_err(|error| Failure::from_error(&error))?;
    let config = order.config()?;
    let stop = config.stop.clone();
    std::thread::Builder::new()
        .name("end".into())
        .spawn(move || {
            // An input that cannot be read counts as ended: the process that reads the report is gone.
            let _ = io::copy(&mut io::stdin(), &mut io::sink());
            stop.store(true, Ordering::Relaxed);
        })
        .map_err(|error| Failure::from_io("cannot start a thread", &error))?;
    let subjects = order.subjects();
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
        if let Some(text) = &self.known_failures {
            config.known_failures =
                parse_known_failures(text).map_err(|error| Failure::from_error(&error))?;
        }
        if let Some(path) = &self.settings.stream {
            let state = std::fs::read(path)
                .map_err(|error| Failure::from_io(format!("cannot read {}", path.display()), &error))?;
            config.stream = Some(state.into());
        }
        Ok(config)
    }

    fn subjects(&self) -> Subjects {
        // The suite's own timeout comes first: it names the case.
        let defaults = ClientOptions::default();
        let timeout = defaults.request_timeout.saturating_add(Duration::from_secs(self.settings.timeout));
        let options = defaults.request_timeout(timeout);
        let opener = |target: &Target| {
            let (target, options) = (target.clone(), options.clone());
            move || -> whimbrel_user::Result<Box<dyn Device>> {
                match target.device(&options)? {
                    (device, None) => Ok(device),
                    (_, Some(error)) => Err(error),
                }
            }
        };
        let mut subjects = Subjects::new(self.target.to_string(), opener(&self.target));
        if let Some(second) = &self.second {
            subjects = subjects.second(second.to_string(), opener(second));
        }
        if self.target.is_of_kernel() {
            subjects = subjects.kernel(kernel_release()).state_witness(debugfs_state(&self.target));
        }
        subjects
    }
}

/// The device's state as debugfs tells it, if it does.
fn debugfs_state(target: &Target) -> impl Fn() -> Option<State> + Send + Sync + 'static {
    let (target, device) = (target.clone(), Arc::new(OnceLock::new()));
    move || {
        let device = device.get_or_init(|| target.host_device()).as_ref()?;
        State::from_name(&device.migration_debug()?.state)
    }
}
