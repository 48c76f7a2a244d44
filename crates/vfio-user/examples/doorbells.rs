//! A driver names its doorbell, and a client rings it without a message:
//! `cargo run -p whimbrel-vfio-user --example doorbells`.

use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Sender, channel};

use whimbrel_device::{
    Context, DeviceFile, DeviceInfoFlags, Driver, Errno, Info, IoeventfdWrite, Region, RegionInfoFlags,
    WriteWidth,
};
use whimbrel_vfio_user::{Backend, Client, ClientOptions, IoAccess};

/// A write of 1 here means that there is work.
const KICK: IoeventfdWrite = IoeventfdWrite::new(0, 0x80, WriteWidth::Four, 1);

/// A card that tells when it is kicked.
struct Card(Sender<()>);

impl Driver for Card {
    fn info(&self) -> Info {
        Info::new(DeviceInfoFlags::PCI).num_regions(9).num_irqs(5)
    }

    fn region(&self, index: u32) -> Result<Region, Errno> {
        let bar = Region::new(RegionInfoFlags::WRITE, 4096);
        Ok(if index == KICK.region { bar } else { Region::absent(0) })
    }

    fn write_region(&mut self, _: &Context, _index: u32, offset: u64, data: &[u8]) -> Result<usize, Errno> {
        if (offset, data) == (KICK.offset, &1_u32.to_le_bytes()) {
            self.0.send(()).map_err(|_| Errno::EIO)?;
        }
        Ok(data.len())
    }

    fn doorbells(&self) -> Vec<IoeventfdWrite> {
        vec![KICK]
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (kicked, kicks) = channel();
    let (server, stream) = UnixStream::pair()?;
    let backend = Backend::new(DeviceFile::new("card", |_| Card(kicked)));
    std::thread::spawn(move || backend.serve(server));

    let client = Client::new("card", stream, &ClientOptions::default())?;
    for part in client.region_io_fds(KICK.region)? {
        let IoAccess::Ioeventfd { eventfd, datamatch, .. } = part.access else { continue };
        // A VMM gives all of it to KVM (KVM_IOEVENTFD): the eventfd, the guest's address of the BAR and this
        // offset, the size and the value. Then the guest's own write does what is done here by hand.
        println!("{} bytes at {:#x}, value {datamatch:?}", part.size, part.offset);
        rustix::io::write(&eventfd, &1_u64.to_ne_bytes())?;
        kicks.recv()?;
        println!("the card was kicked, and no message was sent");
    }
    Ok(())
}
