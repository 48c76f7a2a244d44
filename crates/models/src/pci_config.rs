//! A PCI configuration space: its bytes, and which of their bits a guest may change.
//!
//! It is the user's to carry when a device moves, as it is with the kernel's devices: no migration stream
//! holds it.

/// Offset of the first base address register.
pub(crate) const BAR0: usize = 0x10;

/// The configuration space of one device, `SIZE` bytes long.
#[derive(Clone, Debug)]
pub(crate) struct PciConfig<const SIZE: usize> {
    bytes: [u8; SIZE],
    /// Bits that a write changes.
    writable: [u8; SIZE],
}

impl<const SIZE: usize> PciConfig<SIZE> {
    /// All zero and nothing writable.
    pub(crate) fn new() -> Self {
        PciConfig { bytes: [0; SIZE], writable: [0; SIZE] }
    }

    /// Puts fixed bytes at `offset`.
    pub(crate) fn fixed(mut self, offset: usize, bytes: &[u8]) -> Self {
        self.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
        self
    }

    /// Puts bytes at `offset` of which the bits in `writable` can be changed.
    pub(crate) fn register(mut self, offset: usize, bytes: &[u8], writable: &[u8]) -> Self {
        self.writable[offset..offset + writable.len()].copy_from_slice(writable);
        self.fixed(offset, bytes)
    }

    /// Puts a base address register of `size` bytes, a power of two, at `offset`; `kind` is in its low bits.
    pub(crate) fn bar32(self, offset: usize, size: u32, kind: u32) -> Self {
        self.register(offset, &kind.to_le_bytes(), &(!(size - 1)).to_le_bytes())
    }

    /// The same for a base address register of 64 bits.
    pub(crate) fn bar64(self, offset: usize, size: u64, kind: u64) -> Self {
        self.register(offset, &kind.to_le_bytes(), &(!(size - 1)).to_le_bytes())
    }

    /// Reads from `offset`; what lies past the end reads as zero.
    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) {
        let start = usize::try_from(offset).unwrap_or(SIZE).min(SIZE);
        let count = data.len().min(SIZE - start);
        data[..count].copy_from_slice(&self.bytes[start..start + count]);
        data[count..].fill(0);
    }

    /// Writes at `offset`; bits that cannot be changed and bytes past the end are ignored.
    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) {
        let start = usize::try_from(offset).unwrap_or(SIZE).min(SIZE);
        for ((byte, writable), new) in self.bytes[start..].iter_mut().zip(&self.writable[start..]).zip(data) {
            *byte = (*byte & !writable) | (new & writable);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> PciConfig<0x40> {
        PciConfig::new().fixed(0, &[1, 2, 3, 4]).bar32(BAR0, 0x1000, 0).bar64(0x18, 1 << 33, 0xc)
    }

    #[test]
    fn a_base_address_register_tells_its_size_when_all_ones_are_written() {
        let mut config = config();
        config.write(0x10, &[0xff; 4]);
        config.write(0x18, &[0xff; 8]);
        let mut back = [0; 8];
        config.read(0x10, &mut back[..4]);
        assert_eq!(back[..4], 0xffff_f000u32.to_le_bytes());
        config.read(0x18, &mut back);
        assert_eq!(back, 0xffff_fffe_0000_000cu64.to_le_bytes());
    }

    #[test]
    fn fixed_bytes_stay_and_the_end_is_an_end() {
        let mut config = config();
        config.write(0, &[9; 4]);
        config.write(0x3e, &[9; 8]);
        let mut back = [7; 4];
        config.read(0, &mut back);
        assert_eq!(back, [1, 2, 3, 4]);
        config.read(0x3e, &mut back);
        assert_eq!(back, [0; 4]);
        config.read(u64::MAX, &mut back);
        assert_eq!(back, [0; 4]);
    }
}
