//! Tests of the choice that both sides make of an offer.

use super::*;

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(ToString::to_string).collect()
}

fn offer(versions: &[u32], features: &[&str], needs: &[&str]) -> Offer {
    Offer {
        migration: format!("{:032x}", 7),
        versions: versions.to_vec(),
        features: set(features),
        needs: set(needs),
        channels: None,
        reconnect_ms: None,
    }
}

fn accept(version: u32, features: &[&str]) -> Accept {
    Accept { version, features: set(features), ..Accept::new(&BTreeSet::new()) }
}

#[test]
fn a_newer_source_and_this_release_use_what_both_have() {
    let ours = BTreeSet::from(Feature::ALL);
    let newer = offer(&[2, 3], &["colours", "setup", "ping"], &["setup"]);
    assert_eq!(choose(&newer, &ours), Ok(BTreeSet::from([Feature::Setup, Feature::Ping])));
}

#[test]
fn a_feature_is_found_however_many_unknown_ones_are_offered() {
    let mut many = offer(&[2], &["ping"], &["ping"]);
    many.features.extend((0..1000).map(|number| format!("a{number}")));
    assert_eq!(choose(&many, &BTreeSet::from(Feature::ALL)), Ok(BTreeSet::from([Feature::Ping])));
}

#[test]
fn compression_is_offered_if_it_is_wanted() {
    let all = BTreeSet::from(Feature::ALL);
    let offered = Offer::new(7, &all, &BTreeSet::new());
    assert!(!offered.clone().with_compression(false).features.contains("zstd"));
    assert!(offered.with_compression(true).features.contains("zstd"));
    let plain = Offer::new(7, &BTreeSet::new(), &BTreeSet::new());
    assert!(plain.with_compression(true).features.contains("zstd"));
    assert!(!Offer::for_check(7, &all, &BTreeSet::new()).features.contains("zstd"), "no data is sent");
}

#[test]
fn an_older_destination_is_used_as_far_as_it_goes() {
    let offered = Offer::new(7, &BTreeSet::from(Feature::ALL), &BTreeSet::new());
    let fewer = accept(2, &["ping"]);
    assert_eq!(check(&offered, &fewer), Ok(BTreeSet::from([Feature::Ping])));
}

/// Returns the answer of a destination of a later release, which supports more versions and features.
fn newer_destination(offer: &Offer) -> Accept {
    let version = *offer.versions.iter().filter(|version| (2..=4).contains(*version)).max().unwrap();
    let mut has = names(&BTreeSet::from(Feature::ALL));
    has.extend(set(&["colours", "smells"]));
    let features = offer.features.intersection(&has).cloned().collect();
    Accept { version, features, ..Accept::new(&BTreeSet::new()) }
}

#[test]
fn this_release_and_a_newer_destination_use_what_both_have() {
    for features in subsets() {
        let offered = Offer::new(7, &features, &features);
        let accept = newer_destination(&offered);
        assert_eq!(accept.version, VERSION);
        assert_eq!(check(&offered, &accept), Ok(features));
    }
}

fn subsets() -> impl Iterator<Item = BTreeSet<Feature>> {
    (0..1 << Feature::ALL.len()).map(|bits: u32| {
        let is_in = |index: &usize| bits >> index & 1 == 1;
        (0..Feature::ALL.len()).filter(is_in).map(|index| Feature::ALL[index]).collect()
    })
}

#[test]
fn whatever_each_side_has_both_use_the_same_or_name_what_is_missing() {
    for theirs in subsets() {
        for ours in subsets() {
            for needs in subsets().filter(|needs| needs.is_subset(&theirs)) {
                let offered = Offer::new(7, &theirs, &needs);
                match choose(&offered, &ours) {
                    Ok(used) => {
                        assert_eq!(used, theirs.intersection(&ours).copied().collect());
                        let accept = Accept::new(&used);
                        assert_eq!(check(&offered, &accept), Ok(used));
                    }
                    Err(Refusal::MissingFeature { feature }) => {
                        let missing = Feature::from_name(&feature).unwrap();
                        assert!(needs.contains(&missing) && !ours.contains(&missing));
                    }
                    Err(other) => panic!("{other}"),
                }
            }
        }
    }
}

#[test]
fn what_cannot_be_agreed_on_is_refused_by_name() {
    let ours = BTreeSet::from([Feature::Ping]);
    let cases = [
        (offer(&[3, 4], &[], &[]), "the source speaks 3, 4, the destination 2"),
        (offer(&[], &[], &[]), "the source speaks none"),
        (offer(&[2], &["blobs"], &["blobs"]), "needs the feature 'blobs'"),
        (offer(&[2], &[], &["colours\u{1b}"]), "needs the feature 'colours '"),
        (Offer { migration: "7".into(), ..offer(&[2], &[], &[]) }, "malformed migration id"),
    ];
    for (offer, why) in cases {
        let error = choose(&offer, &ours).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn a_choice_that_was_not_offered_is_refused() {
    let offered =
        Offer::new(7, &BTreeSet::from([Feature::Ping, Feature::Setup]), &BTreeSet::from([Feature::Setup]));
    let cases = [
        (accept(1, &["setup"]), "version 1"),
        (accept(2, &["setup", "blobs"]), "feature 'blobs'"),
        (accept(2, &["ping"]), "needs the feature 'setup'"),
    ];
    for (accept, why) in cases {
        let error = check(&offered, &accept).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn both_wait_for_a_lost_connection_as_long_as_the_more_impatient_one() {
    let resume = BTreeSet::from([Feature::Resume]);
    let seconds = Duration::from_secs;
    let offered = |within| Offer::new(7, &BTreeSet::new(), &BTreeSet::new()).with_reconnect(seconds(within));
    assert_eq!(offered(0), Offer::new(7, &BTreeSet::new(), &BTreeSet::new()), "nothing is offered");
    for (tries, waits, used) in [(9, 4, Some(4000)), (3, 4, Some(3000)), (9, 0, None), (0, 9, None)] {
        assert_eq!(reconnect_ms(&offered(tries), &resume, seconds(waits)), used);
        assert_eq!(reconnect_ms(&offered(tries), &BTreeSet::new(), seconds(waits)), None);
    }
    let secret = Secret::new([7; 32]);
    let answer = |reconnect_ms, secret| Accept { secret, reconnect_ms, ..Accept::new(&resume) };
    let good = answer(Some(8000), Some(secret));
    assert_eq!(check(&offered(9), &good), Ok(resume.clone()));
    assert_eq!(good.resumable(), Some(Resumable { secret, within: seconds(8) }));
    assert_eq!(answer(None, Some(secret)).resumable(), None);
    for (accept, why) in [
        (answer(Some(9001), Some(secret)), "the destination chose 9001 ms for a lost connection"),
        (answer(Some(1), None), "gave no secret"),
        (Accept { reconnect_ms: Some(1), ..Accept::new(&BTreeSet::new()) }, "chose 1 ms"),
    ] {
        let error = check(&offered(9), &accept).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn both_use_the_connections_that_are_offered_and_allowed() {
    let lanes = BTreeSet::from([Feature::Lanes]);
    let offered = |count| Offer::new(7, &BTreeSet::new(), &BTreeSet::new()).with_channels(count);
    assert_eq!(offered(1), Offer::new(7, &BTreeSet::new(), &BTreeSet::new()), "nothing is offered");
    for (count, most, used) in [(4, 16, 4), (4, 2, 2), (4, 0, 1), (u32::MAX, u32::MAX, MAX_CHANNELS)] {
        assert_eq!(channels(&offered(count), &lanes, most), used);
        assert_eq!(channels(&offered(count), &BTreeSet::new(), most), 1, "without the feature");
    }
    assert_eq!(channels(&offered(1), &lanes, 16), 1);
    let answer = |channels, secret| Accept { channels, secret, ..Accept::new(&lanes) };
    let secret = Some(Secret::new([7; 32]));
    assert_eq!(check(&offered(4), &answer(Some(4), secret)), Ok(lanes.clone()));
    assert_eq!(check(&offered(4), &answer(Some(1), None)), Ok(lanes.clone()));
    for (accept, why) in [
        (answer(Some(5), secret), "the destination chose 5 connections"),
        (answer(Some(0), secret), "the destination chose 0 connections"),
        (answer(Some(2), None), "gave no secret"),
        (Accept { channels: Some(2), secret, ..Accept::new(&BTreeSet::new()) }, "chose 2 connections"),
    ] {
        let error = check(&offered(4), &accept).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
}
