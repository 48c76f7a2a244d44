//! The EDID region, through which a user describes the monitor of a device's display: the EDID itself, and whether the
//! monitor is on. Any driver with a display can use it.
//!
//! Its layout and behaviour are those of the sample driver mbochs (`samples/vfio-mdev/mbochs.c`): registers are
//! accessed four bytes at a time, and two of them are writable.
//!
//! ```
//! use whimbrel_device::pci::edid::{EdidEvent, EdidRegion};
//!
//! let mut region = EdidRegion::new(1920, 1200);
//! // As a user changes the monitor: link down, the description and its size, link up.
//! assert_eq!(region.write(20, &2_u32.to_ne_bytes()), [EdidEvent::LinkDown]);
//! region.write(8, &128_u32.to_ne_bytes());
//! region.write(2048, &[0x5a; 128]);
//! assert_eq!(region.write(20, &1_u32.to_ne_bytes()), [EdidEvent::LinkUp]);
//! assert_eq!(region.edid(), Some(&[0x5a; 128][..]));
//! ```

use whimbrel_protocol::info::{Capability, Region};
use whimbrel_uapi::device::{RegionInfoFlags, VFIO_REGION_SUBTYPE_GFX_EDID, VFIO_REGION_TYPE_GFX};
use whimbrel_uapi::gfx::{RegionGfxEdid, VFIO_DEVICE_GFX_LINK_STATE_DOWN, VFIO_DEVICE_GFX_LINK_STATE_UP};
use zerocopy::IntoBytes;

use crate::pci::config::accesses;

/// Size of the region in bytes.
const SIZE: usize = 4096;
/// Offset of the EDID, and its maximum size, in bytes.
const BLOB: usize = SIZE / 2;
const MAX_BYTES: usize = 1024;

const LINK_STATE: usize = std::mem::offset_of!(RegionGfxEdid, link_state);
const EDID_SIZE: usize = std::mem::offset_of!(RegionGfxEdid, edid_size);

/// An effect of a write to the region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EdidEvent {
    /// The monitor is on, with the current [`EdidRegion::edid`]. Reported for each such write.
    LinkUp,
    /// The monitor is off.
    LinkDown,
}

/// The EDID region of one display.
#[derive(Clone, Debug)]
pub struct EdidRegion {
    registers: RegionGfxEdid,
    blob: Box<[u8; MAX_BYTES]>,
}

impl EdidRegion {
    /// Returns a region without a monitor. The maximum resolution is reported to the user; 0 for any.
    pub fn new(max_width: u32, max_height: u32) -> EdidRegion {
        let registers = RegionGfxEdid {
            edid_offset: BLOB as u32,
            edid_max_size: MAX_BYTES as u32,
            max_xres: max_width,
            max_yres: max_height,
            ..RegionGfxEdid::default()
        };
        EdidRegion { registers, blob: Box::new([0; MAX_BYTES]) }
    }

    /// Returns the answer of VFIO_DEVICE_GET_REGION_INFO. The driver chooses the index, after those of the
    /// bus.
    pub fn region(&self) -> Region {
        let (region_type, subtype) = (VFIO_REGION_TYPE_GFX, VFIO_REGION_SUBTYPE_GFX_EDID);
        Region::new(RegionInfoFlags::READ | RegionInfoFlags::WRITE, SIZE as u64)
            .capabilities(vec![Capability::Type { region_type, subtype }])
    }

    /// Returns whether the monitor is on.
    pub fn is_link_up(&self) -> bool {
        self.registers.link_state == VFIO_DEVICE_GFX_LINK_STATE_UP
    }

    /// Returns the EDID; `None` if its size is 0 or exceeds the maximum, since the user may write any size.
    pub fn edid(&self) -> Option<&[u8]> {
        match self.registers.edid_size as usize {
            0 => None,
            size => self.blob.get(..size),
        }
    }

    /// Reads from `offset`. Invalid accesses read as zero.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let start = usize::try_from(offset).unwrap_or(SIZE).min(SIZE);
        let count = data.len().min(SIZE - start);
        for place in accesses(start, count) {
            let part = &mut data[place.start - start..place.end - start];
            if place.start < BLOB {
                if let Some(register) = register(&place).and_then(|at| self.registers.as_bytes().get(at)) {
                    part.copy_from_slice(register);
                }
            } else if let Some(bytes) = self.blob.get(place.start - BLOB..place.end - BLOB) {
                part.copy_from_slice(bytes);
            }
        }
    }

    /// Writes at `offset`, and returns the effects in order. Invalid writes are ignored.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Vec<EdidEvent> {
        let start = usize::try_from(offset).unwrap_or(SIZE).min(SIZE);
        let count = data.len().min(SIZE - start);
        let mut events = Vec::new();
        for place in accesses(start, count) {
            let part = &data[place.start - start..place.end - start];
            if let Some(bytes) =
                place.start.checked_sub(BLOB).and_then(|at| self.blob.get_mut(at..at + part.len()))
            {
                bytes.copy_from_slice(part);
            } else if let (Some(at), Ok(word)) = (register(&place), <[u8; 4]>::try_from(part)) {
                let value = u32::from_ne_bytes(word);
                match at.start {
                    EDID_SIZE => self.registers.edid_size = value,
                    LINK_STATE => {
                        self.registers.link_state = value;
                        events.extend(match value {
                            VFIO_DEVICE_GFX_LINK_STATE_UP => Some(EdidEvent::LinkUp),
                            VFIO_DEVICE_GFX_LINK_STATE_DOWN => Some(EdidEvent::LinkDown),
                            _ => None,
                        });
                    }
                    _ => {}
                }
            }
        }
        events
    }
}

/// Returns the register of an access to exactly one.
fn register(place: &std::ops::Range<usize>) -> Option<std::ops::Range<usize>> {
    let whole = place.len() == 4 && place.end <= size_of::<RegionGfxEdid>();
    whole.then(|| place.clone())
}
