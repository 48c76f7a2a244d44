//! Memory that a client has mapped without a descriptor: VFIO_USER_DMA_READ and VFIO_USER_DMA_WRITE.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use whimbrel_device::{Errno, RemoteMemory};

use super::channel::Channel;
use crate::message::{DmaAccess, Limits, Reply, Request};

/// Bytes that one request reads, at most. Of a reply that does not fit its socket's buffer (208 KiB by default) QEMU 11.1
/// sends the beginning alone, and then its next message.
const MAX_READ_BYTES: usize = 64 << 10;

/// The memory of one mapping.
#[derive(Debug)]
pub(super) struct ClientMemory {
    channel: Arc<Channel>,
    limits: Limits,
    is_mapped: AtomicBool,
}

impl ClientMemory {
    pub(super) fn new(channel: Arc<Channel>, limits: Limits) -> ClientMemory {
        ClientMemory { channel, limits, is_mapped: AtomicBool::new(true) }
    }

    /// Ends the mapping. No request for this memory follows the answer to the unmap on the same socket, whenever an access
    /// has found its mapping.
    pub(super) fn unmap(&self) {
        self.is_mapped.store(false, Ordering::Release);
    }

    /// Sends one request, and passes the answer to `take`, which checks that it matches. EFAULT once it is unmapped.
    fn ask(
        &self,
        request: &Request<'_>,
        deadline: Instant,
        take: impl FnOnce(&Reply<'_>) -> bool,
    ) -> Result<(), Errno> {
        let command = request.command();
        let payload = self.channel.ask(request, deadline, || self.is_mapped.load(Ordering::Acquire))?;
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
        for (number, part) in data.chunks_mut(MAX_READ_BYTES).enumerate() {
            // The mapping has all these addresses.
            let iova = iova + (number * MAX_READ_BYTES) as u64;
            let access = DmaAccess { iova, count: part.len() as u64 };
            self.ask(&Request::DmaRead(access), deadline, |reply| match reply {
                Reply::DmaRead { iova: from, data: found } if *from == iova && found.len() == part.len() => {
                    part.copy_from_slice(found);
                    true
                }
                _ => false,
            })?;
        }
        Ok(())
    }

    fn write(&self, iova: u64, data: &[u8], deadline: Instant) -> Result<(), Errno> {
        let written = DmaAccess { iova, count: data.len() as u64 };
        self.ask(&Request::DmaWrite { iova, data }, deadline, |reply| *reply == Reply::DmaWrite(written))
    }

    /// One request has no more.
    fn max_bytes(&self) -> usize {
        self.limits.max_data_xfer_size as usize
    }

    /// The client removes its mappings, and answers each request by those that it has. It may answer none before it has
    /// the reply to a command of its own, which can be one that changes them.
    fn may_outlive_mapping(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use whimbrel_device::dma::{DmaSpace, FaultCause};
    use whimbrel_uapi::type1::DmaMapFlags;

    use super::*;
    use crate::socket::connection;

    const BOTH: DmaMapFlags = DmaMapFlags::READ.union(DmaMapFlags::WRITE);

    #[test]
    fn an_access_that_found_its_mapping_just_before_the_unmap_asks_for_nothing() {
        let (server, mut client) = UnixStream::pair().unwrap();
        let (receiver, sender) = connection(server, Limits::default());
        let channel = Arc::new(Channel::new(receiver, sender));
        let memory = Arc::new(ClientMemory::new(channel, Limits::default()));
        let dma = DmaSpace::default();
        dma.map_remote(0, 0x1000, BOTH, memory.clone()).unwrap();
        memory.unmap();
        let fault = Err(FaultCause::Remote(Errno::EFAULT));
        assert_eq!(dma.read(0, &mut [0; 8]).map_err(|fault| fault.cause), fault);
        assert_eq!(dma.write(0, &[0; 8]).map_err(|fault| fault.cause), fault);
        client.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        assert!(client.read(&mut [0]).is_err(), "the client is asked for memory that it has unmapped");
    }
}
