//! Writes of `device_state`: the path through the device's own states, and the way back after a failure.

use super::super::phase::v2_path_from;
use super::super::{Backend, Phase, SectionMemory, Version, draft, v1};
use super::Vendor;
use crate::arc::ArcError;
use crate::session::{Effect, effect};
use crate::{Errno, State, fsm};

impl<M: SectionMemory> Vendor<M> {
    pub(super) fn write_state(&mut self, device: &mut dyn Backend, register: u32) -> Result<(), Errno> {
        let from = self.phase.ok_or(Errno::EIO)?;
        let to = self.requested(register).ok_or(Errno::EINVAL)?;
        if from == to {
            return Ok(());
        }
        // The device's state is incomplete, so it cannot run; a reset ends this.
        self.load_failed.map_or(Ok(()), Err)?;
        let path = v2_path_from(self.flags, from, self.behind, to).map_err(|_| Errno::EINVAL)?;
        let begins_saving = to.is_saving() && !from.is_saving();
        if begins_saving {
            device.track_dirty(true)?;
        }
        let before = self.behind;
        for step in path {
            match device.arc(self.behind, step) {
                Ok(()) => self.enter(step, before),
                Err(failure) => {
                    if begins_saving {
                        // The user gets the first failure.
                        let _ = device.track_dirty(false);
                    }
                    return Err(self.undo(device, from, before, failure));
                }
            }
        }
        self.phase = Some(to);
        if from.is_saving() != to.is_saving() || from == Phase::Resuming || to == Phase::Resuming {
            self.lost = None;
            self.saving.clear();
            self.dirty.clear();
        }
        if from.is_saving() && !to.is_saving() {
            // The device has already changed its state; a log that cannot be stopped costs time, not
            // data.
            let _ = device.track_dirty(false);
        }
        Ok(())
    }

    /// Returns the phase that a written register requests.
    fn requested(&self, register: u32) -> Option<Phase> {
        match self.layout.version() {
            Version::V1 => match v1::DeviceState::from_register(register) {
                Ok(v1::DeviceState::Valid(phase)) => Some(phase),
                Ok(v1::DeviceState::Error) | Err(_) => None,
            },
            Version::Draft => match draft::DeviceState::from_register(register) {
                Ok(draft::DeviceState::Valid(phase)) => Some(phase),
                Ok(draft::DeviceState::RunningAndResuming) | Err(_) => None,
            },
        }
    }

    /// Takes in that the device has made one step of a request that began in `before`.
    fn enter(&mut self, step: State, before: State) {
        if effect(self.behind, step) == Effect::Ends && effect(before, State::Stop) == Effect::Ends {
            // Kept only if the request fails: a success clears it with the phase it belongs to.
            self.lost = Some(Errno::EIO);
        }
        self.behind = step;
    }

    /// Brings the device back to the state that its user reads, after an arc of a request from `from`
    /// failed.
    fn undo(&mut self, device: &mut dyn Backend, from: Phase, before: State, failure: ArcError) -> Errno {
        let errno = match failure {
            ArcError::Broken(errno) => {
                self.phase = None;
                self.behind = State::Error;
                return errno;
            }
            ArcError::Stays(errno) => errno,
        };
        // A session that has ended is not opened again: its data would start over.
        let back = match (self.lost, from.is_running()) {
            (None, _) => before,
            (Some(_), true) => State::Running,
            (Some(_), false) => State::Stop,
        };
        let path = fsm::path(self.flags, self.behind, back);
        let returned = path.is_ok_and(|mut path| {
            path.all(|step| {
                let done = device.arc(self.behind, step).is_ok();
                if done {
                    self.behind = step;
                }
                done
            })
        });
        if !returned {
            self.phase = None;
            self.behind = State::Error;
        }
        errno
    }
}
