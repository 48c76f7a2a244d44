/*
 * What an answer to a trapped call costs at least: a program makes pread(2), and its parent answers it by system calls
 * alone, without the rest of `whimbrel run`. The ways to answer take turns. It prints nanoseconds a call, of the fastest
 * round, the median of the fastest tenth, and the median.
 *
 *   cc -O2 -o notified notified.c && ./notified
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CHECK(holds)                                                                 \
	do {                                                                         \
		if (!(holds)) {                                                      \
			fprintf(stderr, "line %d: %s: %s\n", __LINE__, #holds, strerror(errno)); \
			exit(1);                                                     \
		}                                                                    \
	} while (0)

#ifndef SECCOMP_IOCTL_NOTIF_SET_FLAGS
#define SECCOMP_IOCTL_NOTIF_SET_FLAGS SECCOMP_IOW(4, __u64)
#endif
#define REGIONS (1UL << 62)
#define ROUNDS 1000
#define CALLS 40

/* The steps of an answer, besides its reception and the answer itself. */
enum {
	WAIT = 1,         /* poll(2) for the call and the end of all */
	STAT = 2,         /* the file of the descriptor, by path */
	STAT_FOLDER = 4,  /* the same, in /proc/PID/fd that is open */
	FDINFO = 8,       /* the same, from /proc/PID/fdinfo/N that is open */
	KCMP = 16,        /* whether the descriptor is a given open file */
	VALID = 32,       /* whether the call still waits */
	VALID_TWICE = 64,
	WRITE = 128,      /* the answer's byte into the memory of the program */
	WRITE_MEM = 256,  /* the same, by /proc/PID/mem that is open */
};

static const struct {
	const char *name;
	int steps;
} ways[] = {
	{ "receive and answer", 0 },
	{ "and write to memory", WRITE },
	{ "and check the call", WRITE | VALID },
	{ "and fdinfo", WRITE | VALID | FDINFO },
	{ "  kcmp instead of fdinfo", WRITE | VALID | KCMP },
	{ "  stat in an open folder", WRITE | VALID | STAT_FOLDER },
	{ "  stat by path", WRITE | VALID | STAT },
	{ "and poll: all of a register", WRITE | VALID | FDINFO | WAIT },
	{ "  by /proc/PID/mem", WRITE_MEM | VALID | FDINFO | WAIT },
	{ "  with stat, two checks", WRITE | VALID | VALID_TWICE | STAT | WAIT },
};
#define WAYS (sizeof ways / sizeof *ways)

static int by_size(const void *one, const void *other)
{
	long a = *(const long *)one, b = *(const long *)other;

	return (a > b) - (a < b);
}

static long now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000L + time.tv_nsec;
}

static int install_filter(void)
{
	struct sock_filter steps[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_pread64, 0, 2),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[3]) + 4),
		BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, REGIONS >> 32, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
	};
	struct sock_fprog program = { sizeof steps / sizeof *steps, steps };
	int listener;

	CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
	listener = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &program);
	CHECK(listener >= 0);
	return listener;
}

/* The program: its calls tell by their length how they are to be answered. */
static void run_program(int socket)
{
	static long times[WAYS][ROUNDS];
	int file = memfd_create("device", MFD_CLOEXEC), listener = install_filter();
	size_t way, round, call;
	unsigned char byte;

	/* The parent takes the listener by pidfd_getfd(2). */
	CHECK(file >= 0 && write(socket, &listener, sizeof listener) == sizeof listener);
	CHECK(read(socket, &byte, 1) == 1);
	for (round = 0; round < ROUNDS; round++)
		for (way = 0; way < WAYS; way++) {
			long begun = now();

			for (call = 0; call < CALLS; call++)
				CHECK(syscall(SYS_pread64, file, &byte, way, REGIONS) == 1);
			times[way][round] = (now() - begun) / CALLS;
		}
	for (way = 0; way < WAYS; way++) {
		long *sorted = times[way];

		qsort(sorted, ROUNDS, sizeof *sorted, by_size);
		printf("%-30s %6ld %6ld %6ld\n", ways[way].name, sorted[0], sorted[ROUNDS / 20], sorted[ROUNDS / 2]);
	}
}

static int open_of(pid_t program, const char *name, int flags)
{
	char path[64];
	int file;

	snprintf(path, sizeof path, "/proc/%d/%s", program, name);
	file = open(path, flags | O_CLOEXEC);
	CHECK(file >= 0);
	return file;
}

/* Answers one call. */
static void answer(int listener, struct seccomp_notif *call, const int files[3])
{
	struct seccomp_notif_resp response = { .id = call->id, .val = 1 };
	struct iovec ours, theirs = { (void *)call->data.args[1], 1 };
	int steps = ways[call->data.args[2]].steps, fd = call->data.args[0];
	unsigned char byte = 7;
	char text[160];
	struct stat stat;

	ours = (struct iovec){ &byte, 1 };
	if (steps & STAT) {
		snprintf(text, sizeof text, "/proc/%d/fd/%d", call->pid, fd);
		CHECK(fstatat(AT_FDCWD, text, &stat, 0) == 0);
	}
	if (steps & STAT_FOLDER) {
		snprintf(text, sizeof text, "%d", fd);
		CHECK(fstatat(files[0], text, &stat, 0) == 0);
	}
	if (steps & FDINFO)
		CHECK(pread(files[1], text, sizeof text, 0) > 0);
	if (steps & KCMP)
		CHECK(syscall(SYS_kcmp, call->pid, getpid(), 0, fd, files[2]) > 0);
	if (steps & VALID)
		CHECK(ioctl(listener, SECCOMP_IOCTL_NOTIF_ID_VALID, &call->id) == 0);
	if (steps & VALID_TWICE)
		CHECK(ioctl(listener, SECCOMP_IOCTL_NOTIF_ID_VALID, &call->id) == 0);
	if (steps & WRITE)
		CHECK(process_vm_writev(call->pid, &ours, 1, &theirs, 1, 0) == 1);
	if (steps & WRITE_MEM)
		CHECK(pwrite(files[2], &byte, 1, call->data.args[1]) == 1);
	CHECK(ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &response) == 0);
}

int main(void)
{
	int pair[2], stop = eventfd(0, 0), listener, next = 0, files[3] = { -1, -1, -1 };
	struct seccomp_notif call;
	pid_t program;

	CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) == 0);
	program = fork();
	CHECK(program >= 0);
	if (program == 0) {
		run_program(pair[1]);
		return 0;
	}
	CHECK(read(pair[0], &listener, sizeof listener) == sizeof listener);
	listener = syscall(SYS_pidfd_getfd, syscall(SYS_pidfd_open, program, 0), listener, 0);
	CHECK(listener >= 0);
	/* Linux 6.6. */
	ioctl(listener, SECCOMP_IOCTL_NOTIF_SET_FLAGS, 1UL);
	CHECK(write(pair[0], "", 1) == 1);
	for (;;) {
		struct pollfd ready[] = { { listener, POLLIN, 0 }, { stop, POLLIN, 0 } };

		/* The way is known once the call is: the next one is likely as the last. */
		if (next & WAIT && poll(ready, 2, -1) > 0 && !(ready[0].revents & POLLIN))
			break;
		memset(&call, 0, sizeof call);
		if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &call) < 0) {
			if (errno == ENOENT)
				break;
			continue;
		}
		if (files[0] < 0) {
			char name[32];

			snprintf(name, sizeof name, "fdinfo/%d", (int)call.data.args[0]);
			files[0] = open_of(program, "fd", O_PATH | O_DIRECTORY);
			files[1] = open_of(program, name, O_RDONLY);
			files[2] = open_of(program, "mem", O_RDWR);
		}
		next = ways[call.data.args[2]].steps;
		answer(listener, &call, files);
	}
	CHECK(waitpid(program, NULL, 0) == program);
	return 0;
}
