//! The process at the other end of a socket, in words that tell it apart from any other one.

use std::fs;
use std::os::unix::net::UnixStream;

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;

/// Returns the process that listens: its id, its start and the boot, because ids are used again. `None` for one of another
/// PID namespace, and for the first process, which listens on behalf of services that it starts.
pub(super) fn of(stream: &UnixStream) -> Option<String> {
    let id = getsockopt(stream, PeerCredentials).ok()?.pid();
    let stat = (id > 1).then(|| fs::read_to_string(format!("/proc/{id}/stat")))?.ok()?;
    // The second field is the program's name in parentheses, which may contain both spaces and parentheses.
    let started = stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?;
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(format!("process {id}, start {started}, boot {}", boot.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_at_the_other_end_is_named_with_its_start_and_the_boot() {
        let (here, _there) = UnixStream::pair().unwrap();
        let holder = of(&here).unwrap();
        let words: Vec<&str> = holder.split(' ').collect();
        let ["process", id, "start", started, "boot", boot] = words[..] else { panic!("{holder}") };
        assert_eq!(id, format!("{},", std::process::id()));
        assert!(started.trim_end_matches(',').parse::<u64>().unwrap() > 0, "{holder}");
        assert_eq!(boot.len(), 36, "{holder}");
    }
}
