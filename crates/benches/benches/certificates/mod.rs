//! A host's certificate and its authority, in files that Whimbrel and QEMU both read.

use std::error::Error;
use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use whimbrel_engine::channel::Tls;

/// The address of both sides.
const HOST: &str = "127.0.0.1";

/// Writes the certificates of both sides into a folder, by the names that QEMU expects.
pub(crate) fn write(folder: &Path) -> Result<Tls, Box<dyn Error>> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate()?;
    let authority = folder.join("ca-cert.pem");
    std::fs::write(&authority, params.self_signed(&key)?.pem())?;
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate()?;
    let certificate = CertificateParams::new(vec![HOST.into()])?.signed_by(&key, &issuer)?.pem();
    for side in ["server", "client"] {
        std::fs::write(folder.join(format!("{side}-cert.pem")), &certificate)?;
        std::fs::write(folder.join(format!("{side}-key.pem")), key.serialize_pem())?;
    }
    Ok(open(folder))
}

/// Returns the certificates that were written into a folder.
pub(crate) fn open(folder: &Path) -> Tls {
    Tls::new(folder.join("server-cert.pem"), folder.join("server-key.pem"), folder.join("ca-cert.pem"))
}
