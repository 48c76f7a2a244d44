//! Fields that share a word with another, and masks that share a field.

use whimbrel_uapi::device::{IrqSetFlags, VFIO_IRQ_SET_ACTION_TYPE_MASK, VFIO_IRQ_SET_DATA_TYPE_MASK};
use whimbrel_uapi::gfx::DeviceGfxPlaneInfo;
use whimbrel_uapi::pci::{PciDependentDevice, VFIO_PCI_DEVID_NOT_OWNED};

#[test]
fn a_dma_buffer_is_read_from_the_word_of_the_region() {
    let plane = DeviceGfxPlaneInfo { region_index: 7, ..DeviceGfxPlaneInfo::default() };
    assert_eq!(plane.dmabuf_id(), 7);
}

#[test]
fn a_devid_is_read_from_the_word_of_the_group() {
    let device = PciDependentDevice { group_id: VFIO_PCI_DEVID_NOT_OWNED, ..PciDependentDevice::default() };
    assert_eq!(device.devid(), VFIO_PCI_DEVID_NOT_OWNED);
}

#[test]
fn the_masks_of_an_irq_set_cover_the_flags_without_overlap() {
    assert_eq!(
        VFIO_IRQ_SET_DATA_TYPE_MASK | VFIO_IRQ_SET_ACTION_TYPE_MASK,
        IrqSetFlags::all().bits(),
        "a flag is in neither mask"
    );
    assert_eq!(VFIO_IRQ_SET_DATA_TYPE_MASK & VFIO_IRQ_SET_ACTION_TYPE_MASK, 0, "a flag is in both masks");
}
