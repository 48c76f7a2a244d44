//! A set of devices that stop and start together.

use whimbrel_user::{DataFile, DeviceSetup, Migratable, MigrationFlags, State};

use super::cancel::{Check, check};
use crate::error::Error;
use crate::proto::identity::DeviceIdentity;
use crate::set::identity_of;

/// The devices of a set. Requests are made one after the other.
///
/// Devices can reach each other by peer-to-peer DMA, so no device may be stopped while another one works: all pass
/// through RUNNING_P2P together.
pub(super) struct Set<'a> {
    members: Vec<Member<'a>>,
}

struct Member<'a> {
    device: &'a mut dyn Migratable,
    identity: DeviceIdentity,
    has_p2p: bool,
    /// Set if a state change was requested.
    is_touched: bool,
}

impl<'a> Set<'a> {
    /// Asks each device for its identity. No device is changed.
    pub(super) fn new(devices: Vec<&'a mut dyn Migratable>) -> Result<Set<'a>, Error> {
        let member = |device: &'a mut dyn Migratable| {
            let identity = identity_of(device)?;
            let flags = MigrationFlags::from_bits_truncate(identity.migration_flags);
            Ok(Member { device, identity, has_p2p: flags.contains(MigrationFlags::P2P), is_touched: false })
        };
        let members = devices.into_iter().map(member).collect::<Result<_, Error>>()?;
        Ok(Set { members })
    }

    pub(super) fn len(&self) -> usize {
        self.members.len()
    }

    pub(super) fn identities(&self) -> Vec<DeviceIdentity> {
        self.members.iter().map(|member| member.identity.clone()).collect()
    }

    pub(super) fn identity(&self, index: usize) -> &DeviceIdentity {
        &self.members[index].identity
    }

    pub(super) fn device(&mut self, index: usize) -> &mut dyn Migratable {
        self.members[index].device
    }

    /// Returns warnings about the set for the user.
    pub(super) fn warnings(&self) -> Vec<String> {
        let without: Vec<&str> = self
            .members
            .iter()
            .filter(|member| !member.has_p2p)
            .map(|member| member.identity.name.as_str())
            .collect();
        if self.len() < 2 || without.is_empty() {
            return Vec::new();
        }
        let names = without.join(", ");
        vec![format!(
            "{names} cannot be quiesced (no VFIO_MIGRATION_P2P): the devices must not access each other directly"
        )]
    }

    /// Brings a device to a state.
    pub(super) fn set_state(&mut self, index: usize, state: State) -> Result<Option<DataFile>, Error> {
        let member = &mut self.members[index];
        member.is_touched = true;
        Ok(member.device.set_state(state)?)
    }

    /// Stops all devices and brings each to a state in which its data session is open.
    pub(super) fn stop_to(&mut self, state: State, cancel: Check<'_>) -> Result<Vec<DataFile>, Error> {
        for index in 0..self.len() {
            if self.quiesces(index) && self.device(index).state()? == State::Running {
                check(cancel)?;
                self.set_state(index, State::RunningP2p)?;
            }
        }
        (0..self.len())
            .map(|index| {
                check(cancel)?;
                self.set_state(index, state)?.ok_or_else(|| Error::NoSession {
                    device: self.members[index].identity.name.clone(),
                    state,
                })
            })
            .collect()
    }

    /// Returns the owner's setup of each device, all of which are stopped; `None` for one without a setup.
    pub(super) fn save_setups(&mut self) -> Result<Vec<Option<DeviceSetup>>, Error> {
        self.members.iter_mut().map(|member| Ok(member.device.save_setup()?)).collect()
    }

    /// Runs all devices that were stopped.
    pub(super) fn run(&mut self, cancel: Check<'_>) -> Result<(), Error> {
        for state in [State::RunningP2p, State::Running] {
            for index in 0..self.len() {
                if state == State::Running || self.quiesces(index) {
                    check(cancel)?;
                    self.set_state(index, state)?;
                }
            }
        }
        Ok(())
    }

    /// Returns all devices to the states that they were in, after work that ended in `result`.
    pub(super) fn bring_back<T>(&mut self, states: &[State], result: Result<T, Error>) -> Result<T, Error> {
        // A device that fails here fails again below, where the error is reported.
        for (index, &state) in states.iter().enumerate() {
            if state == State::Running && self.quiesces(index) && self.members[index].is_touched {
                let _ = self.bring_one_back(index, State::RunningP2p);
            }
        }
        states.iter().enumerate().fold(result, |result, (index, &state)| {
            if !self.members[index].is_touched {
                return result;
            }
            match self.bring_one_back(index, state) {
                Ok(()) => result,
                Err(back) => {
                    Err(Error::NotBack { cause: result.err().map(Box::new), state, back: Box::new(back) })
                }
            }
        })
    }

    fn bring_one_back(&mut self, index: usize, state: State) -> Result<(), Error> {
        let device = self.device(index);
        if device.state().is_ok_and(|state| state == State::Error) {
            return Err(Error::NeedsReset { device: device.name().to_string() });
        }
        device.set_state(state)?;
        Ok(())
    }

    /// Resets all devices if one of them may hold a partial state. If that fails too, the error reports it.
    pub(super) fn reset(&mut self, cause: Error) -> Error {
        if !self.members.iter().any(|member| member.is_touched) {
            return cause;
        }
        self.members.iter_mut().fold(cause, |cause, member| match member.device.reset() {
            Ok(()) => cause,
            Err(reset) => Error::NotReset { cause: Box::new(cause), reset: Box::new(reset.into()) },
        })
    }

    /// Returns whether a device enters RUNNING_P2P by a request of its own, together with the others of the set.
    fn quiesces(&self, index: usize) -> bool {
        self.len() > 1 && self.members[index].has_p2p
    }
}
