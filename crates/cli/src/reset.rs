//! `whimbrel reset`: resets a device.

use std::fmt;

use clap::Args;
use serde::Serialize;
use whimbrel_protocol::State;
use whimbrel_user::{Migratable, Timed};

use crate::call_timeout::CallTimeout;
use crate::end::Hold;
use crate::failure::Failure;
use crate::output::Output;
use crate::remedy;
use crate::target::{Closing, Opened, Target};

/// Reset a device, for example one in ERROR or with a partly received state
///
/// The device's current state is lost. A served device is in RUNNING afterwards, as when its server started. Most kernel
/// drivers reset a device anyway when it is opened and when it is closed: use --hold to keep it open in between.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Arguments {
    /// The device (`whimbrel --help` says how to name it)
    #[arg(value_name = "TARGET")]
    target: Target,
    /// Hold the device until stdin ends or SIGINT or SIGTERM arrives
    #[arg(long)]
    hold: bool,
    #[command(flatten)]
    call_timeout: CallTimeout,
}

const AFTER_HELP: &str = "\
Examples:
  whimbrel reset vfio-user:/run/accel
  whimbrel reset 0000:3b:00.2 --hold";

/// The result, for scripts. The states are null for a device that does not migrate.
#[derive(Debug, Serialize)]
struct Reset {
    device: String,
    /// The state before the reset. Null also if the device did not report it.
    before: Option<&'static str>,
    state: Option<&'static str>,
    closing: Closing,
    #[serde(skip)]
    hold: bool,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments, output: Output) -> Result<(), Failure> {
    let hold = Hold::new(arguments.hold)?;
    // Also one with a migration region that cannot be used at the moment: a reset may be the remedy.
    let mut opened = arguments.call_timeout.look_at(&arguments.target)?;
    let before = state(&mut opened).ok().flatten();
    opened.reset().map_err(|error| {
        let hangs = matches!(error, whimbrel_user::Error::Overdue { .. } | whimbrel_user::Error::Lost { .. });
        let hint = hangs.then(|| remedy::hung(&arguments.target)).flatten();
        Failure::from(error).hint_if(hint)
    })?;
    let now = state(&mut opened).map_err(|error| {
        Failure::new(format!("the device is reset, but its state cannot be read: {error}"))
    })?;
    let reset = Reset {
        device: opened.name().to_string(),
        before: before.map(State::name),
        state: now.map(State::name),
        closing: arguments.target.closing(),
        hold: arguments.hold,
    };
    output.result(&reset, &reset)?;
    hold.wait(reset.closing)
}

/// The migration state of a device that migrates.
fn state(device: &mut Timed<Opened>) -> Result<Option<State>, whimbrel_user::Error> {
    match device.migration_flags()? {
        Some(_) => device.state().map(Some),
        None => Ok(None),
    }
}

impl fmt::Display for Reset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: reset", self.device)?;
        match (self.before, self.state) {
            (Some(before), Some(state)) => write!(f, ", {before} -> {state}")?,
            (None, Some(state)) => write!(f, ", now in {state}")?,
            (_, None) => {}
        }
        match self.closing {
            Closing::Resets | Closing::Ends if !self.hold => write!(f, "\n  {}", self.closing),
            _ => Ok(()),
        }
    }
}
