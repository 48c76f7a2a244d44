//! The registers of each capability.
//!
//! Layouts and bits are those of the PCI specifications, as `include/uapi/linux/pci_regs.h` names them.

use super::capability::{Express, Msi, MsiX, PciCapability, PowerManagement};
use super::registers::Registers;

pub(super) const ID_POWER_MANAGEMENT: u8 = 0x01;
pub(super) const ID_MSI: u8 = 0x05;
pub(super) const ID_VENDOR_SPECIFIC: u8 = 0x09;
pub(super) const ID_EXPRESS: u8 = 0x10;
pub(super) const ID_MSIX: u8 = 0x11;

impl PciCapability {
    /// Returns the registers of a valid capability; the caller links it to the next one.
    pub(super) fn registers(&self) -> Registers {
        match self {
            PciCapability::PowerManagement(power) => power.registers(),
            PciCapability::Msi(msi) => msi.registers(),
            PciCapability::MsiX(msix) => msix.registers(),
            PciCapability::Express(express) => express.registers(),
            PciCapability::VendorSpecific(vendor) => {
                let length = 3 + vendor.data.len();
                let mut registers = Registers::new(length);
                registers.fixed(0, &[ID_VENDOR_SPECIFIC, 0, length as u8]);
                registers.fixed(3, &vendor.data);
                registers.writable[3..3 + vendor.writable.len()].copy_from_slice(&vendor.writable);
                registers
            }
        }
    }
}

impl PowerManagement {
    pub(super) const CONTROL: usize = 4;
    pub(super) const STATE: u16 = 0x0003;
    pub(super) const PME_ENABLE: u16 = 0x0100;
    pub(super) const PME_STATUS: u16 = 0x8000;
    const NO_SOFT_RESET: u16 = 0x0008;

    fn registers(self) -> Registers {
        const VERSION: u16 = 3;
        let (d1, d2, pme) = (u16::from(self.d1), u16::from(self.d2), u16::from(self.pme));
        // An event can come from D0 (bit 11), D1, D2, D3hot (bit 14).
        let from = pme << 11 | (pme & d1) << 12 | (pme & d2) << 13 | pme << 14;
        let mut registers = Registers::new(8);
        registers.fixed(0, &[ID_POWER_MANAGEMENT]);
        registers.word(2, VERSION | d1 << 9 | d2 << 10 | from, 0);
        let keeps = if self.no_soft_reset { Self::NO_SOFT_RESET } else { 0 };
        let enable = if self.pme { Self::PME_ENABLE } else { 0 };
        registers.word(Self::CONTROL, keeps, Self::STATE | enable);
        if self.pme {
            registers.write_one_to_clear(Self::CONTROL, Self::PME_STATUS);
        }
        registers
    }
}

impl Msi {
    pub(super) const FLAGS: usize = 2;
    pub(super) const ENABLE: u16 = 0x0001;
    /// Position of the field with the binary logarithm of the number of enabled vectors.
    pub(super) const ENABLED_SHIFT: u16 = 4;
    pub(super) const ENABLED: u16 = 7 << Self::ENABLED_SHIFT;
    pub(super) const ADDRESS: usize = 4;
    const ADDRESS64: u16 = 0x0080;
    const MASKABLE: u16 = 0x0100;

    /// The binary logarithm of the number of vectors.
    pub(super) fn vectors_log(self) -> u16 {
        self.vectors.trailing_zeros() as u16
    }

    pub(super) fn data_offset(self) -> usize {
        if self.address64 { 0x0c } else { 0x08 }
    }

    pub(super) fn mask_offset(self) -> usize {
        self.data_offset() + 4
    }

    pub(super) fn pending_offset(self) -> usize {
        self.data_offset() + 8
    }

    fn registers(self) -> Registers {
        let data = self.data_offset();
        let mut registers = Registers::new(if self.maskable { data + 12 } else { data + 2 });
        registers.fixed(0, &[ID_MSI]);
        let flags = self.vectors_log() << 1
            | if self.address64 { Self::ADDRESS64 } else { 0 }
            | if self.maskable { Self::MASKABLE } else { 0 };
        registers.word(Self::FLAGS, flags, Self::ENABLE | Self::ENABLED);
        registers.dword(Self::ADDRESS, 0, !3);
        if self.address64 {
            registers.dword(Self::ADDRESS + 4, 0, !0);
        }
        registers.word(data, 0, !0);
        if self.maskable {
            let all = u32::MAX >> (32 - u32::from(self.vectors));
            registers.dword(self.mask_offset(), 0, all);
            registers.device_only(self.pending_offset(), all);
        }
        registers
    }
}

impl MsiX {
    pub(super) const FLAGS: usize = 2;
    pub(super) const MASK_ALL: u16 = 0x4000;
    pub(super) const ENABLE: u16 = 0x8000;

    fn registers(&self) -> Registers {
        let mut registers = Registers::new(12);
        registers.fixed(0, &[ID_MSIX]);
        registers.word(Self::FLAGS, self.vectors - 1, Self::MASK_ALL | Self::ENABLE);
        registers.dword(4, self.table_offset | u32::from(self.table_bar), 0);
        registers.dword(8, self.pending_offset | u32::from(self.pending_bar), 0);
        registers
    }
}

impl Express {
    /// The byte of the device control register whose highest bit requests a reset.
    pub(super) const RESET_BYTE: usize = 9;
    pub(super) const RESET_BIT: u8 = 0x80;
    pub(super) const STATUS: usize = 0x0a;

    fn registers(self) -> Registers {
        const VERSION: u16 = 2;
        const ROLE_BASED_ERRORS: u32 = 1 << 15;
        const RESET_CAPABLE: u32 = 1 << 28;
        // What a device must have there after a reset: relaxed order, no snoop, reads of 512 bytes.
        const CONTROL: u16 = 0x2810;
        const CONTROL_WRITABLE: u16 = 0x781f;
        const OPTIONAL_ASPM: u32 = 1 << 22;
        const NO_COMPLETION_TIMEOUT: u16 = 1 << 4;
        let speed = self.speed as u16;
        let link = speed | u16::from(self.width) << 4;
        let payload = self.max_payload.trailing_zeros() - 7;

        let mut registers = Registers::new(0x3c);
        registers.fixed(0, &[ID_EXPRESS]);
        registers.word(0x02, VERSION, 0);
        let reset = if self.function_level_reset { RESET_CAPABLE } else { 0 };
        registers.dword(0x04, payload | u32::from(self.extended_tag) << 5 | ROLE_BASED_ERRORS | reset, 0);
        let sizes = if payload == 0 { 0 } else { 0x00e0 };
        registers.word(0x08, CONTROL, CONTROL_WRITABLE | sizes | u16::from(self.extended_tag) << 8);
        registers.write_one_to_clear(Self::STATUS, 0x000f);
        // The link is not the user's to set: vfio-pci takes no writes of its control registers either.
        registers.dword(0x0c, u32::from(link) | OPTIONAL_ASPM, 0);
        registers.word(0x12, link, 0);
        registers.dword(0x24, NO_COMPLETION_TIMEOUT.into(), 0);
        registers.word(0x28, 0, NO_COMPLETION_TIMEOUT);
        registers.dword(0x2c, ((1 << speed) - 1) << 1, 0);
        registers.word(0x30, speed, 0);
        registers
    }
}
