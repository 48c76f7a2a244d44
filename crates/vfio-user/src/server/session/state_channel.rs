//! The separate socket of a data session, so that commands do not wait for a device's state. A thread serves it: to
//! the device it is one more user of the data file, and takes turns with the others for each read.
//!
//! A channel is created when a session begins, and sent to the client. It ends when the client closes it, and with
//! the next session, a reset, or the client's connection. The data file is closed with it in each case. A session
//! that was ended by a state change answers ENODEV.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;

use rustix::net::sockopt::set_socket_send_buffer_size;
use whimbrel_device::{DataFile, Errno};

use super::migration_data;
use crate::capabilities::Capabilities;
use crate::descriptors::{DescriptorError, Descriptors};
use crate::extensions::MigrationExtensions;
use crate::message::{Command, Kind, Limits, MessageBuffer, Request};
use crate::server::backend::Shared;
use crate::socket::{Ender, Incoming, Receiver, Sender, SocketError, connection};

/// Half of the bytes that may be in flight: more than usual, so that both sides wait for each other less often, and
/// few enough to be in a processor's cache when they are read.
const SEND_BUFFER: usize = 256 << 10;

/// The server's handle to a channel. Dropping it ends the channel, and waits until its thread has finished.
#[derive(Debug)]
pub(super) struct StateChannel {
    ender: Ender,
    thread: Option<JoinHandle<()>>,
}

/// The state of a channel's thread.
struct Service {
    backend: Arc<Shared>,
    data_file: Arc<DataFile>,
    sender: Sender,
    out: MessageBuffer,
    extensions: MigrationExtensions,
    limits: Limits,
}

impl StateChannel {
    /// Creates a channel for a data file; returns the client's end of it too.
    pub(super) fn open(
        backend: Arc<Shared>,
        data_file: Arc<DataFile>,
        agreed: &Capabilities,
    ) -> io::Result<(StateChannel, OwnedFd)> {
        let (ours, theirs) = UnixStream::pair()?;
        for end in [&ours, &theirs] {
            // With less it works as well.
            let _ = set_socket_send_buffer_size(end, SEND_BUFFER);
        }
        let limits = Limits::new(agreed.max_data_xfer_size);
        let (mut receiver, sender) = connection(ours, limits);
        receiver.take_no_descriptors();
        let ender = sender.ender();
        let name = format!("state of {}", backend.device.name());
        let extensions = agreed.extensions();
        let service = Service { backend, data_file, sender, out: MessageBuffer::new(), extensions, limits };
        let thread = std::thread::Builder::new().name(name).spawn(move || service.run(receiver))?;
        Ok((StateChannel { ender, thread: Some(thread) }, theirs.into()))
    }
}

impl Drop for StateChannel {
    fn drop(&mut self) {
        self.ender.shutdown();
        if let Some(thread) = self.thread.take() {
            // A driver that panicked has said so on stderr.
            let _ = thread.join();
        }
    }
}

impl Service {
    fn run(mut self, mut receiver: Receiver) {
        let device = self.backend.device.name().to_owned();
        tracing::debug!(device, "data channel opened");
        loop {
            let is_last = match receiver.receive() {
                Ok(Some(message)) => {
                    self.message(message);
                    false
                }
                Ok(None) => break,
                // Where the next message begins cannot be known.
                Err(SocketError::Frame(frame)) if !frame.is_reply => {
                    self.out.error(frame.id, frame.command, frame.errno());
                    true
                }
                Err(error) => {
                    tracing::debug!(device, %error, "data channel failed");
                    break;
                }
            };
            let sent = self.sender.send(self.out.as_bytes(), &[]);
            self.out.clear();
            if sent.is_err() || is_last {
                break;
            }
        }
        tracing::debug!(device, "data channel closed");
    }

    /// Executes one message, and answers it if it expects a reply.
    fn message(&mut self, message: Incoming<'_>) {
        let Incoming { header, payload, descriptors } = message;
        let Kind::Command { no_reply } = header.kind else {
            tracing::debug!(id = header.id, command = header.command_name(), "ignored an unexpected reply");
            return;
        };
        if let Err(errno) = self.execute(header.id, header.command, payload, descriptors) {
            tracing::debug!(id = header.id, command = header.command_name(), %errno, "refused");
            self.out.clear();
            self.out.error(header.id, header.command, errno);
        }
        if no_reply {
            self.out.clear();
        }
    }

    fn execute(
        &mut self,
        id: u16,
        number: u16,
        payload: &[u8],
        descriptors: Result<Descriptors, DescriptorError>,
    ) -> Result<(), Errno> {
        let command = Command::try_from(number).map_err(|_| Errno::ENOTTY)?;
        let is_known = match command {
            Command::MigDataRead | Command::MigDataWrite => true,
            Command::MigGetPrecopyInfo => self.extensions.precopy_info,
            _ => false,
        };
        if !is_known {
            return Err(Errno::ENOTTY);
        }
        let request = Request::parse(command, payload, self.limits).map_err(|error| {
            tracing::debug!(id, %error, "malformed");
            error.errno()
        })?;
        match descriptors {
            Ok(descriptors) if descriptors.is_empty() => {}
            Ok(_) | Err(DescriptorError::TooMany | DescriptorError::Kind) => return Err(Errno::EINVAL),
            Err(DescriptorError::Lost) => return Err(Errno::EMFILE),
        }
        let (data_file, out) = (&*self.data_file, &mut self.out);
        match request {
            Request::MigDataRead { size } => {
                migration_data::read(data_file, self.extensions.read_end, id, size, out)
            }
            Request::MigDataWrite { data } => migration_data::write(data_file, id, data, out),
            Request::MigGetPrecopyInfo(asked) => {
                migration_data::precopy_info(data_file, &self.backend.hidden_precopy, id, &asked, out)
            }
            _ => Err(Errno::ENOTTY),
        }
    }
}

/// Ends the channel and closes its data file, unless another one has taken its place.
impl Drop for Service {
    fn drop(&mut self) {
        let mut open = self.backend.data_file.lock();
        if open.as_ref().is_some_and(|open| Arc::ptr_eq(open, &self.data_file)) {
            *open = None;
        }
    }
}
