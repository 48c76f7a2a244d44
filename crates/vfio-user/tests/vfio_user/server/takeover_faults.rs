//! Devices that fail while they are taken over: one never runs behind both servers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use whimbrel_device::{
    ArcError, Context, DeviceFile, DeviceInfoFlags, Driver, Errno, Info, Irq, IrqInfoFlags, Migration,
    MigrationFlags, Region, RegionInfoFlags, State,
};
use whimbrel_vfio_user::{Backend, BackendOptions, ServeError, TakeoverError};

use super::hand::*;
use super::support::*;
use super::takeover::Line;
use super::takeover_precopy::comes_to;
use super::takeover_races::left;

/// A device of eight bytes whose start may fail after it has begun to run.
#[derive(Default)]
struct Card {
    bytes: [u8; 8],
    at: usize,
    /// It runs, whatever is said of it.
    runs: bool,
    start_fails: bool,
    reset_is_refused: bool,
    /// The device whose place it is to take.
    other: Option<DeviceFile>,
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen {
    both_ran: AtomicBool,
    was_started: AtomicBool,
    /// Its reset has begun, and waits for the gate.
    is_reset: AtomicBool,
    gate: Mutex<()>,
    /// The threads that have read a register.
    threads: Mutex<Vec<ThreadId>>,
}

impl Card {
    fn open(self) -> Backend {
        Backend::new(DeviceFile::new("card", |_| self))
    }

    fn look_at_the_other(&self) {
        let other_runs = self.other.as_ref().is_some_and(|other| other.mig_state() == Ok(State::Running));
        self.seen.both_ran.fetch_or(self.runs && other_runs, Ordering::Relaxed);
    }
}

impl Driver for Card {
    fn info(&self) -> Info {
        let flags = DeviceInfoFlags::PCI | DeviceInfoFlags::RESET;
        Info::new(flags).num_regions(9)
    }

    fn region(&self, index: u32) -> Result<Region, Errno> {
        let flags = RegionInfoFlags::READ | RegionInfoFlags::WRITE;
        Ok(match index {
            BAR => Region::new(flags, 8),
            _ => Region::absent(0),
        })
    }

    fn irq(&self, _index: u32) -> Result<Irq, Errno> {
        Ok(Irq::new(IrqInfoFlags::empty(), 0))
    }

    fn read_region(
        &mut self,
        _: &Context,
        _index: u32,
        offset: u64,
        data: &mut [u8],
    ) -> Result<usize, Errno> {
        self.seen.threads.lock().push(std::thread::current().id());
        data.copy_from_slice(&self.bytes[offset as usize..][..data.len()]);
        Ok(data.len())
    }

    fn write_region(&mut self, _: &Context, _index: u32, offset: u64, data: &[u8]) -> Result<usize, Errno> {
        self.bytes[offset as usize..][..data.len()].copy_from_slice(data);
        Ok(data.len())
    }

    fn reset(&mut self, _: &Context) -> Result<(), Errno> {
        if self.reset_is_refused {
            return Err(Errno::EIO);
        }
        self.seen.is_reset.store(true, Ordering::Relaxed);
        drop(self.seen.gate.lock());
        // A reset takes time, in which the device runs on.
        let end = Instant::now() + Duration::from_millis(300);
        while Instant::now() < end {
            self.look_at_the_other();
            std::thread::sleep(Duration::from_millis(1));
        }
        (self.bytes, self.runs) = ([0; 8], false);
        Ok(())
    }

    fn migration(&mut self) -> Option<&mut dyn Migration> {
        Some(self)
    }
}

impl Migration for Card {
    fn flags(&self) -> MigrationFlags {
        MigrationFlags::STOP_COPY | MigrationFlags::P2P
    }

    fn arc(&mut self, _: &Context, from: State, to: State) -> Result<(), ArcError> {
        self.at = 0;
        if (from, to) == (State::RunningP2p, State::Running) {
            self.runs = true;
            self.seen.was_started.store(true, Ordering::Relaxed);
            if self.start_fails {
                return Err(Errno::EIO.into());
            }
        }
        Ok(())
    }

    fn data_size(&mut self, _: &Context) -> Result<u64, Errno> {
        Ok(self.bytes.len() as u64)
    }

    fn read(&mut self, _: &Context, buffer: &mut [u8]) -> Result<usize, Errno> {
        let count = buffer.len().min(self.bytes.len() - self.at);
        buffer[..count].copy_from_slice(&self.bytes[self.at..][..count]);
        self.at += count;
        Ok(count)
    }

    fn write(&mut self, _: &Context, data: &[u8]) -> Result<usize, Errno> {
        let count = data.len().min(self.bytes.len() - self.at);
        self.bytes[self.at..][..count].copy_from_slice(&data[..count]);
        self.at += count;
        Ok(count)
    }
}

#[test]
fn a_device_whose_start_fails_is_reset_before_the_old_one_goes_on() {
    let mut line = Line::with(Card::default().open());
    let mut peer = line.client();
    peer.write(BAR, 0, b"old").unwrap();
    let seen = Arc::new(Seen::default());
    let other = Some(line.device().clone());
    let card = Card { start_fails: true, other, seen: seen.clone(), ..Card::default() };
    let error = line.take_over_with(card.open()).unwrap_err();
    assert!(matches!(error, TakeoverError::Device(_)), "{error}");
    assert!(seen.was_started.load(Ordering::Relaxed));
    assert_eq!(peer.read(BAR, 0, 3).unwrap(), b"old");
    assert_eq!(line.device().mig_state(), Ok(State::Running));
    assert!(!seen.both_ran.load(Ordering::Relaxed), "both ran");
}

#[test]
fn the_old_device_stands_while_the_new_one_may_run_because_its_reset_is_refused() {
    let mut line = Line::with(Card::default().open());
    let _peer = line.client();
    let device = line.device().clone();
    let card = Card { start_fails: true, reset_is_refused: true, ..Card::default() };
    let error = line.take_over_with(card.open()).unwrap_err();
    assert!(matches!(error, TakeoverError::Unsettled { .. }), "{error}");
    assert!(error.advice().is_some_and(|advice| advice.contains("end this process")));
    let end = Instant::now() + Duration::from_millis(400);
    while Instant::now() < end {
        assert!(device.mig_state().is_ok_and(|state| !state.is_running()), "both may run");
        std::thread::sleep(Duration::from_millis(5));
    }
    // Both servers are in this process, which does not die: only a stop ends this.
    line.stopped().unwrap_err();
    assert_eq!(device.mig_state(), Ok(State::Stop));
}

#[test]
fn a_device_that_was_never_started_and_cannot_be_reset_keeps_nobody_waiting() {
    let mut line = Line::with(Card::default().open());
    let mut peer = line.client();
    peer.write(BAR, 0, b"old").unwrap();
    let card = Card { reset_is_refused: true, ..Card::default() }.open();
    // It takes all, and then cannot go on with what the client has agreed on.
    let capabilities = Backend::capabilities().write_multiple(false);
    let less = Backend::with(card.device().clone(), BackendOptions::default().capabilities(capabilities));
    let error = line.take_over_with(less).unwrap_err();
    assert!(matches!(error, TakeoverError::Unsettled { .. }), "{error}");
    assert_eq!(peer.read(BAR, 0, 3).unwrap(), b"old");
}

#[test]
fn a_new_server_whose_takeover_failed_serves_no_client_before_the_device_is_reset() {
    let mut line = Line::with(Card::default().open());
    let _peer = line.client();
    let seen = Arc::new(Seen::default());
    let new = Card { start_fails: true, seen: seen.clone(), ..Card::default() }.open();
    std::thread::scope(|scope| {
        let held = seen.gate.lock();
        let taking = scope.spawn(|| line.take_over_with(new.clone()));
        comes_to("it is reset", || seen.is_reset.load(Ordering::Relaxed));
        // One that were served would wait for the device, which is under reset.
        let refused = scope.spawn(|| new.serve(left()));
        comes_to("it is refused", || refused.is_finished());
        assert!(matches!(refused.join().unwrap(), Err(ServeError::Busy)));
        drop(held);
        assert!(taking.join().unwrap().is_err());
    });
}

#[test]
fn a_client_is_served_on_by_its_own_thread_after_a_takeover_that_fails() {
    let seen = Arc::new(Seen::default());
    let line = Line::with(Card { seen: seen.clone(), ..Card::default() }.open());
    let mut peer = line.client();
    peer.read(BAR, 0, 1).unwrap();
    listen_to_all(&mut Hand::connect(&line.path()));
    peer.read(BAR, 0, 1).unwrap();
    let threads = seen.threads.lock();
    assert_eq!(threads.len(), 2);
    assert_eq!(threads[0], threads[1], "no other thread has to be had");
}
