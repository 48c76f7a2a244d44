//! `whimbrel run` and `whimbrel trace` refuse plainly, and at the start, what they cannot serve: on systems that forbid what
//! they need, and programs that hide from them.
//!
//! Each system is played for one process and what it starts: by namespaces of its own, or by a filter that makes a system call
//! fail as it does there.
#![allow(unsafe_code, reason = "commands are started in namespaces, by other users and behind filters")]

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{StatVfsMountFlags, XattrFlags, setxattr, statvfs};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Length, SeccompCmpOp as Op, SeccompCondition as Condition,
    SeccompFilter, SeccompRule, TargetArch,
};

use crate::run::can_run;
use crate::support::{Run, argument, finish, skip};

const WHIMBREL: &str = env!("CARGO_BIN_EXE_whimbrel");
const NOBODY: u32 = 65534;

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A folder that every user can look into, with a copy of the program.
struct Place {
    folder: tempfile::TempDir,
    whimbrel: String,
}

impl Place {
    fn new() -> Place {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        let whimbrel = argument(&folder.path().join("whimbrel"));
        copy(WHIMBREL, Path::new(&whimbrel));
        Place { folder, whimbrel }
    }

    /// Returns a copy of a program of the host with these permissions.
    fn copy(&self, of: &str, mode: u32) -> PathBuf {
        let path = self.folder.path().join(format!("copy-{mode:o}"));
        copy(of, &path);
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        path
    }

    /// Returns whether the folder is one in which programs keep their rights; if not, it is said that `what` is left out.
    fn gives_rights(&self, what: &str) -> bool {
        let is_inert = statvfs(self.folder.path()).unwrap().f_flag.contains(StatVfsMountFlags::NOSUID);
        if is_inert {
            skip(what, "the folder for temporary files is mounted with nosuid (set TMPDIR to another)");
        }
        !is_inert
    }

    /// `whimbrel run` with a device and a program, by a user without rights.
    fn run(&self, program: &[&str]) -> Command {
        self.without_rights(["run", "--device", "serial", "--"].iter().chain(program))
    }

    /// `whimbrel trace` with a program, by a user without rights.
    fn trace(&self, program: &[&str]) -> Command {
        self.without_rights(["trace", "--"].iter().chain(program))
    }

    fn without_rights<'a>(&self, arguments: impl IntoIterator<Item = &'a &'a str>) -> Command {
        let mut command = Command::new(&self.whimbrel);
        command.args(arguments).env_remove("WHIMBREL_LOG").current_dir("/").stdin(Stdio::null());
        if is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        command
    }
}

/// Copies a program in another process: a file that is open for writing cannot be executed, and what this process has open,
/// other tests' children have for a moment too.
fn copy(from: &str, to: &Path) {
    assert!(Command::new("cp").arg(from).arg(to).status().unwrap().success());
}

/// Makes a system call fail with an errno, in the command and all that it starts, if its arguments meet the conditions.
fn deny(command: &mut Command, call: libc::c_long, conditions: Vec<Condition>, errno: i32) {
    let rules = if conditions.is_empty() { vec![] } else { vec![SeccompRule::new(conditions).unwrap()] };
    let arch = TargetArch::try_from(std::env::consts::ARCH).unwrap();
    let filter = SeccompFilter::new(
        BTreeMap::from([(call, rules)]),
        SeccompAction::Allow,
        SeccompAction::Errno(errno.cast_unsigned()),
        arch,
    );
    let filter = BpfProgram::try_from(filter.unwrap()).unwrap();
    let install = move || {
        seccompiler::apply_filter(&filter).map_err(|_| io::Error::from(io::ErrorKind::PermissionDenied))
    };
    // SAFETY: two system calls are made, and nothing is allocated unless they fail.
    unsafe { command.pre_exec(install) };
}

fn equals(argument: u8, value: u64) -> Condition {
    Condition::new(argument, Length::Dword, Op::Eq, value).unwrap()
}

fn has_bits(argument: u8, bits: u64) -> Condition {
    Condition::new(argument, Length::Dword, Op::MaskedEq(bits), bits).unwrap()
}

/// A command that is refused, with this message and this hint.
#[track_caller]
fn refused(command: Command, message: &str, hint: &str) {
    let run = finish(command);
    assert_eq!(run.status, 125, "{message}: {}{}", run.text(), run.stderr);
    assert!(run.stderr.contains(&format!("error: {message}")), "{message}: {}", run.stderr);
    assert!(run.stderr.contains("hint: ") && run.stderr.contains(hint), "{message}: {}", run.stderr);
    assert!(!run.stderr.contains("panicked"), "{}", run.stderr);
}

/// Whether a user without rights can run programs here at all; if not, it is said that `what` is left out.
fn can_run_without_rights(place: &Place, what: &str) -> bool {
    let run = finish(place.run(&["true"]));
    if run.status != 0 {
        skip(what, &run.stderr);
    }
    run.status == 0
}

const LISTENER: u64 = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
const KILLABLE: u64 = libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
/// `SECCOMP_IOCTL_NOTIF_ADDFD`, `PTRACE_SEIZE` and `PTRACE_GET_SYSCALL_INFO`.
const ADDFD: u64 = libc::SECCOMP_IOCTL_NOTIF_ADDFD;
const SEIZE: u64 = libc::PTRACE_SEIZE as u64;
const SYSCALL_INFO: u64 = libc::PTRACE_GET_SYSCALL_INFO as u64;

/// A system that forbids something: its name, the call that fails there, with which arguments and with which errno; the message
/// and the hint.
type Forbidden = (&'static str, libc::c_long, Vec<Condition>, i32, &'static str, &'static str);

#[test]
fn run_names_what_the_system_forbids() {
    let place = Place::new();
    if !can_run_without_rights(&place, "systems that forbid what a run needs") {
        return;
    }
    let namespaces = "sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, \
                      kernel.apparmor_restrict_unprivileged_userns";
    let new_user = has_bits(0, u64::from(libc::CLONE_NEWUSER.cast_unsigned()));
    let tmpfs = equals(3, libc::MS_NOSUID | libc::MS_NODEV);
    let yama = "sysctl kernel.yama.ptrace_scope=1";
    let cases: [Forbidden; 9] = [
        // Debian's sysctl kernel.unprivileged_userns_clone.
        (
            "user namespaces for root only",
            libc::SYS_unshare,
            vec![new_user],
            libc::EPERM,
            "cannot create a user namespace: EPERM",
            namespaces,
        ),
        (
            "no mounts",
            libc::SYS_mount,
            vec![],
            libc::EPERM,
            "cannot create a mount namespace: EPERM",
            "allow mount namespaces there",
        ),
        (
            "no mounts of file systems",
            libc::SYS_mount,
            vec![tmpfs],
            libc::EACCES,
            "cannot lay the devices' files into /sys and /dev (tmpfs at /tmp): EACCES",
            "allow mounts there",
        ),
        (
            "no seccomp",
            libc::SYS_seccomp,
            vec![has_bits(1, LISTENER)],
            libc::ENOSYS,
            "cannot install a seccomp filter with a listener: ENOSYS",
            "Linux 5.14",
        ),
        (
            "a kernel without listeners",
            libc::SYS_seccomp,
            vec![has_bits(1, LISTENER)],
            libc::EINVAL,
            "cannot install a seccomp filter with a listener: EINVAL",
            "Linux 5.14",
        ),
        // What Yama does: each call that accesses another process is refused.
        (
            "Yama",
            libc::SYS_process_vm_readv,
            vec![],
            libc::EPERM,
            "cannot access a process that this one starts (process_vm_readv): EPERM",
            yama,
        ),
        (
            "Yama in a container with an old profile",
            libc::SYS_pidfd_getfd,
            vec![],
            libc::EPERM,
            "cannot access a process that this one starts (pidfd_getfd): EPERM",
            yama,
        ),
        (
            "a kernel without CONFIG_KCMP",
            libc::SYS_kcmp,
            vec![],
            libc::ENOSYS,
            "the kernel does not offer kcmp: ENOSYS",
            "CONFIG_KCMP",
        ),
        (
            "a kernel that gives no descriptors to programs",
            libc::SYS_ioctl,
            vec![equals(1, ADDFD)],
            libc::EINVAL,
            "the kernel does not offer SECCOMP_IOCTL_NOTIF_ADDFD: EINVAL",
            "Linux 5.14",
        ),
    ];
    for (what, call, conditions, errno, message, hint) in cases {
        eprintln!("{what}");
        let mut command = place.run(&["true"]);
        deny(&mut command, call, conditions, errno);
        refused(command, message, hint);
    }
}

#[test]
fn run_does_without_what_only_new_kernels_have() {
    let place = Place::new();
    if !can_run_without_rights(&place, "an older kernel") {
        return;
    }
    // Before Linux 5.19, and before 6.6.
    let older = [
        (libc::SYS_seccomp, vec![has_bits(1, KILLABLE)], libc::EINVAL),
        (libc::SYS_ioctl, vec![equals(1, 0x4008_2104)], libc::EINVAL),
    ];
    for (call, conditions, errno) in older {
        let mut command = place.run(&[&place.whimbrel, "conform", "0100:00:00.0"]);
        deny(&mut command, call, conditions, errno);
        let run = finish(command);
        assert_eq!(run.status, 0, "{}{}", run.text(), run.stderr);
    }
}

/// Puts a command into a user namespace of its own whose limit on namespaces of a kind is 0, without the rights that it would
/// need to do without.
fn limit_namespaces(command: &mut Command, limit: &'static str, dropped: Option<libc::c_ulong>) {
    // SAFETY: these take no arguments.
    let (uid, gid) = unsafe { (libc::getuid(), libc::getgid()) };
    let enter = move || {
        // SAFETY: the process has one thread; the calls take numbers.
        if unsafe { libc::unshare(libc::CLONE_NEWUSER) } != 0 {
            return Err(io::Error::last_os_error());
        }
        fs::write("/proc/self/setgroups", "deny")?;
        fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
        fs::write("/proc/self/gid_map", format!("0 {gid} 1"))?;
        fs::write(format!("/proc/sys/user/{limit}"), "0")?;
        match dropped {
            // SAFETY: the call takes numbers.
            Some(right) if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, right, 0, 0, 0) } != 0 => {
                Err(io::Error::last_os_error())
            }
            _ => Ok(()),
        }
    };
    // SAFETY: the process that starts commands here has no other thread that holds the allocator's lock for ever: its
    // allocator is glibc's, which is usable after a fork.
    unsafe { command.pre_exec(enter) };
}

#[test]
fn run_names_a_limit_on_namespaces() {
    const CAP_SYS_ADMIN: libc::c_ulong = 21;
    if !can_run("limits on namespaces") {
        return;
    }
    let cases = [
        (
            "max_user_namespaces",
            Some(CAP_SYS_ADMIN),
            "cannot create a user namespace: ENOSPC",
            "sysctl user.max_user_namespaces",
        ),
        (
            "max_mnt_namespaces",
            None,
            "cannot create a mount namespace: ENOSPC",
            "sysctl user.max_mnt_namespaces",
        ),
    ];
    for (limit, dropped, message, hint) in cases {
        let command = || {
            let mut command = Command::new(WHIMBREL);
            command.args(["run", "--device", "serial", "--", "true"]).stdin(Stdio::null());
            limit_namespaces(&mut command, limit, dropped);
            command
        };
        match command().output() {
            Ok(_) => refused(command(), message, hint),
            Err(error) => skip("limits on namespaces", &format!("no user namespace with a limit: {error}")),
        }
    }
}

#[test]
fn a_program_that_gains_rights_is_refused() {
    let place = Place::new();
    if !is_root() || !place.gives_rights("programs that gain rights") {
        return skip_without_root("programs that gain rights");
    }
    let (user, group) = (place.copy("/bin/true", 0o4755), place.copy("/bin/true", 0o2755));
    let capable = place.copy("/bin/true", 0o755);
    // VFS_CAP_REVISION_2, effective: CAP_NET_RAW.
    let rights: Vec<u8> =
        [0x0200_0001u32, 1 << 13, 0, 0, 0].iter().flat_map(|word| word.to_le_bytes()).collect();
    setxattr(&capable, "security.capability", &rights, XattrFlags::empty()).unwrap();
    for path in [&user, &group, &capable] {
        let path = argument(path);
        let message = format!("cannot run {path}: it gains the rights of another user or group");
        refused(place.run(&[&path]), &message, "set-user-ID");
    }
}

#[test]
fn a_program_whose_rights_have_no_effect_is_served() {
    let place = Place::new();
    if !is_root() || !can_run_without_rights(&place, "programs whose rights have no effect") {
        return skip_without_root("programs whose rights have no effect");
    }
    // With no_new_privs nobody gains rights, and neither does anyone from a file system that is mounted with nosuid.
    let program = argument(&place.copy("/bin/true", 0o4755));
    let mut command = place.run(&[&program]);
    // SAFETY: the call takes numbers.
    let give_up = || match unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    };
    // SAFETY: it makes one system call.
    unsafe { command.pre_exec(give_up) };
    let run = finish(command);
    assert_eq!(run.status, 0, "{}", run.stderr);
    let folder = argument(&place.folder.path().join("nosuid"));
    fs::create_dir(&folder).unwrap();
    let script = format!(
        "mount -t tmpfs -o nosuid,mode=755 whimbrel {folder} && cp /bin/true {folder}/true && chmod 4755 {folder}/true \
         && exec setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups {} run --device serial -- {folder}/true",
        place.whimbrel
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &script]).current_dir("/").stdin(Stdio::null());
    let run = finish(command);
    assert_eq!(run.status, 0, "{}", run.stderr);
}

#[test]
fn root_runs_programs_of_other_users() {
    let place = Place::new();
    if !is_root() || !place.gives_rights("programs of other users") || !can_run("programs of other users") {
        return skip_without_root("programs of other users");
    }
    // The program is dropped to another user as it begins; its memory is hidden from all but root.
    let other = place.copy(WHIMBREL, 0o4711);
    chown(&other, Some(NOBODY), Some(NOBODY)).unwrap();
    fs::set_permissions(&other, Permissions::from_mode(0o4711)).unwrap();
    assert_eq!(fs::metadata(&other).unwrap().mode() & 0o7777, 0o4711);
    for target in ["0100:00:00.0", "group:0100:00:00.0"] {
        let other = argument(&other);
        let mut command =
            crate::support::command(["run", "--device", "serial", "--", &other, "conform", target]);
        // What root creates is for root alone.
        let private = || {
            rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
            Ok(())
        };
        // SAFETY: it makes one system call.
        unsafe { command.pre_exec(private) };
        let run = finish(command);
        assert_eq!(run.status, 0, "{target}: {}{}", run.text(), run.stderr);
    }
}

#[test]
fn a_program_that_can_be_executed_and_not_read_is_refused() {
    let place = Place::new();
    if !is_root() {
        return skip_without_root("a program that is not readable");
    }
    let program = argument(&place.copy("/bin/true", 0o111));
    let hint = "chmod a+r";
    refused(
        place.run(&[&program]),
        &format!("cannot run {program}: its file is not readable, so that its memory cannot be accessed"),
        hint,
    );
    refused(
        place.trace(&[&program]),
        &format!("cannot trace {program}: its file is not readable, so that its memory cannot be accessed"),
        hint,
    );
}

/// Says that root is needed, once it is not given.
fn skip_without_root(what: &str) {
    if !is_root() {
        skip(what, "only root can make such files and start programs as another user");
    }
}

/// Starts a command whose `/proc` is empty. Fails where that is forbidden.
fn without_proc(command: &mut Command) {
    let flags = if is_root() { libc::CLONE_NEWNS } else { libc::CLONE_NEWNS | libc::CLONE_NEWUSER };
    let empty = move || {
        let (none, proc, tmpfs): (&CStr, &CStr, &CStr) = (c"none", c"/proc", c"tmpfs");
        // SAFETY: the process has one thread, and the strings live.
        let done = unsafe {
            libc::unshare(flags) == 0
                && libc::mount(
                    none.as_ptr(),
                    c"/".as_ptr(),
                    std::ptr::null(),
                    libc::MS_REC | libc::MS_PRIVATE,
                    std::ptr::null(),
                ) == 0
                && libc::mount(none.as_ptr(), proc.as_ptr(), tmpfs.as_ptr(), 0, std::ptr::null()) == 0
        };
        if done { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // SAFETY: it makes system calls, and allocates nothing.
    unsafe { command.pre_exec(empty) };
}

#[test]
fn without_the_proc_of_its_processes_nothing_is_started() {
    let message = "cannot see processes in /proc: it is not mounted, or is that of another PID namespace";
    let hint = "mount -t proc proc /proc";
    let commands: [&[&str]; 2] = [&["run", "--device", "serial", "--", "true"], &["trace", "--", "true"]];
    for arguments in commands {
        let command = || {
            let mut command = Command::new(WHIMBREL);
            command.args(arguments).stdin(Stdio::null());
            without_proc(&mut command);
            command
        };
        match command().output() {
            Ok(_) => refused(command(), message, hint),
            Err(error) => skip("no /proc", &format!("no mount namespace: {error}")),
        }
        // In a new PID namespace, with the /proc of the old one.
        let namespace: &[&str] = if is_root() { &["--pid", "--fork"] } else { &["-Ur", "--pid", "--fork"] };
        let mut command = Command::new("unshare");
        command.args(namespace).arg(WHIMBREL).args(arguments).stdin(Stdio::null());
        let run = command.output().map(|output| output.status.code());
        match run {
            Ok(Some(125)) => refused(command, message, hint),
            other => skip("the /proc of another PID namespace", &format!("unshare(1): {other:?}")),
        }
    }
}

#[test]
fn trace_names_what_the_system_forbids() {
    let cases: [Forbidden; 4] = [
        (
            "Yama",
            libc::SYS_ptrace,
            vec![equals(0, SEIZE)],
            libc::EPERM,
            "cannot trace true: ptrace: EPERM",
            "kernel.yama.ptrace_scope",
        ),
        (
            "no ptrace",
            libc::SYS_ptrace,
            vec![],
            libc::ENOSYS,
            "cannot trace true: ptrace: ENOSYS",
            "a container must allow ptrace",
        ),
        (
            "no seccomp",
            libc::SYS_seccomp,
            vec![],
            libc::ENOSYS,
            "cannot install the seccomp filter that selects the traced calls: ENOSYS",
            "CONFIG_SECCOMP_FILTER",
        ),
        (
            "an old kernel",
            libc::SYS_ptrace,
            vec![equals(0, SYSCALL_INFO)],
            libc::EIO,
            "the kernel lacks PTRACE_GET_SYSCALL_INFO, which Linux has since 5.3",
            "5.3",
        ),
    ];
    for (what, call, conditions, errno, message, hint) in cases {
        eprintln!("{what}");
        let mut command = crate::support::command(["trace", "--", "true"]);
        deny(&mut command, call, conditions, errno);
        refused(command, message, hint);
    }
}

#[test]
fn a_traced_program_gains_no_rights() {
    let place = Place::new();
    if !is_root() || !place.gives_rights("a setuid program under trace") {
        return skip_without_root("a setuid program under trace");
    }
    let program = argument(&place.copy("/usr/bin/id", 0o4755));
    let run: Run = finish(place.trace(&[&program, "-u"]));
    assert_eq!((run.status, run.text()), (0, format!("{NOBODY}\n").as_str()), "{}", run.stderr);
    assert!(Path::new(&program).exists());
}
