//! What can be a set, and how addresses are written.

use whimbrel_device::{DeviceInfoFlags, DeviceSet, Errno, PciAddress};

use super::support::{FIRST, SECOND, device, function, pci};

#[test]
fn a_set_is_made_of_pci_functions_at_places_of_their_own() {
    let ((first, _), (second, _)) = (pci(FIRST), pci(SECOND));
    let (platform, _) = device("platform", DeviceInfoFlags::PLATFORM);
    let cases = [
        ("nothing", vec![], Errno::EINVAL),
        ("no PCI device", vec![function(FIRST, 1, Some(&platform))], Errno::EINVAL),
        ("one place twice", vec![function(FIRST, 1, Some(&first)), function(FIRST, 1, None)], Errno::EEXIST),
        (
            "one device twice",
            vec![function(FIRST, 1, Some(&first)), function(SECOND, 1, Some(&first))],
            Errno::EEXIST,
        ),
    ];
    for (name, functions, errno) in cases {
        assert_eq!(DeviceSet::new(functions).unwrap_err(), errno, "{name}");
    }
    // None of that has put a device into a set.
    let set = DeviceSet::new([function(FIRST, 1, Some(&first)), function(SECOND, 2, Some(&second))]).unwrap();
    assert_eq!(set.function_count(), 2);
    let again = DeviceSet::new([function(FIRST, 1, Some(&first))]);
    assert_eq!(again.unwrap_err(), Errno::EEXIST, "in a set already");
}

#[test]
fn a_device_that_is_gone_counts_as_one_that_vfio_does_not_drive() {
    let ((first, _), (second, _)) = (pci(FIRST), pci(SECOND));
    DeviceSet::new([function(FIRST, 1, Some(&first)), function(SECOND, 1, Some(&second))]).unwrap();
    let group = whimbrel_device::Group::new(whimbrel_device::Translation::Emulated, vec![first.clone()]);
    let group = group.unwrap().open().unwrap();
    drop(second);
    assert_eq!(first.hot_reset_info().unwrap().devices.len(), 2);
    assert_eq!(first.hot_reset(&[group]), Err(Errno::EINVAL));
}

#[test]
fn addresses_are_written_as_linux_does() {
    for (text, parts) in [("0000:01:10.0", (0, 1, 16, 0)), ("ffff:ff:1f.7", (0xffff, 0xff, 31, 7))] {
        let (segment, bus, device, function) = parts;
        let address = PciAddress::new(segment, bus, device, function).unwrap();
        assert_eq!(address.to_string(), text);
        assert_eq!(text.parse(), Ok(address));
        assert_eq!(
            (address.segment(), address.bus(), address.devfn()),
            (segment, bus, device << 3 | function)
        );
    }
    assert_eq!(PciAddress::new(0, 0, 32, 0), Err(Errno::EINVAL));
    assert_eq!(PciAddress::new(0, 0, 0, 8), Err(Errno::EINVAL));
    let wrong = ["", "01:00.0", "0:01:00.0", "0000:01:20.0", "0000:01:00.8", "0000:01:0A.0", "+000:01:00.0"];
    for text in wrong.into_iter().chain(["0000:01:00.0 ", "10000:01:00.0", "0000:001:00.0", "0000:01:00:0"]) {
        assert_eq!(text.parse::<PciAddress>(), Err(Errno::EINVAL), "{text:?}");
    }
}
