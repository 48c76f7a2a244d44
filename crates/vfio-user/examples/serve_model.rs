//! Serves one of the models: `cargo run -p whimbrel-vfio-user --example serve_model -- accel SOCKET`.

use whimbrel_device::survive_lost_memory;
use whimbrel_models::Model;
use whimbrel_vfio_user::{Backend, Server};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let [model, path] =
        std::env::args().skip(1).collect::<Vec<_>>().try_into().map_err(|_| "MODEL SOCKET")?;
    survive_lost_memory()?;
    let opened = model.parse::<Model>()?.open(model)?;
    Server::bind(path, Backend::new(opened))?.run()?;
    Ok(())
}
