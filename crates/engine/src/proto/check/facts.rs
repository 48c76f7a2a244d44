//! The answers of a device before a migration, and what they say of it. All queries leave the device as it is.

use whimbrel_protocol::{MigrationFlags, State};

use super::code::Code;
use super::finding::Finding;
use super::report::DirtyLog;
use crate::proto::identity::DeviceIdentity;

/// The answers of a device.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Facts {
    /// The name.
    pub name: String,
    /// The migration features; `None` for a device that does not migrate, or did not answer.
    pub flags: Option<MigrationFlags>,
    /// The state; `None` if it is unknown.
    pub state: Option<State>,
    /// The size of its state in bytes, as the driver estimates it.
    pub state_bytes: Option<u64>,
    /// Its dirty log.
    pub dirty_log: DirtyLog,
    /// The identity, as a destination gets it; `None` if it is unknown.
    pub identity: Option<DeviceIdentity>,
    /// The errors.
    pub(crate) refused: Vec<Refused>,
}

/// An error in place of an answer.
#[derive(Clone, Debug)]
pub(crate) struct Refused {
    pub(crate) code: Code,
    pub(crate) text: String,
}

impl Facts {
    /// Returns whether the state is sent while the device runs.
    pub(super) fn has_pre_copy(&self) -> bool {
        self.has(MigrationFlags::PRE_COPY)
    }

    pub(super) fn has(&self, flag: MigrationFlags) -> bool {
        self.flags.is_some_and(|flags| flags.contains(flag))
    }
}

/// Returns what the answers of the devices say. `has_memory` is `true` if memory migrates with them.
pub(crate) fn findings_of(set: &[Facts], has_memory: bool) -> Vec<Finding> {
    set.iter().flat_map(|facts| of_device(facts, set.len() > 1, has_memory)).collect()
}

fn of_device(facts: &Facts, is_set: bool, has_memory: bool) -> Vec<Finding> {
    let mut found: Vec<Finding> =
        facts.refused.iter().map(|refused| Finding::new(refused.code, &refused.text)).collect();
    let mut add = |code: Code, text: String| found.push(Finding::new(code, text));
    let name = &facts.name;
    if let Some(flags) = facts.flags {
        if !flags.contains(MigrationFlags::STOP_COPY) {
            add(Code::NoStopCopy, format!("{name}: its migration flags are {:#x}", flags.bits()));
        }
        if facts.state_bytes.is_none() && facts.refused.is_empty() {
            let code = if facts.has_pre_copy() { Code::StateSizeUnknown } else { Code::StateSizeMissing };
            add(code, format!("{name}: its driver does not report the size of its state"));
        }
        if !facts.has_pre_copy() {
            let size = facts
                .state_bytes
                .map_or_else(|| "unknown size".to_string(), |bytes| format!("{bytes} bytes"));
            add(Code::NoPreCopy, format!("{name}: all of its state ({size}) is sent while it is stopped"));
        }
        if is_set && !flags.contains(MigrationFlags::P2P) {
            add(Code::NoP2p, format!("{name}: it cannot be quiesced (no VFIO_MIGRATION_P2P)"));
        }
        if has_memory && facts.dirty_log == DirtyLog::None {
            add(Code::NoDirtyLog, format!("{name}: its writes to memory are not logged"));
        }
    }
    if let Some(state) = facts.state.filter(|state| *state != State::Running) {
        let code = match state {
            State::Error => Code::ErrorState,
            State::PreCopy | State::PreCopyP2p => Code::LeftInPreCopy,
            _ => Code::NotRunning,
        };
        add(code, format!("{name}: it is in {state}, expected RUNNING"));
    }
    found.into_iter().map(|finding| finding.of(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Facts {
        Facts {
            name: "nic0".into(),
            flags: Some(MigrationFlags::STOP_COPY | MigrationFlags::P2P | MigrationFlags::PRE_COPY),
            state: Some(State::Running),
            state_bytes: Some(7),
            dirty_log: DirtyLog::Device,
            ..Facts::default()
        }
    }

    fn codes(set: &[Facts], has_memory: bool) -> Vec<Code> {
        findings_of(set, has_memory).iter().map(|finding| finding.code).collect()
    }

    #[test]
    fn a_device_with_everything_has_no_findings() {
        assert_eq!(codes(&[good(), good()], true), []);
    }

    #[test]
    fn each_lack_has_its_code() {
        let without =
            |flag: MigrationFlags| Facts { flags: good().flags.map(|flags| flags - flag), ..good() };
        let stopped_only = without(MigrationFlags::PRE_COPY);
        let cases = [
            (without(MigrationFlags::STOP_COPY), vec![Code::NoStopCopy]),
            (without(MigrationFlags::P2P), vec![Code::NoP2p]),
            (stopped_only.clone(), vec![Code::NoPreCopy]),
            (Facts { state_bytes: None, ..good() }, vec![Code::StateSizeUnknown]),
            (Facts { state_bytes: None, ..stopped_only }, vec![Code::StateSizeMissing, Code::NoPreCopy]),
            (Facts { dirty_log: DirtyLog::None, ..good() }, vec![Code::NoDirtyLog]),
            (Facts { state: Some(State::Error), ..good() }, vec![Code::ErrorState]),
            (Facts { state: Some(State::Stop), ..good() }, vec![Code::NotRunning]),
            (Facts { state: Some(State::PreCopyP2p), ..good() }, vec![Code::LeftInPreCopy]),
        ];
        for (facts, expected) in cases {
            assert_eq!(codes(&[good(), facts.clone()], true), expected, "{facts:?}");
        }
    }

    #[test]
    fn a_single_device_needs_no_p2p_and_devices_alone_no_dirty_log() {
        let single = Facts {
            flags: Some(MigrationFlags::STOP_COPY | MigrationFlags::PRE_COPY),
            dirty_log: DirtyLog::None,
            ..good()
        };
        assert_eq!(codes(&[single], false), []);
    }

    #[test]
    fn an_error_is_told_with_the_device_and_hides_what_it_leaves_unknown() {
        let refused =
            vec![Refused { code: Code::RequestRefused, text: "nic0: GET of the state: EIO".into() }];
        let facts = Facts { refused, state: None, state_bytes: None, ..good() };
        let found = findings_of(&[facts], true);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!((found[0].code, found[0].device.as_deref()), (Code::RequestRefused, Some("nic0")));
    }
}
