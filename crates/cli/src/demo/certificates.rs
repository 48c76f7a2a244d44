//! The certificates of a demo with TLS: an authority of its own, whose key is not kept, and one for each host.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use serde::{Deserialize, Serialize};
use whimbrel_engine::channel::Tls;

use super::messages::Role;
use crate::failure::Failure;

/// The files of one host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Certificates {
    certificate: PathBuf,
    key: PathBuf,
    authority: PathBuf,
    /// The name that the other host shows.
    peer: String,
}

/// An authority that has made the certificates of both hosts.
pub(super) struct Authority {
    folder: PathBuf,
    file: PathBuf,
}

impl Authority {
    /// Makes all files in a folder that only this user can read.
    pub(super) fn new(folder: &Path) -> Result<Authority, Failure> {
        let wrong = |error: rcgen::Error| Failure::new(format!("cannot make certificates: {error}"));
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().map_err(wrong)?;
        let authority = Authority { folder: folder.to_path_buf(), file: folder.join("authority.pem") };
        write(&authority.file, &params.self_signed(&key).map_err(wrong)?.pem())?;
        let issuer = Issuer::new(params, key);
        for role in [Role::Source, Role::Destination] {
            let params = CertificateParams::new(vec![name(role)]).map_err(wrong)?;
            let key = KeyPair::generate().map_err(wrong)?;
            let Certificates { certificate, key: file, .. } = authority.of(role);
            write(&certificate, &params.signed_by(&key, &issuer).map_err(wrong)?.pem())?;
            write(&file, &key.serialize_pem())?;
        }
        Ok(authority)
    }

    /// Returns the files of a host.
    pub(super) fn of(&self, role: Role) -> Certificates {
        Certificates {
            certificate: self.folder.join(format!("{role}.pem")),
            key: self.folder.join(format!("{role}.key")),
            authority: self.file.clone(),
            peer: name(match role {
                Role::Source => Role::Destination,
                Role::Destination => Role::Source,
            }),
        }
    }
}

impl Certificates {
    /// Returns what the host shows, and whom it trusts.
    pub(super) fn tls(&self) -> Result<Tls, Failure> {
        Tls::new(&self.certificate, &self.key, &self.authority)
            .peer(&self.peer)
            .map_err(|error| Failure::from_error(&error))
    }
}

/// The name in a host's certificate.
fn name(role: Role) -> String {
    format!("{role}.whimbrel-demo")
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    fs::write(path, text)
        .map_err(|error| Failure::from_io(format!("cannot write {}", path.display()), &error))
}
