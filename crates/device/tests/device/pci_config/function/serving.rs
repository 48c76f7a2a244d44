//! Regions, interrupts and DMA as the function offers them.

use whimbrel_device::Errno;
use whimbrel_device::pci::config::{Bar, PciConfig};
use whimbrel_device::pci::function::Function;
use whimbrel_device::{Bus, IrqInfoFlags};

use super::{CONFIG, MASTER, MEMORY, card, command, power, read32, with};

#[test]
fn regions_and_interrupts_follow_from_the_configuration_space() {
    let device = card();
    let sizes: Vec<u64> = (0..9).map(|index| device.region_info(index).unwrap().size).collect();
    assert_eq!(sizes, [0x1000, 0x1000, 0, 0, 0, 0, 0, 256, 0]);
    let counts: Vec<u32> = (0..5).map(|index| device.irq_info(index).unwrap().count).collect();
    assert_eq!(counts, [1, 4, 70, 0, 0]);
    let line = IrqInfoFlags::EVENTFD | IrqInfoFlags::MASKABLE | IrqInfoFlags::AUTOMASKED;
    assert_eq!(device.irq_info(0).unwrap().flags, line);
    assert_eq!(device.irq_info(2).unwrap().flags, IrqInfoFlags::EVENTFD | IrqInfoFlags::NORESIZE);
    assert_eq!(device.irq_info(4).unwrap().flags, IrqInfoFlags::empty());
}

#[test]
fn a_bar_answers_only_while_it_is_decoded_and_not_in_d3hot() {
    let device = card();
    for (region, is_table) in [(0, false), (1, true)] {
        let read = || device.read_region(region, 0, &mut [0; 4]);
        let write = || device.write_region(region, 0, &[LOWEST; 4]);
        assert_eq!((read(), write()), (Ok(4), Ok(4)), "table {is_table}");
        command(&device, 0);
        assert_eq!((read(), write()), (Err(Errno::EIO), Err(Errno::EIO)), "table {is_table}");
        command(&device, MEMORY);
        power(&device, 3);
        assert_eq!((read(), write()), (Err(Errno::EIO), Err(Errno::EIO)), "table {is_table}");
        power(&device, 0);
        assert_eq!(read(), Ok(4), "table {is_table}");
    }
}

/// A write that neither sends a message nor asserts the line.
const LOWEST: u8 = super::LINE;

#[test]
fn ports_answer_only_while_they_are_decoded() {
    let config = PciConfig::builder(0x1234, 2).bar(0, Bar::Io { size: 8 }).build().unwrap();
    let mut function = Function::new(config, Bus::new());
    assert_eq!(function.read_region(0, 0, &mut [0]), Err(Errno::EIO));
    function.write_region(CONFIG, 4, &[1]).unwrap();
    assert!(function.read_region(0, 0, &mut [0]).is_ok());
    assert_eq!(function.read_region(1, 0, &mut [0]), Err(Errno::EINVAL), "there is no such BAR");
}

#[test]
fn dma_waits_for_bus_master_and_d0() {
    let reaches = |device: &whimbrel_device::DeviceFile| read32(device, 0, 0) != 0;
    let device = card();
    assert!(!reaches(&device));
    command(&device, MEMORY | MASTER);
    assert!(reaches(&device));
    assert!(reaches(&with(Function::permissive)), "a permissive function does not wait");

    let mut function = Function::new(super::config(), Bus::new()).permissive();
    function.write_region(CONFIG, 0x44, &[3]).unwrap();
    assert!(function.dma().is_none(), "no function starts DMA in D3hot");
    function.enter_d0();
    assert!(function.dma().is_some());
}

#[test]
fn an_empty_access_never_reaches_the_driver() {
    let device = card();
    assert_eq!(device.write_region(0, 0, &[]), Ok(0));
    assert_eq!(device.read_region(0, 0, &mut []), Ok(0));
}
