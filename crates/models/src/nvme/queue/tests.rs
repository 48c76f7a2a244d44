//! Both queues beside a host that does everything right, and one that does not.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

#[test]
fn queues_that_do_not_fit_are_none() {
    assert!(SubmissionQueue::new(u64::MAX - 0xfff, 64, 0).is_some());
    assert!(SubmissionQueue::new(u64::MAX - 0xfff, 65, 0).is_none());
    assert!(CompletionQueue::new(u64::MAX - 0xfff, 256, None).is_some());
    assert!(CompletionQueue::new(u64::MAX - 0xfff, 257, None).is_none());
    assert!(SubmissionQueue::new(0, 1, 0).is_none());
    assert!(CompletionQueue::new(0, 1, None).is_none());
}

#[test]
fn a_tail_out_of_range_or_behind_the_last_one_is_invalid() {
    let mut queue = SubmissionQueue::new(0x1000, 4, 0).unwrap();
    assert_eq!(queue.ring(4), Err(InvalidDoorbell));
    assert_eq!(queue.ring(0), Err(InvalidDoorbell), "nothing was added");
    assert_eq!(queue.ring(2), Ok(()));
    assert_eq!(queue.ring(1), Err(InvalidDoorbell), "a command was withdrawn");
    assert_eq!(queue.ring(2), Err(InvalidDoorbell));
    assert_eq!(queue.ring(3), Ok(()), "full");
    assert_eq!(queue.ring(0), Err(InvalidDoorbell), "more than fit");
    queue.advance();
    assert_eq!((queue.address(), queue.ring(0)), (0x1040, Ok(())));
}

#[test]
fn a_head_past_what_was_posted_is_invalid() {
    let mut queue = CompletionQueue::new(0x1000, 4, None).unwrap();
    assert_eq!(queue.ring(1), Err(InvalidDoorbell), "it is empty");
    queue.advance();
    queue.advance();
    assert_eq!(queue.ring(3), Err(InvalidDoorbell));
    assert_eq!(queue.ring(4), Err(InvalidDoorbell));
    assert_eq!(queue.ring(0), Err(InvalidDoorbell), "nothing was taken out");
    assert_eq!(queue.ring(2), Ok(()));
    assert!(!queue.has_entries());
}

proptest! {
    /// Commands go in and come out in order, whatever the sizes and the moments.
    #[test]
    fn a_submission_queue_loses_and_doubles_nothing(
        entries in 2u32..20,
        steps in proptest::collection::vec((any::<bool>(), 1u32..8), 1..200),
    ) {
        let mut queue = SubmissionQueue::new(0, entries, 0).unwrap();
        let (mut waiting, mut tail, mut next) = (VecDeque::new(), 0, 0);
        let mut slots = vec![0u32; entries as usize];
        for (submits, count) in steps {
            if submits {
                let room = entries - 1 - waiting.len() as u32;
                let count = count.min(room);
                for _ in 0..count {
                    slots[tail as usize] = next;
                    waiting.push_back(next);
                    tail = (tail + 1) % entries;
                    next += 1;
                }
                prop_assert_eq!(queue.ring(tail).is_ok(), count > 0);
            } else {
                for _ in 0..count.min(waiting.len() as u32) {
                    prop_assert!(queue.has_command());
                    prop_assert_eq!(Some(slots[(queue.address() / 64) as usize]), waiting.pop_front());
                    queue.advance();
                }
                prop_assert_eq!(queue.has_command(), !waiting.is_empty());
            }
            prop_assert!(queue.is_sound());
        }
    }

    /// A host that knows only phase tags finds each completion once.
    #[test]
    fn phase_tags_tell_new_completions_from_old_ones(
        entries in 2u32..20,
        steps in proptest::collection::vec((any::<bool>(), 1u32..8), 1..200),
    ) {
        let mut queue = CompletionQueue::new(0, entries, Some(0)).unwrap();
        let mut slots = vec![(0u32, false); entries as usize];
        let (mut head, mut phase, mut posted, mut taken) = (0u32, true, 0, 0);
        for (posts, count) in steps {
            if posts {
                for _ in 0..count {
                    if queue.is_full() {
                        prop_assert_eq!(posted - taken, entries - 1);
                        break;
                    }
                    slots[(queue.address() / 16) as usize] = (posted, queue.phase);
                    queue.advance();
                    posted += 1;
                }
            } else {
                let before = head;
                for _ in 0..count {
                    let (number, tag) = slots[head as usize];
                    if tag != phase {
                        prop_assert_eq!(taken, posted);
                        break;
                    }
                    prop_assert_eq!(number, taken);
                    taken += 1;
                    head = (head + 1) % entries;
                    phase ^= head == 0;
                }
                prop_assert_eq!(queue.ring(head).is_ok(), head != before);
            }
            prop_assert_eq!(queue.interrupts(), posted != taken);
            prop_assert!(queue.is_sound());
        }
    }

    /// Whatever is written to a doorbell, a queue stays sound, and an invalid value changes nothing.
    #[test]
    fn doorbells_of_a_hostile_host_break_no_queue(
        entries in 2u32..2000,
        values in proptest::collection::vec((any::<bool>(), any::<u32>()), 1..100),
    ) {
        let mut submissions = SubmissionQueue::new(0, entries, 0).unwrap();
        let mut completions = CompletionQueue::new(0, entries, None).unwrap();
        for (is_small, value) in values {
            let value = if is_small { value % (entries + 1) } else { value };
            let before = (submissions, completions);
            if submissions.ring(value).is_err() {
                prop_assert_eq!(submissions, before.0);
            }
            if completions.ring(value).is_err() {
                prop_assert_eq!(completions, before.1);
            }
            if submissions.has_command() {
                submissions.advance();
            }
            if !completions.is_full() {
                completions.advance();
            }
            prop_assert!(submissions.is_sound() && completions.is_sound());
        }
    }
}
