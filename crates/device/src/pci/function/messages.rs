//! MSI-X and MSI messages of a function: sent at once, or held while masked.

use whimbrel_protocol::Errno;
use whimbrel_uapi::pci::{VFIO_PCI_MSI_IRQ_INDEX, VFIO_PCI_MSIX_IRQ_INDEX};

use super::msix_table::MsiXTable;
use crate::pci::config::{PciConfig, PowerState, Settings};

/// The messages held until they may be sent.
#[derive(Clone, Debug)]
pub(super) struct Messages {
    pub(super) table: Option<MsiXTable>,
    /// Held MSI vectors, one bit each.
    pub(super) msi_pending: u32,
}

impl Messages {
    pub(super) fn new(config: &PciConfig) -> Messages {
        Messages { table: config.msix().map(MsiXTable::new), msi_pending: 0 }
    }

    /// Reads from a BAR; `false` if it is the driver's.
    pub(super) fn read(&self, bar: u32, offset: u64, data: &mut [u8]) -> Result<bool, Errno> {
        self.table.as_ref().map_or(Ok(false), |table| table.read(bar, offset, data))
    }

    /// Writes to a BAR; `false` if it is the driver's.
    pub(super) fn write(&mut self, bar: u32, offset: u64, data: &[u8]) -> Result<bool, Errno> {
        self.table.as_mut().map_or(Ok(false), |table| table.write(bar, offset, data))
    }

    /// Makes an enabled vector pending.
    pub(super) fn post(&mut self, vector: u32, config: &PciConfig, is_permissive: bool) {
        let settings = config.settings();
        let in_use = InUse::of(&settings, is_permissive);
        if in_use.msix
            && let Some(table) = &mut self.table
        {
            table.post(vector);
        }
        if in_use.msi
            && let Some((shape, set)) = config.msi().zip(settings.msi)
            && vector < shape.vectors.into()
        {
            // A guest may enable fewer vectors than there are: they share those.
            let vector = if set.enabled { vector % u32::from(set.vectors) } else { vector };
            self.msi_pending |= 1 << vector;
        }
    }

    /// Sends the pending messages that may be sent, sets the pending bits of the others, and drops those of a disabled
    /// capability.
    pub(super) fn release(
        &mut self,
        config: &mut PciConfig,
        is_permissive: bool,
        may_send: bool,
        mut send: impl FnMut(u32, u32),
    ) {
        let settings = config.settings();
        let in_use = InUse::of(&settings, is_permissive);
        if let Some(table) = &mut self.table {
            let all_masked = settings.msix.is_some_and(|msix| msix.enabled && msix.all_masked);
            table.take_pending(|table, vector| {
                let is_held = !may_send || all_masked || table.is_masked(vector);
                if in_use.msix && !is_held {
                    send(VFIO_PCI_MSIX_IRQ_INDEX, vector as u32);
                }
                !in_use.msix || !is_held
            });
        }
        if let Some(msi) = settings.msi {
            let held = if may_send { msi.masked } else { u32::MAX };
            let pending = if in_use.msi { self.msi_pending } else { 0 };
            for vector in (0..u32::BITS).filter(|vector| (pending & !held) >> vector & 1 == 1) {
                send(VFIO_PCI_MSI_IRQ_INDEX, vector);
            }
            self.msi_pending = pending & held;
            config.set_msi_pending(self.msi_pending);
        }
    }
}

/// Returns whether the function may start transactions: DMA, and messages.
pub(super) fn may_master(settings: &Settings, is_permissive: bool) -> bool {
    settings.power < PowerState::D3Hot && (is_permissive || settings.bus_master)
}

/// The capabilities in use for messages.
struct InUse {
    msix: bool,
    msi: bool,
}

impl InUse {
    /// Returns the enabled one. Without any, a permissive function lets the user choose.
    fn of(settings: &Settings, is_permissive: bool) -> InUse {
        let msix = settings.msix.is_some_and(|msix| msix.enabled);
        let msi = !msix && settings.msi.is_some_and(|msi| msi.enabled);
        let any = is_permissive && !msix && !msi;
        InUse { msix: msix || any, msi: msi || any }
    }
}
