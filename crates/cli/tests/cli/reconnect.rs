//! A program whose device is served by `whimbrel serve`, which is killed, and then another one serves at the same path.

#[path = "../../../vfio-user/tests/vfio_user/client/reconnect/waiting.rs"]
mod waiting;

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use whimbrel_engine::archive::{self, Form};
use whimbrel_models::accel::{self, Descriptor};
use whimbrel_user::{Device, DirtyReport, Errno, Error, IovaRange, Migratable, SavingRead, State};
use whimbrel_vfio_user::{Client, ConnectionStatus};

use self::waiting::{LONG, connect, wait_until};
use crate::support::{Served, plain_and_confined};
use crate::takeover::{DATA, IOVA, LENGTH, MEMORY, Program, STATE, private, shared};

const PAGE: u64 = 4096;

fn model() -> String {
    format!("accel?state={STATE}")
}

/// Kills a server and starts the next one, until the client is back.
#[track_caller]
fn crash(served: Served, client: &Client, model: &str, path: &Path) -> Served {
    let resets = client.resets();
    drop(served);
    let next = Served::start(model, path);
    wait_until(client, |client| client.resets() > resets);
    assert_eq!(client.resets(), resets + 1);
    next
}

/// A server of the DMA engine, its path, and a client that comes back.
fn served(folder: &TempDir) -> (Served, PathBuf, Client) {
    let path = folder.path().join("socket");
    let served = Served::start(&model(), &path);
    let client = connect(&path, LONG);
    (served, path, client)
}

#[test]
fn a_program_works_on_each_time_its_idle_server_was_killed() {
    plain_and_confined(|serve, folder| {
        for (number, memory) in [shared(), private()].into_iter().enumerate() {
            let path = folder.join(number.to_string());
            let mut served = serve(&model(), &path);
            let client = connect(&path, LONG);
            let holder = client.holder();
            let mut program = Program::of(client.clone(), memory);
            for resets in 1..=2 {
                program.fill();
                drop(served);
                served = serve(&model(), &path);
                wait_until(&client, |client| client.resets() == resets);
                program = program.set_up_again();
                program.fill();
                program.fill();
            }
            assert_ne!(client.holder(), holder, "another process has the device");
            drop(served);
        }
    });
}

/// Waits until a thread is in a state of /proc's stat: the third field, behind the name in parentheses.
fn wait_for_state(stat: &Path, state: char) {
    let deadline = Instant::now() + LONG;
    loop {
        let told = std::fs::read_to_string(stat).unwrap();
        if told.rsplit_once(") ").unwrap().1.starts_with(state) {
            return;
        }
        assert!(Instant::now() < deadline, "{told}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_request_in_flight_at_the_crash_fails_and_its_outcome_is_called_unknown() {
    let folder = TempDir::new().unwrap();
    let (served, path, mut client) = served(&folder);
    kill(Pid::from_raw(served.id().cast_signed()), Signal::SIGSTOP).unwrap();
    // Each of its threads, one of which would answer otherwise.
    let tasks = format!("/proc/{}/task", served.id());
    for task in std::fs::read_dir(tasks).unwrap() {
        wait_for_state(&task.unwrap().path().join("stat"), 'T');
    }
    let (told, thread) = mpsc::channel();
    let error = std::thread::scope(|scope| {
        let request = scope.spawn(|| {
            told.send(rustix::thread::gettid().as_raw_nonzero()).unwrap();
            client.read_region(0, 0, &mut [0; 4]).unwrap_err()
        });
        let stat = format!("/proc/self/task/{}/stat", thread.recv().unwrap());
        // It sleeps once it waits for the reply.
        wait_for_state(Path::new(&stat), 'S');
        drop(served);
        request.join().unwrap()
    });
    assert_eq!(error.errno(), Some(Errno::ECONNRESET), "{error}");
    let text = error.to_string();
    for part in ["vfio-user:", "VFIO_USER_REGION_READ of region 0", "the outcome is unknown"] {
        assert!(text.contains(part), "'{part}' is missing in: {text}");
    }
    let _served = Served::start(&model(), &path);
    wait_until(&client, |client| client.resets() == 1);
    client.read_region(0, 0, &mut [0; 4]).unwrap();
}

/// Gives the device job after job, until a request fails.
fn work_until_it_fails(program: &mut Program) -> Error {
    loop {
        let number = program.next();
        let work = Descriptor::fill(number, IOVA + DATA, LENGTH, number);
        let worked = program.driver.submit(&work).and_then(|()| {
            while program.driver.take_completion()?.is_none() {
                // Which fails once the server is gone.
                program.driver.read_u64(accel::REGISTER_COMPLETED)?;
            }
            Ok(())
        });
        match worked {
            Ok(()) => {}
            Err(accel::guest::GuestError::Access(error)) => return error,
            Err(other) => panic!("{other}"),
        }
    }
}

#[test]
fn a_program_works_on_after_a_crash_in_the_middle_of_dma() {
    for memory in [shared(), private()] {
        let folder = TempDir::new().unwrap();
        let (mut served, path, client) = served(&folder);
        let mut program = Program::of(client.clone(), memory);
        for resets in 1..=4 {
            let moment = Duration::from_millis(fastrand::u64(1..40));
            let error = std::thread::scope(|scope| {
                let working = scope.spawn(|| work_until_it_fails(&mut program));
                std::thread::sleep(moment);
                drop(served);
                working.join().unwrap()
            });
            let known = [Errno::ECONNRESET, Errno::ENOTCONN].map(Some);
            assert!(known.contains(&error.errno()), "after {moment:?}: {error}");
            served = Served::start(&model(), &path);
            wait_until(&client, |client| client.resets() == resets);
            program = program.set_up_again();
            program.fill();
        }
        drop(served);
    }
}

fn reported(client: &mut Client) -> Vec<u64> {
    let pages = MEMORY / PAGE;
    let mut words = vec![0; pages.div_ceil(64) as usize];
    let mut report = DirtyReport::new(IOVA, MEMORY, PAGE, &mut words).unwrap();
    client.dma_logging_report(&mut report).unwrap();
    words
}

fn has(words: &[u64], page: u64) -> bool {
    words[page as usize / 64] >> (page % 64) & 1 == 1
}

#[test]
fn the_first_report_of_a_log_after_the_crash_names_all_pages() {
    let folder = TempDir::new().unwrap();
    let (served, path, mut client) = served(&folder);
    let mut program = Program::of(client.clone(), shared());
    client.dma_logging_start(PAGE, &[IovaRange::new(IOVA, MEMORY).unwrap()]).unwrap();
    program.fill();
    let before = reported(&mut client);
    let (written, untouched) = (DATA / PAGE, MEMORY / PAGE - 1);
    assert!(has(&before, written) && !has(&before, untouched));
    let _served = crash(served, &client, &model(), &path);
    assert!(reported(&mut client).iter().all(|word| *word == u64::MAX));
    assert!(reported(&mut client).iter().all(|word| *word == 0), "nothing was written since");
    let mut program = program.set_up_again();
    program.fill();
    let after = reported(&mut client);
    assert!(has(&after, written) && !has(&after, untouched), "it logs");
    client.dma_logging_stop().unwrap();
}

#[test]
fn a_session_of_the_dead_server_never_goes_on_at_the_next() {
    for state in [State::PreCopy, State::StopCopy, State::Resuming] {
        let folder = TempDir::new().unwrap();
        let (served, path, mut client) = served(&folder);
        let mut data = client.set_state(state).unwrap().expect("a session");
        if state != State::Resuming {
            assert!(matches!(data.read(&mut [0; 100]).unwrap(), SavingRead::Data(_)));
        }
        let _served = crash(served, &client, &model(), &path);
        let error = match state {
            State::Resuming => data.write_all(&[0; 100]),
            _ => data.read(&mut [0; 100]).map(drop),
        };
        assert_eq!(error.unwrap_err().errno(), Some(Errno::ENODEV), "{state}");
        assert_eq!(client.state().unwrap(), State::Error, "{state}");
        for to in [State::Running, State::Stop, State::StopCopy] {
            let error = client.set_state(to).unwrap_err().to_string();
            assert!(error.contains("has lost its state; reset the device"), "{state}: {error}");
        }
        client.reset().unwrap();
        assert_eq!(client.state().unwrap(), State::Running, "{state}");
        data.read(&mut [0; 100]).unwrap_err();
        // What works from here on is the new device.
        Program::of(client.clone(), shared()).fill();
        archive::save(&mut client, io::sink(), Form::Raw).unwrap();
    }
}

/// Crashes the server of a client once so many bytes have passed.
struct Crashing<'a> {
    after: usize,
    served: Option<Served>,
    next: Option<Served>,
    client: Client,
    path: &'a Path,
    state: &'a [u8],
}

impl<'a> Crashing<'a> {
    fn new(
        (served, client): (Served, &Client),
        after: usize,
        path: &'a Path,
        state: &'a [u8],
    ) -> Crashing<'a> {
        Crashing { after, served: Some(served), next: None, client: client.clone(), path, state }
    }

    fn pass(&mut self, bytes: usize) {
        self.after = self.after.saturating_sub(bytes);
        if self.after == 0
            && let Some(served) = self.served.take()
        {
            self.next = Some(crash(served, &self.client, &model(), self.path));
        }
    }
}

impl Write for Crashing<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.pass(data.len());
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for Crashing<'_> {
    fn read(&mut self, data: &mut [u8]) -> io::Result<usize> {
        let count = self.state.read(data)?;
        // With the end, all of it has been loaded.
        self.pass(count + 1);
        Ok(count)
    }
}

#[test]
fn a_migration_under_way_ends_with_an_error_wherever_the_server_crashes() {
    let folder = TempDir::new().unwrap();
    let (server, path, mut client) = served(&folder);
    let mut state = Vec::new();
    archive::save(&mut client, &mut state, Form::Raw).unwrap();
    let mut server = Some(server);
    for after in [1, state.len() / 2, state.len() - 1] {
        let mut output = Crashing::new((server.take().unwrap(), &client), after, &path, &[]);
        let error = archive::save(&mut client, &mut output, Form::Raw).unwrap_err();
        server = Some(output.next.expect("it has crashed"));
        assert!(error.to_string().contains("vfio-user:"), "{error}");
        client.reset().unwrap();
    }
    // Before the first byte, in the middle, and when all is loaded and the device is only to be started.
    for after in [1, state.len() / 2, state.len() + 1] {
        let mut input = Crashing::new((server.take().unwrap(), &client), after, &path, &state);
        let error = archive::restore(&mut client, &mut input, Form::Raw).unwrap_err();
        server = Some(input.next.expect("it has crashed"));
        assert!(error.to_string().contains("vfio-user:"), "{error}");
        client.reset().unwrap();
        assert_eq!(client.state().unwrap(), State::Running);
    }
    archive::restore(&mut client, state.as_slice(), Form::Raw).unwrap();
}

#[test]
fn another_device_is_refused_by_name() {
    for (other, difference) in [
        ("serial", "model: serial, state version "),
        ("legacy", "model: legacy, state version "),
        ("accel?state=4KiB", "settings \"state=4096 "),
        ("accel?features=stop-copy", "migration flags: 0x1; before: 0x7"),
        ("accel?protocol=v1", ""),
    ] {
        let folder = TempDir::new().unwrap();
        let (served, path, mut client) = served(&folder);
        drop(served);
        let other = if other == "accel?features=stop-copy" || other == "accel?protocol=v1" {
            format!("{other}&state={STATE}")
        } else {
            other.to_string()
        };
        let untouched = Served::start(&other, &path);
        wait_until(&client, |client| matches!(client.connection_status(), ConnectionStatus::Closed { .. }));
        let error = client.info().unwrap_err().to_string();
        let start = format!("the server at {} has another device (", path.display());
        assert!(error.contains(&start) && error.contains(difference), "{other}: {error}");
        assert_eq!(client.resets(), 0);
        // It is nobody's, and serves the next client.
        untouched.client().info().unwrap();
        drop(untouched);
        let _served = Served::start(&model(), &path);
        assert!(client.info().is_err(), "a client that has given up does not come back");
    }
}

#[test]
fn without_a_server_in_time_the_error_names_the_socket_and_the_time() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("socket");
    for comes in [false, true] {
        let served = Served::start(&model(), &path);
        let mut client = connect(&path, Duration::from_millis(700));
        kill(Pid::from_raw(served.id().cast_signed()), Signal::SIGKILL).unwrap();
        drop(served);
        let stopped = comes.then(|| {
            let served = Served::start("serial", &folder.path().join("other"));
            kill(Pid::from_raw(served.id().cast_signed()), Signal::SIGSTOP).unwrap();
            std::fs::rename(folder.path().join("other"), &path).unwrap();
            served
        });
        let begun = Instant::now();
        wait_until(&client, |client| matches!(client.connection_status(), ConnectionStatus::Closed { .. }));
        assert!(begun.elapsed() < LONG / 2);
        let error = client.read_region(0, 0, &mut [0; 4]).unwrap_err().to_string();
        let expected = format!("no server came back within 700ms at {}: ", path.display());
        assert!(error.contains(&expected), "{error}");
        let why = if comes { "no reply before the deadline" } else { "no server is listening" };
        assert!(error.contains(why), "{error}");
        drop(stopped);
        let _ = std::fs::remove_file(&path);
    }
}

#[test]
fn a_device_whose_resets_do_something_else_to_a_migration_is_another_one() {
    let folder = TempDir::new().unwrap();
    let (served, path, mut client) = served(&folder);
    drop(served);
    let (_served, _) = Served::with(&model(), &path, &["--reset-rule", "keeps-precopy"]).unwrap();
    wait_until(&client, |client| matches!(client.connection_status(), ConnectionStatus::Closed { .. }));
    let error = client.info().unwrap_err().to_string();
    let difference = "has another device (effect of a reset: keeps pre-copy; before: ends a migration)";
    assert!(error.contains(difference), "{error}");
}
