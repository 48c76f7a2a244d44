//! The errors of TLS, in words for the person who made the certificates.

use std::io;
use std::path::PathBuf;

use rustls::{AlertDescription, CertificateError, Error as Rustls};

use crate::channel::{Address, WaitError, named};

/// The maximum number of names of a certificate that are shown.
const SHOWN_NAMES: usize = 8;

/// The reasons why there is no TLS with a peer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {}: {}", path.display(), named(error))]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Its error.
        error: io::Error,
    },
    /// A file holds nothing of the kind that it should.
    #[error("{} has no {what} in PEM form", path.display())]
    Lacks {
        /// The file.
        path: PathBuf,
        /// The contents that it should have.
        what: &'static str,
    },
    /// A file holds something that cannot be used.
    #[error("{}: {reason}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
    /// A text is no name that a certificate could carry.
    #[error("'{0}' is neither a DNS name nor an IP address")]
    Name(String),
    /// A source connects to a Unix socket, and no name was given for the destination.
    #[error("no name to look for in the certificate of the destination at {0}: a Unix socket has none")]
    Unnamed(Address),
    /// The peer does not speak TLS 1.3, or breaks its rules.
    #[error("{0}")]
    Foreign(String),
    /// The peer uses no TLS.
    #[error("the peer sends its stream without TLS, which this side was told to use")]
    Plain,
    /// One of the two sides does not accept the other's certificate.
    #[error("{0}")]
    Untrusted(String),
    /// The wait for the peer ended.
    #[error("TLS with the peer: {0}")]
    Wait(WaitError),
    /// The system has no more threads or file descriptors, to find changes of the files.
    #[error("cannot watch the files of TLS: {}", named(.0))]
    Thread(io::Error),
    /// The connection is broken.
    #[error("the connection failed during the handshake of TLS: {}", named(.0))]
    Failed(io::Error),
}

impl TlsError {
    /// Returns whether the same file may be read later. What is too large, or never ends, stays so.
    pub(super) fn is_passing(&self) -> bool {
        let Self::Unreadable { error, .. } = self else { return false };
        !matches!(error.kind(), io::ErrorKind::FileTooLarge | io::ErrorKind::TimedOut)
    }

    /// Returns the error of a connection, with what the peer did wrong.
    pub(super) fn of_connection(error: &Rustls) -> TlsError {
        match error {
            Rustls::InvalidCertificate(error) => {
                TlsError::Untrusted(format!("the peer's certificate is refused: {}", certificate(error)))
            }
            Rustls::NoCertificatesPresented => {
                TlsError::Untrusted("the peer is refused: it showed no certificate".into())
            }
            Rustls::AlertReceived(alert) => match refusal(*alert) {
                Some(reason) => {
                    TlsError::Untrusted(format!("the peer refuses the certificate of this side: {reason}"))
                }
                None if *alert == AlertDescription::ProtocolVersion => {
                    TlsError::Foreign("the peer does not speak TLS 1.3".into())
                }
                None => TlsError::Foreign(format!("the peer ended TLS with the alert {alert:?}")),
            },
            Rustls::InvalidMessage(_) => TlsError::Foreign(format!("the peer does not speak TLS: {error}")),
            Rustls::PeerIncompatible(_) => TlsError::Foreign(format!("no TLS 1.3 with the peer: {error}")),
            other => TlsError::Foreign(format!("TLS with the peer failed: {other}")),
        }
    }
}

/// The error of a read or a write of the stream.
impl From<TlsError> for io::Error {
    fn from(error: TlsError) -> io::Error {
        let kind = match &error {
            TlsError::Untrusted(_) => io::ErrorKind::PermissionDenied,
            _ => io::ErrorKind::InvalidData,
        };
        io::Error::new(kind, error)
    }
}

/// Returns the fault of a certificate.
pub(super) fn certificate(error: &CertificateError) -> String {
    let text = match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "it has expired",
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "it is not valid yet (are the clocks of both hosts right?)"
        }
        CertificateError::BadEncoding => "it is malformed, or a part of it is longer than 64 KiB",
        CertificateError::Revoked => "it is revoked",
        CertificateError::UnknownIssuer => {
            "no authority that this side trusts has signed it (self-signed, or by another authority)"
        }
        CertificateError::UnknownRevocationStatus => "no revocation list of this side is from its issuer",
        CertificateError::ExpiredRevocationList | CertificateError::ExpiredRevocationListContext { .. } => {
            "this side's revocation list of its issuer has expired"
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "it is made for another use (extended key usage): sources need clientAuth, destinations serverAuth"
        }
        CertificateError::NotValidForNameContext { expected, presented } => {
            let names = match &presented[..] {
                [] => "it carries no name".to_string(),
                names => {
                    let first: Vec<&str> = names.iter().take(SHOWN_NAMES).map(|name| bare(name)).collect();
                    let more = match names.len().saturating_sub(SHOWN_NAMES) {
                        0 => String::new(),
                        more => format!(" and {more} more"),
                    };
                    format!("it is for {}{more}", first.join(", "))
                }
            };
            return format!("{names}, not for {}", expected.to_str());
        }
        CertificateError::NotValidForName => "it is for another name",
        // The verifier's own, by their names.
        CertificateError::Other(other) => match other.to_string().as_str() {
            "CaUsedAsEndEntity" => "it is that of an authority, not of a host",
            "UnsupportedCertVersion" => {
                "it is of X.509 version 1 (`openssl x509 -req` makes version 3 with -extfile)"
            }
            other => return other.to_string(),
        },
        other => return other.to_string(),
    };
    text.to_string()
}

/// Returns a name of a certificate without its kind, which rustls writes around it.
fn bare(name: &str) -> &str {
    let inner = name.split_once('(').and_then(|(_, inner)| inner.strip_suffix(')')).unwrap_or(name);
    inner.trim_matches('"')
}

/// Returns the reason of a peer that does not accept this side's certificate, if the alert is about that.
fn refusal(alert: AlertDescription) -> Option<&'static str> {
    Some(match alert {
        AlertDescription::CertificateExpired => "it has expired, or is not valid yet by the peer's clock",
        AlertDescription::CertificateRevoked => "it is revoked",
        AlertDescription::UnknownCA => {
            "no authority that the peer trusts has signed it, or the peer has no valid revocation list of it"
        }
        AlertDescription::CertificateRequired | AlertDescription::NoCertificate => "it was not shown",
        AlertDescription::UnsupportedCertificate => "it is made for another use, or of an unknown kind",
        AlertDescription::BadCertificate | AlertDescription::AccessDenied => {
            "the peer's own log says why (another name than it asked for, perhaps)"
        }
        AlertDescription::CertificateUnknown => "the peer's own log says why",
        _ => return None,
    })
}
