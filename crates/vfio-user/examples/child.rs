//! Serves a device in a process of its own, over a socket that only the two have: nothing is in the file
//! system, and the server ends when its client does. `cargo run -p whimbrel-vfio-user --example child`.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Command;

use whimbrel_models::Model;
use whimbrel_user::Migratable;
use whimbrel_vfio_user::{Backend, Client, ClientOptions};

const SERVE: &str = "serve";

/// The child: its socket is its standard input.
fn serve() -> Result<(), Box<dyn std::error::Error>> {
    let model = "serial".parse::<Model>()?.open("serial")?;
    let socket = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    Ok(Backend::new(model).serve(socket)?)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    if std::env::args().nth(1).as_deref() == Some(SERVE) {
        return serve();
    }
    let (theirs, own) = UnixStream::pair()?;
    let mut child = Command::new(std::env::current_exe()?).arg(SERVE).stdin(OwnedFd::from(theirs)).spawn()?;
    let mut device = Client::new("serial", own, &ClientOptions::default())?;
    println!("process {} serves {} regions, {}", child.id(), device.info()?.num_regions, device.state()?);
    drop(device);
    println!("and has ended: {}", child.wait()?);
    Ok(())
}
