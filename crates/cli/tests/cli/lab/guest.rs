//! Served devices in a guest that others wrote: Linux and its stock drivers, in QEMU with its vfio-user-pci
//! (`lab/run build guest`).

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::machine::{executable, is_ready, lab, succeeded};
use crate::support::Served;

/// A PC with vfio-user devices.
struct Guest {
    options: Vec<String>,
    folder: tempfile::TempDir,
}

impl Guest {
    /// A guest without devices; `None` where QEMU has not been built.
    fn new() -> Option<Guest> {
        is_ready("guest").then(|| Guest {
            options: ["--mtty", ""].map(String::from).to_vec(),
            folder: tempfile::tempdir().unwrap(),
        })
    }

    /// A path of its own for a socket.
    fn socket(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Plugs in the device of the server at this socket. The first is 0000:00:10.0 in the guest.
    fn plug(mut self, socket: &Path) -> Guest {
        self.options.extend(["--vfio-user".into(), socket.to_str().unwrap().into()]);
        self
    }

    /// The run of a shell script in the guest.
    fn command(&self, lines: &str) -> Command {
        let script = self.folder.path().join("script");
        executable(&script, lines);
        let mut run = lab("exec");
        run.args(&self.options).args(["--timeout", "300", "--"]).arg(script);
        run
    }

    fn script(&self, lines: &str) -> Output {
        self.command(lines).output().unwrap()
    }
}

/// Sends `$bytes` random bytes through each port of a serial card, which returns them. The stock driver `8250_pci` has
/// found the ports: it knows the card by its class.
const ECHO: &str = r#"
[ "$(basename "$(readlink /sys/bus/pci/devices/0000:00:10.0/driver)")" = serial ]
for tty in /sys/class/tty/ttyS*; do
    case $(readlink "$tty") in */0000:00:10.0/*) ;; *) continue ;; esac
    tty=$(basename "$tty")
    exec 3<> "/dev/$tty"
    stty -F "/dev/$tty" raw -echo 115200
    head -c "$bytes" /dev/urandom > sent
    head -c "$bytes" <&3 > received & receiver=$!
    cat sent >&3
    wait $receiver
    cmp sent received
    grep "16550A.*tx:$bytes rx:$bytes" /proc/tty/driver/serial
    grep -q "$tty" /proc/interrupts
    exec 3>&-
    echo "$tty returned $(wc -c < received) bytes"
done
"#;

#[test]
fn a_guests_stock_driver_finds_both_serial_ports_and_gets_back_what_it_sends() {
    let Some(guest) = Guest::new() else { return };
    let socket = guest.socket("serial");
    let _served = Served::start("serial?ports=2", &socket);
    let text = succeeded(&guest.plug(&socket).script(&format!("bytes=8192\n{ECHO}")));
    for port in ["ttyS1", "ttyS2"] {
        assert!(text.contains(&format!("{port} returned 8192 bytes")), "{text}");
    }
}
