//! Serves a device that is written in a few lines: `cargo run -p whimbrel-vfio-user --example serve --
//! SOCKET`.

use whimbrel_device::{
    Context, DeviceFile, DeviceInfoFlags, Driver, Errno, Info, Region, RegionInfoFlags, survive_lost_memory,
};
use whimbrel_vfio_user::{Backend, Server};

/// A card whose BAR 0 is 4 KiB of memory.
struct Card(Vec<u8>);

impl Driver for Card {
    fn info(&self) -> Info {
        Info::new(DeviceInfoFlags::PCI).num_regions(9).num_irqs(5)
    }

    fn region(&self, index: u32) -> Result<Region, Errno> {
        let flags = RegionInfoFlags::READ | RegionInfoFlags::WRITE;
        let bar = Region::new(flags, self.0.len() as u64);
        Ok(if index == 0 { bar } else { Region::absent(0) })
    }

    fn read_region(
        &mut self,
        _: &Context,
        _index: u32,
        offset: u64,
        data: &mut [u8],
    ) -> Result<usize, Errno> {
        data.copy_from_slice(&self.0[offset as usize..][..data.len()]);
        Ok(data.len())
    }

    fn write_region(&mut self, _: &Context, _index: u32, offset: u64, data: &[u8]) -> Result<usize, Errno> {
        self.0[offset as usize..][..data.len()].copy_from_slice(data);
        Ok(data.len())
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("say where the socket shall be")?;
    // From here on a client that makes its memory shorter cannot end this process.
    survive_lost_memory()?;
    let device = DeviceFile::new("card", |_| Card(vec![0; 4096]));
    let server = Server::bind(&path, Backend::new(device))?;
    println!("serving at {path}; a VMM can use it as a vfio-user device");
    println!("{} clients were served", server.run()?.clients);
    Ok(())
}
