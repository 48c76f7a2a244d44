//! The work of a guest whose QEMU runs under `whimbrel run`, and the migration of that QEMU.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::super::disk::{DISK, NEW_DISK};
use super::super::running::Running;
use super::super::{ECHO, UIO, UNTIL};
use super::Way;

/// The longest that a migration may take.
pub(super) const PATIENCE: Duration = Duration::from_mins(4);

/// Those of an engine in each round: a guest does them in a few seconds.
const JOBS: u32 = 300;
/// The same where rounds only have to come soon after a migration.
const FEW_JOBS: u32 = 100;

/// QEMU 7.2 migrates VFIO devices only if told to. During pre-copy it must not ask the container for dirty pages: with an
/// IOMMU all are, each time, so that it would never end.
const BY_V1: &str = ",x-enable-migration=on,x-pre-copy-dirty-page-tracking=off";

/// `rounds_of DEVICE` gives an engine jobs in rounds, until one goes wrong, or the engine counts other jobs than those of the
/// rounds before.
const ROUNDS: &str = r#"
rounds_of() {
    total=
    while told=$(./jobs uio "$1" intx JOBS); do
        before=${told% jobs before}
        before=${before##* }
        [ "$before" = "${total:-$before}" ] || return 0
        total=$((before + JOBS))
        echo "round $1"
    done
}
"#;

/// The work of a guest, whose devices are these models.
pub(super) struct Work {
    pub(super) way: Way,
    models: Vec<String>,
    idle: bool,
    goes_on: bool,
    options: Vec<&'static str>,
    properties: &'static str,
    run: Vec<&'static str>,
}

impl Work {
    pub(super) fn new(way: Way, models: &[&str]) -> Work {
        let models = models.iter().copied().map(String::from).collect();
        Work {
            way,
            models,
            idle: false,
            goes_on: false,
            options: Vec::new(),
            properties: "",
            run: Vec::new(),
        }
    }

    /// The devices have their drivers, and nothing to do.
    pub(super) fn idle(self) -> Work {
        Work { idle: true, ..self }
    }

    /// The guest begins its work again when a device has lost its state, and prints "lost DEVICE" then.
    pub(super) fn despite_losses(self) -> Work {
        Work { goes_on: true, ..self }
    }

    /// Properties of QEMU's vfio-pci.
    pub(super) fn properties(self, properties: &'static str) -> Work {
        Work { properties, ..self }
    }

    /// Options of `lab/run exec`.
    pub(super) fn options(self, options: &[&'static str]) -> Work {
        Work { options: options.to_vec(), ..self }
    }

    /// Options of `whimbrel run`.
    pub(super) fn run(self, options: &[&'static str]) -> Work {
        Work { run: options.to_vec(), ..self }
    }

    /// A guest with these devices, with more options of `lab/run exec` and `whimbrel run`. `None` where there can be none.
    pub(super) fn start(&self, options: &[&str], run: &[&str]) -> Option<Running> {
        let mut guest = self.way.guest()?;
        if self.models.iter().any(|model| does_jobs(model)) {
            guest = guest.with_jobs();
        }
        if self.models.iter().any(|model| is_disk(model)) {
            guest = guest.with_disk()?;
        }
        guest = guest.with(&self.options).with(options);
        guest = guest.with_run(&self.run).with_run(run);
        let properties = if self.way.is_v1() { BY_V1 } else { "" };
        for model in &self.models {
            guest = guest.give(model, &format!("{properties}{}", self.properties));
        }
        Some(Running::start(guest, &self.lines()))
    }

    /// Starts a guest, which works once this returns, and a machine to which it can be migrated.
    pub(super) fn pair(&self) -> Option<(Running, Running)> {
        let mut source = self.start(&[], &[])?;
        let destination = self.start(&["--incoming"], &[])?;
        source.wait_for("working");
        Some((source, destination))
    }

    /// The script works with each device in rounds, until one of them goes wrong.
    fn lines(&self) -> String {
        let jobs = if self.goes_on { FEW_JOBS } else { JOBS };
        let rounds = ROUNDS.replace("JOBS", &jobs.to_string());
        let mut lines = format!("{ECHO} {UIO} {rounds} echo booted\n");
        for (number, model) in self.models.iter().enumerate() {
            let device = address(number);
            let rounds = if self.idle {
                format!("while sleep 1; do echo round {device}; done")
            } else if model.starts_with("serial") {
                format!("while (set -e; echo_all {device} 2048); do echo round {device}; done")
            } else if is_disk(model) {
                format!("while used 1m; do echo round {device}; done")
            } else {
                format!("rounds_of {device}")
            };
            if does_jobs(model) {
                let _ = writeln!(lines, "uio {device}");
            }
            if is_disk(model) {
                let _ = writeln!(lines, "{UNTIL} {DISK} {NEW_DISK}");
            }
            // Each engine has a page of its own.
            let _ = writeln!(lines, "echo {} > /proc/sys/vm/nr_hugepages", self.models.len());
            let _ = if self.goes_on {
                writeln!(lines, "(while :; do {rounds}; echo lost {device}; done) &")
            } else {
                writeln!(lines, "({rounds}; kill $$) &")
            };
        }
        lines.push_str("sleep 1; echo working; wait; exit 9");
        lines
    }

    /// Waits until a guest has finished the round that it is in, and one more, with each device.
    #[track_caller]
    pub(super) fn goes_on(&self, machine: &mut Running) {
        for number in 0..self.models.len() {
            machine.waits_for_more(&format!("round {}", address(number)));
        }
    }

    /// Waits until a guest has migrated and worked on in its new machine. Returns what QEMU says of the migration.
    #[track_caller]
    pub(super) fn arrives(&self, source: &mut Running, destination: &mut Running) -> Value {
        let told = ended(source);
        assert_eq!(told["status"], "completed", "{:?}, {:?}: {told}", self.way, self.models);
        source.stop();
        self.goes_on(destination);
        told
    }

    /// Begins a migration that stays in pre-copy, and waits until it is in there.
    #[track_caller]
    pub(super) fn begin_slowly(&self, source: &mut Running, uri: &Value) {
        source.execute("migrate-set-parameters", &json!({ "max-bandwidth": 1 << 20 }));
        source.execute("migrate", uri);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let told = source.execute("query-migrate", &json!({}));
            // The devices are in pre-copy before the first byte of memory is sent.
            if told["ram"]["transferred"].as_u64().is_some_and(|bytes| bytes > 0) {
                return;
            }
            assert!(Instant::now() < deadline, "{:?}: the migration does not begin: {told}", self.way);
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Begins a migration that stays in pre-copy, and waits until data of a device was read in there.
    #[track_caller]
    pub(super) fn begin_with_data(&self, source: &mut Running, uri: &Value, was_read: impl Fn() -> bool) {
        // What is pending does not fit this, so that it is sent before the stop.
        let limits = json!({ "max-bandwidth": 16 << 20, "downtime-limit": 1 });
        source.execute("migrate-set-parameters", &limits);
        source.execute("migrate", uri);
        let deadline = Instant::now() + PATIENCE;
        while !was_read() {
            let told = source.execute("query-migrate", &json!({}));
            assert!(Instant::now() < deadline, "{:?}: no data of a device is sent: {told}", self.way);
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Lets a migration be as fast as it can.
    #[track_caller]
    pub(super) fn hurry(source: &mut Running) {
        let limits = json!({ "max-bandwidth": 1_u64 << 30, "downtime-limit": 300 });
        source.execute("migrate-set-parameters", &limits);
    }
}

fn is_disk(model: &str) -> bool {
    model.starts_with("nvme")
}

/// Whether the guest drives a model by the program `jobs`.
fn does_jobs(model: &str) -> bool {
    !model.starts_with("serial") && !is_disk(model)
}

/// The address of a device in the guest.
pub(super) fn address(number: usize) -> String {
    format!("0000:00:1{number}.0")
}

/// Has QEMU begin to receive a migration, and returns from where.
pub(super) fn listen(destination: &mut Running) -> Value {
    let uri = json!({ "uri": format!("unix:{}", destination.path("migration").display()) });
    destination.execute("migrate-incoming", &uri);
    uri
}

/// Waits until a migration is no longer under way, and returns what QEMU says of it.
#[track_caller]
pub(super) fn ended(machine: &mut Running) -> Value {
    ended_or_gone(machine).expect("QEMU has ended")
}

/// The same; `None` if QEMU ends.
#[track_caller]
pub(super) fn ended_or_gone(machine: &mut Running) -> Option<Value> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let told = machine.query("query-migrate")?;
        if matches!(told["status"].as_str(), Some("completed" | "failed" | "cancelled")) {
            return Some(told);
        }
        assert!(Instant::now() < deadline, "the migration does not end: {told}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
