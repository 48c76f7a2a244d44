//! Errors that end a demo, and the processes they come from.

use std::fmt;

use super::messages::{Failed, NotSent, Role};
use crate::failure::Failure;

/// The part of a process in the demo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Host(Role),
    /// The server of a host's only device.
    Server(Role),
    /// The server of one of a host's devices, by its number from 1.
    ServerOf(Role, usize),
}

impl Part {
    /// Returns the host whose device the process serves, if it is a server.
    pub(super) fn served(self) -> Option<Role> {
        match self {
            Part::Host(_) => None,
            Part::Server(role) | Part::ServerOf(role, _) => Some(role),
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Part::Host(role) => write!(f, "the {role} process"),
            Part::Server(role) => write!(f, "the server of the {role}'s device"),
            Part::ServerOf(role, number) => write!(f, "the server of the {role}'s device {number}"),
        }
    }
}

/// An error that ends the demo.
#[derive(Debug)]
pub(super) enum DemoError {
    /// A process ended.
    Died(Part),
    /// A host failed.
    Failed(Role, Failed),
    /// The migration failed.
    NotSent(NotSent),
    /// Another failure, which is its own explanation.
    Other(Failure),
}

impl From<Failure> for DemoError {
    fn from(failure: Failure) -> DemoError {
        DemoError::Other(failure)
    }
}
