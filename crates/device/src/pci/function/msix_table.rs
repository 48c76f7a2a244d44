//! The MSI-X table and pending bits in a BAR.

use std::ops::Range;

use whimbrel_protocol::Errno;

use crate::pci::config::MsiX;

/// Size of an entry in bytes: address, data, vector control.
const ENTRY_BYTES: usize = 16;
/// Offset of the vector control in an entry. Its bit 0 masks the vector, its other bits are reserved.
const CONTROL: usize = 12;
const MASK: u8 = 1;

/// The table and pending bits of one function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MsiXTable {
    place: MsiX,
    /// The entries as read.
    bytes: Vec<u8>,
    /// The vectors whose control has been written.
    written: Vec<bool>,
    /// The pending bits as read.
    pending: Vec<u64>,
}

impl MsiXTable {
    /// Returns a table in its power-on state: every vector is masked, but masks count only after a write.
    pub(super) fn new(place: MsiX) -> MsiXTable {
        let vectors = usize::from(place.vectors);
        let mut bytes = vec![0; vectors * ENTRY_BYTES];
        bytes.iter_mut().skip(CONTROL).step_by(ENTRY_BYTES).for_each(|control| *control = MASK);
        MsiXTable { place, bytes, written: vec![false; vectors], pending: vec![0; vectors.div_ceil(64)] }
    }

    /// Reads from a BAR; `false` if the access is not within the table or the pending bits.
    pub(super) fn read(&self, bar: u32, offset: u64, data: &mut [u8]) -> Result<bool, Errno> {
        if let Some(at) = within(bar, offset, data.len(), self.table())? {
            data.copy_from_slice(&self.bytes[at..at + data.len()]);
        } else if let Some(at) = within(bar, offset, data.len(), self.pending_place())? {
            data.copy_from_slice(&self.pending_bytes()[at..at + data.len()]);
        } else {
            return Ok(false);
        }
        Ok(true)
    }

    /// Writes to a BAR; `false` if the access is not within the table or the pending bits, which are read-only.
    pub(super) fn write(&mut self, bar: u32, offset: u64, data: &[u8]) -> Result<bool, Errno> {
        if let Some(at) = within(bar, offset, data.len(), self.table())? {
            let (words, rest) = data.as_chunks::<4>();
            if !at.is_multiple_of(4) || !rest.is_empty() {
                return Err(Errno::EINVAL);
            }
            for (at, word) in (at..).step_by(4).zip(words) {
                let mut word = *word;
                if at % ENTRY_BYTES == CONTROL {
                    word = [word[0] & MASK, 0, 0, 0];
                    self.written[at / ENTRY_BYTES] = true;
                }
                self.bytes[at..at + 4].copy_from_slice(&word);
            }
            return Ok(true);
        }
        Ok(within(bar, offset, data.len(), self.pending_place())?.is_some())
    }

    /// Returns whether the guest has masked a vector.
    pub(super) fn is_masked(&self, vector: usize) -> bool {
        self.written[vector] && self.bytes[vector * ENTRY_BYTES + CONTROL] & MASK != 0
    }

    /// Makes a vector pending. A vector outside of the table is ignored.
    pub(super) fn post(&mut self, vector: u32) {
        if vector < u32::from(self.place.vectors) {
            self.pending[vector as usize / 64] |= 1 << (vector % 64);
        }
    }

    /// Clears and returns the pending vectors for which `take` returns true.
    pub(super) fn take_pending(&mut self, mut take: impl FnMut(&MsiXTable, usize) -> bool) {
        for word in 0..self.pending.len() {
            let mut left = self.pending[word];
            while left != 0 {
                let bit = left.trailing_zeros();
                left &= left - 1;
                if take(self, word * 64 + bit as usize) {
                    self.pending[word] &= !(1 << bit);
                }
            }
        }
    }

    fn table(&self) -> (u8, Range<u64>) {
        let start = u64::from(self.place.table_offset);
        (self.place.table_bar, start..start + self.place.table_bytes())
    }

    fn pending_place(&self) -> (u8, Range<u64>) {
        let start = u64::from(self.place.pending_offset);
        (self.place.pending_bar, start..start + self.place.pending_bytes())
    }

    fn pending_bytes(&self) -> Vec<u8> {
        self.pending.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// Appends the whole table to `out`.
    pub(super) fn save(&self, out: &mut Vec<u8>) {
        out.extend(&self.bytes);
        out.extend(self.written.iter().map(|written| u8::from(*written)));
        out.extend(self.pending_bytes());
    }

    /// Returns the number of bytes that [`MsiXTable::save`] appends.
    pub(super) fn saved_bytes(&self) -> usize {
        self.bytes.len() + self.written.len() + self.pending.len() * 8
    }

    /// Returns the table saved by another one of the same shape; `None` if the bytes are invalid.
    pub(super) fn load(&self, saved: &[u8]) -> Option<MsiXTable> {
        let (bytes, rest) = saved.split_at_checked(self.bytes.len())?;
        let (written, pending) = rest.split_at_checked(self.written.len())?;
        let pending: Vec<u64> =
            pending.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
        let past_the_end = match (pending.last(), self.written.len() % 64) {
            (Some(last), used @ 1..) => last >> used,
            _ => 0,
        };
        let are_entries = (bytes.as_chunks::<ENTRY_BYTES>().0.iter())
            .all(|entry| entry[CONTROL] <= MASK && entry[CONTROL + 1..] == [0; 3]);
        let is_whole = pending.len() == self.pending.len() && written.iter().all(|flag| *flag <= 1);
        (is_whole && are_entries && past_the_end == 0).then(|| MsiXTable {
            place: self.place,
            bytes: bytes.to_vec(),
            written: written.iter().map(|flag| *flag != 0).collect(),
            pending,
        })
    }
}

/// Returns the offset of an access within `place`; `None` if they are disjoint. EINVAL if they overlap partly.
fn within(bar: u32, offset: u64, length: usize, place: (u8, Range<u64>)) -> Result<Option<usize>, Errno> {
    let (place_bar, place) = place;
    let end = offset.saturating_add(length as u64);
    if bar != u32::from(place_bar) || end <= place.start || offset >= place.end {
        return Ok(None);
    }
    if offset < place.start || end > place.end {
        return Err(Errno::EINVAL);
    }
    Ok(Some((offset - place.start) as usize))
}
