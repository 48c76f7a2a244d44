//! Addresses of the peer.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// An address to listen at or to connect to: `HOST:PORT`, `[IPV6]:PORT` or `unix:PATH`.
///
/// ```
/// use whimbrel_engine::channel::Address;
///
/// assert_eq!("unix:/run/move.sock".parse(), Ok(Address::Unix("/run/move.sock".into())));
/// assert_eq!("[::1]:4000".parse(), Ok(Address::Tcp("[::1]:4000".into())));
/// assert!("localhost".parse::<Address>().is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Address {
    /// A host and port, resolved when it is used.
    Tcp(String),
    /// A Unix stream socket.
    Unix(PathBuf),
}

/// A text that is not an address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not an address: give HOST:PORT, [IPV6]:PORT or unix:PATH")]
#[non_exhaustive]
pub struct AddressError(
    /// The text.
    pub String,
);

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Address, AddressError> {
        let wrong = || AddressError(text.to_string());
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() { Err(wrong()) } else { Ok(Address::Unix(path.into())) };
        }
        let address = text.strip_prefix("tcp:").unwrap_or(text);
        let (host, port) = address.rsplit_once(':').ok_or_else(wrong)?;
        let bare_ipv6 = host.contains(':') && !(host.starts_with('[') && host.ends_with(']'));
        if host.is_empty() || bare_ipv6 || port.parse::<u16>().is_err() {
            return Err(wrong());
        }
        Ok(Address::Tcp(address.to_string()))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(address) => f.write_str(address),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_that_cannot_be_addresses_are_refused() {
        for text in ["", "host", ":1", "host:", "host:port", "host:65536", "::1:80", "unix:", "host:-1"] {
            assert_eq!(text.parse::<Address>(), Err(AddressError(text.into())), "{text}");
        }
    }

    #[test]
    fn an_address_prints_as_it_is_read() {
        for text in ["localhost:0", "[::1]:80", "unix:/a/b"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        assert_eq!("tcp:a:1".parse::<Address>().unwrap().to_string(), "a:1");
    }
}
