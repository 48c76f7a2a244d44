//! A server that does as libvfio-user's and others do, where that is not what the text says. It is written from
//! the text and from what such servers were seen to do.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use whimbrel_user::{Errno, State};
use whimbrel_vfio_user::message::{Command, HEADER};
use whimbrel_vfio_user::{Client, ClientOptions};

const REPLY: u32 = 1;
const ERROR: u32 = 1 << 5;

/// What the server has, and what happened to it.
#[derive(Debug)]
pub(crate) struct Card {
    pub(crate) state: State,
    /// What it gives of its state, and how much of it was read.
    pub(crate) contents: Vec<u8>,
    pub(crate) read: usize,
    /// What was loaded since the last reset.
    pub(crate) loaded: Vec<u8>,
    /// Whether it has ever run with what was loaded.
    pub(crate) has_run_loaded: bool,
    /// Each command with the bytes of its payload.
    pub(crate) asked: Vec<(Command, usize)>,
    /// How it departs from the text.
    pub(crate) ways: Ways,
}

/// How a server departs from the text.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ways {
    /// MIGRATION is EINVAL: the device does not migrate.
    pub(crate) no_migration: bool,
    /// A reset leaves the migration state as it is.
    pub(crate) keeps_state: bool,
    /// What an access to a region is answered.
    pub(crate) region: Access,
    /// After so many bytes of state are loaded, nothing is read or answered any more.
    pub(crate) mute_after: Option<usize>,
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum Access {
    /// As the text says.
    #[default]
    Done,
    /// An error that names no errno.
    NoErrno,
    /// EBUSY, with a payload behind it.
    WithPayload,
    /// A write has a header alone.
    Empty,
}

/// The server, and a client of it.
pub(crate) struct Stranger {
    pub(crate) client: Client,
    pub(crate) card: Arc<Mutex<Card>>,
    thread: JoinHandle<()>,
}

impl Stranger {
    pub(crate) fn new(ways: Ways) -> Stranger {
        Stranger::with(ways, &ClientOptions::default())
    }

    pub(crate) fn with(ways: Ways, options: &ClientOptions) -> Stranger {
        let (stream, there) = UnixStream::pair().unwrap();
        stream.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
        let card = Arc::new(Mutex::new(card(ways)));
        let thread = std::thread::spawn({
            let card = card.clone();
            move || serve(&stream, &card)
        });
        let client = Client::new("stranger", there, options).unwrap();
        Stranger { client, card, thread }
    }

    /// Lets the client leave, and sees what has become of the card.
    pub(crate) fn leave(self) -> Card {
        drop(self.client);
        self.thread.join().unwrap();
        Arc::into_inner(self.card).unwrap().into_inner()
    }
}

/// A card that runs.
pub(crate) fn card(ways: Ways) -> Card {
    Card {
        state: State::Running,
        contents: (0..100_000_u32).map(|byte| byte as u8).collect(),
        read: 0,
        loaded: Vec::new(),
        has_run_loaded: false,
        asked: Vec::new(),
        ways,
    }
}

fn field(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn words(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_ne_bytes()).collect()
}

pub(crate) fn serve(mut stream: &UnixStream, card: &Mutex<Card>) {
    loop {
        let mut header = [0; HEADER];
        match stream.read(&mut header).unwrap() {
            0 => return,
            count => assert_eq!(count, HEADER, "a header that one receive does not give"),
        }
        let mut payload = vec![0; field(&header, 4) as usize - HEADER];
        // What one receive gives is taken for all of the message.
        let count = if payload.is_empty() { 0 } else { stream.read(&mut payload).unwrap() };
        assert_eq!(count, payload.len(), "a payload that one receive does not give");
        let command = u16::from_ne_bytes([header[2], header[3]]);
        let command = Command::try_from(command).unwrap();
        let mut card = card.lock();
        card.asked.push((command, payload.len()));
        if card.ways.mute_after.is_some_and(|bytes| card.loaded.len() >= bytes) {
            // Until the client has hung up.
            let mut hung_up = [PollFd::new(stream, PollFlags::empty())];
            poll(&mut hung_up, Some(&Timespec { tv_sec: 60, tv_nsec: 0 })).unwrap();
            return;
        }
        let (flags, errno, answer) = match card.execute(command, &payload) {
            Ok(answer) => (REPLY, 0, answer),
            Err((errno, answer)) => (REPLY | ERROR, errno, answer),
        };
        if field(&header, 8) & (1 << 4) != 0 {
            continue;
        }
        let mut out = header[..4].to_vec();
        out.extend(words(&[(HEADER + answer.len()) as u32, flags, errno]));
        out.extend(answer);
        stream.write_all(&out).unwrap();
    }
}

type Answer = Result<Vec<u8>, (u32, Vec<u8>)>;

fn refused(errno: Errno) -> Answer {
    Err((errno.raw_os_error().cast_unsigned(), Vec::new()))
}

impl Card {
    fn execute(&mut self, command: Command, payload: &[u8]) -> Answer {
        match command {
            Command::Version => {
                let text = br#"{"capabilities":{"max_msg_fds":8,"max_data_xfer_size":1048576}}"#;
                Ok([&payload[..4], text, &[0]].concat())
            }
            Command::DmaMap | Command::DmaUnmap => Ok(Vec::new()),
            Command::RegionRead | Command::RegionWrite => self.access(command, payload),
            Command::DeviceReset => self.reset(),
            Command::DeviceFeature => self.feature(payload),
            Command::MigDataRead => {
                let size = field(payload, 4) as usize;
                let left = &self.contents[self.read..];
                let given = left.len().min(size);
                // As long as was asked for, whatever there is.
                let mut answer = words(&[8 + given as u32, given as u32]);
                answer.extend(&left[..given]);
                answer.resize(8 + size, 0xee);
                self.read += given;
                Ok(answer)
            }
            Command::MigDataWrite => {
                self.loaded.extend(&payload[8..]);
                Ok(Vec::new())
            }
            Command::DeviceGetInfo => Ok(words(&[16, 3, 9, 5])),
            _ => refused(Errno::EINVAL),
        }
    }

    fn access(&self, command: Command, payload: &[u8]) -> Answer {
        match self.ways.region {
            Access::NoErrno => Err((0, Vec::new())),
            Access::WithPayload => Err((Errno::EBUSY.raw_os_error().cast_unsigned(), vec![0xaa; 40])),
            Access::Empty if command == Command::RegionWrite => Ok(Vec::new()),
            Access::Done | Access::Empty => {
                let mut answer = payload[..16].to_vec();
                if command == Command::RegionRead {
                    answer.resize(16 + field(payload, 12) as usize, 7);
                }
                Ok(answer)
            }
        }
    }

    fn reset(&mut self) -> Answer {
        if matches!(self.state, State::Stop | State::StopCopy) {
            return refused(Errno::EINVAL);
        }
        self.loaded.clear();
        if !self.ways.keeps_state {
            self.state = State::Running;
        }
        Ok(Vec::new())
    }

    fn feature(&mut self, payload: &[u8]) -> Answer {
        const GET: u32 = 1 << 16;
        const SET: u32 = 1 << 17;
        let flags = field(payload, 4);
        match (flags & 0xffff, flags & (GET | SET)) {
            (1, _) if self.ways.no_migration => refused(Errno::EINVAL),
            // STOP_COPY and PRE_COPY.
            (1, GET) => Ok([words(&[16, flags]), 5_u64.to_ne_bytes().to_vec()].concat()),
            (2, GET) => Ok(words(&[16, flags, self.state.number(), u32::MAX])),
            (2, SET) => {
                self.state = State::from_number(field(payload, 8)).unwrap();
                self.read = 0;
                self.has_run_loaded |= self.state == State::Running && !self.loaded.is_empty();
                Ok(payload.to_vec())
            }
            _ => refused(Errno::EINVAL),
        }
    }
}
