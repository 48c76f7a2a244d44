//! A device whose state is told to it, byte by byte, through its registers.

use whimbrel_device::{
    ArcError, Context, DeviceFile, DeviceInfoFlags, Driver, Errno, Info, Migration, MigrationFlags,
    PrecopyReport, Region, RegionInfoFlags, State,
};
use whimbrel_protocol::precopy::PrecopyBytes;

/// A u32 written here is so many bytes of state that can be read, in PRE_COPY and behind it.
pub(crate) const PRODUCE: u64 = 0;
/// A u32 written here is so many bytes of new initial data.
pub(crate) const REINIT: u64 = 4;
/// What is written here is the errno of the next read but one.
pub(crate) const FAIL: u64 = 8;
/// Comes last, once the device has stopped.
pub(crate) const TRAILER: &[u8] = b"whimbrel";
/// At most so many bytes are read at once.
pub(crate) const PIECE: usize = 100;

#[derive(Default)]
struct Source {
    initial: u64,
    dirty: u64,
    reinit: bool,
    fail: Option<u32>,
    state: u8,
    trailer: usize,
    taken: Vec<u8>,
}

impl Driver for Source {
    fn info(&self) -> Info {
        Info::new(DeviceInfoFlags::PCI | DeviceInfoFlags::RESET).num_regions(1)
    }
    fn region(&self, _index: u32) -> Result<Region, Errno> {
        let flags = RegionInfoFlags::READ | RegionInfoFlags::WRITE;
        Ok(Region::new(flags, 4096))
    }
    /// What was loaded.
    fn read_region(
        &mut self,
        _: &Context,
        _index: u32,
        offset: u64,
        data: &mut [u8],
    ) -> Result<usize, Errno> {
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = self.taken.get(offset as usize + index).copied().unwrap_or_default();
        }
        Ok(data.len())
    }
    fn write_region(&mut self, _: &Context, _index: u32, offset: u64, data: &[u8]) -> Result<usize, Errno> {
        let value = u32::from_ne_bytes(data.try_into().map_err(|_| Errno::EINVAL)?);
        match offset {
            PRODUCE => self.dirty += u64::from(value),
            REINIT => (self.initial, self.dirty, self.reinit) = (value.into(), 0, true),
            FAIL => self.fail = Some(value),
            _ => return Err(Errno::EINVAL),
        }
        Ok(data.len())
    }
    fn reset(&mut self, _: &Context) -> Result<(), Errno> {
        *self = Source::default();
        Ok(())
    }
    fn migration(&mut self) -> Option<&mut dyn Migration> {
        Some(self)
    }
}

impl Migration for Source {
    fn flags(&self) -> MigrationFlags {
        MigrationFlags::STOP_COPY | MigrationFlags::P2P | MigrationFlags::PRE_COPY
    }
    fn arc(&mut self, _: &Context, from: State, to: State) -> Result<(), ArcError> {
        match (from, to) {
            (State::Resuming, _) if !self.taken.ends_with(TRAILER) => return Err(Errno::EINVAL.into()),
            (_, State::Resuming) => self.taken.clear(),
            (_, State::StopCopy) => self.trailer = TRAILER.len(),
            _ => {}
        }
        Ok(())
    }
    fn data_size(&mut self, _: &Context) -> Result<u64, Errno> {
        Ok(self.initial + self.dirty + TRAILER.len() as u64)
    }
    fn read(&mut self, _: &Context, buffer: &mut [u8]) -> Result<usize, Errno> {
        match self.fail {
            Some(errno) if errno & 0x1_0000 == 0 => self.fail = Some(errno | 0x1_0000),
            Some(errno) => {
                self.fail = None;
                return Err(Errno::try_from(errno & 0xffff).unwrap_or(Errno::EIO));
            }
            None => {}
        }
        let left = if self.initial > 0 { &mut self.initial } else { &mut self.dirty };
        let count = buffer.len().min(PIECE).min(*left as usize);
        *left -= count as u64;
        for byte in &mut buffer[..count] {
            *byte = self.state;
            self.state = self.state.wrapping_add(1);
        }
        if count > 0 {
            return Ok(count);
        }
        let count = buffer.len().min(self.trailer);
        let start = TRAILER.len() - self.trailer;
        buffer[..count].copy_from_slice(&TRAILER[start..start + count]);
        self.trailer -= count;
        Ok(count)
    }
    fn write(&mut self, _: &Context, data: &[u8]) -> Result<usize, Errno> {
        let count = data.len().min(PIECE);
        self.taken.extend_from_slice(&data[..count]);
        Ok(count)
    }
    fn precopy(&mut self, _: &Context) -> Result<PrecopyReport, Errno> {
        let bytes = PrecopyBytes { initial: self.initial, dirty: self.dirty };
        Ok(PrecopyReport::from(bytes).reinit(std::mem::take(&mut self.reinit)))
    }
}

/// Such a device, which has all states.
pub(crate) fn open(name: &str) -> DeviceFile {
    DeviceFile::new(name, |_| Source::default())
}
