//! Reconnection: a client whose server has crashed comes back to the next server at the same path.
//!
//! A thread of the client ([`watch`]) notices that the connection has ended, and makes attempts until the deadline. An
//! [`attempt`] has a connection of its own, which nobody else knows: it negotiates, compares the device with the one
//! before ([`likeness`]), resets it, and restores what the server does not keep ([`kept`]). Then the connection takes
//! the place of the previous one. Meanwhile no lock is held that a request needs, and a request fails at once.

mod attempt;
mod control;
mod dirty_log;
mod doorbells;
mod interrupts;
mod kept;
mod likeness;
mod presence;
mod relay;
mod watch;

use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use whimbrel_user::{Error, Result};

use self::control::Control;
pub(super) use self::dirty_log::RunningLog;
pub(super) use self::doorbells::Doorbell;
pub(super) use self::interrupts::Copies;
pub(super) use self::kept::{Kept, Migration};
use self::likeness::Likeness;
pub use self::presence::ConnectionStatus;
pub(super) use self::presence::Presence;
use self::watch::Watch;
use super::{Client, ClientOptions};

/// Reconnection of a [`Client`], an option of [`ClientOptions::reconnect`].
///
/// Once the connection has ended, the client tries to connect to the next server at the same path. It accepts only a
/// device like the one before: the same device info, regions, interrupts, PCI IDs, revision, migration flags,
/// negotiated extensions, and driver's description of its migration data. Any other device is refused, and named. The
/// client then resets the device, maps all memory again, sets the eventfds and masks of all interrupts, connects the
/// doorbells, and starts the dirty log.
///
/// The device has lost its state. This is like a reset that the device's owner did not request:
///
/// - [`Client::connection_events`] is signalled, and [`Client::resets`] is one more. The owner sets the device up again,
///   or tells its guest. Files of mapped regions are the previous server's: map them again.
/// - A request in flight at the crash fails with ECONNRESET; it may have taken effect. Requests before the client is back
///   fail with ENOTCONN, and never wait. Only memory can be mapped and unmapped meanwhile, and a dirty log be stopped.
/// - Data files of the previous server fail. If the device was not in RUNNING, or a change of the state was in flight, the
///   migration is lost: the device is in STOP at the new server and reports ERROR, and all state changes fail until
///   [`reset`](whimbrel_user::Migratable::reset). So a device never runs by mistake with an incomplete state, or at two
///   hosts.
/// - The first report of a dirty log that was running names all pages as dirty.
/// - Eventfds of doorbells remain valid: a thread of the client passes their signals on to the new server.
///   [`Client::region_io_fds`] returns new ones without this detour, and ends it for the region.
///
/// If no server comes back in time, or the device is another one, [`ConnectionStatus::Closed`] has the reason, and so
/// does the error of each later request.
///
/// ```
/// use std::time::Duration;
/// use whimbrel_models::Model;
/// use whimbrel_user::{Device, Migratable};
/// use whimbrel_vfio_user::{Backend, Client, ClientOptions, Reconnect, Server};
///
/// let folder = tempfile::tempdir()?;
/// let socket = folder.path().join("accel");
/// let serve = || -> Result<_, Box<dyn std::error::Error>> {
///     let model = "accel?state=1MiB".parse::<Model>()?.open("accel 0")?;
///     let server = Server::bind(&socket, Backend::new(model))?;
///     Ok((server.stopper(), std::thread::spawn(move || server.run())))
/// };
///
/// let (stopper, serving) = serve()?;
/// let reconnect = Reconnect::within(Duration::from_secs(10));
/// let mut device = Client::connect(&socket, &ClientOptions::default().reconnect(reconnect))?;
/// device.write_region(0, 0x40, &16_u32.to_ne_bytes())?;
///
/// // The server ends, and another one begins.
/// stopper.stop();
/// serving.join().expect("the server does not panic")?;
/// let (stopper, serving) = serve()?;
///
/// while device.resets() == 0 {
///     device.wait_reconnected()?;
///     std::thread::sleep(Duration::from_millis(1));
/// }
/// let mut value = [0; 4];
/// device.read_region(0, 0x40, &mut value)?;
/// assert_eq!(u32::from_ne_bytes(value), 0, "the device was reset");
/// # drop(device);
/// # stopper.stop();
/// # serving.join().expect("the server does not panic")?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Reconnect {
    /// Maximum time from the end of the connection until all is restored. Then the client gives up.
    pub within: Duration,
}

impl Reconnect {
    /// Returns a reconnection that takes at most this long.
    pub const fn within(within: Duration) -> Reconnect {
        Reconnect { within }
    }
}

/// The thread that comes back, which ends with the last handle to its client.
#[derive(Debug)]
pub(super) struct Reconnection {
    control: Arc<Control>,
    presence: Arc<Presence>,
    thread: Option<JoinHandle<()>>,
}

impl Reconnection {
    /// Ends the thread soon, and every attempt at once.
    pub(super) fn cancel(&self) {
        self.control.stop();
        self.presence.end("the client was closed by its owner".into());
    }

    pub(super) fn presence(&self) -> &Arc<Presence> {
        &self.presence
    }
}

impl Drop for Reconnection {
    fn drop(&mut self) {
        self.control.stop();
        if let Some(thread) = self.thread.take() {
            // One that panicked has said so.
            let _ = thread.join();
        }
    }
}

impl Client {
    /// Returns this client with a thread that reconnects it. Queries the device for what the next one must be like.
    pub(super) fn reconnecting(
        mut self,
        path: &Path,
        options: &ClientOptions,
        reconnect: &Reconnect,
    ) -> Result<Client> {
        let likeness = Likeness::of(&mut self)?;
        let cannot = |error| Error::unusable(&self.name, format!("cannot prepare reconnection: {error}"));
        let presence = Arc::new(Presence::new(path, reconnect.within).map_err(cannot)?);
        let control = Arc::new(Control::new().map_err(cannot)?);
        self.connection().presence = Some(presence.clone());
        let watch = Watch {
            name: self.name.clone(),
            path: path.to_owned(),
            options: options.clone(),
            likeness,
            current: self.current.clone(),
            state: self.state.clone(),
            presence: presence.clone(),
            control: control.clone(),
        };
        let builder = std::thread::Builder::new().name("vfio-user reconnect".into());
        let thread = Some(builder.spawn(move || watch.run()).map_err(cannot)?);
        self.reconnection = Some(Arc::new(Reconnection { control, presence, thread }));
        Ok(self)
    }
}
