//! The address where a destination waits for its sender, used as programs use it.

use std::thread;
use std::time::Duration;

use whimbrel_engine::channel::{Address, Listener, Until, connect};

use crate::support::peer::Peer;
use crate::support::wire::kind;
use crate::support::{Rig, Shape};

fn until() -> Until<'static> {
    Until::timeout(Duration::from_secs(30))
}

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
        let address = listener.address().clone();
        let (mut first, mut second) = (Rig::new(&Shape::default()), Rig::new(&Shape::default()));
        let mut here = Rig::new(&Shape::default());
        let first_address = address.clone();
        let sending = thread::spawn(move || {
            here.send_to(connect(&first_address, until()).unwrap()).unwrap();
            here
        });
        let accepted = listener.accept(until()).unwrap();
        let late = second.send_to(connect(&address, until()).unwrap()).unwrap_err().to_string();
        assert!(late.starts_with("the destination ended the migration: "), "{late}");
        assert!(late.contains("busy"), "{late}");
        second.assert_source_runs("too late");
        first.accept(accepted).unwrap();
        let here = sending.join().unwrap();
        assert_eq!(first.there.control().state(), here.here.control().state());
    }
}

#[test]
fn strangers_neither_end_nor_delay_the_wait_for_the_sender() {
    let mut listener = Listener::bind(&"127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.address().clone();
    let Address::Tcp(name) = &address else { panic!("{address}") };
    let strangers: Vec<std::net::TcpStream> = [&b""[..], b"W", b"GET / HTTP/1.1\r\n\r\n", &[0; 100]]
        .iter()
        .map(|bytes| {
            let mut stranger = std::net::TcpStream::connect(name.as_str()).unwrap();
            std::io::Write::write_all(&mut stranger, bytes).unwrap();
            stranger
        })
        .collect();
    drop(std::net::TcpStream::connect(name.as_str()).unwrap());
    let mut rig = Rig::new(&Shape::default());
    let mut here = Rig::new(&Shape::default());
    let sending = thread::spawn(move || here.send_to(connect(&address, until()).unwrap()).unwrap());
    let accepted = listener.accept(until()).unwrap();
    rig.accept(accepted).unwrap();
    sending.join().unwrap();
    drop(strangers);
}

#[test]
fn a_sender_that_turns_silent_after_its_greeting_is_given_up_and_the_next_one_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let mut listener = Listener::bind(&Address::Unix(folder.path().join("door"))).unwrap();
    let address = listener.address().clone();
    let silent = std::os::unix::net::UnixStream::connect(folder.path().join("door")).unwrap();
    let mut silent = Peer::from(silent);
    silent.say(&crate::support::peer::hello());
    let mut rig =
        Rig::new(&Shape::default()).with_timeouts(Duration::from_millis(300), Duration::from_secs(10));
    let accepted = listener.accept(until()).unwrap();
    let error = rig.accept(accepted).unwrap_err().to_string();
    assert!(error.contains("300 ms"), "{error}");
    assert!(silent.hear_until(kind::FAILED).is_some(), "it is told");
    drop(silent);
    let mut here = Rig::new(&Shape::default());
    // Until the listener accepts again, it is told that the receiver is busy.
    let sending = thread::spawn(move || {
        loop {
            match here.send_to(connect(&address, until()).unwrap()) {
                Err(error) if error.to_string().contains("busy: ") => {}
                sent => return sent.unwrap(),
            }
        }
    });
    let mut rig = Rig::new(&Shape::default());
    let accepted = listener.accept(until()).unwrap();
    rig.accept(accepted).unwrap();
    sending.join().unwrap();
}
