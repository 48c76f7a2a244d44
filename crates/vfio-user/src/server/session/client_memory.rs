//! Memory that a client has mapped without a descriptor: VFIO_USER_DMA_READ and VFIO_USER_DMA_WRITE.

use std::sync::Arc;
use std::time::Instant;

use whimbrel_device::{Errno, RemoteMemory};

use super::channel::Channel;
use crate::message::{DmaAccess, Limits, Reply, Request};

/// The memory of one client, by the addresses of its mappings.
#[derive(Debug)]
pub(super) struct ClientMemory {
    channel: Arc<Channel>,
    limits: Limits,
}

impl ClientMemory {
    pub(super) fn new(channel: Arc<Channel>, limits: Limits) -> ClientMemory {
        ClientMemory { channel, limits }
    }

    /// Sets whether the client has mapped any of it. Once it has not, no access begins, whenever it found its mapping.
    pub(super) fn set_mapped(&self, is_mapped: bool) {
        self.channel.accept_requests(is_mapped);
    }

    /// Returns the maximum bytes of one request.
    fn most(&self) -> usize {
        (self.limits.max_data_xfer_size as usize).max(1)
    }

    /// Sends one request, and passes the answer to `take`, which checks that it matches.
    fn ask(
        &self,
        request: &Request<'_>,
        deadline: Instant,
        take: impl FnOnce(&Reply<'_>) -> bool,
    ) -> Result<(), Errno> {
        let command = request.command();
        let payload = self.channel.ask(request, deadline)?;
        match Reply::parse(command, &payload, self.limits) {
            Ok(reply) if take(&reply) => return Ok(()),
            Ok(_) => tracing::debug!(%command, "client replied for different memory"),
            Err(error) => tracing::debug!(%command, %error, "client sent a malformed reply"),
        }
        Err(Errno::EIO)
    }
}

impl RemoteMemory for ClientMemory {
    fn read(&self, iova: u64, data: &mut [u8], deadline: Instant) -> Result<(), Errno> {
        let mut at = iova;
        for piece in data.chunks_mut(self.most()) {
            let count = piece.len();
            let access = DmaAccess { iova: at, count: count as u64 };
            self.ask(&Request::DmaRead(access), deadline, |reply| match reply {
                Reply::DmaRead { iova, data } if *iova == at && data.len() == count => {
                    piece.copy_from_slice(data);
                    true
                }
                _ => false,
            })?;
            // Only behind the last piece is 2^64.
            at = at.wrapping_add(count as u64);
        }
        Ok(())
    }

    fn write(&self, iova: u64, data: &[u8], deadline: Instant) -> Result<(), Errno> {
        let mut at = iova;
        for data in data.chunks(self.most()) {
            let written = DmaAccess { iova: at, count: data.len() as u64 };
            let request = Request::DmaWrite { iova: at, data };
            self.ask(&request, deadline, |reply| *reply == Reply::DmaWrite(written))?;
            at = at.wrapping_add(written.count);
        }
        Ok(())
    }

    /// The client removes its mappings, and answers each request by those that it has. It may answer none before it has
    /// the reply to a command of its own, which can be one that changes them.
    fn may_outlive_mapping(&self) -> bool {
        true
    }
}
