//! Requests and answers as bytes: a line each, and counted bytes behind some of them.

use std::fmt;

use whimbrel_protocol::Errno;

/// The version of the protocol.
pub(super) const VERSION: u32 = 1;

/// Maximum size of an answer's line in bytes, without its end.
pub(super) const MAX_LINE: usize = 256;

/// Maximum size of what the author's probe shows of a device, in bytes.
const MAX_LOOK: usize = 16 << 20;

/// A request to the program.
#[derive(Clone, Copy, Debug)]
pub(super) enum Request<'a> {
    Hello,
    Info,
    Region { index: u32 },
    Irq { index: u32 },
    ReadRegion { index: u32, offset: u64, count: usize },
    WriteRegion { index: u32, offset: u64, data: &'a [u8] },
    Reset,
    Probe { feature: u16, flags: u32 },
    Flags,
    State,
    SetState { state: u32 },
    DataSize,
    PrecopyV2,
    Read { fd: i32, count: usize },
    Write { fd: i32, data: &'a [u8] },
    PrecopyInfo { fd: i32, argsz: u32, flags: u32 },
    Close { fd: i32 },
    LogStart { page_size: u64, ranges: &'a [(u64, u64)] },
    LogStop,
    LogReport { iova: u64, length: u64, page_size: u64, count: usize },
    Feature { argsz: u32, flags: u32, data: &'a [u8] },
    Change { seed: u64 },
    Look,
    Map { iova: u64, length: u64, offset: u64, path: &'a str },
    DmaWrite { pages: &'a [u64] },
}

impl Request<'_> {
    /// Returns the bytes that follow the line.
    pub(super) fn payload(&self) -> &[u8] {
        match self {
            Request::WriteRegion { data, .. }
            | Request::Write { data, .. }
            | Request::Feature { data, .. } => data,
            _ => &[],
        }
    }

    /// Returns the form of a successful answer.
    pub(super) fn form(&self) -> Form {
        let numbers = |text| Form { text, max_bytes: None };
        let bytes = |text, count| Form { text, max_bytes: Some(count) };
        match *self {
            Request::Hello => numbers("ok VERSION"),
            Request::Info => numbers("ok FLAGS REGIONS IRQS"),
            Request::Region { .. } => numbers("ok SIZE FLAGS"),
            Request::Irq { .. } => numbers("ok COUNT FLAGS"),
            Request::ReadRegion { count, .. }
            | Request::Read { count, .. }
            | Request::LogReport { count, .. } => bytes("ok COUNT", count),
            Request::Feature { data, .. } => bytes("ok COUNT", data.len()),
            Request::Look => bytes("ok COUNT", MAX_LOOK),
            Request::Map { .. } => numbers("ok PAGES"),
            Request::Flags => numbers("ok FLAGS"),
            Request::State => numbers("ok STATE"),
            Request::SetState { .. } => numbers("ok FD"),
            Request::DataSize => numbers("ok BYTES"),
            Request::Write { .. } => numbers("ok COUNT"),
            Request::PrecopyInfo { .. } => numbers("ok FLAGS INITIAL DIRTY"),
            Request::LogStart { .. } => numbers("ok PAGE_SIZE"),
            Request::WriteRegion { .. }
            | Request::Reset
            | Request::Probe { .. }
            | Request::PrecopyV2
            | Request::Close { .. }
            | Request::LogStop
            | Request::Change { .. }
            | Request::DmaWrite { .. } => numbers("ok"),
        }
    }
}

/// The line, without its end.
impl fmt::Display for Request<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Request::Hello => write!(f, "hello {VERSION}"),
            Request::Info => f.write_str("info"),
            Request::Region { index } => write!(f, "region {index}"),
            Request::Irq { index } => write!(f, "irq {index}"),
            Request::ReadRegion { index, offset, count } => write!(f, "region-read {index} {offset} {count}"),
            Request::WriteRegion { index, offset, data } => {
                write!(f, "region-write {index} {offset} {}", data.len())
            }
            Request::Reset => f.write_str("reset"),
            Request::Probe { feature, flags } => write!(f, "probe {feature} {flags}"),
            Request::Flags => f.write_str("flags"),
            Request::State => f.write_str("state"),
            Request::SetState { state } => write!(f, "set-state {state}"),
            Request::DataSize => f.write_str("data-size"),
            Request::PrecopyV2 => f.write_str("precopy-v2"),
            Request::Read { fd, count } => write!(f, "read {fd} {count}"),
            Request::Write { fd, data } => write!(f, "write {fd} {}", data.len()),
            Request::PrecopyInfo { fd, argsz, flags } => write!(f, "precopy-info {fd} {argsz} {flags}"),
            Request::Close { fd } => write!(f, "close {fd}"),
            Request::LogStart { page_size, ranges } => {
                write!(f, "log-start {page_size} {}", ranges.len())?;
                ranges.iter().try_for_each(|(iova, length)| write!(f, " {iova} {length}"))
            }
            Request::LogStop => f.write_str("log-stop"),
            Request::LogReport { iova, length, page_size, .. } => {
                write!(f, "log-report {iova} {length} {page_size}")
            }
            Request::Feature { argsz, flags, data } => write!(f, "feature {argsz} {flags} {}", data.len()),
            Request::Change { seed } => write!(f, "change {seed}"),
            Request::Look => f.write_str("look"),
            Request::Map { iova, length, offset, path } => {
                write!(f, "map {iova} {length} {offset} {path}")
            }
            Request::DmaWrite { pages } => {
                write!(f, "dma-write {}", pages.len())?;
                pages.iter().try_for_each(|page| write!(f, " {page}"))
            }
        }
    }
}

/// The form of a successful answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Form {
    /// The line, with names for its numbers.
    text: &'static str,
    /// Set if bytes follow: their maximum number. The line's first number is their number.
    max_bytes: Option<usize>,
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text)?;
        self.max_bytes.map_or(Ok(()), |count| write!(f, " with COUNT at most {count}"))
    }
}

/// The line of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Success, with the numbers of the line.
    Ok(Vec<i128>),
    /// The driver's error.
    Errno(Errno),
    /// The program does not do this.
    Unimplemented,
}

impl Answer {
    /// Reads a line, without its end. `None` if it is not an answer of this form.
    pub(super) fn parse(line: &[u8], form: &Form) -> Option<Answer> {
        let line = std::str::from_utf8(line).ok()?;
        let mut words = line.split(' ');
        let verb = words.next()?;
        match verb {
            "ok" => {
                let numbers: Vec<i128> = words.map(|word| word.parse().ok()).collect::<Option<_>>()?;
                let is_whole = numbers.len() == form.text.split(' ').count() - 1;
                let fits = form.max_bytes.is_none_or(|max| {
                    let count = numbers.first().and_then(|count| usize::try_from(*count).ok());
                    count.is_some_and(|count| count <= max)
                });
                (is_whole && fits).then_some(Answer::Ok(numbers))
            }
            "error" => {
                let text = words.next().filter(|_| words.next().is_none())?;
                let number = || text.parse::<u32>().ok().and_then(|number| Errno::try_from(number).ok());
                text.parse().ok().or_else(number).map(Answer::Errno)
            }
            "unimplemented" if words.next().is_none() => Some(Answer::Unimplemented),
            _ => None,
        }
    }

    /// Returns the number of bytes that follow the line.
    pub(super) fn payload(&self, form: &Form) -> usize {
        match self {
            Answer::Ok(numbers) if form.max_bytes.is_some() => {
                numbers.first().and_then(|count| usize::try_from(*count).ok()).unwrap_or(0)
            }
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_a_line() {
        let lines = [
            (Request::Hello, "hello 1"),
            (Request::SetState { state: 3 }, "set-state 3"),
            (Request::Write { fd: 4, data: b"abc" }, "write 4 3"),
            (Request::LogStart { page_size: 4096, ranges: &[(0, 8192)] }, "log-start 4096 1 0 8192"),
            (Request::Feature { argsz: 16, flags: 65538, data: &[0; 8] }, "feature 16 65538 8"),
            (
                Request::Map { iova: 4096, length: 8192, offset: 0, path: "/proc/7/fd/3" },
                "map 4096 8192 0 /proc/7/fd/3",
            ),
            (Request::DmaWrite { pages: &[4096, 8192] }, "dma-write 2 4096 8192"),
            (Request::DmaWrite { pages: &[] }, "dma-write 0"),
        ];
        for (request, line) in lines {
            assert_eq!(request.to_string(), line);
        }
        assert_eq!(Request::Write { fd: 4, data: b"abc" }.payload(), b"abc");
        assert_eq!(Request::Reset.payload(), b"");
    }

    #[test]
    fn an_answer_has_the_form_that_its_request_asks_for() {
        let parse = |line: &str, request: Request<'_>| Answer::parse(line.as_bytes(), &request.form());
        assert_eq!(parse("ok 3", Request::State), Some(Answer::Ok(vec![3])));
        assert_eq!(parse("ok -1", Request::SetState { state: 1 }), Some(Answer::Ok(vec![-1])));
        assert_eq!(parse("ok", Request::Reset), Some(Answer::Ok(vec![])));
        assert_eq!(parse("error 22", Request::Reset), Some(Answer::Errno(Errno::EINVAL)));
        assert_eq!(parse("error ENOMSG", Request::State), Some(Answer::Errno(Errno::ENOMSG)));
        assert_eq!(parse("unimplemented", Request::State), Some(Answer::Unimplemented));
        let wrong = [
            "",
            "ok",
            "ok 3 4",
            "ok x",
            "ok  3",
            "ok 3 ",
            "OK 3",
            "error",
            "error 0",
            "error 5 5",
            "error -22",
            "\u{fffd}",
        ];
        for line in wrong {
            assert_eq!(parse(line, Request::State), None, "{line:?}");
        }
        assert_eq!(Answer::parse(b"ok \xff", &Request::State.form()), None);
    }

    #[test]
    fn an_answer_has_no_more_bytes_than_were_asked_for() {
        let form = Request::Read { fd: 0, count: 16 }.form();
        let answer = Answer::parse(b"ok 16", &form).expect("an answer");
        assert_eq!(answer.payload(&form), 16);
        assert_eq!(Answer::parse(b"ok 17", &form), None);
        assert_eq!(Answer::parse(b"ok -1", &form), None);
        assert_eq!(Answer::Errno(Errno::EIO).payload(&form), 0);
        assert_eq!(form.to_string(), "ok COUNT with COUNT at most 16");
    }
}
