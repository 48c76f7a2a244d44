//! One attempt to come back: a connection to the server that is there now, its device compared, reset, and set up as the
//! one before. The client does not use the connection yet.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use parking_lot::Mutex;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use whimbrel_protocol::State;
use whimbrel_uapi::device::DeviceInfoFlags;
use whimbrel_user::{DmaMap, Error, Migratable, UNKNOWN_HOLDER};

use super::super::connection::Connection;
use super::super::memory::{Mapped, Snapshot};
use super::super::{Client, ClientOptions, DmaMapping, cannot_connect};
use super::control::{Control, Stopped};
use super::dirty_log::RunningLog;
use super::doorbells::Doorbell;
use super::interrupts::Interrupts;
use super::kept::Migration;
use super::likeness::Likeness;
use crate::capabilities::Capabilities;

/// The reason why an attempt has failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// Another attempt may succeed.
    Again(Error),
    /// The server at the path has a device that cannot take the place of the previous one.
    Refused(String),
    Stopped,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Again(error)
    }
}

impl From<Stopped> for Failure {
    fn from(Stopped: Stopped) -> Failure {
        Failure::Stopped
    }
}

/// The previous connection's settings.
#[derive(Debug)]
pub(super) struct Past {
    memory: Snapshot,
    interrupts: Interrupts,
    doorbells: BTreeMap<u32, Vec<Doorbell>>,
    log: Option<RunningLog>,
    pub(super) migration: Migration,
}

impl Past {
    /// Copies them: the owner may still unmap memory and stop the log.
    pub(super) fn of(previous: &Mutex<Connection>) -> Past {
        let previous = previous.lock();
        let kept = previous.kept.as_ref();
        Past {
            memory: previous.memory.snapshot(),
            interrupts: kept.map(|kept| kept.interrupts.clone()).unwrap_or_default(),
            doorbells: kept.map(|kept| kept.doorbells.regions()).unwrap_or_default(),
            log: kept.and_then(|kept| kept.log.clone()),
            migration: kept.map(|kept| kept.migration.after_crash()).unwrap_or_default(),
        }
    }

    /// Returns whether the owner has changed nothing since.
    pub(super) fn is_current(&self, previous: &Connection) -> bool {
        let logs = previous.kept.as_ref().is_some_and(|kept| kept.log.is_some());
        self.memory.revision == previous.memory.revision() && self.log.is_some() == logs
    }
}

/// The client and the deadline of all attempts of a reconnection.
#[derive(Debug)]
pub(super) struct Course<'a> {
    pub(super) name: &'a str,
    pub(super) path: &'a Path,
    pub(super) options: &'a ClientOptions,
    pub(super) likeness: &'a Likeness,
    /// The process that served the device before.
    pub(super) holder: &'a str,
    pub(super) control: &'a Control,
    /// The end of all attempts.
    pub(super) deadline: Instant,
}

impl Course<'_> {
    /// Connects, and sets the device up.
    pub(super) fn attempt(&self, past: &Past) -> Result<Client, Failure> {
        let stream = connect_now(self.path).map_err(|error| cannot_connect(self.name, self.path, &error))?;
        let shut_down = stream.try_clone().map_err(|error| {
            Error::unusable(self.name, format!("cannot keep a handle to the socket: {error}"))
        })?;
        self.control.begin(shut_down)?;
        // No more than before, so that the device looks as before.
        let capabilities = Capabilities {
            migration_extensions: self.likeness.extensions,
            ..self.options.capabilities.clone()
        };
        let options = self.options.clone().capabilities(capabilities);
        let mut client = Client::open_before(Some(self.deadline), self.name.to_owned(), stream, &options)?;
        if let Some(difference) = self.likeness.difference(&Likeness::of(&mut client)?) {
            let why = format!("the server at {} has another device ({difference})", self.path.display());
            return Err(Failure::Refused(why));
        }
        self.reset(&mut client, past)?;
        map_as(&mut client, &past.memory)?;
        past.interrupts.set_up(&mut client)?;
        connect_doorbells(&mut client, &past.doorbells)?;
        if let Some(log) = &past.log {
            start_log(&mut client, log)?;
        }
        Ok(client)
    }

    /// Brings the device to what its owner is told: it was reset. After a migration that was lost it must not run.
    fn reset(&self, client: &mut Client, past: &Past) -> Result<(), Failure> {
        let holder = client.current.holder();
        if self.likeness.flags.contains(DeviceInfoFlags::RESET) {
            client.reset()?;
        } else if holder == self.holder && holder != UNKNOWN_HOLDER {
            return Err(Failure::Refused(format!(
                "the same process still serves the device at {}, and cannot reset it: its state is unknown; restart \
                 the server",
                self.path.display()
            )));
        }
        if past.migration == Migration::Lost && !self.likeness.migration_flags.is_empty() {
            client.go_to(State::Stop)?;
        }
        Ok(())
    }
}

/// Makes up for what the owner has changed since `past`.
pub(super) fn follow(client: &mut Client, past: &Past) -> Result<(), Error> {
    map_as(client, &past.memory)?;
    let logs = client.connection().kept.as_ref().is_some_and(|kept| kept.log.is_some());
    if logs && past.log.is_none() {
        client.dma_logging_stop()?;
    }
    Ok(())
}

/// Connects without waiting for a server that does not accept: a stop could not end that.
fn connect_now(path: &Path) -> std::io::Result<std::os::unix::net::UnixStream> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &address).map_err(|error| match error {
        rustix::io::Errno::AGAIN => rustix::io::Errno::TIMEDOUT,
        other => other,
    })?;
    let stream = std::os::unix::net::UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// Maps what is mapped in the snapshot, and unmaps all else.
fn map_as(client: &mut Client, wanted: &Snapshot) -> Result<(), Error> {
    let mapped = client.connection().memory.snapshot();
    for Mapped { iova, region, .. } in mapped.without(wanted) {
        client.unmap_dma(iova, region.size())?;
    }
    let missing = wanted.without(&mapped).into_iter();
    client.map_dma_all(
        missing.map(|mapped| DmaMapping::new(mapped.iova, mapped.rights, mapped.region)).collect(),
    )
}

fn connect_doorbells(client: &mut Client, previous: &BTreeMap<u32, Vec<Doorbell>>) -> Result<(), Failure> {
    for (&region, doorbells) in previous.iter().filter(|(_, doorbells)| !doorbells.is_empty()) {
        client.region_io_fds(region)?;
        let connection = &mut *client.connection();
        let Some(kept) = &mut connection.kept else { continue };
        kept.doorbells.take_over(region, doorbells.clone()).map_err(|offset| {
            Failure::Refused(format!(
                "the server has another device (without the doorbell at {offset:#x} of region {region})"
            ))
        })?;
    }
    let connection = &mut *client.connection();
    let Some(kept) = &mut connection.kept else { return Ok(()) };
    kept.doorbells.start_relay().map_err(|error| {
        Failure::Again(Error::unusable(
            connection.name(),
            format!("cannot start a thread for the doorbells: {error}"),
        ))
    })
}

fn start_log(client: &mut Client, log: &RunningLog) -> Result<(), Failure> {
    let page_size = client.dma_logging_start(log.asked, &log.ranges)?;
    if page_size != log.page_size {
        return Err(Failure::Refused(format!(
            "the server has another device (page size of the dirty log: {page_size}; before: {})",
            log.page_size
        )));
    }
    if let Some(log) = client.connection().kept.as_mut().and_then(|kept| kept.log.as_mut()) {
        log.all_is_dirty();
    }
    Ok(())
}
