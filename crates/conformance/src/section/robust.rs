//! States that no device has saved: they are refused or taken, and do not hurt the device.

use whimbrel_protocol::State;

use super::resuming::attempt;
use super::stop::look_around;
use crate::bench::Bench;
use crate::case::{Case, Need};
use crate::data::CHUNK;
use crate::outcome::{Outcome, equal_bytes, skip, success};
use crate::saved::Saved;
use crate::subject::Subject;

pub(crate) const CASES: &[Case] = &[
    Case::robust(
        "v2/robust/cut",
        "A user may load a state that ends early: a reset brings the device back.",
        |bench| hurt(bench, |saved, random| saved.cuts(random).into_iter().map(|cut| saved[..cut].to_vec()).collect()),
    )
    .resets(),
    Case::robust(
        "v2/robust/flipped-bit",
        "A user may load a state in which a bit is wrong: it is refused or taken, and a reset brings the device back.",
        |bench| hurt(bench, flipped),
    )
    .resets(),
    Case::robust(
        "v2/robust/saved-again",
        "A device that takes a state in which a bit is wrong can be used, saves a state, and takes that again.",
        saved_again,
    )
    .hangs()
    .needs(&[Need::V2]),
    Case::robust(
        "v2/robust/wrong-byte",
        "A user may load a state in which a byte is wrong: it is refused or taken, and a reset brings the device back.",
        |bench| {
            hurt(bench, |saved, random| {
                let values = [0, 1, 0x7f, 0x80, 0xff];
                altered(saved, random, move |_, random| values[random.usize(..values.len())])
            })
        },
    )
    .resets(),
    Case::robust(
        "v2/robust/wrong-word",
        "A user may load a state in which a length, a count or an offset is very large: it is refused or taken, and a \
         reset brings the device back.",
        |bench| hurt(bench, wrong_words),
    )
    .resets(),
    Case::robust(
        "v2/robust/foreign",
        "A user may load bytes that are no state: they are refused or taken, and a reset brings the device back.",
        |bench| hurt(bench, foreign),
    )
    .resets(),
    Case::robust(
        "v2/robust/doubled",
        "A user may load a state twice in one session: it is refused or taken, and a reset brings the device back.",
        |bench| hurt(bench, |saved, _| vec![saved.repeat(2), [&saved[..], &saved[..saved.len() / 2]].concat()]),
    )
    .resets(),
    Case::robust(
        "v2/robust/reordered",
        "A user may load the parts of a state in another order: it is refused or taken, and a reset brings the device \
         back.",
        |bench| hurt(bench, reordered),
    )
    .resets(),
    Case::robust(
        "v2/robust/endless",
        "A user may write far more than a state: the device refuses it or takes it, and a reset brings the device back.",
        endless,
    )
    .resets(),
];

/// Bytes of a state that is changed, at most, where each change needs a copy of it.
const CHANGED_BYTES: usize = 4 << 20;

/// Loads states that are made of the device's own by `spoil`, and resets the device after each. Fails the case if it then
/// cannot load its own state.
fn hurt(bench: &mut Bench, spoil: impl FnOnce(&Saved, &mut fastrand::Rng) -> Vec<Vec<u8>>) -> Outcome {
    bench.restoring(|bench, saved| {
        let (registers, budget) = (bench.registers.clone(), bench.budget.clone());
        // A device with a migration region may have to run before it can save what it has loaded.
        let saves_in_stop = !bench.features.has(Need::Region);
        let subject = &mut bench.subject;
        let before = registers.as_ref().map(|registers| subject.look(&**registers)).transpose()?;
        for data in budget.limit(spoil(saved, &mut bench.random)) {
            let taken = attempt(subject, &data, State::Stop)?;
            if taken.left.is_ok() {
                use_taken(subject)?;
            }
            subject.must_reset()?;
            subject.is_in(State::Running)?;
            subject.load(saved)?;
            if saves_in_stop {
                let again = subject.save_stopped()?;
                if *again != **saved {
                    subject.go(State::Running)?;
                    return bench.equal_states(AFTER_ANOTHER, saved, &again);
                }
            }
            subject.go(State::Running)?;
            if let (Some(registers), Some(before)) = (&registers, &before) {
                let after = subject.look(&**registers)?;
                equal_bytes(format_args!("registers of {AFTER_ANOTHER}"), before, &after)?;
            }
        }
        Ok(())
    })
}

const AFTER_ANOTHER: &str = "the device's own state, loaded after another one and a reset";

/// Uses a device that has taken a state which no device has saved: whatever it answers, it answers.
fn use_taken(subject: &mut Subject) -> Outcome {
    look_around(subject)?;
    if let Ok(Some(mut data)) = subject.set_state(State::StopCopy)? {
        for _ in 0..16 {
            if !matches!(data.read(&mut vec![0; CHUNK])?, Ok(1..)) {
                break;
            }
        }
    }
    // The state is asked for, whether or not the device runs.
    let _ = subject.set_state(State::Running)?;
    subject.state()?;
    Ok(())
}

/// Bytes of a state of which every bit is flipped, at most.
const SMALL_BYTES: usize = 256;

/// States with one bit flipped: each bit of a small state, or some of a larger one.
pub(super) fn flipped(saved: &Saved, random: &mut fastrand::Rng) -> Vec<Vec<u8>> {
    if saved.len() > SMALL_BYTES {
        return altered(saved, random, |byte, random| byte ^ (1 << random.u8(..8)));
    }
    let flipped = |bit: usize| {
        let mut data = saved.to_vec();
        data[bit / 8] ^= 1 << (bit % 8);
        data
    };
    (0..saved.len() * 8).map(flipped).collect()
}

/// A driver that has not checked an index in the state uses it here, perhaps in the kernel.
fn saved_again(bench: &mut Bench) -> Outcome {
    if !bench.may_reset {
        return skip("it resets the device");
    }
    bench.restoring(|bench, saved| {
        let (registers, budget) = (bench.registers.clone(), bench.budget.clone());
        let subject = &mut bench.subject;
        let mut is_any_taken = false;
        for data in budget.limit(flipped(saved, &mut bench.random)) {
            let taken = attempt(subject, &data, State::Stop)?;
            if taken.written.and(taken.left).is_ok() {
                is_any_taken = true;
                subject.go(State::Running)?;
                if let Some(registers) = &registers {
                    subject.look(&**registers)?;
                }
                subject.go(State::Stop)?;
                let own = subject.save_stopped()?;
                subject.go(State::Running)?;
                subject.load(&own)?;
            }
            subject.must_reset()?;
            subject.is_in(State::Running)?;
        }
        if is_any_taken { Ok(()) } else { skip("the device refuses every state with a wrong bit") }
    })
}

/// States with one byte altered.
fn altered(
    saved: &Saved,
    random: &mut fastrand::Rng,
    mut alter: impl FnMut(u8, &mut fastrand::Rng) -> u8,
) -> Vec<Vec<u8>> {
    let most = (CHANGED_BYTES / saved.len().max(1)).max(4);
    let mut places: Vec<usize> = saved.cuts(random).into_iter().collect();
    random.shuffle(&mut places);
    places.truncate(most);
    let altered = |place: usize| {
        let mut data = saved.to_vec();
        data[place] = alter(data[place], random);
        data
    };
    places.into_iter().map(altered).collect()
}

/// Bytes at the beginning and the end of a state in which words are replaced.
const WORDS_WITHIN: usize = 128;

fn wrong_words(saved: &Saved, random: &mut fastrand::Rng) -> Vec<Vec<u8>> {
    let most = (4 * CHANGED_BYTES / saved.len().max(1)).clamp(8, 128);
    let last = saved.len().saturating_sub(4);
    let near_end = last.saturating_sub(WORDS_WITHIN) & !3;
    let places = (0..WORDS_WITHIN.min(last)).step_by(4).chain((near_end..=last).step_by(4));
    let mut spoilt: Vec<(usize, u32)> =
        places.flat_map(|place| [0, 0x7fff_ffff, 0xffff_fff0, u32::MAX].map(|word| (place, word))).collect();
    random.shuffle(&mut spoilt);
    spoilt.truncate(most);
    let replaced = spoilt.into_iter().filter_map(|(place, word)| {
        let mut data = saved.to_vec();
        data.get_mut(place..place + 4)?.copy_from_slice(&word.to_ne_bytes());
        Some(data)
    });
    replaced.collect()
}

fn foreign(saved: &Saved, random: &mut fastrand::Rng) -> Vec<Vec<u8>> {
    let length = saved.len().min(CHANGED_BYTES);
    let head = saved.len().min(32);
    // Bytes that begin like the device's own state, so that a check of the first ones lets them pass.
    let mut begins_well = saved[..head].to_vec();
    begins_well.extend(std::iter::repeat_with(|| random.u8(..)).take(length - head));
    vec![
        begins_well,
        (0..length).map(|_| random.u8(..)).collect(),
        vec![0; length],
        vec![0xff; length],
        b"not a state".repeat(length / 11 + 1),
        vec![0x55],
    ]
}

fn reordered(saved: &Saved, random: &mut fastrand::Rng) -> Vec<Vec<u8>> {
    let halves = saved.split_at(saved.len() / 2);
    let mut blocks: Vec<&[u8]> = saved.chunks((saved.len() / 8).max(1)).collect();
    random.shuffle(&mut blocks);
    let backwards = saved.iter().rev().copied().collect();
    vec![[halves.1, halves.0].concat(), blocks.concat(), backwards, halves.1.to_vec()]
}

/// Bytes written beyond a state, at most.
const ENDLESS_BYTES: usize = 64 << 20;

fn endless(bench: &mut Bench) -> Outcome {
    bench.restoring(|bench, saved| {
        let mut data = bench.subject.begin(State::Resuming)?;
        success("a write of the device's own state", data.load_saved(saved)?)?;
        let zeros = vec![0; CHUNK];
        let mut written = 0;
        while written < ENDLESS_BYTES {
            match data.write(&zeros)? {
                Ok(count) if count > 0 => written += count,
                _ => break,
            }
        }
        Ok(())
    })
}
