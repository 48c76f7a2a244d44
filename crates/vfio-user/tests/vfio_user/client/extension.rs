//! What client and server agree on beyond the text makes a device behind a socket one like the others, and
//! what they do not agree on leaves the protocol as it is.

use whimbrel_user::{
    DataFile, Device, Errno, Error, Local, Migratable, MigrationFlags, PrecopyReport, SavingRead, State,
};
use whimbrel_vfio_user::{Backend, Client, ClientOptions, MigrationExtensions};

use super::live::moves;
use super::support::Served;
use crate::source_device::{self, PRODUCE, REINIT, TRAILER};

const NONE: MigrationExtensions = MigrationExtensions::NONE;

fn options(extensions: Option<MigrationExtensions>) -> ClientOptions {
    let capabilities = Client::capabilities().migration_extensions(extensions);
    ClientOptions::default().capabilities(capabilities)
}

/// A client of a device whose state is told to it.
fn source(extensions: Option<MigrationExtensions>) -> Client {
    let (server, stream) = std::os::unix::net::UnixStream::pair().unwrap();
    let backend = Backend::new(source_device::open("source"));
    std::thread::spawn(move || backend.serve(server));
    Client::new("source", stream, &options(extensions)).unwrap()
}

fn produce(device: &mut dyn Device, register: u64, count: u32) {
    device.write_region(0, register, &count.to_ne_bytes()).unwrap();
}

/// What a read tells, and what it gave.
fn read(data: &mut DataFile) -> Result<(SavingRead, Vec<u8>), String> {
    let mut buffer = vec![0; 1000];
    let read = data.read(&mut buffer).map_err(without_request)?;
    if let SavingRead::Data(count) = read {
        buffer.truncate(count);
    }
    Ok((read, buffer))
}

fn without_request(error: Error) -> String {
    format!("{:?}", error.errno())
}

fn told(report: Result<PrecopyReport, Error>) -> Result<PrecopyReport, String> {
    report.map_err(without_request)
}

/// Everything that a device tells of its state on the way to STOP_COPY.
fn told_on_the_way(device: &mut dyn Device) -> Vec<String> {
    let mut all = Vec::new();
    let mut tell = |what: &dyn std::fmt::Debug| all.push(format!("{what:?}"));
    produce(device, PRODUCE, 300);
    tell(&device.data_size().unwrap());
    let mut data = device.set_state(State::PreCopy).unwrap().unwrap();
    tell(&told(data.precopy_info()));
    produce(device, REINIT, 70);
    tell(&told(data.precopy_info()));
    tell(&device.enable_precopy_info_v2().unwrap());
    produce(device, REINIT, 150);
    produce(device, PRODUCE, 20);
    tell(&told(data.precopy_info()));
    tell(&told(data.precopy_info()));
    let mut state = Vec::new();
    for _ in 0..4 {
        // In however many pieces, up to the end for now.
        while let (SavingRead::Data(_), bytes) = read(&mut data).unwrap() {
            state.extend_from_slice(&bytes);
        }
        tell(&state);
        tell(&told(data.precopy_info()));
        produce(device, PRODUCE, 10);
    }
    tell(&device.set_state(State::PreCopyP2p).unwrap().is_some());
    tell(&told(data.precopy_info()));
    tell(&device.set_state(State::StopCopy).unwrap().is_some());
    tell(&told(data.precopy_info()));
    while let (SavingRead::Data(_), bytes) = read(&mut data).unwrap() {
        state.extend_from_slice(&bytes);
    }
    assert!(state.ends_with(TRAILER));
    tell(&state);
    tell(&read(&mut data).unwrap().0);
    device.set_state(State::Stop).unwrap();
    tell(&read(&mut data));
    tell(&told(data.precopy_info()));
    all
}

#[test]
fn a_device_with_ends_for_now_and_new_initial_data_is_as_the_device_itself() {
    let here = told_on_the_way(&mut Local::new(source_device::open("source")));
    for extensions in [
        MigrationExtensions::ALL,
        MigrationExtensions::ALL.data_channel(false),
        MigrationExtensions::ALL.read_end(false),
        MigrationExtensions::ALL.read_end(false).data_channel(false),
    ] {
        assert_eq!(told_on_the_way(&mut source(Some(extensions))), here, "{extensions:?}");
    }
}

#[test]
fn what_was_not_agreed_on_is_not_asked_for() {
    for extensions in [None, Some(NONE)] {
        let mut device = source(extensions);
        assert_eq!(device.agreed().extensions(), NONE);
        let flags = device.migration_flags().unwrap().unwrap();
        assert_eq!(flags, MigrationFlags::STOP_COPY | MigrationFlags::PRE_COPY);
        for state in [State::RunningP2p, State::PreCopyP2p] {
            let error = device.set_state(state).unwrap_err();
            assert_eq!(error.errno(), Some(Errno::EINVAL), "{error}");
        }
        assert_eq!(device.data_size().unwrap_err().errno(), Some(Errno::ENOTTY));
        assert!(!device.enable_precopy_info_v2().unwrap());
        produce(&mut device, PRODUCE, 300);
        let mut data = device.set_state(State::PreCopy).unwrap().unwrap();
        assert_eq!(data.precopy_info().unwrap(), PrecopyReport::default(), "it can tell nothing");
        let (read, bytes) = read(&mut data).unwrap();
        assert_eq!((read, bytes.len()), (SavingRead::Data(300), 300));
        // What the protocol does not tell, the client knows by the state that it has set.
        let errno = |error: Error| error.errno().unwrap();
        assert_eq!(data.file_mut().read(&mut [0; 8]), Err(Errno::ENOMSG), "the temporary end");
        assert_eq!(data.file_mut().read(&mut []), Ok(0));
        assert!(device.set_state(State::StopCopy).unwrap().is_none());
        assert_eq!(data.precopy_info().map_err(errno), Err(Errno::EINVAL), "in STOP_COPY");
        while data.file_mut().read(&mut [0; 1000]).unwrap() > 0 {}
        assert_eq!(data.file_mut().read(&mut [0; 8]), Ok(0), "the end");
        device.set_state(State::Stop).unwrap();
        assert_eq!(data.precopy_info().map_err(errno), Err(Errno::EINVAL), "in STOP");
        let mut data = device.set_state(State::Resuming).unwrap().unwrap();
        assert_eq!(data.precopy_info().map_err(errno), Err(Errno::ENOTTY), "in RESUMING");
    }
}

#[test]
fn the_size_stands_in_for_the_counts_where_it_alone_is_known() {
    for data_channel in [false, true] {
        let mut device = source(Some(NONE.data_size(true).data_channel(data_channel)));
        produce(&mut device, PRODUCE, 300);
        let mut data = device.set_state(State::PreCopy).unwrap().unwrap();
        let bytes = data.precopy_info().unwrap().bytes;
        assert_eq!((bytes.initial, bytes.dirty), (0, 300 + TRAILER.len() as u64));
    }
}

#[test]
fn a_file_of_a_session_that_is_over_says_so() {
    for data_channel in [false, true] {
        let extensions = MigrationExtensions::ALL.data_channel(data_channel);
        let mut device = source(Some(extensions));
        let mut first = device.set_state(State::PreCopy).unwrap().unwrap();
        let mut second = device.set_state(State::Resuming).unwrap().unwrap();
        let gone = Err("Some(ENODEV)".to_string());
        assert_eq!(read(&mut first).map(|_| ()), gone, "the next has begun");
        second.write_all(b"state").unwrap();
        device.reset().unwrap();
        assert_eq!(second.write_all(b"state").map_err(without_request), gone, "the device was reset");
    }
}

#[test]
fn the_end_of_the_client_and_of_its_files_comes_in_any_order() {
    for drops_device_first in [true, false] {
        let mut served = Served::with("accel?state=64KiB", &ClientOptions::default());
        let mut data = served.client().set_state(State::StopCopy).unwrap().unwrap();
        assert!(matches!(read(&mut data).unwrap().0, SavingRead::Data(_)));
        if drops_device_first {
            served.client = None;
            let _ = read(&mut data);
        }
        drop(data);
        drop(served);
    }
}

#[test]
fn a_working_device_moves_with_the_extension_without_it_and_from_one_to_the_other() {
    let all = || options(Some(MigrationExtensions::ALL));
    let in_messages = || options(Some(MigrationExtensions::ALL.data_channel(false)));
    let plain = || options(None);
    for (from, to) in
        [(all(), all()), (plain(), plain()), (all(), plain()), (plain(), all()), (in_messages(), all())]
    {
        moves(&from, &to, true);
    }
}
