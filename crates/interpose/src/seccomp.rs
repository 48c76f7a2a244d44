//! A system call as a seccomp filter sees it (`struct seccomp_data`). What becomes of which call is decided by the filters of
//! [`run`](crate::run) and [`trace`](crate::trace).

/// `AUDIT_ARCH_*` of the processor that this is built for: its number for ELF, 64 bits, little-endian.
#[cfg(target_arch = "x86_64")]
pub(crate) const ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
pub(crate) const ARCH: u32 = 0xc000_00b7;
#[cfg(target_arch = "riscv64")]
pub(crate) const ARCH: u32 = 0xc000_00f3;

/// Offset of the number of the call.
pub(crate) const NUMBER: u32 = 0;
/// Offset of the architecture of the program.
pub(crate) const ARCHITECTURE: u32 = 4;

/// Returns the offset of an argument: of its lower half, and the upper half follows.
pub(crate) const fn argument(index: u32) -> u32 {
    16 + 8 * index
}

/// Filters run on calls, as the kernel runs them.
#[cfg(test)]
pub(crate) mod tests {
    use libc::{
        BPF_ALU, BPF_AND, BPF_JEQ, BPF_JGE, BPF_JGT, BPF_JMP, BPF_LD, BPF_RET, BPF_RSH, c_long, sock_filter,
    };

    /// Returns a system call.
    pub(crate) fn call<const ARGUMENTS: usize>(
        arch: u32,
        number: c_long,
        arguments: [u64; ARGUMENTS],
    ) -> [u8; 64] {
        let mut data = [0; 64];
        data[..4].copy_from_slice(&(number.cast_unsigned() as u32).to_ne_bytes());
        data[4..8].copy_from_slice(&arch.to_ne_bytes());
        for (index, argument) in arguments.iter().enumerate() {
            data[16 + 8 * index..24 + 8 * index].copy_from_slice(&argument.to_ne_bytes());
        }
        data
    }

    /// Runs a filter; returns its action and the number of steps.
    pub(crate) fn run(steps: &[sock_filter], data: impl AsRef<[u8]>) -> (u32, usize) {
        let data = data.as_ref();
        let (mut at, mut accumulator, mut taken) = (0, 0u32, 0);
        loop {
            let step = &steps[at];
            (at, taken) = (at + 1, taken + 1);
            let code = u32::from(step.code);
            match (code & 7, code & 0xf0) {
                (BPF_LD, _) => {
                    let from = step.k as usize;
                    accumulator = u32::from_ne_bytes(data[from..from + 4].try_into().unwrap());
                }
                (BPF_ALU, BPF_RSH) => accumulator >>= step.k,
                (BPF_ALU, BPF_AND) => accumulator &= step.k,
                (BPF_JMP, test) => {
                    let holds = match test {
                        BPF_JEQ => accumulator == step.k,
                        BPF_JGE => accumulator >= step.k,
                        BPF_JGT => accumulator > step.k,
                        _ => panic!("a jump with code {code:#x}"),
                    };
                    at += usize::from(if holds { step.jt } else { step.jf });
                }
                (BPF_RET, _) => return (step.k, taken),
                _ => panic!("a step with code {code:#x}"),
            }
        }
    }
}
