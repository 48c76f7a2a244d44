//! A server that has no descriptors left.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use whimbrel_models::Model;
use whimbrel_user::{Migratable, SavingRead, State};
use whimbrel_vfio_user::{Backend, Client, ClientOptions};

/// Leaves this process no number for another descriptor while `run` does.
fn without_descriptors<T>(run: impl FnOnce() -> T) -> T {
    let before = getrlimit(Resource::Nofile);
    let first_free = std::fs::File::open("/dev/null").unwrap().as_raw_fd();
    let none = Rlimit { current: Some(first_free.cast_unsigned().into()), ..before };
    setrlimit(Resource::Nofile, none).unwrap();
    let result = run();
    setrlimit(Resource::Nofile, before).unwrap();
    result
}

pub(crate) fn a_session_goes_with_the_commands_and_the_next_has_its_socket_again() {
    let model = "accel?state=1MiB".parse::<Model>().unwrap().open("accel 0").unwrap();
    let backend = Backend::new(model);
    let (server, stream) = UnixStream::pair().unwrap();
    let serving = std::thread::spawn(move || backend.serve(server));
    let mut client = Client::new("accel", stream, &ClientOptions::default()).unwrap();
    assert!(client.agreed().extensions().data_channel);

    // By the next reply the server has closed what it has sent with the last one.
    let open = |client: &mut Client| {
        client.state().unwrap();
        std::fs::read_dir("/proc/self/fd").unwrap().count()
    };
    let before = open(&mut client);
    let mut data = without_descriptors(|| client.set_state(State::StopCopy).unwrap().unwrap());
    assert_eq!(open(&mut client), before, "the session has no socket");
    let mut buffer = [0; 4096];
    assert!(matches!(data.read(&mut buffer).unwrap(), SavingRead::Data(_)));
    drop(data);
    client.set_state(State::Stop).unwrap();

    let mut data = client.set_state(State::StopCopy).unwrap().unwrap();
    assert_eq!(open(&mut client), before + 2, "both ends of its socket are here");
    assert!(matches!(data.read(&mut buffer).unwrap(), SavingRead::Data(_)));
    drop(data);
    drop(client);
    serving.join().unwrap().unwrap();
}
