//! The setup of a device, as the document lays it out.

use super::{u16_at, u32_at};

/// A setup.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Setup {
    pub(crate) space: Vec<u8>,
    pub(crate) interrupts: Vec<Interrupts>,
}

/// The interrupts of an index that were armed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Interrupts {
    pub(crate) index: u32,
    pub(crate) armed: u32,
    pub(crate) vectors: u32,
    pub(crate) masked: bool,
}

/// Reads a setup.
pub(crate) fn setup(bytes: &[u8]) -> Result<Setup, String> {
    let (head, rest) = bytes.split_at_checked(16).ok_or("shorter than its head")?;
    if &head[..4] != b"WDSU" || u16_at(head, 4) != 1 || u16_at(head, 6) != 0 {
        return Err("another magic, version or flags".into());
    }
    let (length, count) = (u32_at(head, 8) as usize, u32_at(head, 12) as usize);
    if !(64..=4096).contains(&length) || count > 64 {
        return Err(format!("a space of {length} bytes and {count} indexes"));
    }
    let (space, entries) = rest.split_at_checked(length).ok_or("shorter than its space")?;
    if entries.len() != count * 16 {
        return Err(format!("{} bytes for {count} indexes", entries.len()));
    }
    let interrupts: Vec<Interrupts> = entries
        .chunks(16)
        .map(|entry| Interrupts {
            index: u32_at(entry, 0),
            armed: u32_at(entry, 4),
            vectors: u32_at(entry, 8),
            masked: u32_at(entry, 12) & 1 == 1,
        })
        .collect();
    if entries.chunks(16).any(|entry| u32_at(entry, 12) > 1) {
        return Err("unknown flags of an index".into());
    }
    if !interrupts.windows(2).all(|pair| pair[0].index < pair[1].index) {
        return Err("indexes that do not ascend".into());
    }
    if interrupts.iter().any(|one| one.armed == 0 || one.armed > one.vectors) {
        return Err("counts that cannot be".into());
    }
    Ok(Setup { space: space.to_vec(), interrupts })
}

/// Writes a setup.
pub(crate) fn written(setup: &Setup) -> Vec<u8> {
    let mut bytes = b"WDSU\x01\0\0\0".to_vec();
    bytes.extend((setup.space.len() as u32).to_le_bytes());
    bytes.extend((setup.interrupts.len() as u32).to_le_bytes());
    bytes.extend(&setup.space);
    for one in &setup.interrupts {
        let words = [one.index, one.armed, one.vectors, u32::from(one.masked)];
        bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    }
    bytes
}
