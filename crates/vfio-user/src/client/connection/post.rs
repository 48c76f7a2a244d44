//! Requests that get no reply (No_reply in the header).

use whimbrel_user::Result;

use super::Connection;
use super::outgoing::Outgoing;
use crate::message::Request;

impl Connection {
    /// Sends a request without a reply. It waits only for room in the socket; after the timeout of a reply the
    /// connection is over.
    pub(in crate::client) fn post(&mut self, what: impl Fn() -> String, request: &Request<'_>) -> Result<()> {
        self.check(&what)?;
        let id = self.new_id();
        let mut out = Outgoing::new(std::mem::take(&mut self.out));
        out.buffer().request(id, true, request);
        let sent = self.drain(&mut out, self.deadline());
        self.out = out.into_buffer();
        sent.map_err(|failed| self.failed(what(), failed))?;
        self.serve_arrived();
        Ok(())
    }
}
