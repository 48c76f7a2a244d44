//! The bound on the work that one header may cause: a few lines of macros that double one another would otherwise take
//! all memory.

use std::cell::Cell;

/// Maximum number of tokens that all macro expansions of one header may produce, counting the bytes of long tokens and
/// strings. The kernel's headers take up to five thousand.
const MAX_COST: usize = 1 << 21;

/// The rest of the bound.
#[derive(Debug)]
pub(crate) struct Budget(Cell<usize>);

impl Default for Budget {
    fn default() -> Self {
        Budget(Cell::new(MAX_COST))
    }
}

impl Budget {
    /// Takes `cost` from the rest. After the first failure nothing is left.
    pub(crate) fn spend(&self, cost: usize) -> Result<(), String> {
        let left = self.0.get().checked_sub(cost);
        self.0.set(left.unwrap_or(0));
        left.map(|_| ()).ok_or_else(|| "the macros of this header expand to too much text".into())
    }
}
