//! A program around a device, which notes what it is asked and refuses what a test says.

use std::sync::Arc;

use parking_lot::Mutex;
use whimbrel_engine::{Guest, GuestError};

/// What a program was asked, in order. A clone is the same list.
#[derive(Clone, Default)]
pub(crate) struct Calls(Arc<Mutex<Vec<&'static str>>>);

impl Calls {
    pub(crate) fn list(&self) -> Vec<&'static str> {
        self.0.lock().clone()
    }

    /// Whether it stands still now.
    pub(crate) fn is_paused(&self) -> bool {
        let list = self.0.lock();
        list.iter().rev().find(|call| ["pause", "resume"].contains(call)) == Some(&"pause")
    }
}

/// The program. `refuses` names the request that it refuses.
#[derive(Clone, Default)]
pub(crate) struct Program {
    pub(crate) calls: Calls,
    pub(crate) refuses: &'static str,
}

impl Program {
    pub(crate) fn refusing(what: &'static str) -> Program {
        Program { calls: Calls::default(), refuses: what }
    }

    fn note(&self, what: &'static str) -> Result<(), GuestError> {
        self.calls.0.lock().push(what);
        if self.refuses == what { Err(format!("it does not {what}").into()) } else { Ok(()) }
    }
}

impl Guest for Program {
    fn pause(&mut self) -> Result<(), GuestError> {
        self.note("pause")
    }

    fn resume(&mut self) -> Result<(), GuestError> {
        self.note("resume")
    }

    fn inspect(&mut self) -> Result<(), GuestError> {
        self.note("inspect")
    }

    fn run(&mut self) -> Result<(), GuestError> {
        self.note("run")
    }
}
