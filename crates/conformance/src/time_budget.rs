//! The time of a case for trying other data, and how much of the data was tried.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// The time in which a case repeats requests with other data: a slow device is tried with less of it. A clone is another
/// handle to the same budget.
#[derive(Clone, Debug)]
pub(crate) struct TimeBudget {
    time: Duration,
    end: Instant,
    tries: Arc<Mutex<Tries>>,
}

#[derive(Debug, Default)]
struct Tries {
    made: usize,
    planned: usize,
    /// The time was over before all were made.
    was_short: bool,
}

impl TimeBudget {
    /// Returns the budget of a case that begins now and has this upper bound: a third of a low one, and a thirtieth of a high
    /// one.
    pub(crate) fn new(case_timeout: Duration) -> TimeBudget {
        const MIDDLE: Duration = Duration::from_secs(20);
        TimeBudget::of(MIDDLE.min(case_timeout / 3).max(case_timeout / 30))
    }

    fn of(time: Duration) -> TimeBudget {
        TimeBudget { time, end: Instant::now() + time, tries: Arc::default() }
    }

    /// Returns the data to try until the time is over, and the first of them in any case.
    pub(crate) fn limit<T>(&self, data: impl IntoIterator<Item = T>) -> impl Iterator<Item = T> {
        let data: Vec<T> = data.into_iter().collect();
        self.tries.lock().planned += data.len();
        let budget = self.clone();
        data.into_iter().enumerate().map_while(move |(number, one)| {
            let is_made = number == 0 || Instant::now() < budget.end;
            let mut tries = budget.tries.lock();
            tries.made += usize::from(is_made);
            tries.was_short |= !is_made;
            is_made.then_some(one)
        })
    }

    /// Returns how much of the data was tried, if the time was over before all of it was.
    pub(crate) fn notice(&self) -> Option<String> {
        let Tries { made, planned, was_short } = *self.tries.lock();
        was_short.then(|| {
            format!(
                "{made} of {planned} variations were tried in {} s: --case-timeout gives more time",
                self.time.as_secs_f64()
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_grows_with_the_upper_bound_of_a_case() {
        let seconds = |case_timeout| TimeBudget::new(Duration::from_secs(case_timeout)).time.as_secs();
        assert_eq!([3, 60, 600, 3600, 86_400].map(seconds), [1, 20, 20, 120, 2880]);
    }

    #[test]
    fn data_that_the_time_does_not_reach_is_counted() {
        let spent = TimeBudget::of(Duration::ZERO);
        assert_eq!(spent.notice(), None);
        assert_eq!(spent.limit(0..3).collect::<Vec<_>>(), [0]);
        assert_eq!(spent.limit(0..2).collect::<Vec<_>>(), [0]);
        let notice = "2 of 5 variations were tried in 0 s: --case-timeout gives more time";
        assert_eq!(spent.notice().as_deref(), Some(notice));
    }

    #[test]
    fn without_need_of_more_time_there_is_no_notice() {
        let budget = TimeBudget::of(Duration::from_hours(1));
        assert_eq!(budget.limit(0..3).count(), 3);
        // A case that fails tries no more.
        assert_eq!(budget.limit(0..3).next(), Some(0));
        assert_eq!(TimeBudget::of(Duration::ZERO).limit([0; 1]).count(), 1);
        assert_eq!(budget.notice(), None);
    }
}
