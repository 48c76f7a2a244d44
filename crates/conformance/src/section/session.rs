//! The life of a data session: which arcs begin it, which keep it, and how its data_fd answers once it has ended.

use rustix::io::{FdFlags, fcntl_getfd};
use whimbrel_protocol::{Errno, State, fsm};

use super::arcs::{enter, supported};
use crate::bench::Bench;
use crate::case::{Case, Need};
use crate::data::{CHUNK, Data};
use crate::outcome::{Outcome, check, fails, refused, success};
use crate::saved::Saved;
use crate::subject::Subject;

pub(crate) const CASES: &[Case] = &[
    Case::must(
        "v2/session/saving-begins",
        "These arcs begin the process of saving the device state and will return a new data_fd.",
        saving_begins,
    )
    .needs(&[Need::V2]),
    Case::must(
        "v2/session/resuming-begins",
        "Entering the RESUMING state starts a process of restoring the device state and will return a new data_fd.",
        resuming_begins,
    ),
    Case::must(
        "v2/session/saving-group",
        "Moving between these states alters what is streamed in session, but does not terminate or otherwise affect the \
         associated fd.",
        saving_group,
    )
    .needs(&[Need::V2, Need::PreCopy]),
    Case::must(
        "v2/session/stop-copy-ends",
        "The STOP_COPY arc will terminate a data transfer session.",
        |bench| ends(bench, State::StopCopy, State::Stop),
    ),
    Case::must("v2/session/pre-copy-ends", "The PRE_COPY arc will terminate a data transfer session.", |bench| {
        ends(bench, State::PreCopy, State::Running)
    })
    .needs(&[Need::PreCopy]),
    Case::must(
        "v2/session/pre-copy-p2p-ends",
        "The PRE_COPY_P2P arc will terminate a data transfer session.",
        |bench| ends(bench, State::PreCopyP2p, State::RunningP2p),
    )
    .needs(&[Need::PreCopy, Need::P2p]),
    Case::must(
        "v2/session/resuming-ends",
        "Leaving RESUMING terminates a data transfer session and indicates the device should complete processing of the \
         data delivered by write().",
        |bench| ends(bench, State::Resuming, State::Stop),
    ),
    Case::kernel(
        "v2/session/ended-fd",
        "Once its session has ended, a data_fd gives ENODEV, also when the device has a new session \
         (mtty_save_read() in samples/vfio-mdev/mtty.c, mlx5vf_save_read() in drivers/vfio/pci/mlx5/main.c).",
        ended_fd,
    ),
    Case::robust(
        "v2/session/closed-in-any-order",
        "A user may close the data_fd of an ended session before or after that of the next one, or never: the next \
         session gives the whole state.",
        closed_in_any_order,
    )
    .needs(&[Need::V2]),
    Case::robust(
        "v2/session/closed-early",
        "A user may close a data_fd while its session goes on: every arc is still executed.",
        closed_early,
    )
    .needs(&[Need::V2]),
    Case::kernel(
        "v2/session/close-on-exec",
        "A new data_fd is close-on-exec (vfio_ioct_mig_return_fd() in drivers/vfio/vfio_main.c).",
        close_on_exec,
    ),
];

fn saving_begins(bench: &mut Bench) -> Outcome {
    let subject = &mut bench.subject;
    let arcs = [
        (State::Stop, State::StopCopy),
        (State::Running, State::PreCopy),
        (State::RunningP2p, State::PreCopyP2p),
    ];
    let flags = subject.flags();
    for (from, to) in arcs.into_iter().filter(|(_, to)| fsm::supports(flags, *to)) {
        subject.go(from)?;
        let mut data = subject.begin(to)?;
        let first = data.read(&mut [0; 16])?;
        if to == State::StopCopy {
            let count = success("the first read in STOP_COPY", first)?;
            check(count > 0, "the first read in STOP_COPY gives a byte of state at least", "0 bytes")?;
        }
        subject.go(State::Running)?;
    }
    Ok(())
}

fn resuming_begins(bench: &mut Bench) -> Outcome {
    let subject = &mut bench.subject;
    let saved = subject.save()?;
    subject.go(State::Stop)?;
    let mut data = subject.begin(State::Resuming)?;
    success("a write of the device's own state", data.load_saved(&saved)?)?;
    subject.go(State::Running)?;
    Ok(())
}

fn saving_group(bench: &mut Bench) -> Outcome {
    use State::{PreCopy, PreCopyP2p, StopCopy};
    const WALKS: &[&[State]] = &[
        &[PreCopy, StopCopy],
        &[PreCopyP2p, StopCopy],
        &[PreCopy, PreCopyP2p, StopCopy],
        &[PreCopyP2p, PreCopy, StopCopy],
        &[PreCopy, PreCopyP2p, PreCopy, PreCopyP2p, StopCopy],
    ];
    let subject = &mut bench.subject;
    let flags = subject.flags();
    for walk in WALKS.iter().filter(|walk| walk.iter().all(|state| fsm::supports(flags, *state))) {
        let mut data = subject.begin(walk[0])?;
        let mut bytes = Vec::new();
        for state in &walk[1..] {
            // A little, so that each state has something to give.
            bytes.extend(data.read_precopy(8, 8)?.bytes);
            let opened = subject.go(*state)?;
            check(opened.is_none(), format_args!("{state} goes on with the same data_fd"), "a new data_fd")?;
        }
        let saved = data.save(bytes)?;
        drop(data);
        subject.go(State::Running)?;
        subject.load(&saved)?;
        subject.go(State::Running)?;
    }
    Ok(())
}

/// Uses the data_fd of a session, and returns the answer without the bytes.
fn used(data: &mut Data, state: State) -> Outcome<Result<usize, Errno>> {
    if state == State::Resuming { data.write(&[0; 16]) } else { data.read(&mut [0; 16]) }
}

/// Ends a session by an arc, once with data left and once without.
fn ends(bench: &mut Bench, from: State, to: State) -> Outcome {
    let subject = &mut bench.subject;
    let saved = subject.save()?;
    for reads_all in [false, true] {
        let Some(mut data) = enter(subject, from, &saved)? else { continue };
        match from {
            State::StopCopy if reads_all => drop(data.read_to_end(CHUNK)?),
            State::PreCopy | State::PreCopyP2p if reads_all => drop(data.read_precopy(CHUNK, u64::MAX)?),
            _ => {}
        }
        subject.go(to)?;
        let result = used(&mut data, from)?;
        fails(format_args!("the use of the data_fd after {from} -> {to}"), result)?;
        subject.go(State::Running)?;
    }
    Ok(())
}

fn ended_fd(bench: &mut Bench) -> Outcome {
    let subject = &mut bench.subject;
    let saved = subject.save()?;
    for from in supported(subject.flags()) {
        let Some(mut data) = enter(subject, from, &saved)? else { continue };
        subject.go(State::Running)?;
        let ended = format!("the use of a data_fd of {from} after its session");
        refused(&ended, &[Errno::ENODEV], used(&mut data, from)?)?;
        let mut next = subject.begin(State::StopCopy)?;
        refused(format_args!("{ended}, in another session"), &[Errno::ENODEV], used(&mut data, from)?)?;
        success("a read in STOP_COPY", next.read(&mut [0; 16])?)?;
        subject.go(State::Running)?;
        refused(format_args!("{ended}, after another session"), &[Errno::ENODEV], used(&mut data, from)?)?;
        refused(&ended, &[Errno::ENODEV], used(&mut next, State::StopCopy)?)?;
    }
    Ok(())
}

/// Begins a session in STOP, reads a part of the state and ends the session. Returns its data_fd.
fn part(subject: &mut Subject) -> Outcome<Data> {
    let mut data = subject.begin(State::StopCopy)?;
    success("a read in STOP_COPY", data.read(&mut [0; 16])?)?;
    subject.go(State::Stop)?;
    Ok(data)
}

/// The state that a session has to give, and the first one that was not the same. No more of them are held in memory.
struct Compared {
    expected: Saved,
    other: Option<Saved>,
}

impl Compared {
    fn add(&mut self, found: Saved) {
        if self.other.is_none() && found != self.expected {
            self.other = Some(found);
        }
    }
}

fn closed_in_any_order(bench: &mut Bench) -> Outcome {
    bench.leave_power_on_state()?;
    let subject = &mut bench.subject;
    subject.go(State::Stop)?;
    let mut states = Compared { expected: subject.save_stopped()?, other: None };
    // The first file is closed before the next session, within it, and after it.
    drop(part(subject)?);
    states.add(subject.save_stopped()?);
    let first = part(subject)?;
    let mut next = subject.begin(State::StopCopy)?;
    let mut bytes = vec![0; 16];
    let count = success("a read in STOP_COPY", next.read(&mut bytes)?)?;
    bytes.truncate(count);
    drop(first);
    states.add(next.save(bytes)?);
    subject.go(State::Stop)?;
    let first = part(subject)?;
    states.add(subject.save_stopped()?);
    drop(next);
    states.add(subject.save_stopped()?);
    drop(first);
    states.add(subject.save_stopped()?);
    subject.go(State::Running)?;
    match &states.other {
        Some(other) => bench.equal_states("the state that the next session gives", &states.expected, other),
        None => Ok(()),
    }
}

fn closed_early(bench: &mut Bench) -> Outcome {
    let subject = &mut bench.subject;
    let saved = subject.save()?;
    for from in supported(subject.flags()) {
        for to in [State::Stop, State::Running] {
            drop(enter(subject, from, &saved)?);
            subject.go(to)?;
            subject.is_in(to)?;
            let again = subject.save()?;
            subject.load(&again)?;
            subject.go(State::Running)?;
        }
    }
    Ok(())
}

fn close_on_exec(bench: &mut Bench) -> Outcome {
    let subject = &mut bench.subject;
    let saved = subject.save()?;
    for state in [State::StopCopy, State::Resuming] {
        let Some(data) = enter(subject, state, &saved)? else { continue };
        let flags = data.on_fd(
            "fcntl(F_GETFD)",
            |fd| fcntl_getfd(fd).map_err(Errno::from),
            |flags| format!("{flags:?}"),
        )?;
        let flags = success("fcntl(F_GETFD)", flags)?;
        let what = format!("the data_fd of {state} is close-on-exec");
        check(flags.contains(FdFlags::CLOEXEC), what, format_args!("{flags:?}"))?;
        subject.go(State::Running)?;
    }
    Ok(())
}
