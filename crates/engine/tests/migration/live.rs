//! Migrations of devices that work, with memory that a device and a CPU write all the while.

use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use vm_memory::{Bytes, GuestAddress};
use whimbrel_device::Worker;
use whimbrel_engine::{Guest, GuestError, Ram, Round};
use whimbrel_user::{MigrationFlags, State};

use crate::support::engine::{Error, Outcome, Received, Report, Stream};
use crate::support::{At, Memory, Program, Rig, Shape};

const MIB: usize = 1 << 20;
/// Two regions, neither of a round size, the second far up.
pub(crate) const REGIONS: [(u64, usize); 2] = [(0, 6 * MIB + 0x3000), (1 << 40, 3 * MIB + 0x1000)];

/// A CPU that writes memory until it is paused.
#[derive(Clone)]
pub(crate) struct Cpu {
    running: Arc<Mutex<bool>>,
    program: Program,
}

impl Cpu {
    pub(crate) fn new(program: &Program) -> Cpu {
        Cpu { running: Arc::new(Mutex::new(true)), program: program.clone() }
    }

    /// Writes to the memory while `migrate` is under way, and returns what that returned, with the number of writes.
    pub(crate) fn works_during<T>(&self, memory: &Memory, migrate: impl FnOnce() -> T) -> (T, u64) {
        let (done, written) = (AtomicBool::new(false), Mutex::new(0));
        let ended = std::thread::scope(|scope| {
            let writer = scope.spawn(|| self.work(memory, &done, &written));
            let ended = migrate();
            done.store(true, Ordering::Release);
            writer.join().unwrap();
            ended
        });
        (ended, written.into_inner())
    }

    fn work(&self, memory: &Memory, done: &AtomicBool, written: &Mutex<u64>) {
        let mut value = 7u64;
        while !done.load(Ordering::Acquire) {
            for _ in 0..8 {
                let running = self.running.lock();
                if !*running {
                    break;
                }
                value = value.wrapping_mul(2_862_933_555_777_941_757).wrapping_add(3_037_000_493);
                let region = REGIONS[(value >> 60) as usize % 2];
                let address = region.0 + (value >> 20) % (region.1 as u64 - 8);
                memory.write_obj(value, GuestAddress(address)).unwrap();
                *written.lock() += 1;
            }
            std::thread::sleep(Duration::from_micros(500));
        }
    }
}

impl Guest for Cpu {
    fn pause(&mut self) -> Result<(), GuestError> {
        *self.running.lock() = false;
        self.program.pause()
    }

    fn resume(&mut self) -> Result<(), GuestError> {
        *self.running.lock() = true;
        self.program.resume()
    }
}

fn contents(memory: &Memory) -> Vec<Vec<u8>> {
    memory
        .regions()
        .iter()
        .map(|region| {
            let mut bytes = vec![0; region.size as usize];
            Ram::read(memory, region.start, &mut bytes).unwrap();
            bytes
        })
        .collect()
}

pub(crate) fn assert_same_memory(memory: &(Memory, Memory)) {
    let (ours, theirs) = (contents(&memory.0), contents(&memory.1));
    let sizes = |contents: &[Vec<u8>]| contents.iter().map(Vec::len).collect::<Vec<_>>();
    assert!(!ours.is_empty());
    assert_eq!(sizes(&ours), sizes(&theirs), "the regions");
    for (ours, theirs) in ours.iter().zip(&theirs) {
        let differs = ours.chunks(4096).zip(theirs.chunks(4096)).position(|(ours, theirs)| ours != theirs);
        assert_eq!(differs, None, "the first page that differs");
    }
}

fn assert_adds_up(report: &Report, received: &Received) {
    let rounds = |of: fn(&Round) -> u64| report.round_list.iter().map(of).sum::<u64>();
    let carried = report.memory_bytes + report.device_bytes;
    assert_eq!(report.rounds as usize, report.round_list.len());
    assert_eq!(
        rounds(|round| round.memory_bytes) + rounds(|round| round.device_bytes) + report.final_bytes,
        carried,
        "what the rounds and the end carried is all that was carried"
    );
    assert_eq!((received.memory_bytes, received.device_bytes), (report.memory_bytes, report.device_bytes));
    assert_eq!(received.rounds, report.rounds);
    assert!(report.zero_bytes <= report.memory_bytes);
    assert!(report.wire_bytes >= carried - report.zero_bytes, "what is not zero crosses the wire");
    assert!(report.downtime_ms <= report.total_ms);
    assert!(report.throughput_bytes_per_s > 0.0);
}

fn a_busy_device_moves_over(left: Stream, right: Stream) {
    let shape = Shape { dma_pages: 512, size: 3000, ..Shape::default() };
    let rig = Rig::new(&shape).with_memory(&REGIONS);
    let half: Vec<u8> = (0..3 * MIB).map(|index| (index % 251) as u8 + 1).collect();
    rig.memory.as_ref().unwrap().0.write_slice(&half, GuestAddress(0)).unwrap();
    let stale = vec![9; 2 * MIB];
    rig.memory.as_ref().unwrap().1.write_slice(&stale, GuestAddress(4 << 20)).unwrap();

    let worker = Worker::start(rig.here.file()).unwrap();
    let cpu = Cpu::new(&rig.here.program);
    let here_memory = rig.memory.as_ref().unwrap().0.clone();
    let (ended, written) =
        cpu.works_during(&here_memory, || rig.migrate_with(left, right, |source| source.guest(cpu.clone())));
    drop(worker);
    let (report, received, mut rig) = (ended.sent.unwrap(), ended.received.unwrap(), ended.rig);

    assert!(rig.here.control().written() > 0 && written > 0, "both have written meanwhile");
    assert_same_memory(rig.memory.as_ref().unwrap());
    rig.assert_source_stands("after the migration");
    rig.assert_destination_has_it("after the migration");
    assert_adds_up(&report, &received);
    assert_eq!(report.round_list[0].memory_bytes, (9 * MIB + 0x4000) as u64, "all memory goes once");
    let carried = report.memory_bytes - report.zero_bytes + report.device_bytes;
    assert!(report.wire_bytes < carried + 2 * MIB as u64, "zero pages or frames cost too much: {report:?}");
    assert!(received.confirmed);
    assert_eq!(received.from_devices, ["here"]);
}

#[test]
fn a_device_at_work_moves_over_a_unix_socket_with_all_that_was_written() {
    let (left, right) = UnixStream::pair().unwrap();
    a_busy_device_moves_over(left.into(), right.into());
}

#[test]
fn a_device_at_work_moves_over_tcp_with_all_that_was_written() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let left = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (right, _) = listener.accept().unwrap();
    a_busy_device_moves_over(left.into(), right.into());
}

#[test]
fn a_busy_device_without_a_log_of_its_own_loses_nothing_either() {
    let shape = Shape { dma_pages: 512, logging: false, ..Shape::default() };
    let rig = Rig::new(&shape).with_memory(&REGIONS);
    let worker = Worker::start(rig.here.file()).unwrap();
    let ended = rig.migrate();
    drop(worker);
    let report = ended.sent.unwrap();
    assert_same_memory(ended.rig.memory.as_ref().unwrap());
    let all = (9 * MIB + 0x4000) as u64;
    assert_eq!(report.round_list[0].memory_left, all, "any page may have changed until the device stops");
    assert_eq!(report.memory_bytes, 2 * all);
    assert!(report.final_bytes >= all);
}

#[test]
fn the_program_is_paused_before_the_device_stops_and_let_run_after_it_started() {
    let mut ended = Rig::new(&Shape::default()).migrate();
    ended.assert_sane("a plain migration");
    assert_eq!(ended.rig.here.program.calls.list(), ["pause"]);
    assert_eq!(ended.rig.there.program.calls.list(), ["inspect", "run"]);
}

#[test]
fn the_time_that_the_destinations_owner_takes_is_part_of_the_downtime_and_told() {
    let rig = Rig::new(&Shape::default());
    let took = Arc::new(Mutex::new(Duration::ZERO));
    let its = took.clone();
    rig.there.program.when("inspect", move || {
        let started = Instant::now();
        std::thread::sleep(Duration::from_millis(300));
        *its.lock() = started.elapsed();
    });
    let mut ended = rig.migrate();
    ended.assert_sane("a slow inspection");
    let report = ended.sent.unwrap();
    // Microseconds cross the wire.
    let took = took.lock().as_secs_f64() * 1000.0;
    assert!(report.inspection_ms >= took.floor(), "{took} ms: {report:?}");
    assert!(report.downtime_ms >= report.inspection_ms, "{report:?}");
    assert!(report.downtime_ms <= report.total_ms, "{report:?}");
}

#[test]
fn an_inspection_that_is_announced_is_part_of_the_prediction() {
    let mut rig = Rig::new(&Shape::default());
    rig.there_options = rig.there_options.expected_inspection(Duration::from_secs(7));
    let mut ended = rig.migrate();
    ended.assert_sane("an inspection that is announced");
    assert!(ended.sent.unwrap().predicted_downtime_ms >= 7000.0);

    let mut rig = Rig::new(&Shape::default());
    rig.options = rig.options.downtime_limit(Duration::from_secs(6)).max_rounds(2);
    rig.there_options = rig.there_options.expected_inspection(Duration::from_secs(7));
    let (sent, _) = rig.migrate().refused("an inspection past the limit");
    assert!(sent.contains("the predicted downtime is 7"), "{sent}");
}

#[test]
fn pages_that_are_zero_are_named_and_not_carried() {
    let mut ended = Rig::new(&Shape::default()).with_memory(&[(0, 64 * MIB)]).migrate();
    ended.assert_sane("empty memory");
    let report = ended.sent.unwrap();
    assert_eq!((report.memory_bytes, report.zero_bytes), (64 * MIB as u64, 64 * MIB as u64));
    assert!(report.wire_bytes < 10_000, "{}", report.wire_bytes);
}

#[test]
fn memory_that_was_written_at_the_destination_before_becomes_zero_where_it_is_zero_at_the_source() {
    let rig = Rig::new(&Shape::default()).with_memory(&REGIONS);
    let (_, there) = rig.memory.as_ref().unwrap();
    there.write_slice(&vec![0xff; 3 * MIB], GuestAddress(1 << 40)).unwrap();
    let ended = rig.migrate();
    ended.sent.unwrap();
    assert_same_memory(ended.rig.memory.as_ref().unwrap());
}

#[test]
fn a_state_of_many_chunks_arrives_whole() {
    let shape = Shape { size: 5 * MIB + 123, initial: 2 * MIB as u64, ..Shape::default() };
    let mut ended = Rig::new(&shape).migrate();
    ended.assert_sane("a large state");
    let report = ended.sent.unwrap();
    assert_eq!(report.device_bytes, (5 * MIB + 123 + 6 + 2 * MIB + 3) as u64);
}

#[test]
fn the_log_runs_only_while_the_migration_does() {
    let mut ended = Rig::new(&Shape::default()).with_memory(&REGIONS).migrate();
    ended.assert_sane("a plain migration");
    let requests = ended.rig.here.control().requests();
    let at = |wanted: At| requests.iter().position(|at| *at == wanted).unwrap();
    assert!(at(At::LogStart) < at(At::Arc(State::Running, State::PreCopy)));
    let last_report = requests.iter().rposition(|at| *at == At::LogReport).unwrap();
    let stopped = at(At::Arc(State::PreCopyP2p, State::StopCopy));
    assert!(stopped < last_report, "the last report is made once the device writes no more");
    assert!(last_report < at(At::LogStop));
}

#[test]
fn a_device_that_does_not_run_is_not_sent() {
    let mut rig = Rig::new(&Shape { flags: MigrationFlags::STOP_COPY, ..Shape::default() });
    rig.here.units[0].device.as_mut().unwrap().set_state(State::Stop).unwrap();
    let (left, _right) = UnixStream::pair().unwrap();
    let error = rig.send_to(left.into()).unwrap_err();
    assert!(matches!(error.outcome, Outcome::Untouched), "{error}");
    assert!(matches!(error.cause, Error::WrongState { state: State::Stop, .. }), "{error}");
    assert_eq!(rig.states().0, State::Stop);
}
