//! The address where a destination waits for its sender, used as programs use it.

use std::thread;
use std::time::Duration;

use whimbrel_engine::channel::{Address, Listener, Until, connect};
use whimbrel_engine::proto::control::{Control, Table};
use whimbrel_engine::proto::message::Message;

use crate::support::engine::{Error, Feature};
use crate::support::peer::{Peer, hello, table};
use crate::support::wire::kind;
use crate::support::{Rig, Shape};

fn until() -> Until<'static> {
    Until::timeout(Duration::from_secs(30))
}

fn listening() -> (Listener, Address) {
    let listener = Listener::bind(&"127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.address().clone();
    (listener, address)
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
    let (mut listener, address) = listening();
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

/// Sends to a listener; an error is its text.
fn send(rig: &mut Rig, address: &Address) -> Result<(), String> {
    let sent = rig.send_to(connect(address, until()).unwrap());
    sent.map(drop).map_err(|error| error.to_string())
}

/// Sends the tests' default device, on a thread of its own.
fn send_from_another_thread(address: Address) -> thread::JoinHandle<Result<(), String>> {
    thread::spawn(move || send(&mut Rig::new(&Shape::default()), &address))
}

/// A greeting that fits the tests' default device.
fn greeting() -> [Message<'static>; 2] {
    let table = Table { memory: Vec::new(), ..table(0) };
    [hello(), Message::Control(Control::Table(table))]
}

#[test]
fn peers_that_greet_like_a_sender_and_fail_do_not_keep_the_sender_out() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("door");
    let mut listener = Listener::bind(&Address::Unix(path.clone())).unwrap();
    let address = listener.address().clone();
    let connect_peer = || Peer::from(std::os::unix::net::UnixStream::connect(&path).unwrap());
    let mut silent: Vec<Peer> = (0..40).map(|_| connect_peer()).collect();
    for peer in &mut silent {
        peer.say(&hello());
    }
    let mut gone = connect_peer();
    gone.say(&hello());
    drop(gone);
    let mut wrong = connect_peer();
    wrong.say(&hello());
    wrong.frame(kind::TABLE, b"{}");
    let mut rig = Rig::new(&Shape::default());
    let sending = send_from_another_thread(address);
    // The features and the table of the sender are those in use, and not those of another one.
    rig.listen(&mut listener).unwrap();
    sending.join().unwrap().unwrap();
    let told = wrong.hear_until(kind::FAILED).expect("it is told");
    assert!(String::from_utf8_lossy(&told).contains("malformed TABLE frame"), "{told:?}");
    drop(silent);
}

#[test]
fn a_destination_with_fewer_features_accepts_a_sender_on_its_own_terms() {
    let (mut listener, address) = listening();
    let mut rig = Rig::new(&Shape::default());
    rig.there.features = vec![Feature::Blobs];
    let sending = send_from_another_thread(address);
    rig.listen(&mut listener).unwrap();
    sending.join().unwrap().unwrap();
}

#[test]
fn a_sender_that_was_accepted_on_other_terms_is_refused_before_a_device_is_touched() {
    let (mut listener, address) = listening();
    let mut rig = Rig::new(&Shape::default());
    rig.there.features = vec![Feature::Blobs];
    let sending = send_from_another_thread(address);
    let accepted = listener.accept(until()).unwrap();
    let error = rig.accept(accepted).unwrap_err().to_string();
    assert!(error.contains("other features"), "{error}");
    assert!(rig.there.control().requests().is_empty());
    assert!(sending.join().unwrap().unwrap_err().contains("other features"));
}

#[test]
fn a_sender_that_does_not_fit_ends_the_migration_and_both_sides_say_why() {
    let (mut listener, address) = listening();
    let mut rig = Rig::set(2, &Shape::default());
    let sending = send_from_another_thread(address);
    let error = rig.listen(&mut listener).unwrap_err();
    assert!(matches!(error, Error::Unfit(_)), "{error}");
    let told = sending.join().unwrap().unwrap_err();
    assert!(told.contains("the source sends 1 devices, the destination has 2"), "{told}");
    assert!(rig.there.control().requests().is_empty());
}

#[test]
fn a_sender_that_turns_silent_after_its_greeting_is_given_up_and_the_next_one_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let mut listener = Listener::bind(&Address::Unix(folder.path().join("door"))).unwrap();
    let address = listener.address().clone();
    let silent = std::os::unix::net::UnixStream::connect(folder.path().join("door")).unwrap();
    let mut silent = Peer::from(silent);
    for message in greeting() {
        silent.say(&message);
    }
    let mut rig =
        Rig::new(&Shape::default()).with_timeouts(Duration::from_millis(300), Duration::from_secs(10));
    let error = rig.listen(&mut listener).unwrap_err().to_string();
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
    rig.listen(&mut listener).unwrap();
    sending.join().unwrap();
}
