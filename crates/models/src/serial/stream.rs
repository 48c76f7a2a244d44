//! The card's migration stream, byte for byte that of mtty.
//!
//! A header of 24 bytes, then 36 bytes for each port (`struct mtty_data` in `samples/vfio-mdev/mtty.c`), in the host's
//! byte order.

use whimbrel_protocol::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::Ports;
use super::port::{FIFO_SIZE, Port};

/// Size of the header in bytes. It can be read in PRE_COPY already.
pub(super) const HEAD_BYTES: usize = size_of::<Head>();
/// Maximum stream length in bytes: that of a card with two ports.
const MAX_BYTES: usize = HEAD_BYTES + 2 * size_of::<PortRecord>();

const MAGIC: u64 = 0x7e9d_0989_8c3e_2c4e;
pub(super) const MAJOR_VERSION: u32 = 1;
const MINOR_VERSION: u32 = 0;

/// `struct mtty_data` up to its ports.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
struct Head {
    magic: u64,
    major_version: u32,
    minor_version: u32,
    ports: u32,
    flags: u32,
}

/// `struct serial_port`, with the compiler's padding named.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
struct PortRecord {
    registers: [u8; 8],
    fifo: [u8; FIFO_SIZE],
    head: u8,
    tail: u8,
    count: u8,
    divisor_latch: u8,
    overrun: u8,
    padding: u8,
    divisor: u16,
    fifo_control: u8,
    capacity: u8,
    trigger_level: u8,
    padding_at_end: u8,
}

/// Returns the length in bytes of the stream of a card with this many ports.
pub(super) const fn length(ports: Ports) -> usize {
    HEAD_BYTES + ports.count() * size_of::<PortRecord>()
}

/// Returns the stream's first bytes.
pub(super) fn head(ports: Ports) -> [u8; HEAD_BYTES] {
    let head = Head {
        magic: MAGIC,
        major_version: MAJOR_VERSION,
        minor_version: MINOR_VERSION,
        ports: ports.count() as u32,
        flags: 0,
    };
    zerocopy::transmute!(head)
}

/// Appends a port.
pub(super) fn append_port(stream: &mut Vec<u8>, port: &Port) {
    let record = PortRecord {
        registers: port.registers,
        fifo: port.fifo,
        head: port.head,
        tail: port.tail,
        count: port.count,
        divisor_latch: port.divisor_latch.into(),
        overrun: port.overrun.into(),
        padding: 0,
        divisor: port.divisor,
        fifo_control: port.fifo_control,
        capacity: port.capacity,
        trigger_level: port.trigger_level,
        padding_at_end: 0,
    };
    stream.extend_from_slice(record.as_bytes());
}

impl PortRecord {
    /// Decodes the port; `None` if its state is invalid.
    fn port(&self) -> Option<Port> {
        let size = FIFO_SIZE as u8;
        let flag = |value: u8| (value <= 1).then_some(value == 1);
        let in_bounds = self.tail < size && self.count <= size;
        if !in_bounds || (self.tail + self.count) % size != self.head {
            return None;
        }
        let capacity_is_possible = self.capacity == 1 || self.capacity == size;
        let level_is_possible = matches!(self.trigger_level, 0 | 1 | 4 | 8 | 14);
        if !capacity_is_possible || !level_is_possible {
            return None;
        }
        Some(Port {
            registers: self.registers,
            fifo: self.fifo,
            head: self.head,
            tail: self.tail,
            count: self.count,
            divisor_latch: flag(self.divisor_latch)?,
            overrun: flag(self.overrun)?,
            divisor: self.divisor,
            fifo_control: self.fifo_control,
            capacity: self.capacity,
            trigger_level: self.trigger_level,
        })
    }
}

/// A resuming session, which validates the stream as it arrives.
#[derive(Debug)]
pub(super) struct Loader {
    ports: Ports,
    bytes: [u8; MAX_BYTES],
    filled: usize,
    loaded: Vec<Port>,
    poisoned: bool,
}

impl Loader {
    pub(super) fn new(ports: Ports) -> Loader {
        Loader { ports, bytes: [0; MAX_BYTES], filled: 0, loaded: Vec::new(), poisoned: false }
    }

    /// Takes the next bytes, all or none. Fails with ENOMEM if they extend past the end, with EINVAL from the first
    /// invalid byte on.
    pub(super) fn write(&mut self, data: &[u8]) -> Result<usize, Errno> {
        if self.poisoned {
            return Err(Errno::EINVAL);
        }
        if data.len() > length(self.ports) - self.filled {
            return Err(Errno::ENOMEM);
        }
        self.bytes[self.filled..self.filled + data.len()].copy_from_slice(data);
        self.filled += data.len();
        self.judge().inspect_err(|errno| {
            tracing::debug!(%errno, filled = self.filled, "rejected invalid serial state");
            self.poisoned = true;
        })?;
        Ok(data.len())
    }

    fn judge(&mut self) -> Result<(), Errno> {
        let seen = self.filled.min(HEAD_BYTES);
        if self.bytes[..seen] != head(self.ports)[..seen] {
            return Err(Errno::EINVAL);
        }
        let (records, _) = self.bytes[seen..self.filled].as_chunks::<{ size_of::<PortRecord>() }>();
        for record in &records[self.loaded.len()..] {
            let record: PortRecord = zerocopy::transmute!(*record);
            self.loaded.push(record.port().ok_or(Errno::EINVAL)?);
        }
        Ok(())
    }

    /// Returns the ports of a complete stream; EINVAL if it is incomplete or invalid.
    pub(super) fn finish(&self) -> Result<Vec<Port>, Errno> {
        if self.poisoned || self.loaded.len() != self.ports.count() {
            return Err(Errno::EINVAL);
        }
        Ok(self.loaded.clone())
    }
}
