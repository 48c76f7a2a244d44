//! What the author of the card tells the suite: how to make it write to memory, and what of its state a user sees.

use whimbrel_conformance::{DmaWriter, RegisterProbe};
use whimbrel_user::{Device, DmaMapFlags, DmaRegion, Error};

use crate::card::{DMA_ADDRESS, DMA_START, LAYOUT, MEMORY, MEMORY_BYTES, REGISTER_BYTES, REGISTERS};

/// Makes the card write to memory.
pub(crate) struct Writer;

impl DmaWriter for Writer {
    fn prepare(&self, device: &mut dyn Device, iova: u64, memory: &DmaRegion) -> Result<(), Error> {
        let Some(map) = device.dma_map() else {
            return Err(Error::unusable("card", "it has no address space"));
        };
        map.map_dma(iova, DmaMapFlags::READ | DmaMapFlags::WRITE, memory.clone())
    }

    fn write(&self, device: &mut dyn Device, pages: &[u64]) -> Result<(), Error> {
        for page in pages {
            device.write_region(REGISTERS, DMA_ADDRESS, &page.to_le_bytes())?;
            device.write_region(REGISTERS, DMA_START, &[1])?;
        }
        Ok(())
    }
}

/// Changes the card's registers and memory, and reads them.
pub(crate) struct Registers;

impl RegisterProbe for Registers {
    fn change(&self, device: &mut dyn Device, seed: u64) -> Result<(), Error> {
        let mut random = fastrand::Rng::with_seed(seed);
        for register in 0..DMA_ADDRESS / 4 {
            device.write_region(REGISTERS, register * 4, &random.u32(1..).to_le_bytes())?;
        }
        // Rarely, because it hides what becomes of smaller changes.
        if seed.is_multiple_of(8) {
            device.write_region(REGISTERS, LAYOUT, &random.u32(1..).to_le_bytes())?;
        }
        let mut memory = vec![0; MEMORY_BYTES];
        random.fill(&mut memory[..MEMORY_BYTES / 4]);
        random.fill(&mut memory[MEMORY_BYTES - 512..]);
        device.write_region(MEMORY, 0, &memory)
    }

    fn look(&self, device: &mut dyn Device) -> Result<Vec<u8>, Error> {
        let mut state = vec![0; REGISTER_BYTES + MEMORY_BYTES];
        let (registers, memory) = state.split_at_mut(REGISTER_BYTES);
        device.read_region(REGISTERS, 0, registers)?;
        device.read_region(MEMORY, 0, memory)?;
        Ok(state)
    }
}
