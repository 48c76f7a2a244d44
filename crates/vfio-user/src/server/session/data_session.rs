//! A client's data session: its beginning, and its requests over the command socket.

use std::sync::Arc;

use whimbrel_device::{DataFile, Errno};
use whimbrel_uapi::migration::PrecopyInfo;

use super::client::Client;
use super::migration_data;
use super::state_channel::StateChannel;

impl Client {
    /// Handles a state change that has opened a data session: closes the file of the last session, with its channel.
    pub(super) fn begin_session(&mut self, data_file: DataFile) {
        self.state_channel = None;
        let data_file = Arc::new(data_file);
        *self.backend.data_file.lock() = Some(data_file.clone());
        let agreed = self.agreed.as_ref().filter(|agreed| agreed.extensions().data_channel);
        // Without a reply nobody gets the descriptor.
        if let (Some(agreed), true) = (agreed, self.replies) {
            match StateChannel::open(self.backend.clone(), data_file, agreed) {
                Ok((channel, theirs)) => {
                    self.state_channel = Some(channel);
                    self.descriptors.push(theirs);
                }
                Err(error) => {
                    let device = self.backend.device.name();
                    tracing::warn!(device, %error, "cannot open a data channel; the state uses the command socket");
                }
            }
        }
    }

    /// Returns the data file of the last session. EBADF as for a descriptor that was never valid, or is closed.
    fn data_file(&self) -> Result<Arc<DataFile>, Errno> {
        self.backend.data_file.lock().clone().ok_or(Errno::EBADF)
    }

    pub(super) fn mig_data_read(&mut self, id: u16, size: u32) -> Result<(), Errno> {
        let read_end = self.extensions().read_end;
        migration_data::read(&*self.data_file()?, read_end, id, size, &mut self.out)
    }

    pub(super) fn mig_data_write(&mut self, id: u16, data: &[u8]) -> Result<(), Errno> {
        migration_data::write(&*self.data_file()?, id, data, &mut self.out)
    }

    pub(super) fn mig_get_precopy_info(&mut self, id: u16, asked: &PrecopyInfo) -> Result<(), Errno> {
        let hidden = &self.backend.hidden_precopy;
        migration_data::precopy_info(&*self.data_file()?, hidden, id, asked, &mut self.out)
    }
}
