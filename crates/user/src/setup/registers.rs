//! The registers of a configuration space that its owner sets, and the writes that make one space like another.
//!
//! Only these registers are ever written, at offsets from the destination's own capabilities. Whatever a peer sends, it
//! can neither reset the device, nor reach registers that a device's vendor defines.

/// A capability may be listed once for each aligned place behind the header.
const MAX_CAPABILITIES: usize = 48;
/// The same for the extended part, whose capabilities have at least 8 bytes.
const MAX_EXTENDED: usize = 480;
/// Length of a space without its extended part.
pub(super) const LENGTH: usize = 256;
/// Length of a space with its extended part.
const EXTENDED_LENGTH: usize = 4096;

const COMMAND: usize = 0x04;
/// I/O and memory space, bus master, INTx disable: what a device does depends on them.
const COMMAND_ESSENTIAL: u32 = 0x0407;
const STATUS: usize = 0x06;
const STATUS_CAPABILITIES: u16 = 1 << 4;
const CACHE_LINE: usize = 0x0c;
const LATENCY_TIMER: usize = 0x0d;
const HEADER_TYPE: usize = 0x0e;
const MULTI_FUNCTION: u8 = 0x80;
const BARS: usize = 0x10;
const ROM: usize = 0x30;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;

const ID_POWER_MANAGEMENT: u8 = 0x01;
const ID_MSI: u8 = 0x05;
const ID_PCI_X: u8 = 0x07;
const ID_EXPRESS: u8 = 0x10;
const ID_MSIX: u8 = 0x11;

const EXTENDED_ID_ERRORS: u16 = 0x0001;
/// Bytes of the error reporting capability up to its last register that is restored.
const ERRORS_LENGTH: usize = 0x1c;

/// A register that its owner sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Register {
    pub(super) offset: usize,
    /// Bytes: 1, 2 or 4, and aligned.
    pub(super) length: usize,
    /// The bits that are transferred. The others are kept, and those that a 1 clears are written as 0.
    bits: u32,
    /// Written as 0: bits that a 1 clears, or that trigger something.
    zeros: u32,
    /// Bits that must read back as written.
    pub(super) essential: u32,
}

/// A write to a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Write {
    pub(super) register: Register,
    pub(super) value: u32,
}

/// A difference between two spaces that no write can remove.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Mismatch {
    #[error(
        "its vendor and device ID are {:04x}:{:04x}, expected {:04x}:{:04x}",
        saved.0, saved.1, here.0, here.1
    )]
    Id { saved: (u16, u16), here: (u16, u16) },
    #[error("its capabilities lie elsewhere in the configuration space, or have another size")]
    Layout,
}

impl Register {
    const fn new(offset: usize, length: usize) -> Register {
        Register { offset, length, bits: u32::MAX, zeros: 0, essential: 0 }
    }

    const fn bits(self, bits: u32) -> Register {
        Register { bits, ..self }
    }

    const fn zeros(self, zeros: u32) -> Register {
        Register { zeros, ..self }
    }

    const fn essential(self, essential: u32) -> Register {
        Register { essential, ..self }
    }

    /// Returns the value in a space; 0 past its end.
    pub(super) fn value(self, space: &[u8]) -> u32 {
        let bytes = space.get(self.offset..self.offset + self.length).unwrap_or_default();
        bytes.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte))
    }

    /// Returns the write that gives this register the bits of another space; `None` if it has them already.
    fn write(self, saved: &[u8], here: &[u8]) -> Option<Write> {
        let (saved, here) = (self.value(saved), self.value(here));
        if (saved ^ here) & self.bits == 0 {
            return None;
        }
        Some(Write { register: self, value: (saved & self.bits | here & !self.bits) & !self.zeros })
    }
}

/// Returns the writes that make the space `here` like the one that was saved, in this order: BARs, capabilities, the
/// command register with bus master, and last the power state, in which a device does nothing.
pub(super) fn writes(saved: &[u8], here: &[u8]) -> Result<Vec<Write>, Mismatch> {
    let id = |space: &[u8]| (word(space, 0), word(space, 2));
    if id(saved) != id(here) {
        return Err(Mismatch::Id { saved: id(saved), here: id(here) });
    }
    let mut registers = registers(here);
    if saved.len() <= LENGTH {
        // Its writer knew no extended part, or there was nothing in it.
        registers.retain(|register| register.offset < LENGTH);
    }
    if registers != self::registers(saved) {
        return Err(Mismatch::Layout);
    }
    Ok(registers.into_iter().filter_map(|register| register.write(saved, here)).collect())
}

/// Returns the registers of a space that its owner sets, in the order in which they are restored.
pub(super) fn registers(space: &[u8]) -> Vec<Register> {
    let mut registers = Vec::new();
    // Those of a bridge's header lie elsewhere; VFIO has no bridges.
    if space.get(HEADER_TYPE).is_some_and(|kind| kind & !MULTI_FUNCTION == 0) {
        registers.extend((BARS..BARS + 24).step_by(4).map(|bar| Register::new(bar, 4).essential(u32::MAX)));
        registers.push(Register::new(ROM, 4));
        registers.extend([CACHE_LINE, LATENCY_TIMER, INTERRUPT_LINE].map(|place| Register::new(place, 1)));
    }
    let mut power_state = None;
    for (id, at) in capabilities(space) {
        match id {
            ID_MSI => msi(space, at, &mut registers),
            // Enable, and the mask of all vectors. The size of the table is read-only.
            ID_MSIX => registers.push(Register::new(at + 2, 2).bits(0xc000)),
            ID_EXPRESS => express(space, at, &mut registers),
            ID_PCI_X => registers.push(Register::new(at + 2, 2)),
            ID_POWER_MANAGEMENT => {
                const PME_ENABLE: u32 = 0x0100;
                const PME_STATUS: u32 = 0x8000;
                let control = Register::new(at + 4, 2).zeros(PME_STATUS);
                registers.push(control.bits(PME_ENABLE));
                power_state = Some(control.bits(0x0003));
            }
            _ => {}
        }
    }
    // The one that a capability at the end would have beyond it.
    registers.retain(|register| register.offset + register.length <= LENGTH);
    for (id, at) in extended(space) {
        if id == EXTENDED_ID_ERRORS {
            errors(at, &mut registers);
        }
    }
    registers.push(Register::new(COMMAND, 2).essential(COMMAND_ESSENTIAL));
    registers.extend(power_state);
    registers.retain(|register| register.offset + register.length <= space.len());
    registers
}

/// Appends the registers of an advanced error reporting capability: what is masked, what is fatal, and the checksums of
/// packets. The status registers, which a 1 clears, are the device's.
fn errors(at: usize, registers: &mut Vec<Register>) {
    const CHECKSUMS: u32 = 0x0140;
    let masks = [at + 0x08, at + 0x0c, at + 0x14];
    registers.extend(masks.map(|offset| Register::new(offset, 4)));
    registers.push(Register::new(at + 0x18, 4).bits(CHECKSUMS));
}

/// Returns the extended capabilities of a space with their places, each once.
fn extended(space: &[u8]) -> Vec<(u16, usize)> {
    let mut found = Vec::new();
    let mut next = Some(LENGTH);
    while let Some(at) = next {
        let Some(header) = space.get(at..).and_then(|rest| rest.first_chunk()) else { break };
        let (id, _, after) = extended_header(*header);
        found.push((id, at));
        next = after.filter(|after| found.len() < MAX_EXTENDED && found.iter().all(|(_, at)| at != after));
    }
    found
}

/// Returns the ID of an extended capability, the number of its bytes that a setup needs, and the place of the next one.
fn extended_header(header: [u8; 4]) -> (u16, usize, Option<usize>) {
    let header = u32::from_le_bytes(header);
    let id = header as u16;
    let length = if id == EXTENDED_ID_ERRORS { ERRORS_LENGTH } else { header.to_le_bytes().len() };
    let next = (header >> 20) as usize & !3;
    (id, length, (LENGTH..EXTENDED_LENGTH).contains(&next).then_some(next))
}

/// Reads what a setup needs of the extended part, and appends it to a space of [`LENGTH`] bytes: the capabilities that have
/// registers to restore, and the headers that lead to them. All else stays 0, because each read is an access to the device
/// while it is stopped. Appends nothing if nothing is to be restored.
pub(super) fn read_extended<E>(
    space: &mut Vec<u8>,
    size: usize,
    mut read: impl FnMut(usize, &mut [u8]) -> Result<(), E>,
) -> Result<(), E> {
    let size = size.min(EXTENDED_LENGTH);
    let (mut whole, mut end) = (vec![0; size.max(LENGTH)], LENGTH);
    let mut visited = Vec::new();
    let mut next = Some(LENGTH);
    while let Some(at) = next.filter(|at| at + 4 <= size && visited.len() < MAX_EXTENDED) {
        let mut header = [0; 4];
        read(at, &mut header)?;
        whole[at..at + 4].copy_from_slice(&header);
        visited.push(at);
        let (id, length, after) = extended_header(header);
        // Of a function that does not answer, all bits are set.
        if header == [0xff; 4] {
            break;
        }
        let until = (at + length).min(size);
        if id == EXTENDED_ID_ERRORS {
            read(at + 4, &mut whole[at + 4..until])?;
            end = end.max(until);
        }
        next = after.filter(|after| !visited.contains(after));
    }
    if end > LENGTH {
        space.extend_from_slice(&whole[LENGTH..end]);
    }
    Ok(())
}

/// Appends the registers of an MSI capability: address and data before the bit that enables it.
fn msi(space: &[u8], at: usize, registers: &mut Vec<Register>) {
    const ADDRESS64: u16 = 1 << 7;
    const MASKABLE: u16 = 1 << 8;
    // Enable, and the number of vectors in use.
    const SETTINGS: u32 = 0x0071;
    let flags = word(space, at + 2);
    registers.push(Register::new(at + 4, 4));
    let data = if flags & ADDRESS64 != 0 {
        registers.push(Register::new(at + 8, 4));
        at + 12
    } else {
        at + 8
    };
    registers.push(Register::new(data, 2));
    if flags & MASKABLE != 0 {
        registers.push(Register::new(data + 4, 4));
    }
    registers.push(Register::new(at + 2, 2).bits(SETTINGS));
}

/// Appends the registers of a PCI Express capability.
fn express(space: &[u8], at: usize, registers: &mut Vec<Register>) {
    const FUNCTION_RESET: u32 = 1 << 15;
    const VERSION: u16 = 0xf;
    registers.push(Register::new(at + 8, 2).bits(!FUNCTION_RESET).zeros(FUNCTION_RESET));
    if word(space, at + 2) & VERSION >= 2 {
        registers.push(Register::new(at + 0x28, 2));
    }
}

/// Returns the capabilities of a space with their places, each once.
fn capabilities(space: &[u8]) -> Vec<(u8, usize)> {
    let mut found: Vec<(u8, usize)> = Vec::new();
    if word(space, STATUS) & STATUS_CAPABILITIES == 0 {
        return found;
    }
    let mut next = CAPABILITIES;
    while found.len() < MAX_CAPABILITIES {
        let Some(at) = space.get(next).map(|pointer| usize::from(pointer & !3)) else { break };
        let Some(id) = space.get(at) else { break };
        if at < 0x40 || found.iter().any(|(_, other)| *other == at) {
            break;
        }
        found.push((*id, at));
        next = at + 1;
    }
    found
}

fn word(space: &[u8], at: usize) -> u16 {
    space.get(at..at + 2).map_or(0, |bytes| u16::from_le_bytes([bytes[0], bytes[1]]))
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const PM: usize = 0x40;
    const MSI: usize = 0x50;
    const EXPRESS: usize = 0x70;
    const MSIX: usize = 0xb0;
    const VENDOR: usize = 0xc0;

    /// A space with every capability that is restored, and a vendor's own.
    fn space() -> Vec<u8> {
        let mut space = vec![0; 256];
        space[..4].copy_from_slice(&[0x34, 0x12, 0xce, 0xac]);
        space[STATUS] = STATUS_CAPABILITIES as u8;
        space[CAPABILITIES] = PM as u8;
        for (at, id, next) in [
            (PM, ID_POWER_MANAGEMENT, MSI),
            (MSI, ID_MSI, EXPRESS),
            (EXPRESS, ID_EXPRESS, MSIX),
            (MSIX, ID_MSIX, VENDOR),
            (VENDOR, 0x09, 0),
        ] {
            space[at] = id;
            space[at + 1] = next as u8;
        }
        space[MSI + 2] = 0x80; // 64-bit address
        space[EXPRESS + 2] = 0x02;
        space
    }

    fn set(space: &mut [u8], at: usize, bytes: &[u8]) {
        space[at..at + bytes.len()].copy_from_slice(bytes);
    }

    #[test]
    fn equal_spaces_need_no_write() {
        assert_eq!(writes(&space(), &space()), Ok(vec![]));
    }

    #[test]
    fn bars_come_first_then_capabilities_then_command_and_the_power_state_last() {
        let mut saved = space();
        set(&mut saved, 0x10, &[0, 0, 0xe0, 0xfe]);
        set(&mut saved, INTERRUPT_LINE, &[11]);
        set(&mut saved, COMMAND, &[0x06, 0x04]);
        set(&mut saved, PM + 4, &[0x03, 0x01]);
        set(&mut saved, MSI + 2, &[0x81]);
        set(&mut saved, MSI + 4, &[0, 0, 0xe0, 0xfe, 1, 0, 0, 0, 0x42]);
        set(&mut saved, EXPRESS + 8, &[0x0f]);
        set(&mut saved, MSIX + 2, &[0, 0x80]);
        let order: Vec<_> = writes(&saved, &space())
            .unwrap()
            .into_iter()
            .map(|Write { register, value }| (register.offset, value))
            .collect();
        let expected = [
            (0x10, 0xfee0_0000),
            (INTERRUPT_LINE, 11),
            (PM + 4, 0x0100),
            (MSI + 4, 0xfee0_0000),
            (MSI + 8, 1),
            (MSI + 12, 0x42),
            (MSI + 2, 0x81),
            (EXPRESS + 8, 0x0f),
            (MSIX + 2, 0x8000),
            (COMMAND, 0x0406),
            (PM + 4, 0x0003),
        ];
        assert_eq!(order, expected);
    }

    #[test]
    fn nothing_is_cleared_reset_or_written_to_a_vendors_registers() {
        let mut saved = space();
        set(&mut saved, STATUS, &[STATUS_CAPABILITIES as u8, 0xf9]);
        set(&mut saved, PM + 4, &[0x00, 0x81]);
        set(&mut saved, EXPRESS + 8, &[0x01, 0x80, 0x0f, 0x00]);
        set(&mut saved, VENDOR + 3, &[0xff; 8]);
        let written: Vec<_> = writes(&saved, &space())
            .unwrap()
            .into_iter()
            .map(|Write { register, value }| (register.offset, value))
            .collect();
        assert_eq!(written, [(PM + 4, 0x0100), (EXPRESS + 8, 1)]);
    }

    #[test]
    fn a_space_of_another_device_is_refused() {
        let mut saved = space();
        saved[0] = 0x86;
        assert!(matches!(writes(&saved, &space()), Err(Mismatch::Id { .. })));
        let mut saved = space();
        saved[MSI + 2] = 0;
        assert_eq!(writes(&saved, &space()), Err(Mismatch::Layout), "32-bit address");
        let mut saved = space();
        saved[STATUS] = 0;
        assert_eq!(writes(&saved, &space()), Err(Mismatch::Layout), "no capabilities");
        assert_eq!(writes(&space()[..64], &space()), Err(Mismatch::Layout), "the header alone");
    }

    #[test]
    fn a_list_of_capabilities_that_never_ends_is_walked_once() {
        let mut space = space();
        space[VENDOR + 1] = PM as u8;
        assert_eq!(capabilities(&space).len(), 5);
        space[VENDOR + 1] = 0x10;
        assert_eq!(capabilities(&space).len(), 5);
    }

    const ERRORS: usize = 0x140;

    /// A space with error reporting, after a capability that is not restored.
    fn extended_space() -> Vec<u8> {
        let mut space = space();
        space.resize(ERRORS + ERRORS_LENGTH, 0);
        set(&mut space, 0x100, &[0x03, 0x00, 0x01, 0x14]); // a serial number
        set(&mut space, ERRORS, &[0x01, 0x00, 0x02, 0x00]);
        space
    }

    fn offsets(writes: Vec<Write>) -> Vec<(usize, u32)> {
        writes.into_iter().map(|Write { register, value }| (register.offset, value)).collect()
    }

    #[test]
    fn masks_and_severity_of_errors_are_restored_and_their_status_is_not() {
        let mut saved = extended_space();
        set(&mut saved, ERRORS + 4, &[0xff; 24]);
        set(&mut saved, COMMAND, &[0x06]);
        let expected = [
            (ERRORS + 0x08, u32::MAX),
            (ERRORS + 0x0c, u32::MAX),
            (ERRORS + 0x14, u32::MAX),
            (ERRORS + 0x18, 0x140),
            (COMMAND, 0x06),
        ];
        assert_eq!(offsets(writes(&saved, &extended_space()).unwrap()), expected);
    }

    #[test]
    fn a_setup_without_an_extended_part_is_restored_as_far_as_it_goes() {
        let mut saved = space();
        set(&mut saved, COMMAND, &[0x06]);
        assert_eq!(offsets(writes(&saved, &extended_space()).unwrap()), [(COMMAND, 0x06)]);
        assert_eq!(writes(&extended_space(), &space()), Err(Mismatch::Layout));
        let mut elsewhere = extended_space();
        set(&mut elsewhere, 0x100, &[0x01, 0x00]);
        assert_eq!(writes(&elsewhere, &extended_space()), Err(Mismatch::Layout));
    }

    #[test]
    fn only_what_is_restored_is_read_of_the_extended_part() {
        let whole = extended_space();
        let mut reads = Vec::new();
        let mut read = |at: usize, bytes: &mut [u8]| {
            reads.push((at, bytes.len()));
            bytes.copy_from_slice(&whole[at..at + bytes.len()]);
            Ok::<_, ()>(())
        };
        let mut found = space();
        read_extended(&mut found, whole.len(), &mut read).unwrap();
        assert_eq!(found, whole);
        assert_eq!(reads, [(0x100, 4), (ERRORS, 4), (ERRORS + 4, ERRORS_LENGTH - 4)]);
    }

    #[test]
    fn an_extended_part_that_is_empty_endless_or_cut_is_read_once() {
        let ends: [&[u8]; 4] = [&[0; 4], &[0xff; 4], &[0x03, 0x00, 0x01, 0x10], &[0x01, 0x00, 0x01, 0x10]];
        for header in ends {
            for size in [256, 258, 260, 270, 4096] {
                let mut count = 0;
                let mut found = space();
                let read = |at: usize, bytes: &mut [u8]| {
                    count += 1;
                    assert!(at + bytes.len() <= size);
                    bytes.fill(0);
                    if at == 0x100 {
                        bytes.copy_from_slice(header);
                    }
                    Ok::<_, ()>(())
                };
                read_extended(&mut found, size, read).unwrap();
                assert!(count <= 2, "{header:?}, {size}");
                assert!(found.len() <= size.max(256), "{header:?}, {size}");
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_yield_bounded_aligned_writes_within_the_space(
            mut saved in vec(any::<u8>(), 0..600), mut here in vec(any::<u8>(), 0..600)
        ) {
            // The IDs are equal.
            for space in [&mut saved, &mut here] {
                let end = space.len().min(4);
                space[..end].fill(0);
            }
            for space in [saved.clone(), here.clone()] {
                let registers = registers(&space);
                prop_assert!(registers.len() <= 12 + 6 * MAX_CAPABILITIES + 4 * MAX_EXTENDED);
                for register in registers {
                    prop_assert!(register.offset.is_multiple_of(register.length));
                    prop_assert!(register.offset + register.length <= space.len());
                }
            }
            let _ = writes(&saved, &here);
        }
    }
}
