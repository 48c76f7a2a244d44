//! A process that may have few descriptors: what a client can take of them, and what is left for the next.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use whimbrel_device::Errno;
use whimbrel_models::Model;
use whimbrel_uapi::type1::DmaMapFlags;
use whimbrel_vfio_user::message::{
    Command, DmaAccessModes, DmaMap, HEADER, Kind, Limits, MessageBuffer, Request, Version,
};
use whimbrel_vfio_user::{Backend, Receiver, Sender, Server, connection};

const PAGE: u64 = 4096;
const LIMIT: u64 = 256;

struct Peer {
    receiver: Receiver,
    sender: Sender,
}

impl Peer {
    fn connect(path: &std::path::Path) -> Peer {
        let (receiver, sender) = connection(UnixStream::connect(path).unwrap(), Limits::default());
        Peer { receiver, sender }
    }

    fn ask(&mut self, request: &Request<'_>, fd: Option<&OwnedFd>) -> Result<(), Errno> {
        let mut out = MessageBuffer::new();
        out.request(1, false, request);
        let fds: Vec<_> = fd.into_iter().map(AsFd::as_fd).collect();
        self.sender.send(out.as_bytes(), &fds).unwrap();
        let answer = self.receiver.receive().unwrap().expect("an answer");
        match answer.header.kind {
            Kind::Error(errno) => Err(Errno::try_from(errno).unwrap_or(Errno::EIO)),
            _ => Ok(()),
        }
    }

    fn agree(&mut self) -> Result<(), Errno> {
        let capabilities = Backend::capabilities().twin_socket(None);
        self.ask(&Request::Version(Version::proposal(capabilities)), None)
    }

    /// Maps a file of its own, and keeps no descriptor of it.
    fn map(&mut self, iova: u64) -> Result<(), Errno> {
        let file = memfd_create("limit", MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&file, PAGE).unwrap();
        let rights = DmaMapFlags::READ | DmaMapFlags::WRITE;
        let map = DmaMap { rights, modes: DmaAccessModes::empty(), offset: 0, iova, size: PAGE };
        self.ask(&Request::DmaMap(map), Some(&file))
    }
}

pub(crate) fn a_client_that_gives_all_the_descriptors_it_can_leaves_enough_for_the_next() {
    let before = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(LIMIT), ..before }).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let model = "serial".parse::<Model>().unwrap().open("serial 0").unwrap();
    let server = Server::bind(folder.path().join("socket"), Backend::new(model)).unwrap();
    let (path, stopper) = (server.path().to_owned(), server.stopper());
    let serving = std::thread::spawn(move || server.run());

    let mut greedy = Peer::connect(&path);
    greedy.agree().unwrap();
    let mut mapped = 0;
    let errno = loop {
        match greedy.map(mapped * PAGE) {
            Ok(()) => mapped += 1,
            Err(errno) => break errno,
        }
    };
    assert_eq!(errno, Errno::EMFILE);
    assert!((LIMIT / 4..LIMIT - 64).contains(&mapped), "{mapped}");
    // It goes on with what it has, and another is accepted, to be told that the device is busy.
    greedy.ask(&Request::DeviceReset, None).unwrap();
    assert_eq!(Peer::connect(&path).agree(), Err(Errno::EBUSY));
    greedy.ask(&Request::DmaUnmap(whimbrel_vfio_user::message::DmaUnmap::All), None).unwrap();
    greedy.map(0).unwrap();
    drop(greedy);

    // Now this process itself takes all there are.
    let mut next = Peer::connect(&path);
    next.agree().unwrap();
    let mut taken = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        taken.push(file);
    }
    // One for the connection's end here, and none for that of the server.
    taken.pop();
    let late = UnixStream::connect(&path).unwrap();
    let mut out = MessageBuffer::new();
    out.request(1, false, &Request::Version(Version::proposal(Backend::capabilities())));
    rustix::io::write(&late, out.as_bytes()).unwrap();
    let mut header = [0; HEADER];
    std::io::Read::read_exact(&mut &late, &mut header).unwrap();
    let told = whimbrel_vfio_user::message::Header::parse(header, Limits::default()).unwrap();
    assert_eq!(told.command, Command::Version.number());
    assert_eq!(
        told.kind,
        Kind::Error(Errno::EMFILE.raw_os_error().cast_unsigned()),
        "there was one descriptor left to say it"
    );
    drop(taken);
    next.map(0).unwrap();
    drop(next);
    stopper.stop();
    serving.join().unwrap().unwrap();
}
