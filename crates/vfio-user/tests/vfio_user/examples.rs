//! The examples do what they say.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};
use rustix::fs::{MemfdFlags, memfd_create};
use vm_memory::{FileOffset, MmapRegion};
use whimbrel_protocol::dirty::{DirtyReport, IovaRange};
use whimbrel_uapi::type1::DmaMapFlags;
use whimbrel_user::{Device, DmaMap, DmaRegion, Errno, Migratable, SavingRead, State};
use whimbrel_vfio_user::{Client, ClientOptions};

/// An example as cargo has built it, beside this test.
fn example(name: &str) -> Command {
    let test = std::env::current_exe().unwrap();
    let built = test.parent().and_then(Path::parent).unwrap().join("examples").join(name);
    assert!(built.exists(), "{} is not there: build it with cargo build --examples", built.display());
    Command::new(built)
}

fn told(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let (told, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{told}{error}");
    told.into_owned()
}

#[test]
fn a_device_in_the_same_process_is_driven_and_moved() {
    let driven = told(&mut example("drive"));
    assert!(driven.contains("job 7 is done, and the checksum is 0xcbf43926"), "{driven}");
    let moved = told(&mut example("migrate"));
    assert!(moved.ends_with("here: STOP, there: RUNNING\n"), "{moved}");
}

#[test]
fn a_child_serves_until_its_client_leaves() {
    let told = told(&mut example("child"));
    assert!(told.contains("serves 9 regions, RUNNING"), "{told}");
    assert!(told.ends_with("and has ended: exit status: 0\n"), "{told}");
}

#[test]
fn a_doorbell_is_rung_without_a_message() {
    let told = told(&mut example("doorbells"));
    assert!(told.contains("4 bytes at 0x80, value Some(1)\nthe card was kicked"), "{told}");
}

#[test]
fn devices_at_sockets_are_driven_and_moved() {
    let folder = tempfile::tempdir().unwrap();
    let paths: [PathBuf; 2] = ["source", "destination"].map(|name| folder.path().join(name));
    let mut servers =
        paths.each_ref().map(|path| example("serve_model").arg("accel").arg(path).spawn().unwrap());
    wait_for_servers(&paths);
    let [source, destination] = &paths;
    let driven = told(example("drive").arg(source));
    let moved = told(example("migrate").args([source, destination]));
    for server in &mut servers {
        server.kill().unwrap();
        server.wait().unwrap();
    }
    assert!(driven.contains("job 7 is done"), "{driven}");
    assert!(moved.ends_with("here: STOP, there: RUNNING\n"), "{moved}");
}

/// A process that ends with this.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_device_survives_the_death_of_its_server() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let serve = || {
        let server = Running(example("serve_model").arg("accel").arg(&path).spawn().unwrap());
        wait_for_servers(std::slice::from_ref(&path));
        server
    };
    let server = serve();
    let mut owner = Running(example("reconnect").arg(&path).stdout(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(owner.0.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert_eq!(lines.next().unwrap(), "the device is set up");
    drop(server);
    let _server = serve();
    let told: Vec<String> = lines.collect();
    assert!(owner.0.wait().unwrap().success(), "{told:?}");
    let [.., reset, again] = told.as_slice() else { panic!("{told:?}") };
    assert_eq!(reset, "the device was reset: its queue has 0 entries");
    assert_eq!(again, "the device is set up again: its queue has 16 entries");
}

#[test]
fn two_devices_are_served_by_one_thread() {
    let told = told(&mut example("event_loop"));
    assert_eq!(told.matches("9 regions, RUNNING").count(), 2, "{told}");
    assert_eq!(told.matches("1 clients at ").count(), 2, "{told}");
}

/// Waits until a server listens at each socket.
fn wait_for_servers(paths: &[PathBuf]) {
    let deadline = Instant::now() + Duration::from_mins(1);
    while !paths.iter().all(|path| is_listening(path)) {
        assert!(Instant::now() < deadline, "the servers do not serve");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Returns whether a server listens at a socket, whose file may be a dead server's. Nothing is connected to it.
fn is_listening(path: &Path) -> bool {
    // The flag __SO_ACCEPTCON of include/linux/net.h, in the fourth column.
    const LISTENS: &str = "00010000";
    let sockets = std::fs::read_to_string("/proc/net/unix").unwrap();
    // It was bound under a name of its own.
    let beside = path.with_file_name(format!(".{}.", path.file_name().unwrap().to_str().unwrap()));
    let beside = beside.to_str().unwrap();
    let is_bound = sockets.lines().any(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        columns.last().is_some_and(|last| last.starts_with(beside)) && columns.get(3) == Some(&LISTENS)
    });
    is_bound && path.exists()
}

/// Two servers of the guide's first driver, which end with this.
struct FirstDrivers(Vec<Child>);

impl FirstDrivers {
    fn start(paths: &[PathBuf]) -> FirstDrivers {
        let servers = FirstDrivers(
            paths.iter().map(|path| example("first_driver").arg(path).spawn().unwrap()).collect(),
        );
        wait_for_servers(paths);
        servers
    }
}

impl Drop for FirstDrivers {
    fn drop(&mut self) {
        for server in &mut self.0 {
            // One that has ended has failed its test already.
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

/// A guest's memory at [`IOVA`], and the interrupt of the card that reaches it.
struct Guest {
    client: Client,
    memory: File,
    interrupt: EventFd,
}

const IOVA: u64 = 0x10_0000;
const MEMORY: u64 = 0x8000;

impl Guest {
    fn new(path: &Path) -> Guest {
        let mut client = Client::connect(path, &ClientOptions::default()).unwrap();
        let memory = File::from(memfd_create("guest", MemfdFlags::CLOEXEC).unwrap());
        memory.set_len(MEMORY).unwrap();
        let file = FileOffset::new(memory.try_clone().unwrap(), 0);
        let region = Arc::new(MmapRegion::<()>::from_file(file, MEMORY as usize).unwrap());
        client.map_dma(IOVA, DmaMapFlags::READ | DmaMapFlags::WRITE, DmaRegion::from(region)).unwrap();
        let interrupt = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
        client.set_irq_triggers(2, 0, &[Some(interrupt.as_fd())]).unwrap();
        Guest { client, memory, interrupt }
    }

    /// As a guest's driver does it: memory space, bus master, and the one vector of MSI-X.
    fn probe(&mut self) {
        self.client.write_region(7, 0x04, &[0x06, 0]).unwrap();
        self.client.write_region(7, 0x42, &[0, 0x80]).unwrap();
        self.client.write_region(2, 0x0c, &[0; 4]).unwrap();
    }

    fn first_page(&self, offset: u64) -> [u8; 4096] {
        let mut page = [0; 4096];
        self.memory.read_exact_at(&mut page, offset).unwrap();
        page
    }

    /// Has the card copy its first page to memory. Its interrupt is sent before the write is answered.
    fn copy(&mut self, offset: u64) {
        self.client.write_region(1, 0, &(IOVA + offset).to_le_bytes()).unwrap();
    }

    fn dirty(&mut self) -> u64 {
        let mut words = [0];
        let mut report = DirtyReport::new(IOVA, MEMORY, 4096, &mut words).unwrap();
        self.client.dma_logging_report(&mut report).unwrap();
        words[0]
    }

    fn own_memory(&mut self) -> Vec<u8> {
        let mut memory = vec![0; 0x10000];
        self.client.read_region(0, 0, &mut memory).unwrap();
        memory
    }
}

#[test]
fn the_guide_s_first_driver_interrupts_logs_its_writes_and_moves_while_it_works() {
    let folder = tempfile::tempdir().unwrap();
    let paths: [PathBuf; 2] = ["here", "there"].map(|name| folder.path().join(name));
    let _servers = FirstDrivers::start(&paths);
    let [mut here, mut there] = paths.each_ref().map(|path| Guest::new(path));

    let refused = here.client.write_region(1, 0, &IOVA.to_le_bytes()).unwrap_err();
    assert_eq!(refused.errno(), Some(Errno::EIO), "no BAR answers before memory space is on");
    here.probe();
    here.client.write_region(0, 0, b"first").unwrap();
    here.client.dma_logging_start(4096, &[IovaRange::new(IOVA, MEMORY).unwrap()]).unwrap();
    here.copy(0x3000);
    assert!(here.interrupt.read().is_ok() && here.first_page(0x3000).starts_with(b"first"));
    assert_eq!((here.dirty(), here.dirty()), (1 << 3, 0), "page 3 was written, and is told once");

    // The vector is masked, and a message waits when the card moves.
    here.client.write_region(2, 0x0c, &[1, 0, 0, 0]).unwrap();
    here.copy(0);
    assert!(here.interrupt.read().is_err(), "masked");

    let mut saving = here.client.set_state(State::PreCopy).unwrap().unwrap();
    let mut resuming = there.client.set_state(State::Resuming).unwrap().unwrap();
    // No record ends where a read does.
    let mut buffer = [0; 100];
    let mut pass = |saving: &mut whimbrel_user::DataFile| {
        let mut bytes = 0;
        while let SavingRead::Data(count) = saving.read(&mut buffer).unwrap() {
            resuming.write_all(&buffer[..count]).unwrap();
            bytes += count as u64;
        }
        bytes
    };
    let record = 4 + 4096;
    assert_eq!(saving.precopy_info().unwrap().bytes.total(), 16 * record);
    assert_eq!(pass(&mut saving), 16 * record);
    here.client.write_region(0, 4094, b"while it moves").unwrap();
    assert_eq!(saving.precopy_info().unwrap().bytes.total(), 2 * record, "two pages have changed");
    assert_eq!(pass(&mut saving), 2 * record);
    here.client.set_state(State::StopCopy).unwrap();
    let refused = here.client.write_region(0, 0, b"late").unwrap_err();
    assert_eq!(refused.errno(), Some(Errno::EBUSY), "it has stopped");
    assert!(pass(&mut saving) < record, "the function alone is left");
    there.client.set_state(State::Running).unwrap();

    assert!(there.own_memory() == here.own_memory());
    assert!(there.interrupt.read().is_err(), "still masked");
    there.client.write_region(2, 0x0c, &[0; 4]).unwrap();
    assert!(there.interrupt.read().is_ok(), "the message that waited has moved too");
    there.copy(0x1000);
    assert!(there.interrupt.read().is_ok() && there.first_page(0x1000).ends_with(b"wh"));
}

#[test]
fn the_guide_s_first_driver_takes_no_state_that_is_not_whole() {
    let folder = tempfile::tempdir().unwrap();
    let paths: [PathBuf; 2] = ["here", "there"].map(|name| folder.path().join(name));
    let _servers = FirstDrivers::start(&paths);
    let [mut here, mut there] = paths.each_ref().map(|path| Guest::new(path));
    let mut stream = Vec::new();
    let mut saving = here.client.set_state(State::StopCopy).unwrap().unwrap();
    let mut buffer = [0; 4096];
    while let SavingRead::Data(count) = saving.read(&mut buffer).unwrap() {
        stream.extend(&buffer[..count]);
    }
    let record = 4 + 4096;
    let beyond = [&stream[..], &[0]].concat();
    let unknown = [&[17, 0, 0, 0][..], &stream[4..]].concat();
    let cases: [(&str, &[u8], Option<Errno>); 5] = [
        ("a page is missing", &stream[record..], Some(Errno::EINVAL)),
        ("a page that the card does not have", &unknown, Some(Errno::EINVAL)),
        ("data past the end", &beyond, Some(Errno::ENOMEM)),
        ("the end is missing", &stream[..16 * record], None),
        ("nothing", &[], None),
    ];
    for (case, bytes, refused) in cases {
        let mut resuming = there.client.set_state(State::Resuming).unwrap().unwrap();
        let written = resuming.write_all(bytes);
        assert_eq!(written.err().map(|error| error.errno()), refused.map(Some), "{case}");
        let ended = there.client.set_state(State::Stop);
        // Past its end the state is whole: only the write is refused.
        assert_eq!(ended.is_ok(), refused == Some(Errno::ENOMEM), "{case}");
        there.client.reset().unwrap();
    }
    let mut resuming = there.client.set_state(State::Resuming).unwrap().unwrap();
    resuming.write_all(&stream).unwrap();
    there.client.set_state(State::Running).unwrap();
}

#[test]
fn the_guide_shows_the_first_driver_as_it_is_in_at_most_150_lines() {
    let read =
        |path: &str| std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
    let (guide, driver) = (read("../../docs/guide.md"), read("examples/first_driver.rs"));
    assert!(guide.contains(&format!("```rust\n{driver}```\n")), "the guide shows another text");
    assert!(driver.lines().count() <= 150);
}
