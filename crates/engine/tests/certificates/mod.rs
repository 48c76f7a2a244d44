//! Authorities and certificates for the tests of TLS, in files: of this crate and of those above it.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer, KeyIdMethod,
    KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
};

/// An authority, with a folder for the files.
pub(crate) struct Authority {
    folder: PathBuf,
    issuer: Issuer<'static, KeyPair>,
    file: PathBuf,
}

/// A certificate in a file, and its key in another.
#[derive(Clone)]
pub(crate) struct Shown {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

/// The serial number of certificates that are revoked.
pub(crate) const REVOKED: u64 = 66;

impl Authority {
    pub(crate) fn new(folder: &Path, name: &str) -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let file = write(folder, &format!("{name}.authority.pem"), &params.self_signed(&key).unwrap().pem());
        Authority { folder: folder.to_path_buf(), issuer: Issuer::new(params, key), file }
    }

    /// Makes a certificate for a name.
    pub(crate) fn certificate(&self, name: &str) -> Shown {
        self.made(name, |_| ())
    }

    /// Makes a certificate for a name, with other properties.
    pub(crate) fn made(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Shown {
        let mut params = CertificateParams::new(vec![name.to_string()]).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        self.shown(&params.signed_by(&key, &self.issuer).unwrap().pem(), &key)
    }

    /// Makes a certificate that nobody but its owner has signed.
    pub(crate) fn self_signed(&self, name: &str) -> Shown {
        let params = CertificateParams::new(vec![name.to_string()]).unwrap();
        let key = KeyPair::generate().unwrap();
        self.shown(&params.self_signed(&key).unwrap().pem(), &key)
    }

    fn shown(&self, certificate: &str, key: &KeyPair) -> Shown {
        let stem = format!("{}", fastrand::u64(..));
        Shown {
            certificate: write(&self.folder, &format!("{stem}.pem"), certificate),
            key: write(&self.folder, &format!("{stem}.key"), &key.serialize_pem()),
        }
    }

    /// Makes a revocation list until a year, with the certificates of the number [`REVOKED`] on it.
    pub(crate) fn revocations(&self, until: i32) -> PathBuf {
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(until, 1, 1),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: vec![RevokedCertParams {
                serial_number: SerialNumber::from(REVOKED),
                revocation_time: date_time_ymd(2021, 1, 1),
                reason_code: None,
                invalidity_date: None,
            }],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&self.issuer).unwrap().pem().unwrap();
        write(&self.folder, &format!("revoked-until-{until}.pem"), &list)
    }

    /// Returns the file of the authority's own certificate.
    pub(crate) fn file(&self) -> &Path {
        &self.file
    }
}

fn write(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, text).unwrap();
    path
}
