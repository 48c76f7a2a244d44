//! Recorded messages: a line each, with the text as it was, the data, and the kinds of the descriptors.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use rustix::fs::{FileType, fstat, readlink};
use rustix::net::sockopt::socket_acceptconn;
use serde_json::{Value, json};

use crate::hand::{Said, kind};
use crate::support::{Signal, memory};

/// A message.
pub(super) struct Recorded {
    /// The text, byte for byte.
    pub(super) json: String,
    pub(super) data: Vec<u8>,
    descriptors: Vec<Kind>,
}

/// The kind of a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// The socket that clients connect to.
    Listener,
    /// A socket of the client.
    Socket,
    Eventfd,
    /// A memory file of this size.
    Memory(u64),
}

impl Kind {
    fn of(descriptor: impl AsFd) -> Kind {
        let stat = fstat(&descriptor).unwrap();
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Socket if socket_acceptconn(&descriptor).unwrap() => Kind::Listener,
            FileType::Socket => Kind::Socket,
            FileType::RegularFile => Kind::Memory(stat.st_size.try_into().unwrap()),
            _ => {
                let number = std::os::fd::AsRawFd::as_raw_fd(&descriptor.as_fd());
                let name = readlink(format!("/proc/self/fd/{number}"), Vec::new()).unwrap();
                assert_eq!(name.as_bytes(), b"anon_inode:[eventfd]");
                Kind::Eventfd
            }
        }
    }

    fn text(self) -> String {
        match self {
            Kind::Listener => "listener".into(),
            Kind::Socket => "socket".into(),
            Kind::Eventfd => "eventfd".into(),
            Kind::Memory(size) => format!("memory {size}"),
        }
    }

    fn parse(text: &str) -> Kind {
        match text.split_once(' ') {
            None if text == "listener" => Kind::Listener,
            None if text == "socket" => Kind::Socket,
            None if text == "eventfd" => Kind::Eventfd,
            Some(("memory", size)) => Kind::Memory(size.parse().unwrap()),
            _ => panic!("no kind of a descriptor: {text}"),
        }
    }
}

impl Recorded {
    pub(super) fn of(said: &Said) -> Recorded {
        let json = String::from_utf8(said.json.clone()).unwrap();
        let descriptors = said.descriptors.iter().map(Kind::of).collect();
        Recorded { json, data: said.data.clone(), descriptors }
    }

    fn text(&self) -> Value {
        serde_json::from_str(&self.json).unwrap()
    }

    pub(super) fn kind(&self) -> String {
        self.text()["message"].as_str().unwrap().to_owned()
    }
}

/// The other ends of descriptors that were made.
#[derive(Default)]
pub(super) struct Made {
    pub(super) sockets: Vec<UnixStream>,
    pub(super) eventfds: Vec<Signal>,
    pub(super) memory: Vec<File>,
}

impl Made {
    /// Makes the descriptors of a message.
    pub(super) fn descriptors(&mut self, message: &Recorded, listener: &UnixListener) -> Vec<OwnedFd> {
        let make = |kind: &Kind| match kind {
            Kind::Listener => listener.try_clone().unwrap().into(),
            Kind::Socket => {
                let (ours, theirs) = UnixStream::pair().unwrap();
                self.sockets.push(ours);
                theirs.into()
            }
            Kind::Eventfd => {
                let eventfd = Signal::new();
                let theirs = eventfd.as_fd().try_clone_to_owned().unwrap();
                self.eventfds.push(eventfd);
                theirs
            }
            Kind::Memory(size) => {
                let file = memory(*size);
                let theirs = file.try_clone().unwrap().into();
                self.memory.push(file);
                theirs
            }
        };
        message.descriptors.iter().map(make).collect()
    }
}

/// The text of an offer, with the socket at this path in place of the recorded one.
pub(super) fn offered_at(offer: &Recorded, path: &Path) -> Vec<u8> {
    let (metadata, mut text) = (path.metadata().unwrap(), offer.text());
    text["socket"] = json!([metadata.dev(), metadata.ino()]);
    text.to_string().into_bytes()
}

/// Checks that the old build, which said all of `recorded`, understands a message.
#[track_caller]
pub(super) fn check(recorded: &[Recorded], heard: &Said) {
    let same = recorded.iter().find(|message| message.kind() == kind(heard));
    let same = same.unwrap_or_else(|| panic!("the old build does not know {:?}", heard.text));
    assert_eq!(lacks(&same.text(), &heard.text), None, "{:?} lacks a part of {}", heard.text, same.json);
    let kinds: Vec<Kind> = heard.descriptors.iter().map(Kind::of).collect();
    assert_eq!(kinds, same.descriptors);
}

/// Returns where a text has another type than the old one, or nothing.
fn lacks(old: &Value, new: &Value) -> Option<String> {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => old.iter().find_map(|(key, old)| {
            let inside = new.get(key).map_or(Some(String::new()), |new| lacks(old, new));
            inside.map(|inside| format!("{key}.{inside}"))
        }),
        (Value::Array(old), Value::Array(new)) if old.len() == new.len() => old
            .iter()
            .zip(new)
            .enumerate()
            .find_map(|(at, (old, new))| lacks(old, new).map(|inside| format!("{at}.{inside}"))),
        _ => (std::mem::discriminant(old) != std::mem::discriminant(new)).then(String::new),
    }
}

pub(super) fn read(path: &Path) -> Vec<Recorded> {
    let line = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        let list = line["descriptors"].as_array().unwrap().iter();
        let digits = line["data"].as_str().unwrap().as_bytes().chunks(2);
        let byte = |digits: &[u8]| u8::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).unwrap();
        Recorded {
            json: line["json"].as_str().unwrap().to_owned(),
            data: digits.map(byte).collect(),
            descriptors: list.map(|kind| Kind::parse(kind.as_str().unwrap())).collect(),
        }
    };
    std::fs::read_to_string(path).unwrap().lines().map(line).collect()
}

pub(super) fn write(path: &Path, messages: &[Recorded]) {
    use std::fmt::Write;
    let mut lines = String::new();
    for Recorded { json, data, descriptors } in messages {
        let data = data.iter().fold(String::new(), |mut digits, byte| {
            let _ = write!(digits, "{byte:02x}");
            digits
        });
        let kinds: Vec<String> = descriptors.iter().map(|kind| kind.text()).collect();
        let line = json!({"json": json, "data": data, "descriptors": kinds});
        let _ = writeln!(lines, "{line}");
    }
    std::fs::write(path, lines).unwrap();
}
