//! Commands to run after a failure of the engine, as hints that name the device.

use std::path::Path;

use whimbrel_engine::Error;
use whimbrel_user::{Errno, State};

use crate::target::{Closing, Target};

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

/// Returns the command after this error, if a command helps.
pub(crate) fn after(error: &Error, targets: &[Target]) -> Option<String> {
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
    let target = concerned(back, targets)?;
    match back {
        Error::Device(_) | Error::NotRunning { .. } if answers(back) => Some(format!(
            "`whimbrel state {target} RUNNING` resumes it, or `whimbrel reset {target}` resets it"
        )),
        _ => after(back, targets),
    }
}

/// Returns whether the device's server still answers, though with an error.
fn answers(error: &Error) -> bool {
    match error {
        Error::Device(whimbrel_user::Error::Unusable { .. }) | Error::Overdue { .. } => false,
        Error::Device(error) => {
            !matches!(error.errno(), Some(Errno::ECONNRESET | Errno::EPIPE | Errno::ETIMEDOUT))
        }
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use whimbrel_user::Operation;

    use super::*;

    fn refused(errno: Errno) -> whimbrel_user::Error {
        whimbrel_user::Error::request("vfio-user:/run/a", Operation::ReadData, errno)
    }

    fn stranded(errno: Errno) -> Error {
        Error::NotBack { cause: None, state: State::Running, back: Box::new(refused(errno).into()) }
    }

    fn unreset(errno: Errno) -> Error {
        let cause = Box::new(Error::Protocol("nonsense".into()));
        Error::NotReset { cause, reset: Box::new(refused(errno).into()) }
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
            (Error::Lost { side: "source" }, None),
        ];
        for (error, command) in cases {
            let hint = after(&error, &targets);
            assert_eq!(hint.is_some(), command.is_some(), "{error}: {hint:?}");
            assert!(hint.unwrap_or_default().contains(command.unwrap_or_default()), "{error}");
        }
    }

    #[test]
    fn a_device_that_is_gone_or_reset_with_the_command_gets_none() {
        for target in ["model:serial", "group:0000:3b:00.2", "cdev:/dev/vfio/devices/vfio0"] {
            assert_eq!(after(&unreset(Errno::EIO), &[target.parse().unwrap()]), None, "{target}");
        }
    }
}
