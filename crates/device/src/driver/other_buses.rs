//! Features of specific buses: the bus master switch of CDX, the error records of PCI on s390.

use whimbrel_protocol::Errno;

use super::Context;

/// The bus master switch of a CDX device, which has no command register.
pub trait BusMaster {
    /// Enables or disables the device's DMA.
    fn set(&mut self, context: &Context, master: bool) -> Result<(), Errno>;
}

/// The error records of a PCI device on s390.
pub trait ZpciErrors {
    /// Takes the oldest record, with the size in
    /// [`ZpciBase::ccdf_err_length`](whimbrel_protocol::info::ZpciBase::ccdf_err_length); all zero without a record.
    fn take(&mut self, context: &Context) -> Result<Vec<u8>, Errno>;
}
