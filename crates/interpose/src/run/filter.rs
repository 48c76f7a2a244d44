//! The seccomp filter of the program: which of its system calls are answered here.
//!
//! Everything else runs untouched, at the cost of a few steps of the filter: see `docs/performance.md`.

use libc::{
    BPF_ABS, BPF_ALU, BPF_AND, BPF_JEQ, BPF_JGE, BPF_JGT, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_RSH, BPF_W,
    SECCOMP_RET_ALLOW, SECCOMP_RET_USER_NOTIF, sock_filter,
};

use crate::seccomp::{ARCH, ARCHITECTURE, NUMBER, argument};

/// The offset in a device's file from which on regions lie: no other file has bytes there.
pub(super) const REGIONS: u64 = whimbrel_device::REGION_MEMORY_START;

/// The type byte of VFIO's and iommufd's requests (`VFIO_TYPE`, `IOMMUFD_TYPE`).
const VFIO_TYPE: u32 = 0x3b;

/// `KVM_SET_DEVICE_ATTR`, by which a VMM tells KVM of its VFIO files.
pub(super) const KVM_SET_DEVICE_ATTR: u32 = 0x4018_aee1;

/// The destination of a jump.
#[derive(Clone, Copy)]
enum To {
    /// The next step.
    Next,
    Allow,
    Notify,
    /// The first step of a block.
    Block(Block),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Block {
    Ioctl,
    File,
    FileHighEnough,
    Offset,
    Mapping,
    Fcntl,
    /// Calls from this number on.
    From(u32),
    /// A call that is ours if its number is that of our architecture.
    Ours,
}

enum Line {
    Load(u32),
    Shift(u32),
    Mask(u32),
    /// Jump code, constant, and where it leads if true and if false.
    Jump(u32, u32, To, To),
    Begin(Block),
    Return(u32),
}

/// The calls whose arguments decide, but for read(2) and write(2).
const CALLS: [(libc::c_long, To); 14] = [
    (libc::SYS_ioctl, To::Block(Block::Ioctl)),
    (libc::SYS_pread64, To::Block(Block::Offset)),
    (libc::SYS_pwrite64, To::Block(Block::Offset)),
    (libc::SYS_preadv, To::Block(Block::Offset)),
    (libc::SYS_pwritev, To::Block(Block::Offset)),
    (libc::SYS_preadv2, To::Block(Block::Offset)),
    (libc::SYS_pwritev2, To::Block(Block::Offset)),
    (libc::SYS_readv, To::Block(Block::File)),
    (libc::SYS_writev, To::Block(Block::File)),
    (libc::SYS_lseek, To::Block(Block::File)),
    (libc::SYS_dup, To::Block(Block::File)),
    (libc::SYS_fcntl, To::Block(Block::Fcntl)),
    (libc::SYS_mmap, To::Block(Block::Mapping)),
    (libc::SYS_io_uring_setup, To::Block(Block::Ours)),
];

/// Calls that are compared one by one at the end of the search.
const COMPARED: usize = 3;

/// Returns the filter of a program whose data files have numbers from `first_data_file` on.
///
/// No argument is loaded for a call that is not ours whatever its arguments: the kernel finds that out when it takes the
/// filter (Linux 5.11), and does not run it for such calls. The architecture is looked at last, for a call that would be ours.
pub(super) fn filter(first_data_file: u32) -> Vec<sock_filter> {
    use Line::{Begin, Jump, Load, Mask, Return, Shift};
    use To::{Allow, Next, Notify};
    let (file, ours) = (To::Block(Block::File), To::Block(Block::Ours));
    // Those that programs make most.
    let mut lines = vec![
        Load(NUMBER),
        Jump(BPF_JEQ, number(libc::SYS_read), file, Next),
        Jump(BPF_JEQ, number(libc::SYS_write), file, Next),
    ];
    let mut calls = CALLS.map(|(call, to)| (number(call), to));
    calls.sort_unstable_by_key(|(call, _)| *call);
    search(&calls, &mut lines);
    lines.extend([
        Begin(Block::Ioctl),
        Load(argument(1)),
        Jump(BPF_JEQ, KVM_SET_DEVICE_ATTR, ours, Next),
        Shift(8),
        Mask(0xff),
        Jump(BPF_JEQ, VFIO_TYPE, ours, Allow),
        // A region, or a data file.
        Begin(Block::Mapping),
        Load(argument(5) + 4),
        Jump(BPF_JGE, (REGIONS >> 32) as u32, ours, Next),
        Load(argument(4)),
        Jump(BPF_JGE, first_data_file, To::Block(Block::FileHighEnough), Allow),
        Begin(Block::Fcntl),
        Load(argument(1)),
        Jump(BPF_JEQ, libc::F_DUPFD as u32, file, Next),
        Jump(BPF_JEQ, libc::F_DUPFD_CLOEXEC as u32, file, Allow),
        // The offset of a region, or a data file, which has no offsets.
        Begin(Block::Offset),
        Load(argument(3) + 4),
        Jump(BPF_JGT, i32::MAX as u32, file, Next),
        Jump(BPF_JGE, (REGIONS >> 32) as u32, ours, Next),
        // A number from the first data file on that is no negative one.
        Begin(Block::File),
        Load(argument(0)),
        Jump(BPF_JGE, first_data_file, Next, Allow),
        Begin(Block::FileHighEnough),
        Jump(BPF_JGT, i32::MAX as u32, Allow, ours),
        Begin(Block::Ours),
        Load(ARCHITECTURE),
        Jump(BPF_JEQ, ARCH, Notify, Allow),
        Return(SECCOMP_RET_ALLOW),
        Return(SECCOMP_RET_USER_NOTIF),
    ]);
    assemble(&lines)
}

/// Finds a call among some that are in the order of their numbers.
fn search(calls: &[(u32, To)], lines: &mut Vec<Line>) {
    if calls.len() > COMPARED {
        let (low, high) = calls.split_at(calls.len() / 2);
        let first = high[0].0;
        lines.push(Line::Jump(BPF_JGE, first, To::Block(Block::From(first)), To::Next));
        search(low, lines);
        lines.push(Line::Begin(Block::From(first)));
        search(high, lines);
        return;
    }
    for (index, (call, to)) in calls.iter().enumerate() {
        let otherwise = if index + 1 < calls.len() { To::Next } else { To::Allow };
        lines.push(Line::Jump(BPF_JEQ, *call, *to, otherwise));
    }
}

const fn number(call: libc::c_long) -> u32 {
    call.cast_unsigned() as u32
}

/// Turns lines into steps: a jump leads as many steps further as there are in between.
fn assemble(lines: &[Line]) -> Vec<sock_filter> {
    let steps_before =
        |end: usize| lines[..end].iter().filter(|line| !matches!(line, Line::Begin(_))).count();
    let count = steps_before(lines.len());
    let place = |to: To, next: usize| match to {
        To::Next => next,
        To::Allow => count - 2,
        To::Notify => count - 1,
        To::Block(block) => {
            let line = lines.iter().position(|line| matches!(line, Line::Begin(begun) if *begun == block));
            steps_before(line.unwrap_or(lines.len()))
        }
    };
    let statement = |code: u32, k: u32| sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let mut steps = Vec::with_capacity(count);
    for line in lines {
        let next = steps.len() + 1;
        let step = match line {
            Line::Begin(_) => continue,
            Line::Load(offset) => statement(BPF_LD | BPF_W | BPF_ABS, *offset),
            Line::Shift(bits) => statement(BPF_ALU | BPF_RSH | BPF_K, *bits),
            Line::Mask(mask) => statement(BPF_ALU | BPF_AND | BPF_K, *mask),
            Line::Return(action) => statement(BPF_RET | BPF_K, *action),
            Line::Jump(code, k, if_true, if_false) => sock_filter {
                code: (BPF_JMP | code | BPF_K) as u16,
                jt: (place(*if_true, next) - next) as u8,
                jf: (place(*if_false, next) - next) as u8,
                k: *k,
            },
        };
        steps.push(step);
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seccomp::tests;

    const FIRST: u32 = 960;

    fn call<const ARGUMENTS: usize>(number: libc::c_long, arguments: [u64; ARGUMENTS]) -> [u8; 64] {
        tests::call(ARCH, number, arguments)
    }

    fn run(data: [u8; 64]) -> (u32, usize) {
        tests::run(&filter(FIRST), data)
    }

    fn is_ours<const ARGUMENTS: usize>(number: libc::c_long, arguments: [u64; ARGUMENTS]) -> bool {
        run(call(number, arguments)).0 == SECCOMP_RET_USER_NOTIF
    }

    #[test]
    fn requests_of_vfio_and_iommufd_are_ours_and_those_of_others_are_not() {
        assert!(is_ours(libc::SYS_ioctl, [3, 0x3b64, 0, 0, 0]));
        assert!(is_ours(libc::SYS_ioctl, [3, 0x3b80, 0, 0, 0]));
        assert!(is_ours(libc::SYS_ioctl, [3, KVM_SET_DEVICE_ATTR.into(), 0, 0, 0]));
        assert!(!is_ours(libc::SYS_ioctl, [3, 0x5401, 0, 0, 0]));
        assert!(!is_ours(libc::SYS_ioctl, [3, 0x3b, 0, 0, 0]), "the number is no type");
    }

    #[test]
    fn accesses_at_the_offsets_of_regions_are_ours() {
        for number in [
            libc::SYS_pread64,
            libc::SYS_pwrite64,
            libc::SYS_preadv,
            libc::SYS_pwritev,
            libc::SYS_preadv2,
            libc::SYS_pwritev2,
        ] {
            assert!(is_ours(number, [3, 0, 4, REGIONS, 0]));
            assert!(is_ours(number, [3, 0, 4, REGIONS + (8 << 40) + 0x30, 0]));
            assert!(!is_ours(number, [3, 0, 4, REGIONS - 1, 0]));
            assert!(!is_ours(number, [3, 0, 4, 0, 0]));
            assert!(!is_ours(number, [3, 0, 4, u64::MAX, 0]), "a negative offset");
        }
    }

    #[test]
    fn streams_of_high_numbers_are_ours() {
        let mut numbers = vec![libc::SYS_read, libc::SYS_write, libc::SYS_readv, libc::SYS_writev];
        numbers.extend([libc::SYS_lseek, libc::SYS_dup, libc::SYS_pread64, libc::SYS_pwrite64]);
        for number in numbers {
            assert!(is_ours(number, [FIRST.into(), 0, 0, 0, 0]));
            assert!(!is_ours(number, [u64::from(FIRST) - 1, 0, 0, 0, 0]));
            assert!(!is_ours(number, [u64::from(u32::MAX), 0, 0, 0, 0]), "descriptor -1");
        }
    }

    #[test]
    fn a_duplicate_of_a_stream_is_ours_and_its_other_controls_are_not() {
        for control in [libc::F_DUPFD, libc::F_DUPFD_CLOEXEC] {
            assert!(is_ours(libc::SYS_fcntl, [FIRST.into(), control.cast_unsigned().into(), 0, 0, 0]));
            assert!(!is_ours(libc::SYS_fcntl, [3, control.cast_unsigned().into(), 0, 0, 0]));
        }
        assert!(!is_ours(libc::SYS_fcntl, [FIRST.into(), libc::F_GETFL.cast_unsigned().into(), 0, 0, 0]));
    }

    #[test]
    fn a_mapping_of_a_stream_is_ours_and_anonymous_memory_is_not() {
        assert!(is_ours(libc::SYS_mmap, [0, 4096, 1, 1, FIRST.into()]));
        assert!(!is_ours(libc::SYS_mmap, [0, 4096, 1, 1, 3]));
        assert!(!is_ours(libc::SYS_mmap, [0, 4096, 1, 0x22, u64::MAX]));
    }

    #[test]
    fn a_mapping_of_a_region_is_ours() {
        let at = |offset| is_ours(libc::SYS_mmap, [0, 4096, 3, 1, 3, offset]);
        assert!(at(REGIONS) && at(REGIONS + (9 << 40) + 4096));
        assert!(!at(REGIONS - 4096) && !at(0));
    }

    #[test]
    fn a_ring_that_would_pass_by_the_filter_is_ours() {
        assert!(is_ours(libc::SYS_io_uring_setup, [8, 0, 0, 0, 0]));
    }

    #[test]
    fn no_other_call_is_ours_whatever_its_arguments() {
        let arguments = [u64::from(FIRST), 0x3b64, REGIONS, REGIONS, FIRST.into(), REGIONS];
        let ours = (0..600).filter(|number| is_ours(*number, arguments)).count();
        assert_eq!(ours, 15);
    }

    #[test]
    fn calls_of_another_architecture_are_not_ours() {
        let mut data = call(libc::SYS_ioctl, [3, 0x3b64, 0, 0, 0]);
        data[4..8].copy_from_slice(&0x4000_0003u32.to_ne_bytes());
        assert_eq!(run(data).0, SECCOMP_RET_ALLOW);
    }

    #[test]
    fn the_arguments_of_few_calls_are_looked_at() {
        let looks = |number: &u32| {
            let first = CALLS.into_iter().map(|(call, _)| call).chain([libc::SYS_read, libc::SYS_write]);
            first.into_iter().any(|call| call == libc::c_long::from(*number))
        };
        let steps = filter(FIRST);
        for number in (0..600).filter(|number| !looks(number)) {
            // The number and the architecture alone.
            let data = &call(number.into(), [0; 5])[..16];
            assert_eq!(tests::run(&steps, data).0, SECCOMP_RET_ALLOW, "call {number}");
        }
    }

    #[test]
    fn a_call_that_is_not_ours_takes_few_steps() {
        assert_eq!(run(call(libc::SYS_read, [3, 0, 4096, 0, 0])).1, 5);
        assert!((0..600).all(|number| run(call(number, [0; 5])).1 <= 16));
    }
}
