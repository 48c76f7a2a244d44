//! Two devices migrate over vsock, between a host and a virtual machine, or within one machine (CID 1, by the kernel's
//! module `vsock_loopback`).
//!
//! ```text
//! cargo run --example vsock -- receive 4000
//! cargo run --example vsock -- send 1 4000
//! ```
//!
//! The engine does not open vsock connections itself: it accepts the descriptor of any connected stream socket.

use std::error::Error;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use vsock::{VMADDR_CID_ANY, VsockListener, VsockStream};
use whimbrel_device::{DeviceFile, WorkingDevice};
use whimbrel_engine::channel::Stream;
use whimbrel_engine::{Destination, Source};
use whimbrel_models::Model;
use whimbrel_user::{Local, Migratable};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const USAGE: &str = "usage: vsock receive PORT, or vsock send CID PORT";

/// The time the sender waits until a receiver listens.
const PATIENCE: Duration = Duration::from_secs(10);

/// The register of the serial card that is written here and read there: the scratch register of its first port.
const SCRATCH: u64 = 7;
const WRITTEN: u8 = 0x5a;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &arguments[..] {
        [role, port] if role == "receive" => receive(port.parse()?),
        [role, cid, port] if role == "send" => send(cid.parse()?, port.parse()?),
        _ => Err(USAGE.into()),
    }
}

/// Opens the devices to migrate, a serial card and one with more state. Returns another handle to the card, too.
fn devices() -> Result<(Vec<Box<dyn Migratable>>, DeviceFile)> {
    let open = |model: &str| -> Result<WorkingDevice> { Ok(model.parse::<Model>()?.open(model)?) };
    let (serial, accel) = (open("serial")?, open("accel?state=64MiB")?);
    let handle = serial.device().clone();
    Ok((vec![Box::new(Local::new(serial)), Box::new(Local::new(accel))], handle))
}

fn channel(socket: &VsockStream) -> std::io::Result<Stream> {
    Stream::try_from(socket.as_fd().try_clone_to_owned()?)
}

fn receive(port: u32) -> Result<()> {
    let listener = VsockListener::bind_with_cid_port(VMADDR_CID_ANY, port)?;
    let (socket, peer) = listener.accept()?;
    let (devices, serial) = devices()?;
    let arrived = Destination::new(devices).receive(channel(&socket)?);
    let received = arrived.result?;
    println!("{} bytes of device state came from {peer}", received.device_bytes);
    let mut found = [0];
    serial.read_region(0, SCRATCH, &mut found)?;
    if found != [WRITTEN] {
        return Err(format!("the register holds {:#04x}, not {WRITTEN:#04x}", found[0]).into());
    }
    println!("the devices run here, and the register holds what was written there");
    Ok(())
}

fn send(cid: u32, port: u32) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let socket = loop {
        match VsockStream::connect_with_cid_port(cid, port) {
            Ok(socket) => break socket,
            Err(error) if Instant::now() >= deadline => return Err(error.into()),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    };
    let (devices, serial) = devices()?;
    serial.write_region(0, SCRATCH, &[WRITTEN])?;
    let report = Source::new(devices).send(channel(&socket)?).result?;
    println!(
        "{} bytes of device state went there, {:.1} ms of downtime",
        report.device_bytes, report.downtime_ms
    );
    Ok(())
}
