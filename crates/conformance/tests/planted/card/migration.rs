//! The card's arcs, its data session and its pre-copy report.

use std::collections::BTreeSet;

use whimbrel_device::{ArcError, Context, Errno, Migration, MigrationFlags, PrecopyReport, State};
use whimbrel_protocol::session::{self, Direction, Effect};
use whimbrel_uapi::pci::VFIO_PCI_MSI_IRQ_INDEX;

use super::loader::Loader;
use super::saver::Saver;
use super::stream;
use super::{Card, Contents, TICKS};
use crate::bug::Bug;

/// The data session.
pub(super) enum Session {
    None,
    Saving(Box<Saver>),
    Resuming(Box<Loader>),
}

/// What bugs remember from earlier sessions.
#[derive(Default)]
#[allow(clippy::struct_excessive_bools, reason = "one for each bug that needs it")]
pub(super) struct Remembered {
    /// A session has been opened before.
    pub(super) saved: bool,
    /// Blocks that have changed since the last session.
    pub(super) changed: BTreeSet<usize>,
    /// A saving session that was given up.
    pub(super) saver: Option<Box<Saver>>,
    /// A resuming session that was given up.
    pub(super) loader: Option<Box<Loader>>,
    /// Pages of a log that was stopped.
    pub(super) pages: BTreeSet<u64>,
    /// A state has been loaded.
    pub(super) loaded: bool,
    /// The loaded state does not fit its checksum.
    pub(super) spoilt: bool,
    /// Changes are not tracked.
    pub(super) untracked: bool,
    /// A state was refused.
    pub(super) hurt: bool,
    /// The number of pre-copy reports.
    pub(super) reports: u64,
}

impl Card {
    /// Begins all of the pre-copy over, because the card was arranged anew.
    pub(super) fn start_over(&mut self) {
        if let Session::Saving(saver) = &mut self.session {
            if self.reports_reinit || self.bug == Some(Bug::InitialRises) {
                saver.start_over();
            } else {
                saver.all_changed();
            }
        }
    }

    fn begin_saving(&mut self) {
        let mut saver = Box::new(Saver::new());
        let changed = std::mem::take(&mut self.remembered.changed);
        if std::mem::replace(&mut self.remembered.saved, true) {
            match self.bug {
                Some(Bug::SecondSessionDelta) => saver.only(changed),
                Some(Bug::SecondSessionEmpty) => saver.drop_rest(),
                _ => {}
            }
        }
        if self.remembered.spoilt {
            saver.drop_rest();
        }
        let leaves = self.has(Bug::AbandonedSaveLeavesOffset) || self.has(Bug::ResetKeepsOffset);
        if let (true, Some(left)) = (leaves, self.remembered.saver.take()) {
            saver = left;
        }
        self.session = Session::Saving(saver);
    }

    fn begin_resuming(&mut self) {
        let contents =
            if self.has(Bug::LoadKeepsOldMemory) { self.contents.clone() } else { Contents::powered_on() };
        let mut loader = Box::new(Loader::new(contents, self.bug));
        if let (true, Some(left)) = (self.has(Bug::AbandonedLoadLeavesData), self.remembered.loader.take()) {
            loader = left;
        }
        self.session = Session::Resuming(loader);
    }

    fn end_session(&mut self) -> Result<(), ArcError> {
        if let Session::Resuming(loader) = &mut self.session {
            let old = self.contents.registers;
            let loaded = match (loader.finish(), self.bug) {
                (Err(error), Some(Bug::EarlyLeaveLosesBlock)) => {
                    loader.lose_block();
                    return Err(error);
                }
                (Err(error), _) => return Err(error),
                (Ok(_), Some(Bug::LoadNeverComplete)) => return Err(Errno::EINVAL.into()),
                (Ok(loaded), _) => loaded,
            };
            if self.bug == Some(Bug::FreshStatePanics) {
                assert!(!loaded.are_powered_on(), "no guest driver has given an address");
            }
            self.remembered.spoilt = loader.spoilt;
            self.contents = loaded;
            self.remembered.loaded = true;
            match self.bug {
                Some(Bug::LoadStopsTracking) => self.remembered.untracked = true,
                Some(Bug::LoadIsCounted) => {
                    self.contents.registers[TICKS] = self.contents.registers[TICKS].wrapping_add(1);
                }
                Some(Bug::RegisterLost | Bug::SecondLosesRegister) => {
                    self.contents.registers[0x10..0x14].fill(0);
                }
                Some(Bug::RegistersNotLoaded) => self.contents.registers = old,
                Some(Bug::LastBlockLost) => self.contents.block_mut(super::BLOCKS - 1).fill(0),
                _ => {}
            }
        }
        match std::mem::replace(&mut self.session, Session::None) {
            Session::Saving(saver) if self.has(Bug::AbandonedSaveLeavesOffset) => {
                self.remembered.saver = (!saver.ended).then_some(saver);
            }
            _ => {}
        }
        Ok(())
    }
}

impl Migration for Card {
    fn flags(&self) -> MigrationFlags {
        match self.bug {
            Some(Bug::FlagsWithoutStopCopy) => MigrationFlags::P2P | MigrationFlags::PRE_COPY,
            Some(Bug::OptionalStateAccepted | Bug::StopWithoutP2pFails) => {
                MigrationFlags::STOP_COPY | MigrationFlags::PRE_COPY
            }
            Some(Bug::AbsentStateAccepted | Bug::AbsentFeatureFound) => {
                MigrationFlags::STOP_COPY | MigrationFlags::P2P
            }
            _ if self.is_plain => MigrationFlags::STOP_COPY,
            _ => MigrationFlags::all(),
        }
    }

    fn arc(&mut self, context: &Context, from: State, to: State) -> Result<(), ArcError> {
        match (self.bug, from, to) {
            (Some(Bug::P2pToRunningFails), State::RunningP2p, State::Running) => {
                return Err(Errno::EBUSY.into());
            }
            (Some(Bug::PrecopyCannotBeLeft), State::PreCopy, State::Running) => {
                return Err(Errno::EBUSY.into());
            }
            (Some(Bug::StopCopyBreaks), State::StopCopy, State::Stop) => {
                return Err(ArcError::Broken(Errno::EIO));
            }
            (Some(Bug::PrecopyForgetsChanges), _, State::StopCopy) => {
                if let Session::Saving(saver) = &mut self.session {
                    saver.forget_changes();
                }
            }
            (Some(Bug::StopCopyStartsOver), State::PreCopyP2p | State::PreCopy, State::StopCopy) => {
                self.session = Session::Saving(Box::new(Saver::new()));
            }
            (Some(Bug::StopCopySkipsUnread), State::PreCopyP2p | State::PreCopy, State::StopCopy) => {
                if let Session::Saving(saver) = &mut self.session
                    && saver.total == 0
                {
                    saver.only(BTreeSet::new());
                }
            }
            (Some(Bug::StopClearsRegisters), State::RunningP2p | State::Running, State::Stop) => {
                self.contents.registers.fill(0);
            }
            (Some(Bug::P2pClearsRegisters), State::RunningP2p, State::Running) => {
                self.contents.registers.fill(0);
            }
            (Some(Bug::PrecopyResetsLog), _, State::PreCopy) => {
                self.log = super::Log::default();
            }
            (Some(Bug::P2pStopsTracking), _, State::PreCopyP2p) => self.remembered.untracked = true,
            (Some(Bug::DmaInStop), State::Stop, _) => {
                // Without memory there, nothing happens.
                let _ = self.write_dma(context);
            }
            (Some(Bug::InterruptsInStop), State::Stop, _) => {
                context.bus().interrupts().trigger(VFIO_PCI_MSI_IRQ_INDEX, 0);
            }
            (Some(Bug::ChangesInStop), State::Stop, _) => {
                self.contents.registers[TICKS] = self.contents.registers[TICKS].wrapping_add(1);
            }
            _ => {}
        }
        match session::effect(from, to) {
            Effect::Opens(Direction::Saving) => self.begin_saving(),
            Effect::Opens(Direction::Resuming) => self.begin_resuming(),
            Effect::Ends => self.end_session()?,
            Effect::None | Effect::Continues => {}
        }
        self.function.enter(to);
        Ok(())
    }

    fn data_size(&mut self, context: &Context) -> Result<u64, Errno> {
        let size = match &self.session {
            Session::Saving(saver) => saver.left(),
            Session::None | Session::Resuming(_) => stream::WHOLE as u64,
        };
        match self.bug {
            Some(Bug::DataSizeOff) => Ok(size * 1000),
            Some(Bug::DataSizeTooSmall) => Ok(size / 1000),
            Some(Bug::DataSizeZero) => Ok(0),
            Some(Bug::DataSizeOnlyInStopCopy) if context.state() != State::StopCopy => Err(Errno::EINVAL),
            Some(Bug::DataSizeFailsInPrecopy) if context.state().is_precopy() => Err(Errno::EINVAL),
            _ => Ok(size),
        }
    }

    fn read(&mut self, context: &Context, buffer: &mut [u8]) -> Result<usize, Errno> {
        let bug = self.bug;
        let stopped = context.state() == State::StopCopy;
        let Session::Saving(saver) = &mut self.session else { return Err(Errno::ENODEV) };
        let length = buffer.len();
        match bug {
            Some(Bug::LongReadsFail) if length > 4096 => return Err(Errno::EIO),
            Some(Bug::ShortReadsFail) if length < 16 => return Err(Errno::EINVAL),
            Some(Bug::PrecopyReadFails) if !stopped => return Err(Errno::EINVAL),
            Some(Bug::NeverEnds) if stopped && saver.left() == 0 => {
                buffer.fill(0);
                return Ok(length);
            }
            Some(Bug::TemporaryEndTooEarly) if !stopped && saver.total > 1000 => return Ok(0),
            Some(Bug::TemporaryEndIsFinal) if !stopped && saver.initial() + saver.dirty() == 0 => {
                saver.drop_rest();
            }
            Some(Bug::PrecopyIgnoresOffset) if !stopped => {
                // Each read begins at the head.
                let count = Saver::new().read(&self.contents, false, buffer);
                let advanced = saver.read(&self.contents, false, &mut vec![0; count]);
                return Ok(advanced);
            }
            _ => {}
        }
        let count = saver.read(&self.contents, stopped, buffer);
        match bug {
            Some(Bug::DependsOnReadSize) if length >= 512 && count > 100 => buffer[100] ^= 0x40,
            Some(Bug::EnomsgInStopCopy) if count == 0 && stopped => return Err(Errno::ENOMSG),
            Some(Bug::EndNotStable) if count == 0 && stopped && std::mem::replace(&mut saver.ended, true) => {
                buffer[0] = 0;
                return Ok(1);
            }
            Some(Bug::EndFailsLater)
                if count == 0 && stopped && std::mem::replace(&mut saver.ended, true) =>
            {
                return Err(Errno::EIO);
            }
            _ => {}
        }
        if count == 0 && stopped {
            saver.ended = true;
        }
        Ok(count)
    }

    fn write(&mut self, _: &Context, data: &[u8]) -> Result<usize, Errno> {
        let bug = self.bug;
        let Session::Resuming(loader) = &mut self.session else { return Err(Errno::ENODEV) };
        match bug {
            Some(Bug::WritesTakeNothing) if loader.taken > 1000 => return Ok(0),
            Some(Bug::ShortWritesPanic) => assert!(data.len() >= 16, "a record is whole"),
            Some(Bug::LongWritesFail) if data.len() > 4096 => return Err(Errno::E2BIG),
            Some(Bug::DependsOnWriteSize) if data.len() < 16 => return Err(Errno::EINVAL),
            Some(Bug::LongWritesLost) if data.len() > 4096 => {
                return loader.write(&data[..4096]).map(|_| data.len());
            }
            _ => {}
        }
        if bug == Some(Bug::ForeignHurts) && self.remembered.hurt {
            return Err(Errno::EINVAL);
        }
        let result = loader.write(data);
        self.remembered.hurt |= result.is_err();
        if bug == Some(Bug::BadDataCounts) && result.is_err() {
            loader.taken += data.len() as u64;
        }
        result
    }

    fn precopy(&mut self, _: &Context) -> Result<PrecopyReport, Errno> {
        let Session::Saving(saver) = &self.session else { return Err(Errno::ENODEV) };
        let (initial, dirty) = (saver.initial(), saver.dirty());
        self.remembered.reports += 1;
        let reports = self.remembered.reports;
        let report = match self.bug {
            Some(Bug::InitialConstant) => PrecopyReport::new(1000, dirty),
            Some(Bug::PrecopyAlwaysZero) => PrecopyReport::new(0, 0),
            Some(Bug::InitialAlwaysZero) => PrecopyReport::new(0, initial + dirty),
            Some(Bug::InitialHalved) => PrecopyReport::new(initial / 2, dirty),
            Some(Bug::PrecopyZeroTooEarly) if initial < saver.total => PrecopyReport::new(0, 0),
            Some(Bug::InitialTooLarge) => PrecopyReport::new(initial + 1000, dirty),
            Some(Bug::InitialGrows) => PrecopyReport::new(initial + reports, dirty),
            Some(Bug::DirtyFromTheStart) => PrecopyReport::new(initial / 2, dirty + initial - initial / 2),
            Some(Bug::DirtyNeverFalls) => PrecopyReport::new(initial, stream::WHOLE as u64 - initial),
            Some(Bug::DirtyIgnoresChanges) => PrecopyReport::new(initial, 0),
            Some(Bug::PrecopyInfoFails) => return Err(Errno::ENOTTY),
            _ => PrecopyReport::new(initial, dirty),
        };
        Ok(report.reinit(saver.restarted() && self.bug != Some(Bug::ReinitNotTold)))
    }

    fn enable_precopy_info_v2(&mut self, _: &Context) -> Result<(), Errno> {
        self.reports_reinit = true;
        Ok(())
    }
}
