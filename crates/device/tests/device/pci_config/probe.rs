//! The space as the PCI core of Linux probes it: header, sizes of BARs, both lists of capabilities, and what
//! the drivers of each read first.

use whimbrel_device::pci::config::{Bar, Express, LinkSpeed, Msi, PciConfig};

use super::sample::{EXPRESS, MSI, MSIX, POWER, SERIAL_NUMBER, VENDOR, everything, header, read};

/// `__pci_find_next_cap_ttl()`: ids and places.
fn capabilities(space: &PciConfig) -> Vec<(u64, usize)> {
    let mut found = Vec::new();
    if read(space, 0x06, 2) & 0x10 == 0 {
        return found;
    }
    let mut at = read(space, 0x34, 1) as usize & !3;
    for _ in 0..48 {
        if at < 0x40 {
            return found;
        }
        let entry = read(space, at, 2);
        if entry & 0xff == 0xff {
            return found;
        }
        found.push((entry & 0xff, at));
        at = (entry >> 8) as usize & !3;
    }
    panic!("the list has no end");
}

/// `pci_find_next_ext_capability()`: ids, versions and places.
fn extended(space: &PciConfig) -> Vec<(u64, u64, usize)> {
    let mut found = Vec::new();
    let mut at = 0x100;
    for _ in 0..(4096 - 256) / 8 {
        let header = read(space, at, 4);
        if header == 0 {
            break;
        }
        found.push((header & 0xffff, header >> 16 & 0xf, at));
        at = (header >> 20) as usize & !3;
        if at < 0x100 {
            break;
        }
    }
    found
}

/// `__pci_read_base()` with decoding off, over all BARs: kind and size of each, of a 64-bit one once.
fn sizes(space: &mut PciConfig) -> Vec<(usize, u64, u64)> {
    let command = read(space, 0x04, 2) as u16;
    space.write(0x04, &(command & !3).to_le_bytes());
    let mut found = Vec::new();
    let mut index = 0;
    while index < 6 {
        let at = 0x10 + 4 * index;
        let mut size_of = |at: usize| {
            let old = read(space, at, 4) as u32;
            space.write(at as u64, &[0xff; 4]);
            let mask = read(space, at, 4);
            space.write(at as u64, &old.to_le_bytes());
            (u64::from(old), mask)
        };
        let (old, mut mask) = size_of(at);
        let kind = if old & 1 == 1 { old & 3 } else { old & 0xf };
        mask &= if old & 1 == 1 { !3 } else { !0xf };
        let first = index;
        index += 1;
        if kind & 7 == 4 {
            mask |= size_of(at + 4).1 << 32;
            index += 1;
        } else if mask != 0 {
            mask |= 0xffff_ffff << 32;
        }
        if mask != 0 {
            found.push((first, kind, !mask + 1));
        }
    }
    space.write(0x04, &command.to_le_bytes());
    found
}

#[test]
fn the_lists_of_capabilities_are_walked_to_their_ends() {
    let space = everything();
    let expected = [(0x01, POWER), (0x05, MSI), (0x11, MSIX), (0x10, EXPRESS), (0x09, VENDOR)];
    assert_eq!(capabilities(&space), expected);
    assert_eq!(extended(&space), [(0x03, 1, 0x100)]);
    // pci_get_dsn()
    assert_eq!(read(&space, 0x104, 4) | read(&space, 0x108, 4) << 32, SERIAL_NUMBER);
}

#[test]
fn without_capabilities_there_is_no_list_and_without_extended_ones_an_empty_one() {
    let space = header().build().unwrap();
    assert_eq!((capabilities(&space), space.len()), (vec![], 256));
    let express = Express::new(LinkSpeed::Gt2_5, 1);
    let space = header().capability(express).build().unwrap();
    assert_eq!((capabilities(&space), extended(&space), space.len()), (vec![(0x10, 0x40)], vec![], 4096));
}

#[test]
fn base_address_registers_tell_their_sizes_and_keep_their_addresses() {
    let mut space = everything();
    space.write(0x04, &[0x07, 0x00]);
    space.write(0x10, &0xfe00_0000_u32.to_le_bytes());
    space.write(0x18, &0x38_0000_0000_u64.to_le_bytes());
    let before = space.settings();
    let expected = [(0, 0x0, 0x1000), (1, 0x1, 32), (2, 0xc, 8 << 30), (4, 0x8, 0x1_0000)];
    assert_eq!(sizes(&mut space), expected);
    assert_eq!(space.settings(), before);
    assert_eq!(before.bars, [Some(0xfe00_0000), Some(0), Some(0x38_0000_0000), None, Some(0), None]);
    // The ROM is asked without its enable bit.
    space.write(0x30, &0xffff_f800_u32.to_le_bytes());
    assert_eq!(!read(&space, 0x30, 4) as u32 + 1, 0x2_0000);
}

#[test]
fn base_address_registers_of_every_size_tell_it() {
    for log in 4..64 {
        let bar = Bar::Memory64 { size: 1 << log, prefetchable: log % 2 == 0 };
        let mut space = PciConfig::builder(1, 2).bar(4, bar).build().unwrap();
        assert_eq!(sizes(&mut space), [(4, if log % 2 == 0 { 0xc } else { 0x4 }, 1 << log)]);
    }
    for log in 4..32 {
        let bar = Bar::Memory32 { size: 1 << log, prefetchable: false };
        let mut space = PciConfig::builder(1, 2).bar(5, bar).build().unwrap();
        assert_eq!(sizes(&mut space), [(5, 0, 1 << log)]);
    }
    for log in 2..=8 {
        let mut space = PciConfig::builder(1, 2).bar(3, Bar::Io { size: 1 << log }).build().unwrap();
        assert_eq!(sizes(&mut space), [(3, 1, 1 << log)]);
    }
}

#[test]
fn the_message_capability_has_its_registers_where_its_flags_say() {
    for (address64, maskable, length) in
        [(false, false, 10), (true, false, 14), (false, true, 20), (true, true, 24)]
    {
        let msi = Msi::new(4).address64(address64).maskable(maskable);
        let mut space =
            header().capability(msi).bytes(0x40 + length, &[0xaa; 4]).build().expect("just as long");
        let flags = read(&space, 0x42, 2);
        assert_eq!((flags & 0x80 != 0, flags & 0x100 != 0, flags >> 1 & 7), (address64, maskable, 2));
        // pci_msi_setup_msi_irqs(): address, data, masks, then the number of vectors and the enable bit.
        let data = if address64 { 0x4c } else { 0x48 };
        space.write(0x44, &0xfee0_1000_u32.to_le_bytes());
        if address64 {
            space.write(0x48, &7_u32.to_le_bytes());
        }
        space.write(data, &0x4021_u16.to_le_bytes());
        if maskable {
            space.write(data + 4, &[0xff; 4]);
        }
        space.write(0x42, &(1 << 4 | 1_u16).to_le_bytes());
        let set = space.settings().msi.unwrap();
        assert_eq!((set.enabled, set.vectors, set.data), (true, 2, 0x4021));
        assert_eq!(set.address, if address64 { 0x7_fee0_1000 } else { 0xfee0_1000 });
        assert_eq!(set.masked, if maskable { 0xf } else { 0 });
        space.write(0x42, &(7 << 4 | 1_u16).to_le_bytes());
        assert_eq!(space.settings().msi.unwrap().vectors, 4, "no more than there are");
    }
}

#[test]
fn the_table_of_messages_is_where_its_registers_say() {
    let mut space = everything();
    assert_eq!(read(&space, MSIX + 2, 2) & 0x7ff, 65 - 1);
    let (table, pending) = (read(&space, MSIX + 4, 4), read(&space, MSIX + 8, 4));
    assert_eq!((table & 7, table & !7, pending & 7, pending & !7), (4, 0x800, 4, 0));
    // msix_capability_init(): enabled with all masked, then unmasked.
    space.write(MSIX as u64 + 2, &0xc000_u16.to_le_bytes());
    let set = space.settings().msix.unwrap();
    assert_eq!((set.enabled, set.all_masked), (true, true));
    space.write(MSIX as u64 + 2, &0x8000_u16.to_le_bytes());
    let set = space.settings().msix.unwrap();
    assert_eq!((set.enabled, set.all_masked), (true, false));
}
