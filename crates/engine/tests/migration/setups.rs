//! PCI devices that need their configuration: after a failed arc and at the destination they do DMA and interrupt, and
//! whoever cannot have it back is told.

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use tracing::{Dispatch, subscriber::NoSubscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;
use vm_memory::{Bytes, GuestAddress};
use whimbrel_device::{ArcError, DeviceFile, Errno, WorkingDevice};
use whimbrel_models::Model;
use whimbrel_models::accel::guest::{GuestDriver, Platform, Rings};
use whimbrel_models::accel::{Descriptor, INTERRUPT_COMPLETION};
use whimbrel_user::{Device, Local, Migratable, State};

use crate::support::engine::{
    Destination, Error, Outcome, Received, Report, SendError, Source, SourceOptions, Stream,
};
use crate::support::{At, Memory, OwnLog, Program, Rig, Shape, memory, migrate_between, to_device};

const CONFIG: u32 = 7;
const COMMAND: u64 = 0x04;
/// Memory space and bus master.
const ENABLED: [u8; 2] = [0x06, 0x00];
const MSI: u32 = 1;
const SIZE: usize = 1 << 20;
const RINGS: Rings = Rings::new(0, 0x1000, 16);
const DATA: u64 = 0x2000;
/// Longer than any interrupt takes.
const PATIENCE: Timespec = Timespec { tv_sec: 30, tv_nsec: 0 };
const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// A host's accel, which does neither DMA nor interrupts without bus master and MSI enable, with the memory that it
/// reaches and an eventfd of its owner.
struct Host {
    file: DeviceFile,
    /// With its worker, if it has one. `None` while it migrates.
    device: Option<Local>,
    /// The device after its migration.
    kept: Vec<Option<Box<dyn Migratable>>>,
    memory: Memory,
    interrupt: OwnedFd,
}

fn accel(name: &str, faults: &str) -> WorkingDevice {
    let model: Model = "accel?state=4KiB&config=required".parse().unwrap();
    model.open_with_faults(name, faults.parse().unwrap()).unwrap()
}

impl Host {
    fn new(name: &str, faults: &str) -> Host {
        Host::of(Local::new(accel(name, faults)))
    }

    /// One whose device takes jobs and does none of them.
    fn idle(name: &str) -> Host {
        Host::of(Local::new(accel(name, "").into_device()))
    }

    fn of(mut device: Local) -> Host {
        let memory = memory(&[(0, SIZE)]);
        to_device(&memory, &mut device);
        let interrupt = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        device.set_irq_triggers(MSI, 0, &[Some(interrupt.as_fd())]).unwrap();
        let file = device.driver_side().clone();
        Host { file, device: Some(device), kept: Vec::new(), memory, interrupt }
    }

    fn config(&self, offset: u64, data: &[u8]) {
        Local::new(self.file.clone()).write_region(CONFIG, offset, data).unwrap();
    }

    /// As a guest's driver does: a BAR, MSI, memory space and bus master.
    fn set_up(&self) {
        let mut space = [0; 256];
        Local::new(self.file.clone()).read_region(CONFIG, 0, &mut space).unwrap();
        let mut msi = usize::from(space[0x34]);
        while space[msi] != 0x05 {
            msi = usize::from(space[msi + 1]);
        }
        let msi = msi as u64;
        self.config(0x10, &0xfebf_1000_u32.to_le_bytes());
        self.config(msi + 4, &0xfee0_0000_u32.to_le_bytes());
        self.config(msi + 2, &[0x81, 0]);
        self.config(COMMAND, &ENABLED);
    }

    fn seat(&self) -> Seat {
        Seat { file: self.file.clone(), memory: self.memory.clone() }
    }

    /// Sets up the rings, with interrupts.
    fn start(&self) -> GuestDriver<Seat> {
        let mut driver = GuestDriver::start(self.seat(), RINGS).unwrap();
        driver.enable_interrupts(INTERRUPT_COMPLETION).unwrap();
        driver
    }

    /// Gives the device a job, and waits for its interrupt alone.
    fn job(&self, driver: &mut GuestDriver<Seat>, pattern: u64) {
        let job = Descriptor::fill(pattern, DATA + pattern * 4096, 4096, pattern);
        driver.acknowledge(INTERRUPT_COMPLETION).unwrap();
        driver.submit(&job).unwrap();
        self.wait();
        let done = driver.take_completion().unwrap().expect("it has interrupted");
        assert!(driver.verify(&job, &done).unwrap(), "the DMA of job {pattern}: {done:?}");
    }

    fn wait(&self) {
        let mut set = [PollFd::new(&self.interrupt, PollFlags::IN)];
        assert_eq!(poll(&mut set, Some(&PATIENCE)).unwrap(), 1, "no interrupt");
        rustix::io::read(&self.interrupt, &mut [0; 8]).unwrap();
    }
}

/// The guest's driver at its device, with memory of its own.
#[derive(Debug)]
struct Seat {
    file: DeviceFile,
    memory: Memory,
}

impl Platform for Seat {
    type Error = Errno;

    fn read_register(&mut self, offset: u64, data: &mut [u8]) -> Result<(), Errno> {
        self.file.read_region(0, offset, data).map(drop)
    }

    fn write_register(&mut self, offset: u64, data: &[u8]) -> Result<(), Errno> {
        self.file.write_region(0, offset, data).map(drop)
    }

    fn read_memory(&mut self, address: u64, data: &mut [u8]) -> Result<(), Errno> {
        self.memory.read_slice(data, GuestAddress(address)).map_err(|_| Errno::EFAULT)
    }

    fn write_memory(&mut self, address: u64, data: &[u8]) -> Result<(), Errno> {
        self.memory.write_slice(data, GuestAddress(address)).map_err(|_| Errno::EFAULT)
    }
}

/// Migrates from one host to another.
fn migrate(
    here: &mut Host,
    there: &mut Host,
    program: Program,
) -> (Result<Report, SendError>, Result<Received, Error>) {
    let (left, right) = UnixStream::pair().unwrap();
    let options = SourceOptions::default().downtime_limit(Duration::from_secs(20));
    let source = Source::new(vec![Box::new(here.device.take().unwrap())])
        .memory(Arc::new(here.memory.clone()), OwnLog(here.memory.clone()))
        .options(options);
    let destination = Destination::new(vec![Box::new(there.device.take().unwrap())])
        .memory(Arc::new(there.memory.clone()))
        .guest(program);
    let (sent, arrived) = migrate_between(source, destination, Stream::from(left), Stream::from(right));
    // The workers end with their devices.
    (here.kept, there.kept) = (sent.devices, arrived.devices);
    (sent.result, arrived.result)
}

#[test]
fn a_device_that_an_arc_breaks_does_dma_and_interrupts_after_its_reset() {
    for (faults, refuses) in [
        ("arc RUNNING->PRE_COPY: EIO broken once", ""),
        ("arc PRE_COPY->PRE_COPY_P2P: EIO broken once", ""),
        ("arc PRE_COPY_P2P->STOP_COPY: EIO broken once", ""),
        ("arc STOP_COPY->STOP: EBUSY once", "inspect"),
        ("arc RUNNING_P2P->RUNNING: EIO broken once", "inspect"),
    ] {
        let (mut here, mut there) = (Host::new("here", faults), Host::new("there", ""));
        here.set_up();
        here.job(&mut here.start(), 1);
        let (sent, received) = migrate(&mut here, &mut there, Program::refusing(refuses));
        let error = sent.unwrap_err();
        assert!(
            matches!(&error.outcome, Outcome::RunsOnAfterReset { devices } if *devices == ["here"]),
            "{faults}: {error}"
        );
        assert_eq!(error.warnings, [""; 0], "{faults}");
        received.unwrap_err();
        // What its driver set in the device went with the reset, and nothing of what was set around it.
        here.job(&mut here.start(), 2);
    }
}

#[test]
fn work_that_waits_at_the_source_ends_in_dma_and_an_interrupt_at_the_destination() {
    let (mut here, mut there) = (Host::idle("here"), Host::new("there", ""));
    here.set_up();
    let mut driver = here.start();
    let job = Descriptor::fill(7, DATA, 4096, 0x5eed);
    driver.submit(&job).unwrap();
    let progress = driver.progress();
    let (sent, received) = migrate(&mut here, &mut there, Program::default());
    assert_eq!(sent.unwrap().warnings, [""; 0]);
    received.unwrap();
    // Nobody touches the device from here on.
    there.wait();
    let mut driver = GuestDriver::resume(there.seat(), RINGS, progress);
    let done = driver.take_completion().unwrap().expect("it has interrupted");
    assert!(driver.verify(&job, &done).unwrap(), "{done:?}");
    let mut driver = GuestDriver::resume(here.seat(), RINGS, progress);
    assert_eq!(driver.take_completion().unwrap(), None, "the source did it");
    assert_eq!(poll(&mut [PollFd::new(&here.interrupt, PollFlags::IN)], Some(&NOW)).unwrap(), 0);
}

/// A device whose owner has enabled bus master.
fn enabled() -> Rig {
    let rig = Rig::new(&Shape { has_config: true, ..Shape::default() }).with_memory(&[(0, 0x4000)]);
    Local::new(rig.here.file()).write_region(CONFIG, COMMAND, &ENABLED).unwrap();
    rig
}

fn command(rig: &Rig) -> [u8; 2] {
    let mut command = [0; 2];
    Local::new(rig.here.file()).read_region(CONFIG, COMMAND, &mut command).unwrap();
    command
}

fn broken() -> ArcError {
    ArcError::Broken(Errno::EIO)
}

#[test]
fn a_configuration_that_is_not_restored_after_a_reset_is_in_the_warnings_and_the_log() {
    let written = || {
        let rig = enabled();
        rig.here.control().fail(At::Arc(State::PreCopyP2p, State::StopCopy), 0, broken());
        rig.here.control().fail(At::WriteConfig, 0, ArcError::Stays(Errno::EIO));
        (rig, "write to region 7 at 0x4: EIO")
    };
    let read = || {
        let rig = enabled();
        rig.here.control().fail(At::Arc(State::Running, State::PreCopy), 0, broken());
        let control = rig.here.control().clone();
        rig.here.control().when(At::LogStart, 0, move || {
            control.fail(At::ReadConfig, 0, ArcError::Stays(Errno::EIO));
        });
        (rig, "read of region 7 at 0x0: EIO")
    };
    for case in [written, read] {
        let (rig, why) = case();
        let (ended, log) = logged(|| rig.migrate());
        assert!(!ended.rig.here.control().has_faults_left(), "{why}");
        let error = ended.sent.unwrap_err();
        assert!(matches!(&error.outcome, Outcome::RunsOnAfterReset { .. }), "{error}");
        let [warning] = &error.warnings[..] else { panic!("{why}: {:?}", error.warnings) };
        let all = [why, "after the reset of here its configuration is not restored", "DMA nor interrupts"];
        assert!(all.iter().all(|part| warning.contains(part)), "{why}: {warning}");
        assert!(log.contains(warning), "{log}");
        assert_eq!(command(&ended.rig), [0; 2], "{why}");
    }
}

#[test]
fn a_configuration_that_was_read_at_the_stop_is_restored_if_it_cannot_be_read_again() {
    let mut rig = enabled();
    rig.there.program = Program::refusing("inspect");
    rig.here.control().fail(At::Arc(State::StopCopy, State::Stop), 0, ArcError::Stays(Errno::EBUSY));
    let control = rig.here.control().clone();
    rig.there.program.when("inspect", move || {
        control.fail(At::ReadConfig, 0, ArcError::Stays(Errno::EIO));
    });
    let ended = rig.migrate();
    assert!(!ended.rig.here.control().has_faults_left());
    let error = ended.sent.unwrap_err();
    assert!(matches!(&error.outcome, Outcome::RunsOnAfterReset { .. }), "{error}");
    assert_eq!(error.warnings, [""; 0]);
    assert_eq!(command(&ended.rig), ENABLED);
}

#[test]
fn a_log_that_cannot_be_stopped_after_a_failure_is_in_the_warnings() {
    let mut rig = Rig::new(&Shape::default()).with_memory(&[(0, 0x4000)]);
    rig.there.program = Program::refusing("inspect");
    rig.here.control().fail(At::LogStop, 0, ArcError::Stays(Errno::EIO));
    let error = rig.migrate().sent.unwrap_err();
    assert!(matches!(error.outcome, Outcome::RunsOn), "{error}");
    let [warning] = &error.warnings[..] else { panic!("{:?}", error.warnings) };
    assert!(warning.starts_with("here: ") && warning.contains("DMA_LOGGING_STOP: EIO"), "{warning}");
}

/// The text of a log.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Log;

    fn make_writer(&'a self) -> Log {
        self.clone()
    }
}

/// Does something, and returns the warnings that this thread logs meanwhile.
fn logged<T>(work: impl FnOnce() -> T) -> (T, String) {
    // As long as there is but one subscriber, the thread that meets an event first decides whether anybody wants it.
    // That may be another test's, which has none.
    static ANOTHER: LazyLock<Dispatch> = LazyLock::new(|| Dispatch::new(NoSubscriber::default()));
    LazyLock::force(&ANOTHER);
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt()
        .with_writer(log.clone())
        .with_ansi(false)
        .with_max_level(LevelFilter::WARN)
        .finish();
    let done = tracing::subscriber::with_default(subscriber, work);
    let text = String::from_utf8(log.0.lock().clone()).unwrap();
    (done, text)
}
