//! The bound on what one header may make its reader do: a text of a few lines, whose macros double one another, would
//! otherwise take all memory. It counts; it does not know what for.

use std::cell::Cell;

/// The tokens that all macros of one header may make, with the bytes of long tokens and strings counted in. The kernel's
/// headers take up to five thousand.
const MAX_COST: usize = 1 << 21;

/// What is left of the bound.
#[derive(Debug)]
pub(crate) struct Budget(Cell<usize>);

impl Default for Budget {
    fn default() -> Self {
        Budget(Cell::new(MAX_COST))
    }
}

impl Budget {
    /// Takes `cost` from what is left. Once it was not enough, nothing is left.
    pub(crate) fn spend(&self, cost: usize) -> Result<(), String> {
        let left = self.0.get().checked_sub(cost);
        self.0.set(left.unwrap_or(0));
        left.map(|_| ()).ok_or_else(|| "the macros of this header make too much of one another".into())
    }
}
