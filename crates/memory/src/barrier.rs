//! The barrier that orders the data of a write before the check of its mark, at almost no cost for the writer.
//!
//! A writer stores the data and then checks whether the page is marked already. A report removes the mark and then
//! reads the data. Without a full fence on both sides the check may come before the store: the writer finds the mark,
//! the report removes it and reads the old data, and the write is lost. Writes are frequent and reports rare, so the
//! writer has only a compiler fence, and the report makes every CPU that runs this process execute a fence
//! (`membarrier(2)`). Without kernel support for this, both sides fence.

use std::sync::OnceLock;
use std::sync::atomic::{Ordering, compiler_fence, fence};

use rustix::thread::{MembarrierCommand, membarrier};

/// The way the two sides are ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Barrier {
    /// The report fences for all threads.
    OneSided,
    /// Each side fences for itself.
    TwoSided,
}

/// The fence did not reach every CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unfenced;

impl Barrier {
    /// Returns the cheapest barrier available to this process.
    pub(crate) fn best() -> Barrier {
        static BEST: OnceLock<Barrier> = OnceLock::new();
        *BEST.get_or_init(|| match membarrier(MembarrierCommand::RegisterPrivateExpedited) {
            Ok(()) => Barrier::OneSided,
            Err(_) => Barrier::TwoSided,
        })
    }

    /// Orders the data before the check of its mark.
    #[inline]
    pub(crate) fn before_look(self) {
        match self {
            Barrier::OneSided => compiler_fence(Ordering::SeqCst),
            Barrier::TwoSided => fence(Ordering::SeqCst),
        }
    }

    /// Orders the removal of marks before reading the data. After an error a check may still come before its data.
    pub(crate) fn after_taking(self) -> Result<(), Unfenced> {
        fence(Ordering::SeqCst);
        if self == Barrier::TwoSided {
            return Ok(());
        }
        let everywhere = || membarrier(MembarrierCommand::PrivateExpedited);
        // A forked child may have to register for itself.
        everywhere()
            .or_else(|_| membarrier(MembarrierCommand::RegisterPrivateExpedited).and_then(|()| everywhere()))
            .map_err(|_| Unfenced)
    }
}
