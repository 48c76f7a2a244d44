//! The results of cases, and of a run.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::case::{Case, Danger, Level};

/// The verdict on one case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Verdict {
    /// The device does what the sentence says.
    Pass,
    /// The device contradicts the sentence.
    Fail,
    /// The device lacks the feature, or the run does not allow the case.
    Skip,
    /// A known failure.
    Xfail,
    /// A known failure that passes, so that the list of known failures is wrong: a failure.
    Xpass,
    /// A request has not returned within the timeout: a failure.
    Hung,
    /// An earlier case has hung, or the device could not be prepared.
    NotRun,
    /// Neither a pass nor a failure could be told.
    Inconclusive,
}

impl Verdict {
    /// All verdicts.
    pub const ALL: [Verdict; 8] = [
        Verdict::Pass,
        Verdict::Fail,
        Verdict::Skip,
        Verdict::Xfail,
        Verdict::Xpass,
        Verdict::Hung,
        Verdict::NotRun,
        Verdict::Inconclusive,
    ];

    /// Returns the name.
    pub const fn name(self) -> &'static str {
        match self {
            Verdict::Pass => "pass",
            Verdict::Fail => "fail",
            Verdict::Skip => "skip",
            Verdict::Xfail => "xfail",
            Verdict::Xpass => "xpass",
            Verdict::Hung => "hung",
            Verdict::NotRun => "not run",
            Verdict::Inconclusive => "inconclusive",
        }
    }

    /// Returns whether it makes the run fail.
    pub const fn is_failure(self) -> bool {
        matches!(self, Verdict::Fail | Verdict::Xpass | Verdict::Hung | Verdict::NotRun)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The result of one run of a case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct CaseResult {
    /// The case's id.
    pub id: String,
    /// The binding force of the sentence.
    pub level: Level,
    /// The sentence.
    pub sentence: String,
    /// The damage that the case may do to the device.
    pub danger: Danger,
    /// The seed of its random numbers.
    pub seed: u64,
    /// The verdict.
    pub verdict: Verdict,
    /// The demand of the sentence, for a failure.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub expected: Option<String>,
    /// The device's answer, for a failure; else the reason for the verdict, if it needs one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub found: Option<String>,
    /// The reason why this failure is known, and where it is reported.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub known: Option<String>,
    /// A remark on the verdict, such as that the time was enough for a part of the data only.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub notice: Option<String>,
    /// The requests in order, of a case that did not pass.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub requests: Vec<String>,
    /// The command that runs this case alone, of a failure.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub replay: Option<String>,
    /// The time that it took, in milliseconds.
    pub millis: u64,
}

impl CaseResult {
    /// Returns a result without any details.
    pub(crate) fn new(case: &Case, danger: Danger, seed: u64, verdict: Verdict) -> CaseResult {
        CaseResult {
            id: case.id().to_string(),
            level: case.level(),
            sentence: case.sentence().to_string(),
            danger,
            seed,
            verdict,
            expected: None,
            found: None,
            known: None,
            notice: None,
            requests: Vec::new(),
            replay: None,
            millis: 0,
        }
    }
}

/// A case that a run has selected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Planned {
    /// The case's id.
    pub id: String,
    /// The binding force of the sentence.
    pub level: Level,
    /// The damage that the case may do to the device.
    pub danger: Danger,
    /// The sentence.
    pub sentence: String,
    /// The reason the case is not going to run, if so.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub skip: Option<String>,
}

/// A selected case, before a device has been asked.
impl From<&Case> for Planned {
    fn from(case: &Case) -> Planned {
        Planned {
            id: case.id().to_string(),
            level: case.level(),
            danger: case.danger(),
            sentence: case.sentence().to_string(),
            skip: None,
        }
    }
}

/// The device, the suite and the settings of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Header {
    /// The version of the suite.
    pub suite: String,
    /// The header that the sentences are quoted from.
    pub header: String,
    /// The device.
    pub subject: String,
    /// The second device.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub second: Option<String>,
    /// The running kernel's release, of a device of the kernel.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub kernel: Option<String>,
    /// The driver that a device of the kernel is bound to.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub driver: Option<String>,
    /// The device's features.
    pub features: Vec<String>,
    /// The seed of the run.
    pub seed: u64,
    /// The number of results to come.
    pub cases: usize,
}

impl Header {
    /// Returns the devices, with their kernel and its driver.
    pub(crate) fn devices(&self) -> String {
        let parts = [(" and ", &self.second), (" on Linux ", &self.kernel), (", driver ", &self.driver)];
        let parts = parts.iter().filter_map(|(before, part)| Some(format!("{before}{}", part.as_ref()?)));
        std::iter::once(self.subject.clone()).chain(parts).collect()
    }
}

/// An event of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// The run begins.
    Begin(Header),
    /// A case starts.
    Start {
        /// The case's id.
        id: String,
    },
    /// A case has ended.
    Result(Box<CaseResult>),
    /// Something about the run that belongs to no case.
    Notice {
        /// The text.
        text: String,
    },
    /// The run has ended.
    End(Summary),
}

/// The result of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Summary {
    /// Cases that passed.
    pub passed: usize,
    /// Cases that failed, or passed although a failure was expected.
    pub failed: usize,
    /// Cases that hung.
    pub hung: usize,
    /// Cases that failed as expected.
    pub expected_failures: usize,
    /// Cases that were skipped.
    pub skipped: usize,
    /// Cases that were not run.
    pub not_run: usize,
    /// Cases without a verdict.
    pub inconclusive: usize,
    /// The reason nothing could be tested.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub untestable: Option<String>,
}

impl Summary {
    /// Adds a verdict.
    pub fn add(&mut self, verdict: Verdict) {
        *match verdict {
            Verdict::Pass => &mut self.passed,
            Verdict::Fail | Verdict::Xpass => &mut self.failed,
            Verdict::Hung => &mut self.hung,
            Verdict::Xfail => &mut self.expected_failures,
            Verdict::Skip => &mut self.skipped,
            Verdict::NotRun => &mut self.not_run,
            Verdict::Inconclusive => &mut self.inconclusive,
        } += 1;
    }

    /// Returns whether anything failed.
    pub fn is_failure(&self) -> bool {
        self.failed + self.hung + self.not_run > 0
    }

    /// Returns whether no case had a verdict of its own: nothing failed, and nothing passed.
    pub fn tested_nothing(&self) -> bool {
        !self.is_failure() && self.passed + self.expected_failures == 0
    }

    /// Returns the exit status: 0 if all passed, 1 with failures, 3 if nothing could be tested.
    pub fn exit_status(&self) -> u8 {
        match (self.is_failure(), self.untestable.is_some() || self.tested_nothing()) {
            (true, _) => 1,
            (false, true) => 3,
            (false, false) => 0,
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(why) = &self.untestable {
            return write!(f, "nothing could be tested: {why}");
        }
        if self.tested_nothing() {
            write!(f, "nothing could be tested: ")?;
        }
        write!(f, "{} passed, {} failed", self.passed, self.failed)?;
        let others = [
            (self.hung, "hung"),
            (self.not_run, "not run"),
            (self.expected_failures, "expected failures"),
            (self.inconclusive, "inconclusive"),
            (self.skipped, "skipped"),
        ];
        others
            .into_iter()
            .filter(|(count, _)| *count > 0)
            .try_for_each(|(count, name)| write!(f, ", {count} {name}"))
    }
}
