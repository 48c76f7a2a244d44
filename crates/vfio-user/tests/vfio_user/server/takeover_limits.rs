//! How long a takeover may take, and what ends it: nobody waits for it but its own two ends.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::json;
use whimbrel_device::{Errno, State};
use whimbrel_vfio_user::message::{Request, Version};
use whimbrel_vfio_user::{Backend, Server};

use super::hand::*;
use super::support::*;
use super::takeover::{Line, board};
use super::takeover_by_hand::Watcher;

/// Longer than anything here takes, and not as long as a peer drips.
const LONG: Duration = Duration::from_secs(30);

/// Sends byte after byte until nobody listens, and whether it does still.
struct Drip {
    goes_on: Arc<AtomicBool>,
    has_sent_all: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drip {
    fn new(mut stream: UnixStream, bytes: Vec<u8>, pause: Duration) -> Drip {
        let goes_on = Arc::new(AtomicBool::new(true));
        let has_sent_all = Arc::new(AtomicBool::new(false));
        let (flag, all) = (goes_on.clone(), has_sent_all.clone());
        let thread = std::thread::spawn(move || {
            let mut bytes = bytes.into_iter();
            while let Some(byte) = bytes.next().filter(|_| flag.load(Ordering::Relaxed)) {
                if stream.write_all(&[byte]).is_err() {
                    break;
                }
                std::thread::sleep(pause);
            }
            all.store(bytes.len() == 0, Ordering::Relaxed);
            flag.store(false, Ordering::Relaxed);
        });
        Drip { goes_on, has_sent_all, thread: Some(thread) }
    }

    fn goes_on(&self) -> bool {
        self.goes_on.load(Ordering::Relaxed)
    }
}

impl Drop for Drip {
    fn drop(&mut self) {
        self.goes_on.store(false, Ordering::Relaxed);
        let _ = self.thread.take().unwrap().join();
    }
}

/// A process that wants to take over, and whose request does not end for minutes.
fn dripping_request(line: &Line) -> Drip {
    let mut stream = UnixStream::connect(line.path()).unwrap();
    let request = raw(0, COMMAND, 0x10, &[b' '; 1000]);
    let (header, rest) = request.split_at(16);
    stream.write_all(header).unwrap();
    Drip::new(stream, rest.to_vec(), Duration::from_millis(100))
}

#[test]
fn clients_are_served_while_a_request_to_take_over_drips_in() {
    let line = Line::new();
    let drip = dripping_request(&line);
    let mut peer = line.client();
    peer.write(BAR, 0, b"x").unwrap();
    assert!(drip.goes_on(), "it is served meanwhile");
}

#[test]
fn a_server_is_stopped_while_a_request_to_take_over_drips_in() {
    let line = Line::new();
    let drip = dripping_request(&line);
    // So that the server has seen it.
    drop(line.client());
    line.stopped().unwrap();
    assert!(!drip.has_sent_all.load(Ordering::Relaxed), "nobody waits for it");
}

#[test]
fn a_device_goes_on_when_a_new_server_drips_its_answer() {
    let limited = |server: Server| server.allow_takeover().takeover_pause(Duration::from_secs(1));
    let line = Line::of(board(), limited);
    let mut watcher = Watcher::new(&line);
    let mut hand = Hand::connect(&line.path());
    listen_to_all(&mut hand);
    let text = r#"{"message": "ready"}"#.as_bytes();
    let ready = raw(0, COMMAND, 0x10, &[text, &(text.len() as u32).to_ne_bytes()].concat());
    let stream = UnixStream::from(std::os::fd::AsFd::as_fd(&hand.sender).try_clone_to_owned().unwrap());
    // The last byte would come after more than half a minute.
    let drip = Drip::new(stream, ready, Duration::from_secs(1));
    let begun = Instant::now();
    watcher.sees_nothing();
    assert!(begun.elapsed() < LONG);
    assert_eq!(kind(&hand.hear().unwrap()), "abort");
    drop(drip);
}

#[test]
fn newcomers_are_told_that_the_device_is_busy_while_it_is_handed_over() {
    for has_client in [false, true] {
        let line = Line::new();
        let client = has_client.then(|| line.client());
        let mut hand = Hand::connect(&line.path());
        listen_to_all(&mut hand);
        let mut newcomer = Peer::new(UnixStream::connect(line.path()).unwrap(), None);
        let proposal = Request::Version(Version::proposal(Backend::capabilities()));
        assert_eq!(newcomer.ask(&proposal).err(), Some(Errno::EBUSY));
        drop(client);
    }
}

#[test]
fn a_stop_ends_a_takeover_under_way_and_lets_the_device_run() {
    for has_client in [false, true] {
        let line = Line::new();
        let client = has_client.then(|| line.client());
        let device = line.device().clone();
        let mut hand = Hand::connect(&line.path());
        listen_to_all(&mut hand);
        assert!(device.mig_state().is_ok_and(|state| !state.is_running()));
        assert!(!line.stopped().unwrap().taken_over);
        let said = hand.hear().unwrap();
        assert_eq!(kind(&said), "abort");
        assert!(said.text["why"].as_str().unwrap().contains("is stopping"), "{said:?}");
        assert_eq!(device.mig_state(), Ok(State::Running));
        drop(client);
    }
}

#[test]
fn a_second_process_is_told_that_another_takes_over() {
    let line = Line::new();
    let mut first = Hand::connect(&line.path());
    assert_eq!(kind(&first.hear().unwrap()), "offer");
    let mut second = Hand::connect(&line.path());
    let said = second.hear().unwrap();
    assert_eq!(kind(&said), "abort");
    assert!(said.text["why"].as_str().unwrap().contains("another takeover is in progress"), "{said:?}");
    // And the first has lost nothing by it.
    first.say(&json!({"message": "accept"}));
    assert_eq!(kind(&first.hear().unwrap()), "begin");
}
