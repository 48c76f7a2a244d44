//! Faults for arcs and states that a device does not have: they would never happen, and a test that asks for them would
//! prove nothing.

use whimbrel_device::wrap::fault::{Fault, FaultKind, Faults};
use whimbrel_protocol::{MigrationFlags, State, fsm};

use crate::failure::Failure;
use crate::fsm::flag_names;
use crate::output::names;

/// Checks that each fault of an arc, or of entering a state, can happen in a device with these features.
pub(crate) fn check(faults: &Faults, flags: MigrationFlags, device: &str) -> Result<(), Failure> {
    let Some(fault) = faults.iter().find(|fault| !can_happen(fault, flags)) else { return Ok(()) };
    let what = match fault.kind {
        FaultKind::Arc { .. } => "this arc",
        _ => "this state",
    };
    Err(Failure::new(format!("--fault '{fault}' can never happen: {device} does not take {what}")).hint(
        format!(
            "its features are {}; `whimbrel fsm` shows the arcs that a request takes",
            names(flag_names(flags))
        ),
    ))
}

fn can_happen(fault: &Fault, flags: MigrationFlags) -> bool {
    let (from, to) = match fault.kind {
        FaultKind::Arc { from, to, .. } => (from, to),
        FaultKind::Delay { to, .. } => (None, to),
        _ => return true,
    };
    let fits = |wanted: Option<State>, state| wanted.is_none_or(|wanted| wanted == state);
    let arc = |from, to| fsm::next(flags, from, to) == Some(to);
    State::ALL
        .into_iter()
        .filter(|state| fits(from, *state))
        .any(|from| State::ALL.into_iter().any(|state| fits(to, state) && arc(from, state)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_can_happen_if_the_device_takes_its_arc() {
        let (plain, p2p) = (MigrationFlags::STOP_COPY, MigrationFlags::STOP_COPY | MigrationFlags::P2P);
        let precopy = MigrationFlags::STOP_COPY | MigrationFlags::PRE_COPY;
        for (text, flags, expected) in [
            ("arc RUNNING->STOP: EIO", plain, true),
            // It goes by RUNNING_P2P.
            ("arc RUNNING->STOP: EIO", p2p, false),
            ("arc RUNNING_P2P->STOP: EIO", p2p, true),
            ("arc RUNNING_P2P->STOP: EIO", plain, false),
            ("arc RUNNING->STOP_COPY: EIO", plain, false),
            ("arc *->STOP_COPY: EIO", plain, true),
            ("arc *->PRE_COPY: EIO", plain, false),
            ("arc *->PRE_COPY: EIO", precopy, true),
            ("arc PRE_COPY->*: EIO", plain, false),
            ("arc *->*: EIO", plain, true),
            ("arc *->ERROR: EIO", plain, false),
            ("delay PRE_COPY 10ms", plain, false),
            ("delay PRE_COPY 10ms", precopy, true),
            ("reset: EBUSY", plain, true),
        ] {
            let faults: Faults = text.parse().unwrap();
            assert_eq!(check(&faults, flags, "the device").is_ok(), expected, "{text} with {flags:?}");
        }
    }
}
