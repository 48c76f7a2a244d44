//! The files of one side, and what rustls makes of them.

use std::fs;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{Error as Pem, PemObject};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::error::{TlsError, certificate};
use super::named_client::NamedClient;
use super::own::Own;
use crate::channel::{Readiness, Until};

/// The maximum of a file, in bytes.
const MAX_FILE: u64 = 256 << 20;
/// The time for the program at the other end of a pipe to write all of it.
const PIPE_TIMEOUT: Duration = Duration::from_secs(2);

/// The files.
#[derive(Clone, Debug)]
pub(super) struct Files {
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
    pub(super) authorities: PathBuf,
    pub(super) revocations: Option<PathBuf>,
}

/// A mark that changes with the contents of the files: of each the device, inode, size and times of its last changes.
pub(super) type Stamp = Vec<Option<(u64, u64, u64, [(i64, i64); 2])>>;

/// The contents of the files at one time.
#[derive(Clone, Debug)]
pub(super) struct Loaded {
    pub(super) stamp: Stamp,
    pub(super) client: Arc<ClientConfig>,
    pub(super) server: Arc<ServerConfig>,
    pub(super) own: Arc<Own>,
}

impl Files {
    /// Returns the stamp of the files as they are now.
    pub(super) fn stamp(&self) -> Stamp {
        let files =
            [Some(&self.certificate), Some(&self.key), Some(&self.authorities), self.revocations.as_ref()];
        let stamp = |path: &PathBuf| {
            fs::metadata(path).ok().map(|file| {
                let times = [(file.mtime(), file.mtime_nsec()), (file.ctime(), file.ctime_nsec())];
                (file.dev(), file.ino(), file.len(), times)
            })
        };
        files.into_iter().flatten().map(stamp).collect()
    }

    /// Reads the files. A client has to carry the name of `peer`, if there is one.
    pub(super) fn load(&self, stamp: Stamp, peer: Option<&ServerName<'static>>) -> Result<Loaded, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let chain: Vec<CertificateDer<'static>> = objects(&self.certificate, "certificate")?;
        let key = self.key()?;
        let mut roots = RootCertStore::empty();
        for authority in objects::<CertificateDer<'static>>(&self.authorities, "certificate")? {
            roots.add(authority).map_err(|error| unusable(&self.authorities, error))?;
        }
        let roots = Arc::new(roots);
        let revocations: Vec<CertificateRevocationListDer<'static>> = match &self.revocations {
            Some(path) => objects(path, "certificate revocation list")?,
            None => Vec::new(),
        };
        let own = self.own(&provider, &roots, chain.clone())?;
        Ok(Loaded {
            stamp,
            own: Arc::new(own),
            client: self.client(&provider, &roots, &revocations, (chain.clone(), key.clone_key()))?,
            server: self.server(&provider, &roots, revocations, (chain, key), peer)?,
        })
    }

    fn own(
        &self,
        provider: &Arc<CryptoProvider>,
        roots: &Arc<RootCertStore>,
        chain: Vec<CertificateDer<'static>>,
    ) -> Result<Own, TlsError> {
        let verifier = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone())
            .build()
            .map_err(|error| self.unverifiable(&error))?;
        Ok(Own::new(self.certificate.clone(), chain, verifier))
    }

    fn key(&self) -> Result<PrivateKeyDer<'static>, TlsError> {
        let bytes = read(&self.key)?;
        PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| pem(&self.key, "private key", error))
    }

    fn client(
        &self,
        provider: &Arc<CryptoProvider>,
        roots: &Arc<RootCertStore>,
        revocations: &[CertificateRevocationListDer<'static>],
        (chain, key): (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>),
    ) -> Result<Arc<ClientConfig>, TlsError> {
        let verifier = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone())
            .with_crls(revocations.iter().cloned())
            .only_check_end_entity_revocation()
            .enforce_revocation_expiration()
            .build()
            .map_err(|error| self.unverifiable(&error))?;
        let mut config = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&TLS13])
            .map_err(|error| unusable(&self.certificate, error))?
            .with_webpki_verifier(verifier)
            .with_client_auth_cert(chain, key)
            .map_err(|error| self.mismatch(&error))?;
        // Each connection proves both certificates anew.
        config.resumption = Resumption::disabled();
        Ok(Arc::new(config))
    }

    fn server(
        &self,
        provider: &Arc<CryptoProvider>,
        roots: &Arc<RootCertStore>,
        revocations: Vec<CertificateRevocationListDer<'static>>,
        (chain, key): (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>),
        peer: Option<&ServerName<'static>>,
    ) -> Result<Arc<ServerConfig>, TlsError> {
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            .with_crls(revocations)
            .only_check_end_entity_revocation()
            .enforce_revocation_expiration()
            .build()
            .map_err(|error| self.unverifiable(&error))?;
        let verifier = match peer {
            Some(name) => Arc::new(NamedClient::new(verifier, name.clone())),
            None => verifier,
        };
        let mut config = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&TLS13])
            .map_err(|error| unusable(&self.certificate, error))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .map_err(|error| self.mismatch(&error))?;
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }

    fn unverifiable(&self, error: &rustls::server::VerifierBuilderError) -> TlsError {
        let path = match error {
            rustls::server::VerifierBuilderError::InvalidCrl(_) => self.revocations.as_ref(),
            _ => None,
        };
        unusable(path.unwrap_or(&self.authorities), error)
    }

    fn mismatch(&self, error: &rustls::Error) -> TlsError {
        match error {
            rustls::Error::InconsistentKeys(_) => TlsError::Unusable {
                path: self.key.clone(),
                reason: format!("it is not the key of the certificate in {}", self.certificate.display()),
            },
            rustls::Error::InvalidCertificate(error) => unusable(&self.certificate, certificate(error)),
            _ => unusable(&self.key, error),
        }
    }
}

/// Reads a file or a pipe, none of which may keep the caller waiting.
fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let unreadable = |error| TlsError::Unreadable { path: path.to_path_buf(), error };
    let file = fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let mut file = file.map_err(unreadable)?;
    let until = Until::timeout(PIPE_TIMEOUT);
    let mut bytes = Vec::new();
    loop {
        let room = (MAX_FILE + 1).saturating_sub(bytes.len() as u64);
        match Read::by_ref(&mut file).take(room).read_to_end(&mut bytes) {
            Ok(_) if bytes.len() as u64 > MAX_FILE => {
                return Err(unreadable(io::Error::from_raw_os_error(libc::EFBIG)));
            }
            Ok(_) => return Ok(bytes),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if until.wait(file.as_fd(), Readiness::Readable).is_err() {
                    let silent = "the program that writes this pipe does not end it";
                    return Err(unreadable(io::Error::new(io::ErrorKind::TimedOut, silent)));
                }
            }
            Err(error) => return Err(unreadable(error)),
        }
    }
}

/// Reads all objects of a kind, at least one.
fn objects<T: PemObject>(path: &Path, what: &'static str) -> Result<Vec<T>, TlsError> {
    let bytes = read(path)?;
    let all: Vec<T> =
        T::pem_slice_iter(&bytes).collect::<Result<_, _>>().map_err(|error| pem(path, what, error))?;
    if all.is_empty() { Err(TlsError::Lacks { path: path.to_path_buf(), what }) } else { Ok(all) }
}

fn pem(path: &Path, what: &'static str, error: Pem) -> TlsError {
    match error {
        Pem::NoItemsFound => TlsError::Lacks { path: path.to_path_buf(), what },
        Pem::MissingSectionEnd { .. } => {
            unusable(path, "it ends within a section of PEM: it is not complete")
        }
        Pem::IllegalSectionStart { line } => {
            unusable(path, format!("malformed line '{}'", String::from_utf8_lossy(&line).escape_debug()))
        }
        other => unusable(path, other),
    }
}

fn unusable(path: &Path, error: impl std::fmt::Display) -> TlsError {
    TlsError::Unusable { path: path.to_path_buf(), reason: error.to_string() }
}
