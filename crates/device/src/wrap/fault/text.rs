//! The text form of faults: parsing and formatting.

use std::fmt;
use std::str::FromStr;

use bytesize::ByteSize;
use whimbrel_protocol::precopy::PrecopyBytes;
use whimbrel_protocol::{Errno, State};

use super::{DataFault, Fault, FaultKind, Faults};

/// A malformed list of faults.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FaultError {
    /// A line has an unknown form.
    #[error(
        "invalid fault '{0}': expected for example 'arc RUNNING_P2P->STOP: EIO' or 'read after 1MiB: short'"
    )]
    Form(String),
    /// A name is not a state's.
    #[error("invalid state '{0}': expected a name from the header such as STOP_COPY, or *")]
    State(String),
    /// A name is not an errno's.
    #[error("invalid errno '{0}': expected a name such as EIO")]
    Errno(String),
    /// A text is not a number of bytes.
    #[error("invalid size '{0}': expected bytes, or a number with a unit such as 64KiB")]
    Size(String),
    /// A text is not a time.
    #[error("invalid time '{0}': expected a number with a unit such as 200ms")]
    Time(String),
}

impl FromStr for Faults {
    type Err = FaultError;

    fn from_str(text: &str) -> Result<Faults, FaultError> {
        let lines = text.split(['\n', ';']).map(str::trim).filter(|line| !line.is_empty());
        lines.map(str::parse).collect::<Result<_, _>>().map(Faults)
    }
}

impl FromStr for Fault {
    type Err = FaultError;

    fn from_str(line: &str) -> Result<Fault, FaultError> {
        let form = || FaultError::Form(line.to_owned());
        let mut words: Vec<&str> = line.split_whitespace().collect();
        let times = match words[..] {
            [.., "once"] => Some((1, 1)),
            [.., count, "times"] => Some((count.parse().map_err(|_| form())?, 2)),
            _ => None,
        };
        words.truncate(words.len() - times.map_or(0, |(_, words)| words));
        let kind = match words[..] {
            ["arc", path, name] => arc(path, name, false).ok_or_else(form)?,
            ["arc", path, name, "broken"] => arc(path, name, true).ok_or_else(form)?,
            ["read", "after", bytes, how] => Ok(FaultKind::Read {
                after: size(bytes.strip_suffix(':').ok_or_else(form)?)?,
                state: None,
                how: data_fault(how)?,
            }),
            ["read", "after", bytes, "in", name, how] => Ok(FaultKind::Read {
                after: size(bytes)?,
                state: state(name.strip_suffix(':').ok_or_else(form)?)?,
                how: data_fault(how)?,
            }),
            ["write", "after", bytes, how] if how != "end" => Ok(FaultKind::Write {
                after: size(bytes.strip_suffix(':').ok_or_else(form)?)?,
                how: data_fault(how)?,
            }),
            ["delay", name, time] => {
                let time = humantime::parse_duration(time).map_err(|_| FaultError::Time(time.to_owned()))?;
                Ok(FaultKind::Delay { to: state(name)?, time })
            }
            ["size:", text] => Ok(FaultKind::Size(match errno(text) {
                Ok(errno) => Err(errno),
                Err(_) => Ok(size(text)?),
            })),
            ["precopy:", "initial", initial, "dirty", dirty] => {
                Ok(FaultKind::Precopy(Ok(PrecopyBytes { initial: size(initial)?, dirty: size(dirty)? })))
            }
            ["precopy:", name] => Ok(FaultKind::Precopy(Err(errno(name)?))),
            ["reinit", "after", bytes] => Ok(FaultKind::Reinit { after: Some(size(bytes)?) }),
            ["reinit", "at", "end"] => Ok(FaultKind::Reinit { after: None }),
            ["temporary", "end:", "0"] => Ok(FaultKind::ZeroAtTemporaryEnd),
            ["log", "start:", name] => Ok(FaultKind::LogStart(errno(name)?)),
            ["log", "report:", name] => Ok(FaultKind::LogReport(errno(name)?)),
            ["log", "stop:", name] => Ok(FaultKind::LogStop(errno(name)?)),
            ["reset:", name] => Ok(FaultKind::Reset(errno(name)?)),
            _ => return Err(form()),
        }?;
        Ok(Fault { kind, times: times.map(|(count, _)| count) })
    }
}

/// Parses an arc; `None` for another form.
fn arc(path: &str, name: &str, broken: bool) -> Option<Result<FaultKind, FaultError>> {
    let (from, to) = path.strip_suffix(':')?.split_once("->")?;
    let parts = || {
        let errno = if name == "0" { None } else { Some(errno(name)?) };
        Ok(FaultKind::Arc { from: state(from)?, to: state(to)?, errno, broken })
    };
    Some(parts())
}

fn state(name: &str) -> Result<Option<State>, FaultError> {
    if name == "*" {
        return Ok(None);
    }
    State::from_name(name).map(Some).ok_or_else(|| FaultError::State(name.to_owned()))
}

fn errno(name: &str) -> Result<Errno, FaultError> {
    name.parse().map_err(|_| FaultError::Errno(name.to_owned()))
}

fn data_fault(text: &str) -> Result<DataFault, FaultError> {
    match text {
        "short" => Ok(DataFault::Short),
        "end" => Ok(DataFault::End),
        name => Ok(DataFault::Fails(errno(name)?)),
    }
}

fn size(text: &str) -> Result<u64, FaultError> {
    text.parse::<ByteSize>().map(|size| size.as_u64()).map_err(|_| FaultError::Size(text.to_owned()))
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("; ")?;
            }
            fault.fmt(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |state: &Option<State>| state.map_or("*", State::name);
        match &self.kind {
            FaultKind::Arc { from, to, errno, broken } => {
                write!(f, "arc {}->{}: ", name(from), name(to))?;
                match errno {
                    Some(errno) => write!(f, "{errno:?}")?,
                    None => f.write_str("0")?,
                }
                f.write_str(if *broken { " broken" } else { "" })?;
            }
            FaultKind::Read { after, state: None, how } => write!(f, "read after {after}: {how}")?,
            FaultKind::Read { after, state: Some(state), how } => {
                write!(f, "read after {after} in {state}: {how}")?;
            }
            FaultKind::Write { after, how } => write!(f, "write after {after}: {how}")?,
            FaultKind::Delay { to, time } => {
                let time = humantime::format_duration(*time).to_string().replace(' ', "");
                write!(f, "delay {} {time}", name(to))?;
            }
            FaultKind::Size(Ok(size)) => write!(f, "size: {size}")?,
            FaultKind::Size(Err(errno)) => write!(f, "size: {errno:?}")?,
            FaultKind::Precopy(Ok(bytes)) => {
                write!(f, "precopy: initial {} dirty {}", bytes.initial, bytes.dirty)?;
            }
            FaultKind::Precopy(Err(errno)) => write!(f, "precopy: {errno:?}")?,
            FaultKind::Reinit { after: Some(after) } => write!(f, "reinit after {after}")?,
            FaultKind::Reinit { after: None } => f.write_str("reinit at end")?,
            FaultKind::ZeroAtTemporaryEnd => f.write_str("temporary end: 0")?,
            FaultKind::LogStart(errno) => write!(f, "log start: {errno:?}")?,
            FaultKind::LogReport(errno) => write!(f, "log report: {errno:?}")?,
            FaultKind::LogStop(errno) => write!(f, "log stop: {errno:?}")?,
            FaultKind::Reset(errno) => write!(f, "reset: {errno:?}")?,
        }
        match self.times {
            None => Ok(()),
            Some(1) => f.write_str(" once"),
            Some(times) => write!(f, " {times} times"),
        }
    }
}

impl fmt::Display for DataFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DataFault::Fails(errno) => write!(f, "{errno:?}"),
            DataFault::Short => f.write_str("short"),
            DataFault::End => f.write_str("end"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_the_table_is_parsed_and_shown_so_that_it_can_be_parsed_again() {
        let lines = [
            ("arc RUNNING_P2P->STOP: EIO", "arc RUNNING_P2P->STOP: EIO"),
            ("arc *->RESUMING: ENOMEM broken once", "arc *->RESUMING: ENOMEM broken once"),
            ("arc PRE_COPY->STOP_COPY: 0", "arc PRE_COPY->STOP_COPY: 0"),
            ("arc *->STOP: 0 broken once", "arc *->STOP: 0 broken once"),
            ("read after 1MiB: EIO", "read after 1048576: EIO"),
            ("read after 0: short 3 times", "read after 0: short 3 times"),
            ("read after 1KiB: end", "read after 1024: end"),
            ("write after 4KiB: ENOSPC", "write after 4096: ENOSPC"),
            ("write after 1: short", "write after 1: short"),
            ("delay STOP_COPY 200ms", "delay STOP_COPY 200ms"),
            ("delay * 1s500ms", "delay * 1s500ms"),
            ("size: 100GiB", "size: 107374182400"),
            ("size: EIO once", "size: EIO once"),
            ("read after 4KiB in STOP_COPY: ENOMSG", "read after 4096 in STOP_COPY: ENOMSG"),
            ("precopy: initial 5 dirty 0", "precopy: initial 5 dirty 0"),
            ("precopy: EIO", "precopy: EIO"),
            ("reinit after 1KiB once", "reinit after 1024 once"),
            ("reinit at end", "reinit at end"),
            ("temporary end: 0", "temporary end: 0"),
            ("log start: ENOMEM", "log start: ENOMEM"),
            ("log report: EIO", "log report: EIO"),
            ("log stop: EIO once", "log stop: EIO once"),
            ("reset: EIO 2 times", "reset: EIO 2 times"),
        ];
        for (line, shown) in lines {
            let fault: Fault = line.parse().unwrap();
            assert_eq!(fault.to_string(), shown);
            assert_eq!(shown.parse(), Ok(fault), "{line}");
        }
        let text = lines.map(|(line, _)| line).join(" ;\n ");
        let all: Faults = text.parse().unwrap();
        assert_eq!(all.iter().count(), lines.len());
        assert_eq!(all.to_string().parse(), Ok(all));
        assert_eq!("".parse(), Ok(Faults::default()));
    }

    #[test]
    fn what_is_no_fault_is_refused_and_named() {
        let own = str::to_owned;
        let cases = [
            ("arc RUNNING: EIO", FaultError::Form(own("arc RUNNING: EIO"))),
            ("arc RUNNING->STOP EIO", FaultError::Form(own("arc RUNNING->STOP EIO"))),
            ("arc RUNNING->HALT: EIO", FaultError::State(own("HALT"))),
            ("arc RUNNING->STOP: EWHAT", FaultError::Errno(own("EWHAT"))),
            ("arc RUNNING->STOP: UnknownErrno", FaultError::Errno(own("UnknownErrno"))),
            ("read after much: EIO", FaultError::Size(own("much"))),
            ("read after 1: long", FaultError::Errno(own("long"))),
            ("write after 1: end", FaultError::Form(own("write after 1: end"))),
            ("delay STOP soon", FaultError::Time(own("soon"))),
            ("reset: EIO some times", FaultError::Form(own("reset: EIO some times"))),
            ("explode", FaultError::Form(own("explode"))),
        ];
        for (line, error) in cases {
            assert_eq!(line.parse::<Fault>(), Err(error), "{line}");
        }
    }
}
