//! The data fd: its end, waiting for it, the errnos of calls that it does not have, and its life after the session.

use std::fs::File;
use std::os::fd::BorrowedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, SeekFrom, fcntl_getfl, fcntl_setfl, seek};
use rustix::io::pread;
use whimbrel_memory::{FileOffset, Memory, Protection};
use whimbrel_protocol::{Errno, State};

use crate::bench::Bench;
use crate::case::{Case, Need};
use crate::data::{CHUNK, Data};
use crate::outcome::{Outcome, check, equal, fail, refused, skip, success};
use crate::section::precopy_info::ask;

const V2: &[Need] = &[Need::V2];

pub(crate) const CASES: &[Case] = &[
    Case::must(
        "v2/data-fd/readable-at-the-end",
        "Once in STOP_COPY the migration data FD has a permanent end of stream signaled in the usual way by read() always \
         returning 0 and poll always returning readable.",
        readable_at_the_end,
    ),
    Case::kernel(
        "v2/data-fd/wrong-direction",
        "A write to a saving data_fd and a read of a resuming one fail with EBADF (fs/read_write.c).",
        wrong_direction,
    )
    .needs(V2),
    Case::kernel(
        "v2/data-fd/no-position",
        "A data_fd is a stream: lseek() and pread() fail with ESPIPE (stream_open() in fs/open.c).",
        no_position,
    )
    .needs(V2),
    Case::kernel(
        "v2/data-fd/no-mapping",
        "A data_fd cannot be mapped: ENODEV (mm/mmap.c).",
        no_mapping,
    )
    .needs(V2),
    Case::kernel(
        "v2/data-fd/no-other-ioctl",
        "VFIO_MIG_GET_PRECOPY_INFO is the only ioctl of a data_fd: any other fails with ENOTTY (fs/ioctl.c).",
        no_other_ioctl,
    )
    .needs(V2),
    Case::kernel(
        "v2/data-fd/nonblocking",
        "With O_NONBLOCK a read gives data or an end, or fails with EAGAIN, and in the end all of the state has come \
         (mlx5vf_save_read() in drivers/vfio/pci/mlx5/main.c).",
        nonblocking,
    )
    .needs(V2),
    Case::kernel(
        "v2/data-fd/nonblocking-pre-copy",
        "With O_NONBLOCK a read in PRE_COPY gives data or the temporary end, or fails with EAGAIN, and after STOP_COPY all of \
         the state has come (mlx5vf_save_read() in drivers/vfio/pci/mlx5/main.c).",
        nonblocking_pre_copy,
    )
    .needs(&[Need::V2, Need::PreCopy]),
    Case::should(
        "v2/data-fd/readable-with-data",
        "Userspace can wait for more data (which may never come) by using poll.",
        readable_with_data,
    )
    .needs(&[Need::V2, Need::PreCopy]),
    Case::should(
        "v2/data-fd/readable-with-more-data",
        "Userspace can wait for more data (which may never come) by using poll.",
        readable_with_more_data,
    )
    .needs(&[Need::V2, Need::PreCopy, Need::Registers]),
    Case::kernel(
        "v2/data-fd/writable",
        "In RESUMING poll returns writable: a driver waits in write(), if at all (DEFAULT_POLLMASK in include/linux/poll.h).",
        writable,
    )
    .needs(V2),
    Case::robust(
        "v2/data-fd/empty-read",
        "A read of 0 bytes returns, and takes nothing from the stream.",
        empty_read,
    )
    .needs(V2),
    Case::robust(
        "v2/data-fd/empty-write",
        "A write of 0 bytes returns, and adds nothing to the stream.",
        empty_write,
    )
    .needs(V2),
    Case::kernel(
        "v2/data-fd/after-reset",
        "A reset ends the session: reads of its data_fd and writes to it fail with ENODEV (the data files in \
         drivers/vfio/pci).",
        after_reset,
    )
    .needs(V2)
    .resets(),
    Case::kernel(
        "v2/data-fd/after-close",
        "The close of the device ends the session: reads of its data_fd fail with ENODEV (the data files in \
         drivers/vfio/pci).",
        after_close,
    )
    .needs(V2),
];

const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
/// The time that a driver has to get data ready that it reports.
const READY: Timespec = Timespec { tv_sec: 0, tv_nsec: 500_000_000 };
/// Changes of the device in one session, for a driver that transfers only some of them before STOP_COPY.
const CHANGES: usize = 8;

fn readable_at_the_end(bench: &mut Bench) -> Outcome {
    let mut data = bench.subject.begin(State::StopCopy)?;
    data.read_to_end(CHUNK)?;
    for _ in 0..3 {
        let readable = polled(&data, PollFlags::IN, NOW)?;
        equal("poll after the end in STOP_COPY: readable", Ok(true), readable)?;
        equal("a read after the end in STOP_COPY", Ok(0), data.read(&mut [0; 64])?)?;
    }
    Ok(())
}

fn errno(error: rustix::io::Errno) -> Errno {
    Errno::from_io_error(&error.into()).unwrap_or(Errno::EIO)
}

fn wrong_direction(bench: &mut Bench) -> Outcome {
    let mut data = bench.subject.begin(State::StopCopy)?;
    refused("a write to the data_fd of STOP_COPY", &[Errno::EBADF], data.write(&[0; 8])?)?;
    let saved = data.save(Vec::new())?;
    drop(data);
    bench.subject.go(State::Running)?;
    let mut data = bench.subject.begin(State::Resuming)?;
    refused("a read of the data_fd of RESUMING", &[Errno::EBADF], data.read(&mut [0; 8])?)?;
    // Neither has touched the stream.
    let loaded = data.load_saved(&saved)?;
    success("a write of the device's own state", loaded)?;
    bench.subject.go(State::Running).map(drop)
}

fn no_position(bench: &mut Bench) -> Outcome {
    let data = bench.subject.begin(State::StopCopy)?;
    let sought =
        data.on_fd("lseek(0, SEEK_SET)", |fd| seek(fd, SeekFrom::Start(0)).map_err(errno), u64::to_string)?;
    refused("lseek()", &[Errno::ESPIPE], sought)?;
    let read =
        data.on_fd("pread(8, 0)", |fd| pread(fd, &mut [0; 8][..], 0).map_err(errno), usize::to_string)?;
    refused("pread()", &[Errno::ESPIPE], read)
}

fn no_mapping(bench: &mut Bench) -> Outcome {
    let data = bench.subject.begin(State::StopCopy)?;
    let map = |fd: BorrowedFd<'_>| {
        let file = File::from(fd.try_clone_to_owned().map_err(|_| Errno::EMFILE)?);
        Memory::map(FileOffset::new(file, 0), 4096, Protection::new(true, false)).map(drop)
    };
    let mapped = data.on_fd("mmap(4096, PROT_READ, MAP_SHARED)", map, |()| "mapped".to_string())?;
    refused("mmap()", &[Errno::ENODEV], mapped)
}

fn no_other_ioctl(bench: &mut Bench) -> Outcome {
    let asked = |data: &Data, state: State| {
        let ask = |fd: BorrowedFd<'_>| rustix::termios::tcgetattr(fd).map(drop).map_err(errno);
        let result = data.on_fd("ioctl(TCGETS)", ask, |()| "0".to_string())?;
        refused(format_args!("ioctl(TCGETS) on the data_fd of {state}"), &[Errno::ENOTTY], result)
    };
    let mut data = bench.subject.begin(State::StopCopy)?;
    asked(&data, State::StopCopy)?;
    let saved = data.save(Vec::new())?;
    drop(data);
    bench.subject.go(State::Running)?;
    let mut data = bench.subject.begin(State::Resuming)?;
    asked(&data, State::Resuming)?;
    let loaded = data.load_saved(&saved)?;
    success("a write of the device's own state", loaded)?;
    bench.subject.go(State::Running).map(drop)
}

/// Polls a data_fd until it is ready, for `time` at most, and returns whether it is.
fn polled(data: &Data, events: PollFlags, time: Timespec) -> Outcome<Result<bool, Errno>> {
    let request = if events == PollFlags::IN { "poll(POLLIN)" } else { "poll(POLLOUT)" };
    let make = |fd: BorrowedFd<'_>| {
        let mut polled = [PollFd::new(&fd, events)];
        while let Err(error) = poll(&mut polled, Some(&time)) {
            if error != rustix::io::Errno::INTR {
                return Err(errno(error));
            }
        }
        Ok(polled[0].revents().contains(events))
    };
    data.on_fd(request, make, bool::to_string)
}

fn readable_with_data(bench: &mut Bench) -> Outcome {
    bench.leave_power_on_state()?;
    let mut data = bench.subject.begin(State::PreCopy)?;
    data.fd()?;
    if ask(&mut data)?.bytes.total() == 0 {
        return skip("PRE_COPY has no data to wait for");
    }
    equal("poll in PRE_COPY with data to read: readable", Ok(true), polled(&data, PollFlags::IN, READY)?)
}

fn readable_with_more_data(bench: &mut Bench) -> Outcome {
    let mut data = bench.subject.begin(State::PreCopy)?;
    data.fd()?;
    for _ in 0..CHANGES {
        data.read_precopy(CHUNK, u64::MAX)?;
        bench.leave_power_on_state()?;
        if ask(&mut data)?.bytes.total() > 0 {
            let readable = polled(&data, PollFlags::IN, READY)?;
            return equal("poll in PRE_COPY after a change of the device: readable", Ok(true), readable);
        }
    }
    skip("PRE_COPY reports no data after a change of the device")
}

fn writable(bench: &mut Bench) -> Outcome {
    let mut data = bench.subject.begin(State::StopCopy)?;
    // RESUMING without a descriptor would be left for nothing.
    data.fd()?;
    let saved = data.save(Vec::new())?;
    drop(data);
    bench.subject.go(State::Running)?;
    let mut data = bench.subject.begin(State::Resuming)?;
    for piece in [&saved[..saved.len() / 2], &saved[saved.len() / 2..]] {
        equal("poll in RESUMING: writable", Ok(true), polled(&data, PollFlags::OUT, READY)?)?;
        let loaded = data.load(piece, CHUNK)?;
        success("a write of the device's own state", loaded)?;
    }
    bench.subject.go(State::Stop)?;
    bench.subject.go(State::Running).map(drop)
}

fn set_nonblocking(data: &Data) -> Outcome {
    let set = |fd: BorrowedFd<'_>| {
        let flags = fcntl_getfl(fd).map_err(errno)?;
        fcntl_setfl(fd, flags | OFlags::NONBLOCK).map_err(errno)
    };
    let set = data.on_fd("fcntl(F_SETFL, O_NONBLOCK)", set, |()| "0".to_string())?;
    success("fcntl(F_SETFL, O_NONBLOCK)", set)
}

/// Reads with O_NONBLOCK in a saving state until there is no more data, behind the bytes that were read before.
fn read_nonblocking(data: &mut Data, state: State, bytes: &mut Vec<u8>) -> Outcome {
    /// Waits for more after EAGAIN, and the time of each.
    const WAITS: usize = 500;
    const WAIT: Timespec = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
    let (mut waits, mut buffer) = (0, vec![0; CHUNK]);
    loop {
        match data.read(&mut buffer)? {
            Ok(0) => return Ok(()),
            Err(Errno::ENOMSG) if state.is_precopy() => return Ok(()),
            Ok(count) => {
                bytes.extend_from_slice(&buffer[..count]);
                data.check_size(bytes.len() as u64)?;
            }
            Err(Errno::EAGAIN) => {
                if state.is_precopy() && ask(data)?.bytes.total() == 0 {
                    return Ok(());
                }
                waits += 1;
                check(waits < WAITS, "data after EAGAIN and poll()", "EAGAIN again and again")?;
                // Whatever it says, the next read tells.
                let _ = polled(data, PollFlags::IN, WAIT)?;
            }
            Err(errno) => return fail("data, the end or EAGAIN", format_args!("{errno:?}")),
        }
    }
}

/// Ends a session in STOP_COPY, and loads the state that it gave.
fn load_again(bench: &mut Bench, data: Data, bytes: Vec<u8>) -> Outcome {
    drop(data);
    bench.subject.go(State::Running)?;
    bench.subject.load(&bytes.into())?;
    bench.subject.go(State::Running).map(drop)
}

fn nonblocking(bench: &mut Bench) -> Outcome {
    let mut data = bench.subject.begin(State::StopCopy)?;
    set_nonblocking(&data)?;
    let mut bytes = Vec::new();
    read_nonblocking(&mut data, State::StopCopy, &mut bytes)?;
    load_again(bench, data, bytes)
}

fn nonblocking_pre_copy(bench: &mut Bench) -> Outcome {
    bench.leave_power_on_state()?;
    let mut data = bench.subject.begin(State::PreCopy)?;
    set_nonblocking(&data)?;
    let mut bytes = Vec::new();
    for state in [State::PreCopy, State::StopCopy] {
        bench.subject.go(state)?;
        read_nonblocking(&mut data, state, &mut bytes)?;
    }
    load_again(bench, data, bytes)
}

fn empty_read(bench: &mut Bench) -> Outcome {
    bench.leave_power_on_state()?;
    bench.subject.go(State::Stop)?;
    let expected = bench.subject.save_stopped()?;
    let mut data = bench.subject.begin(State::StopCopy)?;
    for _ in 0..3 {
        equal("a read of 0 bytes in STOP_COPY", Ok(0), data.read(&mut [])?)?;
    }
    let saved = data.save(Vec::new())?;
    drop(data);
    bench.subject.go(State::Running)?;
    bench.subject.load(&saved)?;
    bench.equal_states("the state after reads of 0 bytes", &expected, &saved)
}

fn empty_write(bench: &mut Bench) -> Outcome {
    let saved = bench.subject.save()?;
    let mut data = bench.subject.begin(State::Resuming)?;
    // Whether it is 0 or refused.
    let _ = data.write(&[])?;
    let half = saved.len() / 2;
    for piece in [&saved[..half], &saved[half..]] {
        let loaded = data.load(piece, CHUNK)?;
        success("a write of the device's own state", loaded)?;
        let _ = data.write(&[])?;
    }
    bench.subject.go(State::Stop)?;
    bench.subject.go(State::Running).map(drop)
}

/// Fails the case unless a data file is dead.
fn is_dead(data: &mut Data, when: &str) -> Outcome {
    refused(format_args!("a read of the data_fd {when}"), &[Errno::ENODEV], data.read(&mut [0; 64])?)
}

fn after_reset(bench: &mut Bench) -> Outcome {
    for state in [State::StopCopy, State::PreCopy] {
        if state == State::PreCopy && !bench.features.has(Need::PreCopy) {
            continue;
        }
        let mut data = bench.subject.begin(state)?;
        bench.subject.must_reset()?;
        is_dead(&mut data, &format!("after a reset in {state}"))?;
    }
    let mut data = bench.subject.begin(State::Resuming)?;
    bench.subject.must_reset()?;
    refused("a write to the data_fd after a reset in RESUMING", &[Errno::ENODEV], data.write(&[0; 8])?)
}

fn after_close(bench: &mut Bench) -> Outcome {
    let mut data = bench.subject.begin(State::StopCopy)?;
    // A data file without a descriptor of its own may keep its device open.
    data.fd()?;
    bench.subject.close();
    is_dead(&mut data, "after the close of the device")
}
