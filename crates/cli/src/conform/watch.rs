//! The process of `whimbrel conform` that reports: others run the cases, and this one watches them.

use std::os::fd::AsRawFd;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use whimbrel_conformance::witness::{KernelLog, Witness};
use whimbrel_conformance::{Config, Event, Relay, Summary};

use super::cases::{Order, Told};
use super::report::{Format, Replay, Report};
use super::{Arguments, print_planned};
use crate::failure::Failure;
use crate::output::{Output, note};
use crate::signals::Signals;
use crate::worker::{Heard, Worker, ending};

/// Interval between two looks for a signal.
const PAUSE: Duration = Duration::from_millis(50);
/// Time that a process has beyond the timeouts that it keeps itself.
const GRACE: Duration = Duration::from_secs(10);

/// Runs the cases, or lists them.
pub(super) fn run(
    mut order: Order,
    arguments: &Arguments,
    format: Format,
    output: Output,
) -> Result<ExitCode, Failure> {
    // Files of this process are opened by their names in /proc.
    let requests = tempfile::tempfile().ok();
    order.requests =
        requests.as_ref().map(|file| format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()).into());
    let config = order.config()?;
    let signals = Signals::catch()?;
    if order.plan {
        return plan(&order, &config, format, output, &signals);
    }
    let replay = Replay { before: replay(&order), after: String::new() };
    let mut report = Report::new(format, arguments.all, arguments.output.as_deref(), replay, output)?;
    let kernel_log = order.target.is_of_kernel().then(KernelLog::open);
    let mut watch = Watch { order, output, config: &config, signals: &signals, kernel_log };
    let summary = watch.all(&mut |event| report.event(event))?;
    report.finish()?;
    if format != Format::Text && arguments.output.is_none() {
        note(&summary);
    }
    Ok(ExitCode::from(summary.exit_status()))
}

struct Watch<'a> {
    order: Order,
    output: Output,
    config: &'a Config,
    signals: &'a Signals,
    /// Of a device of the kernel: the process that reads it beside the cases may die of what it tells.
    kernel_log: Option<KernelLog>,
}

impl Watch<'_> {
    /// Runs all cases, in as many processes as it takes.
    fn all(&mut self, told: &mut dyn FnMut(&Event)) -> Result<Summary, Failure> {
        let mut relay = Relay::new(self.config, told);
        while let Some(reported) = relay.resume().filter(|_| self.signals.arrived().is_none()) {
            self.order.reported = reported;
            let mut worker = start(&self.order, self.output)?;
            self.follow(&mut worker, &mut relay)?;
        }
        let why = self.signals.arrived();
        Ok(relay.finish(why.as_deref().unwrap_or("the run has ended")))
    }

    /// Takes the events of one process, until it ends or is given up.
    ///
    /// The process itself judges how long a request may take, and then a case. It is given up if it cannot: because it has
    /// stopped running, or because its report of a case does not come.
    fn follow(&mut self, worker: &mut Worker, relay: &mut Relay<'_>) -> Result<(), Failure> {
        let request_limit = self.config.timeout.saturating_add(GRACE);
        let case_limit = self.config.case_timeout.max(self.config.timeout).saturating_add(GRACE);
        // First the devices are opened and asked, one after the other.
        let opening_limit = self.config.timeout.saturating_mul(3).saturating_add(GRACE);
        let (mut heard, mut reported, mut limit) = (Instant::now(), Instant::now(), opening_limit);
        let mut interrupted = None;
        loop {
            if interrupted.is_none() && self.signals.arrived().is_some() {
                // It ends after the case that runs, and brings the device back to RUNNING.
                worker.close_stdin();
                interrupted = Some(Instant::now());
            }
            match worker.hear(PAUSE)? {
                Heard::Line(line) => {
                    heard = Instant::now();
                    let Told::Event(event) = parse(&line)? else { continue };
                    (reported, limit) = (heard, case_limit);
                    let is_end = matches!(event, Event::End(_));
                    relay.event(event);
                    if is_end {
                        if let Some(text) = leave(worker) {
                            relay.notice(text);
                        }
                        return Ok(());
                    }
                }
                Heard::Silence if heard.elapsed() > request_limit => {
                    let expected =
                        format!("an answer to each request within {} s", self.config.timeout.as_secs());
                    let what = format!(
                        "the process that runs the cases has been stopped for {} s",
                        heard.elapsed().as_secs()
                    );
                    self.give_up(worker, relay, &expected, &what);
                    return Ok(());
                }
                Heard::Silence if reported.elapsed() > limit => {
                    let expected =
                        format!("the end of the case within {} s", self.config.case_timeout.as_secs());
                    let what = format!(
                        "the process that runs the cases has reported nothing for {} s",
                        reported.elapsed().as_secs()
                    );
                    self.give_up(worker, relay, &expected, &what);
                    return Ok(());
                }
                Heard::Silence if interrupted.is_some_and(|since| since.elapsed() > GRACE) => {
                    let running = relay.running().unwrap_or("a request");
                    relay.notice(format!(
                        "{running} has not ended within {} s: the device's state is unknown, reset it before you use it \
                         again",
                        GRACE.as_secs()
                    ));
                    kill(worker, relay);
                    return Ok(());
                }
                Heard::Silence => {}
                Heard::Ended => {
                    let how = format!("the process {}", ending(worker.ended()));
                    kill(worker, relay);
                    relay.died(&how, self.kernel_log());
                    return Ok(());
                }
            }
        }
    }

    /// Ends a process that does not do what is expected of it.
    fn give_up(&mut self, worker: &mut Worker, relay: &mut Relay<'_>, expected: &str, what: &str) {
        relay.hung(expected, what, self.kernel_log());
        kill(worker, relay);
    }

    fn kernel_log(&mut self) -> Vec<String> {
        self.kernel_log.as_mut().map(Witness::found).unwrap_or_default()
    }
}

/// Starts a process that runs the cases.
fn start(order: &Order, output: Output) -> Result<Worker, Failure> {
    let mut worker = Worker::start(["conform-cases".into()], output)?;
    let line = serde_json::to_string(order).map_err(|error| Failure::from_error(&error))?;
    worker.say(&line)?;
    Ok(worker)
}

fn kill(worker: &mut Worker, relay: &mut Relay<'_>) {
    if let Some(text) = worker.kill() {
        relay.notice(text);
    }
}

/// Lets a process end. If it hangs in the kernel, returns how to find it.
fn leave(worker: &mut Worker) -> Option<String> {
    worker.close_stdin();
    if worker.ended().is_some() { None } else { worker.kill() }
}

fn parse(line: &str) -> Result<Told, Failure> {
    serde_json::from_str(line).map_err(|error| Failure::from_error(&error))
}

/// Prints the cases that would run.
fn plan(
    order: &Order,
    config: &Config,
    format: Format,
    output: Output,
    signals: &Signals,
) -> Result<ExitCode, Failure> {
    let target = &order.target;
    let mut worker = start(order, output)?;
    let since = Instant::now();
    // The devices are asked one after the other.
    let limit = config.timeout.saturating_mul(2).saturating_add(GRACE);
    loop {
        if let Some(signal) = signals.arrived() {
            leave(&mut worker);
            return Err(Failure::new(format!("{signal}: {target} has not answered")));
        }
        match worker.hear(PAUSE)? {
            Heard::Line(line) => match parse(&line)? {
                Told::Plan(Ok(planned)) => {
                    leave(&mut worker);
                    print_planned(&planned, true, format)?;
                    return Ok(ExitCode::SUCCESS);
                }
                Told::Plan(Err(why)) => {
                    leave(&mut worker);
                    note(format_args!("error: nothing can be tested: {why}"));
                    return Ok(ExitCode::from(3));
                }
                Told::Event(_) | Told::Heartbeat => {}
            },
            Heard::Silence if since.elapsed() > limit => {
                let hint = worker.kill();
                return Err(Failure::new(format!("{target}: the device does not answer")).hint_if(hint));
            }
            Heard::Silence => {}
            Heard::Ended => {
                let how = ending(worker.ended());
                return Err(Failure::new(format!("{target}: the process that opens the device {how}")));
            }
        }
    }
}

/// The command that runs a single case in the same way, without its id and seed.
fn replay(order: &Order) -> String {
    let targets = std::iter::once(&order.target).chain(&order.second).map(ToString::to_string);
    let words: Vec<String> = ["whimbrel", "conform"]
        .map(String::from)
        .into_iter()
        .chain(targets)
        .chain(order.settings.replay())
        .collect();
    // Only a word with a NUL cannot be quoted, and an argument has none.
    shlex::try_join(words.iter().map(String::as_str)).unwrap_or_default()
}
