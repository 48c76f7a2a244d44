//! The capabilities that both sides of a connection agree on (VFIO_USER_VERSION), as JSON and as numbers.

use serde::{Deserialize, Deserializer, Serialize};
use whimbrel_protocol::Errno;
use whimbrel_protocol::compatibility::Compatibility;
use whimbrel_protocol::reset::ResetRule;

use crate::compatibility;
use crate::extensions::MigrationExtensions;
use crate::json::{object, some_object};
use crate::reset_rule;

/// The major version that this crate speaks; no other one is understood.
pub const VERSION_MAJOR: u16 = 0;
/// The newest minor version that this crate knows.
pub const VERSION_MINOR: u16 = 1;

/// The capabilities of one side, or those agreed on by both. An omitted capability has the protocol's default;
/// unknown ones are ignored.
///
/// ```
/// use whimbrel_vfio_user::{Capabilities, negotiate};
///
/// let client = Capabilities::from_json(br#"{"capabilities": {"max_msg_fds": 8, "write_multiple": true}}"#)?;
/// let server = Capabilities::default().max_msg_fds(64).max_data_xfer_size(65536);
/// let agreed = negotiate(&server, &client)?;
/// assert_eq!((agreed.max_msg_fds, agreed.max_data_xfer_size, agreed.write_multiple), (8, 65536, false));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Capabilities {
    /// File descriptors that the sender accepts in one message.
    #[serde(deserialize_with = "saturating")]
    pub max_msg_fds: u32,
    /// Bytes of data in one message.
    #[serde(deserialize_with = "saturating")]
    pub max_data_xfer_size: u32,
    /// Mappings at a time.
    #[serde(deserialize_with = "saturating")]
    pub max_dma_maps: u32,
    /// Page sizes that mappings can have: bit n stands for 2^n bytes.
    pub pgsizes: u64,
    /// A second socket for the server's commands.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "some_object")]
    pub twin_socket: Option<TwinSocket>,
    /// True if VFIO_USER_REGION_WRITE_MULTI is supported.
    pub write_multiple: bool,
    /// Dirty page tracking of earlier versions of the specification, which QEMU still sends.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "some_object")]
    pub migration: Option<MigrationCapability>,
    /// Our migration extensions; `None` for the plain protocol.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "some_object")]
    pub migration_extensions: Option<MigrationExtensions>,
    /// In a reply with the extension `compatibility`, the driver's description of its migration data; `None` if it has
    /// none.
    #[serde(
        skip_serializing_if = "Option::is_none",
        serialize_with = "compatibility::serialize",
        deserialize_with = "compatibility::deserialize"
    )]
    pub migration_compatibility: Option<Compatibility>,
    /// In a reply with the extension `reset_rule`, what a reset does to a migration; `None` for a device that cannot
    /// migrate.
    #[serde(
        skip_serializing_if = "Option::is_none",
        serialize_with = "reset_rule::serialize",
        deserialize_with = "reset_rule::deserialize"
    )]
    pub migration_reset_rule: Option<ResetRule>,
}

/// The capability `twin_socket`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct TwinSocket {
    /// True if the sender supports it; in a reply, true if it is used.
    pub supported: bool,
    /// In a reply, the index of the socket among the descriptors of the message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fd_index: Option<u32>,
}

/// The capability `migration`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct MigrationCapability {
    /// Size in bytes of the smallest page of a dirty bitmap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pgsize: Option<u64>,
    /// Size in bytes of the largest dirty bitmap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_bitmap_size: Option<u64>,
}

impl Default for Capabilities {
    /// The protocol's defaults.
    fn default() -> Capabilities {
        Capabilities {
            max_msg_fds: 1,
            max_data_xfer_size: 1 << 20,
            max_dma_maps: 65535,
            pgsizes: 4096,
            twin_socket: None,
            write_multiple: false,
            migration: None,
            migration_extensions: None,
            migration_compatibility: None,
            migration_reset_rule: None,
        }
    }
}

impl Capabilities {
    /// Sets the field `max_msg_fds`.
    #[must_use]
    pub fn max_msg_fds(self, max_msg_fds: u32) -> Capabilities {
        Capabilities { max_msg_fds, ..self }
    }

    /// Sets the field `max_data_xfer_size`.
    #[must_use]
    pub fn max_data_xfer_size(self, max_data_xfer_size: u32) -> Capabilities {
        Capabilities { max_data_xfer_size, ..self }
    }

    /// Sets the field `max_dma_maps`.
    #[must_use]
    pub fn max_dma_maps(self, max_dma_maps: u32) -> Capabilities {
        Capabilities { max_dma_maps, ..self }
    }

    /// Sets the field `pgsizes`.
    #[must_use]
    pub fn pgsizes(self, pgsizes: u64) -> Capabilities {
        Capabilities { pgsizes, ..self }
    }

    /// Sets the field `twin_socket`.
    #[must_use]
    pub fn twin_socket(self, twin_socket: Option<TwinSocket>) -> Capabilities {
        Capabilities { twin_socket, ..self }
    }

    /// Sets the field `write_multiple`.
    #[must_use]
    pub fn write_multiple(self, write_multiple: bool) -> Capabilities {
        Capabilities { write_multiple, ..self }
    }

    /// Sets the field `migration`.
    #[must_use]
    pub fn migration(self, migration: Option<MigrationCapability>) -> Capabilities {
        Capabilities { migration, ..self }
    }

    /// Sets the field `migration_extensions`.
    #[must_use]
    pub fn migration_extensions(self, migration_extensions: Option<MigrationExtensions>) -> Capabilities {
        Capabilities { migration_extensions, ..self }
    }

    /// Sets the field `migration_compatibility`.
    #[must_use]
    pub fn migration_compatibility(self, migration_compatibility: Option<Compatibility>) -> Capabilities {
        Capabilities { migration_compatibility, ..self }
    }

    /// Sets the field `migration_reset_rule`.
    #[must_use]
    pub fn migration_reset_rule(self, migration_reset_rule: Option<ResetRule>) -> Capabilities {
        Capabilities { migration_reset_rule, ..self }
    }
}

impl TwinSocket {
    /// Creates the capability with these values.
    pub const fn new(supported: bool, fd_index: Option<u32>) -> TwinSocket {
        TwinSocket { supported, fd_index }
    }
}

impl MigrationCapability {
    /// Creates the capability with these values.
    pub const fn new(pgsize: Option<u64>, max_bitmap_size: Option<u64>) -> MigrationCapability {
        MigrationCapability { pgsize, max_bitmap_size }
    }
}

#[derive(Deserialize)]
struct VersionData {
    #[serde(default, deserialize_with = "object")]
    capabilities: Capabilities,
}

#[derive(Serialize)]
struct VersionText<'a> {
    capabilities: &'a Capabilities,
}

impl Capabilities {
    /// Parses the version data of a message, without the terminating NUL.
    pub fn from_json(text: &[u8]) -> Result<Capabilities, serde_json::Error> {
        let mut deserializer = serde_json::Deserializer::from_slice(text);
        let data: VersionData = object(&mut deserializer)?;
        deserializer.end()?;
        Ok(data.capabilities)
    }

    /// Returns the migration extensions; none in the plain protocol.
    pub fn extensions(&self) -> MigrationExtensions {
        self.migration_extensions.unwrap_or_default()
    }

    /// Returns the version data of a message, without the terminating NUL.
    pub fn to_json(&self) -> String {
        // Numbers and booleans under fixed names: they always serialise.
        serde_json::to_string(&VersionText { capabilities: self }).unwrap_or_default()
    }
}

/// Clamps a number to the largest that fits.
fn saturating<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    u64::deserialize(deserializer).map(|number| u32::try_from(number).unwrap_or(u32::MAX))
}

/// Two sides that are incompatible.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NegotiationError {
    /// The major versions differ.
    #[error("unsupported version {major}.{minor} of the client: this server supports {VERSION_MAJOR}.x")]
    Version {
        /// The client's major version.
        major: u16,
        /// The client's minor version.
        minor: u16,
    },
    /// No data could be transferred.
    #[error("invalid max_data_xfer_size 0: no data could be transferred")]
    NoData,
    /// No page size is supported by both sides.
    #[error("no common page size: pgsizes is {client:#x} for the client, {server:#x} for the server")]
    PageSizes {
        /// The client's page sizes.
        client: u64,
        /// The server's page sizes.
        server: u64,
    },
}

/// Returns the capabilities that both sides have: the smaller of each limit, the common page sizes, and the features
/// that both support. The result is a subset of the client's proposal, as a server's reply must be.
///
/// `twin_socket` says whether both sides support it; the caller sets its `fd_index` once the socket exists, and
/// `migration_compatibility` and `migration_reset_rule` if their extensions were agreed on.
pub fn negotiate(server: &Capabilities, client: &Capabilities) -> Result<Capabilities, NegotiationError> {
    let pgsizes = server.pgsizes & client.pgsizes;
    let max_data_xfer_size = server.max_data_xfer_size.min(client.max_data_xfer_size);
    if max_data_xfer_size == 0 {
        return Err(NegotiationError::NoData);
    }
    if pgsizes == 0 {
        return Err(NegotiationError::PageSizes { client: client.pgsizes, server: server.pgsizes });
    }
    let supports = |side: &Capabilities| side.twin_socket.is_some_and(|twin| twin.supported);
    let twin = supports(server) && supports(client);
    let migration = server.migration.zip(client.migration).map(|(server, client)| MigrationCapability {
        pgsize: server.pgsize.max(client.pgsize),
        max_bitmap_size: [server.max_bitmap_size, client.max_bitmap_size].into_iter().flatten().min(),
    });
    let max_msg_fds = server.max_msg_fds.min(client.max_msg_fds);
    let extensions = (server.migration_extensions, client.migration_extensions);
    Ok(Capabilities {
        max_msg_fds,
        max_data_xfer_size,
        max_dma_maps: server.max_dma_maps.min(client.max_dma_maps),
        pgsizes,
        twin_socket: twin.then_some(TwinSocket { supported: true, fd_index: None }),
        write_multiple: server.write_multiple && client.write_multiple,
        migration,
        migration_extensions: MigrationExtensions::both(extensions.0, extensions.1, max_msg_fds),
        // The device's, which the server adds.
        migration_compatibility: None,
        migration_reset_rule: None,
    })
}

impl NegotiationError {
    /// Returns the errno for the reply to the client.
    pub const fn errno(&self) -> Errno {
        match self {
            NegotiationError::Version { .. } => Errno::EPROTONOSUPPORT,
            NegotiationError::NoData | NegotiationError::PageSizes { .. } => Errno::EINVAL,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Capabilities, serde_json::Error> {
        Capabilities::from_json(text.as_bytes())
    }

    #[test]
    fn what_is_left_out_has_the_protocols_default() {
        for text in ["{}", r#"{"capabilities":{}}"#, r#"{"capabilities":{"new":[{"x":null}]},"y":1}"#] {
            assert_eq!(parse(text).unwrap(), Capabilities::default(), "{text}");
        }
    }

    #[test]
    fn qemus_proposal_is_understood() {
        let text = r#"{"capabilities": {"migration": {"max_bitmap_size": 268435456, "pgsize": 4096},
            "max_msg_fds": 16, "max_data_xfer_size": 1048576, "max_dma_maps": 65535, "pgsizes": 4096,
            "write_multiple": true}}"#;
        let migration = MigrationCapability { pgsize: Some(4096), max_bitmap_size: Some(1 << 28) };
        let expected = Capabilities {
            max_msg_fds: 16,
            write_multiple: true,
            migration: Some(migration),
            ..Capabilities::default()
        };
        assert_eq!(parse(text).unwrap(), expected);
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for text in [
            "",
            "[",
            "null",
            "[]",
            r#"{"capabilities": 1}"#,
            r#"{"capabilities": [8]}"#,
            r#"{"capabilities": {"twin_socket": [true]}}"#,
            r#"{"capabilities": {"max_msg_fds": -1}}"#,
            r#"{"capabilities": {"max_data_xfer_size": "1"}}"#,
            r#"{"capabilities": {"max_dma_maps": 1.5}}"#,
            r#"{"capabilities": {"write_multiple": 1}}"#,
            r#"{"capabilities": {"twin_socket": true}}"#,
            "{}\0{}",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_number_too_large_to_count_is_the_largest() {
        let text = r#"{"capabilities": {"max_data_xfer_size": 18446744073709551615}}"#;
        assert_eq!(parse(text).unwrap().max_data_xfer_size, u32::MAX);
    }

    #[test]
    fn a_nest_of_any_depth_does_not_overflow_the_stack() {
        assert!(parse(&"[".repeat(1 << 20)).is_err());
        assert!(parse(&format!(r#"{{"x":{}"#, "[".repeat(1 << 20))).is_err());
    }

    #[test]
    fn the_smaller_limit_holds_and_only_what_both_can() {
        let twin = |supported| Some(TwinSocket { supported, fd_index: None });
        let server = Capabilities {
            max_msg_fds: 64,
            max_dma_maps: 10,
            pgsizes: 0x20_1000,
            twin_socket: twin(true),
            write_multiple: true,
            ..Capabilities::default()
        };
        let client = Capabilities {
            max_msg_fds: 8,
            max_data_xfer_size: 4096,
            pgsizes: 0x4000_1000,
            twin_socket: twin(true),
            ..Capabilities::default()
        };
        let expected = Capabilities {
            max_msg_fds: 8,
            max_data_xfer_size: 4096,
            max_dma_maps: 10,
            pgsizes: 0x1000,
            twin_socket: twin(true),
            ..Capabilities::default()
        };
        assert_eq!(negotiate(&server, &client).unwrap(), expected);
        let without = Capabilities { twin_socket: twin(false), ..client };
        assert_eq!(negotiate(&server, &without).unwrap().twin_socket, None);
    }
}
