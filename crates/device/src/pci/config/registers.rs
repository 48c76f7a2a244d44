//! Registers as bytes with write masks. Their meaning is in `capability`.

/// A range of registers.
#[derive(Clone, Debug)]
pub(super) struct Registers {
    /// After power-on.
    pub(super) value: Vec<u8>,
    /// Writable bits.
    pub(super) writable: Vec<u8>,
    /// Bits that are cleared by writing 1.
    pub(super) clearable: Vec<u8>,
    /// Bits that only the device changes.
    pub(super) device: Vec<u8>,
}

impl Registers {
    /// Returns read-only zeros.
    pub(super) fn new(length: usize) -> Self {
        Registers {
            value: vec![0; length],
            writable: vec![0; length],
            clearable: vec![0; length],
            device: vec![0; length],
        }
    }

    pub(super) fn len(&self) -> usize {
        self.value.len()
    }

    /// Sets read-only bytes at `offset`.
    pub(super) fn fixed(&mut self, offset: usize, bytes: &[u8]) {
        self.value[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    /// Sets a 16-bit register at `offset` with the write mask `writable`.
    pub(super) fn word(&mut self, offset: usize, value: u16, writable: u16) {
        self.fixed(offset, &value.to_le_bytes());
        self.writable[offset..offset + 2].copy_from_slice(&writable.to_le_bytes());
    }

    /// Sets a 32-bit register at `offset` with the write mask `writable`.
    pub(super) fn dword(&mut self, offset: usize, value: u32, writable: u32) {
        self.fixed(offset, &value.to_le_bytes());
        self.writable[offset..offset + 4].copy_from_slice(&writable.to_le_bytes());
    }

    /// Makes bits of the 16-bit register at `offset` clear on writing 1.
    pub(super) fn write_one_to_clear(&mut self, offset: usize, bits: u16) {
        self.clearable[offset..offset + 2].copy_from_slice(&bits.to_le_bytes());
    }

    /// Makes bits of the 32-bit register at `offset` device-only.
    pub(super) fn device_only(&mut self, offset: usize, bits: u32) {
        self.device[offset..offset + 4].copy_from_slice(&bits.to_le_bytes());
    }

    /// Copies `part` to `offset`.
    pub(super) fn place(&mut self, offset: usize, part: &Registers) {
        let place = offset..offset + part.len();
        self.value[place.clone()].copy_from_slice(&part.value);
        self.writable[place.clone()].copy_from_slice(&part.writable);
        self.clearable[place.clone()].copy_from_slice(&part.clearable);
        self.device[place].copy_from_slice(&part.device);
    }
}

/// Returns the 16 bits at `offset`.
pub(super) fn get16(bytes: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes([bytes[offset], bytes[offset + 1]])
}

/// Returns the 32 bits at `offset`.
pub(super) fn get32(bytes: &[u8], offset: usize) -> u32 {
    u32::from(get16(bytes, offset)) | u32::from(get16(bytes, offset + 2)) << 16
}

/// Sets or clears `bits` of the 16 bits at `offset`.
pub(super) fn change16(bytes: &mut [u8], offset: usize, bits: u16, on: bool) {
    let old = get16(bytes, offset);
    let new = if on { old | bits } else { old & !bits };
    bytes[offset..offset + 2].copy_from_slice(&new.to_le_bytes());
}
