//! Certificates for both sides of a migration over TLS, in files.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, date_time_ymd,
};

use crate::support::argument;

/// An authority, with a folder for the files.
pub(crate) struct Authority {
    folder: PathBuf,
    issuer: Issuer<'static, KeyPair>,
    file: PathBuf,
}

impl Authority {
    pub(crate) fn new(folder: &Path, name: &str) -> Authority {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let file = folder.join(format!("{name}.pem"));
        fs::write(&file, params.self_signed(&key).unwrap().pem()).unwrap();
        Authority { folder: folder.to_path_buf(), issuer: Issuer::new(params, key), file }
    }

    /// Returns the file of its own certificate.
    pub(crate) fn file(&self) -> &Path {
        &self.file
    }

    /// Returns the options of a side that shows a certificate for a name, which ends in a year.
    pub(crate) fn options(&self, name: &str, until: i32) -> Vec<String> {
        let mut params = CertificateParams::new(vec![name.to_string()]).unwrap();
        params.not_after = date_time_ymd(until, 1, 1);
        let key = KeyPair::generate().unwrap();
        let stem = self.folder.join(format!("{name}-{until}-{}", fastrand::u64(..)));
        let files = [stem.with_extension("crt"), stem.with_extension("key")];
        fs::write(&files[0], params.signed_by(&key, &self.issuer).unwrap().pem()).unwrap();
        fs::write(&files[1], key.serialize_pem()).unwrap();
        let [certificate, key, authority] = [&files[0], &files[1], &self.file].map(|file| argument(file));
        ["--tls-cert", &certificate, "--tls-key", &key, "--tls-ca", &authority].map(str::to_string).to_vec()
    }
}
