//! A client as QEMU is without descriptors of its guest's memory: while a request of its own waits for the reply, it
//! answers no request for memory.

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use whimbrel_device::{DeviceFile, Errno, FileOffset, Next, State, WorkingDevice};
use whimbrel_models::accel::guest::{GuestDriver, Platform, Progress, Rings};
use whimbrel_models::accel::{
    Accel, AccelConfig, Completion, Descriptor, REGISTER_COMPLETED, REGISTER_HEAD, REGISTER_INTERRUPT_ENABLE,
    SLICE_BYTES,
};
use whimbrel_protocol::dirty::DirtyReport;
use whimbrel_uapi::feature::{Feature, FeatureFlags};
use whimbrel_vfio_user::message::{
    Command, DeviceFeature, DmaAccess, DmaAccessModes, DmaMap, DmaUnmap, Kind, Limits, LoggingStart,
    MessageBuffer, RegionAccess, Reply, Request,
};
use whimbrel_vfio_user::{Backend, Server};

use super::event_loop::dispatched;
use super::support::*;

const MEMORY: u64 = 4 << 20;
const RINGS: Rings = Rings::new(0, 0x1000, 16);
const DATA: u64 = 0x1_0000;
/// Less than a server waits for memory.
const PATIENCE: Duration = Duration::from_secs(4);

/// A request of the server that waits for its answer.
#[derive(Debug)]
struct Held {
    id: u16,
    iova: u64,
    /// The bytes to write, or how many to read.
    wanted: Result<Vec<u8>, u64>,
}

/// The client, with its memory from address 0 on.
struct Machine {
    peer: Peer,
    memory: Vec<u8>,
    held: VecDeque<Held>,
}

fn engine() -> WorkingDevice {
    let config = AccelConfig::default().state_bytes(0x1000);
    WorkingDevice::start(DeviceFile::try_new("engine", |bus| Accel::new(config, bus)).unwrap()).unwrap()
}

impl Machine {
    fn of(stream: UnixStream) -> Machine {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut peer = Peer::new(stream, None);
        peer.agree(Backend::capabilities().twin_socket(None).migration_extensions(None));
        let mut machine = Machine { peer, memory: vec![0; MEMORY as usize], held: VecDeque::new() };
        machine.map(0, MEMORY).unwrap();
        machine
    }

    fn new(device: &DeviceFile) -> Machine {
        let (server, client) = UnixStream::pair().unwrap();
        let backend = Backend::new(device.clone());
        std::thread::spawn(move || backend.serve(server));
        Machine::of(client)
    }

    fn map(&mut self, iova: u64, size: u64) -> Result<(), Errno> {
        let map = DmaMap { rights: BOTH, modes: DmaAccessModes::empty(), offset: 0, iova, size };
        self.ask(&Request::DmaMap(map)).map(drop)
    }

    /// Sends a request, and takes its answer. What the server asks meanwhile is held.
    fn ask(&mut self, request: &Request<'_>) -> Result<Vec<u8>, Errno> {
        let id = self.peer.send(request);
        loop {
            let got = self.peer.receiver.receive().unwrap().expect("the server has hung up");
            match got.header.kind {
                Kind::Command { .. } => {
                    self.held.push_back(held(got.header.id, got.header.command, got.payload));
                }
                Kind::Error(errno) if got.header.id == id => return Err(Errno::try_from(errno).unwrap()),
                _ => {
                    assert_eq!(got.header.id, id);
                    return Ok(got.payload.to_vec());
                }
            }
        }
    }

    /// Waits until the server asks for memory.
    fn wait_until_asked(&mut self) -> &Held {
        if self.held.is_empty() {
            let got = self.peer.receiver.receive().unwrap().expect("the server has hung up");
            self.held.push_back(held(got.header.id, got.header.command, got.payload));
        }
        &self.held[0]
    }

    /// Answers what is held.
    fn answer(&mut self) {
        for Held { id, iova, wanted } in std::mem::take(&mut self.held) {
            let mut out = MessageBuffer::new();
            let at = iova as usize;
            match wanted {
                Ok(data) => {
                    self.memory[at..at + data.len()].copy_from_slice(&data);
                    out.reply(id, &Reply::DmaWrite(DmaAccess { iova, count: data.len() as u64 }));
                }
                Err(count) => {
                    let data = &self.memory[at..at + count as usize];
                    out.reply(id, &Reply::DmaRead { iova, data });
                }
            }
            self.peer.sender.send(out.as_bytes(), &[]).unwrap();
        }
    }

    /// Answers until the server asks for a write (`true`) or a read.
    fn answer_until(&mut self, is_write: bool) {
        while self.wait_until_asked().wanted.is_ok() != is_write {
            self.answer();
        }
    }

    fn feature(&mut self, feature: Feature, flags: FeatureFlags, data: &[u8]) -> Result<Vec<u8>, Errno> {
        let request = DeviceFeature { argsz: 64, feature: feature.number(), flags, data };
        self.ask(&Request::DeviceFeature(request)).map(|payload| payload[8..].to_vec())
    }

    fn state(&mut self) -> u32 {
        let got = self.feature(Feature::MigDeviceState, FeatureFlags::GET, &[]).unwrap();
        u32::from_ne_bytes(got[..4].try_into().unwrap())
    }

    /// The state of the stopped device, and a copy of the memory.
    fn saved(&mut self) -> (Vec<u8>, File) {
        let payload = self.ask(&Request::MigDataRead { size: 1 << 20 }).unwrap();
        let reply = Reply::parse(Command::MigDataRead, &payload, Limits::default()).unwrap();
        let Reply::MigDataRead { data } = reply else { panic!("another reply") };
        let file = memory(MEMORY);
        std::os::unix::fs::FileExt::write_all_at(&file, &self.memory, 0).unwrap();
        (data.to_vec(), file)
    }

    fn set_state(&mut self, state: State) -> Result<(), Errno> {
        let data = [state.number().to_ne_bytes(), [0; 4]].concat();
        self.feature(Feature::MigDeviceState, FeatureFlags::SET, &data).map(drop)
    }
}

fn held(id: u16, command: u16, payload: &[u8]) -> Held {
    let command = Command::try_from(command).unwrap();
    match Request::parse(command, payload, Limits::default()).unwrap() {
        Request::DmaRead(DmaAccess { iova, count }) => Held { id, iova, wanted: Err(count) },
        Request::DmaWrite { iova, data } => Held { id, iova, wanted: Ok(data.to_vec()) },
        other => panic!("{other:?}"),
    }
}

impl Platform for Machine {
    type Error = Errno;

    fn read_register(&mut self, offset: u64, data: &mut [u8]) -> Result<(), Errno> {
        let access = RegionAccess { offset, region: 0, count: data.len() as u32 };
        let payload = self.ask(&Request::RegionRead(access))?;
        data.copy_from_slice(&payload[payload.len() - data.len()..]);
        Ok(())
    }

    fn write_register(&mut self, offset: u64, data: &[u8]) -> Result<(), Errno> {
        let access = RegionAccess { offset, region: 0, count: data.len() as u32 };
        self.ask(&Request::RegionWrite(access, data)).map(drop)
    }

    fn read_memory(&mut self, address: u64, data: &mut [u8]) -> Result<(), Errno> {
        data.copy_from_slice(&self.memory[address as usize..][..data.len()]);
        Ok(())
    }

    fn write_memory(&mut self, address: u64, data: &[u8]) -> Result<(), Errno> {
        self.memory[address as usize..][..data.len()].copy_from_slice(data);
        Ok(())
    }
}

/// The job with this number, of one slice or two.
fn job(n: u64) -> Descriptor {
    let length = 9 + n * 7919 % (SLICE_BYTES + 5000);
    let destination = DATA + (1 << 20);
    match n % 3 {
        0 => Descriptor::copy(n, DATA + n % 64, destination, length),
        1 => Descriptor::fill(n, destination, length, n.wrapping_mul(0x0123_4567_89ab_cdef)),
        _ => Descriptor::checksum(n, DATA, length),
    }
}

/// Answers until the next job is done.
fn finish(driver: &mut GuestDriver<Machine>) -> Completion {
    loop {
        driver.platform().answer();
        if let Some(completion) = driver.take_completion().unwrap() {
            return completion;
        }
        driver.platform().wait_until_asked();
    }
}

fn start(machine: Machine) -> GuestDriver<Machine> {
    let mut driver = GuestDriver::start(machine, RINGS).unwrap();
    let data = &mut driver.platform().memory[DATA as usize..];
    data.iter_mut().enumerate().for_each(|(at, byte)| *byte = ((at * 31) >> 3) as u8);
    driver
}

/// Returns an engine whose first job waits for an answer: of its first read, or of its first write.
fn waiting_at(is_write: bool) -> (WorkingDevice, GuestDriver<Machine>) {
    let device = engine();
    let mut driver = start(Machine::new(&device));
    driver.submit(&job(0)).unwrap();
    driver.platform().answer_until(is_write);
    (device, driver)
}

/// Does jobs, and reads a register while each access to memory waits.
fn jobs_are_done(machine: Machine) {
    let mut driver = start(machine);
    for n in 0..150 {
        let job = job(n);
        driver.submit(&job).unwrap();
        let completion = loop {
            driver.platform().wait_until_asked();
            // Counted once its completion is about to be seen: the guest may ring again at that moment.
            let sees_completion = driver.platform().held[0].wanted.as_ref().is_ok_and(|data| data.len() == 8);
            let head = n as u32 + u32::from(sees_completion);
            assert_eq!(driver.read_u32(REGISTER_HEAD).unwrap(), head);
            driver.platform().answer();
            if let Some(completion) = driver.take_completion().unwrap() {
                break completion;
            }
        };
        assert!(driver.verify(&job, &completion).unwrap(), "{n}: {completion:?}");
    }
}

#[test]
fn jobs_are_done_while_registers_are_read_before_each_answer() {
    let device = engine();
    jobs_are_done(Machine::new(&device));
}

#[test]
fn an_event_loop_serves_registers_while_the_devices_thread_waits_for_memory() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let device = engine();
    let (stopper, serving) = dispatched(Server::bind(&path, Backend::new(device.device().clone())).unwrap());
    jobs_are_done(Machine::of(UnixStream::connect(&path).unwrap()));
    stopper.stop();
    serving.join().unwrap();
}

#[test]
fn no_request_but_for_a_state_or_a_reset_waits_for_memory() {
    for is_write in [false, true] {
        let (device, mut driver) = waiting_at(is_write);
        let machine = driver.platform();
        let before = Instant::now();
        machine.ask(&Request::DeviceGetInfo { argsz: 64 }).unwrap();
        machine.map(1 << 30, PAGE).unwrap();
        let unmap = DmaUnmap::Range { iova: 1 << 30, size: PAGE, bitmap: None };
        machine.ask(&Request::DmaUnmap(unmap)).unwrap();
        let mut room = [[0; 16]];
        let logging = LoggingStart::new(PAGE, &[(0, MEMORY)], &mut room).to_bytes();
        machine.feature(Feature::DmaLoggingStart, FeatureFlags::SET, &logging).unwrap();
        assert_eq!(machine.state(), State::Running.number());
        machine.set_state(State::PreCopy).unwrap();
        machine.write_register(REGISTER_INTERRUPT_ENABLE, &3_u32.to_le_bytes()).unwrap();
        assert!(before.elapsed() < Duration::from_secs(1), "{:?}", before.elapsed());
        assert_eq!(machine.held.len(), 1, "it was answered");
        // The job goes on, and its writes are in the log that was started meanwhile.
        let completion = finish(&mut driver);
        assert!(driver.verify(&job(0), &completion).unwrap());
        let mut words = [0; 16];
        let mut report = DirtyReport::new(0, MEMORY, PAGE, &mut words).unwrap();
        device.dma_logging_report(&mut report).unwrap();
        let is_dirty = |iova: u64| words[(iova / PAGE / 64) as usize] >> (iova / PAGE % 64) & 1 == 1;
        assert!(is_dirty(0x1000) && is_dirty(job(0).destination), "{words:x?}");
    }
}

#[test]
fn a_device_does_not_stop_before_its_write_has_ended() {
    let (_device, mut driver) = waiting_at(true);
    let machine = driver.platform();
    // The client answers once it has the reply.
    assert_eq!(machine.set_state(State::StopCopy), Err(Errno::EBUSY));
    assert_eq!(machine.state(), State::Running.number());
    let completion = finish(&mut driver);
    assert!(driver.verify(&job(0), &completion).unwrap());
    driver.platform().set_state(State::StopCopy).unwrap();
}

#[test]
fn a_job_that_stopped_at_a_read_without_an_answer_goes_on_at_the_destination() {
    let (_device, mut driver) = waiting_at(false);
    let machine = driver.platform();
    let before = Instant::now();
    machine.set_state(State::StopCopy).unwrap();
    assert!(before.elapsed() < Duration::from_secs(1), "{:?}", before.elapsed());
    let (state, memory) = machine.saved();
    // It makes nothing of the late answer.
    machine.answer();
    assert_eq!(machine.state(), State::StopCopy.number());
    machine.set_state(State::Stop).unwrap();
    assert!(machine.held.is_empty(), "a stopped device asks for memory");

    goes_on(&state, &memory, driver.progress(), &job(0));
}

#[test]
fn a_job_that_is_stopped_at_any_of_its_accesses_is_done_once() {
    let job = job(0);
    for before in 0.. {
        let device = engine();
        let mut driver = start(Machine::new(&device));
        driver.submit(&job).unwrap();
        let machine = driver.platform();
        for _ in 0..before {
            machine.wait_until_asked();
            machine.answer();
        }
        let is_last = machine.wait_until_asked().wanted.as_ref().is_ok_and(|data| data.len() == 8);
        // This client answers while it waits: the device stops with the access.
        let data = [State::StopCopy.number().to_ne_bytes(), [0; 4]].concat();
        let (feature, flags) = (Feature::MigDeviceState.number(), FeatureFlags::SET);
        let stop = DeviceFeature { argsz: 64, feature, flags, data: &data };
        let id = machine.peer.send(&Request::DeviceFeature(stop));
        std::thread::sleep(Duration::from_millis(5));
        machine.answer();
        machine.peer.answer(id, Command::DeviceFeature).unwrap();
        let (state, memory) = machine.saved();
        goes_on(&state, &memory, driver.progress(), &job);
        if is_last {
            return;
        }
    }
}

/// Loads the state of a stopped engine into another one, which finishes the job.
fn goes_on(state: &[u8], memory: &File, progress: Progress, job: &Descriptor) {
    let destination = engine().into_device();
    let memory = FileOffset::new(memory.try_clone().unwrap(), 0);
    destination.bus().dma().map(0, MEMORY, BOTH, memory).unwrap();
    let loading = destination.set_mig_state(State::Resuming).unwrap().unwrap();
    assert_eq!(loading.write(state).unwrap(), state.len());
    destination.set_mig_state(State::Running).unwrap();
    while destination.advance(Duration::ZERO) == Next::Now {}
    let mut driver = GuestDriver::resume(destination, RINGS, progress);
    let completion = driver.take_completion().unwrap().expect("the job was lost");
    assert!(driver.verify(job, &completion).unwrap());
    assert_eq!(driver.read_u64(REGISTER_COMPLETED).unwrap(), 1);
}

#[test]
fn a_reset_does_not_wait_for_a_client_that_waits_for_it() {
    for is_write in [false, true] {
        let (_device, mut driver) = waiting_at(is_write);
        let machine = driver.platform();
        let before = Instant::now();
        machine.ask(&Request::DeviceReset).unwrap();
        assert!(before.elapsed() < Duration::from_secs(1), "{:?}", before.elapsed());
        // The late answer is that to an access of nobody.
        machine.answer();
        assert_eq!(driver.read_u64(REGISTER_COMPLETED).unwrap(), 0);
        assert_eq!(driver.read_u32(REGISTER_HEAD).unwrap(), 0);
        jobs_are_done(driver.into_platform());
    }
}
