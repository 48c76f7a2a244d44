//! The state of a function in its driver's migration stream: one versioned record.
//!
//! ```text
//! record = magic u32, version u32 (1), flags u32 (1: asserted), pending vectors of MSI u32, length of the space u32,
//!          bytes of the configuration space, entries of the MSI-X table, a byte for each that says whether it was
//!          written, pending bits
//! ```
//!
//! All numbers are little-endian. With vfio-pci the user transfers the configuration space; a driver that follows this
//! omits the record.

use super::Function;
use super::messages::Messages;
use super::msix_table::MsiXTable;
use crate::pci::config::{PciConfigBytesError, PciEvent};

const MAGIC: u32 = u32::from_le_bytes(*b"PCIF");
const VERSION: u32 = 1;
const ASSERTED: u32 = 1;
const HEAD_BYTES: usize = 20;

/// An error of [`Function::load`]. The function is as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FunctionStateError {
    /// The record has another length than one of this function.
    #[error("invalid length of a PCI function's state: expected {expected} bytes, found {found}")]
    Length {
        /// The length of a record of this function.
        expected: usize,
        /// The length of the record.
        found: usize,
    },
    /// The record has another magic or version, or unknown flags.
    #[error(
        "unknown form of a PCI function's state: magic {magic:#010x}, version {version}, flags {flags:#x}"
    )]
    Head {
        /// The magic.
        magic: u32,
        /// The version.
        version: u32,
        /// The flags.
        flags: u32,
    },
    /// The configuration space is that of another device.
    #[error("invalid configuration space in a PCI function's state")]
    Config(#[from] PciConfigBytesError),
    /// The MSI-X table or pending bits have contents that no function can have.
    #[error("invalid interrupts in a PCI function's state")]
    Interrupts,
}

impl Function {
    /// Returns the function's state: configuration space, line, MSI-X table and pending messages.
    pub fn save(&self) -> Vec<u8> {
        let config = self.config.to_bytes();
        let flags = if self.asserted { ASSERTED } else { 0 };
        let mut saved = Vec::with_capacity(self.saved_bytes());
        for word in [MAGIC, VERSION, flags, self.messages.msi_pending, config.len() as u32] {
            saved.extend(word.to_le_bytes());
        }
        saved.extend(config);
        if let Some(table) = &self.messages.table {
            table.save(&mut saved);
        }
        saved
    }

    /// The length in bytes of what [`Function::save`] gives, which never changes.
    pub fn saved_bytes(&self) -> usize {
        let table = self.messages.table.as_ref().map_or(0, MsiXTable::saved_bytes);
        HEAD_BYTES + self.config.len() as usize + table
    }

    /// Loads the state of another function of the same shape, and returns the events that it causes.
    ///
    /// After [`Function::enter`] with a state in which the device does not run, the line and the held messages are
    /// delivered once it runs, to interrupts that the user has set up by then.
    pub fn load(&mut self, saved: &[u8]) -> Result<Vec<PciEvent>, FunctionStateError> {
        let expected = self.saved_bytes();
        if saved.len() != expected {
            return Err(FunctionStateError::Length { expected, found: saved.len() });
        }
        let (head, rest) = saved.split_at(HEAD_BYTES);
        let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let (magic, version, flags) = (word(0), word(4), word(8));
        if magic != MAGIC || version != VERSION || flags & !ASSERTED != 0 {
            return Err(FunctionStateError::Head { magic, version, flags });
        }
        let (msi_pending, length) = (word(12), word(16) as usize);
        let vectors = self.config.msi().map_or(0, |msi| u32::from(msi.vectors));
        let (config, table) = rest.split_at_checked(length).ok_or(FunctionStateError::Interrupts)?;
        let table = match &self.messages.table {
            Some(own) => Some(own.load(table).ok_or(FunctionStateError::Interrupts)?),
            None => None,
        };
        if u64::from(msi_pending) >> vectors != 0 {
            return Err(FunctionStateError::Interrupts);
        }
        let events = self.config.restore(config)?;
        self.messages = Messages { table, msi_pending };
        self.asserted = flags & ASSERTED != 0;
        self.settle();
        Ok(events)
    }
}
