//! VFIO_USER_VERSION: the first message of both sides.

use super::fields::Fields;
use super::{Malformed, MessageBuffer};
use crate::capabilities::{Capabilities, NegotiationError, VERSION_MAJOR, VERSION_MINOR, negotiate};

/// The version and capabilities of one side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// Changes with what is incompatible.
    pub major: u16,
    /// Changes with what is compatible.
    pub minor: u16,
    /// The sender's capabilities; omitted ones have the protocol's defaults.
    pub capabilities: Capabilities,
}

impl Version {
    /// Creates a client's proposal.
    pub fn proposal(capabilities: Capabilities) -> Version {
        Version { major: VERSION_MAJOR, minor: VERSION_MINOR, capabilities }
    }

    /// Creates a server's reply to a client's proposal.
    pub fn answer(&self, server: &Capabilities) -> Result<Version, NegotiationError> {
        if self.major != VERSION_MAJOR {
            return Err(NegotiationError::Version { major: self.major, minor: self.minor });
        }
        Ok(Version {
            major: VERSION_MAJOR,
            minor: self.minor.min(VERSION_MINOR),
            capabilities: negotiate(server, &self.capabilities)?,
        })
    }

    /// The terminating NUL of the text may be missing.
    pub(super) fn parse(payload: &[u8]) -> Result<Version, Malformed> {
        let mut fields = Fields::of(payload, 4)?;
        let (major, minor) = (fields.u16()?, fields.u16()?);
        let text = fields.rest();
        let text = text.strip_suffix(&[0]).unwrap_or(text);
        let capabilities =
            if text.is_empty() { Capabilities::default() } else { Capabilities::from_json(text)? };
        Ok(Version { major, minor, capabilities })
    }

    pub(super) fn put(&self, out: &mut MessageBuffer) {
        out.put_u16(self.major);
        out.put_u16(self.minor);
        out.put(self.capabilities.to_json().as_bytes());
        out.put(&[0]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides_that_cannot_work_together_say_why() {
        let server = Capabilities::default();
        let silent = Capabilities { max_data_xfer_size: 0, ..server.clone() };
        assert_eq!(negotiate(&server, &silent), Err(NegotiationError::NoData));
        let huge = Capabilities { pgsizes: 1 << 30, ..server.clone() };
        let error = negotiate(&server, &huge).unwrap_err();
        assert_eq!(
            error.to_string(),
            "no common page size: pgsizes is 0x40000000 for the client, 0x1000 for the server"
        );
        let mut newer = Version::proposal(server.clone());
        newer.major = 1;
        assert_eq!(newer.answer(&server), Err(NegotiationError::Version { major: 1, minor: VERSION_MINOR }));
    }

    #[test]
    fn the_minor_version_is_the_older_one() {
        let server = Capabilities::default();
        for (proposed, agreed) in [(0, 0), (1, 1), (9, VERSION_MINOR)] {
            let version = Version { major: 0, minor: proposed, capabilities: server.clone() };
            assert_eq!(version.answer(&server).unwrap().minor, agreed);
        }
    }
}
