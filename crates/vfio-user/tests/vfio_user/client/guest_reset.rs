//! A guest that resets its served device: what the server says of that, and what becomes of a migration under way.

use std::os::unix::net::UnixStream;

use whimbrel_engine::channel::Stream;
use whimbrel_engine::{Destination, Error, Outcome, Phase, Progress, Source, SourceOptions};
use whimbrel_models::accel;
use whimbrel_user::{DataFile, Device, Errno, Migratable, ResetRule, SavingRead, State};
use whimbrel_vfio_user::{Client, ClientOptions, MigrationExtensions};

use super::support::Served;

const MODEL: &str = "accel?state=64KiB";
const BAR: u32 = 0;

/// Clients with all extensions, with each of those that carry the state alone, and with none.
fn all_options() -> Vec<ClientOptions> {
    let none = MigrationExtensions::NONE.reset_rule(true);
    let some = [
        Some(MigrationExtensions::ALL),
        Some(MigrationExtensions::ALL.data_channel(false)),
        Some(none.data_channel(true).read_end(true)),
        None,
    ];
    some.map(|extensions| {
        let capabilities = Client::capabilities().migration_extensions(extensions);
        ClientOptions::default().capabilities(capabilities)
    })
    .to_vec()
}

/// Leaves a trace in the registers, which a reset removes.
fn mark(client: &mut Client) {
    client.write_region(BAR, accel::REGISTER_QUEUE_SIZE, &16u32.to_le_bytes()).unwrap();
}

fn is_marked(client: &mut Client) -> bool {
    let mut size = [0; 4];
    client.read_region(BAR, accel::REGISTER_QUEUE_SIZE, &mut size).unwrap();
    u32::from_le_bytes(size) == 16
}

fn read_all(data: &mut DataFile) -> Vec<u8> {
    let (mut stream, mut buffer) = (Vec::new(), vec![0; 5000]);
    while let SavingRead::Data(count) = data.read(&mut buffer).unwrap() {
        stream.extend_from_slice(&buffer[..count]);
    }
    stream
}

#[test]
fn a_client_that_asks_is_told_the_rule_of_its_server() {
    for rule in ResetRule::ALL {
        for model in [MODEL, "serial"] {
            let mut served = Served::by_rule(model, rule, &ClientOptions::default());
            assert_eq!(served.client().reset_rule(), Some(rule), "{model}");
        }
        let extensions = Some(MigrationExtensions::ALL.reset_rule(false));
        let capabilities = Client::capabilities().migration_extensions(extensions);
        let options = ClientOptions::default().capabilities(capabilities);
        assert_eq!(Served::by_rule(MODEL, rule, &options).client().reset_rule(), None);
    }
    // A region has a rule of its own, of which the server knows nothing.
    let mut legacy = Served::by_rule("legacy", ResetRule::KeepsPrecopy, &ClientOptions::default());
    assert_eq!(legacy.client().reset_rule(), None);
}

#[test]
fn a_guests_reset_in_precopy_ends_the_session_or_keeps_it_with_every_way_of_the_state() {
    for rule in ResetRule::ALL {
        for options in all_options() {
            let what = format!("{rule:?}, {:?}", options.capabilities.migration_extensions);
            let mut served = Served::by_rule(MODEL, rule, &options);
            let client = served.client();
            mark(client);
            assert!(client.migration_flags().unwrap().is_some());
            let mut data = client.set_state(State::PreCopy).unwrap().unwrap();
            let mut first = vec![0; 1000];
            assert!(matches!(data.read(&mut first).unwrap(), SavingRead::Data(1000)), "{what}");
            client.reset_for_guest().unwrap();
            assert!(!is_marked(client), "{what}");
            if rule == ResetRule::EndsMigration {
                assert_eq!(client.state().unwrap(), State::Running, "{what}");
                let ended = data.read(&mut first).unwrap_err();
                assert_eq!(ended.errno(), Some(Errno::ENODEV), "{what}: {ended}");
                continue;
            }
            assert_eq!(client.state().unwrap(), State::PreCopy, "{what}");
            let mut stream = [first, read_all(&mut data)].concat();
            assert!(client.set_state(State::StopCopy).unwrap().is_none(), "{what}: its session goes on");
            stream.extend(read_all(&mut data));
            let mut there = Served::new(MODEL);
            let mut incoming = there.client().set_state(State::Resuming).unwrap().unwrap();
            incoming.write_all(&stream).unwrap();
            there.client().set_state(State::Running).unwrap();
            assert!(!is_marked(there.client()), "{what}");
        }
    }
}

#[test]
fn a_users_reset_leads_to_running_and_ends_the_session_by_both_rules() {
    for rule in ResetRule::ALL {
        for options in all_options() {
            for from in [State::PreCopy, State::StopCopy, State::Stop, State::Resuming, State::Running] {
                let what = format!("{rule:?} in {from}, {:?}", options.capabilities.migration_extensions);
                let mut served = Served::by_rule(MODEL, rule, &options);
                let client = served.client();
                mark(client);
                assert!(client.migration_flags().unwrap().is_some());
                let data = client.set_state(from).unwrap();
                client.reset().unwrap();
                assert_eq!(client.state().unwrap(), State::Running, "{what}");
                assert!(!is_marked(client), "{what}");
                if let Some(mut data) = data.filter(|_| from != State::Resuming) {
                    let ended = data.read(&mut [0; 100]).unwrap_err();
                    assert_eq!(ended.errno(), Some(Errno::ENODEV), "{what}: {ended}");
                }
            }
        }
    }
}

#[test]
fn a_guests_reset_outside_of_precopy_follows_the_kernels_rule_by_both() {
    for rule in ResetRule::ALL {
        for from in [State::StopCopy, State::Stop, State::Running, State::RunningP2p] {
            let mut served = Served::by_rule(MODEL, rule, &ClientOptions::default());
            let client = served.client();
            assert!(client.migration_flags().unwrap().is_some());
            let data = client.set_state(from).unwrap();
            client.reset_for_guest().unwrap();
            assert_eq!(client.state().unwrap(), State::Running, "{rule:?} in {from}");
            if let Some(mut data) = data {
                assert_eq!(
                    data.read(&mut [0; 9]).unwrap_err().errno(),
                    Some(Errno::ENODEV),
                    "{rule:?} in {from}"
                );
            }
        }
    }
}

#[test]
fn a_migration_between_servers_survives_its_guests_reset_or_names_it() {
    for rule in ResetRule::ALL {
        for options in all_options() {
            let what = format!("{rule:?}, {:?}", options.capabilities.migration_extensions);
            let mut source = Served::by_rule("accel?state=1MiB&rate=1MiB", rule, &options);
            let mut destination = Served::new("accel?state=1MiB");
            mark(source.client());
            let (left, right) = UnixStream::pair().unwrap();
            let receiving = Destination::new(vec![Box::new(destination.client().clone())]);
            let receiver = std::thread::spawn(|| receiving.receive(Stream::from(right)));
            let guest = source.client().clone();
            let mut has_reset = false;
            let sent = Source::new(vec![Box::new(source.client().clone())])
                .options(SourceOptions::default().downtime_limit(std::time::Duration::from_mins(1)))
                .observer(move |progress: &Progress| {
                    if matches!(progress.phase, Phase::Round(_)) && !std::mem::replace(&mut has_reset, true) {
                        guest.reset_for_guest().unwrap();
                    }
                })
                .send(Stream::from(left))
                .result;
            let arrived = receiver.join().unwrap().result;
            let expected = match rule {
                ResetRule::EndsMigration => {
                    let error = sent.unwrap_err();
                    assert!(matches!(error.cause, Error::ResetMeanwhile { .. }), "{what}: {error}");
                    assert!(matches!(error.outcome, Outcome::RunsOn), "{what}: {error}");
                    assert!(arrived.unwrap_err().to_string().contains("it was reset meanwhile"), "{what}");
                    (State::Running, State::Running)
                }
                ResetRule::KeepsPrecopy => {
                    sent.unwrap_or_else(|error| panic!("{what}: {error}"));
                    arrived.unwrap();
                    assert!(
                        !is_marked(destination.client()),
                        "{what}: the state before the reset has arrived"
                    );
                    (State::Stop, State::Running)
                }
            };
            let states = (source.client().state().unwrap(), destination.client().state().unwrap());
            assert_eq!(states, expected, "{what}");
            if rule == ResetRule::EndsMigration {
                assert!(!is_marked(source.client()), "{what}");
            }
        }
    }
}
