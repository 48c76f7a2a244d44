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

#[cfg(test)]
mod tests {
    use whimbrel_uapi::Errno;
    use whimbrel_uapi::decode::File;

    use super::super::record::{Dirty, On, Request, Transfer};
    use super::*;

    fn record(action: Action, outcome: Outcome, took: u64) -> Record {
        let mut record = Record::new(Duration::ZERO, On::new(7, "device", "device"), action, outcome);
        record.took = Duration::from_micros(took);
        record
    }

    #[test]
    fn calls_are_summed_by_name_and_the_longest_comes_first() {
        let reset = || Action::Request(Request::new(File::Device, 0x3b6f, 0, Vec::new()));
        let read = || Action::Transfer(Transfer::new("read", 100));
        let mut report = Request::new(File::Device, 0x3b75, 0, Vec::new());
        report.dirty = Some(Dirty::new(1, 12, 12));
        let mut summary = Summary::default();
        for record in [
            record(reset(), Outcome::Returned(0), 3),
            record(reset(), Outcome::Failed(Errno::EBUSY), 4),
            record(read(), Outcome::Returned(60), 50),
            record(read(), Outcome::Failed(Errno::EIO), 10),
            record(read(), Outcome::Interrupted, 5),
            record(Action::Request(report), Outcome::Returned(0), 1),
            record(Action::Passed { bytes: 1000 }, Outcome::Returned(0), 0),
        ] {
            summary.add(&record);
        }
        let sums: Vec<_> = summary
            .sums()
            .into_iter()
            .map(|Sums { call, calls, errors, total, max, bytes }| {
                (call, [calls, errors, total.as_micros() as u64, max.as_micros() as u64, bytes])
            })
            .collect();
        let expected = [
            ("read".to_string(), [3, 1, 65, 50, 60]),
            ("VFIO_DEVICE_RESET".to_string(), [2, 1, 7, 4, 0]),
            ("VFIO_DEVICE_FEATURE".to_string(), [1, 0, 1, 1, 2]),
            ("state not seen in calls".to_string(), [0, 0, 0, 0, 1000]),
        ];
        assert_eq!(sums, expected);
    }
}
