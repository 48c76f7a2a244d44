//! A migratable PCI device, whole, served at a socket:
//! `cargo run -p whimbrel-vfio-user --example first_driver -- SOCKET`.

use whimbrel_device::pci::config::{Bar, MsiX, PciConfig};
use whimbrel_device::pci::function::{Access, Function};
use whimbrel_device::{
    ArcError, Context, DeviceFile, DmaLogging, Driver, Errno, Info, Irq, Migration, MigrationFlags,
    PrecopyReport, Region, State, survive_lost_memory,
};
use whimbrel_protocol::session::{Effect, effect};
use whimbrel_vfio_user::{Backend, Server};

const PAGE: usize = 4096;
const PAGES: u32 = 16;
/// Stands in the stream where a page's number would, before the function's state, which ends the stream.
const END: u32 = u32::MAX;

/// A card with memory of its own, BAR 0. An address that is written to BAR 1 gets a copy of its first page by DMA.
struct Card {
    function: Function,
    memory: Vec<u8>,
    /// Pages that have changed since they were sent; in RESUMING, those that have not arrived.
    unsent: std::collections::BTreeSet<u32>,
    /// Bytes of the stream on their way.
    stream: Vec<u8>,
    is_complete: bool,
}

impl Driver for Card {
    fn info(&self) -> Info {
        self.function.info()
    }
    fn region(&self, index: u32) -> Result<Region, Errno> {
        Ok(self.function.region(index))
    }
    fn irq(&self, index: u32) -> Result<Irq, Errno> {
        Ok(self.function.irq(index))
    }
    fn read_region(&mut self, _: &Context, bar: u32, at: u64, data: &mut [u8]) -> Result<usize, Errno> {
        if let Access::Driver = self.function.read_region(bar, at, data)? {
            let contents = if bar == 0 { &self.memory[..] } else { &[0; PAGE] };
            data.copy_from_slice(&contents[at as usize..][..data.len()]);
        }
        Ok(data.len())
    }
    fn write_region(&mut self, context: &Context, bar: u32, at: u64, data: &[u8]) -> Result<usize, Errno> {
        match (self.function.write_region(bar, at, data)?, bar) {
            (Access::Driver, _) if !context.state().is_running() => return Err(Errno::EBUSY),
            (Access::Driver, 0) => {
                let (start, end) = (at as usize, at as usize + data.len());
                self.memory[start..end].copy_from_slice(data);
                self.unsent.extend((start / PAGE) as u32..end.div_ceil(PAGE) as u32);
            }
            (Access::Driver, 1) => {
                let address = u64::from_le_bytes(data.try_into().map_err(|_| Errno::EINVAL)?);
                let dma = self.function.dma().ok_or(Errno::EIO)?;
                dma.write(address, &self.memory[..PAGE]).map_err(|_| Errno::EFAULT)?;
                self.function.send_message(0);
            }
            _ => {}
        }
        Ok(data.len())
    }
    fn reset(&mut self, _: &Context) -> Result<(), Errno> {
        self.function.reset();
        self.memory.fill(0);
        Ok(())
    }
    fn migration(&mut self) -> Option<&mut dyn Migration> {
        Some(self)
    }
    fn dma_logging(&mut self) -> Option<&mut dyn DmaLogging> {
        Some(&mut self.function)
    }
}

impl Migration for Card {
    fn flags(&self) -> MigrationFlags {
        MigrationFlags::STOP_COPY | MigrationFlags::PRE_COPY
    }
    fn arc(&mut self, _: &Context, from: State, to: State) -> Result<(), ArcError> {
        if let Effect::Opens(_) = effect(from, to) {
            self.unsent.extend(0..PAGES);
            (self.stream, self.is_complete) = (Vec::new(), false);
        } else if from == State::Resuming && !self.is_complete {
            return Err(Errno::EINVAL.into());
        }
        self.function.enter(to);
        Ok(())
    }
    fn data_size(&mut self, _: &Context) -> Result<u64, Errno> {
        Ok((PAGES as usize * (4 + PAGE) + 4 + self.function.saved_bytes()) as u64)
    }
    fn precopy(&mut self, _: &Context) -> Result<PrecopyReport, Errno> {
        let dirty = (self.unsent.len() * (4 + PAGE) + self.stream.len()) as u64;
        Ok(PrecopyReport::new(0, dirty))
    }
    fn read(&mut self, context: &Context, buffer: &mut [u8]) -> Result<usize, Errno> {
        let next = if self.stream.is_empty() { self.unsent.pop_first() } else { None };
        if let Some(page) = next {
            self.stream.extend(page.to_le_bytes());
            self.stream.extend(&self.memory[page as usize * PAGE..][..PAGE]);
        } else if self.stream.is_empty() && context.state() == State::StopCopy && !self.is_complete {
            self.stream.extend(END.to_le_bytes());
            self.stream.extend(self.function.save());
            self.is_complete = true;
        }
        let count = self.stream.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.stream[..count]);
        self.stream.drain(..count);
        Ok(count)
    }
    fn write(&mut self, _: &Context, data: &[u8]) -> Result<usize, Errno> {
        self.stream.extend(data);
        while !self.is_complete
            && let Some((page, rest)) = self.stream.split_first_chunk::<4>()
        {
            let page = u32::from_le_bytes(*page);
            if page >= PAGES && (page != END || !self.unsent.is_empty()) {
                return Err(Errno::EINVAL);
            }
            let length = if page == END { self.function.saved_bytes() } else { PAGE };
            let Some(record) = rest.get(..length) else { break };
            if page == END {
                self.function.load(record).map_err(|_| Errno::EINVAL)?;
                self.is_complete = true;
            } else {
                self.memory[page as usize * PAGE..][..PAGE].copy_from_slice(record);
                self.unsent.remove(&page);
            }
            self.stream.drain(..4 + length);
        }
        if self.is_complete && !self.stream.is_empty() { Err(Errno::ENOMEM) } else { Ok(data.len()) }
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("usage: first_driver SOCKET")?;
    survive_lost_memory()?;
    let memory = vec![0; PAGES as usize * PAGE];
    let [large, small] = [memory.len() as u32, 4096].map(|size| Bar::Memory32 { size, prefetchable: false });
    let config = PciConfig::builder(0x1234, 0xca4d).bar(0, large).bar(1, small).bar(2, small);
    let config = config.capability(MsiX::new(1, 2).pending_offset(2048)).build()?;
    let (unsent, stream, is_complete) = ([].into(), Vec::new(), false);
    let card = |bus| Card { function: Function::new(config, bus), memory, unsent, stream, is_complete };
    Server::bind(&path, Backend::new(DeviceFile::new("card", card)))?.run()?;
    Ok(())
}
