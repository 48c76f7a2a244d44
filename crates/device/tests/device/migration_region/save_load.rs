//! A state that is saved through one region is loaded through another.

use std::time::Duration;

use whimbrel_device::DeviceFile;
use whimbrel_device::wrap::migration_region::Layout;

use super::support::{Offered, RESUMING, RUNNING, SAVING, User, accel, layouts, serial};

fn bytes(transactions: &[Vec<u8>]) -> Vec<u8> {
    transactions.concat()
}

/// The whole state of a device, which then runs again.
fn state(device: &DeviceFile) -> Vec<u8> {
    let user = User::new(device);
    user.set_state(SAVING).unwrap();
    let transactions = user.transactions().unwrap();
    user.set_state(RUNNING).unwrap();
    bytes(&transactions)
}

/// Saves one device and loads the other. Both have the same capacity.
fn migrate(source: &DeviceFile, destination: &DeviceFile, layout: &Layout) {
    let (from, to) = (User::new(source), User::new(destination));
    from.set_state(SAVING).unwrap();
    let transactions = from.transactions().unwrap();
    assert!(transactions.iter().all(|data| !data.is_empty() && data.len() <= layout.capacity()));
    from.set_state(0).unwrap();
    to.set_state(RESUMING).unwrap();
    to.resume(&transactions).unwrap();
    to.set_state(RUNNING).unwrap();
    assert_eq!(to.state(), Ok(RUNNING));
}

#[test]
fn a_serial_card_moves_through_every_shape_of_region() {
    for layout in layouts() {
        for offered in [Offered::ByItsDriver, Offered::ByAVendor] {
            let (source, destination) = (serial(&layout, offered), serial(&layout, offered));
            source.write_region(1, 0, b"!").unwrap();
            migrate(&source, &destination, &layout);
            let mut received = [0];
            destination.read_region(1, 0, &mut received).unwrap();
            assert_eq!(received, *b"!", "{layout:?} {offered:?}");
        }
    }
}

#[test]
fn an_accelerator_moves_through_every_shape_of_region() {
    for layout in layouts() {
        for offered in [Offered::ByItsDriver, Offered::ByAVendor] {
            let (source, destination) = (accel(&layout, offered), accel(&layout, offered));
            source.advance(Duration::ZERO);
            source.advance(Duration::from_secs(1));
            assert!(state(&source) != state(&destination), "{layout:?} {offered:?}");
            migrate(&source, &destination, &layout);
            User::new(&source).set_state(RUNNING).unwrap();
            assert!(state(&source) == state(&destination), "{layout:?} {offered:?}");
        }
    }
}

#[test]
fn what_changes_in_pre_copy_is_saved_again() {
    for layout in layouts() {
        let device = accel(&layout, Offered::ByItsDriver);
        let user = User::new(&device);
        device.advance(Duration::ZERO);
        user.set_state(RUNNING | SAVING).unwrap();
        let mut transactions = user.transactions().unwrap();
        assert!(!transactions.is_empty());
        device.advance(Duration::from_millis(10));
        let changed = user.transactions().unwrap();
        assert!(!changed.is_empty(), "{layout:?}");
        transactions.extend(changed);
        device.advance(Duration::from_millis(20));
        user.set_state(SAVING).unwrap();
        transactions.extend(user.transactions().unwrap());
        user.set_state(0).unwrap();

        let loaded = accel(&layout, Offered::ByItsDriver);
        let other = User::new(&loaded);
        other.set_state(RESUMING).unwrap();
        other.resume(&transactions).unwrap();
        other.set_state(RUNNING).unwrap();
        user.set_state(RUNNING).unwrap();
        assert!(state(&device) == state(&loaded), "{layout:?}");
    }
}

#[test]
fn transactions_are_as_long_as_the_region_or_as_there_is_state() {
    for layout in layouts() {
        let device = accel(&layout, Offered::ByItsDriver);
        let user = User::new(&device);
        user.set_state(SAVING).unwrap();
        let transactions = user.transactions().unwrap();
        let (last, whole) = transactions.split_last().unwrap();
        assert!(whole.iter().all(|data| data.len() == layout.capacity()), "{layout:?}");
        assert!(last.len() <= layout.capacity());
    }
}

#[test]
fn the_bytes_are_those_of_the_driver_whatever_the_region() {
    let states: Vec<Vec<u8>> = layouts()
        .iter()
        .flat_map(|layout| {
            [Offered::ByItsDriver, Offered::ByAVendor].map(|offered| state(&serial(layout, offered)))
        })
        .collect();
    assert!(states.windows(2).all(|pair| pair[0] == pair[1]));
    assert_eq!(states[0].len(), 96, "as mtty's for two ports");
}

#[test]
fn a_device_that_is_not_running_does_no_work_of_its_own() {
    for offered in [Offered::ByItsDriver, Offered::ByAVendor] {
        let layout = &layouts()[0];
        let device = accel(layout, offered);
        let user = User::new(&device);
        let content = || {
            let mut state = vec![0; 256 << 10];
            device.read_region(2, 0, &mut state).unwrap();
            state
        };
        device.advance(Duration::ZERO);
        user.set_state(0).unwrap();
        let before = content();
        device.advance(Duration::from_secs(1));
        assert!(content() == before, "{offered:?}");
        user.set_state(RUNNING).unwrap();
        device.advance(Duration::from_secs(2));
        device.advance(Duration::from_secs(3));
        assert!(content() != before, "{offered:?}");
    }
}
