//! VFIO_USER_REGION_WRITE_MULTI: several short writes in one message.

use whimbrel_user::{Device, Result};

use super::Client;
use crate::message::{Command, Reply, Request, WriteMulti, WriteOne};

/// Maximum writes in one message: 4096 bytes, which every server accepts.
const MAX_WRITES: usize = 170;

impl Client {
    /// Executes short writes to regions in order, many of them with one message, and returns the number executed:
    /// less than given if one failed, which is the one after those executed. If the first one fails, its errno is
    /// returned.
    ///
    /// With a server that has not agreed on `write_multiple`, each write is a separate message.
    ///
    /// ```
    /// # use std::os::unix::net::UnixStream;
    /// # use whimbrel_models::{Model, accel};
    /// # use whimbrel_vfio_user::{Backend, Client, ClientOptions};
    /// use whimbrel_vfio_user::message::WriteOne;
    ///
    /// # let model = "accel?state=4K".parse::<Model>()?.open("accel")?;
    /// # let (server, stream) = UnixStream::pair()?;
    /// # std::thread::spawn(move || Backend::new(model).serve(server));
    /// # let client = Client::new("accel", stream, &ClientOptions::default())?;
    /// let set_up = [
    ///     (accel::REGISTER_QUEUE_SIZE, &16_u32.to_le_bytes()[..]),
    ///     (accel::REGISTER_QUEUE_BASE, &0x1000_u64.to_le_bytes()),
    ///     (accel::REGISTER_COMPLETION_BASE, &0x2000_u64.to_le_bytes()),
    ///     (accel::REGISTER_CONTROL, &accel::CONTROL_ENABLE.to_le_bytes()),
    /// ];
    /// let writes = set_up.map(|(offset, data)| WriteOne::new(0, offset, data).expect("at most 8 bytes"));
    /// assert_eq!(client.write_multiple(&writes)?, 4);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn write_multiple(&self, writes: &[WriteOne]) -> Result<usize> {
        let together = self.connection().agreed.write_multiple;
        let mut done = 0;
        for piece in writes.chunks(if together { MAX_WRITES } else { 1 }) {
            let made = if together { self.write_together(piece) } else { self.write_alone(piece) };
            match made {
                Ok(count) if count == piece.len() => done += count,
                Ok(count) => return Ok(done + count),
                Err(_) if done > 0 && !self.connection().is_over() => return Ok(done),
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    /// Sends one message with at most [`MAX_WRITES`] writes.
    fn write_together(&self, writes: &[WriteOne]) -> Result<usize> {
        let connection = &mut *self.connection();
        let what = || format!("{} of {} writes", Command::RegionWriteMulti, writes.len());
        let mut room = [[0; 24]; MAX_WRITES];
        let request = Request::RegionWriteMulti(WriteMulti::new(writes, &mut room));
        let completed = match connection.ask(what, &request, &[])?.reply {
            Reply::RegionWriteMulti { completed } => usize::try_from(completed).ok(),
            _ => None,
        };
        let possible = completed.filter(|completed| *completed <= writes.len());
        possible.ok_or_else(|| connection.invalid_reply(what(), "more writes completed than requested"))
    }

    /// Sends a message for each write.
    fn write_alone(&self, writes: &[WriteOne]) -> Result<usize> {
        let mut client = self.clone();
        for write in writes {
            client.write_region(write.region(), write.offset(), write.data())?;
        }
        Ok(writes.len())
    }
}
