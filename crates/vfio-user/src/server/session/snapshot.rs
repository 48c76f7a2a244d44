//! A client between two messages, as another process needs it to continue: exported from the old server, imported by
//! the new one.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use parking_lot::MutexGuard;
use whimbrel_device::{DeviceFile, Errno, IoeventfdWrite, ResetRule};
use whimbrel_uapi::type1::DmaMapFlags;

use super::channel::{Channel, Pending};
use super::client::Client;
use super::dirty_log::{Log, logging_ranges};
use super::file_memory::Source;
use super::mappings::{Behind, Mappings};
use super::queue::{Queue, Waiting};
use super::rest::{LOOK, Rest};
use super::serving::Serving;
use crate::capabilities::{Capabilities, negotiate};
use crate::descriptor_kind::DescriptorKind;
use crate::descriptors::{Admission, DescriptorError, Descriptors};
use crate::message::Limits;
use crate::server::backend::{Backend, Shared, Turn};
use crate::server::error::ServeError;
use crate::server::foreign::{ForeignFile, ForeignThread};
use crate::server::screen::Screen;
use crate::socket::{Receiver, Sender, Unread, connection};

/// Reads a client at rest. No thread reads its sockets meanwhile.
pub(crate) struct Export<'a> {
    client: &'a Client,
    commands: MutexGuard<'a, Receiver>,
    twin: Option<MutexGuard<'a, Receiver>>,
    pending: Pending<'a>,
}

impl<'a> Export<'a> {
    pub(crate) fn of(serving: &'a Serving) -> Export<'a> {
        let client = &serving.client;
        let commands = client.channel.receiver();
        let twin = client.twin.as_ref().map(|twin| twin.receiver());
        Export { client, commands, twin, pending: client.channel.pending() }
    }

    /// Returns the command socket.
    pub(crate) fn commands(&self) -> &'a Sender {
        self.client.channel.socket()
    }

    /// Returns the socket of the server's requests, if it is a separate one.
    pub(crate) fn twin(&self) -> Option<&'a Sender> {
        self.client.twin.as_ref().map(|twin| twin.socket())
    }

    pub(crate) fn agreed(&self) -> Option<&'a Capabilities> {
        self.client.agreed.as_ref()
    }

    /// Returns the id of the server's next request.
    pub(crate) fn next_id(&self) -> u16 {
        self.client.twin.as_ref().map_or_else(|| self.pending.next_id(), |twin| twin.pending().next_id())
    }

    /// Returns each mapping of the device: first address, bytes, rights, and the memory behind it.
    pub(crate) fn mappings(&self) -> impl Iterator<Item = (u64, u64, DmaMapFlags, Option<&'a Behind>)> {
        let client = self.client;
        client.device().bus().dma().mappings().into_iter().map(|mapped| {
            let behind = client.mappings.as_ref().and_then(|mappings| mappings.behind(mapped.iova));
            (mapped.iova, mapped.size, mapped.rights, behind)
        })
    }

    /// Returns the commands that were read and not executed, in order.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = &Waiting> {
        self.pending.commands()
    }

    /// Returns the data that was read from the command socket and is not a complete message yet.
    pub(crate) fn unread(&self) -> Unread<&[u8], &[OwnedFd]> {
        self.commands.unread()
    }

    /// Returns the same of the twin socket.
    pub(crate) fn unread_of_twin(&self) -> Option<Unread<&[u8], &[OwnedFd]>> {
        self.twin.as_ref().map(|twin| twin.unread())
    }
}

/// The complete state of a client whose socket comes from another process.
pub(crate) struct Snapshot {
    pub(crate) commands: Option<Socket>,
    pub(crate) twin: Option<Socket>,
    pub(crate) agreed: Option<Capabilities>,
    /// The id of the server's next request.
    pub(crate) next_id: u16,
    pub(crate) mappings: Vec<Mapping>,
    pub(crate) ioeventfds: Vec<(IoeventfdWrite, OwnedFd)>,
    /// The log, and whether the device itself keeps it.
    pub(crate) log: Option<(Log, bool)>,
    waiting: Queue,
    /// For descriptors that must be checked again.
    foreign: Arc<ForeignThread>,
    screen: Screen,
}

/// A socket of a client.
pub(crate) struct Socket {
    pub(crate) stream: UnixStream,
    /// Data that was read from it and not processed.
    pub(crate) unread: Option<Unread<Vec<u8>, Descriptors>>,
}

/// A mapping of a client.
pub(crate) struct Mapping {
    pub(crate) iova: u64,
    pub(crate) size: u64,
    pub(crate) rights: DmaMapFlags,
    pub(crate) behind: Behind,
}

/// A snapshot that cannot be imported.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImportError {
    #[error("{0}")]
    Wrong(String),
    #[error(transparent)]
    System(#[from] std::io::Error),
}

fn wrong(what: impl Into<String>) -> ImportError {
    ImportError::Wrong(what.into())
}

impl Snapshot {
    /// Creates an empty snapshot for a backend.
    pub(crate) fn new(backend: &Backend) -> Snapshot {
        let foreign = Arc::new(ForeignThread::new(&backend.shared.foreign_threads));
        Snapshot {
            commands: None,
            twin: None,
            agreed: None,
            next_id: 0,
            mappings: Vec::new(),
            ioeventfds: Vec::new(),
            log: None,
            waiting: Queue::default(),
            screen: backend.shared.screen(&foreign),
            foreign,
        }
    }

    /// Accepts a client's descriptors, as if they had just been received from it.
    pub(crate) fn admit(&self, fds: Vec<OwnedFd>) -> Result<Descriptors, DescriptorError> {
        self.screen.admit(fds)
    }

    /// Appends a command that was read and not executed.
    pub(crate) fn wait(&mut self, command: Waiting) -> Result<(), ServeError> {
        self.waiting.import(command)
    }

    /// Returns a file that may never respond, as memory behind a mapping.
    pub(crate) fn foreign(&self, fd: OwnedFd) -> Source {
        Source::Foreign(Arc::new(ForeignFile::new(fd, self.foreign.clone())))
    }

    /// Creates the client. It still belongs to the other process ([`Serving::set_anothers`]).
    pub(crate) fn import(mut self, backend: &Backend, turn: Turn) -> Result<Serving, ImportError> {
        let shared = &backend.shared;
        if let Some(agreed) = &self.agreed {
            check_agreed(agreed, &shared.capabilities)?;
            check_reset_rule(agreed, shared.device.reset_rule())?;
        }
        let most = self.agreed.as_ref().unwrap_or(&shared.capabilities).max_data_xfer_size;
        let limits = Limits::new(most);
        let commands = self.commands.take().ok_or_else(|| wrong("no socket of the client"))?;
        commands.stream.set_read_timeout(Some(LOOK))?;
        let (mut receiver, sender) = commands.connect(limits);
        receiver.admit_by(self.screen.clone());
        let mut channel = Channel::new(receiver, sender);
        channel.resume(std::mem::take(&mut self.waiting), self.next_id);
        let twin = self.twin.take().map(|twin| {
            let (receiver, sender) = twin.connect(limits);
            let mut twin = Channel::twin(receiver, sender, &channel);
            twin.resume(Queue::default(), self.next_id);
            Arc::new(twin)
        });
        let rest = Arc::new(Rest::default());
        let mut client = Client::new(shared.clone(), channel, Some(rest), self.foreign.clone());
        // Whatever fails from here on, the connection is not to be ended.
        client.is_anothers = true;
        client.twin = twin;
        if let Some(agreed) = &self.agreed {
            let asked = client.twin.as_ref().unwrap_or(&client.channel).clone();
            client.mappings = Some(Mappings::new(shared, agreed, asked, client.foreign.clone()));
        } else if !self.mappings.is_empty() {
            return Err(wrong("mappings of a client that has not negotiated"));
        }
        client.agreed = self.agreed.take();
        if let Some(mappings) = &mut client.mappings {
            map(std::mem::take(&mut self.mappings), mappings, shared)?;
        }
        let device = &shared.device;
        for (write, eventfd) in self.ioeventfds {
            let copy = eventfd.try_clone()?;
            device
                .set_ioeventfd(write, Some(copy))
                .map_err(|errno| wrong(format!("cannot set an ioeventfd: {errno}")))?;
            client.ioeventfds.insert(write, eventfd);
        }
        if let Some((log, runs)) = self.log {
            if runs {
                start_log(device, &log).map_err(|errno| {
                    wrong(format!("cannot continue the dirty page log on the new device: {errno}"))
                })?;
            }
            client.log = Some(log);
        }
        Ok(Serving { client, turn })
    }
}

impl Socket {
    /// Creates the connection, which continues after the data that was already read.
    fn connect(self, limits: Limits) -> (Receiver, Sender) {
        let (mut receiver, sender) = connection(self.stream, limits);
        if let Some(Unread { bytes, descriptors }) = self.unread {
            receiver.resume(limits, Unread { bytes: &bytes, descriptors });
        }
        (receiver, sender)
    }
}

/// Maps the client's mappings.
fn map(list: Vec<Mapping>, mappings: &mut Mappings, shared: &Shared) -> Result<(), ImportError> {
    let mut known: BTreeSet<*const File> = BTreeSet::new();
    for Mapping { iova, size, rights, behind } in list {
        let cannot = |errno: Errno| {
            wrong(format!("cannot map {size:#x} bytes at iova {iova:#x} for the device: {errno}"))
        };
        match &behind {
            Behind::File(file, _) | Behind::FileIo(Source::Memory(file), _) => {
                if DescriptorKind::of(&**file) != DescriptorKind::Memory {
                    return Err(cannot(Errno::EINVAL));
                }
                if known.insert(Arc::as_ptr(file)) {
                    mappings.remember(file).map_err(cannot)?;
                }
            }
            Behind::FileIo(Source::Foreign(_), _) if !shared.foreign_memory => {
                return Err(cannot(Errno::EINVAL));
            }
            Behind::Client if !shared.remote_memory => return Err(cannot(Errno::EINVAL)),
            Behind::FileIo(Source::Foreign(_), _) | Behind::Client => {}
        }
        mappings.restore(iova, size, rights, behind).map_err(cannot)?;
    }
    Ok(())
}

fn start_log(device: &DeviceFile, log: &Log) -> Result<(), Errno> {
    device.dma_logging_start(&logging_ranges(log.page_size, &log.ranges)?).map(drop)
}

/// Checks that this server supports what the client has agreed on with the old one.
fn check_agreed(agreed: &Capabilities, own: &Capabilities) -> Result<(), ImportError> {
    let plain = |capabilities: &Capabilities| Capabilities {
        twin_socket: None,
        // The device's, and not a capability of the server.
        migration_reset_rule: None,
        ..capabilities.clone()
    };
    let held = negotiate(own, agreed).map(|held| plain(&held));
    if held.as_ref().is_ok_and(|held| *held == plain(agreed)) {
        return Ok(());
    }
    let why = "the new server does not support the client's negotiated capabilities";
    Err(wrong(match held {
        Ok(held) => format!("{why}: {}, supported {}", plain(agreed).to_json(), held.to_json()),
        Err(error) => format!("{why}: {error}"),
    }))
}

/// Checks that a reset does to a migration what the client was told, if it was.
fn check_reset_rule(agreed: &Capabilities, own: ResetRule) -> Result<(), ImportError> {
    match agreed.migration_reset_rule {
        Some(told) if told != own => Err(wrong(format!(
            "the client was told that a reset {}, and on the new server it {}: give both servers the same --reset-rule",
            told.text(),
            own.text()
        ))),
        _ => Ok(()),
    }
}
