//! Reads and writes the registers of a kernel's device.
//!
//! ```text
//! region group:UUID write 0:7 42          the scratch register of a serial card
//! region cdev:/dev/vfio/devices/vfio0 read 0:7:1
//! ```
//!
//! A place is `REGION:OFFSET`, for a read with `:LENGTH`. Bytes are in hexadecimal. A write of several bytes writes them
//! one after the other to the same place, as a FIFO wants it.

use std::error::Error;

use whimbrel_user::Device;
use whimbrel_user::kernel::{Cdev, Group};

const USAGE: &str =
    "usage: region group:DEVICE|cdev:PATH read REGION:OFFSET:LENGTH | write REGION:OFFSET HEX..";

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [target, verb, place, bytes @ ..] = arguments.as_slice() else { return Err(USAGE.into()) };
    let mut device: Box<dyn Device> = match target.split_once(':') {
        Some(("group", name)) => Box::new(Group::find(name)?),
        Some(("cdev", path)) => Box::new(Cdev::open(path)?),
        _ => return Err(USAGE.into()),
    };
    let place: Vec<u64> = place.split(':').map(str::parse).collect::<Result<_, _>>()?;
    match (verb.as_str(), place.as_slice(), bytes) {
        ("read", [region, offset, length], []) => {
            let region = u32::try_from(*region)?;
            for _ in 0..*length {
                let mut byte = [0];
                device.read_region(region, *offset, &mut byte)?;
                print!("{:02x}", byte[0]);
            }
            println!();
        }
        ("write", [region, offset], bytes) => {
            let region = u32::try_from(*region)?;
            for byte in bytes {
                device.write_region(region, *offset, &[u8::from_str_radix(byte, 16)?])?;
            }
        }
        _ => return Err(USAGE.into()),
    }
    Ok(())
}
