//! The seccomp filter of a traced program: which of its system calls stop for the tracer. This module makes no system
//! calls.
//!
//! A call that the filter decides by its number alone costs nothing: since Linux 5.11 the kernel knows such calls and runs
//! no filter for them. So only calls with an argument to look at pay for the filter.

use libc::c_long;
use seccompiler::{BpfProgram, sock_filter};

use super::calls::{self, When};
use crate::seccomp::{self, ARCH, ARCHITECTURE, NUMBER};

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const AND: u16 = (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16;
const IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const IF_AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

const ALLOW: sock_filter = step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW);
const TRACE: sock_filter = step(RETURN, 0, 0, libc::SECCOMP_RET_TRACE);

const fn step(code: u16, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

/// Returns the filter: the calls of VFIO stop, or with `all_io` all calls that may concern a VFIO file.
///
/// A program of another architecture passes: its calls have other numbers.
pub(super) fn filter(all_io: bool) -> BpfProgram {
    let mut program =
        vec![step(LOAD, 0, 0, ARCHITECTURE), step(IF_EQUAL, 1, 0, ARCH), ALLOW, step(LOAD, 0, 0, NUMBER)];
    for (number, when) in calls::stopping(all_io) {
        let body = body(when);
        // A table of a few dozen short bodies.
        let length = u8::try_from(body.len()).unwrap_or(u8::MAX);
        program.push(step(IF_EQUAL, 0, length, word(number)));
        program.extend(body);
    }
    program.push(ALLOW);
    program
}

/// Returns a system call's number as the kernel's data has it.
fn word(number: c_long) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// Returns the steps that decide about a call whose number fits.
fn body(when: When) -> Vec<sock_filter> {
    match when {
        When::Always => vec![TRACE],
        When::Masked { argument, mask, value } => vec![
            step(LOAD, 0, 0, seccomp::argument(argument)),
            step(AND, 0, 0, mask),
            step(IF_EQUAL, 0, 1, value),
            TRACE,
            ALLOW,
        ],
        When::OneOf { argument, values: [first, second] } => vec![
            step(LOAD, 0, 0, seccomp::argument(argument)),
            step(IF_EQUAL, 1, 0, first),
            step(IF_EQUAL, 0, 1, second),
            TRACE,
            ALLOW,
        ],
        When::HighHalf { argument, least } => {
            vec![
                step(LOAD, 0, 0, seccomp::argument(argument) + 4),
                step(IF_AT_LEAST, 0, 1, least),
                TRACE,
                ALLOW,
            ]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seccomp::tests;

    fn decide(program: &[sock_filter], arch: u32, number: c_long, arguments: [u64; 6]) -> u32 {
        let own = |sock_filter { code, jt, jf, k }: &sock_filter| libc::sock_filter {
            code: *code,
            jt: *jt,
            jf: *jf,
            k: *k,
        };
        let steps: Vec<_> = program.iter().map(own).collect();
        tests::run(&steps, tests::call(arch, number, arguments)).0
    }

    fn stops(all_io: bool, number: c_long, arguments: [u64; 6]) -> bool {
        decide(&filter(all_io), ARCH, number, arguments) == libc::SECCOMP_RET_TRACE
    }

    #[test]
    fn requests_of_vfio_stop_and_other_ioctls_pass() {
        for all_io in [false, true] {
            assert!(stops(all_io, libc::SYS_ioctl, [3, 0x3b75, 0, 0, 0, 0]));
            assert!(stops(all_io, libc::SYS_ioctl, [3, 0xffff_ffff_0000_3bff, 0, 0, 0, 0]));
            assert!(!stops(all_io, libc::SYS_ioctl, [3, 0x5401, 0, 0, 0, 0]));
            assert!(!stops(all_io, libc::SYS_ioctl, [3, 0x3b, 0, 0, 0, 0]));
        }
    }

    #[test]
    fn accesses_at_offsets_of_regions_stop_and_accesses_to_files_pass() {
        let at = |offset: u64| [3, 0, 4, offset, 0, 0];
        for number in [libc::SYS_pread64, libc::SYS_pwrite64, libc::SYS_preadv, libc::SYS_pwritev] {
            assert!(stops(false, number, at(7 << 40)));
            assert!(stops(false, number, at(1 << 40)));
            assert!(!stops(false, number, at((1 << 40) - 1)));
            assert!(stops(true, number, at(0)));
        }
        assert!(stops(false, libc::SYS_mmap, [0, 4096, 3, 1, 3, 2 << 40]));
        assert!(!stops(false, libc::SYS_mmap, [0, 4096, 3, 1, 3, 4096]));
    }

    #[test]
    fn duplicates_stop_only_with_all_io_and_other_commands_of_fcntl_never() {
        let fcntl = |all_io, command: i32| {
            stops(all_io, libc::SYS_fcntl, [3, u64::from(command.cast_unsigned()), 0, 0, 0, 0])
        };
        for all_io in [false, true] {
            assert_eq!(stops(all_io, libc::SYS_dup3, [3, 4, 0, 0, 0, 0]), all_io);
            assert_eq!(fcntl(all_io, libc::F_DUPFD), all_io);
            assert_eq!(fcntl(all_io, libc::F_DUPFD_CLOEXEC), all_io);
            assert!(!fcntl(all_io, libc::F_SETFL));
        }
    }

    #[test]
    fn plain_reads_and_writes_stop_only_with_all_io() {
        for number in [libc::SYS_read, libc::SYS_write, libc::SYS_readv, libc::SYS_close, libc::SYS_openat] {
            assert!(!stops(false, number, [3, 0, 4096, 0, 0, 0]));
            assert!(stops(true, number, [3, 0, 4096, 0, 0, 0]));
        }
        for number in [libc::SYS_getppid, libc::SYS_futex, libc::SYS_execve] {
            assert!(!stops(true, number, [0; 6]));
        }
    }

    #[test]
    fn programs_of_another_architecture_pass() {
        let i386 = 0x4000_0003;
        let answer = decide(&filter(true), i386, libc::SYS_ioctl, [3, 0x3b75, 0, 0, 0, 0]);
        assert_eq!(answer, libc::SECCOMP_RET_ALLOW);
    }
}
