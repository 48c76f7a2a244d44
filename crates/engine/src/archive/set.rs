//! A set of devices that stop and start together.

use std::ops::DerefMut;

use whimbrel_user::{DataFile, DeviceSetup, Migratable, MigrationFlags, State};

use super::cancel::{Check, check};
use crate::error::Error;
use crate::proto::identity::DeviceIdentity;
use crate::set::{check_still_in, explain, identity_of, reset_meanwhile, state_size};

/// Returns the state of a device that could not be brought to another one, unless a call into its driver has not returned.
fn answered<D: Migratable + ?Sized>(device: &mut D, error: &Error) -> Option<State> {
    if error.is_of_a_lost_device() { None } else { device.state().ok() }
}

/// The devices of a set. Requests are made one after the other.
///
/// Devices can reach each other by peer-to-peer DMA, so no device may be stopped while another one works: all pass
/// through RUNNING_P2P together.
pub(crate) struct Set<D> {
    members: Vec<Member<D>>,
}

struct Member<D> {
    device: D,
    identity: DeviceIdentity,
    has_p2p: bool,
    /// Set if a state change was requested.
    is_touched: bool,
    /// The last state that it was brought to.
    state: Option<State>,
}

impl<D: DerefMut<Target: Migratable>> Set<D> {
    /// Asks each device for its identity. No device is changed. After an error, all devices come back.
    pub(crate) fn new(mut devices: Vec<D>) -> Result<Set<D>, (Vec<D>, Box<Error>)> {
        let identities =
            devices.iter_mut().map(|device| identity_of(&mut **device)).collect::<Result<_, _>>();
        let identities: Vec<DeviceIdentity> = match identities {
            Ok(identities) => identities,
            Err(error) => return Err((devices, Box::new(error))),
        };
        let member = |(device, identity): (D, DeviceIdentity)| {
            let flags = MigrationFlags::from_bits_truncate(identity.migration_flags);
            Member {
                device,
                identity,
                has_p2p: flags.contains(MigrationFlags::P2P),
                is_touched: false,
                state: None,
            }
        };
        Ok(Set { members: devices.into_iter().zip(identities).map(member).collect() })
    }

    /// Returns the devices, in their order.
    pub(crate) fn take_devices(&mut self) -> Vec<D> {
        std::mem::take(&mut self.members).into_iter().map(|member| member.device).collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.members.len()
    }

    pub(crate) fn identities(&self) -> Vec<DeviceIdentity> {
        self.members.iter().map(|member| member.identity.clone()).collect()
    }

    pub(crate) fn identity(&self, index: usize) -> &DeviceIdentity {
        &self.members[index].identity
    }

    pub(crate) fn device(&mut self, index: usize) -> &mut D::Target {
        &mut self.members[index].device
    }

    /// Returns the estimated bytes of a device's state; `None` if its driver cannot estimate them.
    pub(crate) fn state_size(&mut self, index: usize) -> Result<Option<u64>, Error> {
        state_size(self.device(index))
    }

    /// Returns the states of the devices, if a save may begin in them.
    pub(crate) fn states_before_save(&mut self) -> Result<Vec<State>, Error> {
        (0..self.len())
            .map(|index| {
                let state = self.device(index).state()?;
                if matches!(state, State::Running | State::RunningP2p | State::Stop) {
                    return Ok(state);
                }
                // Another session is open, or a state is partly loaded: saving would end that.
                let device = self.identity(index).name.clone();
                let needed = "RUNNING, RUNNING_P2P and STOP";
                Err(Error::WrongState { device, state, work: "a save", needed })
            })
            .collect()
    }

    /// Returns warnings about the set for the user.
    pub(crate) fn warnings(&self) -> Vec<String> {
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

    /// Brings a device to a state, and makes sure that it is there.
    pub(crate) fn set_state(&mut self, index: usize, state: State) -> Result<Option<DataFile>, Error> {
        let member = &mut self.members[index];
        member.is_touched = true;
        let opened = member.device.go_to(state)?;
        member.state = Some(state);
        Ok(opened)
    }

    /// Brings a device in pre-copy to STOP_COPY, where its session goes on.
    pub(crate) fn stop_session(&mut self, index: usize) -> Result<(), Error> {
        match self.set_state(index, State::StopCopy)? {
            None => Ok(()),
            Some(_) => Err(reset_meanwhile(self.device(index), State::PreCopy, None)),
        }
    }

    /// Fails if a device has left a state that it was brought to.
    pub(crate) fn check_still_in(&mut self, index: usize, state: State) -> Result<(), Error> {
        check_still_in(self.device(index), state)
    }

    /// Brings all devices that run, and can, to the P2P state of where they are. Does nothing for a single device.
    pub(crate) fn quiesce(&mut self, cancel: Check<'_>) -> Result<(), Error> {
        for index in 0..self.len() {
            if !self.quiesces(index) {
                continue;
            }
            let state = match self.device(index).state()? {
                State::Running => State::RunningP2p,
                State::PreCopy => State::PreCopyP2p,
                _ => continue,
            };
            check(cancel)?;
            self.set_state(index, state)?;
        }
        Ok(())
    }

    /// Brings a device to a state in which its data session is open, and returns the session.
    pub(crate) fn open(&mut self, index: usize, state: State) -> Result<DataFile, Error> {
        let opened = self.set_state(index, state)?;
        opened.ok_or_else(|| Error::NoSession { device: self.members[index].identity.name.clone(), state })
    }

    /// Stops all devices and brings each to a state in which its data session is open.
    pub(crate) fn stop_to(&mut self, state: State, cancel: Check<'_>) -> Result<Vec<DataFile>, Error> {
        self.quiesce(cancel)?;
        (0..self.len())
            .map(|index| {
                check(cancel)?;
                self.open(index, state)
            })
            .collect()
    }

    /// Returns the owner's setup of each device, all of which are stopped; `None` for one without a setup.
    pub(crate) fn save_setups(&mut self) -> Result<Vec<Option<DeviceSetup>>, Error> {
        self.members.iter_mut().map(|member| Ok(member.device.save_setup()?)).collect()
    }

    /// Returns the error of work on the devices: the reset of one of them that has ended its session, if there was one.
    pub(crate) fn explain(&mut self, error: Error) -> Error {
        self.members.iter_mut().fold(error, |error, member| explain(&mut *member.device, member.state, error))
    }

    /// Runs all devices that were stopped.
    pub(crate) fn run(&mut self, cancel: Check<'_>) -> Result<(), Error> {
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
    pub(crate) fn bring_back<T>(&mut self, states: &[State], result: Result<T, Error>) -> Result<T, Error> {
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
                    let found = answered(self.device(index), &back);
                    let cause = result.err().map(Box::new);
                    Err(Error::NotBack { cause, state, found, back: Box::new(back) })
                }
            }
        })
    }

    fn bring_one_back(&mut self, index: usize, state: State) -> Result<(), Error> {
        let device = self.device(index);
        if device.state().is_ok_and(|state| state == State::Error) {
            return Err(Error::NeedsReset { device: device.name().to_string() });
        }
        device.go_to(state)?;
        Ok(())
    }

    /// Returns the devices' names.
    pub(crate) fn names(&self) -> Vec<&str> {
        self.members.iter().map(|member| member.identity.name.as_str()).collect()
    }

    /// Resets all devices if one of them may hold a state that was loaded. Returns the first error of a reset.
    pub(crate) fn try_reset(&mut self) -> Result<(), Error> {
        if !self.members.iter().any(|member| member.is_touched) {
            return Ok(());
        }
        let mut result = Ok(());
        for member in &mut self.members {
            // All of them, whatever became of the others.
            result = result.and(member.device.reset().map_err(Error::from));
        }
        result
    }

    /// Resets all devices if one of them may hold a partial state. If that fails too, the error reports it.
    pub(crate) fn reset(&mut self, cause: Error) -> Error {
        if !self.members.iter().any(|member| member.is_touched) {
            return cause;
        }
        self.members.iter_mut().fold(cause, |cause, member| match member.device.reset() {
            Ok(()) => cause,
            // It holds nothing of the received state, and the cause names the call that has not returned.
            Err(whimbrel_user::Error::Lost { .. }) if !member.is_touched => cause,
            Err(reset) => {
                let reset = Error::from(reset);
                let found = answered(&mut *member.device, &reset);
                Error::NotReset { cause: Box::new(cause), found, reset: Box::new(reset) }
            }
        })
    }

    /// Returns whether a device enters RUNNING_P2P by a request of its own, together with the others of the set.
    fn quiesces(&self, index: usize) -> bool {
        self.len() > 1 && self.members[index].has_p2p
    }
}
