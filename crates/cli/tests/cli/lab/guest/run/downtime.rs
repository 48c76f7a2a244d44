//! How long QEMU stops a guest to migrate it, as it says itself (`docs/performance.md` has the command).

use super::work::{Work, listen};
use super::{Way, has_v1};

/// Migrations of each kind: one, for a look, unless `WHIMBREL_TRIALS` has a number. Each takes some ten seconds.
fn trials() -> usize {
    std::env::var("WHIMBREL_TRIALS").map_or(1, |trials| trials.parse().expect("WHIMBREL_TRIALS is a number"))
}

const BY_V2: [&str; 4] =
    ["serial?ports=2", "accel?state=1MiB", "accel?state=64MiB", "accel?state=64MiB&rate=16MiB"];
const BY_V1: [&str; 2] = ["legacy?state=64KiB", "legacy?state=1MiB"];

#[test]
#[ignore = "long"]
fn a_guest_stops_for_a_while() {
    for way in [Way::Group, Way::Iommufd, Way::System] {
        if way.is_v1() && !has_v1() {
            continue;
        }
        let models = if way.is_v1() { &BY_V1[..] } else { &BY_V2 };
        for model in models {
            for idle in [true, false] {
                let work = Work::new(way, &[model]);
                let work = if idle { work.idle() } else { work };
                let mut downtimes = Vec::new();
                for _ in 0..trials() {
                    let Some((mut source, mut destination)) = work.pair() else { return };
                    let uri = listen(&mut destination);
                    source.execute("migrate", &uri);
                    let told = work.arrives(&mut source, &mut destination);
                    downtimes.push(told["downtime"].as_u64().unwrap());
                }
                downtimes.sort_unstable();
                let state = if idle { "idle" } else { "at work" };
                println!("{way:?} {model} {state}: {} ms, of {downtimes:?}", downtimes[downtimes.len() / 2]);
            }
        }
    }
}
