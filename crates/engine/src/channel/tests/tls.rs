//! TLS between the sides: who is refused and why, and that data comes through whole.

use std::fs;
use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, SerialNumber, date_time_ymd,
};
use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_send_buffer_size};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use tempfile::TempDir;

use super::certificates::{Authority, REVOKED, Shown};
use super::listener::{expect_hello, hello, refusal, stranger, table, while_listening};
use super::soon;
use crate::channel::bound::Bound;
use crate::channel::tls::WatchedTls;
use crate::channel::visitors::{Policy, Visitors};
use crate::channel::{
    Address, Channel, ChannelError, Interrupt, Listener, Received, Receiver, Sender, Stream, Tls, TlsError,
    TlsStream, Until, connect,
};
use crate::proto::control::{Control, Reason};
use crate::proto::greeting::Terms;
use crate::proto::message::Message;

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

#[test]
fn frames_and_the_end_come_through_in_both_directions_at_once() {
    let (source, destination) = working_pair();
    let data: Vec<u8> = (0..1_u32 << 18).flat_map(u32::to_le_bytes).collect();
    let talk = |channel: Arc<TlsStream>| {
        let mut sender = Sender::new(channel.clone());
        let (data, mut receiver) = (&data, Receiver::new(channel));
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for address in 0..20 {
                    sender.send(&Message::Memory { address, data }, soon()).unwrap();
                    sender.send(&Message::Memory { address, data: &data[..100] }, soon()).unwrap();
                }
                sender.finish(soon()).unwrap();
            });
            for expected in 0..40 {
                let Received::Memory(mut memory) = receiver.next(soon()).unwrap() else { panic!() };
                assert_eq!(memory.address(), expected / 2);
                let mut place = vec![0; memory.len()];
                memory.read_into(&mut place, soon()).unwrap();
                memory.finish(soon()).unwrap();
                assert_eq!(place, data[..place.len()]);
            }
            assert!(matches!(receiver.next(soon()).unwrap_err(), ChannelError::Closed));
        });
    };
    std::thread::scope(|scope| {
        scope.spawn(|| talk(source));
        talk(destination);
    });
}

#[test]
fn the_last_bytes_are_sent_although_the_peer_reads_late() {
    let (source, destination) = working_pair();
    let data = vec![7; 1 << 20];
    let mut sender = Sender::new(source);
    while !sender.is_behind() {
        sender.send(&Message::Memory { address: 0, data: &data }, Until::now()).unwrap();
    }
    std::thread::scope(|scope| {
        scope.spawn(|| sender.finish(soon()).unwrap());
        let mut receiver = Receiver::new(destination);
        loop {
            match receiver.next(soon()) {
                Ok(Received::Memory(memory)) => assert_eq!(memory.len(), data.len()),
                Ok(other) => panic!("{other:?}"),
                Err(error) => return assert!(matches!(error, ChannelError::Closed), "{error}"),
            }
        }
    });
}

#[test]
fn the_reason_of_a_peer_that_has_gone_is_read_although_bytes_for_it_are_left() {
    let hosts = Hosts::new();
    let (left, right) = UnixStream::pair().unwrap();
    let unix: Address = "unix:/run/move.sock".parse().unwrap();
    let (source, destination) = std::thread::scope(|scope| {
        let accepted = scope.spawn(|| hosts.destination().accept(right.into(), soon()).unwrap());
        let source = hosts.source().peer("127.0.0.1").unwrap();
        (source.connect(left.into(), &unix, soon()).unwrap(), accepted.join().unwrap())
    });
    let source = Arc::new(source);
    let data = vec![7; 1 << 20];
    let mut sender = Sender::new(source.clone());
    while !sender.is_behind() {
        sender.send(&Message::Memory { address: 0, data: &data }, Until::now()).unwrap();
    }
    let reason = Reason { reason: "the disk is full".into() };
    Sender::new(Arc::new(destination)).send_now(&Control::Failed(reason).into(), soon()).unwrap();
    let mut receiver = Receiver::new(source);
    let told = receiver.next(soon()).unwrap();
    assert!(matches!(told, Received::Message(Message::Control(Control::Failed(_)))), "{told:?}");
}

#[test]
fn a_killed_peer_is_a_closed_connection() {
    let (source, destination) = working_pair();
    drop(source);
    let mut receiver = Receiver::new(destination);
    assert!(matches!(receiver.next(soon()).unwrap_err(), ChannelError::Closed));
}

#[test]
fn a_source_is_accepted_at_a_listener() {
    let hosts = Hosts::new();
    let mut listener = hosts.listener();
    let address = listener.address().clone();
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| {
            let channel = hosts.source().connect(connect(&address, soon()).unwrap(), &address, soon());
            let channel = Arc::new(channel.unwrap());
            let mut sender = Sender::new(channel.clone());
            let mut receiver = Receiver::new(channel);
            sender.send_now(&hello(1).into(), soon()).unwrap();
            let Received::Message(Message::Control(Control::Accept(_))) = receiver.next(soon()).unwrap()
            else {
                panic!()
            };
            sender.send_now(&table().into(), soon()).unwrap();
            receiver.next(soon()).map(|_| ()).unwrap_err()
        });
        let accepted = listener.accept(soon()).unwrap();
        expect_hello(&accepted, 1);
        assert!(accepted.peer.unwrap().ip().is_loopback());
        drop(accepted);
        assert!(matches!(sending.join().unwrap(), ChannelError::Closed));
    });
}

#[test]
fn a_second_source_is_told_that_the_listener_is_busy() {
    let hosts = Hosts::new();
    let mut listener = hosts.listener();
    let address = listener.address().clone();
    let source =
        || Arc::new(hosts.source().connect(connect(&address, soon()).unwrap(), &address, soon()).unwrap());
    std::thread::scope(|scope| {
        let accepted = scope.spawn(|| listener.accept(soon()).unwrap());
        let first = source();
        let mut sender = Sender::new(first.clone());
        for message in [hello(1), table()] {
            sender.send_now(&message.into(), soon()).unwrap();
        }
        let _accepted = accepted.join().unwrap();
        let second = source();
        assert!(refusal(second).starts_with("busy"), "told after the handshake");
    });
}

/// A change of what a host shows.
type Change = fn(&mut CertificateParams);

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
fn a_refused_source_learns_why_from_a_listener_which_warns() {
    let hosts = Hosts::new();
    let stranger = hosts.other_authority.certificate("source");
    let log = logged_by(hosts.listener(), |address| {
        let stream =
            hosts.authority.tls(&stranger).connect(connect(address, soon()).unwrap(), address, soon());
        let channel = Arc::new(stream.unwrap());
        // A source has sent its HELLO by then: closing at once would lose the reason.
        Sender::new(channel.clone()).send_now(&hello(1).into(), soon()).unwrap();
        let error = Receiver::new(channel).next(soon()).unwrap_err().to_string();
        assert!(error.contains("no authority that the peer trusts has signed it"), "{error}");
    });
    assert!(
        log.contains("WARN") && log.contains("no authority that this side trusts has signed it"),
        "{log}"
    );
}

#[test]
fn a_listener_with_tls_outlasts_strangers_who_do_not_speak_it() {
    let hosts = Hosts::new();
    let mut listener = hosts.listener();
    let address = listener.address().clone();
    let plain = zerocopy::IntoBytes::as_bytes(&crate::proto::frame::Preamble::CURRENT).to_vec();
    std::thread::scope(|scope| {
        let accepted = scope.spawn(|| listener.accept(soon()).unwrap());
        let garbage = vec![0xff; 100_000];
        let strangers = [&b""[..], b"\x16", b"\x16\x03\x01\x02\x00\x01", &garbage, &plain];
        let _strangers: Vec<TcpStream> = strangers.iter().map(|bytes| stranger(&address, bytes)).collect();
        let channel = hosts.source().connect(connect(&address, soon()).unwrap(), &address, soon()).unwrap();
        let mut sender = Sender::new(Arc::new(channel));
        for message in [hello(1), table()] {
            sender.send_now(&message.into(), soon()).unwrap();
        }
        expect_hello(&accepted.join().unwrap(), 1);
    });
}

#[test]
fn a_source_without_tls_learns_that_the_destination_wants_it() {
    let hosts = Hosts::new();
    while_listening(hosts.listener(), |address| {
        let stream = Arc::new(connect(address, soon()).unwrap());
        Sender::new(stream.clone()).send_now(&hello(1).into(), soon()).unwrap();
        let error = Receiver::new(stream).next(soon()).unwrap_err().to_string();
        assert!(error.contains("it speaks TLS"), "{error}");
    });
}

#[test]
fn a_source_with_tls_learns_that_the_destination_has_none() {
    let hosts = Hosts::new();
    while_listening(super::listener::listener(), |address| {
        let stream = connect(address, soon()).unwrap();
        let error = hosts.source().connect(stream, address, soon()).unwrap_err();
        assert!(matches!(error, TlsError::Plain), "{error}");
    });
}

/// Returns what a listener logs while `work` connects to it.
fn logged_by(mut listener: Listener, work: impl FnOnce(&Address)) -> String {
    let stop = Interrupt::new().unwrap();
    let address = listener.address().clone();
    std::thread::scope(|scope| {
        let listening = scope.spawn(|| logged(|| listener.accept(Until::interrupted(&stop)).unwrap_err()).1);
        work(&address);
        stop.set();
        listening.join().unwrap()
    })
}

#[test]
fn a_listener_warns_of_a_sender_if_one_of_the_two_alone_has_tls() {
    let hosts = Hosts::new();
    let log = logged_by(hosts.listener(), |address| {
        let stream = Arc::new(connect(address, soon()).unwrap());
        Sender::new(stream.clone()).send_now(&hello(1).into(), soon()).unwrap();
        // It has dealt with this sender by the time that it answers.
        Receiver::new(stream).next(soon()).map(|_| ()).unwrap_err();
    });
    assert!(log.contains("WARN") && log.contains("the peer sends its stream without TLS"), "{log}");
    let log = logged_by(super::listener::listener(), |address| {
        hosts.source().connect(connect(address, soon()).unwrap(), address, soon()).unwrap_err();
    });
    assert!(log.contains("WARN") && log.contains("it speaks TLS, which this side was not told to"), "{log}");
    // Others who connect, such as a port scanner, do not fill the log.
    let log = logged_by(hosts.listener(), |address| {
        let mut other = stranger(address, b"GET / HTTP/1.1\r\n\r\n");
        let _ = other.read_to_end(&mut Vec::new());
    });
    assert!(!log.contains("WARN"), "{log}");
}

#[test]
fn a_side_is_warned_once_of_its_own_certificate_outside_of_its_time() {
    let hosts = Hosts::new();
    let table: [(Change, Option<&str>); 3] = [
        (|_| (), None),
        (|params| params.not_after = date_time_ymd(2021, 1, 1), Some("it expired")),
        (|params| params.not_before = date_time_ymd(3000, 1, 1), Some("it is not valid yet")),
    ];
    for (change, expected) in table {
        let shown = hosts.authority.made("here", change);
        // Also if its authority is one that the peers trust, and this side does not.
        for authority in [&hosts.authority, &hosts.other_authority] {
            let tls = authority.tls(&shown);
            let ((), log) = logged(|| (0..3).for_each(|_| tls.check().unwrap()));
            assert_eq!(log.matches("WARN").count(), usize::from(expected.is_some()), "{log}");
            let path = shown.certificate.display().to_string();
            assert!(expected.is_none_or(|reason| log.contains(reason) && log.contains(&path)), "{log}");
        }
    }
}

#[test]
fn a_handshake_goes_on_once_a_full_connection_takes_more() {
    let hosts = Hosts::new();
    let names = (0..3000).map(|number| format!("host-{number}")).chain(["127.0.0.1".into()]);
    let long = hosts.authority.made("x", |params| {
        params.subject_alt_names =
            CertificateParams::new(names.collect::<Vec<_>>()).unwrap().subject_alt_names;
    });
    let bound = Bound::new(&"127.0.0.1:0".parse().unwrap()).unwrap();
    let mut visitors = Visitors::default();
    visitors.use_tls(WatchedTls::new(hosts.authority.tls(&long)).unwrap());
    // Both buffers together are far smaller than the certificate.
    set_socket_send_buffer_size(&bound, 4096).unwrap();
    let client = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
    set_socket_recv_buffer_size(&client, 4096).unwrap();
    let address: SocketAddr = bound.address().to_string().parse().unwrap();
    rustix::net::connect(&client, &address).unwrap();
    let mut client = TcpStream::from(client);
    client.set_nonblocking(true).unwrap();
    let mut connection =
        rustls::ClientConnection::new(Arc::new(anonymous(&hosts)), "127.0.0.1".try_into().unwrap()).unwrap();
    connection.write_tls(&mut client).unwrap();
    let terms = Terms::default();
    let mut step = |until| visitors.step(&bound, Policy::Choose(&terms), until).map(|_| ());
    // The listener sends what fits.
    while client.peek(&mut [0]).is_err() {
        let _ = step(Until::now());
    }
    client.set_nonblocking(false).unwrap();
    let stop = Interrupt::new().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| while step(Until::interrupted(&stop)).is_ok() {});
        // From here on the client reads without another word.
        let is_whole = loop {
            match connection.read_tls(&mut client) {
                Ok(0) | Err(_) => break false,
                Ok(_) => drop(connection.process_new_packets().unwrap()),
            }
            if !connection.is_handshaking() {
                break true;
            }
        };
        stop.set();
        assert!(is_whole, "the listener has ended the connection");
    });
}

#[test]
fn a_peer_that_says_nothing_ends_the_handshake_at_its_deadline() {
    let hosts = Hosts::new();
    let (left, _right) = UnixStream::pair().unwrap();
    let soon = Until::timeout(Duration::from_millis(10));
    let error = hosts.destination().accept(left.into(), soon).unwrap_err();
    assert!(matches!(error, TlsError::Wait(_)), "{error}");
}

#[test]
fn a_new_certificate_is_shown_from_the_next_connection_on() {
    let hosts = Hosts::new();
    let shown = hosts.authority.certificate("elsewhere");
    let destination = hosts.authority.tls(&shown);
    assert!(pair(&hosts.source(), &destination).0.is_err());
    let right = hosts.authority.certificate("127.0.0.1");
    replace(&shown.certificate, &right.certificate);
    // Until the key is there too, the two do not belong together.
    let (refused, log) = logged(|| pair(&hosts.source(), &destination.clone()).0.is_err());
    assert!(refused, "{log}");
    replace(&shown.key, &right.key);
    assert!(pair(&hosts.source(), &destination).0.is_ok());
}

#[test]
fn a_listener_shows_a_new_certificate_without_a_new_start() {
    let hosts = Hosts::new();
    let shown = hosts.authority.certificate("elsewhere");
    let listener = super::listener::listener().tls(hosts.authority.tls(&shown)).unwrap();
    while_listening(listener, |address| {
        let connected =
            || hosts.source().connect(connect(address, soon()).unwrap(), address, soon()).map(|_| ());
        assert!(connected().is_err());
        let right = hosts.authority.certificate("127.0.0.1");
        replace(&shown.key, &right.key);
        replace(&shown.certificate, &right.certificate);
        let until = soon();
        while connected().is_err() {
            until.check().expect("the files are read again");
        }
    });
}

#[test]
fn no_sender_waits_until_a_listener_has_read_its_files_again() {
    let hosts = Hosts::new();
    let shown = hosts.authority.certificate("127.0.0.1");
    let destination = hosts.authority.tls(&shown);
    let mut listener = super::listener::listener().tls(destination.clone()).unwrap();
    let address = listener.address().clone();
    // As while a large file is read.
    let reading = destination.hold_reading();
    let other = hosts.authority.certificate("127.0.0.1");
    replace(&shown.key, &other.key);
    replace(&shown.certificate, &other.certificate);
    std::thread::scope(|scope| {
        let accepted = scope.spawn(|| listener.accept(soon()).map(|accepted| expect_hello(&accepted, 1)));
        let channel = hosts.source().connect(connect(&address, soon()).unwrap(), &address, soon());
        let mut sender = Sender::new(Arc::new(channel.unwrap()));
        for message in [hello(1), table()] {
            sender.send_now(&message.into(), soon()).unwrap();
        }
        accepted.join().unwrap().unwrap();
    });
    drop(reading);
}

/// Puts another file in the place of one, as programs that renew certificates do.
fn replace(path: &Path, with: &Path) {
    let new = path.with_extension("new");
    fs::copy(with, &new).unwrap();
    fs::rename(new, path).unwrap();
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let hosts = Hosts::new();
    let good = hosts.authority.certificate("here");
    let other = hosts.authority.certificate("here");
    let missing = good.key.with_extension("missing");
    let cut = good.key.with_extension("cut");
    let text = fs::read(&good.certificate).unwrap();
    fs::write(&cut, &text[..text.len() / 2]).unwrap();
    let table: [(Tls, &Path, &str); 7] = [
        (Tls::new(&cut, &good.key, hosts.authority.file()), &cut, "it is not complete"),
        (Tls::new(&missing, &good.key, hosts.authority.file()), &missing, "cannot read"),
        (Tls::new(&good.key, &good.key, hosts.authority.file()), &good.key, "has no certificate in PEM form"),
        (
            Tls::new(&good.certificate, &good.certificate, hosts.authority.file()),
            &good.certificate,
            "private key",
        ),
        (
            Tls::new(&good.certificate, &other.key, hosts.authority.file()),
            &other.key,
            "not the key of the certificate",
        ),
        (Tls::new(&good.certificate, &good.key, &good.key), &good.key, "has no certificate in PEM form"),
        (hosts.authority.tls(&good).revocations(&good.key), &good.key, "certificate revocation list"),
    ];
    for (tls, path, reason) in table {
        let error = tls.check().unwrap_err().to_string();
        assert!(error.contains(reason) && error.contains(&path.display().to_string()), "{error}");
    }
    let Shown { .. } = good;
}

#[test]
fn a_pipe_is_read_to_its_end_and_not_waited_for_without_end() {
    let hosts = Hosts::new();
    let shown = hosts.authority.certificate("here");
    // On a thread of its own: a wait without end would be one of this test.
    let check = |key: &Path| {
        let tls = Tls::new(&shown.certificate, key, hosts.authority.file());
        let (told, answer) = std::sync::mpsc::channel();
        std::thread::spawn(move || told.send(tls.check()));
        answer.recv_timeout(Duration::from_mins(1)).expect("it ends")
    };
    let named = shown.key.with_extension("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &named, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    assert!(matches!(check(&named).unwrap_err(), TlsError::Lacks { .. }), "nobody writes");
    // As a shell passes the output of a command.
    let (reader, mut writer) = io::pipe().unwrap();
    let passed = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&reader));
    writer.write_all(&fs::read(&shown.key).unwrap()).unwrap();
    let error = check(Path::new(&passed)).unwrap_err().to_string();
    assert!(error.contains("the program that writes this pipe does not end it"), "{error}");
    writer.write_all(&fs::read(&shown.key).unwrap()).unwrap();
    drop(writer);
    check(Path::new(&passed)).unwrap();
}

#[test]
fn a_file_without_end_is_too_large() {
    let hosts = Hosts::new();
    let shown = hosts.authority.certificate("here");
    let zero = Path::new("/dev/zero");
    let error = Tls::new(zero, &shown.key, hosts.authority.file()).check().unwrap_err().to_string();
    assert_eq!(error, "cannot read /dev/zero: EFBIG: File too large");
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

/// A bit that is changed on the way, at any place: data is never taken as good.
#[test]
fn a_changed_bit_ends_the_connection() {
    let hosts = Hosts::new();
    for at in [0, 3, 700, 1500, 3000, 5000, 20_000, 60_000] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = TcpListener::bind("127.0.0.1:0").unwrap();
        let (to, address) = (listener.local_addr().unwrap(), proxy.local_addr().unwrap().to_string());
        let address: Address = address.parse().unwrap();
        let result = std::thread::scope(|scope| {
            scope.spawn(|| {
                let (left, right) = (proxy.accept().unwrap().0, TcpStream::connect(to).unwrap());
                let (mut from, mut into) = (right.try_clone().unwrap(), left.try_clone().unwrap());
                scope.spawn(move || {
                    let _ = io::copy(&mut from, &mut into);
                    let _ = into.shutdown(Shutdown::Both);
                });
                flip(left, right, at);
            });
            let source = scope.spawn(|| -> Result<(), String> {
                let stream = connect(&address, soon()).unwrap();
                let channel =
                    hosts.source().connect(stream, &address, soon()).map_err(|error| error.to_string())?;
                let data = vec![5; 1 << 17];
                let mut sender = Sender::new(Arc::new(channel));
                sender
                    .send_now(&Message::Memory { address: 0, data: &data }, soon())
                    .and_then(|()| sender.finish(soon()))
                    .map_err(|error| error.to_string())
            });
            let read = hosts
                .destination()
                .accept(listener.accept().unwrap().0.into(), soon())
                .map_err(|error| error.to_string())
                .and_then(|channel| {
                    let mut receiver = Receiver::new(Arc::new(channel));
                    match receiver.next(soon()).map_err(|error| error.to_string())? {
                        Received::Memory(memory) => memory.finish(soon()).map_err(|error| error.to_string()),
                        Received::Message(other) => Err(format!("{other:?}")),
                    }
                });
            let _ = source.join().unwrap();
            read
        });
        assert!(result.is_err(), "the bit at {at} was not missed");
    }
}

/// Copies one stream to another, with one bit changed.
fn flip(mut from: TcpStream, mut into: TcpStream, at: usize) {
    let (mut seen, mut buffer) = (0, vec![0; 4096]);
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if (seen..seen + count).contains(&at) {
            buffer[at - seen] ^= 1;
        }
        seen += count;
        if into.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = into.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}

/// Writes raw bytes, as a peer would that breaks the rules after the handshake.
#[test]
fn what_follows_garbage_is_not_read() {
    let (source, destination) = working_pair();
    let mut sender = Sender::new(source.clone());
    let reason = Reason { reason: "stop".into() };
    sender.send_now(&Control::Failed(reason).into(), soon()).unwrap();
    let raw = Stream::try_from(std::os::fd::AsFd::as_fd(&*source).try_clone_to_owned().unwrap()).unwrap();
    raw.try_write(&[IoSlice::new(&[0x17, 3, 3, 0, 32]), IoSlice::new(&[9; 32])]).unwrap();
    let mut receiver = Receiver::new(destination.clone());
    // What came before the garbage may be read or not.
    let error = loop {
        if let Err(error) = receiver.next(soon()) {
            break error;
        }
    };
    assert!(matches!(error, ChannelError::Failed(_)), "{error}");
    assert!(receiver.next(soon()).is_err());
    assert_eq!(destination.try_write(&[IoSlice::new(b"x")]).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    // The alert reaches the peer.
    assert!(matches!(Receiver::new(source).next(soon()).unwrap_err(), ChannelError::Failed(_)));
}
