//! The outcome of a case as its own code sees it, and the checks that produce it.

use std::fmt::{Debug, Display};

use whimbrel_protocol::Errno;

/// The result of a case, or of a step of one.
pub(crate) type Outcome<T = ()> = Result<T, Stop>;

/// The reason a case ends early.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// The device contradicts the sentence.
    Failed {
        /// The demand of the sentence.
        expected: String,
        /// The device's answer.
        found: String,
    },
    /// A second source contradicts the device, so that no answer of the device counts: no known failure of the case explains
    /// it.
    Contradicted {
        /// The device's answer.
        expected: String,
        /// The second source's answer.
        found: String,
    },
    /// The device lacks what the case needs, as only its own requests can tell.
    Skipped(String),
    /// Neither a pass nor a failure can be told.
    Inconclusive(String),
}

/// Fails the case.
pub(crate) fn fail<T>(expected: impl Display, found: impl Display) -> Outcome<T> {
    Err(Stop::Failed { expected: expected.to_string(), found: found.to_string() })
}

/// Ends the case as skipped.
pub(crate) fn skip<T>(why: impl Display) -> Outcome<T> {
    Err(Stop::Skipped(why.to_string()))
}

/// Ends the case without a verdict.
pub(crate) fn inconclusive<T>(why: impl Display) -> Outcome<T> {
    Err(Stop::Inconclusive(why.to_string()))
}

/// Fails the case unless `holds`.
pub(crate) fn check(holds: bool, expected: impl Display, found: impl Display) -> Outcome {
    if holds { Ok(()) } else { fail(expected, found) }
}

/// Fails the case unless the two are equal. `what` names the value.
pub(crate) fn equal<T: PartialEq + Debug>(what: impl Display, expected: T, found: T) -> Outcome {
    check(expected == found, format_args!("{what}: {expected:?}"), format_args!("{found:?}"))
}

/// Fails the case unless the request succeeded, and returns its result. `what` names the request.
pub(crate) fn success<T>(what: impl Display, result: Result<T, Errno>) -> Outcome<T> {
    result.or_else(|errno| fail(format_args!("{what} succeeds"), format_args!("{errno:?}")))
}

/// Fails the case unless the request failed with one of these errnos. `what` names the request.
pub(crate) fn refused<T>(what: impl Display, errnos: &[Errno], result: Result<T, Errno>) -> Outcome {
    let names = errnos.iter().map(|errno| format!("{errno:?}")).collect::<Vec<_>>().join(" or ");
    let expected = format!("{what} fails with {names}");
    match result {
        Ok(_) => fail(expected, "it succeeds"),
        Err(errno) if errnos.contains(&errno) => Ok(()),
        Err(errno) => fail(expected, format_args!("{errno:?}")),
    }
}

/// Fails the case unless the request failed, with whatever errno. `what` names the request.
pub(crate) fn fails<T>(what: impl Display, result: Result<T, Errno>) -> Outcome<Errno> {
    match result {
        Ok(_) => fail(format_args!("{what} fails"), "it succeeds"),
        Err(errno) => Ok(errno),
    }
}

/// Fails the case unless the two states are equal, and names the first byte in which they differ.
pub(crate) fn equal_bytes(what: impl Display, expected: &[u8], found: &[u8]) -> Outcome {
    if expected == found {
        return Ok(());
    }
    let same = expected.iter().zip(found).take_while(|(one, other)| one == other).count();
    let shown = |bytes: &[u8]| match bytes.get(same) {
        Some(byte) => format!("{} bytes, byte {same} is {byte:#04x}", bytes.len()),
        None => format!("{} bytes, byte {same} is missing", bytes.len()),
    };
    fail(format_args!("{what}: {}", shown(expected)), shown(found))
}
