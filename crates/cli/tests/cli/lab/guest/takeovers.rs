//! Servers that are replaced by others while a guest works with their devices.

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use super::running::Running;
use super::{ECHO, Guest, UIO};
use crate::hand::{kind, stand_between};
use crate::support::{argument, command};
use crate::takeover::Server;

/// A server at this socket that another one may take over from.
pub(super) fn first(model: &str, socket: &Path) -> Server {
    Server::start(&[model, "--allow-takeover", "--socket", &argument(socket)])
}

/// Replaces a server, and returns what it says about that in the end.
#[track_caller]
pub(super) fn replace(server: &mut Server, model: &str, socket: &Path) -> Value {
    let next = loop {
        let at = argument(socket);
        match Server::starting(command(["serve", "--json", model, "--allow-takeover", "--takeover", &at])) {
            Ok(next) => break next,
            Err(why) => assert!(why.contains("has not answered a request for memory; try again"), "{why}"),
        }
    };
    ended(std::mem::replace(server, next))
}

/// What a server says that was replaced.
#[track_caller]
fn ended(server: Server) -> Value {
    let result = server.ended();
    assert_eq!((&result["taken_over"], &result["clients"]), (&true.into(), &1.into()), "{result}");
    result
}

#[test]
#[ignore = "long"]
fn a_guest_gets_back_each_byte_while_the_server_of_its_serial_card_is_replaced() {
    let Some(guest) = Guest::new() else { return };
    let (model, socket) = ("serial?ports=2", guest.socket("serial"));
    let mut server = first(model, &socket);
    let lines = format!("{ECHO} while :; do echo_all 0000:00:10.0 2048; echo round; done");
    let mut running = Running::start(guest.plug(&socket), &lines);
    running.wait_for("round");
    for _ in 0..3 {
        replace(&mut server, model, &socket);
        running.waits_for_more("round");
    }
}

#[test]
#[ignore = "long"]
fn no_job_of_a_guest_is_lost_while_the_server_of_its_engine_is_replaced() {
    for options in [&[][..], &["--no-descriptors"]] {
        let Some(guest) = Guest::new() else { return };
        let (model, socket) = ("accel?state=1MiB", guest.socket("accel"));
        let mut server = first(model, &socket);
        // The program checks each job, and their number.
        let lines = format!(
            "{UIO} uio 0000:00:10.0; while :; do ./jobs uio 0000:00:10.0 intx 1000; echo round; done"
        );
        let mut running = Running::start(guest.with_jobs().with(options).plug(&socket), &lines);
        running.wait_for("round");
        for _ in 0..3 {
            replace(&mut server, model, &socket);
            running.waits_for_more("round");
        }
    }
}

#[test]
#[ignore = "long"]
fn a_guest_that_is_reset_while_the_state_of_its_engine_moves_works_on_behind_the_new_server() {
    const STATE: u64 = 64 << 20;
    let Some(guest) = Guest::new() else { return };
    let (model, socket, between) =
        (format!("accel?state={STATE}"), guest.socket("accel"), guest.socket("between"));
    let old = first(&model, &socket);
    let listener = UnixListener::bind(&between).unwrap();
    let lines = format!(
        "{UIO} echo booted; uio 0000:00:10.0; while :; do ./jobs uio 0000:00:10.0 intx 500; echo round; done"
    );
    let mut running = Running::start(guest.with_jobs().plug(&socket), &lines);
    running.wait_for("booted");
    running.wait_for("round");
    running.execute("set-action", &json!({ "reboot": "reset" }));
    let _new = thread::scope(|scope| {
        let starting = scope.spawn(|| Server::start(&[&model, "--takeover", &argument(&between)]));
        let (moves, moving) = channel();
        let running = &mut running;
        // QEMU answers once the device is reset.
        scope.spawn(move || moving.recv().map(|()| running.execute("system_reset", &json!({}))));
        let mut is_stopped = false;
        stand_between(&socket, &listener, &between, |said| match kind(said) {
            "state" if !is_stopped => {
                let _ = moves.send(());
                // So slowly that the reset comes before the end.
                thread::sleep(Duration::from_millis(50));
            }
            "begin" => is_stopped = true,
            _ => {}
        });
        drop(moves);
        starting.join().unwrap()
    });
    let result = ended(old);
    assert!(result["moved"]["precopy_bytes"].as_u64().unwrap() < STATE, "the reset ends pre-copy: {result}");
    running.wait_for("booted");
    running.wait_for("round");
}
