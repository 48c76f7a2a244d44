//! Writes to regions that nobody waits for.

use whimbrel_user::Result;

use super::Client;
use crate::message::{Command, RegionAccess, Request};

impl Client {
    /// Writes to a region without waiting for it to be done, and without learning whether it was: the message
    /// says that it wants no reply (No_reply). A driver that knows its device does so with doorbells and
    /// frames.
    ///
    /// The server does what it is sent in order: whatever is asked later, also by another handle to this
    /// connection, finds it done. So a read is how to wait for all writes before it.
    ///
    /// It waits only while the socket is full, because the server is slower. A server that takes nothing for
    /// as long as [`ClientOptions::patience`](super::ClientOptions::patience) says has lost its connection:
    /// ETIMEDOUT.
    ///
    /// ```
    /// # use std::os::unix::net::UnixStream;
    /// # use whimbrel_models::{Model, accel};
    /// # use whimbrel_vfio_user::{Backend, Client, ClientOptions};
    /// use whimbrel_user::Device;
    ///
    /// # let model = "accel?state=4K".parse::<Model>()?.open("accel")?;
    /// # let (server, stream) = UnixStream::pair()?;
    /// # std::thread::spawn(move || Backend::new(model.device).serve(server));
    /// # let mut client = Client::new("accel", stream, &ClientOptions::default())?;
    /// client.post_write(0, accel::REGISTER_QUEUE_SIZE, &16_u32.to_le_bytes())?;
    /// let mut size = [0; 4];
    /// client.read_region(0, accel::REGISTER_QUEUE_SIZE, &mut size)?;
    /// assert_eq!(size, 16_u32.to_le_bytes());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn post_write(&self, index: u32, offset: u64, data: &[u8]) -> Result<()> {
        let connection = &mut *self.connection();
        let most = connection.piece();
        let mut at = offset;
        for piece in data.chunks(most) {
            let what = || format!("{} to region {index} at {at:#x}", Command::RegionWrite);
            let access = RegionAccess { offset: at, region: index, count: piece.len() as u32 };
            connection.post(what, &Request::RegionWrite(access, piece))?;
            at = at.wrapping_add(piece.len() as u64);
        }
        Ok(())
    }
}
