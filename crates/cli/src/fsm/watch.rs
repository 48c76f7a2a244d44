//! `whimbrel fsm --walk`: a child process walks the device, and this one enforces a timeout for each request.

use std::time::Duration;

use super::walk::{Told, Walked};
use crate::failure::Failure;
use crate::output::Output;
use crate::progress::Bar;
use crate::target::Target;
use crate::worker::{Heard, Worker, ending};

/// The settings of a walk.
pub(super) struct Settings<'a> {
    pub(super) target: &'a Target,
    /// Walks a device in STOP, STOP_COPY or RESUMING too.
    pub(super) force: bool,
    /// Timeout for each request.
    pub(super) timeout: Duration,
}

/// Walks the device in a child, and prints the result.
pub(super) fn run(settings: &Settings<'_>, output: Output) -> Result<(), Failure> {
    let bar = Bar::waiting(output, format!("asking {} for each pair of states", settings.target));
    let arguments = ["fsm-walk".into(), settings.target.to_string().into()];
    let force = settings.force.then(|| "--force".into());
    let mut worker = Worker::start(arguments.into_iter().chain(force), output)?;
    let walked = follow(&mut worker, settings);
    drop(bar);
    let walked = walked?;
    match walked.differences.len() {
        0 => output.result(&walked, &walked),
        count => {
            output.partial(&walked)?;
            let message =
                format!("{}: {count} of {} answers differ from the table", walked.device, walked.asked);
            Err(Failure::new(message).result(&walked))
        }
    }
}

/// Waits for the result, with the timeout for each request.
fn follow(worker: &mut Worker, settings: &Settings<'_>) -> Result<Walked, Failure> {
    let mut request = "opening the device".to_string();
    loop {
        let line = match worker.hear(settings.timeout)? {
            Heard::Line(line) => line,
            Heard::Silence => return Err(hangs(worker, settings, &request)),
            Heard::Ended => {
                let ended = ending(worker.ended());
                return Err(Failure::new(format!(
                    "{}: {request}: the walk process {ended}",
                    settings.target
                )));
            }
        };
        match serde_json::from_str(&line).map_err(|error| Failure::from_error(&error))? {
            Told::Asking(next) => request = next,
            Told::Walked(walked) => {
                // It has closed the device and is about to end.
                let _ = worker.ended();
                return Ok(walked);
            }
            Told::Failed { error, hint } => {
                let _ = worker.ended();
                return Err(Failure::new(error).hint_if(hint));
            }
        }
    }
}

fn hangs(worker: &mut Worker, settings: &Settings<'_>, request: &str) -> Failure {
    let Settings { target, timeout, .. } = settings;
    let failure =
        Failure::new(format!("{target}: {request} hangs: no answer within {} s", timeout.as_secs()));
    let unkillable = worker.kill();
    failure.hint(
        unkillable.unwrap_or("the device's state is unknown: reset it before you use it again".to_string()),
    )
}
