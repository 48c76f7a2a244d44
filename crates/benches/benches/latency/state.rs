//! A device's state by MIG_DATA_WRITE: the transport alone, with a copy into fresh memory, and into accel.

use std::time::Instant;

use whimbrel_device::State;
use whimbrel_vfio_user::message::Request;

use crate::devices::{COPYING, NULL, STATE};
use crate::loading::stream;
use crate::peer::{Build, Peer};
use crate::rounds::{Subject, alternate};
use crate::wire::{Wire, message};

const ROUNDS: usize = 15;
/// The reply: a header.
const REPLY: usize = 16;
/// The bytes before the data of a message.
const HEAD: usize = 24;

pub(crate) fn run() {
    let stream = stream();
    for size in [32 << 10, 128 << 10] {
        let messages: Vec<Vec<u8>> =
            stream.chunks(size).map(|data| message(false, &Request::MigDataWrite { data })).collect();
        let mut answered = Wire::bare(Peer::bare(size + HEAD, REPLY));
        let mut copied = Wire::bare(Peer::copying(size + HEAD, REPLY, STATE));
        // All take whole messages from the same memory, which is not in the cache.
        let (_, whole) = messages.split_last().unwrap();
        let bare = |wire: &mut Wire| {
            let before = Instant::now();
            for message in whole {
                wire.ask(message, REPLY);
            }
            (whole.len() * size) as f64 / before.elapsed().as_secs_f64() / 1e9
        };
        let mut servers = Vec::new();
        for build in Build::all() {
            servers.push((build.name("a null model"), Wire::new(build.device(NULL))));
            servers.push((build.name("a model that copies"), Wire::new(build.device(COPYING))));
            servers.push((build.name("accel"), Wire::new(build.model("accel"))));
        }
        let mut subjects = vec![
            Subject::new("bare, dropped", || bare(&mut answered)),
            Subject::new("bare, copied into fresh memory", || bare(&mut copied)),
        ];
        for (name, wire) in &mut servers {
            subjects.push(Subject::new(name.as_str(), || {
                wire.set_state(State::Resuming);
                let before = Instant::now();
                for message in &messages {
                    wire.ask(message, REPLY);
                }
                let elapsed = before.elapsed().as_secs_f64();
                // It fails if the state is not valid.
                wire.set_state(State::Stop);
                stream.len() as f64 / elapsed / 1e9
            }));
        }
        println!("MIG_DATA_WRITE of {} KiB, {} MiB of state", size >> 10, stream.len() >> 20);
        alternate(ROUNDS, subjects).print("GB/s", "bare, copied into fresh memory");
    }
}
