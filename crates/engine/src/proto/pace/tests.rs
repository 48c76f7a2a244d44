//! Connections that share a pace, on a clock of the test's own: how much they send in any second, and over all.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use proptest::prelude::*;

use super::*;

/// The bytes of a frame around its data.
const AROUND: usize = 40;
const SECOND: Duration = Duration::from_secs(1);
/// The time for which the connections send.
const SENDING: Duration = Duration::from_secs(5);

fn pace(bytes_per_second: u64) -> Pace {
    Pace::new(NonZeroU64::new(bytes_per_second).unwrap())
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[test]
fn bytes_that_are_always_ready_are_sent_at_the_rate() {
    let (mut pace, mut now) = (pace(1000), ms(7));
    for number in 0..100 {
        now += pace.reserve(50, now);
        assert_eq!(now, ms(7) + ms(50) * number);
    }
}

#[test]
fn a_late_sender_keeps_the_rate() {
    let (mut pace, mut now) = (pace(1000), ms(7));
    for number in 0..100 {
        let start = now + pace.reserve(50, now);
        assert!(start <= ms(7) + ms(50) * number, "{start:?}");
        // It wakes some time later each time.
        now = start + ms(7);
    }
}

#[test]
fn a_pause_is_made_up_for_by_a_fortieth_of_a_second_and_no_more() {
    let mut pace = pace(1_000_000);
    let hour = Duration::from_hours(1);
    pace.reserve(50, Duration::ZERO);
    let mut burst = 0;
    while pace.reserve(50, hour).is_zero() {
        burst += 50;
    }
    assert_eq!(burst, 25_050, "bytes at once after an hour");
}

#[test]
fn pieces_of_all_connections_are_a_small_part_of_a_second_and_whole_pages_if_they_can_be() {
    for shift in 16..36 {
        let rate = 1 << shift;
        for lanes in [1, 2, 4, 16] {
            let piece = pace(rate).piece(lanes);
            let all = piece * (lanes as usize + 1);
            assert!(piece == MIN_PIECE || all as f64 <= rate as f64 * LATE, "{rate} {lanes}: {piece}");
            assert!(piece <= PAGE || piece.is_multiple_of(PAGE), "{rate} {lanes}: {piece}");
        }
    }
    assert_eq!(pace(1 << 40).piece(1), CHUNK);
}

/// A connection: its thread sends whenever the pace and the link let it.
#[derive(Clone, Debug)]
struct Lane {
    /// The speed of its link, as a multiple of the limit.
    speed: f64,
    /// The longest delay with which its thread wakes from a pause, in microseconds.
    late: u64,
    /// Of so many frames one comes after a pause without data, of so many milliseconds.
    idle: Option<(u32, u64)>,
}

/// Bytes that arrived at a time.
type Arrival = (Now, u64);

/// Sends, and returns what arrived, in order.
fn send(rate: u64, lanes: &[Lane], seed: u64) -> Vec<Arrival> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut pace = pace(rate);
    let piece = pace.piece(lanes.len() as u32);
    let mut ready: BinaryHeap<_> = (0..lanes.len()).map(|lane| Reverse((Duration::ZERO, lane))).collect();
    let mut arrived = Vec::new();
    while let Some(Reverse((now, number))) = ready.pop() {
        if now > SENDING {
            break;
        }
        let lane = &lanes[number];
        // Most frames are as large as they may be.
        let bytes = AROUND + if rng.u8(..4) > 0 { piece } else { rng.usize(1..=piece) };
        let pause = pace.reserve(bytes, now);
        let delay = if pause.is_zero() { 0 } else { rng.u64(..=lane.late) };
        let began = now + pause + Duration::from_micros(delay);
        let took = Duration::from_secs_f64(bytes as f64 / (rate as f64 * lane.speed));
        // It arrives at some time in between, all at once at the worst.
        arrived.push((began + took.mul_f64(rng.f64()), bytes as u64));
        let idle = lane.idle.filter(|(one_of, _)| rng.u32(..*one_of) == 0);
        ready.push(Reverse((began + took + idle.map_or(Duration::ZERO, |(_, pause)| ms(pause)), number)));
    }
    arrived.sort();
    arrived
}

/// The most that arrived in a second.
fn most_in_a_second(arrived: &[Arrival]) -> u64 {
    let (mut first, mut total, mut most) = (0, 0, 0);
    for (at, bytes) in arrived {
        total += bytes;
        while arrived[first].0 + SECOND < *at {
            total -= arrived[first].1;
            first += 1;
        }
        most = most.max(total);
    }
    most
}

/// The least that arrived in a second while all connections sent.
fn least_in_a_second(arrived: &[Arrival]) -> u64 {
    let starts = arrived.iter().map(|(at, _)| *at).take_while(|at| *at + SECOND <= SENDING);
    let (mut first, mut end, mut sum, mut least) = (0, 0, 0, u64::MAX);
    for start in starts {
        // After this arrival, and until a second later.
        while arrived[first].0 <= start {
            if first < end {
                sum -= arrived[first].1;
            } else {
                end = first + 1;
            }
            first += 1;
        }
        while end < arrived.len() && arrived[end].0 <= start + SECOND {
            sum += arrived[end].1;
            end += 1;
        }
        least = least.min(sum);
    }
    least
}

#[expect(clippy::cast_sign_loss, reason = "no power is negative")]
fn rates() -> impl Strategy<Value = u64> {
    (16.0..32.0_f64).prop_map(|exponent| exponent.exp2() as u64)
}

proptest! {
    #[test]
    fn no_second_has_more_than_five_percent_above_the_limit(
        rate in rates(),
        lanes in prop::collection::vec(
            (0.02..20.0_f64, 0..50_000_u64, prop::option::of((2..50_u32, 1..3000_u64)))
                .prop_map(|(speed, late, idle)| Lane { speed, late, idle }),
            1..=16,
        ),
        seed: u64,
    ) {
        let arrived = send(rate, &lanes, seed);
        let most = most_in_a_second(&arrived);
        prop_assert!(most as f64 <= rate as f64 * 1.05, "{most} bytes in a second, limit {rate}");
        let total: u64 = arrived.iter().map(|(_, bytes)| bytes).sum();
        let took = arrived[arrived.len() - 1].0.max(SECOND);
        prop_assert!(total as f64 <= rate as f64 * 1.05 * took.as_secs_f64(), "{total} bytes in {took:?}");
    }

    #[test]
    fn no_second_has_less_than_five_percent_below_the_limit_while_connections_take_more(
        rate in rates(),
        fast in prop::collection::vec((4.0..20.0_f64, 0..4000_u64), 1..=8),
        slow in prop::collection::vec((0.02..1.0_f64, 0..4000_u64), 0..=8),
        seed: u64,
    ) {
        let lane = |(speed, late)| Lane { speed, late, idle: None };
        let lanes: Vec<Lane> = fast.into_iter().chain(slow).map(lane).collect();
        let arrived = send(rate, &lanes, seed);
        let least = least_in_a_second(&arrived);
        prop_assert!(least as f64 >= rate as f64 * 0.95, "{least} bytes in a second, limit {rate}");
    }
}
