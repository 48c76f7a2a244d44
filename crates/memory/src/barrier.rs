//! The order between the data of a write and a look at its mark, where nearly all of the cost falls on the report.
//!
//! Who marks a page stores the data and then looks whether the mark is there already. Who reports takes the mark away
//! and then reads the data. Without a full fence on both sides the look may come before the store: the mark is found,
//! taken away by the other, the old data is read, and the write is lost. Writes are many and reports few, so the writing
//! side is only kept from being reordered by the compiler, and the report makes every CPU that runs this process pass a
//! fence (`membarrier(2)`). Where the kernel does not serve that, both sides fence.

use std::sync::OnceLock;
use std::sync::atomic::{Ordering, compiler_fence, fence};

use rustix::thread::{MembarrierCommand, membarrier};

/// How the two sides are kept in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Barrier {
    /// The report fences for everybody.
    OneSided,
    /// Each fences for itself.
    TwoSided,
}

/// The fence did not take place everywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unfenced;

impl Barrier {
    /// The cheaper one of those that this process can have.
    pub(crate) fn best() -> Barrier {
        static BEST: OnceLock<Barrier> = OnceLock::new();
        *BEST.get_or_init(|| match membarrier(MembarrierCommand::RegisterPrivateExpedited) {
            Ok(()) => Barrier::OneSided,
            Err(_) => Barrier::TwoSided,
        })
    }

    /// Between the data and the look at its mark.
    #[inline]
    pub(crate) fn before_look(self) {
        match self {
            Barrier::OneSided => compiler_fence(Ordering::SeqCst),
            Barrier::TwoSided => fence(Ordering::SeqCst),
        }
    }

    /// Between taking marks away and reading the data. On an error some look may still come before its data.
    pub(crate) fn after_taking(self) -> Result<(), Unfenced> {
        fence(Ordering::SeqCst);
        if self == Barrier::TwoSided {
            return Ok(());
        }
        let everywhere = || membarrier(MembarrierCommand::PrivateExpedited);
        // A child of a fork may have to ask for itself.
        everywhere()
            .or_else(|_| membarrier(MembarrierCommand::RegisterPrivateExpedited).and_then(|()| everywhere()))
            .map_err(|_| Unfenced)
    }
}
