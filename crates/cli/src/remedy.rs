//! Commands to run after a failure of the engine, as hints that name the device.

use std::path::Path;

use whimbrel_engine::Error;
use whimbrel_engine::proto::problem::Problem;
use whimbrel_user::{Errno, State};

use crate::target::{Closing, Target};
use crate::tls;

/// Returns the commands that resume the devices of TARGETs where they stopped, with the condition for that.
pub(crate) fn resume(targets: &[Target]) -> String {
    let it = if targets.len() == 1 { "it" } else { "them" };
    let does = if targets.len() == 1 { "it does" } else { "they do" };
    let commands: Vec<String> =
        targets.iter().map(|target| format!("`whimbrel state {target} RUNNING`")).collect();
    let resumes = if targets.len() == 1 { "resumes" } else { "resume" };
    format!("{} {resumes} {it}; do so only if {does} not run on another host", commands.join(" and "))
}

/// Returns the command that resets the device of a TARGET.
pub(crate) fn reset(target: &Target) -> String {
    format!("`whimbrel reset {target}` resets it; its state is then lost")
}

/// Returns the command that settles what a journal leaves open.
pub(crate) fn resolve(journal: &Path) -> String {
    format!("`whimbrel resolve --journal {}` looks at the devices and settles it", journal.display())
}

/// Returns what helps if `whimbrel resolve` could not do what it had decided.
pub(crate) fn unsettled(error: &Error, targets: &[Target], journal: &Path) -> String {
    let again = format!("then run `whimbrel resolve --journal {}` again", journal.display());
    let device = concerned(error, targets);
    match (error, device) {
        (Error::Journal { .. } | Error::JournalUncertain { .. }, _) => {
            format!("make the journal writable, {again}")
        }
        (_, Some(target)) => {
            format!(
                "`whimbrel state {target}` shows where it is; check the log of the device's server, {again}"
            )
        }
        (_, None) => again,
    }
}

/// Returns the TARGET that an error names, if it outlives the command: the kernel resets a device that is closed.
fn concerned<'a>(error: &Error, targets: &'a [Target]) -> Option<&'a Target> {
    let text = error.to_string();
    let lasting = || targets.iter().filter(|target| target.closing() == Closing::Keeps);
    lasting().find(|target| text.contains(&target.to_string())).or_else(|| lasting().next())
}

/// Returns what to do about a device whose driver does not return from a call, if that depends on the TARGET.
pub(crate) fn hung(target: &Target) -> Option<String> {
    match target.closing() {
        Closing::Keeps => Some(format!(
            "check whether the process of the device's server is stopped, and its log; once it answers, `whimbrel state \
             {target}` shows the device's state"
        )),
        Closing::Resets => Some(
            "check the host's kernel log (dmesg): once the call returns, the kernel closes and resets the device; until then \
             this process may be unable to end"
                .to_string(),
        ),
        Closing::Ends => None,
    }
}

/// Returns what to do after the error of a device whose driver does not return, and then the command that `then` returns
/// for a device that outlives this one.
fn after_hang(error: &Error, targets: &[Target], then: fn(&Target) -> String) -> Option<String> {
    let (Error::Overdue { device, .. } | Error::Device(whimbrel_user::Error::Lost { device, .. })) = error
    else {
        return None;
    };
    let target = targets.iter().find(|target| target.to_string().ends_with(device))?;
    let hint = hung(target)?;
    Some(match target.closing() {
        Closing::Keeps => format!("{hint}{}", then(target)),
        Closing::Resets | Closing::Ends => hint,
    })
}

/// Returns the command after this error, if a command helps.
pub(crate) fn after(error: &Error, targets: &[Target]) -> Option<String> {
    match error {
        Error::Tls(error) => return tls::advice(error).map(str::to_string),
        Error::Malformed(error) if error.problem == Problem::Tls => return Some(tls::ON_BOTH.to_string()),
        _ => {}
    }
    let hung = match error {
        Error::NotBack { back, .. } => after_hang(back, targets, and_resume),
        Error::NotReset { reset, .. } => after_hang(reset, targets, |target| {
            format!(", and `whimbrel reset {target}` discards the received state")
        }),
        error => after_hang(error, targets, |_| String::new()),
    };
    if hung.is_some() {
        return hung;
    }
    let target = concerned(error, targets)?;
    match error {
        Error::WrongState { state: State::Resuming, .. } | Error::NeedsReset { .. } => Some(reset(target)),
        Error::WrongState { .. } => Some(resume(std::slice::from_ref(target))),
        Error::NotBack { back, .. } => stranded(back, targets),
        Error::NotReset { reset: error, .. } => Some(if answers(error) {
            reset(target)
        } else {
            "restart the device's server: that discards the received state".to_string()
        }),
        _ => None,
    }
}

/// Returns the command for a device that could not be brought back for this reason.
pub(crate) fn stranded(back: &Error, targets: &[Target]) -> Option<String> {
    if let Some(hint) = after_hang(back, targets, and_resume) {
        return Some(hint);
    }
    let target = concerned(back, targets)?;
    match back {
        Error::Device(_) | Error::NotRunning { .. } if answers(back) => Some(format!(
            "`whimbrel state {target} RUNNING` resumes it, or `whimbrel reset {target}` resets it"
        )),
        _ => after(back, targets),
    }
}

fn and_resume(target: &Target) -> String {
    format!(", and `whimbrel state {target} RUNNING` resumes it")
}

/// Returns whether the device's server still answers, though with an error.
fn answers(error: &Error) -> bool {
    match error {
        Error::Device(whimbrel_user::Error::Unusable { .. } | whimbrel_user::Error::Lost { .. })
        | Error::Overdue { .. } => false,
        Error::Device(error) => {
            !matches!(error.errno(), Some(Errno::ECONNRESET | Errno::EPIPE | Errno::ETIMEDOUT))
        }
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use whimbrel_user::Operation;

    use super::*;

    fn refused(errno: Errno) -> whimbrel_user::Error {
        whimbrel_user::Error::request("vfio-user:/run/a", Operation::ReadData, errno)
    }

    fn stranded(errno: Errno) -> Error {
        let back = Box::new(refused(errno).into());
        Error::NotBack { cause: None, state: State::Running, found: Some(State::StopCopy), back }
    }

    fn unreset(errno: Errno) -> Error {
        let cause = Box::new(Error::Protocol("nonsense".into()));
        Error::NotReset { cause, found: None, reset: Box::new(refused(errno).into()) }
    }

    fn overdue() -> Error {
        let call = Operation::ReadData.to_string();
        Error::Overdue { device: "vfio-user:/run/a".into(), call, timeout: Duration::ZERO }
    }

    /// A device that is lost on its way back, or before its reset.
    fn lost_in(source: bool) -> Error {
        let lost = Box::new(Error::Device(whimbrel_user::Error::Lost {
            device: "vfio-user:/run/a".into(),
            request: Operation::SetState(State::Running),
            pending: Box::new(Operation::ReadData),
            waited: Duration::ZERO,
        }));
        let cause = Box::new(overdue());
        if source {
            Error::NotBack { cause: Some(cause), state: State::Running, found: None, back: lost }
        } else {
            Error::NotReset { cause, found: None, reset: lost }
        }
    }

    #[test]
    fn a_served_device_that_is_left_somewhere_gets_the_command_that_helps() {
        let targets =
            ["model:serial", "vfio-user:/run/b", "vfio-user:/run/a"].map(|text| text.parse().unwrap());
        let wrong = |state| Error::WrongState {
            device: "vfio-user:/run/a".into(),
            state,
            work: "a save",
            needed: "RUNNING",
        };
        let cases = [
            (wrong(State::StopCopy), Some("`whimbrel state vfio-user:/run/a RUNNING`")),
            (wrong(State::Resuming), Some("`whimbrel reset vfio-user:/run/a`")),
            (
                Error::NeedsReset { device: "vfio-user:/run/a".into() },
                Some("`whimbrel reset vfio-user:/run/a`"),
            ),
            (stranded(Errno::EIO), Some("`whimbrel state vfio-user:/run/a RUNNING`")),
            (stranded(Errno::ECONNRESET), None),
            (unreset(Errno::EIO), Some("`whimbrel reset vfio-user:/run/a`")),
            (unreset(Errno::ECONNRESET), Some("restart the device's server")),
            (overdue(), Some("`whimbrel state vfio-user:/run/a` shows the device's state")),
            (lost_in(true), Some("`whimbrel state vfio-user:/run/a RUNNING` resumes it")),
            (lost_in(false), Some("`whimbrel reset vfio-user:/run/a` discards the received state")),
            (Error::Lost { side: "source" }, None),
        ];
        assert_eq!(super::stranded(&overdue(), &targets), after(&lost_in(true), &targets));
        for (error, command) in cases {
            let hint = after(&error, &targets);
            assert_eq!(hint.is_some(), command.is_some(), "{error}: {hint:?}");
            assert!(hint.unwrap_or_default().contains(command.unwrap_or_default()), "{error}");
        }
    }

    #[test]
    fn a_kernel_device_whose_driver_hangs_is_reset_once_the_call_returns() {
        let targets = ["group:0000:3b:00.2".parse().unwrap()];
        let device = "0000:3b:00.2".to_string();
        let error = Error::Overdue { device, call: "VFIO_DEVICE_RESET".into(), timeout: Duration::ZERO };
        assert!(
            after(&error, &targets)
                .is_some_and(|hint| hint.contains("the kernel closes and resets the device"))
        );
        assert_eq!(after(&overdue(), &targets), None, "not one of them");
    }

    #[test]
    fn a_device_that_is_gone_or_reset_with_the_command_gets_none() {
        for target in ["model:serial", "group:0000:3b:00.2", "cdev:/dev/vfio/devices/vfio0"] {
            assert_eq!(after(&unreset(Errno::EIO), &[target.parse().unwrap()]), None, "{target}");
        }
    }
}
