//! A listener with TLS: whom it takes, and what it tells the others.

use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use rcgen::CertificateParams;
use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_send_buffer_size};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use super::{Hosts, anonymous, logged, replace};
use crate::channel::bound::Bound;
use crate::channel::tests::listener::{expect_hello, hello, refusal, stranger, table, while_listening};
use crate::channel::tests::soon;
use crate::channel::tls::WatchedTls;
use crate::channel::visitors::{Policy, Visitors};
use crate::channel::{
    Address, ChannelError, Interrupt, Listener, Received, Receiver, Sender, TlsError, Until, connect,
};
use crate::proto::control::Control;
use crate::proto::greeting::Terms;
use crate::proto::message::Message;

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
    while_listening(crate::channel::tests::listener::listener(), |address| {
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
    let log = logged_by(crate::channel::tests::listener::listener(), |address| {
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
    let mut go_on = |until| visitors.step(&bound, Policy::Choose(&terms), until).map(|_| ());
    // The listener sends what fits.
    while client.peek(&mut [0]).is_err() {
        let _ = go_on(Until::now());
    }
    client.set_nonblocking(false).unwrap();
    let stop = Interrupt::new().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| while go_on(Until::interrupted(&stop)).is_ok() {});
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
fn a_listener_shows_a_new_certificate_without_a_new_start() {
    let hosts = Hosts::new();
    let shown = hosts.authority.certificate("elsewhere");
    let listener = crate::channel::tests::listener::listener().tls(hosts.authority.tls(&shown)).unwrap();
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
    let mut listener = crate::channel::tests::listener::listener().tls(destination.clone()).unwrap();
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
