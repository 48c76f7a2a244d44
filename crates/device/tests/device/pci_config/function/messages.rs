//! Messages: which are sent, which are held, and how the pending bits show it.

use std::os::fd::AsFd;

use nix::sys::eventfd::{EfdFlags, EventFd};
use whimbrel_device::pci::function::Function;
use whimbrel_device::{DeviceFile, Errno};

use super::{CONFIG, MASTER, MEMORY, TABLE, act, card, command, eventfd, fired, power, read32, with, write};

const MSI: u32 = 1;
const MSIX: u32 = 2;
const ENABLE: u16 = 1 << 15;
const MASK_ALL: u16 = 1 << 14;

fn msix(device: &DeviceFile, bits: u16) {
    write(device, CONFIG, 0x62, &bits.to_le_bytes());
}

/// Writes the vector control of an entry.
fn mask(device: &DeviceFile, vector: u8, masked: bool) {
    let at = u64::from(TABLE.table_offset) + u64::from(vector) * 16 + 12;
    write(device, 1, at, &u32::from(masked).to_le_bytes());
}

fn is_pending(device: &DeviceFile, vector: u8) -> bool {
    let at = u64::from(TABLE.pending_offset) + u64::from(vector / 32) * 4;
    read32(device, 1, at) >> (vector % 32) & 1 == 1
}

/// A card whose driver has enabled MSI-X, and a user that has set up this vector.
fn enabled(vector: u8) -> (DeviceFile, EventFd) {
    let device = card();
    command(&device, MEMORY | MASTER);
    msix(&device, ENABLE);
    let told = eventfd(&device, MSIX, vector.into());
    (device, told)
}

#[test]
fn a_vector_that_is_masked_in_the_table_is_pending_until_it_is_unmasked() {
    for vector in [0, 31, 32, 63, 64, 69] {
        let (device, told) = enabled(vector);
        mask(&device, vector, true);
        act(&device, vector);
        act(&device, vector);
        assert!(!fired(&told) && is_pending(&device, vector), "{vector}");
        mask(&device, vector, true);
        assert!(is_pending(&device, vector), "{vector}");
        mask(&device, vector, false);
        assert_eq!(told.read().unwrap(), 1, "{vector}: two messages have become one");
        assert!(!is_pending(&device, vector), "{vector}");
        act(&device, vector);
        assert!(fired(&told) && !is_pending(&device, vector), "{vector}");
    }
}

#[test]
fn a_vector_masks_no_other() {
    let (device, told) = enabled(5);
    mask(&device, 4, true);
    mask(&device, 5, false);
    act(&device, 4);
    act(&device, 5);
    assert!(fired(&told) && !is_pending(&device, 5) && is_pending(&device, 4));
}

#[test]
fn all_vectors_are_masked_by_the_function_mask() {
    let (device, told) = enabled(69);
    mask(&device, 69, false);
    msix(&device, ENABLE | MASK_ALL);
    act(&device, 69);
    assert!(!fired(&told) && is_pending(&device, 69));
    msix(&device, ENABLE);
    assert!(fired(&told) && !is_pending(&device, 69));
}

#[test]
fn a_table_that_was_never_written_masks_nothing_and_reads_as_masked() {
    let (device, told) = enabled(3);
    assert_eq!(read32(&device, 1, 3 * 16 + 12), 1);
    act(&device, 3);
    assert!(fired(&told), "the user's machine emulates the table by itself");
}

#[test]
fn nothing_is_sent_without_bus_master_or_in_d3hot_until_that_ends() {
    let no_master = |device: &DeviceFile| command(device, MEMORY);
    let master = |device: &DeviceFile| command(device, MEMORY | MASTER);
    let (device, told) = enabled(0);
    no_master(&device);
    act(&device, 0);
    assert!(!fired(&told) && is_pending(&device, 0));
    master(&device);
    assert!(fired(&told));

    no_master(&device);
    act(&device, 0);
    power(&device, 3);
    master(&device);
    assert!(!fired(&told), "D3hot");
    power(&device, 0);
    assert!(fired(&told) && !is_pending(&device, 0));
}

#[test]
fn a_message_without_an_enabled_capability_is_dropped() {
    let (device, told) = enabled(0);
    msix(&device, 0);
    act(&device, 0);
    msix(&device, ENABLE);
    assert!(!fired(&told));
    mask(&device, 0, true);
    act(&device, 0);
    assert!(is_pending(&device, 0));
    msix(&device, 0);
    assert!(!is_pending(&device, 0), "the function forgets it when MSI-X is disabled");
}

#[test]
fn a_vector_that_the_table_does_not_have_is_dropped() {
    let (device, told) = enabled(69);
    act(&device, 70);
    assert!(!fired(&told) && !is_pending(&device, 70));
}

#[test]
fn the_table_takes_aligned_words_and_keeps_what_was_written() {
    let (device, _) = enabled(0);
    write(&device, 1, 16, &0xfee0_1004_u32.to_le_bytes());
    write(&device, 1, 24, &[0x41, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    let words = [16, 20, 24, 28].map(|at| read32(&device, 1, at));
    assert_eq!(words, [0xfee0_1004, 0, 0x41, 1], "the reserved bits of the control stay 0");
    assert_eq!(device.write_region(1, 18, &[0; 4]), Err(Errno::EINVAL));
    assert_eq!(device.write_region(1, 16, &[0; 2]), Err(Errno::EINVAL));
    write(&device, 1, TABLE.pending_offset.into(), &[0xff; 8]);
    assert_eq!(read32(&device, 1, TABLE.pending_offset.into()), 0, "the pending bits are read-only");
}

#[test]
fn an_access_across_the_end_of_the_table_is_refused_and_one_behind_it_is_the_driver_s() {
    let device = card();
    let end = TABLE.table_bytes();
    assert_eq!(device.read_region(1, end - 4, &mut [0; 8]), Err(Errno::EINVAL));
    assert_eq!(device.write_region(1, end - 4, &[0; 8]), Err(Errno::EINVAL));
    command(&device, MEMORY | MASTER);
    assert_eq!(read32(&device, 1, end), 0xdada_dada);
}

#[test]
fn msi_vectors_are_masked_and_shared_as_the_capability_says() {
    let device = card();
    command(&device, MEMORY | MASTER);
    let told = [0, 1].map(|_| EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap());
    let copies = told.iter().map(|told| Some(told.as_fd().try_clone_to_owned().unwrap())).collect();
    device.set_irq_triggers(MSI, 0, copies).unwrap();
    // Two of four vectors, enabled.
    write(&device, CONFIG, 0x4a, &[0x11, 0]);
    act(&device, 1);
    act(&device, 2);
    assert!(fired(&told[1]) && fired(&told[0]), "vector 2 shares vector 0");
    let (masks, pending) = (0x48 + 0x10, 0x48 + 0x14);
    write(&device, CONFIG, masks, &[2, 0, 0, 0]);
    act(&device, 1);
    act(&device, 0);
    assert!(!fired(&told[1]) && fired(&told[0]));
    assert_eq!(read32(&device, CONFIG, pending), 2);
    write(&device, CONFIG, masks, &[0; 4]);
    assert!(fired(&told[1]));
    assert_eq!(read32(&device, CONFIG, pending), 0);
}

#[test]
fn a_permissive_function_sends_to_whichever_index_the_user_has_set_up() {
    for index in [MSI, MSIX] {
        let device = with(Function::permissive);
        let told = eventfd(&device, index, 1);
        act(&device, 1);
        assert!(fired(&told), "index {index}");
        power(&device, 3);
        power(&device, 0);
        assert!(!fired(&told), "index {index}");
    }
}

#[test]
fn a_reset_masks_and_forgets_everything() {
    let (device, told) = enabled(1);
    mask(&device, 1, true);
    act(&device, 1);
    device.reset().unwrap();
    assert!(!is_pending(&device, 1));
    assert_eq!(read32(&device, 1, 16 + 12), 1);
    command(&device, MEMORY | MASTER);
    msix(&device, ENABLE);
    assert!(!fired(&told));
}
