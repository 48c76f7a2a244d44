//! Compares what several threads have read from one stream, together, with that stream.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

/// The pieces that one thread has read, in order: one for each read.
pub(crate) type Pieces = Vec<Vec<u8>>;

/// Steps of a search, more than a stream of pieces with different contents needs by far.
const MAX_STEPS: usize = 1 << 20;

/// The answer to whether an order of all reads gives the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// An order gives it.
    Found,
    /// No order gives it.
    None,
    /// There are too many orders to try.
    Unknown,
}

/// Looks for an order of all reads, in which those of one thread stay in their order, that gives the stream.
pub(crate) fn order(stream: &[u8], threads: &[Pieces]) -> Order {
    order_within(stream, threads, MAX_STEPS)
}

/// Looks for an order as [`order`] does, with another limit of steps.
fn order_within(stream: &[u8], threads: &[Pieces], max_steps: usize) -> Order {
    let hashed: Vec<Vec<Piece>> =
        threads.iter().map(|pieces| pieces.iter().map(|piece| Piece::new(piece)).collect()).collect();
    let mut parts = HashMap::new();
    // Two ways to the same numbers of reads lead on alike, because the position is their sum.
    let mut seen = HashSet::new();
    let mut open = vec![(vec![0; threads.len()], 0)];
    while let Some((taken, position)) = open.pop() {
        if position == stream.len() && taken.iter().zip(&hashed).all(|(taken, pieces)| *taken == pieces.len())
        {
            return Order::Found;
        }
        // One round may add a step for each thread, so the count may pass the limit without being equal to it.
        if seen.len() >= max_steps {
            return Order::Unknown;
        }
        for (thread, pieces) in hashed.iter().enumerate() {
            let Some(piece) = pieces.get(taken[thread]) else { continue };
            let end = position + piece.length;
            let Some(part) = stream.get(position..end) else { continue };
            if *parts.entry((position, end)).or_insert_with(|| Piece::new(part)) != *piece {
                continue;
            }
            let mut next = taken.clone();
            next[thread] += 1;
            if seen.insert(next.clone()) {
                open.push((next, end));
            }
        }
    }
    Order::None
}

/// A piece by its length and hash: a long state is not compared byte for byte again and again.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Piece {
    length: usize,
    hash: u64,
}

impl Piece {
    fn new(bytes: &[u8]) -> Piece {
        let mut hasher = DefaultHasher::new();
        bytes.hash(&mut hasher);
        Piece { length: bytes.len(), hash: hasher.finish() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(texts: &[&str]) -> Pieces {
        texts.iter().map(|text| text.as_bytes().to_vec()).collect()
    }

    #[test]
    fn pieces_of_any_size_in_any_order_of_the_threads_are_the_stream() {
        let stream = b"abcdefgh";
        assert_eq!(order(stream, &[pieces(&["ab", "ef"]), pieces(&["cd", "gh"])]), Order::Found);
        assert_eq!(order(stream, &[pieces(&["a", "defg"]), pieces(&["bc", "h"]), pieces(&[])]), Order::Found);
        assert_eq!(order(b"", &[pieces(&[]), pieces(&[])]), Order::Found);
    }

    #[test]
    fn a_wrong_choice_among_equal_pieces_is_taken_back() {
        assert_eq!(order(b"00A0B", &[pieces(&["0", "0", "B"]), pieces(&["0", "A"])]), Order::Found);
        assert_eq!(order(b"0000", &[pieces(&["0", "00"]), pieces(&["0"])]), Order::Found);
    }

    #[test]
    fn bytes_that_come_twice_or_not_at_all_or_in_another_order_are_not_the_stream() {
        let stream = b"abcdefgh";
        for wrong in [
            [&["ab", "ab"][..], &["cd", "gh"]],
            [&["ab", "ef"], &["cd"]],
            [&["ab", "ef"], &["gh", "cd"]],
            [&["ab", "fe"], &["cd", "gh"]],
            [&["ab", "ef"], &["cd", "gh", "x"]],
        ] {
            assert_eq!(order(stream, &[pieces(wrong[0]), pieces(wrong[1])]), Order::None, "{wrong:?}");
        }
    }

    #[test]
    fn a_stream_with_too_many_orders_is_not_judged() {
        let alike = vec![vec![0]; 64];
        // The last piece is of no order, which is only known once all of them were tried.
        let threads = [alike.clone(), alike.clone(), alike.clone(), [alike, vec![vec![1]]].concat()];
        assert_eq!(order(&[0; 257], &threads), Order::Unknown);
    }

    #[test]
    fn a_limit_that_one_round_passes_ends_the_search() {
        // Without the limit, the search tries all orders and finds none.
        let alike = vec![vec![0]; 4];
        let threads = [alike.clone(), alike.clone(), alike.clone(), [alike, vec![vec![1]]].concat()];
        assert_eq!(order(&[0; 17], &threads), Order::None);
        for max_steps in 1..100 {
            assert_eq!(order_within(&[0; 17], &threads, max_steps), Order::Unknown, "{max_steps} steps");
        }
    }
}
