//! Several threads at once on one data fd, and on the data fd and the device.

use std::sync::Barrier;
use std::thread;

use whimbrel_protocol::{Errno, State};
use whimbrel_user::StateFile;

use crate::bench::Bench;
use crate::case::{Case, Need};
use crate::data::Data;
use crate::interleaving::{self, Order, Pieces};
use crate::outcome::{Outcome, check, fail, inconclusive, success};

const RAW: &[Need] = &[Need::V2, Need::Raw];
/// Threads on one file.
const THREADS: usize = 4;
/// Pieces into which a state is divided.
const PIECES: usize = 256;
/// Results of one thread, more than any sound driver needs.
const MAX_CALLS: usize = 1 << 20;

pub(crate) const CASES: &[Case] = &[
    Case::robust(
        "v2/concurrent/readers",
        "Several threads may read one data_fd: together they get the stream, no byte twice and none left out.",
        readers,
    )
    .needs(RAW),
    Case::robust(
        "v2/concurrent/writers",
        "Several threads may write to one data_fd: the writes end, the state is loaded or refused, and a reset recovers the \
         device.",
        writers,
    )
    .needs(RAW)
    .resets(),
    Case::robust(
        "v2/concurrent/end-of-session",
        "A session may end while another thread reads its data_fd: the read ends, and the device goes on.",
        end_of_session,
    )
    .needs(RAW),
    Case::robust(
        "v2/concurrent/reset-of-session",
        "A device may be reset while another thread writes to its data_fd: the write ends, and the device runs.",
        reset_of_session,
    )
    .needs(RAW)
    .resets(),
];

/// Returns as many handles to a data file as there are threads.
fn handles(data: &mut Data) -> Outcome<Vec<Box<dyn StateFile>>> {
    (0..THREADS).map(|_| data.duplicate()).collect()
}

/// Reads to the end, `chunk` bytes at once. Each piece is what one read has given.
fn pieces(file: &mut dyn StateFile, chunk: usize) -> Result<Pieces, Errno> {
    let mut pieces = Vec::new();
    for _ in 0..MAX_CALLS {
        let mut buffer = vec![0; chunk];
        match file.read(&mut buffer) {
            Ok(0) => return Ok(pieces),
            Ok(count) => {
                buffer.truncate(count);
                pieces.push(buffer);
            }
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Err(Errno::EOVERFLOW)
}

fn readers(bench: &mut Bench) -> Outcome {
    bench.leave_power_on_state()?;
    let chunk = bench.subject.save()?.len().div_ceil(PIECES).max(1);
    bench.subject.go(State::Stop)?;
    let alone = |bench: &mut Bench| {
        let mut data = bench.subject.begin(State::StopCopy)?;
        let mut file = data.duplicate()?;
        let read = success("reads in STOP_COPY", pieces(&mut *file, chunk))?.concat();
        drop((data, file));
        bench.subject.go(State::Stop)?;
        Ok(read)
    };
    let expected = alone(bench)?;
    let same_each_time = alone(bench)? == expected;
    let mut data = bench.subject.begin(State::StopCopy)?;
    let mut files = handles(&mut data)?;
    let barrier = Barrier::new(THREADS);
    let results: Vec<Result<Pieces, Errno>> = thread::scope(|scope| {
        let threads: Vec<_> = files
            .iter_mut()
            .map(|file| {
                let barrier = &barrier;
                scope.spawn(move || {
                    barrier.wait();
                    pieces(&mut **file, chunk)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or(Err(Errno::EFAULT))).collect()
    });
    let mut found = Vec::new();
    for result in results {
        found.push(success("each thread's reads in STOP_COPY", result)?);
    }
    drop((data, files));
    bench.subject.go(State::Running)?;
    if !same_each_time {
        return inconclusive("the device gives one state in other bytes each time");
    }
    let together = found.iter().flatten().map(Vec::len).sum::<usize>();
    let whole = expected.len();
    check(whole == together, format_args!("{whole} bytes by {THREADS} threads together"), together)?;
    match interleaving::order(&expected, &found) {
        Order::Found => Ok(()),
        Order::None => fail(
            "reads that give the stream in some order, in which those of one thread stay in their order",
            format_args!(
                "{together} bytes that no order makes the stream: some came twice, and others did not come"
            ),
        ),
        Order::Unknown => inconclusive("too many of the state's parts are equal to tell them apart"),
    }
}

fn writers(bench: &mut Bench) -> Outcome {
    let saved = bench.subject.save()?;
    let chunk = saved.len().div_ceil(PIECES).max(1);
    let mut data = bench.subject.begin(State::Resuming)?;
    let mut files = handles(&mut data)?;
    let barrier = Barrier::new(THREADS);
    thread::scope(|scope| {
        for (number, file) in files.iter_mut().enumerate() {
            let (barrier, saved) = (&barrier, &saved);
            scope.spawn(move || {
                barrier.wait();
                // Every fourth piece; an error ends it, as it does a user's loop.
                for piece in saved.chunks(chunk).skip(number).step_by(THREADS) {
                    if !matches!(file.write(piece), Ok(1..)) {
                        break;
                    }
                }
            });
        }
    });
    // And once more beyond the end.
    let _ = data.write(&saved)?;
    let result = bench.subject.set_state(State::Stop)?.map(drop);
    let state = bench.subject.state()?;
    let is_expected = match result {
        Ok(()) => state == State::Stop,
        Err(_) => matches!(state, State::Resuming | State::Error | State::Stop),
    };
    check(is_expected, format_args!("STOP, RESUMING or ERROR after SET of STOP = {result:?}"), state)?;
    drop((data, files));
    recovers(bench)?;
    let mut data = bench.subject.begin(State::Resuming)?;
    let mut files = handles(&mut data)?;
    write_too_much(&mut files, &saved, chunk);
    drop((data, files));
    recovers(bench)
}

/// Writes more than a state from several threads: all of them write all of it, and go on after an error.
fn write_too_much(files: &mut [Box<dyn StateFile>], saved: &[u8], chunk: usize) {
    let barrier = Barrier::new(files.len());
    thread::scope(|scope| {
        for file in files {
            let barrier = &barrier;
            scope.spawn(move || {
                barrier.wait();
                for piece in saved.chunks(chunk) {
                    // Whatever it takes.
                    let _ = file.write(piece);
                }
            });
        }
    });
}

/// Fails the case unless a reset brings back a device that saves and loads.
fn recovers(bench: &mut Bench) -> Outcome {
    bench.subject.must_reset()?;
    bench.subject.is_in(State::Running)?;
    let saved = bench.subject.save()?;
    bench.subject.load(&saved)?;
    bench.subject.go(State::Running).map(drop)
}

fn end_of_session(bench: &mut Bench) -> Outcome {
    const ROUNDS: usize = 8;
    let chunk = bench.subject.save()?.len().div_ceil(PIECES).max(1);
    for _ in 0..ROUNDS {
        let mut data = bench.subject.begin(State::StopCopy)?;
        let mut file = data.duplicate()?;
        let barrier = Barrier::new(2);
        let (moved, read) = thread::scope(|scope| {
            let reader = scope.spawn(|| {
                barrier.wait();
                pieces(&mut *file, chunk)
            });
            barrier.wait();
            let moved = bench.subject.go(State::Stop).map(drop);
            (moved, reader.join())
        });
        moved?;
        match read {
            // The reader was faster.
            Ok(Ok(_) | Err(Errno::ENODEV)) => {}
            Ok(Err(errno)) => {
                return fail("data, the end or ENODEV for the reader", format_args!("{errno:?}"));
            }
            Err(_) => return inconclusive("the reader's thread has panicked"),
        }
        bench.subject.go(State::Running)?;
    }
    let saved = bench.subject.save()?;
    bench.subject.load(&saved)?;
    bench.subject.go(State::Running).map(drop)
}

fn reset_of_session(bench: &mut Bench) -> Outcome {
    let saved = bench.subject.save()?;
    let mut data = bench.subject.begin(State::Resuming)?;
    let mut file = data.duplicate()?;
    let barrier = Barrier::new(2);
    let reset = thread::scope(|scope| {
        let saved = &saved;
        scope.spawn(|| {
            barrier.wait();
            for byte in saved.chunks(1).take(MAX_CALLS) {
                if !matches!(file.write(byte), Ok(1..)) {
                    break;
                }
            }
        });
        barrier.wait();
        bench.subject.must_reset()
    });
    reset?;
    bench.subject.is_in(State::Running)?;
    drop((data, file));
    recovers(bench)
}
