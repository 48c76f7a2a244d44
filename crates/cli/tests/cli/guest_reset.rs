//! A guest that resets its device in the middle of pre-copy, while the device moves between two processes that serve it,
//! by both rules for resets.

use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tempfile::TempDir;
use whimbrel_engine::channel::Stream;
use whimbrel_engine::{Destination, Error, Phase, Progress, Report, SendError, Source, SourceOptions};
use whimbrel_user::{Migratable, State};

use crate::support::Served;
use crate::takeover::{Program, STATE, shared};

/// The servers of both ends, and the program that works with the device.
struct Move {
    _source: Served,
    destination: Served,
    program: Arc<Mutex<Option<Program>>>,
    _folder: TempDir,
}

impl Move {
    fn new(rule: &str) -> Move {
        let folder = TempDir::new().unwrap();
        let model = format!("accel?state={STATE}");
        let [source, destination] = ["source", "destination"]
            .map(|name| Served::with(&model, &folder.path().join(name), &["--reset-rule", rule]).unwrap().0);
        let mut program = Program::of(source.client(), shared());
        program.fill();
        let program = Arc::new(Mutex::new(Some(program)));
        Move { _source: source, destination, program, _folder: folder }
    }

    /// Moves the device, which the guest resets and sets up again at this moment.
    fn run(&self, moment: impl Fn(&Progress) -> bool + Send + 'static) -> Result<Report, Box<SendError>> {
        let (left, right) = UnixStream::pair().unwrap();
        let client = self.program.lock().unwrap().as_mut().unwrap().driver.platform().client.clone();
        let receiving = Destination::new(vec![Box::new(self.destination.client())]);
        let receiver = std::thread::spawn(|| receiving.receive(Stream::from(right)));
        let (guest, its, program) = (client.clone(), client, self.program.clone());
        let mut has_reset = false;
        let sent = Source::new(vec![Box::new(its)])
            .options(SourceOptions::default().downtime_limit(Duration::from_mins(1)))
            .observer(move |progress: &Progress| {
                if has_reset || !moment(progress) {
                    return;
                }
                has_reset = true;
                guest.reset_for_guest().unwrap();
                let mut program = program.lock().unwrap();
                let mut again = program.take().unwrap().set_up_again();
                again.fill();
                *program = Some(again);
            })
            .send(Stream::from(left))
            .result;
        let arrived = receiver.join().unwrap();
        assert_eq!(arrived.result.is_ok(), sent.is_ok());
        sent.map_err(Box::new)
    }

    fn program(&self) -> Program {
        self.program.lock().unwrap().take().unwrap()
    }
}

/// Once the first data of pre-copy has been sent, and once half of it has been.
const MOMENTS: [fn(&Progress) -> bool; 2] =
    [|progress| is_in_precopy(progress, 1), |progress| is_in_precopy(progress, STATE / 2)];

fn is_in_precopy(progress: &Progress, least: u64) -> bool {
    progress.phase == Phase::Round(1) && progress.done >= least
}

#[test]
fn a_server_that_keeps_pre_copy_moves_a_device_that_its_guest_resets() {
    for moment in MOMENTS {
        let moving = Move::new("keeps-precopy");
        let report = moving.run(moment).unwrap();
        assert!(report.device_bytes > STATE, "what the reset has changed is sent again: {report:?}");
        let mut program = moving.program();
        let source = program.own_state();
        assert_eq!(program.driver.platform().client.state().unwrap(), State::Stop);
        let mut program = program.moved_to(moving.destination.client());
        assert_eq!(program.driver.platform().client.state().unwrap(), State::Running);
        assert!(program.own_state() == source, "the state is another");
        program.fill();
    }
}

#[test]
fn a_server_that_ends_a_migration_at_a_reset_runs_its_device_on() {
    for moment in MOMENTS {
        let moving = Move::new("ends-migration");
        let error = moving.run(moment).unwrap_err();
        assert!(matches!(&error.cause, Error::ResetMeanwhile { .. }), "{error}");
        assert!(error.to_string().ends_with("the devices run on at the source"), "{error}");
        let mut program = moving.program();
        assert_eq!(program.driver.platform().client.state().unwrap(), State::Running);
        program.fill();
        assert_eq!(moving.destination.client().state().unwrap(), State::Running);
        assert_eq!(moving.destination.marked(), 0, "it is as after power-on");
    }
}
