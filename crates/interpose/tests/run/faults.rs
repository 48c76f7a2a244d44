//! A program meets the faults of its device, as raw requests return them: each fault of the list, and a fault of each arc, by
//! group and container and by the device's own file.

use std::io::Read;

use whimbrel_device::{Errno, MigrationFlags, State};
use whimbrel_models::Model;
use whimbrel_protocol::fsm;

use crate::support::{ADDRESS, faulty_command, said, spawn, stepping_program, wait};

const OPENERS: [&str; 2] = ["group", "cdev"];

/// Lets the program take steps with a device that has faults, and returns the result of each, errnos by name. `None` where
/// programs cannot be run.
#[track_caller]
fn steps(model: &str, faults: &str, opener: &str, steps: &str) -> Option<String> {
    let (mut command, _) = faulty_command(stepping_program()?, model, faults);
    command.args([ADDRESS, opener]).args(steps.split(' '));
    let mut child = spawn(command)?;
    let status = wait(&mut child);
    assert!(status.success(), "{faults}: {status}; {}", said(&mut child));
    let mut told = String::new();
    child.take_stdout().unwrap().read_to_string(&mut told).unwrap();
    let named = |word: &str| match word.strip_prefix('E').and_then(|number| number.parse().ok()) {
        Some(number) => Errno::new(number).and_then(Errno::name).unwrap().to_owned(),
        None => word.to_owned(),
    };
    Some(told.split_whitespace().map(named).collect::<Vec<_>>().join(" "))
}

#[test]
fn every_fault_of_the_list_reaches_the_program() {
    let cases = [
        ("arc RUNNING_P2P->STOP: EIO once", "set:1 get set:1 get", "EIO 5 - 1"),
        ("arc RUNNING_P2P->STOP: EIO broken", "set:1 get reset get", "EIO 0 - 2"),
        ("arc RUNNING_P2P->STOP: 0 once", "set:1 get set:1 get", "- 5 - 1"),
        ("arc RUNNING_P2P->STOP: 0 broken", "set:1 get set:1 reset get", "- 0 EINVAL - 2"),
        ("read after 4: EIO once", "set:3 read:64 read:64 read:64", "- 4 EIO 56"),
        ("read after 0: short 2 times", "set:3 read:64 read:64 read:64", "- 1 1 58"),
        ("read after 8: end once", "set:3 read:64 read:64 read:64", "- 8 0 52"),
        ("read after 0 in STOP_COPY: ENOSPC once", "set:6 read:4 set:3 read:64 read:64", "- 4 - ENOSPC 56"),
        ("write after 4: ENOSPC once", "set:3 read:64 set:1 set:4 write write", "- 60 - - 4 ENOSPC"),
        ("write after 0: short once", "set:3 read:64 set:1 set:4 write", "- 60 - - 1"),
        ("delay STOP_COPY 300ms once", "set:3 took:300", "- long"),
        ("size: 100GiB once", "size size", "107374182400 60"),
        ("size: EIO once", "size size", "EIO 60"),
        ("precopy: initial 5 dirty 7", "set:6 precopy", "- 0/5/7"),
        ("precopy: EIO", "set:6 precopy", "- EIO"),
        ("temporary end: 0", "set:6 read:64 read:64", "- 24 0"),
        ("log start: ENOMEM once", "log log report", "ENOMEM - -"),
        ("log report: EIO once", "log report report", "- EIO -"),
        ("log stop: EIO once", "log unlog unlog", "- EIO -"),
        ("reset: EBUSY once", "reset reset", "EBUSY -"),
    ];
    for (faults, asked, expected) in cases {
        for opener in OPENERS {
            let Some(told) = steps("serial", faults, opener, asked) else { return };
            assert_eq!(told, expected, "{faults} by {opener}: {asked}");
        }
    }
}

#[test]
fn a_device_that_begins_precopy_again_says_so_to_a_program_that_knows_it() {
    for (faults, asked, flags) in [
        ("reinit after 0 once", "v2 set:6 precopy precopy", [1, 0]),
        ("reinit at end once", "v2 set:6 precopy read:64 precopy precopy", [1, 0]),
        ("reinit after 0 once", "set:6 precopy precopy", [0, 0]),
    ] {
        for opener in OPENERS {
            let Some(told) = steps("serial", faults, opener, asked) else { return };
            let found: Vec<u32> =
                told.split(' ').filter_map(|word| word.split_once('/')?.0.parse().ok()).collect();
            assert_eq!(found[found.len() - 2..], flags, "{faults} by {opener}: {told}");
        }
    }
}

/// The arcs of a device with these features.
fn arcs(flags: MigrationFlags) -> Vec<(State, State)> {
    let pairs = State::ALL.into_iter().flat_map(|from| State::ALL.into_iter().map(move |to| (from, to)));
    pairs.filter(|(from, to)| from != to && fsm::next(flags, *from, *to) == Some(*to)).collect()
}

#[test]
fn every_arc_of_a_model_fails_in_each_way() {
    let models = [
        ("serial", 15),
        ("accel?state=1KiB", 15),
        ("accel?state=1KiB&features=stop-copy", 6),
        ("accel?state=1KiB&features=stop-copy,p2p", 8),
        ("accel?state=1KiB&features=stop-copy,pre-copy", 9),
    ];
    for (model, count) in models {
        let device = model.parse::<Model>().unwrap().open(ADDRESS).unwrap();
        let arcs = arcs(device.migration_flags().unwrap());
        assert_eq!(arcs.len(), count, "{model}: {arcs:?}");
        for (from, to) in arcs {
            let arc = format!("arc {from}->{to}: ");
            let ways = ["EIO once", "0 once", "ENOSPC broken once", "0 broken once"];
            let faults = ways.map(|way| format!("{arc}{way}")).join("; ");
            let (start, end) = (from.number(), to.number());
            let go = format!("set:{start} set:{end} get");
            let asked = format!("{go} set:{end} get set:{end} get reset {go} reset {go}");
            // Without a fault, a device that has not got its state whole refuses it.
            let last = if from == State::Resuming { format!("EINVAL {start}") } else { format!("- {end}") };
            let expected = format!("- EIO {start} - {start} ENOSPC 0 - - - 0 - - {last}");
            for opener in OPENERS {
                let Some(told) = steps(model, &faults, opener, &asked) else { return };
                assert_eq!(told, expected, "{model} by {opener}: {faults}");
            }
        }
    }
}
