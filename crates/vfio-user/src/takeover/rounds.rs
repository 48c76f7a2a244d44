//! The rounds of pre-copy, and when they end, without I/O: the device's state moves while the device runs, until so little
//! is left that its transfer takes no noticeable time, or until another round would not make it less.

use whimbrel_protocol::precopy::{PrecopyReport, Progress};

/// Data whose transfer takes no noticeable time, in bytes.
pub(super) const NEGLIGIBLE: u64 = 128 << 10;

/// Maximum rounds.
pub(super) const MAX_ROUNDS: u32 = 30;

/// Rounds after which the device is stopped if none of them has left a quarter less than any before: one says little of a
/// device that is busy at the moment.
const MAX_VAIN: u32 = 3;

/// The rounds so far. A round moves the data that the device had at its beginning.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rounds {
    progress: Progress,
    /// The number of rounds begun.
    number: u32,
    /// Bytes left at the beginning of the round.
    total: u64,
    /// The least that a round has left.
    least: Option<u64>,
    /// The number of rounds since.
    vain: u32,
    /// Bytes that the round still has to move.
    left: u64,
}

/// The next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Read and send.
    Read,
    /// Ask the device how much there is.
    Ask,
    /// Stop the device.
    Stop(Why),
}

/// The reason to stop the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// Almost nothing is left.
    Little,
    /// The device changes its state about as fast as it is sent.
    NoLess,
    /// The device has announced data and yields none.
    Nothing,
    /// It was tried often enough.
    Rounds,
}

impl Why {
    /// Returns the reason in words, for the log.
    pub(super) fn text(self) -> &'static str {
        match self {
            Why::Little => "almost all has moved",
            Why::NoLess => "the device changes its state as fast as it moves",
            Why::Nothing => "the device yields no data",
            Why::Rounds => "the number of rounds is limited",
        }
    }
}

impl Rounds {
    /// Begins the next round with the device's report, unless the device is to be stopped.
    pub(super) fn begin(&mut self, report: PrecopyReport) -> Step {
        self.progress.report(report.bytes, report.reinit);
        let total = self.progress.remaining().total();
        let is_ready = self.progress.initial_done();
        self.total = total;
        if self.least.is_none_or(|least| total <= least - least / 4) {
            (self.least, self.vain) = (Some(total), 0);
        } else {
            self.vain += 1;
        }
        match () {
            () if is_ready && total <= NEGLIGIBLE => Step::Stop(Why::Little),
            // Without the initial data the new server would need longer than it takes to send it.
            () if is_ready && self.vain >= MAX_VAIN => Step::Stop(Why::NoLess),
            () if self.number >= MAX_ROUNDS => Step::Stop(Why::Rounds),
            () if total == 0 => Step::Stop(Why::Nothing),
            () => {
                self.number += 1;
                self.left = total;
                Step::Read
            }
        }
    }

    /// Counts bytes that the device gave.
    pub(super) fn read(&mut self, count: u64) -> Step {
        self.progress.read(count);
        self.left = self.left.saturating_sub(count);
        if self.left == 0 { Step::Ask } else { Step::Read }
    }

    /// Ends the round: the device has no more data now.
    pub(super) fn nothing_now(&mut self) -> Step {
        if self.left == self.total { Step::Stop(Why::Nothing) } else { Step::Ask }
    }

    /// Returns the number of rounds begun.
    pub(super) fn number(&self) -> u32 {
        self.number
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use whimbrel_protocol::precopy::PrecopyBytes;

    use super::*;

    fn report(initial: u64, dirty: u64) -> PrecopyReport {
        PrecopyReport::from(PrecopyBytes { initial, dirty })
    }

    #[test]
    fn a_device_with_little_to_say_is_stopped_at_once() {
        for dirty in [0, 1, NEGLIGIBLE] {
            assert_eq!(Rounds::default().begin(report(0, dirty)), Step::Stop(Why::Little));
        }
        assert_eq!(Rounds::default().begin(report(0, NEGLIGIBLE + 1)), Step::Read);
        assert_eq!(Rounds::default().begin(report(1, 0)), Step::Read, "initial data is sent, however little");
    }

    #[test]
    fn a_round_moves_what_there_was_at_its_beginning() {
        let mut rounds = Rounds::default();
        assert_eq!(rounds.begin(report(60, 40)), Step::Read);
        assert_eq!(rounds.read(99), Step::Read);
        assert_eq!(rounds.read(1), Step::Ask);
        assert_eq!(rounds.begin(report(0, 0)), Step::Stop(Why::Little));
        assert_eq!(rounds.number(), 1);
    }

    #[test]
    fn rounds_go_on_until_little_is_left() {
        let mut rounds = Rounds::default();
        let mut total = 1 << 30;
        assert_eq!(rounds.begin(report(0, total)), Step::Read);
        while total > NEGLIGIBLE {
            assert_eq!(rounds.read(total), Step::Ask);
            total /= 2;
            let expected = if total <= NEGLIGIBLE { Step::Stop(Why::Little) } else { Step::Read };
            assert_eq!(rounds.begin(report(0, total)), expected);
        }
    }

    #[test]
    fn rounds_end_once_several_have_left_no_quarter_less() {
        const TOTAL: u64 = 1 << 30;
        let mut rounds = Rounds::default();
        assert_eq!(rounds.begin(report(0, TOTAL)), Step::Read);
        let almost = TOTAL - TOTAL / 4 + 1;
        for total in [almost, 2 * TOTAL, almost - 1, TOTAL, TOTAL] {
            assert_eq!(rounds.begin(report(0, total)), Step::Read, "{total}");
        }
        assert_eq!(rounds.begin(report(0, almost - 1)), Step::Stop(Why::NoLess));
    }

    #[test]
    fn initial_data_is_waited_for_but_not_for_ever() {
        let mut rounds = Rounds::default();
        for _ in 0..MAX_ROUNDS {
            // It starts over each time.
            assert_eq!(rounds.begin(report(1 << 30, 0).reinit(true)), Step::Read);
            assert_eq!(rounds.read(1 << 30), Step::Ask);
        }
        assert_eq!(rounds.begin(report(1 << 30, 0).reinit(true)), Step::Stop(Why::Rounds));
    }

    #[test]
    fn a_device_that_announces_data_and_has_none_is_stopped() {
        let mut rounds = Rounds::default();
        assert_eq!(rounds.begin(report(8, 0)), Step::Read);
        assert_eq!(rounds.nothing_now(), Step::Stop(Why::Nothing));
        let mut rounds = Rounds::default();
        rounds.begin(report(8, 0));
        rounds.read(7);
        assert_eq!(rounds.nothing_now(), Step::Ask, "it has less than it said");
    }

    proptest! {
        /// Whatever a device reports and yields, pre-copy ends, and no round moves more than there was.
        #[test]
        fn they_end(
            reports in prop::collection::vec((any::<u64>(), any::<u64>(), any::<bool>()), 40),
            pieces in prop::collection::vec(prop::option::of(1..=u64::MAX), 1..8),
        ) {
            let mut rounds = Rounds::default();
            let mut stopped = None;
            'all: for (initial, dirty, reinit) in reports {
                let mut step = rounds.begin(report(initial, dirty).reinit(reinit));
                let before = rounds.number();
                let mut pieces = pieces.iter().cycle();
                let mut steps = 0_u32;
                while step == Step::Read {
                    // A device whose pieces are small yields nothing more before long.
                    step = match pieces.next().copied().flatten().filter(|_| steps < 100) {
                        Some(count) => rounds.read(count),
                        None => rounds.nothing_now(),
                    };
                    steps += 1;
                }
                prop_assert_eq!(rounds.number(), before);
                if let Step::Stop(why) = step {
                    stopped = Some(why);
                    break 'all;
                }
            }
            prop_assert!(stopped.is_some() && rounds.number() <= MAX_ROUNDS);
        }
    }
}
