//! The author's hooks, as the program implements them: the probe of the registers, and writes to memory.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use whimbrel_protocol::Errno;
use whimbrel_user::{Device, DmaRegion, Error, Result};

use super::codec::Request;
use super::complaint::Complaint;
use super::connection::{Connection, Failure, Reply, WeakConnection};
use super::device::holder;
use crate::hooks::{DmaWriter, RegisterProbe};

/// The hooks of all processes of a program.
#[derive(Clone, Default)]
pub(super) struct Hooks {
    running: Arc<Mutex<Vec<WeakConnection>>>,
    has_probe: Arc<AtomicBool>,
    has_writer: Arc<AtomicBool>,
}

impl Hooks {
    /// Takes a process that has just been started.
    pub(super) fn opened(&self, connection: &Connection) {
        let implements = |request| {
            let asked = connection.ask_quietly(&request);
            !matches!(asked, Err(Failure::Complaint(Complaint::Unimplemented(_))))
        };
        self.has_probe.store(implements(Request::Look), Ordering::Relaxed);
        self.has_writer.store(implements(Request::DmaWrite { pages: &[] }), Ordering::Relaxed);
        let mut running = self.running.lock();
        running.retain(|connection| !connection.has_ended());
        running.push(connection.downgrade());
    }

    /// Returns whether the last process has a probe.
    pub(super) fn has_probe(&self) -> bool {
        self.has_probe.load(Ordering::Relaxed)
    }

    /// Returns whether the last process can be made to write to memory.
    pub(super) fn has_writer(&self) -> bool {
        self.has_writer.load(Ordering::Relaxed)
    }

    /// Returns the connection of a device.
    fn connection(&self, device: &dyn Device) -> Option<Connection> {
        let wanted = device.holder();
        let running = self.running.lock();
        let found = running.iter().find(|connection| Some(holder(connection.id())) == wanted);
        found.and_then(WeakConnection::upgrade)
    }
}

/// Routes the hooks of a device to its own program, out of several.
pub(super) struct OwnHooks {
    programs: Vec<Hooks>,
    /// The pages that the device made ready last uses for itself.
    own_pages: AtomicU64,
}

impl OwnHooks {
    pub(super) fn new(programs: Vec<Hooks>) -> OwnHooks {
        OwnHooks { programs, own_pages: AtomicU64::new(0) }
    }

    fn ask(
        &self,
        device: &dyn Device,
        what: &'static str,
        request: &Request<'_>,
    ) -> Result<(Connection, Reply)> {
        let found = self.programs.iter().find_map(|hooks| hooks.connection(device));
        let connection = found.ok_or_else(|| {
            Error::unusable(device.name(), format!("its program has ended, and cannot answer '{what}'"))
        })?;
        let reply = connection.ask(request).map_err(|failure| match failure {
            // Without an errno: none is an answer of the device.
            Failure::Errno(errno) => {
                Error::unusable(device.name(), format!("its hook '{what}' failed: {errno:?}"))
            }
            failure @ Failure::Complaint(_) => failure.of(device.name(), what),
        })?;
        Ok((connection, reply))
    }
}

impl RegisterProbe for OwnHooks {
    fn change(&self, device: &mut dyn Device, seed: u64) -> Result<()> {
        self.ask(device, "change", &Request::Change { seed }).map(drop)
    }

    fn look(&self, device: &mut dyn Device) -> Result<Vec<u8>> {
        self.ask(device, "look", &Request::Look).map(|(_, reply)| reply.bytes)
    }
}

impl DmaWriter for OwnHooks {
    fn prepare(&self, device: &mut dyn Device, iova: u64, memory: &DmaRegion) -> Result<()> {
        const MAP: &str = "map";
        let Some(file) = memory.file() else {
            return Err(Error::request(device.name(), MAP, Errno::EINVAL));
        };
        let path = format!("/proc/{}/fd/{}", std::process::id(), file.file().as_raw_fd());
        let (length, offset) = (memory.size(), file.start());
        let (connection, reply) =
            self.ask(device, MAP, &Request::Map { iova, length, offset, path: &path })?;
        let own = connection.number(&reply, 0).map_err(|failure| failure.of(device.name(), MAP))?;
        self.own_pages.store(own, Ordering::Relaxed);
        Ok(())
    }

    fn write(&self, device: &mut dyn Device, pages: &[u64]) -> Result<()> {
        self.ask(device, "dma-write", &Request::DmaWrite { pages }).map(drop)
    }

    fn own_pages(&self) -> u64 {
        self.own_pages.load(Ordering::Relaxed)
    }
}
