//! The subjects of `whimbrel conform`: devices by TARGET, and programs that stand for one.

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use whimbrel_conformance::Subjects;
use whimbrel_conformance::stdin::Program;
use whimbrel_user::{Device, Identity, State};
use whimbrel_vfio_user::ClientOptions;

use crate::failure::Failure;
use crate::target::{Target, check_distinct, kernel_release};
use crate::usage::WrongValue;

/// The beginning of a program's text.
const PROGRAM: &str = "program:";
/// The longest timeout for a program's answer.
const ANSWER: Duration = Duration::from_secs(10);

/// A device under test.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(super) enum Subject {
    Device(Target),
    /// `program:<command>`: a shell command whose stdin and stdout are a device.
    Program(String),
}

impl FromStr for Subject {
    type Err = WrongValue;

    fn from_str(text: &str) -> Result<Subject, WrongValue> {
        match text.strip_prefix(PROGRAM) {
            Some("") => Err(WrongValue::new("the command is missing", "write program:'./driver --option'")),
            Some(command) => Ok(Subject::Program(command.to_string())),
            None => text.parse().map(Subject::Device),
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Subject::Device(target) => target.fmt(f),
            Subject::Program(command) => write!(f, "{PROGRAM}{command}"),
        }
    }
}

impl TryFrom<String> for Subject {
    type Error = WrongValue;

    fn try_from(text: String) -> Result<Subject, WrongValue> {
        text.parse()
    }
}

impl From<Subject> for String {
    fn from(subject: Subject) -> String {
        subject.to_string()
    }
}

impl Subject {
    /// Returns whether it is a device of the kernel.
    pub(super) fn is_of_kernel(&self) -> bool {
        matches!(self, Subject::Device(target) if target.is_of_kernel())
    }

    /// Returns the identity of a device, if it can be opened.
    pub(super) fn identity(&self, timeout: Duration) -> Option<Identity> {
        let Subject::Device(target) = self else { return None };
        opener(target, timeout)().and_then(|mut device| device.identity()).ok()
    }
}

/// Refuses a device that is given twice. A program is started twice, and a model made twice.
pub(super) fn check(first: &Subject, second: Option<&Subject>) -> Result<(), Failure> {
    let targets: Vec<Target> = std::iter::once(first)
        .chain(second)
        .filter_map(|subject| match subject {
            Subject::Device(target) => Some(target.clone()),
            Subject::Program(_) => None,
        })
        .collect();
    check_distinct(&targets)
}

/// Returns the devices under test. `timeout` is that of a request of a case, which comes first: it names the case.
pub(super) fn open(first: &Subject, second: Option<&Subject>, timeout: Duration) -> Subjects {
    let program = |command: &str| Program::shell(command).timeout(ANSWER.min(timeout / 2));
    let mut subjects = match first {
        Subject::Device(target) => Subjects::new(target.to_string(), opener(target, timeout)),
        Subject::Program(command) => Subjects::program(&program(command)),
    };
    match second {
        Some(Subject::Device(target)) => {
            subjects = subjects.second(target.to_string(), opener(target, timeout));
        }
        Some(Subject::Program(command)) => subjects = subjects.second_program(&program(command)),
        None => {}
    }
    match first {
        Subject::Device(target) if target.is_of_kernel() => {
            let subjects = subjects.kernel(kernel_release()).state_witness(debugfs_state(target));
            match target.host_device().and_then(|device| device.driver) {
                Some(driver) => subjects.driver(driver),
                None => subjects,
            }
        }
        _ => subjects,
    }
}

fn opener(
    target: &Target,
    timeout: Duration,
) -> impl Fn() -> whimbrel_user::Result<Box<dyn Device>> + Send + Sync + 'static {
    let target = target.clone();
    let defaults = ClientOptions::default();
    let request_timeout = defaults.request_timeout.saturating_add(timeout);
    let options = defaults.request_timeout(request_timeout);
    move || match target.device(&options)? {
        (device, None) => Ok(device),
        (_, Some(error)) => Err(error),
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
