//! Opening further connections to the destination of a migration.

use std::sync::Arc;

use super::{Address, Channel, Tls, Until, connect};

/// The error of a connection that a connector could not open.
pub type ConnectorError = Box<dyn std::error::Error + Send + Sync>;

/// The means of a source to open further connections to its destination, beside the control connection.
///
/// [`Connector`] connects to an address. A program with a transport of its own implements this trait.
pub trait Connect: Send {
    /// Returns a new connection, which is connected by `until`.
    fn connect(&mut self, until: Until<'_>) -> Result<Arc<dyn Channel>, ConnectorError>;
}

/// A connector to an address, with TLS or without.
///
/// ```
/// use std::time::Duration;
/// use whimbrel_engine::channel::{Connect, Connector, Until};
///
/// let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
/// let mut connector = Connector::new(listener.local_addr()?.to_string().parse()?);
/// let one = connector.connect(Until::timeout(Duration::from_secs(10)))?;
/// let other = connector.connect(Until::timeout(Duration::from_secs(10)))?;
/// # Ok::<(), Box<dyn std::error::Error + Send + Sync>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Connector {
    address: Address,
    tls: Option<Tls>,
}

impl Connector {
    /// Returns a connector to a listener at this address.
    pub fn new(address: Address) -> Connector {
        Connector { address, tls: None }
    }

    /// Uses TLS on each connection.
    #[must_use]
    pub fn tls(self, tls: Tls) -> Connector {
        Connector { tls: Some(tls), ..self }
    }
}

impl Connect for Connector {
    fn connect(&mut self, until: Until<'_>) -> Result<Arc<dyn Channel>, ConnectorError> {
        let stream = connect(&self.address, until)?;
        Ok(match &self.tls {
            None => Arc::new(stream),
            Some(tls) => Arc::new(tls.connect(stream, &self.address, until)?),
        })
    }
}
