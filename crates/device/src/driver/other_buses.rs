//! Features of specific buses: the bus master switch of CDX, the error records of PCI on s390.

use whimbrel_protocol::Errno;

use super::Context;

/// The switch for DMA of a CDX device, which has no command register to be written.
pub trait BusMaster {
    /// The device may do DMA from now on, or no more.
    fn set(&mut self, context: &Context, master: bool) -> Result<(), Errno>;
}

/// The error records of a PCI device on s390.
pub trait ZpciErrors {
    /// Takes the oldest record: as many bytes as
    /// [`ZpciBase::ccdf_err_length`](whimbrel_protocol::info::ZpciBase::ccdf_err_length) says, all zero
    /// without a record.
    fn take(&mut self, context: &Context) -> Result<Vec<u8>, Errno>;
}
