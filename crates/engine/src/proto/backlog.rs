//! Device state that was sent and may not have arrived: kept until the destination confirms it, because a device gives each
//! byte once.

use std::collections::VecDeque;

use super::intake::Misplaced;

/// The bytes of state that are kept at most, beside the pieces that are just being read.
pub const WINDOW: u64 = 32 << 20;

/// A piece of state: one frame of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece<T> {
    /// Its size in bytes.
    pub length: u64,
    /// Set if it ends a transaction.
    pub ends: bool,
    /// The bytes, in the form of the owner's choice.
    pub data: T,
}

/// The pieces of each device that are not confirmed.
#[derive(Debug)]
pub struct Backlog<T> {
    devices: Vec<Device<T>>,
    window: u64,
    kept: u64,
}

#[derive(Debug)]
struct Device<T> {
    pieces: VecDeque<Piece<T>>,
    /// The bytes of its state before the first piece, and with the last one.
    from: u64,
    to: u64,
}

impl<T: Clone> Backlog<T> {
    /// Returns the backlog of so many devices, which keeps at most `window` bytes.
    pub fn new(devices: usize, window: u64) -> Backlog<T> {
        let none = |_| Device { pieces: VecDeque::new(), from: 0, to: 0 };
        Backlog { devices: (0..devices).map(none).collect(), window, kept: 0 }
    }

    /// Returns whether a further piece can be kept.
    pub fn has_room(&self) -> bool {
        self.kept < self.window
    }

    /// Keeps a piece that is about to be sent.
    pub fn push(&mut self, device: usize, piece: Piece<T>) {
        if let Some(device) = self.devices.get_mut(device) {
            self.kept += piece.length;
            device.to += piece.length;
            device.pieces.push_back(piece);
        }
    }

    /// Takes in that the first `bytes` bytes of a device's state have arrived: the end of a piece that was sent.
    pub fn taken(&mut self, device: u32, bytes: u64) -> Result<(), Misplaced> {
        let refuse = |why: String| Err(Misplaced(format!("{bytes} bytes of state of device {device} {why}")));
        let Some(of) = self.devices.get_mut(device as usize) else {
            return refuse("have arrived, which the table does not list".into());
        };
        if bytes < of.from || bytes > of.to {
            return refuse(format!("have arrived, but {} to {} may have", of.from, of.to));
        }
        while of.from < bytes
            && let Some(piece) = of.pieces.pop_front()
        {
            of.from += piece.length;
            self.kept -= piece.length;
        }
        if of.from == bytes { Ok(()) } else { refuse("are not the end of a frame".into()) }
    }

    /// Takes in that everything has arrived.
    pub fn all_taken(&mut self) {
        for device in &mut self.devices {
            device.pieces.clear();
            device.from = device.to;
        }
        self.kept = 0;
    }

    /// Returns the pieces of a device that have not arrived, in order.
    pub fn left(&self, device: usize) -> Vec<Piece<T>> {
        self.devices.get(device).map(|device| device.pieces.iter().cloned().collect()).unwrap_or_default()
    }

    /// Returns the bytes of a device's state so far.
    pub fn total(&self, device: usize) -> u64 {
        self.devices.get(device).map_or(0, |device| device.to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(length: u64) -> Piece<u8> {
        Piece { length, ends: length == 3, data: length as u8 }
    }

    fn backlog() -> Backlog<u8> {
        let mut backlog = Backlog::new(2, 10);
        for length in [5, 3, 2] {
            assert!(backlog.has_room());
            backlog.push(0, piece(length));
        }
        assert!(!backlog.has_room());
        backlog
    }

    #[test]
    fn what_has_arrived_makes_room_and_the_rest_stays_in_order() {
        let mut backlog = backlog();
        backlog.taken(0, 0).unwrap();
        assert_eq!(backlog.left(0), [piece(5), piece(3), piece(2)]);
        backlog.taken(0, 5).unwrap();
        assert!(backlog.has_room());
        assert_eq!((backlog.left(0), backlog.total(0)), (vec![piece(3), piece(2)], 10));
        backlog.taken(0, 10).unwrap();
        assert_eq!(backlog.left(0), []);
        backlog.push(0, piece(4));
        backlog.push(1, piece(4));
        backlog.all_taken();
        assert_eq!((backlog.left(0), backlog.total(0), backlog.total(1)), (vec![], 14, 4));
        assert!(backlog.taken(0, 14).is_ok() && backlog.has_room());
    }

    #[test]
    fn what_cannot_have_arrived_is_refused() {
        for (bytes, why) in [(11, "0 to 10 may have"), (6, "not the end of a frame")] {
            let error = backlog().taken(0, bytes).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        let mut some = backlog();
        some.taken(0, 5).unwrap();
        assert!(some.taken(0, 0).unwrap_err().to_string().contains("5 to 10 may have"), "it goes back");
        assert!(some.taken(2, 0).unwrap_err().to_string().contains("does not list"));
        assert!(some.taken(1, 1).is_err());
    }
}
