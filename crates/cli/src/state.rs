//! `whimbrel state`: a device's migration state, shown or changed.

use std::fmt;

use clap::Args;
use serde::Serialize;
use whimbrel_protocol::{MigrationFlags, State, fsm};
use whimbrel_user::{DataFile, Migratable, Timed};

use crate::call_timeout::CallTimeout;
use crate::end::Hold;
use crate::failure::Failure;
use crate::fsm::{direction_name, flag_names, parse_state};
use crate::output::{self, Output};
use crate::remedy;
use crate::target::{Closing, Opened, Target};

/// Show a device's migration state, or bring the device to a state
///
/// With STATE the device goes there over the states that `whimbrel fsm` shows. To resume a device that a killed `send` or
/// `save` left in PRE_COPY or STOP_COPY, give RUNNING. A device in STOP or STOP_COPY may have been migrated: resume it only
/// if it does not run on another host.
///
/// A served device stays in its state when this command ends. Most kernel drivers, those of PCI devices among them, reset a
/// device when it is opened and when it is closed: its state then lasts only while this command holds the device (--hold).
///
/// In PRE_COPY, PRE_COPY_P2P, STOP_COPY and RESUMING the device has a data session. It ends when this command ends; a
/// served device then stays in that state without a session, until it is brought to another or reset.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Arguments {
    /// The device (`whimbrel --help` says how to name it)
    #[arg(value_name = "TARGET")]
    target: Target,
    /// The requested state, such as RUNNING; case and hyphens do not matter
    #[arg(value_name = "STATE", value_parser = parse_state)]
    state: Option<State>,
    /// Hold the device, and its data session, until stdin ends or SIGINT or SIGTERM arrives
    #[arg(long)]
    hold: bool,
    #[command(flatten)]
    call_timeout: CallTimeout,
}

const AFTER_HELP: &str = "\
Examples:
  whimbrel state vfio-user:/run/accel
  whimbrel state vfio-user:/run/accel RUNNING
  whimbrel state 0000:3b:00.2 STOP_COPY --hold";

/// The result, for scripts.
#[derive(Debug, Serialize)]
struct Found {
    device: String,
    /// The state in which the device was found.
    before: &'static str,
    state: &'static str,
    /// The data session that this command has opened: `saving` or `resuming`.
    session: Option<&'static str>,
    closing: Closing,
    #[serde(skip)]
    hold: bool,
    #[serde(skip)]
    is_changed: bool,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments, output: Output) -> Result<(), Failure> {
    let hold = Hold::new(arguments.hold)?;
    let mut opened = arguments.call_timeout.open(&arguments.target)?;
    let before = opened.state()?;
    let session = match arguments.state {
        Some(state) => enter(&mut opened, &arguments.target, before, state)?,
        None => None,
    };
    let found = Found {
        device: opened.name().to_string(),
        before: before.name(),
        state: arguments.state.unwrap_or(before).name(),
        session: session.as_ref().map(|session| direction_name(session.direction())),
        closing: arguments.target.closing(),
        hold: arguments.hold,
        is_changed: arguments.state.is_some(),
    };
    output.result(&found, &found)?;
    hold.wait(found.closing)
}

/// Brings the device to a state. A failure says where the device is after it.
fn enter(
    device: &mut Timed<Opened>,
    target: &Target,
    before: State,
    state: State,
) -> Result<Option<DataFile>, Failure> {
    let flags = device.migration_flags()?.unwrap_or(MigrationFlags::empty());
    // Not left to the device: some kernels never answer two of the requests that the table refuses.
    if let Some(refused) = fsm::refusal(flags, before, state) {
        let failure = Failure::new(format!("{}: {before} -> {state} is refused: {refused}", device.name()))
            .result(&failed_in(device, before, Some(before)));
        return Err(match before {
            State::Error => failure.hint(remedy::reset(target)),
            _ => failure.hint(format!(
                "the device's features are {}; `whimbrel fsm --table` shows the requests",
                output::names(flag_names(flags))
            )),
        });
    }
    device.go_to(state).map_err(|error| {
        let now = device.state();
        let message = match (&error, &now) {
            // The error says so.
            (whimbrel_user::Error::NotReached { found, .. }, Ok(now)) if found == now => error.to_string(),
            (_, Ok(now)) => format!("{error}; the device is in {now}"),
            (_, Err(unread)) => format!("{error}; its state cannot be read: {unread}"),
        };
        let hint = match (&now, error.advice()) {
            (Err(whimbrel_user::Error::Lost { .. }), advice) => {
                remedy::hung(target).or_else(|| advice.map(String::from)).unwrap_or_default()
            }
            // In RESUMING, what it has received is incomplete.
            (Ok(State::Resuming | State::Error), _) => remedy::reset(target),
            (_, Some(advice)) => advice.to_string(),
            _ => "check the host's kernel log (dmesg), or the log of the device's server".to_string(),
        };
        Failure::new(message).hint(hint).result(&failed_in(device, before, now.ok()))
    })
}

/// The states of a device that has refused a request, for scripts. `state` is null if it cannot be read.
fn failed_in(device: &Timed<Opened>, before: State, now: Option<State>) -> serde_json::Value {
    serde_json::json!({ "device": device.name(), "before": before.name(), "state": now.map(State::name) })
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_changed && self.before != self.state {
            write!(f, "{}: {} -> {}", self.device, self.before, self.state)?;
        } else {
            write!(f, "{}: {}", self.device, self.state)?;
        }
        if self.hold {
            return Ok(());
        }
        if self.session.is_some() && self.closing == Closing::Keeps {
            write!(f, "\n  its data session ends with this command (--hold keeps it open)")?;
        }
        match self.closing {
            Closing::Keeps => Ok(()),
            Closing::Resets | Closing::Ends => write!(f, "\n  {}", self.closing),
        }
    }
}
