//! Accesses to memory that the core makes while a device serves requests.

mod points;
mod support;
mod users;

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use whimbrel_device::dma::FaultCause;
use whimbrel_device::wrap::mediate::{
    Access, MediateCapabilities, MediateOps, Mediated, Mediation, Mediators, Opened, PlainDevice,
};
use whimbrel_device::wrap::migration_region::MigrationRegion;
use whimbrel_device::{Bus, Context, DeviceFile, Driver, Errno, Next, State, WorkingDevice};
use whimbrel_memory::DirtyLog;
use whimbrel_protocol::dirty::{DirtyReport, LoggingRanges};
use whimbrel_protocol::region::{Layout, Version};

use self::support::*;

#[test]
fn requests_are_served_while_an_access_waits() {
    for is_write in [false, true] {
        let rig = Rig::new(is_write);
        rig.begin();
        rig.device.read_region(0, 0, &mut [0; 8]).unwrap();
        rig.device.info();
        rig.device.set_mig_state(State::PreCopy).unwrap();
        assert_eq!(rig.next(), Seen::Arc(State::PreCopy));
        rig.answer.send(()).unwrap();
        assert_eq!(rig.next(), Seen::Done(true));
    }
}

#[test]
fn a_state_without_dma_waits_for_the_access() {
    for (is_write, to) in [(false, State::RunningP2p), (true, State::RunningP2p), (true, State::Stop)] {
        let rig = Rig::new(is_write);
        rig.begin();
        std::thread::scope(|scope| {
            let change = scope.spawn(|| rig.device.set_mig_state(to).map(drop));
            std::thread::sleep(Duration::from_millis(30));
            assert_eq!(rig.device.mig_state(), Ok(State::Running), "requests are served meanwhile");
            rig.answer.send(()).unwrap();
            assert_eq!(change.join().unwrap(), Ok(()));
        });
        assert_eq!((rig.next(), rig.next()), (Seen::Done(true), Seen::Arc(State::RunningP2p)));
    }
}

#[test]
fn a_write_that_does_not_end_keeps_the_state_and_a_read_is_forgotten_with_its_result() {
    let (reads, writes) = (Rig::new(false), Rig::new(true));
    reads.begin();
    reads.device.set_mig_state(State::Stop).unwrap();
    assert_eq!((reads.next(), reads.next()), (Seen::Arc(State::RunningP2p), Seen::Arc(State::Stop)));
    reads.answer.send(()).unwrap();
    // Asked for again once the device runs, and only then.
    reads.device.set_mig_state(State::Running).unwrap();
    assert_eq!(reads.asked.recv(), Ok(0x10));
    reads.answer.send(()).unwrap();
    let seen = [reads.next(), reads.next(), reads.next()];
    assert_eq!(seen, [Seen::Arc(State::RunningP2p), Seen::Arc(State::Running), Seen::Done(true)]);

    writes.begin();
    assert_eq!(writes.device.set_mig_state(State::Stop).map(drop), Err(Errno::EBUSY));
    assert_eq!(writes.device.mig_state(), Ok(State::Running));
    writes.answer.send(()).unwrap();
    assert_eq!(writes.next(), Seen::Done(true), "it is not told of a state");
    writes.begin();
    writes.answer.send(()).unwrap();
    assert_eq!(writes.next(), Seen::Done(true), "it works on");
}

#[test]
fn a_reset_forgets_an_access_that_does_not_end() {
    for is_write in [false, true] {
        let rig = Rig::new(is_write);
        rig.begin();
        rig.device.reset().unwrap();
        assert_eq!(rig.next(), Seen::Reset);
        rig.answer.send(()).unwrap();
        rig.begin();
        rig.answer.send(()).unwrap();
        assert_eq!(rig.next(), Seen::Done(true), "of the second access");
    }
}

#[test]
fn the_rest_of_a_forgotten_access_is_not_begun() {
    for is_write in [false, true] {
        let rig = Rig::new(is_write);
        let (sender, far) = channel();
        let memory = Slow {
            asked: sender,
            answers: Mutex::new(channel().1),
            may_outlive: true,
            max_bytes: usize::MAX,
        };
        let dma = rig.device.bus().dma();
        if is_write {
            dma.map(PAGE, PAGE, BOTH, near()).unwrap();
        } else {
            dma.map_remote(PAGE, PAGE, BOTH, Arc::new(memory)).unwrap();
        }
        rig.device.write_region(0, 0, &(PAGE - 1).to_ne_bytes()).unwrap();
        assert_eq!(rig.asked.recv(), Ok(PAGE - 1));
        if is_write {
            rig.device.reset().unwrap();
        } else {
            rig.device.set_mig_state(State::Stop).unwrap();
        }
        rig.answer.send(()).unwrap();
        // Once this one ends, so has that.
        rig.device.reset().unwrap();
        rig.begin();
        assert!(far.try_recv().is_err(), "a stopped device asks for memory");
        if is_write {
            let mut byte = [0];
            dma.read(PAGE, &mut byte).unwrap();
            assert_eq!(byte, [0], "a device that was reset writes");
        }
        rig.answer.send(()).unwrap();
    }
}

#[test]
fn no_later_part_of_a_forgotten_access_is_asked_for() {
    for is_write in [false, true] {
        let rig = Rig::new(is_write);
        let (sender, asked) = channel();
        let (answer, answers) = channel();
        let memory = Slow { asked: sender, answers: Mutex::new(answers), may_outlive: true, max_bytes: 1 };
        rig.device.bus().dma().map_remote(PAGE, PAGE, BOTH, Arc::new(memory)).unwrap();
        rig.device.write_region(0, 0, &(2 * PAGE - 2).to_ne_bytes()).unwrap();
        assert_eq!(asked.recv(), Ok(2 * PAGE - 2));
        rig.device.reset().unwrap();
        answer.send(()).unwrap();
        rig.device.reset().unwrap();
        rig.begin();
        assert!(asked.try_recv().is_err(), "a device that was reset asks for memory");
        rig.answer.send(()).unwrap();
    }
}

#[test]
fn a_device_falls_asleep_after_its_access() {
    let rig = Rig::new(true);
    rig.begin();
    rig.device.enter_low_power(None).unwrap();
    std::thread::sleep(Duration::from_millis(30));
    assert!(rig.seen.try_recv().is_err(), "it sleeps with an access in flight");
    rig.answer.send(()).unwrap();
    assert_eq!((rig.next(), rig.next()), (Seen::Done(true), Seen::Suspend));
}

#[test]
fn a_device_falls_asleep_only_after_the_request_that_waits_for_its_access() {
    for resets in [false, true] {
        let rig = Rig::new(true);
        rig.begin();
        rig.device.enter_low_power(None).unwrap();
        std::thread::scope(|scope| {
            let request = scope.spawn(|| {
                if resets {
                    rig.device.reset()
                } else {
                    rig.device.set_mig_state(State::RunningP2p).map(drop)
                }
            });
            std::thread::sleep(Duration::from_millis(30));
            rig.answer.send(()).unwrap();
            request.join().unwrap().unwrap();
        });
        let request = if resets { Seen::Reset } else { Seen::Arc(State::RunningP2p) };
        assert_eq!([rig.next(), rig.next(), rig.next()], [Seen::Done(true), request, Seen::Suspend]);
    }
}

#[test]
fn a_request_that_changes_no_state_does_not_wait_and_forgets_nothing() {
    for is_write in [false, true] {
        let rig = Rig::new(is_write);
        rig.device.set_mig_state(State::RunningP2p).unwrap();
        assert_eq!(rig.next(), Seen::Arc(State::RunningP2p));
        rig.begin();
        let begun = Instant::now();
        assert_eq!(rig.device.set_mig_state(State::RunningP2p).map(drop), Ok(()));
        assert_eq!(rig.device.set_mig_state(State::Error).map(drop), Err(Errno::EINVAL));
        assert!(begun.elapsed() < Duration::from_millis(150), "it waits for an access");
        rig.answer.send(()).unwrap();
        assert_eq!(rig.next(), Seen::Done(true), "the driver has not forgotten it");
        assert!(rig.asked.try_recv().is_err(), "an access is made twice");
    }
}

#[test]
fn a_write_of_a_device_that_works_in_p2p_is_made_once_though_it_cannot_stop() {
    let rig = Rig::new(true);
    rig.device.set_mig_state(State::RunningP2p).unwrap();
    assert_eq!(rig.next(), Seen::Arc(State::RunningP2p));
    rig.begin();
    assert_eq!(rig.device.set_mig_state(State::Stop).map(drop), Err(Errno::EBUSY));
    // Back to work it need not wait, and must not fail.
    rig.device.set_mig_state(State::Running).unwrap();
    assert_eq!(rig.next(), Seen::Arc(State::Running));
    rig.answer.send(()).unwrap();
    assert_eq!(rig.next(), Seen::Done(true), "the driver has not forgotten it");
    assert!(rig.asked.try_recv().is_err(), "it is made twice");
}

#[test]
fn a_device_without_migration_says_so_at_once() {
    let (sender, _seen) = channel();
    let copier = Copier { is_write: true, due: None, seen: sender };
    let device = DeviceFile::new("copier", |_| Limited { copier, resets: true, migrates: false });
    let (asked, answer) = slow(&device, true);
    let device = WorkingDevice::start(device).unwrap();
    device.write_region(0, 0, &0x10_u64.to_ne_bytes()).unwrap();
    asked.recv().unwrap();
    assert_eq!(device.set_mig_state(State::Stop).map(drop), Err(Errno::ENOTTY));
    answer.send(()).unwrap();
}

#[test]
fn a_fault_is_told_and_memory_of_this_process_does_not_wait() {
    let rig = Rig::new(true);
    rig.device.write_region(0, 0, &(1_u64 << 40).to_ne_bytes()).unwrap();
    assert_eq!(rig.next(), Seen::Done(false));
    rig.device.bus().dma().map(PAGE, PAGE, BOTH, near()).unwrap();
    rig.device.write_region(0, 0, &PAGE.to_ne_bytes()).unwrap();
    assert_eq!(rig.next(), Seen::Done(true));
    let mut byte = [0];
    rig.device.bus().dma().read(PAGE, &mut byte).unwrap();
    assert_eq!(byte, [7]);
}

#[test]
fn the_owner_of_a_device_without_a_worker_makes_its_accesses() {
    let (sender, seen) = channel();
    let device = DeviceFile::new("copier", |_| Copier { is_write: true, due: None, seen: sender });
    let (asked, answer) = slow(&device, true);
    device.write_region(0, 0, &8_u64.to_ne_bytes()).unwrap();
    answer.send(()).unwrap();
    assert_eq!(device.advance(Duration::ZERO), Next::Now);
    assert_eq!((asked.recv(), seen.recv()), (Ok(8), Ok(Seen::Done(true))));
    assert_eq!(device.advance(Duration::ZERO), Next::Idle);
}

#[test]
fn a_device_behind_a_migration_region_makes_its_accesses_too() {
    let layout = Layout::trapped(Version::V1, 0x1000).unwrap();
    let rig = Rig::of(true, |copier| MigrationRegion::new(copier, layout).unwrap().into());
    rig.begin();
    rig.answer.send(()).unwrap();
    assert_eq!(rig.next(), Seen::Done(true));
}

/// A vendor that mediates each device, and adds these features.
struct Vendor(MediateCapabilities);

impl MediateOps for Vendor {
    fn name(&self) -> &'static str {
        "vendor"
    }
    fn open(&self, _: PlainDevice<'_>) -> Result<Opened, Errno> {
        Ok(Opened::new(self.0, Halting(None)))
    }
}

/// Passes everything through, until it has brought the device to a state of its own.
struct Halting(Option<State>);

impl Mediation for Halting {
    fn write(&mut self, _: PlainDevice<'_>, _: u32, offset: u64, _: &[u8]) -> Access<usize> {
        if offset == 0 {
            return Access::PassThrough;
        }
        self.0 = if self.0.is_some() { None } else { Some(State::Stop) };
        Access::Answered(Ok(1))
    }
    fn state(&self, state: State) -> State {
        self.0.unwrap_or(state)
    }
}

fn mediated(capabilities: MediateCapabilities) -> impl FnOnce(Copier) -> Box<dyn Driver> {
    move |copier| {
        let vendors = Mediators::new();
        vendors.register(Arc::new(Vendor(capabilities))).unwrap();
        Mediated::new(copier, vendors).into()
    }
}

#[test]
fn a_mediated_device_has_asynchronous_accesses_whatever_its_vendor_adds() {
    for capabilities in [MediateCapabilities::empty(), MediateCapabilities::MIGRATION] {
        let (seen, _seen) = channel();
        let mut driver = mediated(capabilities)(Copier { is_write: true, due: None, seen });
        let context = Context::new(Bus::default());
        let mut has_half = vec![driver.async_dma().is_some()];
        driver.open_device(&context);
        has_half.push(driver.async_dma().is_some());
        driver.close_device(&context);
        has_half.push(driver.async_dma().is_some());
        assert_eq!(has_half, [true; 3], "{capabilities:?}");
    }
}

#[test]
fn a_mediated_device_makes_its_accesses_while_its_vendor_lets_it_run() {
    for capabilities in [MediateCapabilities::empty(), MediateCapabilities::MIGRATION] {
        let rig = Rig::of(true, mediated(capabilities));
        rig.begin();
        rig.answer.send(()).unwrap();
        assert_eq!(rig.next(), Seen::Done(true), "{capabilities:?}");
        let halt = || rig.device.write_region(0, 7, &[0]).unwrap();
        halt();
        rig.device.write_region(0, 0, &0x10_u64.to_ne_bytes()).unwrap();
        assert_eq!(rig.device.advance(Duration::ZERO), Next::Idle, "{capabilities:?}");
        assert!(rig.asked.try_recv().is_err(), "a device that its vendor has stopped asks for memory");
        halt();
        assert_eq!(rig.asked.recv(), Ok(0x10), "{capabilities:?}");
        rig.answer.send(()).unwrap();
        assert_eq!(rig.next(), Seen::Done(true), "{capabilities:?}");
    }
}

#[test]
fn a_way_through_a_state_that_forgets_accesses_waits_for_the_access() {
    for is_write in [false, true] {
        let rig = Rig::new(is_write);
        rig.device.set_mig_state(State::PreCopyP2p).unwrap();
        let arcs = [State::RunningP2p, State::PreCopyP2p].map(Seen::Arc);
        assert_eq!([rig.next(), rig.next()], arcs);
        rig.begin();
        std::thread::scope(|scope| {
            let change = scope.spawn(|| rig.device.set_mig_state(State::Running).map(drop));
            // Ends no later than the change may wait for it.
            std::thread::sleep(Duration::from_millis(30));
            rig.answer.send(()).unwrap();
            assert_eq!(change.join().unwrap(), Ok(()));
        });
        let arcs = [State::RunningP2p, State::Running].map(Seen::Arc);
        assert_eq!([rig.next(), rig.next(), rig.next()], [Seen::Done(true), arcs[0], arcs[1]]);
    }
}

#[test]
fn a_read_that_its_device_has_forgotten_on_the_way_is_made_again() {
    let rig = Rig::new(false);
    rig.device.set_mig_state(State::PreCopyP2p).unwrap();
    rig.begin();
    rig.device.set_mig_state(State::Running).unwrap();
    rig.answer.send(()).unwrap();
    assert_eq!(rig.asked.recv(), Ok(0x10), "the driver is told of a read that it has forgotten");
    rig.answer.send(()).unwrap();
    let arcs = [State::RunningP2p, State::PreCopyP2p, State::RunningP2p, State::Running].map(Seen::Arc);
    assert_eq!([(); 4].map(|()| rig.next()), arcs);
    assert_eq!(rig.next(), Seen::Done(true));
}

#[test]
fn mappings_and_logs_change_while_an_owner_is_asked_and_a_new_log_has_the_write() {
    let device = DeviceFile::new("copier", |_| Copier { is_write: true, due: None, seen: channel().0 });
    let (asked, answer) = slow(&device, true);
    let dma = device.bus().dma();
    let mut ranges = LoggingRanges::new(PAGE, 1).unwrap();
    ranges.push(0, 64 * PAGE).unwrap();
    let log = Arc::new(DirtyLog::new(&ranges).unwrap());
    std::thread::scope(|scope| {
        let write = scope.spawn(|| dma.write(16, &[1; 8]));
        asked.recv().unwrap();
        dma.set_log(Some(log.clone()));
        assert_eq!(dma.unmap(0, PAGE), Ok(PAGE));
        answer.send(()).unwrap();
        assert_eq!(write.join().unwrap(), Ok(()));
    });
    let mut words = [0];
    log.report(&mut DirtyReport::new(0, 64 * PAGE, PAGE, &mut words).unwrap());
    assert_eq!(words, [1]);
    assert_eq!(dma.read(0, &mut [0]).map_err(|fault| fault.cause), Err(FaultCause::NotMapped));
}

#[test]
fn no_mapping_goes_whose_memory_must_not_outlive_it() {
    let device = DeviceFile::new("copier", |_| Copier { is_write: true, due: None, seen: channel().0 });
    let (asked, answer) = slow(&device, false);
    let dma = device.bus().dma();
    std::thread::scope(|scope| {
        let write = scope.spawn(|| dma.write(16, &[1; 8]));
        asked.recv().unwrap();
        let unmap = scope.spawn(|| dma.unmap(0, PAGE));
        std::thread::sleep(Duration::from_millis(30));
        assert!(!unmap.is_finished());
        answer.send(()).unwrap();
        assert_eq!((write.join().unwrap(), unmap.join().unwrap()), (Ok(()), Ok(PAGE)));
    });
}

#[test]
fn an_access_ends_with_a_fault_where_its_mapping_went_meanwhile() {
    let device = DeviceFile::new("copier", |_| Copier { is_write: true, due: None, seen: channel().0 });
    let (asked, answer) = slow(&device, true);
    let dma = device.bus().dma();
    let (more, _answers) = {
        let (sender, receiver) = channel();
        let (answer, answers) = channel();
        let memory =
            Slow { asked: sender, answers: Mutex::new(answers), may_outlive: true, max_bytes: usize::MAX };
        dma.map_remote(PAGE, PAGE, BOTH, Arc::new(memory)).unwrap();
        (receiver, answer)
    };
    std::thread::scope(|scope| {
        let write = scope.spawn(|| dma.write(PAGE - 4, &[1; 8]).map_err(|fault| fault.cause));
        asked.recv().unwrap();
        dma.unmap(PAGE, PAGE).unwrap();
        answer.send(()).unwrap();
        assert_eq!(write.join().unwrap(), Err(FaultCause::NotMapped));
    });
    assert!(more.try_recv().is_err(), "nothing is asked of memory that is gone");
}
