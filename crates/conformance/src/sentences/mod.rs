//! Sentences of the header and their cases: reads `vfio.h` without a compiler and compares it with the suite.
//!
//! `comments` reads the header, `split` its sentences, `part` those about migration. `excused` lists the
//! sentences that no case can test, with the reasons. [`Coverage`] is the result.
//!
//! ```
//! let header = "
//! /*
//!  * The optional states cannot be used with SET_STATE if the device does not
//!  * support them. They must be blue.
//!  */
//! enum vfio_device_mig_state {};
//! ";
//! let coverage = whimbrel_conformance::sentences::coverage(header)?;
//! assert_eq!(coverage.covered[0].cases, ["v2/state/optional-states-are-refused"]);
//! assert_eq!(coverage.uncovered[0].text, "They must be blue.");
//! # Ok::<(), whimbrel_conformance::sentences::SentencesError>(())
//! ```

mod comments;
mod coverage;
mod excused;
mod part;
mod split;
mod text;

pub use coverage::{Coverage, Covered, Excuse, Gone, MAX_BYTES, SentencesError, coverage};
pub use part::Sentence;
