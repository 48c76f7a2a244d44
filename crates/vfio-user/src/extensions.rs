//! Our migration extensions to the vfio-user specification: the capability `migration_extensions`, described in
//! `docs/vfio-user-extensions.md`.

use serde::{Deserialize, Serialize};

/// The migration extensions, each negotiated separately. A proposal lists those that the sender supports; a reply,
/// and the result of the negotiation, those in use.
///
/// An omitted extension is unsupported. A peer without any gets the plain protocol.
///
/// ```
/// use whimbrel_vfio_user::{Capabilities, MigrationExtensions, negotiate};
///
/// let text = br#"{"capabilities": {"migration_extensions": {"data_size": true, "p2p": true}}}"#;
/// let client = Capabilities::from_json(text)?;
/// let server =
///     Capabilities::default().migration_extensions(Some(MigrationExtensions::ALL));
/// let agreed = negotiate(&server, &client)?.extensions();
/// assert!(agreed.data_size && agreed.p2p && !agreed.data_channel);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[allow(clippy::struct_excessive_bools, reason = "each part is agreed on by itself")]
#[non_exhaustive]
pub struct MigrationExtensions {
    /// VFIO_DEVICE_FEATURE_MIG_DATA_SIZE is available.
    pub data_size: bool,
    /// VFIO_USER_MIG_GET_PRECOPY_INFO and VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2 are available.
    pub precopy_info: bool,
    /// VFIO_USER_MIG_DATA_READ reports the end of the data as read(2) on a data file does.
    pub read_end: bool,
    /// The states RUNNING_P2P and PRE_COPY_P2P are available, and the flag that reports them.
    pub p2p: bool,
    /// A data session has its own socket.
    pub data_channel: bool,
    /// Features of the kernel outside migration are available, above all low power, and device info includes
    /// capabilities.
    pub device_features: bool,
    /// The server's reply to VFIO_USER_VERSION has the driver's description of its migration data.
    pub compatibility: bool,
    /// The server's reply to VFIO_USER_VERSION says what a reset does to a migration.
    pub reset_rule: bool,
}

impl MigrationExtensions {
    /// No extension.
    pub const NONE: MigrationExtensions = MigrationExtensions {
        data_size: false,
        precopy_info: false,
        read_end: false,
        p2p: false,
        data_channel: false,
        device_features: false,
        compatibility: false,
        reset_rule: false,
    };

    /// Every part.
    pub const ALL: MigrationExtensions = MigrationExtensions {
        data_size: true,
        precopy_info: true,
        read_end: true,
        p2p: true,
        data_channel: true,
        device_features: true,
        compatibility: true,
        reset_rule: true,
    };

    /// Sets the field `data_size`.
    #[must_use]
    pub const fn data_size(self, data_size: bool) -> MigrationExtensions {
        MigrationExtensions { data_size, ..self }
    }

    /// Sets the field `precopy_info`.
    #[must_use]
    pub const fn precopy_info(self, precopy_info: bool) -> MigrationExtensions {
        MigrationExtensions { precopy_info, ..self }
    }

    /// Sets the field `read_end`.
    #[must_use]
    pub const fn read_end(self, read_end: bool) -> MigrationExtensions {
        MigrationExtensions { read_end, ..self }
    }

    /// Sets the field `p2p`.
    #[must_use]
    pub const fn p2p(self, p2p: bool) -> MigrationExtensions {
        MigrationExtensions { p2p, ..self }
    }

    /// Sets the field `data_channel`.
    #[must_use]
    pub const fn data_channel(self, data_channel: bool) -> MigrationExtensions {
        MigrationExtensions { data_channel, ..self }
    }

    /// Sets the field `device_features`.
    #[must_use]
    pub const fn device_features(self, device_features: bool) -> MigrationExtensions {
        MigrationExtensions { device_features, ..self }
    }

    /// Sets the field `compatibility`.
    #[must_use]
    pub const fn compatibility(self, compatibility: bool) -> MigrationExtensions {
        MigrationExtensions { compatibility, ..self }
    }

    /// Sets the field `reset_rule`.
    #[must_use]
    pub const fn reset_rule(self, reset_rule: bool) -> MigrationExtensions {
        MigrationExtensions { reset_rule, ..self }
    }

    /// Returns the extensions that both sides support. The data channel's socket is sent as a descriptor, so it needs
    /// a client that accepts one.
    pub(crate) fn both(
        one: Option<MigrationExtensions>,
        other: Option<MigrationExtensions>,
        max_msg_fds: u32,
    ) -> Option<MigrationExtensions> {
        let (one, other) = one.zip(other)?;
        Some(MigrationExtensions {
            data_size: one.data_size && other.data_size,
            precopy_info: one.precopy_info && other.precopy_info,
            read_end: one.read_end && other.read_end,
            p2p: one.p2p && other.p2p,
            data_channel: one.data_channel && other.data_channel && max_msg_fds > 0,
            device_features: one.device_features && other.device_features,
            compatibility: one.compatibility && other.compatibility,
            reset_rule: one.reset_rule && other.reset_rule,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capabilities::{Capabilities, negotiate};

    const NONE: MigrationExtensions = MigrationExtensions {
        data_size: false,
        precopy_info: false,
        read_end: false,
        p2p: false,
        data_channel: false,
        device_features: false,
        compatibility: false,
        reset_rule: false,
    };

    fn parse(text: &str) -> Result<Option<MigrationExtensions>, serde_json::Error> {
        let text = format!(r#"{{"capabilities": {{"migration_extensions": {text}}}}}"#);
        Capabilities::from_json(text.as_bytes()).map(|capabilities| capabilities.migration_extensions)
    }

    /// Each extension alone, with its name.
    fn parts() -> [(&'static str, MigrationExtensions); 8] {
        [
            ("data_size", MigrationExtensions { data_size: true, ..NONE }),
            ("precopy_info", MigrationExtensions { precopy_info: true, ..NONE }),
            ("read_end", MigrationExtensions { read_end: true, ..NONE }),
            ("p2p", MigrationExtensions { p2p: true, ..NONE }),
            ("data_channel", MigrationExtensions { data_channel: true, ..NONE }),
            ("device_features", MigrationExtensions { device_features: true, ..NONE }),
            ("compatibility", MigrationExtensions { compatibility: true, ..NONE }),
            ("reset_rule", MigrationExtensions { reset_rule: true, ..NONE }),
        ]
    }

    #[test]
    fn a_part_is_read_by_its_name_and_left_out_is_not_there() {
        for (name, alone) in parts() {
            assert_eq!(parse(&format!(r#"{{"{name}": true}}"#)).unwrap(), Some(alone), "{name}");
            let all_but = format!(r#"{{"{name}": false, "later": {{"x": [1]}}}}"#);
            assert_eq!(parse(&all_but).unwrap(), Some(NONE), "{name}");
        }
        assert_eq!(parse("{}").unwrap(), Some(NONE));
        assert_eq!(Capabilities::from_json(b"{}").unwrap().migration_extensions, None);
    }

    #[test]
    fn what_is_no_object_of_booleans_is_refused() {
        for text in ["null", "true", "1", "[]", "[true]", r#""all""#] {
            assert!(parse(text).is_err(), "{text}");
        }
        for (name, _) in parts() {
            for value in ["1", "0", "null", r#""true""#, "{}", "[true]"] {
                let text = format!(r#"{{"{name}": {value}}}"#);
                assert!(parse(&text).is_err(), "{text}");
            }
            let twice = format!(r#"{{"{name}": true, "{name}": true}}"#);
            assert!(parse(&twice).is_err(), "{twice}");
        }
    }

    #[test]
    fn a_part_is_agreed_on_where_both_have_it() {
        let side = |extensions| Capabilities { migration_extensions: extensions, ..Capabilities::default() };
        let agreed = |server, client| negotiate(&side(server), &side(client)).unwrap().migration_extensions;
        for (name, alone) in parts() {
            for (server, client, expected) in [
                (None, None, None),
                (None, Some(alone), None),
                (Some(alone), None, None),
                (Some(NONE), Some(alone), Some(NONE)),
                (Some(alone), Some(NONE), Some(NONE)),
                (Some(alone), Some(alone), Some(alone)),
                (Some(MigrationExtensions::ALL), Some(alone), Some(alone)),
                (Some(alone), Some(MigrationExtensions::ALL), Some(alone)),
            ] {
                assert_eq!(agreed(server, client), expected, "{name}: {server:?} and {client:?}");
            }
        }
    }

    #[test]
    fn a_channel_takes_a_side_that_takes_descriptors() {
        let side = |max_msg_fds| Capabilities {
            max_msg_fds,
            migration_extensions: Some(MigrationExtensions::ALL),
            ..Capabilities::default()
        };
        for (server, client, expected) in [(1, 1, true), (0, 1, false), (1, 0, false), (253, 8, true)] {
            let agreed = negotiate(&side(server), &side(client)).unwrap().extensions();
            let expected = MigrationExtensions { data_channel: expected, ..MigrationExtensions::ALL };
            assert_eq!(agreed, expected, "{server} and {client}");
        }
    }
}
