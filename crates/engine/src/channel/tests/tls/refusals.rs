//! Refusals: of whom, and with what reasons on both sides.

use std::fs;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, SerialNumber, date_time_ymd,
};

use super::{Change, Hosts, anonymous, pair, told};
use crate::channel::tests::certificates::REVOKED;
use crate::channel::tests::soon;
use crate::channel::{Address, Stream, TlsError, Until};

/// Certificates that are refused: how they are made, and what each side says.
const REFUSED: [(&str, Change, &str, &str); 6] = [
    (
        "expired",
        |params| {
            (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
        },
        "it has expired",
        "it has expired",
    ),
    (
        "not valid yet",
        |params| params.not_before = date_time_ymd(3000, 1, 1),
        "it is not valid yet",
        "it has expired, or is not valid yet",
    ),
    (
        "another name",
        |params| {
            params.subject_alt_names =
                CertificateParams::new(vec!["elsewhere".into()]).unwrap().subject_alt_names;
        },
        "it is for elsewhere, not for",
        "another name than it asked for",
    ),
    (
        "revoked",
        |params| params.serial_number = Some(SerialNumber::from(REVOKED)),
        "it is revoked",
        "it is revoked",
    ),
    (
        "another use",
        |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning],
        "it is made for another use",
        "it is made for another use",
    ),
    (
        "of an authority",
        |params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained),
        "it is that of an authority, not of a host",
        "the peer's own log says why",
    ),
];

#[test]
fn a_source_with_a_bad_certificate_is_refused_with_the_reason() {
    let hosts = Hosts::new();
    let revocations = hosts.authority.revocations(2900);
    let destination = hosts.destination().revocations(&revocations).peer("source").unwrap();
    assert!(pair(&hosts.source(), &destination).1.is_ok());
    for (what, change, reason, told_reason) in REFUSED {
        let source = hosts.authority.tls(&hosts.authority.made("source", change));
        let (source, refused) = pair(&source, &destination);
        let refused = refused.unwrap_err();
        assert!(matches!(refused, TlsError::Untrusted(_)), "{what}: {refused}");
        assert!(refused.to_string().contains(reason), "{what}: {refused}");
        let told = told(source);
        assert!(told.contains("the peer refuses the certificate of this side"), "{what}: {told}");
        assert!(told.contains(told_reason), "{what}: {told}");
    }
}

#[test]
fn a_destination_with_a_bad_certificate_is_refused_with_the_reason() {
    let hosts = Hosts::new();
    let revocations = hosts.authority.revocations(2900);
    let source = hosts.source().revocations(&revocations);
    for (what, change, reason, told_reason) in REFUSED {
        let destination = hosts.authority.tls(&hosts.authority.made("127.0.0.1", change));
        let (refused, told) = pair(&source, &destination);
        let (refused, told) = (refused.unwrap_err(), told.unwrap_err());
        assert!(matches!(refused, TlsError::Untrusted(_)), "{what}: {refused}");
        assert!(refused.to_string().contains(reason), "{what}: {refused}");
        assert!(told.to_string().contains(told_reason), "{what}: {told}");
    }
}

#[test]
fn a_certificate_for_many_names_does_not_fill_the_log() {
    let hosts = Hosts::new();
    let names: Vec<String> = (0..500).map(|number| format!("host-{number}")).collect();
    let many = hosts.authority.made("x", |params| {
        params.subject_alt_names = CertificateParams::new(names).unwrap().subject_alt_names;
    });
    let destination = hosts.destination().peer("source").unwrap();
    let refused = pair(&hosts.authority.tls(&many), &destination).1.unwrap_err().to_string();
    assert!(refused.ends_with("host-7 and 492 more, not for source"), "{refused}");
}

#[test]
fn certificates_of_no_trusted_authority_are_refused() {
    let hosts = Hosts::new();
    let strangers = [hosts.authority.self_signed("source"), hosts.other_authority.certificate("source")];
    for stranger in strangers {
        let (source, refused) = pair(&hosts.authority.tls(&stranger), &hosts.destination());
        let refused = refused.unwrap_err().to_string();
        assert!(refused.contains("no authority that this side trusts has signed it"), "{refused}");
        assert!(told(source).contains("no authority that the peer trusts has signed it"));
    }
}

#[test]
fn a_peer_without_a_certificate_is_refused() {
    let hosts = Hosts::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::scope(|scope| {
        let refused = scope.spawn(|| hosts.destination().accept(listener.accept().unwrap().0.into(), soon()));
        let name = "127.0.0.1".try_into().unwrap();
        let connection = rustls::ClientConnection::new(Arc::new(anonymous(&hosts)), name).unwrap();
        let mut stream = rustls::StreamOwned::new(connection, TcpStream::connect(address).unwrap());
        let error = stream.read(&mut [0]).unwrap_err().to_string();
        assert!(error.contains("CertificateRequired"), "{error}");
        let refused = refused.join().unwrap().unwrap_err().to_string();
        assert_eq!(refused, "the peer is refused: it showed no certificate");
    });
}

#[test]
fn a_revocation_list_has_to_be_current_and_of_the_issuer() {
    let hosts = Hosts::new();
    let lists = [
        (hosts.authority.revocations(2021), "revocation list of its issuer has expired"),
        (hosts.other_authority.revocations(2901), "no revocation list of this side is from its issuer"),
    ];
    for (list, reason) in lists {
        let (source, refused) = pair(&hosts.source(), &hosts.destination().revocations(list));
        let refused = refused.unwrap_err().to_string();
        assert!(refused.contains(reason), "{refused}");
        // The alert is the same as for an unknown authority.
        let told = told(source);
        assert!(told.contains("the peer has no valid revocation list of it"), "{told}");
    }
}

#[test]
fn a_peer_that_says_nothing_ends_the_handshake_at_its_deadline() {
    let hosts = Hosts::new();
    let (left, _right) = UnixStream::pair().unwrap();
    let soon = Until::timeout(Duration::from_millis(10));
    let error = hosts.destination().accept(left.into(), soon).unwrap_err();
    assert!(matches!(error, TlsError::Wait(_)), "{error}");
}

/// A certificate of version 1 and its key, as openssl makes them without a file of extensions.
const VERSION_1: [&str; 2] = [
    "-----BEGIN CERTIFICATE-----\n\
     MIHbMIGOAhQgec6X5PIWSduCHWpWs9zWuPRo6jAFBgMrZXAwFDESMBAGA1UEAwwJ\n\
     YXV0aG9yaXR5MB4XDTI2MTEzMDIwMzE1OVoXDTI2MTIwMzIwMzE1OVowDTELMAkG\n\
     A1UEAwwCdjEwKjAFBgMrZXADIQA8QqOVKU/OFU6H7TzI/7Nc6/4BV6sLDxotp1bg\n\
     aOfaQTAFBgMrZXADQQAli/MuBFre6dR+WTaFg8Njk+VIs/NS2LuGi6fmkYH4oDDo\n\
     IHK+gzALptFkzZ7vSN0ELgLxWecoVXavmvoTQAoG\n\
     -----END CERTIFICATE-----",
    "-----BEGIN PRIVATE KEY-----\n\
     MC4CAQAwBQYDK2VwBCIEIHfxd4Nj2L+D21ZoPWMuE15qRO45EVC49NPBBS5Q5ACX\n\
     -----END PRIVATE KEY-----",
];

#[test]
fn a_certificate_of_version_1_is_named_as_that() {
    let hosts = Hosts::new();
    let shown = hosts.authority.certificate("here");
    fs::write(&shown.certificate, VERSION_1[0]).unwrap();
    fs::write(&shown.key, VERSION_1[1]).unwrap();
    let error = hosts.authority.tls(&shown).check().unwrap_err().to_string();
    assert!(error.contains(": it is of X.509 version 1"), "{error}");
}

#[test]
fn a_name_is_needed_for_a_unix_socket_and_has_to_be_one() {
    let hosts = Hosts::new();
    let (left, _right) = UnixStream::pair().unwrap();
    let unix: Address = "unix:/run/move.sock".parse().unwrap();
    let error = hosts.source().connect(Stream::from(left), &unix, soon()).unwrap_err();
    assert!(matches!(error, TlsError::Unnamed(_)), "{error}");
    assert!(matches!(hosts.source().peer("not a name").unwrap_err(), TlsError::Name(_)));
}
