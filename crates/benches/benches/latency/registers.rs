//! Accesses to registers of 4 bytes.

use std::time::{Duration, Instant};

use whimbrel_models::accel::REGISTER_INTERRUPT_ENABLE;
use whimbrel_user::Device;
use whimbrel_vfio_user::message::Request;
use whimbrel_vfio_user::{Client, ClientOptions, Reconnect};

use crate::devices::NULL;
use crate::peer::{Build, Peer};
use crate::rounds::{Subject, alternate};
use crate::wire::{Wire, message, register};

const ROUNDS: usize = 25;
/// Round trips in one turn.
const TRIPS: usize = 4000;
/// Posted writes in one turn.
const POSTED: usize = 40_000;
/// A register of a serial port that reads as it was written.
const MODEM_CONTROL: u64 = 4;

/// The bytes of an access without its data, and with it.
const SHORT: usize = 32;
const LONG: usize = 36;

/// The servers, and a register of each that can be read and written without an effect.
fn servers() -> Vec<(String, Wire, u64)> {
    let mut servers = Vec::new();
    for build in Build::all() {
        servers.push((build.name("null"), Wire::new(build.device(NULL)), 0));
        servers.push((build.name("serial"), Wire::new(build.model("serial")), MODEM_CONTROL));
        servers.push((build.name("accel"), Wire::new(build.model("accel")), REGISTER_INTERRUPT_ENABLE));
        let confined = Wire::new(build.confined("serial"));
        servers.push((build.name("serial, confined"), confined, MODEM_CONTROL));
    }
    if let Some(peer) = Peer::libvfio_user() {
        servers.push(("libvfio-user".into(), Wire::new(peer), 0));
    }
    servers
}

fn microseconds(mut trip: impl FnMut()) -> f64 {
    let before = Instant::now();
    (0..TRIPS).for_each(|_| trip());
    before.elapsed().as_secs_f64() * 1e6 / TRIPS as f64
}

pub(crate) fn round_trips() {
    for (name, sent, received) in [("read", SHORT, LONG), ("write", LONG, SHORT)] {
        let mut bare = Wire::bare(Peer::bare(sent, received));
        let mut servers = servers();
        let question = vec![1; sent];
        let mut clients =
            [("our client", false), ("our client, which reconnects", true)].map(|(name, reconnects)| {
                let peer = Build::all().remove(0).model("serial");
                let options = ClientOptions::default();
                let options = if reconnects {
                    options.reconnect(Reconnect::within(Duration::from_secs(10)))
                } else {
                    options
                };
                (name, Client::connect(peer.path(), &options).unwrap(), peer)
            });
        let mut subjects = vec![Subject::new("bare", || microseconds(|| bare.ask(&question, received)))];
        for (server, wire, offset) in &mut servers {
            let access = register(*offset);
            let request = match name {
                "read" => message(false, &Request::RegionRead(access)),
                _ => message(false, &Request::RegionWrite(access, &[0; 4])),
            };
            assert_eq!(request.len(), sent);
            subjects
                .push(Subject::new(server.as_str(), move || microseconds(|| wire.ask(&request, received))));
        }
        for (client, device, _) in &mut clients {
            subjects.push(Subject::new(*client, move || {
                microseconds(|| {
                    let mut data = [0; 4];
                    match name {
                        "read" => device.read_region(0, MODEM_CONTROL, &mut data),
                        _ => device.write_region(0, MODEM_CONTROL, &data),
                    }
                    .unwrap();
                })
            }));
        }
        println!("{name} of 4 bytes, {sent} and {received} bytes on the wire");
        alternate(ROUNDS, subjects).print("us", "bare");
    }
}

pub(crate) fn posted_writes() {
    let mut bare = Wire::bare(Peer::bare(LONG, SHORT));
    let mut servers = servers();
    let question = vec![1; LONG];
    let mut subjects =
        vec![Subject::new("bare round trips", || 1e3 / microseconds(|| bare.ask(&question, SHORT)))];
    for (server, wire, offset) in &mut servers {
        let write = Request::RegionWrite(register(*offset), &[0; 4]);
        let (posted, last) = (message(true, &write), message(false, &write));
        subjects.push(Subject::new(server.as_str(), move || {
            let before = Instant::now();
            wire.post(&posted, POSTED - 1);
            // All before it were executed when this one is answered.
            wire.ask(&last, SHORT);
            POSTED as f64 / before.elapsed().as_secs_f64() / 1e3
        }));
    }
    println!("posted writes of 4 bytes, one a system call");
    alternate(ROUNDS, subjects).print("thousand/s", "bare round trips");
}
