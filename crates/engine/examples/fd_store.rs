//! Devices that outlive their VMM, because another process keeps their descriptors, as systemd does for a service. The VMM dies
//! in the middle of a migration; the one after it gets the descriptors again, and settles by the journals where the devices
//! are.
//!
//! ```text
//! cargo run --example fd_store -- /dev/vfio/devices/vfio0 /dev/vfio/devices/vfio1
//! ```
//!
//! Source and destination are two devices of a kind on one host here. `fd_store` keeps them, and starts itself again as the
//! VMMs: each finds its device on stdin.

use std::error::Error;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant, SystemTime};

use whimbrel_engine::channel::Stream;
use whimbrel_engine::{Destination, Journal, Phase, Progress, Resolve, Source};
use whimbrel_protocol::handover::JournalArbiter;
use whimbrel_user::kernel::{Adopted, Cdev};
use whimbrel_user::{Migratable, State};

type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;

const USAGE: &str = "usage: fd_store SOURCE DESTINATION, two files in /dev/vfio/devices";

/// The time the source waits until the destination listens.
const PATIENCE: Duration = Duration::from_secs(10);

fn main() -> Result {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        [source, destination] => store(source, destination),
        ["vmm", holder, folder, role] => vmm(holder, Path::new(folder), role),
        _ => Err(USAGE.into()),
    }
}

/// The holder of the devices.
struct Store {
    holder: String,
    folder: PathBuf,
}

impl Store {
    /// Starts a VMM, with its device on stdin.
    fn start(&self, role: &str, device: &Cdev) -> Result<Child> {
        let mut vmm = Command::new(std::env::current_exe()?);
        vmm.args(["vmm", &self.holder]).arg(&self.folder).arg(role);
        Ok(vmm.stdin(device.as_fd().try_clone_to_owned()?).spawn()?)
    }

    fn run(&self, role: &str, device: &Cdev) -> Result<ExitStatus> {
        Ok(self.start(role, device)?.wait()?)
    }
}

fn store(source: &str, destination: &str) -> Result {
    let (mut source, destination) = (Cdev::open(source)?, Cdev::open(destination)?);
    let id = std::process::id();
    let folder = std::env::temp_dir().join(format!("fd_store-{id}"));
    std::fs::create_dir(&folder)?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    let store = Store { holder: format!("fd_store, process {id}, started {}", now.as_nanos()), folder };

    let mut receiver = store.start("receive", &destination)?;
    let died = store.run("send", &source)?;
    println!("the VMM at the source died: {died}; its device is in {}", source.state()?);
    if died.signal().is_none() {
        receiver.kill()?;
    }
    receiver.wait()?;

    for (role, device) in [("settle-destination", &destination), ("settle-source", &source)] {
        let settled = store.run(role, device)?;
        if !settled.success() {
            return Err(format!("{role}: {settled}").into());
        }
    }
    std::fs::remove_dir_all(&store.folder)?;
    match source.state()? {
        State::Running => println!("the device runs at the source"),
        state => return Err(format!("the device at the source is in {state}").into()),
    }
    Ok(())
}

fn vmm(holder: &str, folder: &Path, role: &str) -> Result {
    let device = Adopted::duplicate("the device", std::io::stdin().as_fd())?.with_holder(holder);
    let devices: Vec<Box<dyn Migratable>> = vec![Box::new(device)];
    match role {
        "receive" => receive(devices, folder),
        "send" => send(devices, folder),
        "settle-source" => settle(devices, folder, "source", "destination"),
        "settle-destination" => settle(devices, folder, "destination", "source"),
        _ => Err(USAGE.into()),
    }
}

fn receive(devices: Vec<Box<dyn Migratable>>, folder: &Path) -> Result {
    let (socket, _) = UnixListener::bind(folder.join("socket"))?.accept()?;
    let journal = Journal::open(folder.join("destination"), "the source")?;
    match Destination::new(devices).journal(journal).receive(Stream::from(socket)).result {
        Ok(_) => println!("the device runs at the destination"),
        Err(error) => println!("nothing arrived at the destination: {error}"),
    }
    Ok(())
}

fn send(devices: Vec<Box<dyn Migratable>>, folder: &Path) -> Result {
    let deadline = Instant::now() + PATIENCE;
    let socket = loop {
        match UnixStream::connect(folder.join("socket")) {
            Ok(socket) => break socket,
            Err(error) if Instant::now() >= deadline => return Err(error.into()),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    let journal = Journal::open(folder.join("source"), "the destination")?;
    // Once it is stopped, and may be handed over.
    let dies = |progress: &Progress| {
        if progress.phase == Phase::Switchover && progress.done > 0 {
            std::process::abort();
        }
    };
    let sent = Source::new(devices).journal(journal).observer(dies).send(Stream::from(socket));
    Err(format!("the VMM lives on: {:?}", sent.result.map(|_| ())).into())
}

/// Settles a side by its own journal, its device, and the journal of the other side.
fn settle(devices: Vec<Box<dyn Migratable>>, folder: &Path, side: &str, other: &str) -> Result {
    let journal = Journal::open_existing(folder.join(side))?;
    if journal.open_question().is_none() && journal.unrecorded().is_none() {
        println!("{side}: the journal knows the outcome");
        return Ok(());
    }
    let resolve = Resolve::look(journal, devices.into_iter().map(Some).collect())?;
    println!("{side}: {}", resolve.judgement());
    let migration = resolve.history().migration;
    let mut arbiter = JournalArbiter::new();
    for record in Journal::read(&folder.join(other))? {
        record
            .entry()
            .filter(|_| record.migration() == migration)
            .into_iter()
            .for_each(|entry| arbiter.read(entry));
    }
    match resolve.settle(&mut arbiter).result? {
        Some(outcome) => println!("{side}: {outcome}"),
        None => return Err(format!("{side}: not decided").into()),
    }
    Ok(())
}
