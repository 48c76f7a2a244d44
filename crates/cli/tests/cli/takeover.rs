//! `whimbrel serve --takeover`: a server takes the place of another while a program works with the device.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};
use rustix::event::{PollFd, PollFlags, poll};
use serde_json::Value;
use tempfile::TempDir;
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};
use whimbrel_models::accel::guest::{GuestDriver, Platform, Rings};
use whimbrel_models::accel::{self, Descriptor};
use whimbrel_uapi::type1::DmaMapFlags;
use whimbrel_user::{Device, DmaMap, DmaRegion, Error};
use whimbrel_vfio_user::{Client, ClientOptions};
use zerocopy::IntoBytes;

use crate::support::{argument, can_be_confined, command, whimbrel};

/// More than one transfer of state, and in a build with optimisation what the guide names.
pub(crate) const STATE: u64 = if cfg!(debug_assertions) { 2 << 20 } else { 64 << 20 };
pub(crate) const MEMORY: u64 = 1 << 20;
pub(crate) const IOVA: u64 = 0x10_0000;
const COMPLETIONS: u64 = 0x4000;
pub(crate) const DATA: u64 = 0x8000;
pub(crate) const LENGTH: u64 = 0x10000;
const ENTRIES: u32 = 64;
const LONG: Duration = Duration::from_secs(10);

/// A server in a process of its own.
pub(crate) struct Server {
    child: Child,
    pub(crate) told: String,
}

impl Server {
    pub(crate) fn start(arguments: &[&str]) -> Server {
        Server::of(command(["serve", "--json"].iter().chain(arguments)))
    }

    /// The server that a command starts.
    pub(crate) fn of(command: Command) -> Server {
        Server::starting(command).unwrap()
    }

    /// The server that a command starts, or the first line of why it does not serve.
    pub(crate) fn starting(mut command: Command) -> Result<Server, String> {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut told = String::new();
        BufReader::new(child.stderr.as_mut().unwrap()).read_line(&mut told).unwrap();
        let server = Server { child, told };
        if server.told.starts_with("serving ") { Ok(server) } else { Err(server.told.clone()) }
    }

    /// Tells it to end, and returns what it has logged.
    fn stopped(mut self) -> String {
        let signal = Command::new("kill").arg(self.child.id().to_string()).status();
        assert!(signal.unwrap().success());
        assert!(self.child.wait().unwrap().success());
        let mut stderr = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        stderr
    }

    /// Waits until it ends by itself, and returns its result.
    pub(crate) fn ended(mut self) -> Value {
        let status = self.child.wait().unwrap();
        let mut stderr = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        assert!(status.success(), "{stderr}");
        serde_json::from_reader(self.child.stdout.take().unwrap()).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself, which its test has seen.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A client, the memory of the program that owns the device, and how long the device kept it waiting.
pub(crate) struct Seat {
    pub(crate) client: Client,
    memory: Arc<MmapRegion>,
    /// The longest that an access to a register took.
    longest: Duration,
}

impl Platform for Seat {
    type Error = Error;

    fn read_register(&mut self, offset: u64, data: &mut [u8]) -> Result<(), Error> {
        let begun = Instant::now();
        self.client.read_region(0, offset, data)?;
        self.longest = self.longest.max(begun.elapsed());
        Ok(())
    }

    fn write_register(&mut self, offset: u64, data: &[u8]) -> Result<(), Error> {
        let begun = Instant::now();
        self.client.write_region(0, offset, data)?;
        self.longest = self.longest.max(begun.elapsed());
        Ok(())
    }

    fn read_memory(&mut self, address: u64, data: &mut [u8]) -> Result<(), Error> {
        self.memory.as_volatile_slice().read_slice(data, (address - IOVA) as usize).unwrap();
        Ok(())
    }

    fn write_memory(&mut self, address: u64, data: &[u8]) -> Result<(), Error> {
        self.memory.as_volatile_slice().write_slice(data, (address - IOVA) as usize).unwrap();
        Ok(())
    }
}

fn rings() -> Rings {
    Rings::new(IOVA, IOVA + COMPLETIONS, ENTRIES)
}

/// A program that gives the device job after job and checks all of them.
pub(crate) struct Program {
    pub(crate) driver: GuestDriver<Seat>,
    interrupt: EventFd,
    digest: u64,
    /// Bytes of the device's own state.
    state: u64,
}

impl Program {
    pub(crate) fn new(path: &Path, memory: Arc<MmapRegion>) -> Program {
        Program::of(Client::connect(path, &ClientOptions::default()).unwrap(), memory)
    }

    /// The same of a device with another size of state.
    fn with_state(path: &Path, memory: Arc<MmapRegion>, state: u64) -> Program {
        Program::of_state(Client::connect(path, &ClientOptions::default()).unwrap(), memory, state)
    }

    /// The program of a client that has been connected for it.
    pub(crate) fn of(client: Client, memory: Arc<MmapRegion>) -> Program {
        Program::of_state(client, memory, STATE)
    }

    fn of_state(mut client: Client, memory: Arc<MmapRegion>, state: u64) -> Program {
        let both = DmaMapFlags::READ | DmaMapFlags::WRITE;
        client.map_dma(IOVA, both, DmaRegion::from(memory.clone())).unwrap();
        let interrupt = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
        client.set_irq_triggers(1, 0, &[Some(interrupt.as_fd())]).unwrap();
        Program::started(Seat { client, memory, longest: Duration::ZERO }, interrupt, state)
    }

    fn started(seat: Seat, interrupt: EventFd, state: u64) -> Program {
        let mut driver = GuestDriver::start(seat, rings()).unwrap();
        driver.enable_interrupts(accel::INTERRUPT_COMPLETION).unwrap();
        let mut program = Program { driver, interrupt, digest: 0, state };
        // All of the device's state holds something.
        program.job(Descriptor::scramble(program.next(), 0, state, 1));
        program
    }

    /// Sets up a device that was reset. Its memory and its interrupt stay as they are.
    pub(crate) fn set_up_again(self) -> Program {
        // Of the device as it was.
        let _ = self.interrupt.read();
        Program::started(self.driver.into_platform(), self.interrupt, self.state)
    }

    /// Goes on with the device behind another server, to which its state has moved.
    pub(crate) fn moved_to(self, mut client: Client) -> Program {
        let (progress, memory) = (self.driver.progress(), self.driver.into_platform().memory);
        let both = DmaMapFlags::READ | DmaMapFlags::WRITE;
        client.map_dma(IOVA, both, DmaRegion::from(memory.clone())).unwrap();
        client.set_irq_triggers(1, 0, &[Some(self.interrupt.as_fd())]).unwrap();
        let seat = Seat { client, memory, longest: Duration::ZERO };
        Program { driver: GuestDriver::resume(seat, rings(), progress), ..self }
    }

    /// The number of the next job, which is its tag.
    pub(crate) fn next(&self) -> u64 {
        self.driver.progress().submitted + 1
    }

    fn read(&mut self, register: u64) -> u64 {
        self.driver.read_u64(register).unwrap()
    }

    /// One job, from the doorbell to the interrupt.
    pub(crate) fn job(&mut self, work: Descriptor) {
        self.driver.submit(&work).unwrap();
        let patience = Instant::now() + LONG;
        let done = loop {
            self.wait(patience);
            if let Some(done) = self.driver.take_completion().unwrap() {
                break done;
            }
        };
        assert!(self.driver.verify(&work, &done).unwrap(), "{done:?} of {work:?}");
        self.digest = accel::fold_digest(self.digest, done.tag, done.status, done.result);
        assert_eq!(self.read(accel::REGISTER_DIGEST), self.digest, "all jobs so far, each once");
    }

    /// Waits for an interrupt, without which nothing goes on.
    fn wait(&mut self, patience: Instant) {
        let left = patience.saturating_duration_since(Instant::now()).try_into().unwrap();
        let came = poll(&mut [PollFd::new(&self.interrupt, PollFlags::IN)], Some(&left)).unwrap();
        assert_eq!(came, 1, "no interrupt has come");
        self.interrupt.read().unwrap();
        self.driver.acknowledge(accel::INTERRUPT_COMPLETION).unwrap();
    }

    pub(crate) fn fill(&mut self) {
        let pattern = self.next().wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.job(Descriptor::fill(self.next(), IOVA + DATA, LENGTH, pattern));
    }

    /// The device's own state.
    pub(crate) fn own_state(&mut self) -> Vec<u8> {
        let mut state = vec![0; self.state as usize];
        self.driver.platform().client.read_region(accel::STATE_REGION_INDEX, 0, &mut state).unwrap();
        state
    }
}

pub(crate) fn shared() -> Arc<MmapRegion> {
    let file = File::from(rustix::fs::memfd_create(c"program", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    file.set_len(MEMORY).unwrap();
    Arc::new(MmapRegion::from_file(FileOffset::new(file, 0), MEMORY as usize).unwrap())
}

pub(crate) fn private() -> Arc<MmapRegion> {
    Arc::new(MmapRegion::new(MEMORY as usize).unwrap())
}

pub(crate) fn socket(folder: &TempDir) -> PathBuf {
    folder.path().canonicalize().unwrap().join("socket")
}

#[test]
fn a_program_works_on_while_the_server_of_its_device_is_replaced_three_times() {
    for (memory, how) in [(shared(), "by its file"), (private(), "by asking for it")] {
        let folder = TempDir::new().unwrap();
        let path = socket(&folder);
        let model = format!("accel?state={STATE}");
        let mut server = Server::start(&[&model, "--allow-takeover", "--socket", &argument(&path)]);
        let mut program = Program::new(&path, memory);
        let jobs = AtomicU32::new(0);
        std::thread::scope(|scope| {
            let jobs = &jobs;
            let replacing = scope.spawn(|| {
                let waits_for = |count: u32| {
                    let seen = jobs.load(Ordering::Relaxed);
                    let patience = Instant::now() + LONG;
                    while jobs.load(Ordering::Relaxed) < seen + count {
                        assert!(Instant::now() < patience, "the program does not go on");
                        std::thread::sleep(Duration::from_millis(1));
                    }
                };
                for _ in 0..3 {
                    waits_for(20);
                    let next = Server::start(&[&model, "--allow-takeover", "--takeover", &argument(&path)]);
                    assert!(next.told.ends_with(", taken over from another server\n"), "{}", next.told);
                    let result = std::mem::replace(&mut server, next).ended();
                    assert_eq!(result["taken_over"], true);
                    assert_eq!(result["clients"], 1);
                    let moved = &result["moved"];
                    assert!(moved["precopy_bytes"].as_u64().unwrap() > STATE, "{result}");
                    assert!(moved["stopped_bytes"].as_u64().unwrap() < STATE / 2, "{result}");
                    assert!(moved["pause_ms"].as_f64().unwrap() > 0.0, "{result}");
                }
                waits_for(20);
            });
            program.driver.platform().longest = Duration::ZERO;
            // Also if it failed, which ends the test.
            while !replacing.is_finished() {
                program.fill();
                jobs.fetch_add(1, Ordering::Relaxed);
            }
        });
        assert_eq!(program.read(accel::REGISTER_COMPLETED), program.driver.progress().submitted);
        assert_eq!(program.read(accel::REGISTER_ERRORS), 0);
        assert_eq!(program.own_state().len() as u64, program.read(accel::REGISTER_STATE_BYTES));
        // For who measures: `--nocapture` shows it.
        let (longest, jobs) = (program.driver.platform().longest, program.driver.progress().submitted);
        let _ = writeln!(
            std::io::stdout(),
            "memory reached {how}: {jobs} jobs, and no access took longer than {longest:.1?} ({STATE} bytes of state)"
        );
        drop(program);
        assert!(path.exists(), "later clients come to the last server");
        Client::connect(&path, &ClientOptions::default()).unwrap();
    }
}

/// Run it with `--release`, and `--nocapture` for the figures. In a build without optimisation its states are smaller.
#[test]
#[ignore = "long"]
fn what_moves_in_the_pause_does_not_grow_with_the_state() {
    const TAKEOVERS: usize = 7;
    let unit: u64 = if cfg!(debug_assertions) { 1 << 20 } else { 64 << 20 };
    let mut sizes = [(unit, Vec::new(), Vec::new()), (16 * unit, Vec::new(), Vec::new())];
    // One after the other, so that both see the same machine.
    for _ in 0..TAKEOVERS {
        for (state, accesses, pauses) in &mut sizes {
            let folder = TempDir::new().unwrap();
            let path = socket(&folder);
            let model = format!("accel?state={state}");
            let old = Server::start(&[&model, "--allow-takeover", "--socket", &argument(&path)]);
            let mut program = Program::with_state(&path, shared(), *state);
            program.driver.platform().longest = Duration::ZERO;
            let path = argument(&path);
            let next = std::thread::scope(|scope| {
                let starting = scope.spawn(|| Server::start(&[&model, "--takeover", &path]));
                while !starting.is_finished() {
                    program.fill();
                }
                starting.join().unwrap()
            });
            (0..20).for_each(|_| program.fill());
            let result = old.ended();
            assert!(result["moved"]["precopy_bytes"].as_u64().unwrap() > *state, "{result}");
            // Less than all of the smaller state, whatever the size.
            assert!(result["moved"]["stopped_bytes"].as_u64().unwrap() < unit / 2, "{result}");
            accesses.push(program.driver.platform().longest);
            pauses.push(result["moved"]["pause_ms"].as_f64().unwrap());
            drop((program, next));
        }
    }
    for (state, mut accesses, mut pauses) in sizes {
        accesses.sort();
        pauses.sort_by(f64::total_cmp);
        let (first, middle, last) = (0, TAKEOVERS / 2, TAKEOVERS - 1);
        let _ = writeln!(
            std::io::stdout(),
            "{state} bytes of state: pause {:.2} ms (median; {:.2} to {:.2}), longest access {:.1?} (median; {:.1?} to {:.1?})",
            pauses[middle],
            pauses[first],
            pauses[last],
            accesses[middle],
            accesses[first],
            accesses[last],
        );
    }
}

#[test]
fn the_own_state_is_the_same_behind_every_server() {
    let folder = TempDir::new().unwrap();
    let path = socket(&folder);
    let model = format!("accel?state={STATE}&features=stop-copy");
    let mut server = Server::start(&[&model, "--allow-takeover", "--socket", &argument(&path)]);
    let mut program = Program::new(&path, shared());
    let before = program.own_state();
    for _ in 0..2 {
        let next = Server::start(&[&model, "--allow-takeover", "--takeover", &argument(&path)]);
        std::mem::replace(&mut server, next).ended();
        assert!(program.own_state() == before);
    }
    // The last one ends as any server, and takes the socket away.
    let signal = Command::new("kill").arg(server.child.id().to_string()).status();
    assert!(signal.unwrap().success());
    assert_eq!(server.ended()["taken_over"], false);
    assert!(!path.exists());
}

#[test]
fn confined_servers_take_over_and_are_taken_over() {
    if !can_be_confined("a takeover between confined servers") {
        return;
    }
    let folder = TempDir::new().unwrap();
    let path = socket(&folder);
    let model = format!("accel?state={STATE}");
    let mut server = Server::start(&[&model, "--sandbox", "--allow-takeover", "--socket", &argument(&path)]);
    let mut program = Program::new(&path, shared());
    for arguments in [&["--sandbox"][..], &[], &["--sandbox"]] {
        program.fill();
        let next = Server::start(
            &[&[&*model, "--allow-takeover", "--takeover", &argument(&path)], arguments].concat(),
        );
        std::mem::replace(&mut server, next).ended();
        program.fill();
    }
}

#[test]
fn a_confined_server_that_keeps_its_device_does_not_miss_the_file_of_its_socket() {
    if !can_be_confined("a takeover that fails from a confined server") {
        return;
    }
    let folder = TempDir::new().unwrap();
    let path = socket(&folder);
    let server = Server::start(&["serial", "--sandbox", "--allow-takeover", "--socket", &argument(&path)]);
    whimbrel(["serve", "legacy", "--takeover", &argument(&path)]).failed();
    let logged = server.stopped();
    assert!(logged.contains("this server keeps the device"), "{logged}");
    assert!(!logged.contains("was removed"), "{logged}");
}

#[test]
fn what_a_stranger_asks_again_and_again_does_not_fill_the_log() {
    const TIMES: usize = 50;
    let folder = TempDir::new().unwrap();
    let path = socket(&folder);
    let server = Server::start(&["serial", "--socket", &argument(&path)]);
    for command in [1_u16, 0x5754] {
        for _ in 0..TIMES {
            let header = [1, command, 16, 0, 0, 0, 0, 0];
            let mut stream = UnixStream::connect(&path).unwrap();
            stream.write_all(header.as_bytes()).unwrap();
            // The end of the connection, or its reset, if the server left the message unread.
            let _ = stream.read_to_end(&mut Vec::new());
        }
    }
    let logged = server.stopped();
    for line in ["client rejected or disconnected", "this server keeps the device"] {
        let count = logged.matches(line).count();
        assert!((1..TIMES / 2).contains(&count), "{count} times: {line}");
    }
}

#[test]
fn a_server_of_another_model_takes_nothing_and_the_old_one_goes_on() {
    let folder = TempDir::new().unwrap();
    let path = socket(&folder);
    let model = format!("accel?state={STATE}");
    let _server = Server::start(&[&model, "--allow-takeover", "--socket", &argument(&path)]);
    let mut program = Program::new(&path, shared());
    for (other, why) in [
        ("serial", "region 0 differs"),
        ("accel?state=4KiB", "region 2 differs"),
        ("accel?state=2MiB&features=stop-copy", ""),
        ("accel?protocol=v1", ""),
    ] {
        whimbrel(["serve", other, "--takeover", &argument(&path)]).failed().says(&[
            "cannot take over from the server at",
            why,
            "hint: start the new server with the old one's model and settings",
        ]);
        program.fill();
    }
}

#[test]
fn a_server_that_was_not_told_to_allow_it_is_not_taken_over() {
    let folder = TempDir::new().unwrap();
    let path = socket(&folder);
    let model = format!("accel?state={STATE}");
    let _server = Server::start(&[&model, "--socket", &argument(&path)]);
    let mut program = Program::new(&path, shared());
    whimbrel(["serve", &model, "--takeover", &argument(&path)]).failed().says(&[
        "cannot take over from the server at",
        "takeover is not allowed at this socket",
        "--takeover-socket",
    ]);
    program.fill();
}

#[test]
fn servers_take_over_at_a_socket_for_nothing_else_which_goes_along() {
    let folder = TempDir::new().unwrap();
    let path = socket(&folder);
    let update = path.with_file_name("update");
    let model = format!("accel?state={STATE}");
    let mut server =
        Server::start(&[&model, "--socket", &argument(&path), "--takeover-socket", &argument(&update)]);
    let mut program = Program::new(&path, shared());
    for _ in 0..2 {
        whimbrel(["serve", &model, "--takeover", &argument(&path)])
            .failed()
            .says(&["takeover is not allowed at this socket"]);
        program.fill();
        let next = Server::start(&[&model, "--takeover", &argument(&update)]);
        assert!(next.told.contains(&argument(&path)), "it says where clients connect: {}", next.told);
        assert_eq!(std::mem::replace(&mut server, next).ended()["taken_over"], true);
        program.fill();
    }
    let signal = Command::new("kill").arg(server.child.id().to_string()).status();
    assert!(signal.unwrap().success());
    assert_eq!(server.ended()["taken_over"], false);
    assert!(!path.exists() && !update.exists(), "the last one takes both away");
}

#[test]
fn what_cannot_be_taken_over_is_said_with_what_to_do() {
    let folder = TempDir::new().unwrap();
    let nowhere = argument(&folder.path().join("no"));
    whimbrel(["serve", "serial", "--takeover", &nowhere]).failed().says(&[
        "cannot take over from the server at",
        "No such file",
        "hint: no server is listening",
    ]);
    let file = argument(&folder.path().join("file"));
    std::fs::write(&file, "x").unwrap();
    whimbrel(["serve", "serial", "--takeover", &file]).failed().says(&["cannot connect"]);
    let run = whimbrel(["serve", "serial", "--takeover", &file, "--socket", &nowhere]);
    assert_eq!(run.status, 2);
    assert_eq!(whimbrel(["serve", "serial"]).status, 2, "one of both is needed");
}
