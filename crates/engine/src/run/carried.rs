//! The bytes that a connection has taken, by what they carry. It takes them later than they are sent, and a lost one does not take
//! all of them.

use std::collections::VecDeque;

use crate::channel::Sender;
use crate::proto::message::Message;

/// The use of the bytes of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Load {
    Memory,
    /// State and setup of a device.
    Device,
    Other,
}

impl Load {
    pub(super) const fn of(message: &Message<'_>) -> Load {
        match message {
            Message::Memory { .. } | Message::MemoryZero { .. } | Message::CompressedMemory { .. } => {
                Load::Memory
            }
            Message::DeviceState { .. } | Message::CompressedState { .. } | Message::Setup { .. } => {
                Load::Device
            }
            Message::Control(_) | Message::Blob { .. } | Message::Padding { .. } => Load::Other,
        }
    }
}

/// Bytes on the link, by use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Loads {
    pub(super) memory: u64,
    pub(super) device: u64,
}

impl Loads {
    fn add(&mut self, load: Load, bytes: u64) {
        match load {
            Load::Memory => self.memory += bytes,
            Load::Device => self.device += bytes,
            Load::Other => {}
        }
    }
}

/// The bytes that a connection and those before it have taken, and the runs of bytes that it has not taken yet.
#[derive(Debug)]
pub(super) struct Carried {
    taken: Loads,
    /// The size of the stream, and the part of it that the connection has taken.
    size: u64,
    written: u64,
    waiting: VecDeque<(Load, u64)>,
}

impl Carried {
    /// Returns the record of a new connection, whose stream has no data in it.
    pub(super) fn new(sender: &Sender) -> Carried {
        let waiting = VecDeque::from([(Load::Other, sender.unsent() as u64)]);
        Carried { taken: Loads::default(), size: sender.bytes(), written: sender.written(), waiting }
    }

    /// Takes in what the sender has sent since the last call, for `load`, and what the connection has taken.
    pub(super) fn note(&mut self, load: Load, sender: &Sender) {
        let (new, mut taken) = (sender.bytes() - self.size, sender.written() - self.written);
        (self.size, self.written) = (sender.bytes(), sender.written());
        match self.waiting.back_mut() {
            Some((last, bytes)) if *last == load => *bytes += new,
            _ if new > 0 => self.waiting.push_back((load, new)),
            _ => {}
        }
        while let Some((load, bytes)) = self.waiting.front_mut()
            && taken > 0
        {
            let part = taken.min(*bytes);
            self.taken.add(*load, part);
            *bytes -= part;
            taken -= part;
            if *bytes == 0 {
                self.waiting.pop_front();
            }
        }
    }

    /// Continues with a new connection: what the one before has not taken is lost with it.
    pub(super) fn go_on_with(&mut self, sender: &Sender) {
        *self = Carried { taken: self.taken, ..Carried::new(sender) };
    }

    /// Returns the bytes taken so far.
    pub(super) fn taken(&self) -> Loads {
        self.taken
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;

    use super::*;
    use crate::channel::{Stream, Until};
    use crate::proto::control::Control;
    use crate::proto::frame::HEADER_BYTES;

    fn sender() -> (Sender, UnixStream) {
        let (left, right) = UnixStream::pair().unwrap();
        (Sender::new(Arc::new(Stream::from(left))), right)
    }

    /// The bytes of a frame of memory, of state, and of a control message.
    const MEMORY: u64 = (HEADER_BYTES + 8 + 1000) as u64;
    const DEVICE: u64 = (HEADER_BYTES + 8 + 500) as u64;

    fn messages() -> [Message<'static>; 4] {
        [
            Message::Memory { address: 0, data: &[7; 1000] },
            Message::Control(Control::Ping { id: 1 }),
            Message::DeviceState { device: 0, ends: false, data: &[7; 500] },
            Message::Memory { address: 0, data: &[7; 1000] },
        ]
    }

    #[test]
    fn gathered_bytes_count_for_what_they_carry_once_they_are_written() {
        let (mut sender, _peer) = sender();
        let mut carried = Carried::new(&sender);
        for message in messages() {
            sender.send(&message, Until::now()).unwrap();
            carried.note(Load::of(&message), &sender);
            assert_eq!(carried.taken(), Loads::default(), "it is gathered");
        }
        sender.flush(Until::now()).unwrap();
        carried.note(Load::Other, &sender);
        assert_eq!(carried.taken(), Loads { memory: 2 * MEMORY, device: DEVICE });
    }

    #[test]
    fn what_a_lost_connection_has_not_taken_does_not_count_and_what_it_has_taken_stays() {
        let (mut first, mut peer) = sender();
        let mut carried = Carried::new(&first);
        let state = vec![7; 1 << 20];
        let large = Message::DeviceState { device: 0, ends: false, data: &state };
        first.send_now(&messages()[0], Until::now()).unwrap();
        carried.note(Load::Memory, &first);
        // More than the socket's buffer has room for.
        while !first.is_behind() {
            first.send(&large, Until::now()).unwrap();
            carried.note(Load::Device, &first);
        }
        let taken = carried.taken();
        assert_eq!(taken.memory, MEMORY);
        assert!(taken.device > 0 && taken.memory + taken.device < first.written(), "{taken:?}");
        let (mut second, _peer) = sender();
        carried.go_on_with(&second);
        second.send_now(&messages()[2], Until::now()).unwrap();
        carried.note(Load::Device, &second);
        assert_eq!(carried.taken(), Loads { device: taken.device + DEVICE, ..taken });
        drop(first);
        let mut arrived = Vec::new();
        peer.read_to_end(&mut arrived).unwrap();
        assert_eq!(arrived.len() as u64, 16 + taken.memory + taken.device);
    }
}
