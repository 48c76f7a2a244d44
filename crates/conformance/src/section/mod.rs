//! The sections of the suite, one file each. A case's id begins with its section's.

mod arcs;
mod state;

use crate::case::Case;

/// The cases of all sections.
pub(crate) const ALL: &[&[Case]] = &[state::CASES, arcs::CASES];
