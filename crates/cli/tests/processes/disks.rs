//! Two servers of one disk, each in a process of its own, with the same image: migrations that succeed, fail, are cancelled or
//! lose a process at any moment. At most one of the devices owns the image, and whoever is left can take it.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use fastrand::Rng;
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::disk::{Disk, IMAGE, Suspended, shared};
use crate::host::{Host, WORKS};
use crate::migration::{ENDLESS, PATIENT, listening, migrate, receive, send_within};
use crate::seed::trials;
use crate::started::Started;
use crate::support::{Run, argument, command, whimbrel};

/// An image for the servers of both hosts.
struct Image {
    folder: TempDir,
}

impl Image {
    fn new() -> Image {
        let folder = TempDir::new().unwrap();
        std::fs::File::create(folder.path().join("disk.img")).unwrap().set_len(IMAGE).unwrap();
        Image { folder }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("disk.img")
    }

    /// A host whose only device is the disk.
    fn host(&self) -> Host {
        self.host_with(&[])
    }

    fn host_with(&self, options: &[&str]) -> Host {
        let serve = |model: &str, socket: &Path| {
            let mut command =
                command(["serve", model, "--image", &argument(&self.path()), "--socket", &argument(socket)]);
            command.args(options);
            command
        };
        Host::try_with(&["nvme"], serve).unwrap()
    }
}

fn socket(host: &Host) -> PathBuf {
    host.targets()[0].strip_prefix("vfio-user:").unwrap().into()
}

/// `whimbrel state` for the disk of a host.
fn request(host: &Host, state: &str) -> Run {
    whimbrel(["state", &host.targets()[0], state])
}

/// A program that has written to the disk of a host, and has left it with its state.
fn used(host: &Host, shadow: Vec<u8>) -> Suspended {
    let mut disk = Disk::start(&socket(host), shared(), shadow);
    (0..3).for_each(|_| disk.work());
    disk.suspend()
}

/// Goes on with the disk: everything that it contains is right, and more can be written.
fn goes_on(host: &Host, left: Suspended) -> Suspended {
    let mut disk = Disk::resume(&socket(host), left);
    disk.check();
    (0..3).for_each(|_| disk.work());
    disk.suspend()
}

#[test]
fn a_disk_goes_there_and_back_with_its_program_and_only_one_server_owns_the_image() {
    let image = Image::new();
    let hosts = [image.host(), image.host()];
    let mut left = used(&hosts[0], vec![0; IMAGE as usize]);
    for turn in 0..4 {
        let [here, there] = [turn % 2, 1 - turn % 2].map(|index| &hosts[index]);
        migrate(here, there);
        request(here, "RUNNING").failed().says(&["EBUSY"]);
        assert_eq!(here.states(), ["STOP"], "turn {turn}");
        left = goes_on(there, left);
    }
}

/// What becomes of a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blow {
    /// The process of this number gets this signal: the sender, the receiver.
    Command(usize, Signal),
    /// The server of this host is killed.
    Server(usize),
    /// The destination's device refuses its state.
    Refused,
}

const BLOWS: [Blow; 7] = [
    Blow::Command(0, Signal::SIGKILL),
    Blow::Command(1, Signal::SIGKILL),
    Blow::Command(0, Signal::SIGTERM),
    Blow::Command(1, Signal::SIGTERM),
    Blow::Server(0),
    Blow::Server(1),
    Blow::Refused,
];

/// Migrates, with this blow after a time. Returns both ends.
fn migrate_with([source, destination]: [&Host; 2], blow: Blow, moment: Duration, rng: &mut Rng) -> [Run; 2] {
    // Some are in pre-copy until they are interrupted.
    let is_endless = rng.bool() && blow != Blow::Refused;
    let limit: &[&str] = if is_endless { &ENDLESS } else { &[PATIENT] };
    let (mut receiver, address) = listening(receive(destination, &destination.new_address()));
    let mut command: Command = send_within(source, &address, limit);
    command.arg("--timeout=20");
    let mut sender = Started::plain(command);
    if is_endless {
        // Otherwise it could end by itself before there is a migration to interrupt.
        sender.wait_for("round done").unwrap_or_else(|| panic!("{}", sender.told()));
    }
    std::thread::sleep(moment);
    match blow {
        Blow::Command(0, signal) => sender.signal(signal),
        Blow::Command(_, signal) => receiver.signal(signal),
        Blow::Server(0) => source.signal(0, Signal::SIGKILL),
        Blow::Server(_) => destination.signal(0, Signal::SIGKILL),
        Blow::Refused => {}
    }
    let sent = sender.end();
    [sent, receiver.end_or_cancel()]
}

/// The number of the host whose server owns the image, by the kernel's list of locks. No server that owns it stands still.
#[track_caller]
fn owner(image: &Image, hosts: [&Host; 2], why: &str) -> Option<usize> {
    let inode = format!(":{}", image.path().metadata().unwrap().ino());
    let locks = std::fs::read_to_string("/proc/locks").unwrap();
    let ids: Vec<&str> = locks
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|lock| lock.contains(&"FLOCK") && !lock.contains(&"->"))
        .filter(|lock| lock.iter().any(|field| field.ends_with(&inode)))
        .filter_map(|lock| lock.iter().position(|field| *field == "WRITE").map(|at| lock[at + 1]))
        .collect();
    assert!(ids.len() <= 1, "{why}: two owners: {locks}");
    let owner = hosts.iter().position(|host| ids == [host.devices[0].id().to_string()]);
    assert_eq!(owner.is_some(), !ids.is_empty(), "{why}: {locks}");
    if let Some(owner) = owner {
        let states = hosts[owner].states();
        assert!(WORKS.contains(&states[0].as_str()), "{why}: {states:?} with the image");
    }
    owner
}

/// Brings the disk of a host to RUNNING from a new beginning, as soon as nobody else has its image.
#[track_caller]
fn take_over_image(host: &Host, why: &str) {
    whimbrel(["reset", &host.targets()[0]]).succeeded();
    request(host, "STOP").succeeded();
    let deadline = Instant::now() + Duration::from_mins(1);
    loop {
        let taken = request(host, "RUNNING");
        if taken.status == 0 {
            return;
        }
        assert!(taken.stderr.contains("EBUSY") && Instant::now() < deadline, "{why}: {}", taken.stderr);
    }
}

/// A new program finds what an earlier one has flushed, and works with the disk.
fn use_again(host: &Host, shadow: Vec<u8>) {
    let mut disk = Disk::start(&socket(host), shared(), shadow);
    disk.check();
    (0..3).for_each(|_| disk.work());
    disk.check();
}

#[test]
fn whatever_becomes_of_a_migration_the_image_has_one_owner_and_goes_to_who_is_left() {
    let life = {
        let image = Image::new();
        let hosts = [image.host(), image.host()];
        used(&hosts[0], vec![0; IMAGE as usize]);
        let started = Instant::now();
        migrate(&hosts[0], &hosts[1]);
        started.elapsed()
    };
    // Each of the blows at least once.
    trials("whatever_becomes_of_a_migration", BLOWS.len() as u64, 140, |seed, rng| {
        let blow = BLOWS[seed as usize % BLOWS.len()];
        let image = Image::new();
        let refuses = ["--fault", "write after 32: ENOSPC"];
        let options: &[&str] = if blow == Blow::Refused { &refuses } else { &[] };
        let (source, destination) = (image.host(), image.host_with(options));
        let hosts = [&source, &destination];
        let shadow = used(&source, vec![0; IMAGE as usize]).shadow;
        assert_eq!(owner(&image, hosts, "before the migration"), Some(0));
        let moment = life.mul_f64(rng.f64());
        let [sent, taken] = migrate_with(hosts, blow, moment, rng);
        let why = format!(
            "{blow:?} after {moment:?}; send: {} {}; receive: {} {}",
            sent.status, sent.stderr, taken.status, taken.stderr
        );
        if let Blow::Server(dead) = blow {
            let alive = hosts[1 - dead];
            take_over_image(alive, &why);
            return use_again(alive, shadow);
        }
        // Without an owner, neither device runs: then an operator decides, here for the source.
        let has = owner(&image, hosts, &why).unwrap_or_else(|| {
            take_over_image(&source, &why);
            0
        });
        let has_not = hosts[1 - has];
        whimbrel(["reset", &has_not.targets()[0]]).succeeded();
        request(has_not, "STOP").succeeded();
        request(has_not, "RUNNING").failed().says(&["EBUSY"]);
        assert_eq!(owner(&image, hosts, &why), Some(has), "{why}");
        // And again, once the other one has let go.
        whimbrel(["reset", &hosts[has].targets()[0]]).succeeded();
        request(has_not, "RUNNING").succeeded();
        assert_eq!(owner(&image, hosts, &why), Some(1 - has), "{why}");
        use_again(has_not, shadow);
    });
}
