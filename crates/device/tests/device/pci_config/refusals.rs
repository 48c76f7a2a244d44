//! What the builder does not build.

use whimbrel_device::pci::config::{
    Bar, Express, LinkSpeed, Msi, MsiX, PciConfig, PciConfigBuilder, PciConfigError, PowerManagement,
    VendorSpecific,
};

use super::sample::{express, header, msix, power};

fn vendor(bytes: usize) -> VendorSpecific {
    VendorSpecific::new(vec![0; bytes])
}

fn refusal(builder: PciConfigBuilder) -> PciConfigError {
    builder.build().expect_err("it cannot be built")
}

fn bare() -> PciConfigBuilder {
    PciConfig::builder(1, 2)
}

#[test]
fn base_address_registers_of_impossible_sizes_and_places_are_refused() {
    let small = Bar::Memory32 { size: 8, prefetchable: false };
    let odd = Bar::Memory64 { size: 0x3000, prefetchable: false };
    let wide = Bar::Memory64 { size: 0x1000, prefetchable: false };
    for (index, bar) in [(0, small), (1, odd), (2, Bar::Io { size: 0 }), (3, Bar::Io { size: 512 })] {
        assert_eq!(refusal(bare().bar(index, bar)), PciConfigError::BarSize { index, size: bar.size() });
    }
    assert_eq!(refusal(bare().bar(6, wide)), PciConfigError::NoSuchBar(6));
    assert_eq!(refusal(bare().bar(usize::MAX, wide)), PciConfigError::NoSuchBar(usize::MAX));
    assert_eq!(refusal(bare().bar(5, wide)), PciConfigError::NoSuchBar(5));
    assert_eq!(refusal(bare().bar(2, wide).bar(3, Bar::Io { size: 8 })), PciConfigError::BarTaken(3));
    for size in [0, 0x400, 0x1800, 0x200_0000] {
        assert_eq!(refusal(bare().rom(size)), PciConfigError::RomSize(size));
    }
}

#[test]
fn a_command_register_with_bits_of_what_is_not_there_is_refused() {
    assert_eq!(refusal(bare().command(0x0003)), PciConfigError::Command(0x0003));
    assert_eq!(refusal(bare().bar(0, Bar::Io { size: 8 }).command(0x0003)), PciConfigError::Command(0x0002));
    assert_eq!(refusal(bare().fixed_command(0x0080)), PciConfigError::Command(0x0080));
}

#[test]
fn capabilities_that_overlap_or_lie_outside_are_refused() {
    let overlap = header().capability_at(0x40, power()).capability_at(0x44, vendor(1));
    assert_eq!(refusal(overlap), PciConfigError::Overlap { name: "vendor-specific", offset: 0x44 });
    let own = header().bytes(0x48, &[1]).capability_at(0x40, vendor(6));
    assert_eq!(refusal(own), PciConfigError::Overlap { name: "vendor-specific", offset: 0x40 });
    let twice = header().bytes(0x48, &[1]).bytes(0x48, &[1]);
    assert_eq!(refusal(twice), PciConfigError::Overlap { name: "device's own", offset: 0x48 });
    assert_eq!(
        refusal(header().bytes(0x3c, &[1])),
        PciConfigError::Overlap { name: "device's own", offset: 0x3c }
    );
    for offset in [0x00, 0x3c, 0x42, 0xfc] {
        let refused = refusal(header().capability_at(offset, power()));
        let place = PciConfigError::Place { name: "power management", offset: offset.into(), length: 8 };
        assert_eq!(refused, place);
    }
    assert_eq!(
        refusal(header().bytes(0xff, &[1, 2])),
        PciConfigError::Place { name: "device's own", offset: 0xff, length: 2 }
    );
    let full = header().capability(vendor(180)).capability(power()).capability(power());
    assert_eq!(refusal(full), PciConfigError::Full("power management"));
}

#[test]
fn capabilities_without_a_place_go_around_those_with_one() {
    let space = header().capability(power()).capability_at(0x44, vendor(1)).capability(vendor(2)).build();
    let bytes = space.unwrap().to_bytes();
    assert_eq!((bytes[0x34], bytes[0x49], bytes[0x45], bytes[0x51]), (0x48, 0x44, 0x50, 0));
    assert_eq!([bytes[0x48], bytes[0x44], bytes[0x50]], [0x01, 0x09, 0x09]);
}

#[test]
fn a_capability_a_device_has_once_is_not_given_twice() {
    assert_eq!(
        refusal(header().capability(power()).capability(PowerManagement::default())),
        PciConfigError::Twice("power management")
    );
    assert_eq!(
        refusal(header().capability(express()).capability(express())),
        PciConfigError::Twice("PCI Express")
    );
    assert!(header().capability(vendor(1)).capability(vendor(1)).build().is_ok());
}

#[test]
fn capabilities_with_impossible_numbers_are_refused() {
    let cases = [
        header().capability(Msi::new(3).address64(true).maskable(true)),
        header().capability(Msi::new(0).address64(true).maskable(true)),
        header().capability(Msi::new(64).address64(true).maskable(true)),
        header().capability(MsiX::new(0, 4)),
        header().capability(MsiX::new(2049, 4)),
        header().capability(express().max_payload(64)),
        header().capability(express().max_payload(384)),
        header().capability(Express::new(LinkSpeed::Gt8, 3)),
        header().capability(vendor(190)),
        header().capability(VendorSpecific::new(vec![1]).writable(vec![1, 2])),
    ];
    for builder in cases {
        let refused = refusal(builder);
        assert!(matches!(refused, PciConfigError::Capability { .. }), "{refused}");
    }
}

#[test]
fn a_table_of_messages_lies_in_memory_that_is_there_and_on_its_own() {
    // BAR 4 of the sample has 64 KiB; BAR 1 has ports; BAR 3 is the half of BAR 2.
    let good = [
        msix(),
        MsiX::new(2048, 4).table_offset(0x8000).pending_offset(0),
        msix().table_offset(0x10000 - 65 * 16),
        msix().table_bar(0),
        msix().table_offset(16),
    ];
    for msix in good {
        assert!(header().capability(msix).build().is_ok(), "{msix:?}");
    }
    let bad = [
        msix().table_offset(0x10000 - 65 * 16 + 8),
        msix().table_offset(0x804),
        msix().table_offset(8),
        msix().table_offset(u32::MAX - 7),
        msix().pending_offset(0x808),
        msix().pending_offset(0x10000 - 8),
        msix().table_bar(1),
        msix().pending_bar(3),
        msix().table_bar(5),
        msix().table_bar(255),
    ];
    for msix in bad {
        assert_eq!(refusal(header().capability(msix)), PciConfigError::MsiXPlace, "{msix:?}");
    }
}

#[test]
fn a_serial_number_needs_the_extended_space() {
    assert_eq!(refusal(header().serial_number(1)), PciConfigError::SerialNumber);
}
