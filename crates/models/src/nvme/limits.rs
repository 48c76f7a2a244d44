//! The properties of a controller that no host changes, and the limits that it tells the host.

/// MDTS: the logarithm of the pages that a command may transfer.
pub(super) const MAX_TRANSFER_PAGES_LOG2: u8 = 6;
/// Bytes that a command may transfer.
pub(super) const MAX_TRANSFER_BYTES: u64 = 4096 << MAX_TRANSFER_PAGES_LOG2;
/// The namespace, the only one.
pub(super) const NAMESPACE: u32 = 1;
/// The queue of admin commands.
pub(super) const ADMIN: u16 = 0;

/// The properties of a controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    /// ASCII text with spaces behind it.
    pub(super) serial: [u8; 20],
    /// Pairs of I/O queues.
    pub(super) queues: u16,
    pub(super) blocks: u64,
    pub(super) is_read_only: bool,
}

impl Limits {
    /// Returns the number of interrupt vectors: one for each queue pair, the admin queues' included.
    pub(super) fn vectors(&self) -> u16 {
        self.queues + 1
    }
}
