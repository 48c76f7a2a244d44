//! The trace of a program that runs on models: its records beside the requests that the program in C is known to make.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use whimbrel_interpose::run::{Child, Command};
use whimbrel_interpose::trace::{Action, Event, Options, Outcome, Record};

use crate::support::{ADDRESS, Linked, command, has_no_held_pages, program, said, spawn, wait};

/// Lets a command be traced, and returns its records.
pub(crate) fn trace(command: &mut Command, options: Options) -> Receiver<Record> {
    let (given, records) = mpsc::channel();
    command.trace(options, move |event| match event {
        // A test that has what it wants listens no longer.
        Event::Record(record) => drop(given.send(record)),
        other => panic!("{other:?}"),
    });
    records
}

/// Starts the program in C to do one thing under a trace.
fn spawn_traced(act: &str, model: &str, options: Options) -> Option<(Child, Receiver<Record>)> {
    let (mut command, _) = command(program(Linked::Dynamically)?, model);
    command.args([ADDRESS, act]);
    let records = trace(&mut command, options);
    Some((spawn(command)?, records))
}

/// Lets the program in C do one thing to its end, and returns all records.
#[track_caller]
fn traced(act: &str, model: &str, options: Options) -> Option<Vec<Record>> {
    let (mut child, records) = spawn_traced(act, model, options)?;
    let status = wait(&mut child);
    assert!(status.success(), "{act}: {status}; {}", said(&mut child));
    child.wait_until_unused();
    drop(child);
    Some(records.into_iter().collect())
}

/// A record as file, call and result: `group: VFIO_GROUP_GET_STATUS EBUSY`.
fn short(record: &Record) -> String {
    let result = match record.outcome {
        Outcome::Returned(_) => String::new(),
        Outcome::Failed(errno) => format!(" {}", errno.name().unwrap_or("?")),
        other => format!(" {other:?}"),
    };
    format!("{}: {}{result}", record.on.kind, record.name())
}

fn shorts(records: &[Record]) -> Vec<String> {
    records.iter().map(short).collect()
}

fn is_close(record: &Record) -> bool {
    matches!(record.action, Action::Close { .. })
}

#[test]
fn the_requests_of_a_group_are_recorded_in_order_with_their_results() {
    let Some(records) = traced("group", "serial", Options::default()) else { return };
    let expected = [
        "group: open",
        "group: VFIO_GROUP_GET_STATUS",
        "group: VFIO_GROUP_GET_STATUS EBUSY",
        "group: VFIO_GROUP_GET_DEVICE_FD EINVAL",
        "container: open",
        "container: VFIO_GET_API_VERSION",
        "container: VFIO_CHECK_EXTENSION",
        "container: VFIO_CHECK_EXTENSION",
        "group: VFIO_GROUP_SET_CONTAINER EBADFD",
        "group: VFIO_GROUP_SET_CONTAINER",
        "container: VFIO_SET_IOMMU",
        "container: VFIO_IOMMU_GET_INFO",
        "group: VFIO_GROUP_GET_DEVICE_FD ENODEV",
        "group: VFIO_GROUP_GET_DEVICE_FD",
        "device: VFIO_DEVICE_GET_INFO",
        "device: VFIO_DEVICE_GET_IRQ_INFO",
        "device: ioctl 0x3b67 ENOTTY",
        "device: VFIO_DEVICE_GET_REGION_INFO",
        "device: pread64",
        "device: preadv",
        "device: VFIO_DEVICE_RESET",
        "group: VFIO_GROUP_UNSET_CONTAINER EBUSY",
        "device: close",
        "group: VFIO_GROUP_UNSET_CONTAINER",
        "group: close",
        "container: close",
    ];
    assert_eq!(shorts(&records), expected);
}

#[test]
fn the_requests_of_a_cdev_and_an_iommufd_are_recorded_in_order_with_their_results() {
    let Some(records) = traced("cdev", "serial", Options::default()) else { return };
    let (before, closes): (Vec<Record>, Vec<Record>) = records.into_iter().partition(|it| !is_close(it));
    let expected = [
        "device: open",
        "device: VFIO_DEVICE_GET_INFO EINVAL",
        "iommufd: open",
        "device: VFIO_DEVICE_BIND_IOMMUFD",
        "device: VFIO_DEVICE_BIND_IOMMUFD EINVAL",
        "iommufd: IOMMU_GET_HW_INFO",
        "iommufd: IOMMU_IOAS_ALLOC",
        "device: VFIO_DEVICE_ATTACH_IOMMUFD_PT",
        "iommufd: IOMMU_IOAS_MAP",
        "iommufd: IOMMU_IOAS_UNMAP",
        "device: VFIO_DEVICE_GET_INFO",
        "device: VFIO_DEVICE_GET_REGION_INFO",
        "device: pread64",
        "device: preadv",
        "group: VFIO_GROUP_GET_DEVICE_FD EBUSY",
    ];
    assert_eq!(shorts(&before), expected);
    let told: BTreeSet<String> = shorts(&closes).into_iter().collect();
    assert!(told.is_superset(&["device: close".into(), "iommufd: close".into()].into()), "{told:?}");
}

/// Returns the line of the first record of a call, from its file on and without the duration.
fn line(records: &[Record], call: &str) -> String {
    let found = records.iter().find(|record| record.name() == call);
    let line = found.unwrap_or_else(|| panic!("no {call} in {:?}", shorts(records))).to_string();
    let (_, rest) = line.split_once(" fd ").unwrap();
    let (_, rest) = rest.split_once(' ').unwrap();
    rest.rsplit_once(" <").unwrap().0.to_owned()
}

#[test]
fn a_line_has_the_name_of_its_file_the_arguments_and_the_answer() {
    let Some(records) = traced("group", "serial", Options::default()) else { return };
    let group = records[0].on.name.to_string();
    assert!(group.starts_with("group "), "{group}");
    let device = format!("device {ADDRESS} of {group}");
    for (call, expected) in [
        ("VFIO_GROUP_GET_STATUS", format!("{group}: VFIO_GROUP_GET_STATUS(argsz 8) = 0 (flags VIABLE)")),
        ("VFIO_SET_IOMMU", "container: VFIO_SET_IOMMU(1 VFIO_TYPE1_IOMMU) = 0".to_owned()),
        (
            "VFIO_DEVICE_GET_IRQ_INFO",
            format!(
                "{device}: VFIO_DEVICE_GET_IRQ_INFO(argsz 16, index 0) = 0 (flags EVENTFD|MASKABLE|AUTOMASKED, count 1)"
            ),
        ),
        ("pread64", format!("{device}: pread64(2 bytes at region 7+0x0) = 2")),
        ("preadv", format!("{device}: preadv(4 bytes at region 7+0x0) = 4")),
        ("VFIO_DEVICE_RESET", format!("{device}: VFIO_DEVICE_RESET() = 0")),
    ] {
        assert_eq!(line(&records, call), expected);
    }
}

#[test]
fn device_state_is_recorded_as_it_passes() {
    for model in ["serial", "accel?state=1MiB"] {
        let Some(records) = traced("migrates", model, Options::default()) else { return };
        let of = |name: &'static str| records.iter().filter(move |record| record.name() == name);
        let loaded =
            |name| of(name).filter(|it| it.on.name.ends_with(", resuming")).map(Record::bytes).sum::<u64>();
        let written = loaded("write") + loaded("writev");
        let saved: u64 =
            of("read").take_while(|it| it.outcome != Outcome::Returned(0)).map(Record::bytes).sum();
        assert!(saved > 0 && written == saved, "{model}: {saved} bytes are read, {written} written");
        let data = of("read").next().unwrap();
        assert_eq!((data.on.kind, data.process), ("data", data.thread));
        assert!(data.on.name.ends_with(", saving"), "{}", data.on.name);
        let failed: Vec<String> = records.iter().map(short).filter(|it| it.starts_with("data: ")).collect();
        assert_eq!(
            failed[..5],
            [
                "data: lseek ESPIPE",
                "data: pread64 ESPIPE",
                "data: write EBADF",
                "data: mmap ENODEV",
                "data: dup"
            ]
        );
        assert_eq!(failed.last().unwrap(), "data: close");
        assert!(failed.contains(&"data: read ENODEV".to_owned()), "{failed:?}");
        assert!(failed.contains(&"data: read ENOMSG".to_owned()), "{failed:?}");
        assert_eq!(of("close").filter(|it| it.on.kind == "data").count(), 3);
    }
}

#[test]
fn a_duplicate_is_no_other_open_file() {
    let Some(records) = traced("dups", "serial", Options::default()) else { return };
    let groups: Vec<String> = shorts(&records).into_iter().filter(|it| it.starts_with("group: ")).collect();
    let status = "group: VFIO_GROUP_GET_STATUS";
    assert_eq!(groups[..5], ["group: open", status, status, status, "group: close"]);
    let descriptors: BTreeSet<i32> = records[1..4].iter().map(|record| record.on.fd).collect();
    assert_eq!(descriptors.len(), 3);
}

#[test]
fn arguments_out_of_memory_are_recorded_as_far_as_they_can_be_read() {
    let Some(records) = traced("faults", "serial", Options::default()) else { return };
    let faults: Vec<&Record> = records
        .iter()
        .filter(|it| it.name() == "VFIO_DEVICE_GET_INFO" && short(it).ends_with("EFAULT"))
        .collect();
    let lengths: Vec<usize> = faults
        .iter()
        .map(|record| match &record.action {
            Action::Request(request) => request.argument.len(),
            other => panic!("{other:?}"),
        })
        .collect();
    // A null pointer, the end of memory, and a structure that goes past it.
    assert_eq!(lengths, [0, 0, 8]);
    let all = shorts(&records);
    for expected in [
        "device: pread64 EFAULT",
        "device: pwrite64 EFAULT",
        "device: pread64 EINVAL",
        "device: ioctl 0x3bff ENOTTY",
        "other: VFIO_DEVICE_GET_INFO EBADF",
    ] {
        assert!(all.contains(&expected.to_owned()), "{expected} in {all:?}");
    }
}

#[test]
fn the_threads_of_a_program_are_told_apart_and_nothing_of_them_is_lost() {
    let Some(records) = traced("threads", "serial", Options::default()) else { return };
    let mut by_thread: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    for record in records.iter().filter(|record| !is_close(record)) {
        by_thread.entry(record.thread).or_default().push(short(record));
    }
    assert_eq!(records.iter().map(|record| record.process).collect::<BTreeSet<_>>().len(), 1);
    let turn = ["device: VFIO_DEVICE_GET_REGION_INFO", "device: pread64", "device: preadv"];
    let own: Vec<&Vec<String>> =
        by_thread.iter().filter(|(thread, _)| **thread != records[0].process).map(|(_, own)| own).collect();
    assert_eq!(own.len(), 8);
    for calls in own {
        assert_eq!(*calls, turn.repeat(100));
    }
}

#[test]
fn records_come_in_the_order_of_their_ends() {
    let Some(records) = traced("threads", "serial", Options::default()) else { return };
    let ends: Vec<Duration> = records.iter().map(|record| record.at + record.took).collect();
    assert!(ends.is_sorted(), "{ends:?}");
}

#[test]
fn the_processes_of_a_program_are_told_apart() {
    let Some(records) = traced("forks", "serial", Options::default()) else { return };
    let accesses = records.iter().filter(|record| record.name() == "pread64");
    let processes: Vec<u32> = accesses.map(|record| record.process).collect();
    // The child, its parent, the other program, and the parent again.
    assert_eq!(processes.len(), 4);
    assert_eq!(processes[1], processes[3]);
    assert_eq!(processes.into_iter().collect::<BTreeSet<_>>().len(), 3);
}

#[test]
fn a_call_that_is_refused_although_it_is_on_no_file_is_recorded() {
    let Some(records) = traced("others", "serial", Options::default()) else { return };
    assert_eq!(shorts(&records), ["other: io_uring_setup ENOSYS"]);
}

#[test]
fn bytes_are_kept_if_they_are_asked_for() {
    for hex in [false, true] {
        let Some(records) = traced("group", "serial", Options::default().hex(hex)) else { return };
        let access = records.iter().find(|record| record.name() == "preadv").unwrap();
        let Action::Transfer(transfer) = &access.action else { panic!("{access:?}") };
        let expected: &[u8] = if hex { &[0x48, 0x43, 0x53, 0x32] } else { &[] };
        assert_eq!(transfer.data, expected);
        let status = records.iter().find(|record| record.name() == "VFIO_GROUP_GET_STATUS").unwrap();
        assert_eq!(
            status.to_string().contains("\n             argument 0000  08 00 00 00 00 00 00 00"),
            hex,
            "{status}"
        );
        assert_eq!(
            status.to_string().contains("\n             answer   0000  08 00 00 00 01 00 00 00"),
            hex,
            "{status}"
        );
    }
}

#[test]
fn nothing_of_a_program_that_is_killed_is_lost() {
    let Some((mut child, records)) = spawn_traced("waits", "serial", Options::default()) else { return };
    let mut said = String::new();
    BufReader::new(child.take_stdout().unwrap()).read_line(&mut said).unwrap();
    child.kill().unwrap();
    wait(&mut child);
    drop(child);
    let all = shorts(&records.into_iter().collect::<Vec<_>>());
    let (before, closes) = all.split_at(all.len() - 3);
    assert_eq!(before.last().unwrap(), "device: VFIO_DEVICE_FEATURE");
    let closes: BTreeSet<&str> = closes.iter().map(String::as_str).collect();
    assert_eq!(closes, ["container: close", "device: close", "group: close"].into());
}

#[test]
fn a_program_that_is_killed_at_any_moment_ends_its_trace_in_order() {
    for turn in 0..20 {
        let Some((mut child, records)) = spawn_traced("outlives", "serial", Options::default()) else {
            return;
        };
        // Each time after more of its requests.
        let begun = records.iter().take(turn * 20).count();
        assert_eq!(begun, turn * 20);
        child.kill().unwrap();
        wait(&mut child);
        drop(child);
        let rest: Vec<Record> = records.into_iter().collect();
        let ends: Vec<Duration> = rest.iter().map(|record| record.at + record.took).collect();
        assert!(ends.is_sorted(), "{ends:?}");
        let unfinished = rest.iter().filter(|record| record.outcome == Outcome::Unfinished).count();
        assert!(unfinished <= 1, "it has one thread: {:?}", shorts(&rest));
    }
}

#[test]
fn a_request_that_outlasts_its_program_and_the_trace_is_recorded_without_an_answer() {
    let Some(program) = program(Linked::Dynamically) else { return };
    let (mut command, _) = command(program, "serial");
    command.args([ADDRESS, "abandons"]).stdin(Stdio::piped());
    let records = trace(&mut command, Options::default());
    let Some(mut child) = spawn(command) else { return };
    // A child of the program keeps the memory that the request waits for until this is dropped.
    let input = child.take_stdin();
    let status = wait(&mut child);
    if status.success() {
        assert!(has_no_held_pages(&mut child));
        return;
    }
    drop(child);
    let all: Vec<Record> = records.into_iter().collect();
    let unfinished: Vec<&Record> = all.iter().filter(|it| it.outcome == Outcome::Unfinished).collect();
    assert_eq!(unfinished.len(), 1, "{:?}", shorts(&all));
    let line = unfinished[0].to_string();
    assert!(line.contains(": pread64(4 bytes at region 7+0x0) = ? the thread ended in the call"), "{line}");
    assert!(line.contains(&format!(" device {ADDRESS} of group ")), "{line}");
    assert_ne!(unfinished[0].thread, unfinished[0].process, "a second thread has made it");
    drop(input);
}

#[test]
fn the_program_does_not_wait_for_its_trace() {
    let Some(program) = program(Linked::Dynamically) else { return };
    let (mut command, _) = command(program, "serial");
    command.args([ADDRESS, "group"]);
    let (go_on, may_go_on) = mpsc::channel::<()>();
    let (given, records) = mpsc::channel();
    command.trace(Options::default(), move |event| {
        // From the first event on until the program has ended.
        let _ = may_go_on.recv();
        given.send(event).unwrap();
    });
    let Some(mut child) = spawn(command) else { return };
    let status = wait(&mut child);
    assert!(status.success(), "{status}; {}", said(&mut child));
    child.wait_until_unused();
    drop(go_on);
    drop(child);
    assert_eq!(records.into_iter().count(), 26);
}

#[test]
fn a_trace_that_panics_does_not_disturb_the_program() {
    let Some(program) = program(Linked::Dynamically) else { return };
    let (mut command, _) = command(program, "serial");
    command.args([ADDRESS, "threads"]);
    command.trace(Options::default(), |_| std::panic::resume_unwind(Box::new("no more")));
    let Some(mut child) = spawn(command) else { return };
    let status = wait(&mut child);
    assert!(status.success(), "{status}; {}", said(&mut child));
}
