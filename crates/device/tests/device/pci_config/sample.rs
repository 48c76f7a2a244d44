//! A device with everything a space can hold, and its registers as the specifications write them: the table
//! is kept by hand, and takes nothing from the code under test.

use whimbrel_device::pci::config::{
    Bar, Express, InterruptPin, LinkSpeed, Msi, MsiX, PciConfig, PciConfigBuilder, PowerManagement,
    VendorSpecific,
};

pub(crate) const POWER: usize = 0x40;
pub(crate) const MSI: usize = 0x50;
pub(crate) const MSIX: usize = 0x70;
pub(crate) const EXPRESS: usize = 0x80;
pub(crate) const VENDOR: usize = 0xc0;
pub(crate) const SERIAL_NUMBER: u64 = 0x0011_22ff_fe33_4455;

/// Everything but the capabilities.
pub(crate) fn header() -> PciConfigBuilder {
    PciConfig::builder(0x1234, 0xacce)
        .subsystem(0x5678, 0x9abc)
        .class(0x12, 0x34, 0x56)
        .revision(0x78)
        .bar(0, Bar::Memory32 { size: 0x1000, prefetchable: false })
        .bar(1, Bar::Io { size: 32 })
        .bar(2, Bar::Memory64 { size: 8 << 30, prefetchable: true })
        .bar(4, Bar::Memory32 { size: 0x1_0000, prefetchable: true })
        .rom(0x2_0000)
        .interrupt_pin(InterruptPin::B)
}

pub(crate) fn power() -> PowerManagement {
    PowerManagement::default().d1(true).d2(true).pme(true)
}

pub(crate) fn express() -> Express {
    Express::new(LinkSpeed::Gt8, 4).function_level_reset(true).extended_tag(true).max_payload(256)
}

pub(crate) fn msix() -> MsiX {
    MsiX::new(65, 4).table_offset(0x800).pending_offset(0)
}

pub(crate) fn everything() -> PciConfig {
    header()
        .capability_at(POWER as u8, power())
        .capability_at(MSI as u8, Msi::new(32).address64(true).maskable(true))
        .capability_at(MSIX as u8, msix())
        .capability_at(EXPRESS as u8, express())
        .capability_at(VENDOR as u8, VendorSpecific::new(vec![1, 2, 3, 4, 5]).writable(vec![0, 0xf0, 0xff]))
        .bytes(0xf0, b"hidden")
        .serial_number(SERIAL_NUMBER)
        .build()
        .unwrap()
}

/// Offset, bytes, value after power-on, bits that are written (RW), bits that a one clears (RW1C).
pub(crate) const REGISTERS: &[(usize, usize, u64, u64, u64)] = &[
    (0x00, 2, 0x1234, 0, 0),                  // vendor
    (0x02, 2, 0xacce, 0, 0),                  // device
    (0x04, 2, 0, 0b101_0100_0111, 0),         // command: INTx disable, SERR#, parity, master, memory, I/O
    (0x06, 2, 0x0010, 0, 0xf900),             // status: a list of capabilities; six errors
    (0x08, 4, 0x1234_5678, 0, 0),             // class, revision
    (0x0c, 1, 0, 0xff, 0),                    // cache line size
    (0x10, 4, 0, 0xffff_f000, 0),             // BAR 0: 4 KiB
    (0x14, 4, 1, 0xffff_ffe0, 0),             // BAR 1: 32 ports
    (0x18, 8, 0xc, 0xffff_fffe_0000_0000, 0), // BAR 2: 8 GiB, 64 bits, prefetchable
    (0x20, 4, 8, 0xffff_0000, 0),             // BAR 4: 64 KiB, prefetchable
    (0x2c, 2, 0x5678, 0, 0),                  // subsystem vendor
    (0x2e, 2, 0x9abc, 0, 0),                  // subsystem
    (0x30, 4, 0, 0xfffe_0001, 0),             // ROM: 128 KiB, and its enable
    (0x34, 1, 0x40, 0, 0),                    // first capability
    (0x3c, 1, 0, 0xff, 0),                    // interrupt line
    (0x3d, 1, 2, 0, 0),                       // interrupt pin: INTB#
    (0x40, 2, 0x5001, 0, 0),                  // power management
    (0x42, 2, 0x7e03, 0, 0),                  // version 3, D1, D2, PME from D0, D1, D2, D3hot
    (0x44, 2, 0, 0x0103, 0x8000),             // state, PME enable, PME status
    (0x50, 2, 0x7005, 0, 0),                  // MSI
    (0x52, 2, 0x018a, 0x0071, 0),             // masks, 64 bits, 32 vectors; how many are enabled, enable
    (0x54, 8, 0, 0xffff_ffff_ffff_fffc, 0),   // address
    (0x5c, 2, 0, 0xffff, 0),                  // data
    (0x60, 4, 0, 0xffff_ffff, 0),             // masks
    (0x70, 2, 0x8011, 0, 0),                  // MSI-X
    (0x72, 2, 64, 0xc000, 0),                 // 65 vectors; mask all, enable
    (0x74, 4, 0x804, 0, 0),                   // table: BAR 4 from 0x800
    (0x78, 4, 0x004, 0, 0),                   // pending bits: BAR 4 from 0
    (0x80, 2, 0xc010, 0, 0),                  // PCI Express
    (0x82, 2, 0x0002, 0, 0),                  // version 2, endpoint
    (0x84, 4, 0x1000_8021, 0, 0),             // FLR, role-based errors, extended tag, 256 bytes
    (0x88, 2, 0x2810, 0x79ff, 0), // device control: all but FLR, auxiliary power, phantom functions
    (0x8a, 2, 0, 0, 0x000f),      // device status: four errors
    (0x8c, 4, 0x0040_0043, 0, 0), // link: optional ASPM, 4 lanes, 8 GT/s
    (0x92, 2, 0x0043, 0, 0),      // link status
    (0xa4, 4, 0x10, 0, 0),        // completion timeout can be disabled
    (0xa8, 2, 0, 0x10, 0),        // and is by this
    (0xac, 4, 0xe, 0, 0),         // 2.5, 5 and 8 GT/s
    (0xb0, 2, 3, 0, 0),           // target speed
    (0xc0, 2, 0x0009, 0, 0),      // vendor-specific, the last one
    (0xc2, 6, 0x0504_0302_0108, 0xfff0_0000, 0),
    (0xf0, 6, 0x6e65_6464_6968, 0, 0), // the device's own
    (0x100, 4, 0x0001_0003, 0, 0),     // serial number
    (0x104, 8, SERIAL_NUMBER, 0, 0),
];

/// The table, byte by byte.
pub(crate) struct Table {
    pub(crate) value: Vec<u8>,
    pub(crate) writable: Vec<u8>,
    pub(crate) clearable: Vec<u8>,
}

impl Table {
    pub(crate) fn new() -> Self {
        let mut table = Table { value: vec![0; 4096], writable: vec![0; 4096], clearable: vec![0; 4096] };
        for &(offset, bytes, value, writable, clearable) in REGISTERS {
            let place = offset..offset + bytes;
            table.value[place.clone()].copy_from_slice(&value.to_le_bytes()[..bytes]);
            table.writable[place.clone()].copy_from_slice(&writable.to_le_bytes()[..bytes]);
            table.clearable[place].copy_from_slice(&clearable.to_le_bytes()[..bytes]);
        }
        table
    }
}

pub(crate) fn read(space: &PciConfig, offset: usize, bytes: usize) -> u64 {
    let mut data = [0; 8];
    space.read(offset as u64, &mut data[..bytes]);
    u64::from_le_bytes(data)
}
