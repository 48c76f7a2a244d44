//! Options of a client.

use std::time::Duration;

use super::Client;
use super::reconnect::Reconnect;
use crate::capabilities::Capabilities;

/// Options of a [`Client`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ClientOptions {
    /// Timeout of a request, from its first byte sent to the last byte of the reply; note that some devices need long
    /// for a state change. A timeout ends the connection with ETIMEDOUT. It also bounds the time that the server may
    /// take to accept the connection.
    pub request_timeout: Duration,
    /// The proposal to the server, which can be less than [`Client::capabilities`].
    pub capabilities: Capabilities,
    /// The reconnection to the next server at the same path after the server has crashed; `None`, the default, for none.
    pub reconnect: Option<Reconnect>,
}

impl Default for ClientOptions {
    /// 30 seconds, all capabilities of the client, and no reconnection.
    fn default() -> ClientOptions {
        ClientOptions {
            request_timeout: Duration::from_secs(30),
            capabilities: Client::capabilities(),
            reconnect: None,
        }
    }
}

impl ClientOptions {
    /// Sets [`ClientOptions::request_timeout`].
    #[must_use]
    pub fn request_timeout(self, request_timeout: Duration) -> ClientOptions {
        ClientOptions { request_timeout, ..self }
    }

    /// Sets [`ClientOptions::capabilities`].
    #[must_use]
    pub fn capabilities(self, capabilities: Capabilities) -> ClientOptions {
        ClientOptions { capabilities, ..self }
    }

    /// Sets [`ClientOptions::reconnect`].
    #[must_use]
    pub fn reconnect(self, reconnect: Reconnect) -> ClientOptions {
        ClientOptions { reconnect: Some(reconnect), ..self }
    }
}
