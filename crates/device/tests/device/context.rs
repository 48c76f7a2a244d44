//! The context that each call of a driver comes with: bus, migration state, time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use whimbrel_device::wrap::migration_region::{Layout, Version};
use whimbrel_device::{
    ArcError, Bus, Context, DeviceFile, DeviceInfoFlags, Driver, Errno, Info, Migration, MigrationFlags,
    Next, Region, RegionInfoFlags, State, Worker,
};

use crate::migration_region::support::{Offered, offer};

/// Each call, with the state and the time that it came with.
type Calls = Arc<Mutex<Vec<(&'static str, State, Duration)>>>;

/// A driver that notes its calls, and fails on its way to one state.
#[derive(Default)]
struct Notes {
    calls: Calls,
    breaks_at: Option<State>,
}

impl Notes {
    fn note(&self, call: &'static str, context: &Context) {
        self.calls.lock().push((call, context.state(), context.now()));
    }
}

impl Driver for Notes {
    fn open_device(&mut self, context: &Context) {
        self.note("open", context);
    }

    fn close_device(&mut self, context: &Context) {
        self.note("close", context);
    }

    fn info(&self) -> Info {
        let flags = DeviceInfoFlags::PCI | DeviceInfoFlags::RESET;
        Info::new(flags).num_regions(1)
    }

    fn region(&self, _index: u32) -> Result<Region, Errno> {
        let flags = RegionInfoFlags::READ | RegionInfoFlags::WRITE;
        Ok(Region::new(flags, 8))
    }

    fn write_region(&mut self, context: &Context, _: u32, _: u64, data: &[u8]) -> Result<usize, Errno> {
        self.note("write_region", context);
        Ok(data.len())
    }

    fn reset(&mut self, context: &Context) -> Result<(), Errno> {
        self.note("reset", context);
        Ok(())
    }

    fn migration(&mut self) -> Option<&mut dyn Migration> {
        Some(self)
    }

    fn advance(&mut self, context: &Context) -> Next {
        self.note("advance", context);
        Next::Idle
    }
}

impl Migration for Notes {
    fn flags(&self) -> MigrationFlags {
        MigrationFlags::STOP_COPY
    }

    fn arc(&mut self, context: &Context, from: State, to: State) -> Result<(), ArcError> {
        assert_eq!(context.state(), from);
        self.note("arc", context);
        if self.breaks_at == Some(to) { Err(ArcError::Broken(Errno::EIO)) } else { Ok(()) }
    }

    fn data_size(&mut self, context: &Context) -> Result<u64, Errno> {
        self.note("data_size", context);
        Ok(0)
    }

    fn read(&mut self, context: &Context, _buffer: &mut [u8]) -> Result<usize, Errno> {
        self.note("read", context);
        Ok(0)
    }

    fn write(&mut self, context: &Context, data: &[u8]) -> Result<usize, Errno> {
        self.note("write", context);
        Ok(data.len())
    }
}

fn open(breaks_at: Option<State>) -> (DeviceFile, Calls) {
    let calls = Calls::default();
    (DeviceFile::new("notes", |_| Notes { calls: calls.clone(), breaks_at }), calls)
}

/// The calls since the last time, and their states.
fn states(calls: &Calls) -> Vec<(&'static str, State)> {
    calls.lock().drain(..).map(|(call, state, _)| (call, state)).collect()
}

#[test]
fn a_driver_is_told_the_state_that_its_device_is_in() {
    let (device, calls) = open(None);
    device.write_region(0, 0, &[0]).unwrap();
    assert_eq!(states(&calls), [("open", State::Running), ("write_region", State::Running)]);
    let data = device.set_mig_state(State::StopCopy).unwrap().unwrap();
    assert_eq!(states(&calls), [("arc", State::Running), ("arc", State::Stop)]);
    data.read(&mut [0]).unwrap();
    device.mig_data_size().unwrap();
    device.write_region(0, 0, &[0]).unwrap();
    let all = ["read", "data_size", "write_region"].map(|call| (call, State::StopCopy));
    assert_eq!(states(&calls), all);
    device.reset().unwrap();
    device.write_region(0, 0, &[0]).unwrap();
    assert_eq!(states(&calls), [("reset", State::StopCopy), ("write_region", State::Running)]);
}

#[test]
fn a_driver_is_told_that_its_device_is_broken() {
    let (device, calls) = open(Some(State::Stop));
    assert_eq!(device.set_mig_state(State::Stop).err(), Some(Errno::EIO));
    device.write_region(0, 0, &[0]).unwrap();
    assert_eq!(states(&calls)[2..], [("write_region", State::Error)]);
}

#[test]
fn a_driver_behind_a_migration_region_is_told_the_state_that_its_region_has_brought_it_to() {
    let layout = Layout::trapped(Version::V1, 64).unwrap();
    for offered in [Offered::ByItsDriver, Offered::ByAVendor] {
        let calls = Calls::default();
        let device = offer(|_| Notes { calls: calls.clone(), breaks_at: None }, &layout, offered);
        device.write_region(1, 0, &0u32.to_ne_bytes()).unwrap();
        device.write_region(0, 0, &[0]).unwrap();
        let called = states(&calls);
        assert_eq!(called[1..], [("arc", State::Running), ("write_region", State::Stop)], "{offered:?}");
        assert_eq!(device.advance(Duration::ZERO), Next::Idle);
        assert_eq!(states(&calls), [], "{offered:?}: it is stopped");
        device.reset().unwrap();
        device.write_region(0, 0, &[0]).unwrap();
        let after = [("reset", State::Stop), ("write_region", State::Running)];
        assert_eq!(states(&calls), after, "{offered:?}");
    }
}

#[test]
fn the_time_is_the_one_given_by_hand_until_another_is_given() {
    let (device, calls) = open(None);
    for seconds in [7, 9] {
        let now = Duration::from_secs(seconds);
        device.advance(now);
        device.write_region(0, 0, &[0]).unwrap();
        let times: Vec<Duration> = calls.lock().drain(..).map(|(_, _, time)| time).collect();
        assert!(times.iter().rev().take(2).all(|time| *time == now), "{times:?}");
    }
}

#[test]
fn the_time_of_a_device_that_nobody_advances_by_hand_goes_on() {
    let (device, calls) = open(None);
    (0..100).for_each(|_| assert_eq!(device.write_region(0, 0, &[0]), Ok(1)));
    let pause = Duration::from_millis(2);
    std::thread::sleep(pause);
    device.write_region(0, 0, &[0]).unwrap();
    let times: Vec<Duration> = calls.lock().iter().map(|(_, _, time)| *time).collect();
    assert!(times.is_sorted() && times[101] >= times[100] + pause, "{times:?}");
}

#[test]
fn a_workers_clock_runs_on_from_the_time_given_by_hand() {
    let (device, calls) = open(None);
    let given = Duration::from_secs(1000);
    device.advance(given);
    calls.lock().clear();
    let _worker = Worker::start(device.clone()).unwrap();
    let deadline = Instant::now() + Duration::from_mins(1);
    while calls.lock().iter().filter(|(_, _, time)| *time > given).count() < 2 {
        assert!(Instant::now() < deadline, "the clock stands still");
        // Each request gives the worker a reason to look.
        device.write_region(0, 0, &[0]).unwrap();
    }
    assert!(calls.lock().is_sorted_by_key(|(_, _, time)| *time));
}

/// A driver with work after a write of anything but 0.
struct Sparing(Calls, bool);

impl Driver for Sparing {
    fn info(&self) -> Info {
        Info::new(DeviceInfoFlags::RESET).num_regions(1)
    }

    fn region(&self, _index: u32) -> Result<Region, Errno> {
        Ok(Region::new(RegionInfoFlags::WRITE, 8))
    }

    fn write_region(&mut self, context: &Context, _: u32, _: u64, data: &[u8]) -> Result<usize, Errno> {
        self.0.lock().push(("write_region", context.state(), context.now()));
        self.1 = data != [0];
        Ok(data.len())
    }

    fn reset(&mut self, _: &Context) -> Result<(), Errno> {
        Ok(())
    }

    fn advance(&mut self, context: &Context) -> Next {
        self.0.lock().push(("advance", context.state(), context.now()));
        self.1 = false;
        Next::Idle
    }

    fn has_work(&self) -> bool {
        self.1
    }
}

#[test]
fn a_worker_is_woken_by_writes_that_give_the_device_work_and_by_a_reset() {
    let calls = Calls::default();
    let device = DeviceFile::new("sparing", |_| Sparing(calls.clone(), false));
    let _worker = Worker::start(device.clone()).unwrap();
    let deadline = Instant::now() + Duration::from_mins(1);
    let advances = || calls.lock().iter().filter(|(call, ..)| *call == "advance").count();
    let wait_for = |count| {
        while advances() < count {
            assert!(Instant::now() < deadline, "the worker sleeps");
            std::thread::yield_now();
        }
    };
    wait_for(1);
    for round in 0..100 {
        // A worker that this one wakes advances the device once more.
        device.write_region(0, 0, &[0]).unwrap();
        std::thread::yield_now();
        device.write_region(0, 0, &[1]).unwrap();
        wait_for(round + 2);
    }
    assert_eq!(advances(), 101);
    device.reset().unwrap();
    wait_for(102);
}

#[test]
fn a_device_that_is_dropped_is_closed_if_it_was_open() {
    let (device, calls) = open(None);
    drop(device);
    assert_eq!(states(&calls), []);
    let (device, calls) = open(None);
    device.mig_data_size().unwrap();
    drop(device);
    assert_eq!(states(&calls).last(), Some(&("close", State::Running)));
}

#[test]
fn a_bus_that_the_driver_was_made_for_is_the_one_its_calls_come_with() {
    struct OnBus(Bus);
    impl Driver for OnBus {
        fn open_device(&mut self, context: &Context) {
            assert!(std::ptr::eq(context.bus().dma(), self.0.dma()));
        }
        fn info(&self) -> Info {
            Info::new(DeviceInfoFlags::PCI)
        }
    }
    let mut given = None;
    let device = DeviceFile::new("on a bus", |bus| OnBus(given.insert(bus).clone()));
    device.info();
    assert!(std::ptr::eq(device.bus().dma(), given.unwrap().dma()));
}

#[test]
fn a_driver_that_cannot_be_made_gives_no_device() {
    let refused = DeviceFile::try_new("none", |_| Err::<Notes, _>(Errno::ENOMEM));
    assert_eq!(refused.err(), Some(Errno::ENOMEM));
}
