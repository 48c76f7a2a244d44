use std::sync::Arc;

use parking_lot::Mutex;
use whimbrel_protocol::dirty::{PageBitmap, Run};
use whimbrel_user::{DataFile, Errno, Info, Migratable, MigrationFlags, Result, State};

use super::super::test_memory::sparse;
use super::super::{AllDirty, Ledger, MappedRam, NoCpuLog};
use super::*;
use crate::guest::GuestError;

const SIZE: u64 = 0x10000;

/// A log that reports given pages, and can be made to fail.
#[derive(Clone, Default)]
struct Fake(Arc<Mutex<Log>>);

#[derive(Default)]
struct Log {
    written: Vec<u64>,
    runs: bool,
    fails: bool,
    /// Bytes of memory, if not [`SIZE`].
    size: Option<u64>,
    /// Reports every page each time.
    is_blunt: bool,
    reads: u32,
}

impl Fake {
    fn write(&self, address: u64) {
        self.0.lock().written.push(address);
    }
    fn fail(&self) {
        self.0.lock().fails = true;
    }
    fn pass(&self) -> Result<()> {
        if self.0.lock().fails {
            return Err(whimbrel_user::Error::unusable("log", Errno::EOPNOTSUPP.to_string()));
        }
        Ok(())
    }
    fn runs(&self) -> bool {
        self.0.lock().runs
    }
}

impl DirtySource for Fake {
    fn start(&mut self, page_size: u64, ranges: &[IovaRange]) -> Result<u64> {
        self.pass()?;
        assert_eq!(ranges, [IovaRange::new(0, self.0.lock().size.unwrap_or(SIZE)).unwrap()]);
        self.0.lock().runs = true;
        Ok(page_size)
    }
    fn stop(&mut self) -> Result<()> {
        self.0.lock().runs = false;
        Ok(())
    }
    fn report(&mut self, report: &mut DirtyReport<'_>) -> Result<()> {
        self.pass()?;
        let mut log = self.0.lock();
        log.reads += 1;
        log.written.drain(..).for_each(|address| report.set(address, 1));
        if log.is_blunt {
            report.set(0, u64::MAX);
        }
        Ok(())
    }
}

/// A device with or without a log of its own.
struct Device(Option<Fake>);

impl Device {
    fn log(&mut self) -> &mut Fake {
        self.0.as_mut().expect("a log")
    }
}

impl Migratable for Device {
    fn name(&self) -> &'static str {
        "device"
    }
    fn info(&mut self) -> Result<Info> {
        Err(whimbrel_user::Error::unusable("device", "it has no more than a log"))
    }
    fn reset(&mut self) -> Result<()> {
        Ok(())
    }
    fn probe_feature(&mut self, feature: Feature, directions: FeatureFlags) -> Result<bool> {
        assert_eq!((feature, directions), (Feature::DmaLoggingStart, FeatureFlags::SET));
        Ok(self.0.is_some())
    }
    fn migration_flags(&mut self) -> Result<Option<MigrationFlags>> {
        Ok(None)
    }
    fn state(&mut self) -> Result<State> {
        Ok(State::Running)
    }
    fn set_state(&mut self, _: State) -> Result<Option<DataFile>> {
        Ok(None)
    }
    fn data_size(&mut self) -> Result<u64> {
        Ok(0)
    }
    fn enable_precopy_info_v2(&mut self) -> Result<bool> {
        Ok(false)
    }
    fn dma_logging_start(&mut self, page_size: u64, ranges: &[IovaRange]) -> Result<u64> {
        self.log().start(page_size, ranges)
    }
    fn dma_logging_stop(&mut self) -> Result<()> {
        self.log().stop()
    }
    fn dma_logging_report(&mut self, report: &mut DirtyReport<'_>) -> Result<()> {
        self.log().report(report)
    }
}

/// A log of CPUs that write one page between two calls.
struct Cpus(usize);

impl CpuLog for Cpus {
    fn start(&mut self) -> std::result::Result<(), GuestError> {
        Ok(())
    }
    fn collect(&mut self, bitmaps: &mut [PageBitmap]) -> std::result::Result<(), GuestError> {
        bitmaps[0].set_run(Run { first: self.0, count: 1 });
        Ok(())
    }
    fn stop(&mut self) {}
}

fn memory() -> (MappedRam, SharedLedger) {
    let (ram, _) = sparse(&[(0, SIZE)]);
    let ledger = Mutex::new(Ledger::new(ram.regions()));
    ledger.lock().take();
    (ram, ledger)
}

fn dirty(ledger: &SharedLedger) -> Vec<Run> {
    ledger.lock().take()[0].1.runs().collect()
}

fn run(first: usize, count: usize) -> Run {
    Run { first, count }
}

#[test]
fn devices_address_space_and_cpus_add_up() {
    let (ram, ledger) = memory();
    let (own, space) = (Fake::default(), Fake::default());
    let (mut first, mut second) = (Device(Some(own.clone())), Device(None));
    let mut logs = MemoryLogs::new(vec![Box::new(space.clone())], Box::new(Cpus(9)));
    logs.start(&ledger).unwrap();
    let mut one = DeviceDirty::start(&mut first, true, &ledger).unwrap();
    let mut other = DeviceDirty::start(&mut second, true, &ledger).unwrap();
    assert_eq!((one.choice(), other.choice()), (DirtyChoice::Device, DirtyChoice::AddressSpace));
    own.write(0x1000);
    own.write(0x2fff);
    space.write(0x5000);
    one.collect(&mut first, &ledger, false).unwrap();
    other.collect(&mut second, &ledger, false).unwrap();
    assert_eq!(logs.collect(&ram, &ledger, false).unwrap(), 4 * PAGE);
    assert_eq!(dirty(&ledger), [run(1, 2), run(5, 1), run(9, 1)]);
    one.stop(&mut first).unwrap();
    other.stop(&mut second).unwrap();
    logs.stop(&ledger);
    assert!(!own.runs() && !space.runs());
}

#[test]
fn the_address_spaces_log_is_not_read_where_every_device_has_its_own() {
    let (ram, ledger) = memory();
    let (own, space) = (Fake::default(), Fake::default());
    let mut device = Device(Some(own.clone()));
    let mut logs = MemoryLogs::new(vec![Box::new(space.clone())], Box::new(NoCpuLog));
    logs.start(&ledger).unwrap();
    let mut log = DeviceDirty::start(&mut device, true, &ledger).unwrap();
    (0..16).for_each(|page| space.write(page * PAGE));
    own.write(0x3000);
    log.collect(&mut device, &ledger, false).unwrap();
    assert_eq!(logs.collect(&ram, &ledger, false).unwrap(), PAGE);
    assert_eq!((dirty(&ledger), space.0.lock().reads), (vec![run(3, 1)], 0));

    // It replaces a device's log that fails, with all writes since the start.
    own.fail();
    log.collect(&mut device, &ledger, false).unwrap();
    assert_eq!(log.choice(), DirtyChoice::AddressSpace);
    assert_eq!(logs.collect(&ram, &ledger, true).unwrap(), SIZE);
    assert_eq!(dirty(&ledger), [run(0, 16)]);
}

#[test]
fn a_device_without_any_log_has_all_memory_sent_once_it_has_stopped() {
    let (ram, ledger) = memory();
    let mut device = Device(None);
    let mut logs = MemoryLogs::new(Vec::new(), Box::new(Cpus(2)));
    logs.start(&ledger).unwrap();
    let mut log = DeviceDirty::start(&mut device, false, &ledger).unwrap();
    assert_eq!(log.choice(), DirtyChoice::AllDirty);
    log.collect(&mut device, &ledger, false).unwrap();
    assert_eq!(logs.collect(&ram, &ledger, false).unwrap(), SIZE, "what stopping now would cost");
    assert_eq!(dirty(&ledger), [run(2, 1)], "a round sends what is known to be dirty");
    log.collect(&mut device, &ledger, true).unwrap();
    assert_eq!(logs.collect(&ram, &ledger, true).unwrap(), SIZE);
    assert_eq!(dirty(&ledger), [run(0, 16)]);
}

#[test]
fn a_devices_log_that_fails_is_given_up_while_it_runs_and_an_error_once_it_has_stopped() {
    for stopped in [false, true] {
        let (ram, ledger) = memory();
        let own = Fake::default();
        let mut device = Device(Some(own.clone()));
        let mut logs = MemoryLogs::new(Vec::new(), Box::new(NoCpuLog));
        logs.start(&ledger).unwrap();
        let mut log = DeviceDirty::start(&mut device, false, &ledger).unwrap();
        own.fail();
        let result = log.collect(&mut device, &ledger, stopped);
        if stopped {
            assert!(matches!(result, Err(Error::Device(_))), "{result:?}");
        } else {
            result.unwrap();
            assert_eq!(log.choice(), DirtyChoice::AllDirty);
            assert!(!own.runs());
            assert_eq!(logs.collect(&ram, &ledger, false).unwrap(), SIZE);
        }
    }
}

#[test]
fn an_address_spaces_log_that_fails_is_given_up_while_devices_run() {
    for stopped in [false, true] {
        let (ram, ledger) = memory();
        let space = Fake::default();
        let mut logs = MemoryLogs::new(vec![Box::new(space.clone())], Box::new(NoCpuLog));
        logs.start(&ledger).unwrap();
        DeviceDirty::start(&mut Device(None), true, &ledger).unwrap();
        space.fail();
        let result = logs.collect(&ram, &ledger, stopped);
        if stopped {
            assert!(matches!(result, Err(Error::Device(_))), "{result:?}");
        } else {
            assert_eq!(result.unwrap(), SIZE);
            assert!(!space.runs());
        }
    }
}

/// Enough memory for a log to be useless.
const MUCH: u64 = MIN_USELESS * PAGE;

fn much_memory() -> (MappedRam, SharedLedger, Fake) {
    let (ram, _) = sparse(&[(0, MUCH)]);
    let ledger = Mutex::new(Ledger::new(ram.regions()));
    ledger.lock().take();
    let log = Fake::default();
    log.0.lock().size = Some(MUCH);
    (ram, ledger, log)
}

#[test]
fn an_address_spaces_log_that_always_reports_everything_is_given_up() {
    let (ram, ledger, space) = much_memory();
    let mut device = Device(None);
    let mut logs = MemoryLogs::new(vec![Box::new(space.clone())], Box::new(Cpus(2)));
    logs.start(&ledger).unwrap();
    let mut log = DeviceDirty::start(&mut device, true, &ledger).unwrap();
    // All of it was written once.
    (0..MIN_USELESS).for_each(|page| space.write(page * PAGE));
    log.collect(&mut device, &ledger, false).unwrap();
    logs.collect(&ram, &ledger, false).unwrap();
    assert_eq!(dirty(&ledger), [run(0, MIN_USELESS as usize)]);
    assert_eq!((log.choice(), space.runs()), (DirtyChoice::AddressSpace, true));

    space.0.lock().is_blunt = true;
    assert_eq!(logs.collect(&ram, &ledger, false).unwrap(), MUCH, "what stopping now would cost");
    assert_eq!(dirty(&ledger), [run(2, 1)], "no round sends all memory again");
    assert!(!space.runs());
    log.collect(&mut device, &ledger, true).unwrap();
    assert_eq!(log.choice(), DirtyChoice::AllDirty);
    assert_eq!(logs.collect(&ram, &ledger, true).unwrap(), MUCH);
    assert_eq!(dirty(&ledger), [run(0, MIN_USELESS as usize)]);
}

#[test]
fn a_devices_log_that_always_reports_everything_gives_way_to_another_one_with_all_that_is_marked() {
    for is_covered in [false, true] {
        let (ram, ledger, own) = much_memory();
        let space = Fake::default();
        space.0.lock().size = Some(MUCH);
        let mut device = Device(Some(own.clone()));
        let spaces: Vec<Box<dyn DirtySource + Send>> =
            if is_covered { vec![Box::new(space.clone())] } else { Vec::new() };
        let mut logs = MemoryLogs::new(spaces, Box::new(NoCpuLog));
        logs.start(&ledger).unwrap();
        let mut log = DeviceDirty::start(&mut device, is_covered, &ledger).unwrap();
        own.0.lock().is_blunt = true;
        log.collect(&mut device, &ledger, false).unwrap();
        assert!(!own.runs());
        space.write(0x3000);
        assert_eq!(logs.collect(&ram, &ledger, false).unwrap(), MUCH);
        if is_covered {
            assert_eq!(log.choice(), DirtyChoice::AddressSpace);
            assert_eq!(dirty(&ledger), [run(0, MIN_USELESS as usize)]);
            space.write(0x5000);
            assert_eq!(logs.collect(&ram, &ledger, true).unwrap(), PAGE);
        } else {
            assert_eq!(log.choice(), DirtyChoice::AllDirty);
            assert_eq!(dirty(&ledger), []);
            assert_eq!(logs.collect(&ram, &ledger, true).unwrap(), MUCH);
        }
    }
}

#[test]
fn logs_that_cannot_all_start_do_not_run() {
    let (_, ledger) = memory();
    let (first, second) = (Fake::default(), Fake::default());
    second.fail();
    let spaces: Vec<Box<dyn DirtySource + Send>> = vec![Box::new(first.clone()), Box::new(second)];
    assert!(MemoryLogs::new(spaces, Box::new(NoCpuLog)).start(&ledger).is_err());
    assert!(!first.runs());
}

#[test]
fn cpus_without_a_log_have_all_memory_sent_once_they_have_stopped() {
    let (ram, ledger) = memory();
    let mut logs = MemoryLogs::new(Vec::new(), Box::new(AllDirty));
    assert_eq!(logs.cpu_choice(), CpuDirtyChoice::AllDirty);
    logs.start(&ledger).unwrap();
    assert_eq!(logs.collect(&ram, &ledger, false).unwrap(), SIZE);
    assert_eq!(dirty(&ledger), []);
    logs.collect(&ram, &ledger, true).unwrap();
    assert_eq!(dirty(&ledger), [run(0, 16)]);
}

#[test]
fn memory_that_comes_or_goes_ends_the_migration_with_a_clear_error() {
    let (_, ledger) = memory();
    let mut logs = MemoryLogs::new(Vec::new(), Box::new(NoCpuLog));
    logs.start(&ledger).unwrap();
    let (larger, _) = sparse(&[(0, SIZE), (1 << 32, SIZE)]);
    let error = logs.collect(&larger, &ledger, false).unwrap_err().to_string();
    assert!(error.contains("memory was added: 65536 bytes at guest address 0x100000000"), "{error}");
}

#[test]
fn without_memory_no_log_is_started() {
    let ledger = Mutex::new(Ledger::new(Vec::new()));
    let (own, space) = (Fake::default(), Fake::default());
    let mut device = Device(Some(own.clone()));
    let mut logs = MemoryLogs::new(vec![Box::new(space.clone())], Box::new(NoCpuLog));
    logs.start(&ledger).unwrap();
    let log = DeviceDirty::start(&mut device, true, &ledger).unwrap();
    assert_eq!(log.choice(), DirtyChoice::NoMemory);
    assert!(!own.runs() && !space.runs());
}
