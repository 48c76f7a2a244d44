//! Sets stop and start in two barriers, so that no device is stopped while another one may access it.

use whimbrel_engine::embedded::{Loading, Saving};
use whimbrel_user::{Device, State};

use crate::control::{At, Control, History};
use crate::device::{Shape, open_in};

fn three(history: &History) -> (Vec<Box<dyn Device>>, Vec<Control>) {
    let open = |number: usize| {
        let (device, _, control) = open_in(&format!("device {number}"), &Shape::default(), number, history);
        (device, control)
    };
    (0..3).map(open).unzip()
}

/// All devices have done the first arc before any is asked for the second one.
fn assert_barrier(history: &History, first: (State, State), second: (State, State)) {
    let list = history.list();
    let of = |arc: (State, State), is_done: bool| {
        let is_it = move |moment: &crate::control::Moment| {
            moment.at == At::Arc(arc.0, arc.1) && moment.is_done == is_done
        };
        list.iter().enumerate().filter(move |(_, moment)| is_it(moment)).map(|(place, _)| place).collect()
    };
    let (done, asked): (Vec<usize>, Vec<usize>) = (of(first, true), of(second, false));
    assert_eq!((done.len(), asked.len()), (3, 3), "{first:?}, {second:?}: {list:?}");
    assert!(done.iter().max() < asked.iter().min(), "{first:?}, {second:?}: {list:?}");
}

use State::{PreCopy, PreCopyP2p, Resuming, Running, RunningP2p, Stop, StopCopy};

#[test]
fn all_devices_quiesce_before_any_stops_and_before_any_runs() {
    let (here, there) = (History::default(), History::default());
    let (devices, controls) = three(&here);
    for control in &controls {
        control.set_state(&[7; 16]);
    }
    let mut saving = Saving::new(devices).unwrap();
    let mut loading = Loading::new(three(&there).0).unwrap();
    let mut sections = [Vec::new(), Vec::new()];
    saving.start(&mut sections[0]).unwrap();
    saving.stop().unwrap();
    saving.complete(&mut sections[1]).unwrap();
    for section in &sections {
        loading.load_part(&section[..]).unwrap();
    }
    loading.run().unwrap();
    saving.finish().unwrap();
    assert_barrier(&here, (PreCopy, PreCopyP2p), (PreCopyP2p, StopCopy));
    assert_barrier(&there, (Running, RunningP2p), (RunningP2p, Stop));
    assert_barrier(&there, (Resuming, Stop), (Stop, RunningP2p));
    assert_barrier(&there, (Stop, RunningP2p), (RunningP2p, Running));
}

#[test]
fn all_devices_quiesce_on_the_way_back() {
    for sends in [false, true] {
        let history = History::default();
        let mut saving = Saving::new(three(&history).0).unwrap();
        saving.start(std::io::sink()).unwrap();
        saving.stop().unwrap();
        if sends {
            saving.complete(std::io::sink()).unwrap();
        }
        saving.abort().unwrap();
        assert_barrier(&history, (Stop, RunningP2p), (RunningP2p, Running));
    }
}

#[test]
fn a_set_in_which_one_lacks_p2p_is_told() {
    let history = History::default();
    let (mut devices, _) = three(&history);
    let shape = Shape { flags: whimbrel_device::MigrationFlags::STOP_COPY, ..Shape::default() };
    devices.push(open_in("plain", &shape, 3, &history).0);
    let saving = Saving::new(devices).unwrap();
    let warnings = saving.warnings();
    assert!(warnings[0].starts_with("plain cannot be quiesced"), "{warnings:?}");
}
