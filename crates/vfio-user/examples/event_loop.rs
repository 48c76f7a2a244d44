//! Two devices on one thread, in an event loop of the program's own:
//! `cargo run -p whimbrel-vfio-user --example event_loop`.

use std::ops::ControlFlow;
use std::path::PathBuf;

use rustix::event::{PollFd, PollFlags, poll};
use whimbrel_models::Model;
use whimbrel_user::Migratable;
use whimbrel_vfio_user::{Backend, BackendOptions, Client, ClientOptions, Server};

/// A device, and where it is served.
const DEVICES: [(&str, &str); 2] = [("serial", "serial.socket"), ("accel?state=1MiB", "accel.socket")];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let mut servers = Vec::new();
    for (model, name) in DEVICES {
        let model = model.parse::<Model>()?.open(name)?;
        // Nobody waits for a client of the other device.
        let options = BackendOptions::default().remote_memory(false);
        servers.push(Server::bind(folder.path().join(name), Backend::with(model, options))?);
    }
    let paths: Vec<PathBuf> = servers.iter().map(|server| server.path().to_owned()).collect();
    let stoppers: Vec<_> = servers.iter().map(Server::stopper).collect();
    let users = std::thread::spawn(move || {
        let result = use_both(&paths);
        for stopper in stoppers {
            stopper.stop();
        }
        result
    });

    while !servers.is_empty() {
        // Beside whatever else the program waits for. It may as well be epoll, or a runtime's readiness.
        let mut asked: Vec<PollFd<'_>> =
            servers.iter().map(|server| PollFd::new(server, PollFlags::IN)).collect();
        poll(&mut asked, None)?;
        let ready: Vec<bool> = asked.iter().map(|asked| !asked.revents().is_empty()).collect();
        let mut ready = ready.into_iter();
        let mut failed = None;
        servers.retain(|server| {
            if !ready.next().unwrap_or(false) {
                return true;
            }
            match server.dispatch() {
                Ok(ControlFlow::Continue(())) => true,
                Ok(ControlFlow::Break(served)) => {
                    println!("{} clients at {}", served.clients, server.path().display());
                    false
                }
                Err(error) => {
                    failed = Some(error);
                    false
                }
            }
        });
        if let Some(error) = failed {
            return Err(error.into());
        }
    }
    users.join().expect("it does not panic").map_err(Into::into)
}

/// Uses both devices at the same time.
fn use_both(paths: &[PathBuf]) -> Result<(), whimbrel_user::Error> {
    let connect = |path| Client::connect(path, &ClientOptions::default());
    let mut devices = paths.iter().map(connect).collect::<Result<Vec<_>, _>>()?;
    for device in &mut devices {
        let (regions, state) = (device.info()?.num_regions, device.state()?);
        println!("{regions} regions, {state}");
    }
    Ok(())
}
