//! The conclusion from the journal of a side and its devices about a migration whose outcome is unknown.
//!
//! [`whimbrel_protocol::handover`] has the rules of the handover, and [`Resolve`](crate::Resolve) does what follows.

use std::fmt;

use whimbrel_protocol::handover::{Entry, History, Side};
use whimbrel_user::{State, UNKNOWN_HOLDER};

/// The conclusion from the journal of a side and its devices.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Judgement {
    /// The side.
    pub side: Side,
    /// The states in which the devices were found; `None` for one whose state was lost with its holder.
    pub found: Vec<Option<State>>,
    /// The side that has the devices for certain, if that is proven.
    pub owner: Option<Side>,
    /// The proof, or what is missing.
    pub evidence: Evidence,
}

/// The proof of a [`Judgement`], or what it lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Evidence {
    /// A device runs: at the source it was not handed over or has come back, at the destination HANDOVER has arrived.
    Runs {
        /// The device.
        device: String,
        /// Its state.
        state: State,
    },
    /// Destination: a device was not started, or its start failed.
    NotStarted {
        /// The device.
        device: String,
        /// Its state.
        state: State,
    },
    /// Destination: the received state was being discarded.
    Discarding,
    /// The state of a device was lost with its holder.
    Lost {
        /// The device.
        device: String,
    },
    /// Not proven: the device runs, but another process may hold it now, and its state may have been lost.
    OtherHolder {
        /// The device.
        device: String,
        /// The former holder.
        before: String,
        /// The present holder.
        now: String,
    },
    /// Nothing but the devices was recorded: nothing can have been handed over.
    Unrecorded,
    /// Not proven: every device is stopped.
    Stopped,
    /// Not proven: the journal contradicts itself.
    Contradictory,
    /// Not proven: the devices are not those of the journal, or not all of them.
    OtherDevices {
        /// The number of devices that the journal has.
        recorded: usize,
        /// The number of devices that were found.
        found: usize,
    },
}

impl Judgement {
    /// The states for the rules: a lost one is ERROR, and one that proves nothing is STOP.
    pub fn counted(&self) -> Vec<State> {
        let is_unproven = matches!(self.evidence, Evidence::OtherHolder { .. });
        let count = |state: &Option<State>| match state {
            None => State::Error,
            Some(state) if is_unproven && state.is_running() => State::Stop,
            Some(state) => *state,
        };
        self.found.iter().map(count).collect()
    }
}

/// Judges a migration whose outcome its journal does not know. `found` has the states of the devices (`None`: lost), and
/// `holders` the holders that they have now, both in the order of the journal. Without all of its devices nothing is proven.
pub fn judge(history: &History, found: &[Option<State>], holders: &[Option<String>]) -> Judgement {
    let side = history.side;
    let name = |index: usize| match history.devices.get(index) {
        Some(device) => device.name.clone(),
        None => format!("device {index}"),
    };
    let has = |entry| history.entries.contains(&entry);
    let is = |wanted: fn(State) -> bool| found.iter().position(|state| state.is_some_and(wanted));
    let lost = found.iter().position(Option::is_none);
    let partial = is(|state| matches!(state, State::Resuming | State::Error));
    let runs = is(State::is_running);
    let other_holder = found.iter().enumerate().find_map(|(index, state)| {
        let (before, now) = (&history.devices.get(index)?.holder, holders.get(index)?);
        let is_same = before == now && now.as_deref() != Some(UNKNOWN_HOLDER);
        let name_of = |holder: &Option<String>| holder.clone().unwrap_or_else(|| UNKNOWN_HOLDER.into());
        (state.is_some_and(State::is_running) && !is_same).then(|| Evidence::OtherHolder {
            device: name(index),
            before: name_of(before),
            now: name_of(now),
        })
    });
    let state = |index: usize| found[index].unwrap_or(State::Error);
    let is_contradictory = history.entries.iter().any(|entry| entry.is_outcome());
    // A journal may have no devices.
    let recorded = if history.devices.is_empty() { found.len() } else { history.devices.len() };
    let (owner, evidence) = match side {
        _ if history.is_unrecorded() => (Some(Side::Source), Evidence::Unrecorded),
        _ if found.is_empty() || found.len() != recorded || found.len() != holders.len() => {
            (None, Evidence::OtherDevices { recorded, found: found.len().min(holders.len()) })
        }
        _ if is_contradictory => (None, Evidence::Contradictory),
        Side::Source if found.iter().all(Option::is_none) => {
            (Some(Side::Destination), Evidence::Lost { device: name(0) })
        }
        Side::Destination if has(Entry::Discarding) => (Some(Side::Source), Evidence::Discarding),
        Side::Destination if lost.is_some() => {
            (Some(Side::Source), Evidence::Lost { device: name(lost.unwrap_or_default()) })
        }
        Side::Destination if partial.is_some() => {
            let index = partial.unwrap_or_default();
            (Some(Side::Source), Evidence::NotStarted { device: name(index), state: state(index) })
        }
        _ => match (other_holder, runs, lost) {
            (Some(other), ..) => (None, other),
            (None, Some(index), _) => {
                (Some(side), Evidence::Runs { device: name(index), state: state(index) })
            }
            (None, None, Some(index)) => (None, Evidence::Lost { device: name(index) }),
            (None, None, None) => (None, Evidence::Stopped),
        },
    };
    Judgement { side, found: found.to_vec(), owner, evidence }
}

impl fmt::Display for Judgement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.evidence, self.side) {
            (Evidence::Runs { device, state }, Side::Source) => {
                write!(f, "{device} is in {state}: the devices were not handed over")
            }
            (Evidence::Runs { device, state }, Side::Destination) => {
                write!(f, "{device} is in {state}: the devices were handed over to this side")
            }
            (Evidence::NotStarted { device, state }, _) => {
                write!(f, "{device} is in {state}: not all devices can have run here")
            }
            (Evidence::Discarding, _) => {
                f.write_str("the received state was being discarded: the devices do not run here any more")
            }
            (Evidence::Unrecorded, _) => {
                f.write_str("the journal has no record that the devices could have been handed over")
            }
            (Evidence::Lost { device }, _) => write!(f, "{device} has lost its state"),
            (Evidence::OtherHolder { device, before, now }, _) => write!(
                f,
                "{device} runs, but the process that serves it ({now}) is not known to be the one that served it before \
                 ({before}): its state was lost unless that one took over from the former"
            ),
            (Evidence::Stopped, Side::Source) => {
                f.write_str("all devices are stopped: they may have been handed over")
            }
            (Evidence::Stopped, Side::Destination) => f.write_str(
                "all devices are stopped and have all of their state: they may have been handed over",
            ),
            (Evidence::OtherDevices { recorded, found }, _) => {
                write!(f, "the journal is about {recorded} devices, and {found} were found")
            }
            (Evidence::Contradictory, _) => {
                f.write_str("the journal has outcomes that contradict each other")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use whimbrel_protocol::handover::{DeviceRecord, Record};

    use super::*;

    fn judgement(before: Option<&str>, now: Option<&str>) -> Judgement {
        let device = DeviceRecord::new("card", before.map(str::to_string));
        let mut records = Record::begin(Side::Source, &[device]).unwrap();
        records.push(Record::new(7, "host-b", Entry::MayBeHandedOver).unwrap());
        let history = &History::of(&records).unwrap()[0];
        judge(history, &[Some(State::Running)], &[now.map(str::to_string)])
    }

    #[test]
    fn without_all_devices_of_the_journal_nothing_is_proven() {
        let device = |name: &str| DeviceRecord::new(name, None);
        let mut records = Record::begin(Side::Source, &[device("one"), device("two")]).unwrap();
        records.push(Record::new(7, "host-b", Entry::MayBeHandedOver).unwrap());
        let history = &History::of(&records).unwrap()[0];
        let (runs, lost) = (Some(State::Running), None);
        // The states, and the number of holders.
        let cases: [(&[Option<State>], usize); 5] =
            [(&[], 0), (&[lost], 1), (&[runs], 1), (&[runs, runs], 1), (&[runs, runs, runs], 3)];
        for (found, holders) in cases {
            let judgement = judge(history, found, &vec![None; holders]);
            assert!(judgement.owner.is_none(), "{found:?}: {judgement}");
            assert!(matches!(judgement.evidence, Evidence::OtherDevices { .. }), "{judgement:?}");
        }
        assert_eq!(judge(history, &[runs, runs], &[None, None]).owner, Some(Side::Source));
    }

    #[test]
    fn a_running_device_proves_something_only_if_its_holder_is_known_to_be_the_same() {
        for (before, now, is_proven) in [
            (Some("process 7"), Some("process 7"), true),
            (Some("process 7"), Some("process 8"), false),
            (Some("process 7"), Some(UNKNOWN_HOLDER), false),
            (Some(UNKNOWN_HOLDER), Some("process 7"), false),
            (Some(UNKNOWN_HOLDER), Some(UNKNOWN_HOLDER), false),
            (Some("process 7"), None, false),
            (None, Some("process 7"), false),
            // Devices of this process.
            (None, None, true),
        ] {
            let judgement = judgement(before, now);
            assert_eq!(judgement.owner.is_some(), is_proven, "{before:?}, {now:?}: {judgement}");
        }
    }
}
