//! Bad users: each makes one mistake, and the case that names its sentence finds it. The same user without a mistake
//! passes all cases.

use whimbrel_user::kernel::{Cdev, Group};
use whimbrel_user::{DataFile, Device, DirtyReport, IovaRange, MigrationFlags, SavingRead, State};
use whimbrel_vfio_user::{Client, ClientOptions};

use super::{ADDRESSES, GROUPS, SOCKETS, Way, conform, verdicts};
use crate::support::argument;

/// The mistake of this program when it is run as a program under test.
const MISTAKE: &str = "WHIMBREL_BAD_USER";
/// The device, as a TARGET.
const SOURCE: &str = "WHIMBREL_BAD_USER_SOURCE";
/// The second device if it is used.
const DESTINATION: &str = "WHIMBREL_BAD_USER_DESTINATION";

type Result<T = ()> = std::result::Result<T, String>;

/// A user, with its mistake.
struct User {
    mistake: String,
    source: Box<dyn Device>,
    destination: Option<Box<dyn Device>>,
}

fn open(target: &str) -> whimbrel_user::Result<Box<dyn Device>> {
    Ok(match target.split_once(':') {
        Some(("vfio-user", path)) => Box::new(Client::connect(path, &ClientOptions::default())?),
        Some(("group", address)) => Box::new(Group::find(address)?),
        _ => Box::new(Cdev::find(target)?),
    })
}

fn text(error: &whimbrel_user::Error) -> String {
    error.to_string()
}

/// Brings a device to a state, and looks whether it is there unless that is the mistake.
fn go(device: &mut dyn Device, state: State, mistake: &str) -> whimbrel_user::Result<Option<DataFile>> {
    let trusts = matches!(mistake, "takes the device's word" | "trusts and leaves the device");
    if trusts { device.set_state(state) } else { device.go_to(state) }
}

impl User {
    fn makes(&self, mistake: &str) -> bool {
        self.mistake == mistake
    }

    /// Moves the device's state to the destination, or nowhere.
    fn run(&mut self) -> Result {
        let mut bytes = Vec::new();
        let result = self.save(&mut bytes).and_then(|()| self.load(&bytes));
        match result {
            Ok(()) => go(&mut *self.source, State::Running, &self.mistake).map(drop).or_else(|error| {
                self.recover()?;
                Err(text(&error))
            }),
            Err(error) => {
                self.recover()?;
                if self.makes("reports each failure as a success") { Ok(()) } else { Err(error) }
            }
        }
    }

    /// Brings the source back after a failure.
    fn recover(&mut self) -> Result {
        if self.makes("leaves the device as it is") || self.makes("trusts and leaves the device") {
            return Ok(());
        }
        let state = self.source.state().map_err(|error| text(&error))?;
        if self.makes("requests ERROR") {
            let _ = self.source.set_state(State::Error);
        }
        if self.makes("returns to pre-copy") {
            let _ = self.source.set_state(State::PreCopy);
        }
        let lost = |error: &whimbrel_user::Error| format!("the device is lost: reset it ({error})");
        if state == State::Error {
            if self.makes("drives a device in ERROR") {
                let _ = self.source.set_state(State::Running);
            }
            if self.makes("keeps a lost device to itself") {
                return self.source.reset().map_err(|_| "something went wrong".to_string());
            }
            return self.source.reset().map_err(|error| lost(&error));
        }
        let back = go(&mut *self.source, State::Running, &self.mistake);
        back.map(drop).or_else(|_| self.source.reset().map_err(|error| lost(&error)))
    }

    /// Brings the source to a state.
    fn set(&mut self, state: State) -> Result<Option<DataFile>> {
        let attempts = if self.makes("retries without end") { 100 } else { 1 };
        let mut result = go(&mut *self.source, state, &self.mistake);
        for _ in 1..attempts {
            if result.is_err() {
                result = go(&mut *self.source, state, &self.mistake);
            }
        }
        result.map_err(|error| text(&error))
    }

    /// Reads the state of the source.
    fn save(&mut self, bytes: &mut Vec<u8>) -> Result {
        let flags = self.source.migration_flags().map_err(|error| text(&error))?;
        let flags = flags.ok_or("the device cannot migrate")?;
        let has_precopy =
            flags.contains(MigrationFlags::PRE_COPY) || self.makes("does not look at the flags");
        // What it takes the size for is its mistake.
        let size = self.source.data_size().unwrap_or(u64::MAX);
        self.start_log()?;
        let mut data = None;
        if has_precopy {
            self.source.enable_precopy_info_v2().map_err(|error| text(&error))?;
            data = self.set(State::PreCopy)?;
            let file = data.as_mut().ok_or("PRE_COPY has no data file")?;
            self.pre_copy(file, bytes)?;
            if self.makes("takes the temporary end for the end") {
                return Ok(());
            }
        }
        self.read_log()?;
        match self.set(State::StopCopy) {
            Ok(opened) => data = opened.or(data),
            Err(error) => {
                if self.makes("reads on after a failed SET")
                    && let Some(data) = &mut data
                {
                    let _ = data.read(&mut [0; 64]);
                }
                return Err(error);
            }
        }
        if self.makes("writes to a register in STOP_COPY") {
            let _ = self.source.write_region(0, 0x10, &[0; 4]);
        }
        let file = data.as_mut().ok_or("STOP_COPY has no data file")?;
        let mut buffer = vec![0; 16 << 10];
        loop {
            if self.makes("trusts the estimated size") && bytes.len() as u64 >= size {
                return Ok(());
            }
            match file.read(&mut buffer) {
                Ok(SavingRead::Data(count)) => bytes.extend_from_slice(&buffer[..count]),
                Ok(_) => return Ok(()),
                Err(_) if self.makes("takes each error for the end") => return Ok(()),
                Err(error) => return Err(text(&error)),
            }
        }
    }

    fn pre_copy(&mut self, file: &mut DataFile, bytes: &mut Vec<u8>) -> Result {
        let mut buffer = vec![0; 16 << 10];
        let mut first = None;
        // As many looks as any device needs, and no more.
        for _ in 0..64 {
            let counts = file.precopy_info().map_err(|error| text(&error))?.bytes;
            let left = *first.get_or_insert(counts.initial);
            if self.makes("leaves initial data behind") && !bytes.is_empty() {
                return Ok(());
            }
            if self.makes("ignores REINIT") && bytes.len() as u64 >= left {
                return Ok(());
            }
            match file.read(&mut buffer) {
                Ok(SavingRead::Data(count)) => bytes.extend_from_slice(&buffer[..count]),
                Ok(_) => return Ok(()),
                Err(error) => return Err(text(&error)),
            }
        }
        Ok(())
    }

    fn start_log(&mut self) -> Result {
        if !self.logs() {
            return Ok(());
        }
        let range = IovaRange::new(0, 1 << 20).map_err(|errno| errno.to_string())?;
        self.source.dma_logging_start(4096, &[range]).map_err(|error| text(&error))?;
        if self.makes("log: is started twice") {
            let _ = self.source.dma_logging_start(4096, &[range]);
        }
        Ok(())
    }

    fn read_log(&mut self) -> Result {
        if !self.logs() {
            return Ok(());
        }
        let mut words = [0; 4];
        for _ in 0..2 {
            let report = DirtyReport::new(0, 1 << 20, 4096, &mut words);
            let mut report = report.map_err(|errno| errno.to_string())?;
            let result = self.source.dma_logging_report(&mut report);
            if !self.makes("log: is used after its error") {
                result.map_err(|error| text(&error))?;
            }
        }
        self.source.dma_logging_stop().map_err(|error| text(&error))
    }

    fn logs(&self) -> bool {
        self.mistake.starts_with("log: ")
    }

    /// Loads the state into the destination, if there is one.
    fn load(&mut self, saved: &[u8]) -> Result {
        let mut bytes = saved.to_vec();
        if self.makes("alters a byte") {
            // The scratch register of a serial's port: the device cannot tell.
            bytes[31] ^= 1;
        }
        let mistake = self.mistake.clone();
        let Some(device) = &mut self.destination else { return Ok(()) };
        let loaded = load(&mut **device, &bytes, &mistake);
        if loaded.is_err() && mistake != "leaves a session in RESUMING" {
            device.reset().map_err(|error| format!("reset it: {error}"))?;
        }
        if mistake == "reports each failure as a success" { Ok(()) } else { loaded }
    }
}

fn load(device: &mut dyn Device, bytes: &[u8], mistake: &str) -> Result {
    let file = go(device, State::Resuming, mistake).map_err(|error| text(&error))?;
    let mut file = file.ok_or("RESUMING has no data file")?;
    for piece in bytes.chunks(16 << 10) {
        let written = file.write_all(piece);
        if mistake != "does not look at writes" {
            written.map_err(|error| text(&error))?;
        }
    }
    if mistake == "writes to a register in RESUMING" {
        let _ = device.write_region(0, 0x10, &[0; 4]);
    }
    go(device, State::Stop, mistake).map_err(|error| text(&error))?;
    go(device, State::Running, mistake).map(drop).map_err(|error| text(&error))
}

/// Nothing, unless it is run as a program under test.
#[test]
fn acts() {
    let Ok(mistake) = std::env::var(MISTAKE) else { return };
    let destination = std::env::var(DESTINATION).ok().map(|target| open(&target).unwrap());
    let source = open(&std::env::var(SOURCE).unwrap()).unwrap();
    let result = User { mistake, source, destination }.run();
    assert!(result.is_ok(), "{result:?}");
}

/// Runs the suite on a user with this mistake.
fn judged(way: &Way, mistake: &str, is_pair: bool, only: &[&str]) -> Vec<(String, String)> {
    let this = argument(&std::env::current_exe().unwrap());
    let mistake = format!("{MISTAKE}={mistake}");
    let source = format!("{SOURCE}={}", way.first);
    let destination = format!("{DESTINATION}={}", way.second);
    let mut program = vec!["env", mistake.as_str(), source.as_str()];
    if is_pair {
        program.push(&destination);
    }
    program.extend([this.as_str(), "--exact", "users::bad::acts", "--nocapture"]);
    let mut options: Vec<&str> = only.iter().flat_map(|id| ["--only", id]).collect();
    if mistake.ends_with("alters a byte") {
        options.extend(["--device", "serial"]);
    }
    let run = conform(&options, &program);
    let verdicts = verdicts(&run);
    assert!(!verdicts.is_empty(), "{mistake}: {}", run.text());
    if only.is_empty() {
        assert_eq!(run.status, 0, "{}", run.text());
    }
    verdicts
}

/// Mistakes of a source, each with the case that finds it.
const BAD_SOURCES: [(&str, &str); 30] = [
    ("reports each failure as a success", "user/data-fd/failed-read"),
    ("reports each failure as a success", "user/data-fd/failed-first-read"),
    ("reports each failure as a success", "user/error/is-no-success"),
    ("takes each error for the end", "user/data-fd/enomsg-in-stop-copy"),
    ("takes each error for the end", "user/pre-copy/end-is-not-taken"),
    ("takes the temporary end for the end", "user/data-fd/end-of-stream"),
    ("takes the temporary end for the end", "user/pre-copy/temporary-end"),
    ("takes the temporary end for the end", "user/pre-copy/temporary-end-of-zero"),
    ("reads on after a failed SET", "user/state/failed-set-is-not-done"),
    ("leaves the device as it is", "user/state/recovery"),
    ("leaves the device as it is", "user/state/any-step-along-the-path"),
    ("leaves the device as it is", "user/data-fd/recovery"),
    ("leaves the device as it is", "user/pre-copy/failed-read"),
    ("leaves the device as it is", "user/error/reset"),
    ("drives a device in ERROR", "user/error/reset"),
    ("trusts and leaves the device", "user/error/without-an-errno"),
    ("takes the device's word", "user/state/does-not-stop"),
    ("takes the device's word", "user/state/does-not-run-again"),
    ("keeps a lost device to itself", "user/error/reset-fails"),
    ("retries without end", "user/state/retry"),
    ("requests ERROR", "user/state/error-is-not-requested"),
    ("returns to pre-copy", "user/state/no-return-to-pre-copy"),
    ("does not look at the flags", "user/state/optional-states"),
    ("leaves initial data behind", "user/pre-copy/initial-bytes"),
    ("ignores REINIT", "user/pre-copy/reinit"),
    ("trusts the estimated size", "user/data-fd/estimate-of-nothing"),
    ("writes to a register in STOP_COPY", "user/regions/stop-copy"),
    ("writes to a register in STOP_COPY", "user/regions/stop"),
    ("log: is started twice", "user/dirty/single-start"),
    ("log: is used after its error", "user/dirty/failed-report"),
];

/// Mistakes of a user that loads a state, each with the case that finds it.
const BAD_DESTINATIONS: [(&str, &str); 10] = [
    ("does not look at writes", "user/data-fd/failed-write"),
    ("reports each failure as a success", "user/state/invalid-data"),
    ("reports each failure as a success", "user/state/resuming-fails"),
    ("takes the device's word", "user/state/only-seems-to-run"),
    ("takes the device's word", "user/state/only-seems-to-be-loaded"),
    ("leaves a session in RESUMING", "user/state/abort-of-resuming"),
    ("leaves a session in RESUMING", "user/data-fd/failed-write"),
    ("leaves a session in RESUMING", "user/error/reset-after-loading"),
    ("writes to a register in RESUMING", "user/regions/resuming"),
    ("alters a byte", "user/data-fd/byte-order"),
];

/// Each mistake is found by its case.
fn are_found(way: &Way, mistakes: &[(&str, &str)], is_pair: bool) {
    if !way.is_possible() {
        return;
    }
    let mut missing = Vec::new();
    for (mistake, id) in mistakes {
        let found = judged(way, mistake, is_pair, &[id]);
        if found != [(id.to_string(), "fail".to_string())] {
            missing.push(format!("{mistake}: {found:?}"));
        }
    }
    assert_eq!(missing, [""; 0]);
}

/// A user without a mistake passes all cases.
fn is_found_good(way: &Way) {
    if !way.is_possible() {
        return;
    }
    for is_pair in [false, true] {
        let passed =
            judged(way, "none", is_pair, &[]).into_iter().filter(|(_, verdict)| verdict == "pass").count();
        assert!(passed >= if is_pair { 48 } else { 32 }, "{passed}");
    }
    // With a log, as far as the device has one.
    judged(way, "log: is used as it should be", false, &["user/data-fd/*"]);
}

#[test]
fn a_good_user_passes_all_cases() {
    is_found_good(&SOCKETS);
}

#[test]
fn a_good_user_of_the_kernels_vfio_passes_all_cases() {
    is_found_good(&ADDRESSES);
}

#[test]
fn each_bad_source_is_found_by_the_case_that_names_its_sentence() {
    are_found(&SOCKETS, &BAD_SOURCES, false);
}

#[test]
fn each_bad_source_on_the_kernels_vfio_is_found_by_the_same_case() {
    are_found(&ADDRESSES, &BAD_SOURCES, false);
}

#[test]
fn each_bad_destination_is_found_by_the_case_that_names_its_sentence() {
    are_found(&SOCKETS, &BAD_DESTINATIONS, true);
}

#[test]
fn each_bad_destination_on_the_kernels_vfio_is_found_by_the_same_case() {
    are_found(&GROUPS, &BAD_DESTINATIONS, true);
}
