//! What a user finds in the configuration spaces of the models, region 7.

use whimbrel_device::{DeviceFile, Errno, State};
use whimbrel_models::accel::{self, Accel, AccelConfig};
use whimbrel_models::{Answers, Ports, Serial, SerialConfig};

fn serial(ports: Ports, answers: Answers) -> DeviceFile {
    DeviceFile::new("serial", |bus| Serial::new(SerialConfig::default().ports(ports).answers(answers), bus))
}

fn engine() -> DeviceFile {
    let config = AccelConfig::default().state_bytes(1 << 20);
    DeviceFile::try_new("engine", |bus| Accel::new(config, bus)).unwrap()
}

fn space(device: &DeviceFile) -> Vec<u8> {
    let mut bytes = vec![0; device.region_info(7).unwrap().size as usize];
    device.read_region(7, 0, &mut bytes).unwrap();
    bytes
}

/// The bytes mtty has, as `samples/vfio-mdev/mtty.c` puts them there.
fn mtty(ports: Ports) -> Vec<u8> {
    let mut bytes = vec![0; 0xff];
    bytes[..4].copy_from_slice(&0x3253_4348_u32.to_le_bytes());
    bytes[0x04] = 0x01;
    bytes[0x07] = 0x02;
    bytes[0x08..0x0c].copy_from_slice(&[0x10, 0x02, 0x00, 0x07]);
    bytes[0x10] = 1;
    bytes[0x14] = u8::from(ports == Ports::Two);
    bytes[0x2c..0x30].copy_from_slice(&0x3253_4348_u32.to_le_bytes());
    bytes[0x3d] = 1;
    for (offset, byte) in [(0x40, 0x23), (0x43, 0x80), (0x44, 0x23), (0x48, 0x23), (0x4c, 0x23)] {
        bytes[offset] = byte;
    }
    bytes[0x60..0x6f].copy_from_slice(b"PCI Serial/UART");
    bytes
}

#[test]
fn the_serial_card_shows_what_mtty_shows() {
    for ports in [Ports::One, Ports::Two] {
        assert_eq!(space(&serial(ports, Answers::Mtty)), mtty(ports), "{ports:?}");
        let whole = [mtty(ports), vec![0]].concat();
        assert_eq!(space(&serial(ports, Answers::VfioPci)), whole, "{ports:?}: with its last byte");
    }
}

#[test]
fn the_serial_card_takes_writes_of_what_mtty_takes() {
    for (ports, masks) in [(Ports::One, [0xffff_fff9, 0]), (Ports::Two, [0xffff_fff9_u32; 2])] {
        let device = serial(ports, Answers::Mtty);
        device.write_region(7, 0, &[0xff; 0xff]).unwrap();
        let mut expected = mtty(ports);
        expected[0x10..0x14].copy_from_slice(&masks[0].to_le_bytes());
        expected[0x14..0x18].copy_from_slice(&masks[1].to_le_bytes());
        expected[0x3c] = 0xff;
        assert_eq!(space(&device), expected, "{ports:?}");
        device.reset().unwrap();
        assert_eq!(space(&device), mtty(ports), "{ports:?}");
    }
}

#[test]
fn the_engine_lists_messages_power_management_and_pci_express() {
    let bytes = space(&engine());
    assert_eq!(bytes.len(), 4096);
    let mut at = usize::from(bytes[0x34]);
    let mut found = vec![];
    while at != 0 {
        found.push(bytes[at]);
        at = usize::from(bytes[at + 1]);
    }
    assert_eq!(found, [0x05, 0x01, 0x10]);
    assert_eq!(bytes[0x100..0x104], [0; 4], "no extended capability");
}

#[test]
fn the_engine_answers_only_with_memory_space_on_and_not_in_d3hot() {
    let device = engine();
    let bytes = space(&device);
    let second = bytes[usize::from(bytes[0x34]) + 1];
    assert_eq!(bytes[usize::from(second)], 0x01, "power management");
    let power = u64::from(second) + 4;
    let answer = |regions: &str| {
        let results = [
            device.read_region(0, accel::REGISTER_ID, &mut [0; 4]),
            device.write_region(0, accel::REGISTER_INTERRUPT_ENABLE, &[0; 4]),
            device.read_region(accel::STATE_REGION_INDEX, 0, &mut [0; 4]),
        ];
        assert!(results.iter().all(|result| *result == results[0]), "{regions}: {results:?}");
        results[0]
    };
    assert_eq!(answer("after power-on"), Ok(4));
    device.write_region(7, 0x04, &[0x04]).unwrap();
    assert_eq!(answer("memory space off"), Err(Errno::EIO));
    device.write_region(7, 0x04, &[0x06]).unwrap();
    assert_eq!(answer("memory space on"), Ok(4));
    device.write_region(7, power, &[3]).unwrap();
    assert_eq!(answer("D3hot"), Err(Errno::EIO));
    device.write_region(7, power, &[0]).unwrap();
    assert_eq!(answer("D0"), Ok(4));
    device.write_region(7, 0x04, &[0]).unwrap();
    device.reset().unwrap();
    assert_eq!(answer("after a reset"), Ok(4));
}

#[test]
fn the_configuration_space_of_the_engine_stays_where_it_is_when_it_migrates() {
    let device = engine();
    let fresh = space(&device);
    device.write_region(7, 0x10, &0xfe00_0000_u32.to_le_bytes()).unwrap();
    let set = space(&device);
    assert_ne!(set, fresh);
    for state in [State::Stop, State::Resuming] {
        device.set_mig_state(state).unwrap();
        assert!(space(&device) == set, "{state:?}");
    }
    device.reset().unwrap();
    assert!(space(&device) == fresh);
}
