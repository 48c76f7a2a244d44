//! Commands to run after a failure of the engine, as hints that name the device.

use whimbrel_engine::Error;
use whimbrel_user::{Errno, State};

use crate::target::{Closing, Target};

/// Returns the command that resumes the device of a TARGET where it stopped, with the condition for that.
pub(crate) fn resume(target: &Target) -> String {
    format!("`whimbrel state {target} RUNNING` resumes it; do so only if it does not run on another host")
}

/// Returns the command that resets the device of a TARGET.
pub(crate) fn reset(target: &Target) -> String {
    format!("`whimbrel reset {target}` resets it; its state is then lost")
}

/// Returns the command after this error, if a command helps. It does if the device outlives the failed command: the kernel
/// resets a device that is closed.
pub(crate) fn after(error: &Error, target: &Target) -> Option<String> {
    if target.closing() != Closing::Keeps {
        return None;
    }
    match error {
        Error::WrongState { state: State::Resuming, .. } | Error::NeedsReset { .. } => Some(reset(target)),
        Error::WrongState { .. } => Some(resume(target)),
        Error::NotBack { back, .. } => stranded(back, target),
        Error::NotReset { reset: error, .. } if answers(error) => Some(reset(target)),
        Error::NotReset { .. } => {
            Some("restart the device's server: that discards the received state".to_string())
        }
        _ => None,
    }
}

/// Returns the command for a device that could not be brought back for this reason.
pub(crate) fn stranded(back: &Error, target: &Target) -> Option<String> {
    match back {
        Error::Device(error) if target.closing() == Closing::Keeps && answers(error) => Some(format!(
            "`whimbrel state {target} RUNNING` resumes it, or `whimbrel reset {target}` resets it"
        )),
        _ => after(back, target),
    }
}

/// Returns whether the device's server still answers, though with an error.
fn answers(error: &whimbrel_user::Error) -> bool {
    let is_closed = matches!(error, whimbrel_user::Error::Unusable { .. });
    !is_closed && !matches!(error.errno(), Some(Errno::ECONNRESET | Errno::EPIPE | Errno::ETIMEDOUT))
}

#[cfg(test)]
mod tests {
    use whimbrel_user::Operation;

    use super::*;

    fn refused(errno: Errno) -> whimbrel_user::Error {
        whimbrel_user::Error::request("a", Operation::ReadData, errno)
    }

    fn stranded(errno: Errno) -> Error {
        Error::NotBack { cause: None, state: State::Running, back: Box::new(refused(errno).into()) }
    }

    fn unreset(errno: Errno) -> Error {
        let cause = Box::new(Error::Protocol("nonsense".into()));
        Error::NotReset { cause, reset: refused(errno) }
    }

    #[test]
    fn a_served_device_that_is_left_somewhere_gets_the_command_that_helps() {
        let target: Target = "vfio-user:/run/a".parse().unwrap();
        let wrong =
            |state| Error::WrongState { device: "a".into(), state, work: "a save", needed: "RUNNING" };
        let cases = [
            (wrong(State::StopCopy), Some("`whimbrel state vfio-user:/run/a RUNNING`")),
            (wrong(State::Resuming), Some("`whimbrel reset vfio-user:/run/a`")),
            (Error::NeedsReset { device: "a".into() }, Some("`whimbrel reset vfio-user:/run/a`")),
            (stranded(Errno::EIO), Some("`whimbrel state vfio-user:/run/a RUNNING`")),
            (stranded(Errno::ECONNRESET), None),
            (unreset(Errno::EIO), Some("`whimbrel reset vfio-user:/run/a`")),
            (unreset(Errno::ECONNRESET), Some("restart the device's server")),
            (Error::Lost { side: "source" }, None),
        ];
        for (error, command) in cases {
            let hint = after(&error, &target);
            assert_eq!(hint.is_some(), command.is_some(), "{error}: {hint:?}");
            assert!(hint.unwrap_or_default().contains(command.unwrap_or_default()), "{error}");
        }
    }

    #[test]
    fn a_device_that_is_gone_or_reset_with_the_command_gets_none() {
        for target in ["model:serial", "group:0000:3b:00.2", "cdev:/dev/vfio/devices/vfio0"] {
            assert_eq!(after(&unreset(Errno::EIO), &target.parse().unwrap()), None, "{target}");
        }
    }
}
