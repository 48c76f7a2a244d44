//! The receiver's door.

use std::time::Duration;

use whimbrel_engine::{Address, Destination, Link, Listener};

use crate::support::{Rig, Shape};

const PATIENCE: Duration = Duration::from_secs(20);

fn addresses() -> (tempfile::TempDir, [Address; 2]) {
    let folder = tempfile::tempdir().unwrap();
    let unix = Address::Unix(folder.path().join("door"));
    (folder, [unix, Address::Tcp("127.0.0.1:0".into())])
}

#[test]
fn a_second_sender_is_told_and_its_device_runs_on_while_the_first_one_moves() {
    let (_folder, addresses) = addresses();
    for address in addresses {
        let mut listener = Listener::bind(&address).unwrap();
        let address = listener.address().unwrap();
        let mut first = Rig::new(&Shape::default());
        let mut second = Rig::new(&Shape::default());
        let (sent, received) = std::thread::scope(|scope| {
            let receiver = scope.spawn(|| {
                let link = listener.accept().unwrap();
                let late = second.send_to(Link::connect(&address, PATIENCE).unwrap()).unwrap_err();
                let reason =
                    "the destination ended the migration: it is taking a migration from another sender";
                assert!(late.to_string().starts_with(reason), "{late}");
                second.assert_source_runs("too late");
                assert_eq!(
                    listener.accept().unwrap_err().raw_os_error(),
                    Some(whimbrel_protocol::Errno::EBUSY.raw_os_error())
                );
                Destination::new(&mut *first.there).receive(link)
            });
            let source = whimbrel_engine::Source::new(&mut *first.here).options(first.options);
            (source.send(Link::connect(&address, PATIENCE).unwrap()), receiver.join().unwrap())
        });
        sent.unwrap();
        received.unwrap();
    }
}

#[test]
fn a_visitor_that_says_nothing_is_not_taken_for_the_sender() {
    let (_folder, addresses) = addresses();
    for address in addresses {
        let mut listener = Listener::bind(&address).unwrap();
        let address = listener.address().unwrap();
        drop(Link::connect(&address, PATIENCE).unwrap());
        let mut link = Link::connect(&address, PATIENCE).unwrap();
        std::io::Write::write_all(&mut link, b"!").unwrap();
        let mut byte = [0];
        std::io::Read::read_exact(&mut listener.accept().unwrap(), &mut byte).unwrap();
        assert_eq!(byte, *b"!", "the first byte is still there");
    }
}

#[test]
fn a_second_receiver_at_the_same_path_is_refused_and_the_first_one_still_waits_for_its_sender() {
    let (_folder, [address, _]) = addresses();
    let mut listener = Listener::bind(&address).unwrap();
    let error = Listener::bind(&address).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(whimbrel_protocol::Errno::EADDRINUSE.raw_os_error()));
    let mut rig = Rig::new(&Shape::default());
    std::thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            Destination::new(&mut *rig.there).receive(listener.accept().unwrap()).unwrap();
        });
        let link = Link::connect(&address, PATIENCE).unwrap();
        whimbrel_engine::Source::new(&mut *rig.here).options(rig.options).send(link).unwrap();
        receiver.join().unwrap();
    });
}

#[test]
fn a_sockets_file_goes_with_its_listener_and_one_left_over_is_replaced() {
    let (folder, [address, _]) = addresses();
    let path = folder.path().join("door");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "a plain listener leaves its file behind");
    drop(Listener::bind(&address).unwrap());
    assert!(!path.exists());
    std::fs::write(&path, b"precious").unwrap();
    assert!(Listener::bind(&address).is_err());
    assert_eq!(std::fs::read(&path).unwrap(), b"precious", "a file that is no socket is nobody's to replace");
}
