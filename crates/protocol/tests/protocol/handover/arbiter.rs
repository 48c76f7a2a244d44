//! Who is told what by the arbiter, and when.

use whimbrel_protocol::handover::{Entry, JournalArbiter, Ruling, Side};

fn rulings(arbiter: &JournalArbiter) -> [Ruling; 2] {
    [Side::Source, Side::Destination].map(|side| arbiter.ruling(side))
}

#[test]
fn an_outcome_in_a_journal_decides() {
    let [source, destination] = [[Ruling::Mine, Ruling::Theirs], [Ruling::Theirs, Ruling::Mine]];
    for (entry, expected) in [
        (Entry::MayBeHandedOver, [Ruling::NotDecided; 2]),
        (Entry::MayStart, [Ruling::NotDecided; 2]),
        (Entry::Discarding, [Ruling::NotDecided, Ruling::Theirs]),
        (Entry::Returned, source),
        (Entry::Discarded, source),
        (Entry::Gone, destination),
        (Entry::Started, destination),
    ] {
        let mut arbiter = JournalArbiter::new();
        arbiter.read(entry);
        assert_eq!(rulings(&arbiter), expected, "{entry:?}");
    }
}

#[test]
fn nothing_is_chosen_before_both_sides_have_asked() {
    let mut arbiter = JournalArbiter::new();
    assert_eq!(arbiter.choose(Side::Source).unwrap_err().missing, Side::Source);
    arbiter.ask(Side::Source);
    assert_eq!(arbiter.choose(Side::Source).unwrap_err().missing, Side::Destination);
    arbiter.ask(Side::Destination);
    assert_eq!(arbiter.choose(Side::Destination), Ok(Side::Destination));
    assert_eq!(arbiter.choose(Side::Source), Ok(Side::Destination), "it is chosen once");
    assert_eq!(rulings(&arbiter), [Ruling::Theirs, Ruling::Mine]);
    assert_eq!(rulings(&JournalArbiter::restart(arbiter.choice())), [Ruling::Theirs, Ruling::Mine]);
}

#[test]
fn a_source_that_was_chosen_waits_until_the_destination_has_discarded_the_devices() {
    let mut arbiter = JournalArbiter::new();
    arbiter.ask(Side::Source);
    arbiter.ask(Side::Destination);
    arbiter.choose(Side::Source).unwrap();
    assert_eq!(rulings(&arbiter), [Ruling::NotDecided, Ruling::Theirs]);
    arbiter.read(Entry::Discarded);
    assert_eq!(rulings(&arbiter), [Ruling::Mine, Ruling::Theirs]);
}

#[test]
fn journals_that_contradict_each_other_decide_nothing() {
    let mut arbiter = JournalArbiter::new();
    arbiter.read(Entry::Returned);
    arbiter.read(Entry::Started);
    assert_eq!(rulings(&arbiter), [Ruling::NotDecided; 2]);
}
