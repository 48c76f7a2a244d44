//! TLS between the sides. Here is what several of its tests need.

mod data;
mod files;
mod listening;
mod refusals;

use std::fs;
use std::io::{self, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use rcgen::CertificateParams;
use tempfile::TempDir;

use super::certificates::{Authority, Shown};
use super::soon;
use crate::channel::{Address, ChannelError, Listener, Receiver, Tls, TlsError, TlsStream, connect};

/// Certificates of both sides by one authority.
struct Hosts {
    #[expect(dead_code, reason = "removes the files when dropped")]
    folder: TempDir,
    authority: Authority,
    other_authority: Authority,
}

impl Hosts {
    fn new() -> Hosts {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new(folder.path(), "authority");
        let other_authority = Authority::new(folder.path(), "other authority");
        Hosts { folder, authority, other_authority }
    }

    fn source(&self) -> Tls {
        self.authority.tls(&self.authority.certificate("source"))
    }

    fn destination(&self) -> Tls {
        self.authority.tls(&self.authority.certificate("127.0.0.1"))
    }

    fn listener(&self) -> Listener {
        super::listener::listener().tls(self.destination()).unwrap()
    }
}

impl Authority {
    /// Returns the files of a side that trusts this authority.
    fn tls(&self, shown: &Shown) -> Tls {
        Tls::new(&shown.certificate, &shown.key, self.file())
    }
}

/// Two ends of a connection with TLS: the source's and the destination's.
fn pair(source: &Tls, destination: &Tls) -> (Result<TlsStream, TlsError>, Result<TlsStream, TlsError>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address: Address = listener.local_addr().unwrap().to_string().parse().unwrap();
    std::thread::scope(|scope| {
        let accepted = scope.spawn(|| destination.accept(listener.accept().unwrap().0.into(), soon()));
        let connected = source.connect(connect(&address, soon()).unwrap(), &address, soon());
        // A source that refuses the destination's certificate says so, and closes the connection.
        (connected, accepted.join().unwrap())
    })
}

fn working_pair() -> (Arc<TlsStream>, Arc<TlsStream>) {
    let hosts = Hosts::new();
    let (source, destination) = pair(&hosts.source(), &hosts.destination());
    (Arc::new(source.unwrap()), Arc::new(destination.unwrap()))
}

/// The error of a source's first read, after the destination has refused it.
fn told(source: Result<TlsStream, TlsError>) -> String {
    match Receiver::new(Arc::new(source.unwrap())).next(soon()).unwrap_err() {
        ChannelError::Failed(error) => error.to_string(),
        other => panic!("{other}"),
    }
}

/// Runs `work`, and returns what it logged.
fn logged<T>(work: impl FnOnce() -> T) -> (T, String) {
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);
    impl Write for Log {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(data);
            Ok(data.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).with_ansi(false).finish();
    let result = tracing::subscriber::with_default(subscriber, work);
    let text = String::from_utf8(log.0.lock().clone()).unwrap();
    (result, text)
}

/// A change of what a host shows.
type Change = fn(&mut CertificateParams);

/// The settings of a client that shows no certificate.
fn anonymous(hosts: &Hosts) -> rustls::ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    let authority =
        <rustls::pki_types::CertificateDer<'_> as rustls::pki_types::pem::PemObject>::from_pem_file(
            hosts.authority.file(),
        );
    roots.add(authority.unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth()
}

/// Puts another file in the place of one, as programs that renew certificates do.
fn replace(path: &Path, with: &Path) {
    let new = path.with_extension("new");
    fs::copy(with, &new).unwrap();
    fs::rename(new, path).unwrap();
}
