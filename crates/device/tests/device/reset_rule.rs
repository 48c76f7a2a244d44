//! What a reset does to a migration, by both rules and from every state.

use std::sync::{Arc, Mutex};

use whimbrel_device::wrap::fault::{Faults, Faulty};
use whimbrel_device::wrap::mediate::{
    MediateCapabilities, MediateOps, Mediated, Mediation, Mediators, Opened, PlainDevice,
};
use whimbrel_device::wrap::migration_region::{Layout, MigrationRegion, Version};
use whimbrel_device::{
    ArcError, Container, Context, DeviceFile, DeviceInfoFlags, Driver, Errno, Group, Info, Migration,
    MigrationFlags, Observed, ResetRule, State, Translation,
};
use whimbrel_uapi::group::VFIO_TYPE1V2_IOMMU;

/// The resets that a driver was asked for, each with the state of its device.
type Resets = Arc<Mutex<Vec<(&'static str, State)>>>;

struct Card {
    can_keep: bool,
    /// Stopping it leads to ERROR.
    breaks: bool,
    resets: Resets,
}

impl Driver for Card {
    fn info(&self) -> Info {
        Info::new(DeviceInfoFlags::PCI | DeviceInfoFlags::RESET).num_regions(9)
    }

    fn reset(&mut self, context: &Context) -> Result<(), Errno> {
        self.resets.lock().unwrap().push(("reset", context.state()));
        Ok(())
    }

    fn can_reset_in_precopy(&self) -> bool {
        self.can_keep
    }

    fn reset_in_precopy(&mut self, context: &Context) -> Result<(), Errno> {
        self.resets.lock().unwrap().push(("reset_in_precopy", context.state()));
        Ok(())
    }

    fn migration(&mut self) -> Option<&mut dyn Migration> {
        Some(self)
    }
}

impl Migration for Card {
    fn flags(&self) -> MigrationFlags {
        MigrationFlags::all()
    }

    fn arc(&mut self, _: &Context, _from: State, to: State) -> Result<(), ArcError> {
        if self.breaks && to == State::Stop { Err(ArcError::Broken(Errno::EIO)) } else { Ok(()) }
    }

    fn data_size(&mut self, _: &Context) -> Result<u64, Errno> {
        Ok(1)
    }

    fn read(&mut self, _: &Context, buffer: &mut [u8]) -> Result<usize, Errno> {
        buffer[0] = 7;
        Ok(1)
    }

    fn write(&mut self, _: &Context, data: &[u8]) -> Result<usize, Errno> {
        Ok(data.len())
    }
}

fn card(can_keep: bool, breaks: bool) -> (Card, Resets) {
    let resets = Resets::default();
    (Card { can_keep, breaks, resets: resets.clone() }, resets)
}

fn taken(resets: &Resets) -> Vec<(&'static str, State)> {
    std::mem::take(&mut resets.lock().unwrap())
}

#[test]
fn a_reset_from_every_state_by_both_rules() {
    for rule in ResetRule::ALL {
        for from in State::ALL {
            let what = format!("{rule:?} from {from}");
            let (card, resets) = card(true, from == State::Error);
            let device = DeviceFile::new("card", |_| card);
            let observed = Arc::new(Mutex::new(Vec::new()));
            let seen = observed.clone();
            device.observe(move |request| {
                if let Observed::Reset { from, result, now } = request {
                    seen.lock().unwrap().push((*from, *result, *now));
                }
            });
            assert_eq!(device.reset_rule(), ResetRule::EndsMigration);
            device.set_reset_rule(rule).unwrap();
            assert_eq!(device.reset_rule(), rule);
            let data = match from {
                State::Error => {
                    assert_eq!(device.set_mig_state(State::Stop).err(), Some(Errno::EIO));
                    None
                }
                _ => device.set_mig_state(from).unwrap(),
            };
            assert_eq!(device.mig_state(), Ok(from), "{what}");
            device.reset().unwrap();

            let keeps = rule == ResetRule::KeepsPrecopy && from.is_precopy();
            let now = if keeps { from } else { State::Running };
            assert_eq!(device.mig_state(), Ok(now), "{what}");
            let asked = if keeps { "reset_in_precopy" } else { "reset" };
            assert_eq!(taken(&resets), [(asked, from)], "{what}");
            assert_eq!(*observed.lock().unwrap(), [(from, Ok(()), now)], "{what}");
            if let Some(data) = data {
                assert_eq!(data.is_over(), !keeps, "{what}");
                let expected = if keeps { Ok(1) } else { Err(Errno::ENODEV) };
                let result = if from == State::Resuming { data.write(&[0]) } else { data.read(&mut [0]) };
                assert_eq!(result, expected, "{what}");
                if keeps {
                    assert!(device.set_mig_state(State::StopCopy).unwrap().is_none(), "{what}: its session");
                    assert_eq!(data.read(&mut [0]), Ok(1), "{what}");
                }
            }
        }
    }
}

#[test]
fn a_driver_that_cannot_keep_a_session_has_the_kernels_rule() {
    let (card, resets) = card(false, false);
    let device = DeviceFile::new("card", |_| card);
    assert_eq!(device.set_reset_rule(ResetRule::KeepsPrecopy), Err(Errno::ENOTTY));
    assert_eq!(device.set_reset_rule(ResetRule::EndsMigration), Ok(()));
    let data = device.set_mig_state(State::PreCopy).unwrap().unwrap();
    device.reset().unwrap();
    assert!(data.is_over());
    assert_eq!(taken(&resets), [("reset", State::PreCopy)]);
}

#[test]
fn a_reset_that_fails_changes_nothing() {
    for rule in ResetRule::ALL {
        let (card, resets) = card(true, false);
        let faults: Faults = "reset: EIO once".parse().unwrap();
        let device = DeviceFile::new("card", |_| Faulty::new(card, faults));
        device.set_reset_rule(rule).unwrap();
        let data = device.set_mig_state(State::PreCopy).unwrap().unwrap();
        assert_eq!(device.reset(), Err(Errno::EIO), "{rule:?}");
        assert_eq!(device.mig_state(), Ok(State::PreCopy), "{rule:?}");
        assert_eq!(data.read(&mut [0]), Ok(1), "{rule:?}");
        assert_eq!(taken(&resets), [], "{rule:?}");
        device.reset().unwrap();
        assert_eq!(data.is_over(), rule == ResetRule::EndsMigration);
        assert_eq!(taken(&resets).len(), 1, "{rule:?}");
    }
}

#[test]
fn the_last_close_ends_a_session_by_both_rules() {
    for rule in ResetRule::ALL {
        let (card, resets) = card(true, false);
        let device = DeviceFile::new("card", |_| card);
        device.set_reset_rule(rule).unwrap();
        let group = Group::new(Translation::Emulated, vec![device.clone()]).unwrap();
        let (file, container) = (group.open().unwrap(), Container::default());
        file.set_container(&container).unwrap();
        container.set_iommu(VFIO_TYPE1V2_IOMMU.into()).unwrap();
        let open = file.device("card").unwrap();
        let data = device.set_mig_state(State::PreCopy).unwrap().unwrap();
        drop((open, file));
        assert!(data.is_over(), "{rule:?}");
        assert_eq!(taken(&resets), [("reset", State::PreCopy)], "{rule:?}");
        assert_eq!(device.reset_rule(), rule, "it is the owner's setting, not the user's");
    }
}

/// A vendor that only looks on, and counts the resets.
struct Looker(Arc<Mutex<u32>>, MediateCapabilities);

impl MediateOps for Looker {
    fn name(&self) -> &'static str {
        "looker"
    }

    fn open(&self, _: PlainDevice<'_>) -> Result<Opened, Errno> {
        Ok(Opened::new(self.1, Looking(self.0.clone())))
    }
}

struct Looking(Arc<Mutex<u32>>);

impl Mediation for Looking {
    fn reset(&mut self, _: PlainDevice<'_>) {
        *self.0.lock().unwrap() += 1;
    }
}

#[test]
fn a_vendor_hears_of_a_reset_that_keeps_precopy() {
    let (card, resets) = card(true, false);
    let (heard, vendors) = (Arc::default(), Mediators::new());
    vendors.register(Arc::new(Looker(Arc::clone(&heard), MediateCapabilities::empty()))).unwrap();
    let device = DeviceFile::new("card", |_| Mediated::new(card, vendors));
    device.set_reset_rule(ResetRule::KeepsPrecopy).unwrap();
    let data = device.set_mig_state(State::PreCopy).unwrap().unwrap();
    device.reset().unwrap();
    assert!(!data.is_over());
    assert_eq!(taken(&resets), [("reset_in_precopy", State::PreCopy)]);
    assert_eq!(*heard.lock().unwrap(), 1);
}

#[test]
fn a_migration_region_has_the_kernels_rule_alone() {
    let layout = Layout::trapped(Version::V1, 0x1000).unwrap();
    let region = MigrationRegion::new(card(true, false).0, layout).unwrap();
    let device = DeviceFile::new("card", |_| region);
    assert_eq!(device.set_reset_rule(ResetRule::KeepsPrecopy), Err(Errno::ENOTTY));

    let vendors = Mediators::new();
    let heard = Arc::default();
    vendors.register(Arc::new(Looker(heard, MediateCapabilities::MIGRATION))).unwrap();
    let mediated = DeviceFile::new("card", |_| Mediated::new(card(true, false).0, vendors));
    assert_eq!(mediated.info().num_regions, 10, "it is open, and a vendor mediates it");
    assert_eq!(mediated.set_reset_rule(ResetRule::KeepsPrecopy), Err(Errno::ENOTTY));
}
