//! Region writes without a reply.

use whimbrel_user::Result;

use super::Client;
use crate::message::{Command, RegionAccess, Request};

impl Client {
    /// Writes to a region without waiting, and without learning the outcome: the message requests no reply
    /// (No_reply). Useful for doorbells and frames of a device that the driver knows.
    ///
    /// The server executes messages in order: a later request, also by another handle to this connection, takes
    /// effect after it. A read therefore waits for all writes before it.
    ///
    /// It blocks only while the socket is full because the server is slower. If the server reads nothing for
    /// [`ClientOptions::request_timeout`](super::ClientOptions::request_timeout), the connection ends with ETIMEDOUT.
    ///
    /// ```
    /// # use std::os::unix::net::UnixStream;
    /// # use whimbrel_models::{Model, accel};
    /// # use whimbrel_vfio_user::{Backend, Client, ClientOptions};
    /// use whimbrel_user::Device;
    ///
    /// # let model = "accel?state=4K".parse::<Model>()?.open("accel")?;
    /// # let (server, stream) = UnixStream::pair()?;
    /// # std::thread::spawn(move || Backend::new(model).serve(server));
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
