//! One side of a takeover, played message by message.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use serde_json::{Value, json};
use whimbrel_vfio_user::message::{Kind, Limits, MessageBuffer};
use whimbrel_vfio_user::{Receiver, Sender, connection};

pub(crate) const COMMAND: u16 = 0x5754;
pub(crate) const LIMITS: Limits = Limits::new(2 << 20);

/// One end of the talk between two servers.
pub(crate) struct Hand {
    pub(crate) receiver: Receiver,
    pub(crate) sender: Sender,
    /// What was heard already.
    first: Option<Said>,
}

/// A message of it.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) text: Value,
    /// The text as it came.
    pub(crate) json: Vec<u8>,
    pub(crate) data: Vec<u8>,
    pub(crate) descriptors: Vec<OwnedFd>,
}

impl Hand {
    pub(crate) fn new(stream: UnixStream) -> Hand {
        let (receiver, sender) = connection(stream, LIMITS);
        Hand { receiver, sender, first: None }
    }

    /// Asks for the device until it is offered: a server that had to wait for the request takes it for a client's.
    pub(crate) fn connect(path: &Path) -> Hand {
        Hand::asking(|| UnixStream::connect(path).unwrap())
    }

    /// As [`Hand::connect`], over connections that are made elsewhere.
    pub(crate) fn asking(connect: impl Fn() -> UnixStream) -> Hand {
        Hand::speaking(&[1, 77], connect)
    }

    /// As [`Hand::asking`], by a server that speaks these versions.
    pub(crate) fn speaking(versions: &[u32], connect: impl Fn() -> UnixStream) -> Hand {
        loop {
            let mut hand = Hand::new(connect());
            hand.say(&json!({"message": "request", "versions": versions}));
            hand.first = hand.hear();
            if hand.first.is_some() {
                return hand;
            }
        }
    }

    pub(crate) fn say(&mut self, text: &Value) {
        self.say_with(text.to_string().as_bytes(), &[], &[]);
    }

    pub(crate) fn say_with(&mut self, text: &[u8], data: &[u8], descriptors: &[OwnedFd]) {
        let mut out = MessageBuffer::new();
        let frame = out.begin(0, COMMAND, Kind::Command { no_reply: true });
        out.put(data);
        out.put(text);
        out.put(&(text.len() as u32).to_ne_bytes());
        out.finish(frame);
        let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        // One that has hung up has heard enough.
        let _ = self.sender.send(out.as_bytes(), &descriptors);
    }

    /// What the other says next; `None` if it has hung up.
    pub(crate) fn hear(&mut self) -> Option<Said> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        let got = self.receiver.receive().ok()??;
        if got.header.command != COMMAND {
            return None;
        }
        let (rest, length) = got.payload.split_last_chunk::<4>().unwrap();
        let (data, text) = rest.split_at(rest.len() - u32::from_ne_bytes(*length) as usize);
        let (text, json) = (serde_json::from_slice(text).unwrap(), text.to_vec());
        Some(Said { text, json, data: data.to_vec(), descriptors: got.descriptors.unwrap().into_vec() })
    }
}

pub(crate) fn kind(said: &Said) -> &str {
    said.text["message"].as_str().unwrap()
}

/// Plays a new server up to the offer, and then to the end of what the old one sends.
pub(crate) fn listen_to_all(hand: &mut Hand) -> Vec<Said> {
    let mut all = vec![hand.hear().unwrap()];
    hand.say(&json!({"message": "accept"}));
    while all.last().is_none_or(|last| kind(last) != "end") {
        all.push(hand.hear().unwrap());
    }
    all
}

/// Stands between the old server at `old` and a new one that connects to `listener`, whose file is `path`, until one of them
/// has hung up. `look` sees what the old one says before the new one does, and can hold it back.
pub(crate) fn stand_between(old: &Path, listener: &UnixListener, path: &Path, mut look: impl FnMut(&Said)) {
    let mut to_new = Hand::new(listener.accept().unwrap().0);
    let request = to_new.hear().unwrap();
    let versions: Vec<u32> = serde_json::from_value(request.text["versions"].clone()).unwrap();
    let mut to_old = Hand::speaking(&versions, || UnixStream::connect(old).unwrap());
    let metadata = path.metadata().unwrap();
    while let Some(mut said) = to_old.hear() {
        if kind(&said) == "offer" {
            said.text["socket"] = json!([metadata.dev(), metadata.ino()]);
        }
        look(&said);
        to_new.say_with(said.text.to_string().as_bytes(), &said.data, &said.descriptors);
        if ["offer", "end", "handover"].contains(&kind(&said)) {
            let Some(answer) = to_new.hear() else { break };
            to_old.say_with(&answer.json, &answer.data, &[]);
        }
    }
}
