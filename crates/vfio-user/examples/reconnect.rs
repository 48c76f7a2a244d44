//! A VMM's event loop with a device that survives crashes of its server:
//! `cargo run -p whimbrel-vfio-user --example reconnect -- SOCKET`, where `serve_model` serves an accel. Kill the server,
//! start it again, and see. It ends after the first reset.

use std::os::fd::AsFd;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use whimbrel_models::accel;
use whimbrel_user::{Device, Errno};
use whimbrel_vfio_user::{Client, ClientOptions, ConnectionStatus, Reconnect};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("SOCKET")?;
    let reconnect = Reconnect::within(Duration::from_mins(1));
    let mut device = Client::connect(path, &ClientOptions::default().reconnect(reconnect))?;
    // It is set once: the next server gets it too.
    let interrupt = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    device.set_irq_triggers(1, 0, &[Some(interrupt.as_fd())])?;
    set_up(&mut device)?;
    println!("the device is set up");

    let mut resets = 0;
    while resets == 0 {
        // A VMM has its other descriptors here, too.
        let events = device.connection_events().ok_or("no reconnection")?;
        let timeout = Timespec::try_from(Duration::from_millis(100))?;
        if poll(&mut [PollFd::new(&events, PollFlags::IN)], Some(&timeout))? == 0 {
            match queue_size(&mut device) {
                Ok(size) => assert_eq!(size, 16),
                // The server has just crashed. The event comes, too.
                Err(error) if matches!(error.errno(), Some(Errno::ECONNRESET | Errno::ENOTCONN)) => {
                    println!("a request failed: {error}");
                }
                Err(error) => return Err(error.into()),
            }
            continue;
        }
        rustix::io::read(events, &mut [0; 8])?;
        match device.connection_status() {
            ConnectionStatus::Reconnecting { .. } => println!("the server is gone"),
            ConnectionStatus::Closed { why } => return Err(why.into()),
            _ => {}
        }
        if device.resets() > resets {
            resets = device.resets();
            // A VMM tells its guest that the device was reset, whose driver then does this.
            println!("the device was reset: its queue has {} entries", queue_size(&mut device)?);
            set_up(&mut device)?;
            println!("the device is set up again: its queue has {} entries", queue_size(&mut device)?);
        }
    }
    Ok(())
}

fn set_up(device: &mut Client) -> whimbrel_user::Result<()> {
    device.write_region(0, accel::REGISTER_QUEUE_SIZE, &16_u32.to_le_bytes())
}

fn queue_size(device: &mut Client) -> whimbrel_user::Result<u32> {
    let mut size = [0; 4];
    device.read_region(0, accel::REGISTER_QUEUE_SIZE, &mut size)?;
    Ok(u32::from_le_bytes(size))
}
