//! The options of TLS, and the refusal to send or receive unprotected over a network.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use whimbrel_engine::channel::{Address, Tls, TlsError};

use crate::failure::Failure;

/// The options of TLS.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Protection of the connection")]
pub(crate) struct Protection {
    /// Use TLS 1.3, and show the certificate in this PEM file, which is followed by those of its issuers. Both sides have to
    /// show one that the other trusts. It is read again for each connection
    #[arg(long, value_name = "FILE", requires = "tls_key", requires = "tls_ca")]
    tls_cert: Option<PathBuf>,
    /// The private key of that certificate, in PEM form
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// The certificates of the authorities to trust, in PEM form
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_ca: Option<PathBuf>,
    /// Their revocation lists, in PEM form: the other side's certificate has to be on none, and one of its issuer has to be
    /// there
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_crl: Option<PathBuf>,
    /// The name that the other side's certificate has to carry. `send` expects the host of --to by default, and `receive`
    /// takes any name
    #[arg(long, value_name = "NAME", requires = "tls_cert")]
    tls_peer: Option<String>,
    /// Use a network without TLS, although anyone on it can then read and change the devices' state. Not needed for Unix
    /// sockets and for addresses of this host alone
    #[arg(long, conflicts_with = "tls_cert")]
    insecure: bool,
}

impl Protection {
    /// Returns the TLS of the options; `None` without them. An address that other hosts can reach needs TLS or
    /// `--insecure`.
    pub(crate) fn tls(&self, address: &Address) -> Result<Option<Tls>, Failure> {
        let (Some(certificate), Some(key), Some(authorities)) = (&self.tls_cert, &self.tls_key, &self.tls_ca)
        else {
            return if self.insecure || is_on_this_host(address) {
                Ok(None)
            } else {
                Err(unprotected(address))
            };
        };
        let mut tls = Tls::new(certificate, key, authorities);
        if let Some(revocations) = &self.tls_crl {
            tls = tls.revocations(revocations);
        }
        if let Some(peer) = &self.tls_peer {
            tls = tls.peer(peer).map_err(|error| {
                Failure::usage(format!("--tls-peer: {error}"))
                    .hint("write it as the other side's certificate does, such as host.example.org")
            })?;
        }
        tls.check().map_err(|error| failure(&error))?;
        Ok(Some(tls))
    }
}

/// Returns what to say of TLS that did not come about.
pub(crate) fn failure(error: &TlsError) -> Failure {
    Failure::from_error(error).hint_if(advice(error))
}

/// The advice if one side speaks TLS, and the other does not.
pub(crate) const ON_BOTH: &str = "give the options of TLS on both sides, or on none";

/// Returns what the operator can do about an error of TLS.
pub(crate) fn advice(error: &TlsError) -> Option<&'static str> {
    match error {
        TlsError::Unreadable { .. } => Some("check the path, and that this user may read the file"),
        TlsError::Lacks { .. } | TlsError::Unusable { .. } => {
            Some("check that the options of TLS name the right files, in PEM form (-----BEGIN ..)")
        }
        TlsError::Unnamed(_) => Some("say with --tls-peer which name the destination's certificate carries"),
        TlsError::Name(_) => {
            Some("say with --tls-peer which name or IP address the destination's certificate carries")
        }
        TlsError::Foreign(_) | TlsError::Plain => Some(ON_BOTH),
        TlsError::Wait(_) => {
            Some("check that the other side still runs and that the network works; its own log may say more")
        }
        TlsError::Untrusted(_) => Some(
            "`openssl x509 -in FILE -noout -text` shows whom a certificate is for and until when; both sides need one that the \
             --tls-ca of the other has signed",
        ),
        _ => None,
    }
}

fn unprotected(address: &Address) -> Failure {
    Failure::usage(format!(
        "{address} is on a network, and without TLS anyone there could read and change the devices' state"
    ))
    .hint(
        "give --tls-cert, --tls-key and --tls-ca on both sides; or --insecure on both, if only these two hosts are on that \
         network",
    )
}

/// Returns whether only this host can reach an address.
fn is_on_this_host(address: &Address) -> bool {
    match address {
        Address::Unix(_) => true,
        Address::Tcp(text) => match text.parse::<SocketAddr>() {
            Ok(address) => address.ip().to_canonical().is_loopback(),
            Err(_) => text.rsplit_once(':').is_some_and(|(host, _)| host.eq_ignore_ascii_case("localhost")),
        },
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_and_unix_sockets_are_of_this_host_alone() {
        let table = [
            ("127.0.0.1:1", true),
            ("127.9.9.9:1", true),
            ("[::1]:1", true),
            ("[::ffff:127.0.0.1]:1", true),
            ("localhost:1", true),
            ("LOCALHOST:1", true),
            ("unix:/a", true),
            ("0.0.0.0:1", false),
            ("[::]:1", false),
            ("10.0.0.1:1", false),
            ("localhost.example.org:1", false),
            ("other:1", false),
        ];
        for (address, expected) in table {
            assert_eq!(is_on_this_host(&address.parse().unwrap()), expected, "{address}");
        }
    }
}
