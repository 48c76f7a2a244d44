//! A record as one line for people.

use std::fmt;
use std::time::Duration;

use super::record::{Action, Dirty, Map, Outcome, Place, Record, Request, Transfer};

/// The most bytes of an argument, an answer or a transfer that are shown as such.
pub const MAX_HEX: usize = 256;

impl fmt::Display for Record {
    /// Writes one line: time, thread, descriptor, file, call, result and duration.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = self.at.as_secs_f64();
        write!(f, "{at:>11.6} {} fd {} {}: ", self.thread, self.on.fd, self.on.name)?;
        match &self.action {
            Action::Request(request) => request.fmt(f)?,
            Action::Transfer(transfer) => transfer.fmt(f)?,
            Action::Map(map) => map.fmt(f)?,
            Action::Open { call }
            | Action::Close { call }
            | Action::Other { call }
            | Action::Duplicate { call, to: None } => write!(f, "{call}()")?,
            Action::Duplicate { call, to: Some(to) } => write!(f, "{call}(to {to})")?,
            Action::Passed { bytes } => {
                return write!(f, "{bytes} bytes of state passed in calls that the trace did not see");
            }
        }
        write!(f, " = {}", self.outcome)?;
        if let (Action::Request(request), true) = (&self.action, self.has_answer()) {
            write_answer(request, f)?;
        }
        write!(f, " <{}>", Microseconds(self.took))?;
        match &self.action {
            Action::Request(request) if request.hex && !request.call().has_secret() => {
                write_hex("argument", &request.argument, f)?;
                if request.answer != request.argument {
                    write_hex("answer", &request.answer, f)?;
                }
                Ok(())
            }
            Action::Transfer(transfer) => write_hex("data", &transfer.data, f),
            _ => Ok(()),
        }
    }
}

impl Record {
    /// Returns whether the answer says something: after a success, and after a failure that changed the argument.
    pub(super) fn has_answer(&self) -> bool {
        match (&self.action, self.outcome) {
            (Action::Request(_), Outcome::Returned(_)) => true,
            (Action::Request(request), Outcome::Failed(_)) => request.answer != request.argument,
            _ => false,
        }
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let call = self.call();
        match call.request() {
            Some(_) => call.question().fmt(f),
            None => write!(f, "{}({:#x})", self.name(), self.value),
        }
    }
}

fn write_answer(request: &Request, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let answer = request.answered().answer().to_string();
    let dirty = request.dirty.map(|dirty| dirty.to_string());
    let parts: Vec<String> =
        [Some(answer), dirty].into_iter().flatten().filter(|part| !part.is_empty()).collect();
    if parts.is_empty() { Ok(()) } else { write!(f, " ({})", parts.join(", ")) }
}

impl fmt::Display for Dirty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Dirty { dirty, counted, pages } = *self;
        if counted == pages {
            write!(f, "{dirty} of {pages} pages dirty")
        } else if counted == 0 {
            write!(f, "bitmap of {pages} pages cannot be read")
        } else {
            write!(f, "{dirty} of the first {counted} pages dirty, of {pages}")
        }
    }
}

impl fmt::Display for Transfer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({} bytes", self.call, self.asked)?;
        match (self.place, self.offset) {
            (Some(place), _) => write!(f, " at {place})"),
            (None, Some(offset)) => write!(f, " at {offset:#x})"),
            (None, None) => f.write_str(")"),
        }
    }
}

impl fmt::Display for Map {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place {
            Some(place) => write!(f, "mmap({} bytes at {place})", self.length),
            None => write!(f, "mmap({} bytes at {:#x})", self.length, self.offset),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "region {}+{:#x}", self.region, self.offset)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // An address, from mmap.
            Outcome::Returned(value) if *value > 1 << 32 => write!(f, "{value:#x}"),
            Outcome::Returned(value) => write!(f, "{value}"),
            Outcome::Failed(errno) => write!(f, "-1 {errno}"),
            Outcome::Interrupted => f.write_str("? interrupted by a signal"),
            Outcome::Unfinished => f.write_str("? the thread ended in the call"),
            Outcome::Unseen => f.write_str("? answered by the kernel"),
        }
    }
}

/// A duration as `12 us`.
pub(super) struct Microseconds(pub(super) Duration);

impl fmt::Display for Microseconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} us", self.0.as_micros())
    }
}

/// Writes bytes below the line, sixteen in each.
fn write_hex(what: &str, bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let shown = &bytes[..bytes.len().min(MAX_HEX)];
    for (index, line) in shown.chunks(16).enumerate() {
        write!(f, "\n{:13}{what:<8} {:04x} ", "", index * 16)?;
        for byte in line {
            write!(f, " {byte:02x}")?;
        }
    }
    if shown.len() < bytes.len() {
        write!(f, "\n{:13}{what:<8} .. {} more bytes", "", bytes.len() - shown.len())?;
    }
    Ok(())
}

/// Bytes as hexadecimal digits, at most [`MAX_HEX`] of them.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().take(MAX_HEX).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use whimbrel_uapi::Errno;
    use whimbrel_uapi::decode::File;

    use super::super::record::On;
    use super::*;

    fn shown(on: On, action: Action, outcome: Outcome) -> String {
        let mut record = Record::new(Duration::from_micros(1_234_567), on, action, outcome);
        (record.thread, record.took) = (42, Duration::from_micros(9));
        record.to_string()
    }

    fn device() -> On {
        On::new(7, "device", "device x of group 3")
    }

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    fn request(number: u32, argument: &[u32], answer: &[u32]) -> Request {
        let mut request = Request::new(File::Device, number, 0x7000, words(argument));
        request.answer = words(answer);
        request
    }

    #[test]
    fn a_line_has_time_thread_file_call_result_and_duration() {
        let region = request(0x3b6c, &[32, 0, 7, 0, 0, 0, 0, 0], &[32, 3, 7, 0, 4096, 0, 0, 1792]);
        assert_eq!(
            shown(device(), Action::Request(region), Outcome::Returned(0)),
            "   1.234567 42 fd 7 device x of group 3: VFIO_DEVICE_GET_REGION_INFO(argsz 32, index 7) = 0 (argsz 32, \
             flags READ|WRITE, cap_offset 0, size 0x1000, offset 0x70000000000) <9 us>"
        );
    }

    #[test]
    fn calls_and_results_are_shown_in_words() {
        let mut access = Transfer::new("pread64", 4);
        access.offset = Some(7 << 40);
        let mut named = access.clone();
        named.place = Some(Place::new(7, 0x10));
        let mut map = Map::new(4096, 2 << 40);
        map.place = Some(Place::new(2, 0));
        let mut unseen = Map::new(8192, 0);
        unseen.place = Some(Place::new(0, 0));
        let set_state = |answer: &[u32]| Action::Request(request(0x3b75, &[16, 0x2_0002, 3, 0], answer));
        let mut report = request(0x3b75, &[8, 0x1_0008], &[8, 0x1_0008]);
        report.dirty = Some(Dirty::new(3, 64, 64));
        let cases = [
            (Action::Transfer(Transfer::new("read", 100)), Outcome::Returned(96), "read(100 bytes) = 96"),
            (Action::Transfer(access), Outcome::Returned(4), "pread64(4 bytes at 0x70000000000) = 4"),
            (Action::Transfer(named), Outcome::Returned(4), "pread64(4 bytes at region 7+0x10) = 4"),
            (
                Action::Map(map),
                Outcome::Returned(0x7f00_0000_0000),
                "mmap(4096 bytes at region 2+0x0) = 0x7f0000000000",
            ),
            (
                Action::Map(unseen),
                Outcome::Unseen,
                "mmap(8192 bytes at region 0+0x0) = ? answered by the kernel",
            ),
            (Action::Open { call: "openat" }, Outcome::Returned(5), "openat() = 5"),
            (
                Action::Duplicate { call: "dup3", to: Some(9) },
                Outcome::Failed(Errno::EBADF),
                "dup3(to 9) = -1 EBADF: Bad file descriptor",
            ),
            (Action::Close { call: "close" }, Outcome::Interrupted, "close() = ? interrupted by a signal"),
            (
                Action::Request(request(0x3b6f, &[], &[])),
                Outcome::Unfinished,
                "VFIO_DEVICE_RESET() = ? the thread ended in the call",
            ),
            (
                Action::Request(request(0x3bfe, &[], &[])),
                Outcome::Failed(Errno::ENOTTY),
                "ioctl 0x3bfe(0x7000) = -1 ENOTTY: Inappropriate ioctl for device",
            ),
            (
                set_state(&[16, 0x2_0002, 3, 0]),
                Outcome::Failed(Errno::EINVAL),
                "VFIO_DEVICE_FEATURE(SET MIG_DEVICE_STATE, argsz 16, device_state 3 STOP_COPY) = -1 EINVAL: Invalid \
                 argument",
            ),
            // The kernel writes it back although it refuses.
            (
                set_state(&[16, 0x2_0002, 3, u32::MAX]),
                Outcome::Failed(Errno::EINVAL),
                "VFIO_DEVICE_FEATURE(SET MIG_DEVICE_STATE, argsz 16, device_state 3 STOP_COPY) = -1 EINVAL: Invalid \
                 argument (device_state 3 STOP_COPY, data_fd -1)",
            ),
            (
                Action::Request(report),
                Outcome::Returned(0),
                "VFIO_DEVICE_FEATURE(GET DMA_LOGGING_REPORT, argsz 8) = 0 (3 of 64 pages dirty)",
            ),
        ];
        for (action, outcome, expected) in cases {
            let line = shown(device(), action, outcome);
            assert_eq!(line, format!("   1.234567 42 fd 7 device x of group 3: {expected} <9 us>"));
        }
    }

    #[test]
    fn state_that_passed_unseen_is_shown_without_a_result() {
        let on = On::new(9, "data", "data of device x of group 3, saving");
        assert_eq!(
            shown(on, Action::Passed { bytes: 4096 }, Outcome::Returned(0)),
            "   1.234567 42 fd 9 data of device x of group 3, saving: 4096 bytes of state passed in calls that the trace \
             did not see"
        );
    }

    #[test]
    fn a_bitmap_that_was_not_read_whole_is_not_shown_as_if_it_was() {
        assert_eq!(Dirty::new(0, 0, 8).to_string(), "bitmap of 8 pages cannot be read");
        assert_eq!(Dirty::new(2, 4, 8).to_string(), "2 of the first 4 pages dirty, of 8");
    }

    #[test]
    fn bytes_follow_in_lines_of_sixteen_up_to_the_limit() {
        let mut write = Transfer::new("write", 300);
        write.data = vec![0xab; MAX_HEX + 44];
        let text = shown(device(), Action::Transfer(write), Outcome::Returned(300));
        let lines: Vec<&str> = text.lines().skip(1).collect();
        assert_eq!(lines.len(), 17);
        assert_eq!(lines[1], format!("             data     0010 {}", " ab".repeat(16)));
        assert_eq!(lines[16], "             data     .. 44 more bytes");
    }
}
