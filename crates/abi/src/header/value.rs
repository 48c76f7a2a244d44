//! The value of a constant, as it is shown and compared; how it is found out is for [`expressions`](super::expressions).

use std::fmt;

/// What a constant is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    /// The number that `(long long)` makes of it.
    Number(i64),
    /// A string without its quotes.
    Text(String),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Number(number) => fmt::Display::fmt(number, f),
            Value::Text(text) => write!(f, "\"{text}\""),
        }
    }
}
