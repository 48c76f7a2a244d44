//! Faults that a device never meets: they would never happen, and a test that asks for them would prove nothing.

use whimbrel_device::wrap::fault::{Fault, FaultKind, Faults};
use whimbrel_models::{Model, Protocol};
use whimbrel_protocol::region::Phase;
use whimbrel_protocol::{MigrationFlags, State, fsm};

use crate::failure::Failure;
use crate::fsm::flag_names;
use crate::output::names;

/// The way in which a user's requests reach the driver that has the faults.
#[derive(Clone, Copy, Debug)]
enum Interface {
    /// As they are, to a driver with these features.
    V2(MigrationFlags),
    /// Through a migration region around a driver with these features.
    Region(MigrationFlags, Protocol),
    /// Through a migration region of the driver itself: its migration is out of reach of faults.
    OwnRegion,
}

/// Checks that each fault can happen in a device of this model.
pub(crate) fn check(faults: &Faults, model: &Model, device: &str) -> Result<(), Failure> {
    let interface = Interface::of(model);
    let Some((fault, why)) = faults.iter().find_map(|fault| Some((fault, interface.excludes(fault)?))) else {
        return Ok(());
    };
    let failure = Failure::usage(format!("--fault '{fault}' can never happen: {device} {why}"));
    Err(failure.hint(interface.hint()))
}

impl Interface {
    fn of(model: &Model) -> Interface {
        let (flags, protocol) = match model {
            Model::Serial(_, protocol) => (MigrationFlags::all(), *protocol),
            Model::Accel(config, protocol) => (config.flags, *protocol),
            Model::Nvme(_) => (MigrationFlags::all(), Protocol::V2),
            _ => return Interface::OwnRegion,
        };
        if protocol == Protocol::V2 { Interface::V2(flags) } else { Interface::Region(flags, protocol) }
    }

    /// Returns what a device lacks for a fault to happen, if it lacks something.
    fn excludes(self, fault: &Fault) -> Option<&'static str> {
        let is_region = !matches!(self, Interface::V2(_));
        let has_precopy = self.requested().iter().any(|state| state.is_precopy());
        let takes = |from: Option<State>, to: Option<State>| {
            let fits = |wanted: Option<State>, state| wanted.is_none_or(|wanted| wanted == state);
            self.arcs().into_iter().any(|(first, second)| fits(from, first) && fits(to, second))
        };
        match (&fault.kind, self) {
            (FaultKind::Reset(_), _) => None,
            (_, Interface::OwnRegion) => {
                Some("has a migration region of its own, and only its reset can fail")
            }
            (FaultKind::Arc { from, to, .. }, _) => (!takes(*from, *to)).then_some("does not take this arc"),
            (FaultKind::Delay { to, .. }, _) => (!takes(None, *to)).then_some("does not take this state"),
            (FaultKind::Read { state: Some(state), .. }, _) => {
                let is_read = state.is_saving() && self.requested().contains(state);
                (!is_read).then_some("is not read in this state")
            }
            (FaultKind::Reinit { .. } | FaultKind::ZeroAtTemporaryEnd, _) if is_region => {
                Some("migrates through a region, which does not report it")
            }
            (FaultKind::Precopy(_) | FaultKind::Reinit { .. } | FaultKind::ZeroAtTemporaryEnd, _) => {
                (!has_precopy).then_some("has no pre-copy")
            }
            (
                FaultKind::LogStart(_) | FaultKind::LogReport(_) | FaultKind::LogStop(_),
                Interface::Region(_, Protocol::V1),
            ) => Some("migrates through a region, which has no log of dirty pages"),
            _ => None,
        }
    }

    /// Returns the states that a user can ask for.
    fn requested(self) -> Vec<State> {
        match self {
            Interface::V2(flags) => {
                State::ALL.into_iter().filter(|state| fsm::supports(flags, *state)).collect()
            }
            Interface::Region(flags, _) => Phase::ALL.map(|phase| phase.v2_state(flags)).to_vec(),
            Interface::OwnRegion => Vec::new(),
        }
    }

    /// Returns the arcs on the way to these states, also from one in which a failure has left the device.
    fn arcs(self) -> Vec<(State, State)> {
        let (Interface::V2(flags) | Interface::Region(flags, _)) = self else { return Vec::new() };
        let ways =
            State::ALL.into_iter().flat_map(|from| self.requested().into_iter().map(move |to| (from, to)));
        let arcs = ways.flat_map(|(mut at, to)| {
            let path = fsm::path(flags, at, to).into_iter().flatten();
            path.map(move |next| (std::mem::replace(&mut at, next), next))
        });
        arcs.collect()
    }

    fn hint(self) -> String {
        let of = |flags| {
            format!("{}; `whimbrel fsm` shows the arcs that a request takes", names(flag_names(flags)))
        };
        match self {
            Interface::V2(flags) => format!("its features are {}", of(flags)),
            Interface::Region(flags, _) => {
                format!("the features behind its migration region are {}", of(flags))
            }
            Interface::OwnRegion => {
                "use 'reset: ERRNO', or the model accel?protocol=v1 for other faults".to_owned()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text of the refusal, empty for a fault that can happen.
    fn refusal(text: &str, model: &str) -> String {
        let faults: Faults = text.parse().unwrap();
        check(&faults, &model.parse().unwrap(), "it")
            .err()
            .map_or_else(String::new, |refused| refused.message())
    }

    #[test]
    fn a_fault_can_happen_if_the_device_takes_its_arc_or_state() {
        let (plain, p2p) = ("accel?features=stop-copy", "accel?features=stop-copy,p2p");
        let precopy = "accel?features=stop-copy,pre-copy";
        for (text, model, expected) in [
            ("arc RUNNING->STOP: EIO", plain, true),
            // It goes by RUNNING_P2P.
            ("arc RUNNING->STOP: EIO", p2p, false),
            ("arc RUNNING_P2P->STOP: EIO", p2p, true),
            ("arc RUNNING_P2P->STOP: EIO", plain, false),
            ("arc RUNNING->STOP_COPY: EIO", plain, false),
            ("arc STOP->STOP: EIO", plain, false),
            ("arc *->STOP_COPY: EIO", plain, true),
            ("arc *->PRE_COPY: EIO", plain, false),
            ("arc *->PRE_COPY: EIO", precopy, true),
            ("arc PRE_COPY->*: EIO", plain, false),
            ("arc *->*: EIO", plain, true),
            ("arc *->ERROR: EIO", plain, false),
            ("delay PRE_COPY 10ms", plain, false),
            ("delay PRE_COPY 10ms", precopy, true),
            ("read after 0 in PRE_COPY: EIO", plain, false),
            ("read after 0 in PRE_COPY: EIO", precopy, true),
            ("read after 0 in RUNNING: EIO", precopy, false),
            ("read after 0: EIO", plain, true),
            ("precopy: EIO", plain, false),
            ("precopy: EIO", precopy, true),
            ("temporary end: 0", plain, false),
            ("reset: EBUSY", plain, true),
        ] {
            assert_eq!(refusal(text, model).is_empty(), expected, "{text} with {model}");
        }
    }

    #[test]
    fn a_migration_region_takes_the_arcs_between_its_phases() {
        let (all, plain) = ("accel?protocol=v1", "accel?protocol=v1&features=stop-copy");
        for (text, model, expected) in [
            ("arc RUNNING->PRE_COPY: EIO", all, true),
            ("arc RUNNING->PRE_COPY: EIO", "serial?protocol=draft", true),
            ("arc RUNNING->PRE_COPY: EIO", plain, false),
            ("arc PRE_COPY_P2P->STOP_COPY: EIO", all, true),
            // Where a failure leaves it.
            ("arc PRE_COPY_P2P->RUNNING_P2P: EIO", all, true),
            // A region has no P2P states.
            ("arc RUNNING_P2P->PRE_COPY_P2P: EIO", all, false),
            ("arc RUNNING->STOP: EIO", all, false),
            ("read after 0 in PRE_COPY: EIO", all, true),
            ("read after 0 in PRE_COPY_P2P: EIO", all, false),
            ("write after 0: EIO", all, true),
            ("size: EIO", all, true),
            ("precopy: EIO", all, true),
            ("precopy: EIO", plain, false),
            ("reinit at end", all, false),
            ("temporary end: 0", all, false),
            ("log start: EIO", all, false),
            ("log report: EIO", all, false),
            ("log stop: EIO", all, false),
            ("log start: EIO", "accel?protocol=draft", true),
            ("log report: EIO", "accel?protocol=draft", true),
            ("log stop: EIO", "accel?protocol=draft", true),
            ("reset: EIO", all, true),
        ] {
            assert_eq!(refusal(text, model).is_empty(), expected, "{text} with {model}");
        }
    }

    #[test]
    fn only_the_reset_of_a_driver_with_its_own_region_can_fail() {
        assert_eq!(refusal("reset: EIO", "legacy"), "");
        for text in ["arc *->*: EIO", "read after 0: EIO", "write after 0: EIO", "delay * 1ms", "size: EIO"] {
            assert_eq!(
                refusal(text, "legacy"),
                format!(
                    "--fault '{text}' can never happen: it has a migration region of its own, and only its reset can fail"
                )
            );
        }
    }
}
