//! Seeds of trials: a failure names the one that repeats it.

use std::env;

/// Whether the trials are many: they then take minutes.
pub(crate) fn is_long() -> bool {
    env::var_os("WHIMBREL_LONG").is_some()
}

/// Runs trials, each with a seed of its own: `few`, or `many` where they may take long; or the one that
/// `WHIMBREL_SEED` names.
pub(crate) fn trials(
    test: &'static str,
    few: u64,
    many: u64,
    mut trial: impl FnMut(u64, &mut fastrand::Rng),
) {
    let given = env::var("WHIMBREL_SEED").ok().map(|seed| seed.parse::<u64>().expect("a seed is a number"));
    let (first, count) = match given {
        Some(seed) => (seed, 1),
        None => (u64::from(fastrand::u32(..)) << 16, if is_long() { many } else { few }),
    };
    eprintln!("{test}: {count} seeds from {first}");
    for seed in first..first + count {
        let named = Named { test, seed };
        trial(seed, &mut fastrand::Rng::with_seed(seed));
        drop(named);
    }
}

/// Names the seed of a trial that fails.
struct Named {
    test: &'static str,
    seed: u64,
}

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Named { test, seed } = self;
            eprintln!(
                "to repeat: WHIMBREL_SEED={seed} cargo test -p whimbrel --test processes -- {test} --include-ignored"
            );
        }
    }
}
