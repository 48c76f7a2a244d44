//! The devices and settings that a case works with.

use std::sync::Arc;

use whimbrel_protocol::{MigrationFlags, State};
use whimbrel_uapi::device::DeviceInfoFlags;
use whimbrel_uapi::feature::{Feature, FeatureFlags};
use whimbrel_user::{Device, Error, Identity};

use crate::case::Need;
use crate::hooks::{DmaWriter, RegisterProbe};
use crate::outcome::{Outcome, equal_bytes, inconclusive, skip};
use crate::saved::Saved;
use crate::subject::Subject;
use crate::time_budget::TimeBudget;

/// The device, or devices, of one run of a case.
pub(crate) struct Bench {
    /// The device under test, in RUNNING at the start of a case.
    pub(crate) subject: Subject,
    /// The second device, likewise.
    pub(crate) second: Option<Subject>,
    pub(crate) features: Features,
    pub(crate) writer: Option<Arc<dyn DmaWriter>>,
    pub(crate) registers: Option<Arc<dyn RegisterProbe>>,
    /// The state of an earlier version of the driver.
    pub(crate) stream: Option<Arc<[u8]>>,
    /// Random numbers of the run's seed.
    pub(crate) random: fastrand::Rng,
    /// Allows the case to reset the device.
    pub(crate) may_reset: bool,
    pub(crate) budget: TimeBudget,
}

impl Bench {
    /// Returns the second device; skips the case without it.
    pub(crate) fn second(&mut self) -> Outcome<&mut Subject> {
        match &mut self.second {
            Some(second) => Ok(second),
            None => skip(Need::Second),
        }
    }

    /// Returns the author's probe of the registers; skips the case without it.
    pub(crate) fn registers(&self) -> Outcome<Arc<dyn RegisterProbe>> {
        self.registers.clone().map_or_else(|| skip(Need::Registers), Ok)
    }

    /// Changes the device's registers, if its author has a probe of them, so that a state to be saved is unlike the one
    /// after a reset.
    pub(crate) fn leave_power_on_state(&mut self) -> Outcome {
        let seed = self.random.u64(..);
        match self.registers.clone() {
            Some(registers) => self.subject.change(&*registers, seed),
            None => Ok(()),
        }
    }

    /// Changes the device's registers until a look at them shows others than `known`, and returns what it shows. Without a
    /// verdict if that takes more than two changes.
    ///
    /// One may not be enough: all cases of a run draw the same changes, so a device whose reset keeps its registers may have
    /// those of the first change already.
    pub(crate) fn change_from(&mut self, registers: &dyn RegisterProbe, known: &[u8]) -> Outcome<Vec<u8>> {
        for _ in 0..2 {
            let seed = self.random.u64(..);
            self.subject.change(registers, seed)?;
            let found = self.subject.look(registers)?;
            if found != known {
                return Ok(found);
            }
        }
        inconclusive("the probe's changes do not show in the registers")
    }

    /// Runs a test that loads other states than the device's own, and then loads that again, whatever came of the test: a
    /// driver may take any state, and a reset may not bring its own back. The case resets the device.
    pub(crate) fn restoring(&mut self, test: impl FnOnce(&mut Bench, &Saved) -> Outcome) -> Outcome {
        self.leave_power_on_state()?;
        let saved = self.subject.save()?;
        let outcome = test(self, &saved);
        let restored = self.restore(&saved);
        outcome.and(restored)
    }

    fn restore(&mut self, saved: &Saved) -> Outcome {
        self.subject.must_reset()?;
        self.subject.is_in(State::Running)?;
        self.subject.load(saved)?;
        self.subject.go(State::Running)?;
        Ok(())
    }

    /// Fails the case unless two states are equal, byte for byte. To be called last, for it may reset the devices.
    ///
    /// The header does not say that a device saves the same state in the same bytes. So states that differ are a failure
    /// only if the devices do so otherwise: after a reset, two saves give the same bytes. Else the case has no verdict, and
    /// only a probe of the registers can tell.
    pub(crate) fn equal_states(&mut self, what: &str, expected: &Saved, found: &Saved) -> Outcome {
        let Err(different) = equal_bytes(what, expected, found) else { return Ok(()) };
        if self.saves_the_same_bytes()? {
            return Err(different);
        }
        inconclusive(format_args!(
            "{what}: the bytes differ, but the device does not save the same state in the same bytes"
        ))
    }

    /// Returns whether the devices save one state in the same bytes each time.
    fn saves_the_same_bytes(&mut self) -> Outcome<bool> {
        let may_reset = self.may_reset;
        let save = |subject: &mut Subject| {
            if may_reset {
                subject.must_reset()?;
            }
            subject.go(State::Stop)?;
            subject.save_stopped()
        };
        let saved = save(&mut self.subject)?;
        let second = self.second.as_mut().map(save).transpose()?;
        Ok(save(&mut self.subject)? == saved && second.is_none_or(|second| second == saved))
    }
}

/// The features that a device reports.
#[derive(Clone, Debug)]
pub(crate) struct Features {
    /// `None` for a device that cannot migrate.
    pub(crate) flags: Option<MigrationFlags>,
    pub(crate) can_reset: bool,
    /// `None` if it cannot be read.
    identity: Option<Identity>,
    /// The needs of cases that the device meets.
    has: Vec<Need>,
}

impl Features {
    /// Asks a device.
    pub(crate) fn of(device: &mut dyn Device) -> Result<Features, Error> {
        let flags = device.migration_flags()?;
        let can_reset = device.info()?.flags.contains(DeviceInfoFlags::RESET);
        let p2p = flags.is_some_and(|flags| flags.contains(MigrationFlags::P2P));
        let pre_copy = flags.is_some_and(|flags| flags.contains(MigrationFlags::PRE_COPY));
        let logs = device.probe_feature(Feature::DmaLoggingStart, FeatureFlags::SET)?;
        let is_region = device.region_version().is_some();
        let all = [
            (Need::P2p, p2p),
            (Need::NoP2p, !p2p),
            (Need::PreCopy, pre_copy),
            (Need::NoPreCopy, !pre_copy),
            (Need::DataSize, device.probe_feature(Feature::MigDataSize, FeatureFlags::GET)?),
            (Need::PrecopyInfoV2, device.probe_feature(Feature::MigPrecopyInfoV2, FeatureFlags::SET)?),
            (Need::DmaLogging, logs),
            (Need::NoDmaLogging, !logs),
            (Need::Raw, device.raw().is_some()),
            (Need::Memory, device.dma_map().is_some()),
            (Need::V2, !is_region),
            (Need::Region, is_region),
        ];
        let has = all.into_iter().filter(|(_, has)| *has).map(|(need, _)| need).collect();
        let identity = device.identity().ok();
        Ok(Features { flags, can_reset, identity, has })
    }

    /// Returns how a device differs from this one in what two of the same kind share, if it does.
    pub(crate) fn difference(&self, other: &Features) -> Option<String> {
        if self.names() != other.names() {
            let names = [self, other].map(|features| features.names().join(", "));
            return Some(format!("their features are {} and {}", names[0], names[1]));
        }
        let (own, other) = (self.identity.as_ref()?, other.identity.as_ref()?);
        let shape = |identity: &Identity| (identity.flags, identity.num_regions, identity.num_irqs);
        let differences = [
            (own.pci != other.pci, "their PCI identities differ"),
            (shape(own) != shape(other), "their flags, regions or interrupts differ"),
            (own.compatibility != other.compatibility, "their drivers describe their data differently"),
        ];
        differences.into_iter().find(|(differs, _)| *differs).map(|(_, what)| what.to_string())
    }

    /// Resets a device that can migrate and does not claim to support a reset: it may do so all the same, as the kernel's
    /// mtty does.
    pub(crate) fn try_reset(&mut self, device: &mut dyn Device) {
        self.can_reset = self.can_reset || (self.flags.is_some() && device.reset().is_ok());
    }

    /// Returns whether the device has what a case needs of it.
    pub(crate) fn has(&self, need: Need) -> bool {
        self.has.contains(&need)
    }

    /// Returns the names of the features that the device has.
    pub(crate) fn names(&self) -> Vec<&'static str> {
        let names = [
            (self.flags.is_some(), "STOP_COPY"),
            (self.has(Need::P2p), "P2P"),
            (self.has(Need::PreCopy), "PRE_COPY"),
            (self.has(Need::DataSize), "MIG_DATA_SIZE"),
            (self.has(Need::PrecopyInfoV2), "MIG_PRECOPY_INFOv2"),
            (self.has(Need::DmaLogging), "DMA_LOGGING"),
            (self.can_reset, "RESET"),
            (self.has(Need::Region), "migration region"),
        ];
        names.into_iter().filter(|(has, _)| *has).map(|(_, name)| name).collect()
    }
}
