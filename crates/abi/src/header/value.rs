//! The value of a constant, as shown and compared; [`expressions`](super::expressions) evaluates it.

use std::fmt;

/// The value of a constant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    /// A number, converted to `long long`.
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
