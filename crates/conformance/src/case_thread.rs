//! One case on a thread of its own, watched request by request.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use whimbrel_protocol::MigrationFlags;

use crate::bench::{Bench, Features};
use crate::case::{Case, Need};
use crate::config::Config;
use crate::opening::opened;
use crate::outcome::Stop;
use crate::stdin::complaint::Complaint;
use crate::subject::Subject;
use crate::subjects::{Opener, Subjects};
use crate::time_budget::TimeBudget;
use crate::transcript::{Pending, Transcript};

/// The outcome of one run of a case.
pub(crate) enum CaseOutcome {
    Passed,
    Stopped(Stop),
    /// The device could not be opened or brought to RUNNING.
    NotOpened(String),
    Panicked(String),
    /// A request, or the whole case, has not ended in time.
    Hung {
        expected: String,
        found: String,
    },
}

impl CaseOutcome {
    /// Replaces the outcome by what was wrong with the program under test, if anything was.
    pub(crate) fn or_complaint(self, complaint: Option<Complaint>) -> CaseOutcome {
        match (self, complaint) {
            (hung @ CaseOutcome::Hung { .. }, _) => hung,
            (_, Some(Complaint::Broken(found))) => {
                let expected = "a program that keeps to the protocol".to_string();
                CaseOutcome::Stopped(Stop::Failed { expected, found })
            }
            (
                CaseOutcome::Stopped(_) | CaseOutcome::NotOpened(_),
                Some(complaint @ Complaint::Unimplemented(_)),
            ) => CaseOutcome::Stopped(Stop::Skipped(complaint.to_string())),
            (outcome, _) => outcome,
        }
    }
}

/// The input of a case's thread.
pub(crate) struct CaseThread {
    pub(crate) case: &'static Case,
    pub(crate) features: Features,
    pub(crate) subjects: Subjects,
    pub(crate) config: Config,
    pub(crate) seed: u64,
    pub(crate) transcript: Transcript,
    pub(crate) budget: TimeBudget,
}

/// The time limits of one request, and of the whole case.
#[derive(Clone, Copy)]
struct Limits {
    request: Duration,
    case: Duration,
}

impl Limits {
    /// Waits for the outcome of a case that begins now.
    fn wait(self, receiver: &Receiver<CaseOutcome>, transcript: &Transcript) -> CaseOutcome {
        let start = Instant::now();
        loop {
            // A request that begins after this look has more time than the next look is away.
            let pending = transcript.pending();
            let spent = pending.as_ref().map_or(Duration::ZERO, Pending::elapsed);
            if let Some(pending) = pending.filter(|_| spent >= self.request) {
                return CaseOutcome::Hung {
                    expected: format!("an answer to each request within {} s", self.request.as_secs_f64()),
                    found: format!("{} has not returned for {:.1} s", pending.request, spent.as_secs_f64()),
                };
            }
            let case_left = self.case.saturating_sub(start.elapsed());
            if case_left.is_zero() {
                return self.case_hung(transcript);
            }
            match receiver.recv_timeout(case_left.min(self.request.saturating_sub(spent))) {
                Ok(outcome) => return outcome,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return CaseOutcome::NotOpened("the case's thread has ended".to_string());
                }
            }
        }
    }

    fn case_hung(self, transcript: &Transcript) -> CaseOutcome {
        let last = match transcript.pending() {
            Some(pending) => format!(
                "{} has not returned for {:.1} s, which is within the timeout of one request",
                pending.request,
                pending.elapsed().as_secs_f64()
            ),
            None => "no request is pending".to_string(),
        };
        CaseOutcome::Hung {
            expected: format!("the end of the case within {} s", self.case.as_secs_f64()),
            found: format!(
                "it goes on after {} requests: {last}; a slow device needs more time (--case-timeout)",
                transcript.count()
            ),
        }
    }
}

impl CaseThread {
    /// Runs the case on a thread of its own, and gives it up once a request or all of them take too long.
    pub(crate) fn watched(self) -> CaseOutcome {
        let (transcript, name) = (self.transcript.clone(), self.case.id());
        let limits = Limits { request: self.config.timeout, case: self.config.case_timeout };
        let (sender, receiver) = channel();
        let spawned = thread::Builder::new().name(name.to_string()).spawn(move || {
            let outcome = catch_unwind(AssertUnwindSafe(|| self.run())).unwrap_or_else(|panic| {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("without a text");
                CaseOutcome::Panicked(text.to_string())
            });
            // Without a listener the case has hung for too long.
            let _ = sender.send(outcome);
        });
        match spawned {
            Ok(_) => limits.wait(&receiver, &transcript),
            Err(error) => CaseOutcome::NotOpened(format!("cannot start a thread: {error}")),
        }
    }

    fn run(self) -> CaseOutcome {
        let CaseThread { case, features, subjects, config, seed, transcript, budget } = self;
        let may_reset = config.allow_reset && features.can_reset;
        let subject = |open: &Opener, name: &'static str| {
            let device = transcript.during("opening the device", || opened(open, may_reset))?;
            let flags = features.flags.unwrap_or(MigrationFlags::empty());
            let witness = subjects.state_witness.clone().filter(|_| name.is_empty());
            Ok::<_, String>(Subject::new(
                device,
                flags,
                name,
                transcript.clone(),
                config.state_limit,
                witness,
            ))
        };
        let first = match subject(&subjects.open, "") {
            Ok(subject) => subject,
            Err(why) => return CaseOutcome::NotOpened(why),
        };
        let needs_second = case.needed().contains(&Need::Second);
        let second = match subjects.second.as_ref().filter(|_| needs_second) {
            None => None,
            Some((_, open)) => match subject(open, "second: ") {
                Ok(subject) => Some(subject),
                Err(why) => return CaseOutcome::NotOpened(why),
            },
        };
        let mut bench = Bench {
            subject: first,
            second,
            features,
            writer: config.writer,
            registers: config.registers,
            stream: config.stream,
            random: fastrand::Rng::with_seed(seed),
            may_reset,
            budget,
        };
        match (case.run)(&mut bench) {
            Ok(()) => CaseOutcome::Passed,
            Err(stop) => CaseOutcome::Stopped(stop),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(50);
    const LONG: Duration = Duration::from_mins(1);

    /// Waits for a case that makes requests of this length on another thread.
    fn waited(request: Duration, case: Duration, lengths: Vec<Duration>) -> CaseOutcome {
        let transcript = Transcript::default();
        let (sender, receiver) = channel();
        let made = transcript.clone();
        thread::spawn(move || {
            for length in lengths {
                made.record("reset", || thread::sleep(length), |()| "0");
            }
            let _ = sender.send(CaseOutcome::Passed);
        });
        Limits { request, case }.wait(&receiver, &transcript)
    }

    #[test]
    fn many_requests_that_return_in_time_are_no_hang_however_long_they_take_together() {
        let lengths = vec![Duration::from_millis(20); 20];
        assert!(matches!(waited(Duration::from_millis(300), LONG, lengths), CaseOutcome::Passed));
    }

    #[test]
    fn a_request_that_does_not_return_is_named_with_its_time_long_before_the_case_ends() {
        let start = Instant::now();
        let CaseOutcome::Hung { expected, found } = waited(SHORT, LONG, vec![Duration::ZERO, LONG]) else {
            panic!("it has not hung")
        };
        assert!(start.elapsed() < LONG / 2);
        assert_eq!(expected, "an answer to each request within 0.05 s");
        assert!(found.starts_with("reset has not returned for 0.") && found.ends_with(" s"), "{found}");
    }

    #[test]
    fn a_case_without_end_is_given_up_though_each_request_returns() {
        let CaseOutcome::Hung { expected, found } = waited(LONG, SHORT, vec![Duration::from_millis(5); 1000])
        else {
            panic!("it has not hung")
        };
        assert_eq!(expected, "the end of the case within 0.05 s");
        assert!(found.contains("--case-timeout"), "{found}");
    }
}
