//! A device that fails behind a region, and what leads out.

use std::sync::Arc;

use parking_lot::Mutex;
use whimbrel_device::wrap::mediate::{MediateOps, PlainDevice};
use whimbrel_device::wrap::migration_region::{Layout, MigrationRegion, RegionVendor, Version};
use whimbrel_device::{
    ArcError, Bus, Context, DeviceFile, DeviceInfoFlags, Driver, Errno, Info, Migration, MigrationFlags,
    State,
};

use super::support::{
    DATA_OFFSET, DATA_SIZE, ERROR, Offered, PENDING_BYTES, RESUMING, RUNNING, SAVING, User, offer,
};

const BOTH: [Offered; 2] = [Offered::ByItsDriver, Offered::ByAVendor];

/// A device that fails as it is told.
#[derive(Clone, Default)]
struct Faults(Arc<Mutex<Wanted>>);

#[derive(Default)]
struct Wanted {
    arc: Option<(State, ArcError)>,
    read: Option<Errno>,
    write: Option<Errno>,
    /// Bytes that it takes at a time, if not all.
    takes: Option<usize>,
    state: Vec<u8>,
    given: usize,
    no_reset: bool,
}

impl Driver for Faults {
    fn info(&self) -> Info {
        let flags = DeviceInfoFlags::PCI | DeviceInfoFlags::RESET;
        Info::new(flags)
    }

    fn reset(&mut self, _: &Context) -> Result<(), Errno> {
        if self.0.lock().no_reset { Err(Errno::EIO) } else { Ok(()) }
    }

    fn migration(&mut self) -> Option<&mut dyn Migration> {
        Some(self)
    }
}

impl Migration for Faults {
    fn flags(&self) -> MigrationFlags {
        MigrationFlags::STOP_COPY
    }

    fn arc(&mut self, _: &Context, _from: State, to: State) -> Result<(), ArcError> {
        let mut wanted = self.0.lock();
        if let Some((state, error)) = wanted.arc
            && state == to
        {
            return Err(error);
        }
        match to {
            State::StopCopy => wanted.given = 0,
            State::Resuming => wanted.state.clear(),
            _ => {}
        }
        Ok(())
    }

    fn data_size(&mut self, _: &Context) -> Result<u64, Errno> {
        let wanted = self.0.lock();
        Ok((wanted.state.len() - wanted.given) as u64)
    }

    fn read(&mut self, _: &Context, buffer: &mut [u8]) -> Result<usize, Errno> {
        let mut wanted = self.0.lock();
        wanted.read.map_or(Ok(()), Err)?;
        let given = wanted.given;
        // In small pieces, as a driver may.
        let count = buffer.len().min(wanted.state.len() - given).min(3);
        buffer[..count].copy_from_slice(&wanted.state[given..][..count]);
        wanted.given += count;
        Ok(count)
    }

    fn write(&mut self, _: &Context, data: &[u8]) -> Result<usize, Errno> {
        let mut wanted = self.0.lock();
        wanted.write.map_or(Ok(()), Err)?;
        let count = wanted.takes.unwrap_or(data.len()).min(data.len());
        wanted.state.extend_from_slice(&data[..count]);
        Ok(count)
    }
}

fn device(version: Version, offered: Offered) -> (DeviceFile, Faults) {
    let faults = Faults::default();
    faults.0.lock().state = (0..100).collect();
    let layout = Layout::trapped(version, 64).unwrap();
    (offer(|_| faults.clone(), &layout, offered), faults)
}

#[test]
fn a_failed_change_leaves_the_state_it_was_in() {
    for version in [Version::V1, Version::Draft] {
        for offered in BOTH {
            let (device, faults) = device(version, offered);
            let user = User::new(&device);
            faults.0.lock().arc = Some((State::StopCopy, ArcError::Stays(Errno::EBUSY)));
            assert_eq!(user.set_state(SAVING), Err(Errno::EBUSY));
            assert_eq!(user.state(), Ok(RUNNING));
            faults.0.lock().arc = None;
            user.set_state(SAVING).unwrap();
            assert_eq!(user.transactions().unwrap().concat(), (0..100).collect::<Vec<u8>>());
        }
    }
}

#[test]
fn a_reset_leads_out_of_error() {
    for offered in BOTH {
        let (device, faults) = device(Version::V1, offered);
        let user = User::new(&device);
        faults.0.lock().arc = Some((State::Resuming, ArcError::Broken(Errno::EIO)));
        assert_eq!(user.set_state(RESUMING), Err(Errno::EIO));
        assert_eq!(user.state(), Ok(ERROR));
        for state in [0, RUNNING, SAVING, RUNNING | SAVING, RESUMING] {
            assert!(user.set_state(state).is_err(), "{state}");
            assert_eq!(user.state(), Ok(ERROR));
        }
        for field in [PENDING_BYTES, DATA_OFFSET, DATA_SIZE] {
            assert_eq!(user.get(field), Err(Errno::EIO));
        }
        faults.0.lock().arc = None;
        device.reset().unwrap();
        assert_eq!(user.state(), Ok(RUNNING));
        user.set_state(SAVING).unwrap();
        assert_eq!(user.transactions().unwrap().concat().len(), 100);
    }
}

#[test]
fn a_reset_that_fails_leads_nowhere() {
    for offered in BOTH {
        let (device, faults) = device(Version::V1, offered);
        let user = User::new(&device);
        faults.0.lock().arc = Some((State::Resuming, ArcError::Broken(Errno::EIO)));
        user.set_state(RESUMING).unwrap_err();
        faults.0.lock().no_reset = true;
        assert_eq!(device.reset(), Err(Errno::EIO));
        assert_eq!(user.state(), Ok(ERROR));
    }
}

#[test]
fn the_drafts_region_has_no_error_state_and_a_reset_leads_out_all_the_same() {
    let (device, faults) = device(Version::Draft, Offered::ByItsDriver);
    let user = User::new(&device);
    faults.0.lock().arc = Some((State::Resuming, ArcError::Broken(Errno::EIO)));
    assert_eq!(user.set_state(RESUMING), Err(Errno::EIO));
    assert_eq!(user.state(), Err(Errno::EIO));
    device.reset().unwrap();
    assert_eq!(user.state(), Ok(RUNNING));
}

#[test]
fn a_read_that_fails_ends_the_loop_and_takes_nothing() {
    for offered in BOTH {
        let (device, faults) = device(Version::V1, offered);
        let user = User::new(&device);
        user.set_state(SAVING).unwrap();
        let first = user.transaction().unwrap().unwrap();
        faults.0.lock().read = Some(Errno::EIO);
        assert_eq!(user.get(PENDING_BYTES), Err(Errno::EIO));
        assert_eq!(user.state(), Ok(SAVING));
        faults.0.lock().read = None;
        let rest = user.transactions().unwrap().concat();
        assert_eq!([first, rest].concat(), (0..100).collect::<Vec<u8>>());
    }
}

#[test]
fn data_that_the_device_refuses_is_an_error_of_the_write_of_data_size() {
    for offered in BOTH {
        let (device, faults) = device(Version::V1, offered);
        let user = User::new(&device);
        user.set_state(RESUMING).unwrap();
        faults.0.lock().write = Some(Errno::ENOMEM);
        assert_eq!(user.resume(&[vec![1; 8]]), Err(Errno::ENOMEM));
        assert_eq!(user.state(), Ok(RESUMING));
        device.reset().unwrap();
        faults.0.lock().write = None;
        user.set_state(RESUMING).unwrap();
        assert_eq!(user.resume(&[vec![1; 8]]), Ok(()));
    }
}

#[test]
fn a_device_that_takes_data_in_pieces_gets_all_of_a_transaction() {
    let (device, faults) = device(Version::V1, Offered::ByItsDriver);
    let user = User::new(&device);
    user.set_state(RESUMING).unwrap();
    faults.0.lock().takes = Some(5);
    user.resume(&[(0..64).collect(), (64..77).collect()]).unwrap();
    assert_eq!(faults.0.lock().state, (0..77).collect::<Vec<u8>>());
}

#[test]
fn a_device_that_takes_nothing_is_an_error_and_no_endless_loop() {
    let (device, faults) = device(Version::V1, Offered::ByItsDriver);
    let user = User::new(&device);
    user.set_state(RESUMING).unwrap();
    faults.0.lock().takes = Some(0);
    assert_eq!(user.resume(&[vec![1; 8]]), Err(Errno::EIO));
}

#[test]
fn a_device_without_migration_has_no_region() {
    struct Plain;
    impl Driver for Plain {
        fn info(&self) -> Info {
            Info::new(DeviceInfoFlags::PCI).num_regions(1)
        }
    }
    let layout = Layout::trapped(Version::V1, 64).unwrap();
    let refused = MigrationRegion::new(Plain, layout.clone());
    assert_eq!(refused.err(), Some(Errno::ENODEV));
    let vendor = RegionVendor::new("vendor", layout.clone());
    let refused = vendor.open(PlainDevice::new(&mut Plain, &Context::new(Bus::new())));
    assert_eq!(refused.err(), Some(Errno::ENODEV));
    assert_eq!(offer(|_| Plain, &layout, Offered::ByAVendor).info().num_regions, 1);
}
