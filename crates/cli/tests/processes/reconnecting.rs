//! Links that are cut in pre-copy and come back, or do not, and processes that are killed meanwhile.

use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread;

use nix::sys::signal::Signal;

use crate::host::Host;
use crate::migration::{PATIENT, begins, listening, receive, send_within};
use crate::operator::{Side, settle_and_migrate};
use crate::seed::trials;
use crate::started::Started;

/// Devices whose state takes two seconds at the bandwidth of [`SLOW`].
const MUCH: [&str; 2] = ["serial?ports=2", "accel?state=8MiB"];
const SLOW: &str = "--bandwidth=4MiB";

/// A proxy between TCP connections and a Unix socket, all of whose connections can be cut.
struct Links {
    address: String,
    net: Arc<Mutex<Net>>,
}

#[derive(Default)]
struct Net {
    is_down: bool,
    links: Vec<(TcpStream, UnixStream)>,
}

impl Links {
    fn to(address: &str) -> Links {
        let path = address.strip_prefix("unix:").unwrap().to_string();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let net: Arc<Mutex<Net>> = Arc::default();
        let its = net.clone();
        thread::spawn(move || {
            for near in listener.incoming() {
                let near = near.unwrap();
                let mut net = its.lock().unwrap();
                if !net.is_down
                    && let Ok(far) = UnixStream::connect(&path)
                {
                    let (mut from, mut to) = (near.try_clone().unwrap(), far.try_clone().unwrap());
                    thread::spawn(move || {
                        let _ = (io::copy(&mut from, &mut to), to.shutdown(Shutdown::Write));
                    });
                    let (mut from, mut to) = (far.try_clone().unwrap(), near.try_clone().unwrap());
                    thread::spawn(move || {
                        let _ = (io::copy(&mut from, &mut to), to.shutdown(Shutdown::Write));
                    });
                    net.links.push((near, far));
                }
            }
        });
        Links { address, net }
    }

    /// Cuts all links. Until it is mended, there are no new ones.
    fn cut(&self) {
        let mut net = self.net.lock().unwrap();
        net.is_down = true;
        net.links.drain(..).for_each(end);
    }

    /// Cuts the last of the links. Until it is mended, there are no new ones.
    fn cut_one(&self) {
        let mut net = self.net.lock().unwrap();
        net.is_down = true;
        net.links.pop().into_iter().for_each(end);
    }

    fn mend(&self) {
        self.net.lock().unwrap().is_down = false;
    }
}

fn end((near, far): (TcpStream, UnixStream)) {
    let _ = (near.shutdown(Shutdown::Both), far.shutdown(Shutdown::Both));
}

/// Both commands, which replace lost ones of so many connections within these times in seconds, and the links between them.
fn start(hosts: &[Host; 2], within: [u32; 2], channels: u32) -> ([Started; 2], Links) {
    let mut command = receive(&hosts[1], &hosts[1].new_address());
    command.arg(format!("--reconnect={}", within[1]));
    let (receiver, address) = listening(command);
    let links = Links::to(&address);
    let options = [PATIENT, SLOW, &format!("--reconnect={}", within[0]), &format!("--channels={channels}")];
    let sender = Started::plain(send_within(&hosts[0], &links.address, &options));
    ([sender, receiver], links)
}

/// Cuts the link in pre-copy, or one of several, and waits until the sender tries to replace it; `None` if it was too late.
fn cut(sender: &mut Started, links: &Links, channels: u32) -> Option<()> {
    sender.wait_for(&begins("RoundSend")).unwrap_or_else(|| panic!("{}", sender.told()));
    if channels > 1 {
        links.cut_one();
    } else {
        links.cut();
    }
    sender.wait_for(&begins("Reconnect")).map(drop)
}

#[test]
fn a_link_that_comes_back_in_pre_copy_costs_nothing_but_time() {
    come_back("a_link_that_comes_back", 1);
}

#[test]
fn one_of_several_links_that_comes_back_in_pre_copy_costs_nothing_but_time() {
    come_back("one_of_several_links_that_comes_back", 3);
}

/// Cuts the link, or one of several, and mends it.
fn come_back(test: &'static str, channels: u32) {
    trials(test, 1, 10, |_, rng| {
        for _ in 0..10 {
            let hosts = [Host::with(&MUCH), Host::with(&MUCH)];
            hosts[0].work(rng);
            let contents = hosts[0].contents();
            let ([mut sender, mut receiver], links) = start(&hosts, [60, 60], channels);
            let is_in_time = cut(&mut sender, &links, channels).is_some();
            links.mend();
            if !is_in_time {
                drop((sender.end(), receiver.end()));
                continue;
            }
            let (sent, taken) = (sender.end().succeeded(), receiver.end().succeeded());
            assert!(sent.json()["reconnections"].as_u64().unwrap() >= 1, "{}", sent.stderr);
            assert!(taken.json()["reconnections"].as_u64().unwrap() >= 1, "{}", taken.stderr);
            hosts[1].assert_runs_with(&contents, "after the link came back");
            hosts[0].assert_stands("after the link came back");
            return;
        }
        panic!("it is never in time");
    });
}

/// Kills one of both commands while the link is lost. The devices run once, and migrate then.
fn kill_while_lost(test: &'static str, victim: usize, channels: u32) {
    trials(test, 1, 10, |_, rng| {
        for _ in 0..10 {
            let hosts = [Host::with(&MUCH), Host::with(&MUCH)];
            hosts[0].work(rng);
            let contents = hosts[0].contents();
            let ([mut sender, mut receiver], links) = start(&hosts, [3, 3], channels);
            if cut(&mut sender, &links, channels).is_none() {
                drop((sender.end(), receiver.end()));
                continue;
            }
            let victim_process = if victim == 0 { &mut sender } else { &mut receiver };
            victim_process.signal(Signal::SIGKILL);
            links.mend();
            let ended = [sender.end(), receiver.end()];
            let [sent, taken] = &ended;
            if victim == 0 {
                assert!(taken.stderr.contains("did not come back on another connection"), "{}", taken.stderr);
            } else {
                assert!(sent.stderr.contains("could not be reached again within 3000 ms"), "{}", sent.stderr);
                assert_eq!(sent.json()["outcome"], "runs_on", "{}", sent.stderr);
            }
            let side =
                settle_and_migrate([&hosts[0], &hosts[1]], &contents, &ended, rng, "while the link is lost");
            assert_eq!(side, Side::Source);
            return;
        }
        panic!("it is never in time");
    });
}

#[test]
fn a_sender_that_is_killed_while_the_link_is_lost_leaves_the_devices_at_the_source() {
    kill_while_lost("a_sender_that_is_killed_while_the_link_is_lost", 0, 1);
}

#[test]
fn a_sender_that_is_killed_while_one_of_several_links_is_lost_leaves_the_devices_at_the_source() {
    kill_while_lost("a_sender_that_is_killed_while_one_of_several_links_is_lost", 0, 3);
}

#[test]
fn a_receiver_that_is_killed_while_the_link_is_lost_leaves_the_devices_at_the_source() {
    kill_while_lost("a_receiver_that_is_killed_while_the_link_is_lost", 1, 1);
}

#[test]
fn a_receiver_that_is_killed_while_one_of_several_links_is_lost_leaves_the_devices_at_the_source() {
    kill_while_lost("a_receiver_that_is_killed_while_one_of_several_links_is_lost", 1, 3);
}

#[test]
fn a_receiver_that_was_started_again_meanwhile_has_no_such_migration() {
    trials("a_receiver_that_was_started_again", 1, 5, |_, rng| {
        for _ in 0..10 {
            let hosts = [Host::with(&MUCH), Host::with(&MUCH)];
            hosts[0].work(rng);
            let contents = hosts[0].contents();
            let address = hosts[1].new_address();
            let again = || {
                let mut command = receive(&hosts[1], &address);
                command.arg("--reconnect=60");
                command
            };
            let (mut receiver, listens) = listening(again());
            let links = Links::to(&listens);
            let options = [PATIENT, SLOW, "--reconnect=60"];
            let mut sender = Started::plain(send_within(&hosts[0], &links.address, &options));
            if cut(&mut sender, &links, 1).is_none() {
                links.mend();
                drop((sender.end(), receiver.end()));
                continue;
            }
            receiver.signal(Signal::SIGKILL);
            drop(receiver.end());
            hosts[1].reset();
            let (mut other, _) = listening(again());
            links.mend();
            let sent = sender.end().failed();
            assert!(sent.stderr.contains("no such migration"), "{}", sent.stderr);
            assert_eq!(sent.json()["outcome"], "runs_on");
            hosts[0].assert_runs_with(&contents, &sent.stderr);
            other.signal(Signal::SIGTERM);
            other.end().failed();
            return;
        }
        panic!("it is never in time");
    });
}
