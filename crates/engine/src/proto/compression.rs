//! Compression of memory and device state by Zstandard (RFC 8878): one frame of it for the data of one frame of the stream.
//!
//! Nothing is kept from one to the next, so that they can be decompressed on any lane, and after a lost connection. Data that
//! does not become smaller stays as it is.

use std::fmt;

use zstd_safe::{CCtx, DCtx, find_frame_compressed_size, get_error_name, get_frame_content_size};

use super::frame::{Kind, MAX_COMPRESSED_MEMORY};
use super::message::{Compressed, Message};
use super::problem::Problem;

/// The level of the compression. `docs/performance.md` says why.
const LEVEL: i32 = 1;
/// The minimum of data that is compressed, in bytes: of less, nothing can be saved.
const MIN: usize = 64;
/// The part by which data has to become smaller, as a divisor: saving less is not worth the decompression.
const GAIN: usize = 16;

/// A compressor, with room for the data of one frame.
pub struct Compressor {
    context: CCtx<'static>,
    output: Vec<u8>,
}

impl Compressor {
    /// Returns a compressor, or `None` without memory for one.
    pub fn new() -> Option<Compressor> {
        Some(Compressor { context: CCtx::try_create()?, output: Vec::new() })
    }

    /// Returns a message with the same data in compressed form; `None` if it has no memory or device state, or if that does
    /// not become smaller.
    pub fn compress(&mut self, message: &Message<'_>) -> Option<Message<'_>> {
        match *message {
            Message::Memory { address, data } if data.len() <= MAX_COMPRESSED_MEMORY => {
                Some(Message::CompressedMemory { address, data: self.shrink(data)? })
            }
            Message::DeviceState { device, ends, data } => {
                Some(Message::CompressedState { device, ends, data: self.shrink(data)? })
            }
            _ => None,
        }
    }

    fn shrink(&mut self, data: &[u8]) -> Option<Compressed<'_>> {
        if data.len() < MIN {
            return None;
        }
        let most = data.len() - data.len() / GAIN;
        if self.output.len() < most {
            self.output.resize(most, 0);
        }
        // Any error means that there is too little room.
        let count = self.context.compress(&mut self.output[..most], data, LEVEL).ok()?;
        Some(Compressed { length: u32::try_from(data.len()).ok()?, bytes: &self.output[..count] })
    }
}

/// A decompressor, with room for memory that is then put into its place. Both are made when they are needed first.
#[derive(Default)]
pub struct Decompressor {
    context: Option<DCtx<'static>>,
    output: Vec<u8>,
}

impl Decompressor {
    /// Decompresses memory. It has at most [`MAX_COMPRESSED_MEMORY`] bytes.
    pub fn memory(&mut self, data: Compressed<'_>) -> Result<&[u8], Problem> {
        let length = (data.length as usize).min(MAX_COMPRESSED_MEMORY);
        let mut output = std::mem::take(&mut self.output);
        if output.len() < length {
            // No more than is needed, so that the bound of what is held is exact.
            output.reserve_exact(length - output.len());
            output.resize(length, 0);
        }
        let result = self.decompress(Kind::MemoryZstd, data, &mut output[..length]);
        self.output = output;
        result.map(|()| &self.output[..length])
    }

    /// Decompresses device state into `place`, and fills that.
    pub fn state(&mut self, data: Compressed<'_>, place: &mut [u8]) -> Result<(), Problem> {
        self.decompress(Kind::DeviceStateZstd, data, place)
    }

    /// Fills `place`, if that is what the data contains: neither less nor more.
    fn decompress(&mut self, kind: Kind, data: Compressed<'_>, place: &mut [u8]) -> Result<(), Problem> {
        let malformed = |what: String| Problem::Payload { kind, what };
        // What claims another size is not decompressed at all.
        match get_frame_content_size(data.bytes) {
            Ok(Some(size)) if size == place.len() as u64 && size == u64::from(data.length) => {}
            Ok(Some(size)) => {
                return Err(malformed(format!("the compressed data claims {size} bytes of {}", data.length)));
            }
            Ok(None) | Err(_) => {
                return Err(malformed("the compressed data does not say its size".to_string()));
            }
        }
        // Zstandard would go on with the next frame, and pass over some.
        if find_frame_compressed_size(data.bytes) != Ok(data.bytes.len()) {
            return Err(malformed("the compressed data is not one whole frame".to_string()));
        }
        if self.context.is_none() {
            self.context = DCtx::try_create();
        }
        let Some(context) = &mut self.context else {
            return Err(malformed("no memory to decompress it".to_string()));
        };
        match context.decompress(place, data.bytes) {
            Ok(count) if count == place.len() => Ok(()),
            Ok(count) => {
                Err(malformed(format!("{count} bytes after the decompression, not {}", place.len())))
            }
            Err(code) => Err(malformed(format!("it cannot be decompressed: {}", get_error_name(code)))),
        }
    }
}

impl fmt::Debug for Compressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compressor").finish_non_exhaustive()
    }
}

impl fmt::Debug for Decompressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decompressor").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Text that repeats itself, and noise.
    fn text(length: usize) -> Vec<u8> {
        (0..length).map(|at| b"the same words again and again "[at % 31] ^ (at / 4096) as u8).collect()
    }

    fn noise(length: usize) -> Vec<u8> {
        let mut noise = vec![0; length];
        fastrand::Rng::with_seed(7).fill(&mut noise);
        noise
    }

    fn memory(compressor: &mut Compressor, data: &[u8]) -> Option<(u32, Vec<u8>)> {
        match compressor.compress(&Message::Memory { address: 7, data })? {
            Message::CompressedMemory { address: 7, data } => Some((data.length, data.bytes.to_vec())),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_compressed_reads_back_and_is_smaller() {
        let mut compressor = Compressor::new().unwrap();
        let mut decompressor = Decompressor::default();
        for length in [MIN, 4096, 5000, 70_000, MAX_COMPRESSED_MEMORY] {
            let data = text(length);
            let (length, bytes) = memory(&mut compressor, &data).unwrap();
            assert!(bytes.len() <= data.len() - data.len() / GAIN);
            assert_eq!(decompressor.memory(Compressed { length, bytes: &bytes }), Ok(&data[..]));
        }
        let data = text(1 << 20);
        let message = compressor.compress(&Message::DeviceState { device: 3, ends: true, data: &data });
        let Some(Message::CompressedState { device: 3, ends: true, data: compressed }) = message else {
            panic!("{message:?}")
        };
        let mut place = vec![0; data.len()];
        decompressor.state(compressed, &mut place).unwrap();
        assert!(place == data);
    }

    #[test]
    fn noise_little_data_and_other_messages_stay_as_they_are() {
        let mut compressor = Compressor::new().unwrap();
        assert_eq!(memory(&mut compressor, &noise(4096)), None);
        assert_eq!(memory(&mut compressor, &noise(MAX_COMPRESSED_MEMORY)), None);
        assert_eq!(memory(&mut compressor, &text(MIN - 1)), None);
        assert_eq!(memory(&mut compressor, &text(MAX_COMPRESSED_MEMORY + 1)), None);
        // It is as good as new after that.
        assert!(memory(&mut compressor, &text(4096)).is_some());
        let data = text(4096);
        assert_eq!(compressor.compress(&Message::Padding { data: &data }), None);
        assert_eq!(compressor.compress(&Message::MemoryZero { address: 0, length: 4096 }), None);
    }

    fn refused(length: u32, bytes: &[u8]) -> String {
        let mut decompressor = Decompressor::default();
        let error = decompressor.memory(Compressed { length, bytes }).unwrap_err().to_string();
        let mut place = vec![0; length as usize];
        decompressor.state(Compressed { length, bytes }, &mut place).unwrap_err();
        error
    }

    #[test]
    fn another_size_than_the_frame_says_is_refused_before_the_decompression() {
        let mut compressor = Compressor::new().unwrap();
        let (length, bytes) = memory(&mut compressor, &text(5000)).unwrap();
        for other in [length - 1, length + 1, 1, MAX_COMPRESSED_MEMORY as u32] {
            let error = refused(other, &bytes);
            assert!(error.contains(&format!("claims 5000 bytes of {other}")), "{error}");
        }
        // A MiB of zeros in a few bytes.
        let zeros = vec![0; 1 << 20];
        let bomb = compressor.compress(&Message::DeviceState { device: 0, ends: false, data: &zeros });
        let Some(Message::CompressedState { data, .. }) = bomb else { panic!("{bomb:?}") };
        assert!(data.bytes.len() < 200);
        assert!(refused(4096, data.bytes).contains("claims 1048576 bytes of 4096"));
    }

    #[test]
    fn garbage_and_cut_data_are_refused() {
        assert!(refused(4096, &noise(400)).contains("does not say its size"));
        assert!(refused(4096, b"x").contains("does not say its size"));
        let data = text(5000);
        let (length, bytes) = memory(&mut Compressor::new().unwrap(), &data).unwrap();
        for end in 1..bytes.len() {
            refused(length, &bytes[..end]);
        }
        let twice = [&bytes[..], &bytes[..]].concat();
        refused(length, &twice);
        // A frame that carries nothing, which Zstandard passes over.
        let more = [&bytes[..], b"\x50\x2a\x4d\x18\0\0\0\0"].concat();
        assert!(refused(length, &more).contains("is not one whole frame"));
        let mut decompressor = Decompressor::default();
        for at in 0..bytes.len() {
            // It may be other data then, whose checksum would have told; but no more of it.
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x55;
            if let Ok(data) = decompressor.memory(Compressed { length, bytes: &damaged }) {
                assert_eq!(data.len(), 5000);
            }
        }
        assert_eq!(decompressor.memory(Compressed { length, bytes: &bytes }), Ok(&data[..]));
    }
}
