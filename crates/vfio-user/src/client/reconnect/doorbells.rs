//! The doorbells that the client's owner has, and their eventfds at the current server.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::relay::Relay;

/// A doorbell of a region.
#[derive(Clone, Debug)]
pub(in crate::client) struct Doorbell {
    pub(in crate::client) offset: u64,
    pub(in crate::client) size: u64,
    pub(in crate::client) flags: u32,
    pub(in crate::client) datamatch: Option<u64>,
    /// The eventfd that the owner signals.
    given: Arc<OwnedFd>,
    /// The eventfd that the current server waits for.
    current: Arc<OwnedFd>,
}

impl Doorbell {
    /// Returns a doorbell whose eventfd the owner gets from the server.
    pub(in crate::client) fn new(
        (offset, size): (u64, u64),
        (flags, datamatch): (u32, Option<u64>),
        eventfd: Arc<OwnedFd>,
    ) -> Doorbell {
        Doorbell { offset, size, flags, datamatch, given: eventfd.clone(), current: eventfd }
    }

    fn is_like(&self, other: &Doorbell) -> bool {
        let key = |of: &Doorbell| (of.offset, of.size, of.flags, of.datamatch);
        key(self) == key(other)
    }
}

/// The doorbells of each region that the owner has asked for.
#[derive(Debug, Default)]
pub(in crate::client) struct Doorbells {
    regions: BTreeMap<u32, Vec<Doorbell>>,
    /// Passes the signals of the owner's eventfds on, if they are not the server's.
    relay: Option<Relay>,
}

impl Doorbells {
    /// Records the doorbells of a region that the owner gets now. The eventfds that it had before do nothing any more.
    pub(in crate::client) fn given(&mut self, region: u32, doorbells: Vec<Doorbell>) {
        self.regions.insert(region, doorbells);
        if let Some(relay) = &self.relay {
            relay.pass_on(self.detours());
        }
    }

    /// Returns the doorbells of the previous server, for [`Doorbells::take_over`].
    pub(super) fn regions(&self) -> BTreeMap<u32, Vec<Doorbell>> {
        self.regions.clone()
    }

    /// Connects the eventfds that the owner has with those of the current server, which are recorded here. Fails with the
    /// offset of a doorbell that the server lacks.
    pub(super) fn take_over(&mut self, region: u32, previous: Vec<Doorbell>) -> std::result::Result<(), u64> {
        let now = self.regions.remove(&region).unwrap_or_default();
        let connect = |before: Doorbell| match now.iter().find(|now| now.is_like(&before)) {
            Some(now) => Ok(Doorbell { current: now.current.clone(), ..before }),
            None => Err(before.offset),
        };
        let connected = previous.into_iter().map(connect).collect::<std::result::Result<_, _>>()?;
        self.regions.insert(region, connected);
        Ok(())
    }

    /// Starts to pass signals on. Those before the start are lost, with the device that they were for.
    pub(super) fn start_relay(&mut self) -> io::Result<()> {
        let detours = self.detours();
        if !detours.is_empty() {
            self.relay = Some(Relay::start(detours)?);
        }
        Ok(())
    }

    /// Returns the thread, to end it without a lock. Signals wait in the owner's eventfds then.
    pub(super) fn take_relay(&mut self) -> Option<Relay> {
        self.relay.take()
    }

    fn detours(&self) -> Vec<(Arc<OwnedFd>, Arc<OwnedFd>)> {
        let all = self.regions.values().flatten();
        let detours = all.filter(|doorbell| !Arc::ptr_eq(&doorbell.given, &doorbell.current));
        detours.map(|doorbell| (doorbell.given.clone(), doorbell.current.clone())).collect()
    }
}
