//! The time for which a side's own certificate is valid: outside of it every peer refuses the certificate, whose owner should
//! learn that first.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, Error as Rustls};

/// A side's own certificate, followed by those of its issuers.
#[derive(Debug)]
pub(super) struct Own {
    path: PathBuf,
    chain: Vec<CertificateDer<'static>>,
    /// Without revocation lists. It may not trust the certificate, which the peer's authorities have to.
    verifier: Arc<WebPkiServerVerifier>,
    /// Set once the owner was warned.
    is_told: AtomicBool,
}

impl Own {
    pub(super) fn new(
        path: PathBuf,
        chain: Vec<CertificateDer<'static>>,
        verifier: Arc<WebPkiServerVerifier>,
    ) -> Own {
        Own { path, chain, verifier, is_told: AtomicBool::new(false) }
    }

    /// Warns once, as long as the certificate is not valid at this time.
    pub(super) fn tell(&self, now: UnixTime) {
        let Some(fault) = self.fault(now) else { return self.is_told.store(false, Ordering::Relaxed) };
        if !self.is_told.swap(true, Ordering::Relaxed) {
            let file = self.path.display();
            tracing::warn!(%file, "peers refuse the certificate of this side: it {fault}");
        }
    }

    /// Returns why the certificate, or one of its issuers in the file, is not valid at a time.
    fn fault(&self, now: UnixTime) -> Option<String> {
        let (first, issuers) = self.chain.split_first()?;
        // Times are checked before names are.
        let any = ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into());
        let since = |from: UnixTime, to: UnixTime| age(to.as_secs().saturating_sub(from.as_secs()));
        match self.verifier.verify_server_cert(first, issuers, &any, &[], now) {
            Err(Rustls::InvalidCertificate(error)) => match error {
                CertificateError::Expired => Some("has expired".into()),
                CertificateError::ExpiredContext { not_after, .. } => {
                    Some(format!("expired {} ago", since(not_after, now)))
                }
                CertificateError::NotValidYet => Some("is not valid yet".into()),
                CertificateError::NotValidYetContext { not_before, .. } => Some(format!(
                    "is not valid yet, for another {} (is the clock of this host right?)",
                    since(now, not_before)
                )),
                _ => None,
            },
            _ => None,
        }
    }
}

/// Returns a time in seconds, for a person.
fn age(seconds: u64) -> String {
    match seconds {
        ..120 => format!("{seconds} s"),
        120..7200 => format!("{} minutes", seconds / 60),
        7200..172_800 => format!("{} hours", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_in_the_unit_that_a_person_uses() {
        let table = [
            (0, "0 s"),
            (119, "119 s"),
            (120, "2 minutes"),
            (7199, "119 minutes"),
            (7200, "2 hours"),
            (172_799, "47 hours"),
            (172_800, "2 days"),
        ];
        for (seconds, expected) in table {
            assert_eq!(age(seconds), expected);
        }
    }
}
