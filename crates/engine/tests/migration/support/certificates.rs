//! Hosts that trust each other.

use std::path::Path;

use whimbrel_engine::channel::Tls;

use crate::certificates::Authority;

/// Returns the files of two hosts that trust each other, each with a certificate for 127.0.0.1.
pub(crate) fn trusting(folder: &Path) -> [Tls; 2] {
    let authority = Authority::new(folder, "authority");
    [(); 2].map(|()| {
        let shown = authority.certificate("127.0.0.1");
        Tls::new(shown.certificate, shown.key, authority.file())
    })
}
