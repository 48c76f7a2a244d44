//! Sums over the records of a trace: calls, errors, time and bytes by the name of the call.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Serialize, Serializer};

use super::record::{Action, Outcome, Record};

/// Sums by the name of the call.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    sums: BTreeMap<String, Sums>,
}

/// The sums of one call.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Sums {
    /// Name of the request or system call.
    pub call: String,
    /// Number of calls.
    pub calls: u64,
    /// Number of those that failed.
    pub errors: u64,
    /// Their duration altogether.
    #[serde(rename = "total_us", serialize_with = "microseconds")]
    pub total: Duration,
    /// The longest duration of one.
    #[serde(rename = "max_us", serialize_with = "microseconds")]
    pub max: Duration,
    /// The bytes that moved: device state, bytes of regions, dirty bitmaps.
    pub bytes: u64,
}

fn microseconds<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(u64::try_from(time.as_micros()).unwrap_or(u64::MAX))
}

impl Summary {
    /// Counts a record.
    pub fn add(&mut self, record: &Record) {
        let call = record.name();
        let sums = self.sums.entry(call).or_default();
        sums.calls += u64::from(!matches!(record.action, Action::Passed { .. }));
        sums.errors += u64::from(matches!(record.outcome, Outcome::Failed(_)));
        sums.total += record.took;
        sums.max = sums.max.max(record.took);
        sums.bytes = sums.bytes.saturating_add(record.bytes());
    }

    /// Returns the sums, those with the longest total first.
    pub fn sums(&self) -> Vec<Sums> {
        let named = |(call, sums): (&String, &Sums)| Sums { call: call.clone(), ..sums.clone() };
        let mut found: Vec<Sums> = self.sums.iter().map(named).collect();
        // Of equals, the order of the names stays.
        found.sort_by_key(|sums| std::cmp::Reverse(sums.total));
        found
    }
}
