//! The author's probe of the registers, as the program implements it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use whimbrel_user::{Device, Error, Result};

use super::codec::Request;
use super::complaint::Complaint;
use super::connection::{Connection, Failure, WeakConnection};
use super::device::holder;
use crate::hooks::RegisterProbe;

/// The probe of all processes of a program.
#[derive(Clone, Default)]
pub(super) struct Probe {
    running: Arc<Mutex<Vec<WeakConnection>>>,
    is_implemented: Arc<AtomicBool>,
}

impl Probe {
    /// Takes a process that has just been started.
    pub(super) fn opened(&self, connection: &Connection) {
        let looked = connection.ask_quietly(&Request::Look);
        let lacks = matches!(looked, Err(Failure::Complaint(Complaint::Unimplemented(_))));
        self.is_implemented.store(!lacks, Ordering::Relaxed);
        let mut running = self.running.lock();
        running.retain(|connection| !connection.has_ended());
        running.push(connection.downgrade());
    }

    /// Returns whether the last process has a probe.
    pub(super) fn is_implemented(&self) -> bool {
        self.is_implemented.load(Ordering::Relaxed)
    }

    /// Returns the connection of a device.
    fn connection(&self, device: &dyn Device) -> Option<Connection> {
        let wanted = device.holder();
        let running = self.running.lock();
        let found = running.iter().find(|connection| Some(holder(connection.id())) == wanted);
        found.and_then(WeakConnection::upgrade)
    }
}

/// The probe of several programs: that of the device's own.
pub(super) struct Probes(pub(super) Vec<Probe>);

impl Probes {
    fn connection(&self, device: &dyn Device) -> Result<Connection> {
        let found = self.0.iter().find_map(|probe| probe.connection(device));
        found.ok_or_else(|| {
            Error::unusable(device.name(), "its program has ended, and cannot show its registers")
        })
    }
}

impl RegisterProbe for Probes {
    fn change(&self, device: &mut dyn Device, seed: u64) -> Result<()> {
        let changed = self.connection(device)?.ask(&Request::Change { seed });
        changed.map(drop).map_err(|failure| failure.of(device.name(), "change"))
    }

    fn look(&self, device: &mut dyn Device) -> Result<Vec<u8>> {
        let looked = self.connection(device)?.ask(&Request::Look);
        looked.map(|reply| reply.bytes).map_err(|failure| failure.of(device.name(), "look"))
    }
}
