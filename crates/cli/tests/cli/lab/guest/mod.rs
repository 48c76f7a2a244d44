//! Our devices in a guest that others wrote: Linux and its stock drivers, in QEMU with its vfio-user-pci or its vfio-pci
//! (`lab/run build guest`).

mod disk;
mod lifetimes;
mod run;
mod running;
mod takeovers;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use self::disk::{DISK, NEW_DISK, USE};
use super::machine::{executable, is_ready, jobs, lab, lab_program, succeeded};
use crate::support::{Served, argument, can_be_confined, command};

/// A PC with devices from outside.
struct Guest {
    options: Vec<String>,
    /// Options of `whimbrel run`, under which QEMU runs then.
    run: Vec<String>,
    models: usize,
    folder: tempfile::TempDir,
}

impl Guest {
    /// A guest without devices; `None` where QEMU has not been built.
    fn new() -> Option<Guest> {
        let folder = tempfile::tempdir().unwrap();
        let options = vec!["--mtty".into(), String::new()];
        is_ready("guest").then(|| Guest { options, run: Vec::new(), models: 0, folder })
    }

    /// A path of its own for a socket.
    fn socket(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Another option of `lab/run exec`.
    fn with(mut self, options: &[&str]) -> Guest {
        self.options.extend(options.iter().copied().map(String::from));
        self
    }

    /// Plugs in the device of the server at this socket. The first is 0000:00:10.0 in the guest.
    fn plug(self, socket: &Path) -> Guest {
        self.with(&["--vfio-user", socket.to_str().unwrap()])
    }

    /// Plugs in a model of `whimbrel run`, with these properties of QEMU's vfio-pci.
    fn give(mut self, model: &str, properties: &str) -> Guest {
        self.run.extend(["--device", model].map(String::from));
        let address = format!("0100:00:{:02x}.0{properties}", self.models);
        self.models += 1;
        self.with(&["--vfio-pci", &address])
    }

    /// Another option of `whimbrel run`.
    fn with_run(mut self, options: &[&str]) -> Guest {
        self.run.extend(options.iter().copied().map(String::from));
        self
    }

    /// Gives the guest the program `jobs`.
    fn with_jobs(self) -> Guest {
        self.with(&["--file", jobs().to_str().unwrap()])
    }

    /// The run of a shell script in the guest.
    fn command(&self, lines: &str) -> Command {
        let script = self.folder.path().join("script");
        executable(&script, lines);
        let mut run = if self.run.is_empty() {
            lab("exec")
        } else {
            let mut run = command(["run"]);
            run.args(&self.run).args(["--", &argument(&lab_program()), "exec"]);
            run
        };
        run.args(&self.options).args(["--timeout", "600", "--"]).arg(script);
        run
    }

    fn script(&self, lines: &str) -> Output {
        self.command(lines).output().unwrap()
    }
}

/// In the guest, `until_it COMMAND` waits up to a minute until a command succeeds.
const UNTIL: &str = r#"
until_it() {
    tries=0
    until "$@"; do
        tries=$((tries + 1))
        [ $tries -lt 600 ]
        usleep 100000
    done
}
"#;

/// `echo_all DEVICE BYTES` sends random bytes through each port of a serial card, which returns them. The stock driver
/// `8250_pci` has found the ports: it knows the card by its class.
const ECHO: &str = r#"
echo_all() {
    [ "$(basename "$(readlink "/sys/bus/pci/devices/$1/driver")")" = serial ]
    for tty in /sys/class/tty/ttyS*; do
        case $(readlink "$tty") in */$1/*) ;; *) continue ;; esac
        tty=$(basename "$tty")
        exec 3<> "/dev/$tty"
        stty -F "/dev/$tty" raw -echo 115200
        head -c "$2" /dev/urandom > sent
        head -c "$2" <&3 > received & receiver=$!
        cat sent >&3
        wait $receiver
        cmp sent received
        grep -q "^${tty#ttyS}: uart:16550A" /proc/tty/driver/serial
        grep -q "$tty" /proc/interrupts
        exec 3>&-
        echo "$tty returned $(wc -c < received) bytes"
    done
}
"#;

/// Prepares the engine `$1` for `jobs uio`: its driver, and a huge page.
const UIO: &str = r"
uio() {
    echo uio_pci_generic > /sys/bus/pci/devices/$1/driver_override
    echo $1 > /sys/bus/pci/drivers_probe
    echo 1 > /proc/sys/vm/nr_hugepages
}
";

#[test]
fn a_guest_uses_a_serial_card_and_a_disk_by_their_stock_drivers() {
    let Some(guest) = Guest::new().and_then(Guest::with_disk) else { return };
    let (serial, disk) = (guest.socket("serial"), guest.socket("disk"));
    let _serial = Served::start("serial?ports=2", &serial);
    let _disk = Served::start(&disk::model(guest.folder.path()), &disk);
    let lines = format!("{ECHO} echo_all 0000:00:10.0 8192 {UNTIL} {DISK} {NEW_DISK} {USE}");
    let text = succeeded(&guest.plug(&serial).plug(&disk).script(&lines));
    assert!(text.starts_with(&returned(8192)), "{text}");
    disk::assert_used(&text);
}

fn returned(bytes: u32) -> String {
    format!("ttyS1 returned {bytes} bytes\nttyS2 returned {bytes} bytes\n")
}

#[test]
fn an_engine_does_thousands_of_jobs_of_a_guest_by_dma_and_interrupts() {
    let Some(guest) = Guest::new() else { return };
    let socket = guest.socket("accel");
    let _served = Served::start("accel?state=1MiB", &socket);
    let lines = format!("{UIO} uio 0000:00:10.0; ./jobs uio 0000:00:10.0 intx 2000");
    let text = succeeded(&guest.with_jobs().plug(&socket).script(&lines));
    assert!(text.starts_with("2000 jobs done, "), "{text}");
}

#[test]
#[ignore = "long"]
fn a_confined_server_returns_eighty_kilobytes_to_a_guest() {
    let Some(guest) = Guest::new() else { return };
    if !can_be_confined("a confined server behind a guest") {
        return;
    }
    let socket = guest.socket("serial");
    let _served = Served::confined("serial?ports=2", &socket);
    let lines = format!("{ECHO} echo_all 0000:00:10.0 81920");
    assert_eq!(succeeded(&guest.plug(&socket).script(&lines)), returned(81920));
}

#[test]
#[ignore = "long"]
fn an_engine_works_for_the_vfio_pci_of_a_guest_behind_its_iommu() {
    for (kernel, ways) in [("debian", &["group"][..]), ("iommufd", &["group", "cdev"])] {
        if !is_ready(kernel) {
            return;
        }
        for serve in [Served::start, Served::confined] {
            let Some(guest) = Guest::new() else { return };
            let socket = guest.socket("accel");
            let _served = serve("accel?state=1MiB", &socket);
            let lines: String = ways
                .iter()
                .flat_map(|way| {
                    ["msi", "intx"].map(|line| format!("./jobs {way} 0000:00:10.0 {line} 5000\n"))
                })
                .collect();
            let guest = guest.with_jobs().with(&["--pci", "--kernel", kernel]).plug(&socket);
            let text = succeeded(&guest.script(&lines));
            assert_eq!(text.matches("5000 jobs done, ").count(), ways.len() * 2, "{kernel}: {text}");
        }
    }
}

#[test]
#[ignore = "long"]
fn devices_work_by_messages_for_a_guest_whose_memory_has_no_descriptor() {
    let Some(guest) = Guest::new() else { return };
    let (serial, accel) = (guest.socket("serial"), guest.socket("accel"));
    let _serial = Served::start("serial?ports=2", &serial);
    let _accel = Served::start("accel?state=1MiB", &accel);
    // While QEMU waits for a register it answers no access to memory, and the jobs and registers are many.
    let lines = format!(
        "{ECHO} {UIO} echo_all 0000:00:10.0 4096; uio 0000:00:11.0; ./jobs uio 0000:00:11.0 intx 5000"
    );
    let guest = guest.with_jobs().with(&["--no-descriptors"]).plug(&serial).plug(&accel);
    let text = succeeded(&guest.script(&lines));
    assert!(text.starts_with(&returned(4096)), "{text}");
    assert!(text.contains("5000 jobs done, "), "{text}");
}
