//! The files of a side: those that cannot be used, those that change, and those whose time is over.

use std::fs;
use std::io::{self, Write};
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use rcgen::date_time_ymd;

use super::{Change, Hosts, logged, pair, replace};
use crate::channel::tests::certificates::Shown;
use crate::channel::tests::soon;
use crate::channel::{Address, Interrupt, Tls, TlsError, Until, WaitError, connect};

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

#[test]
fn what_cannot_be_read_for_now_is_read_again_although_it_has_not_changed() {
    let hosts = Hosts::new();
    let shown = hosts.authority.certificate("source");
    let tls = hosts.authority.tls(&shown);
    tls.check().unwrap();
    // A folder can be opened, and not read.
    fs::remove_file(&shown.certificate).unwrap();
    fs::create_dir(&shown.certificate).unwrap();
    let ((), warnings) = logged(|| {
        for _ in 0..3 {
            tls.check().unwrap();
            assert!(!tls.is_up_to_date());
        }
    });
    assert_eq!(warnings.matches("those before stay in use").count(), 1, "{warnings}");
    fs::remove_dir(&shown.certificate).unwrap();
    fs::write(&shown.certificate, "no certificate").unwrap();
    tls.check().unwrap();
    assert!(tls.is_up_to_date(), "it is not read again and again");
}

#[test]
fn no_connection_waits_for_ever_for_another_thread_that_reads_the_files() {
    let hosts = Hosts::new();
    let [used, new] = [hosts.source(), hosts.source()];
    used.check().unwrap();
    // As from a server that does not answer.
    let _reading = [used.hold_reading(), new.hold_reading()];
    let (source, destination) = pair(&used, &hosts.destination());
    source.and(destination).expect("the files that were read before are good enough");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address: Address = listener.local_addr().unwrap().to_string().parse().unwrap();
    let dial =
        |until: Until<'_>| new.connect(connect(&address, soon()).unwrap(), &address, until).unwrap_err();
    let error = dial(Until::timeout(Duration::from_millis(100)));
    assert!(matches!(error, TlsError::Wait(WaitError::TimedOut)), "{error}");
    let interrupt = Interrupt::new().unwrap();
    interrupt.set();
    let error = dial(Until::interrupted(&interrupt));
    assert!(matches!(error, TlsError::Wait(WaitError::Interrupted)), "{error}");
}
