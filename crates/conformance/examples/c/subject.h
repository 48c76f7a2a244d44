/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/*
 * Puts a driver in C under the test of `whimbrel conform program:COMMAND`: reads requests from stdin, calls the
 * driver's functions and answers on stdout, by version 1 of the protocol in docs/conformance-stdin.md.
 *
 * Fill in a struct subject_ops and call subject_run() in main(). A function that is NULL is not implemented: cases that
 * need it are skipped. Functions return 0 or a count, or a negative errno, as in the kernel. Nothing else may write to
 * stdout; stderr is free.
 */
#ifndef WHIMBREL_SUBJECT_H
#define WHIMBREL_SUBJECT_H

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <unistd.h>

/* What `struct vfio_precopy_info` has. */
struct subject_precopy {
	uint32_t argsz;
	uint32_t flags; /* in: the user's; out: VFIO_PRECOPY_INFO_REINIT */
	uint64_t initial_bytes;
	uint64_t dirty_bytes;
};

struct subject_range {
	uint64_t iova;
	uint64_t length;
};

struct subject_ops {
	/* VFIO_DEVICE_GET_INFO, _GET_REGION_INFO, _GET_IRQ_INFO. The first one is required. */
	int (*info)(void *device, uint32_t *flags, uint32_t *regions, uint32_t *irqs);
	int (*region)(void *device, uint32_t index, uint64_t *size, uint32_t *flags);
	int (*irq)(void *device, uint32_t index, uint32_t *count, uint32_t *flags);
	/* Accesses to a region: all of the bytes, or an error. */
	int (*region_read)(void *device, uint32_t index, uint64_t offset, void *data, size_t count);
	int (*region_write)(void *device, uint32_t index, uint64_t offset, const void *data, size_t count);
	/* VFIO_DEVICE_RESET. */
	int (*reset)(void *device);
	/* VFIO_DEVICE_FEATURE with PROBE: 0, or -ENOTTY. `flags` are those of the request. */
	int (*probe)(void *device, uint32_t feature, uint32_t flags);
	/* VFIO_DEVICE_FEATURE_MIGRATION. Required. */
	int (*migration_flags)(void *device, uint64_t *flags);
	/* VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE. Required. `fd` is -1, or a new number from 0 on. */
	int (*get_state)(void *device, uint32_t *state);
	int (*set_state)(void *device, uint32_t state, int *fd);
	/* VFIO_DEVICE_FEATURE_MIG_DATA_SIZE. */
	int (*data_size)(void *device, uint64_t *bytes);
	/* VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2. */
	int (*precopy_v2)(void *device);
	/* The data fd. As VFS does in the kernel, a read of a resuming one and a write to a saving one fail with -EBADF. */
	int64_t (*read)(void *device, int fd, void *data, size_t count);
	int64_t (*write)(void *device, int fd, const void *data, size_t count);
	int (*precopy_info)(void *device, int fd, struct subject_precopy *info);
	int (*close)(void *device, int fd);
	/* VFIO_DEVICE_FEATURE_DMA_LOGGING_START, _STOP, _REPORT. */
	int (*log_start)(void *device, uint64_t *page_size, uint32_t count, const struct subject_range *ranges);
	int (*log_stop)(void *device);
	int (*log_report)(void *device, uint64_t iova, uint64_t length, uint64_t page_size, uint64_t *bitmap);
	/* VFIO_DEVICE_FEATURE as bytes: `data` is what stands behind argsz and flags. */
	int (*feature)(void *device, uint32_t argsz, uint32_t flags, void *data, size_t count);
	/*
	 * The author's probe, for cases that compare registers. `change` puts the device into one of many states that
	 * are unlike the one after a reset, by `seed`. `look` copies all of the state that a user can see and a migration
	 * carries, at most `room` bytes, and returns their number.
	 */
	int (*change)(void *device, uint64_t seed);
	int64_t (*look)(void *device, void *data, size_t room);
	/*
	 * The author's way to make the device write, for cases that compare its log with what it has written. `map` gives it
	 * memory at `iova`, to read and write as long as the program runs, and sets the number of pages of 4 KiB from its
	 * start that the device uses for itself. `dma_write` makes the device write to each of these pages, and returns
	 * once it has. Both or none.
	 */
	int (*map)(void *device, uint64_t iova, void *memory, uint64_t length, uint64_t *own_pages);
	int (*dma_write)(void *device, size_t count, const uint64_t *pages);
};

#define SUBJECT_LOOK (1 << 20) /* room for `look` */
#define SUBJECT_UNIMPLEMENTED 89 /* also an exit status: this program does not do that */

static void subject_error(int error)
{
	printf("error %d\n", -error);
}

/* Answers with bytes. */
static void subject_bytes(const void *data, size_t count)
{
	printf("ok %zu\n", count);
	fwrite(data, 1, count, stdout);
}

/* A function has returned more bytes than there is room for. */
static void subject_overrun(const char *function)
{
	fprintf(stderr, "%s returned more bytes than there is room for\n", function);
	exit(1);
}

static void *subject_memory(size_t count)
{
	void *memory = calloc(count ? count : 1, 1);

	if (!memory) {
		fprintf(stderr, "no memory for %zu bytes\n", count);
		exit(1);
	}
	return memory;
}

/* Reads the bytes behind a request. */
static void *subject_payload(size_t count)
{
	void *data = subject_memory(count);

	if (fread(data, 1, count, stdin) != count) {
		fprintf(stderr, "stdin ended within the bytes of a request\n");
		exit(1);
	}
	return data;
}

static int subject_log_start(const struct subject_ops *ops, void *device, const char *arguments)
{
	uint64_t page_size;
	uint32_t count, at;
	int used, error;
	struct subject_range *ranges;

	if (sscanf(arguments, "%" SCNu64 " %" SCNu32 "%n", &page_size, &count, &used) != 2 || count > 1 << 20)
		return 0;
	ranges = subject_memory(count * sizeof(*ranges));
	for (at = 0; at < count; at++) {
		arguments += used;
		if (sscanf(arguments, " %" SCNu64 " %" SCNu64 "%n", &ranges[at].iova, &ranges[at].length, &used) != 2) {
			free(ranges);
			return 0;
		}
	}
	error = ops->log_start(device, &page_size, count, ranges);
	free(ranges);
	if (error)
		subject_error(error);
	else
		printf("ok %" PRIu64 "\n", page_size);
	return 1;
}

/* Gives the device memory of the suite, which is in a file. */
static int subject_map(const struct subject_ops *ops, void *device, const char *arguments)
{
	uint64_t iova, length, offset, own_pages = 0;
	char path[128];
	void *memory = MAP_FAILED;
	int fd, error;

	if (sscanf(arguments, "%" SCNu64 " %" SCNu64 " %" SCNu64 " %127s", &iova, &length, &offset, path) != 4)
		return 0;
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd >= 0) {
		memory = mmap(NULL, (size_t)length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)offset);
		error = -errno;
		close(fd);
	} else {
		error = -errno;
	}
	if (memory != MAP_FAILED)
		error = ops->map(device, iova, memory, length, &own_pages);
	if (error)
		subject_error(error);
	else
		printf("ok %" PRIu64 "\n", own_pages);
	return 1;
}

static int subject_dma_write(const struct subject_ops *ops, void *device, const char *arguments)
{
	size_t count, at;
	int used, error;
	uint64_t *pages;

	if (sscanf(arguments, "%zu%n", &count, &used) != 1 || count > 1 << 20)
		return 0;
	/* Asked for at each start, whether there is memory or not. */
	if (!count) {
		printf("ok\n");
		return 1;
	}
	pages = subject_memory(count * sizeof(*pages));
	for (at = 0; at < count; at++) {
		arguments += used;
		if (sscanf(arguments, " %" SCNu64 "%n", &pages[at], &used) != 1) {
			free(pages);
			return 0;
		}
	}
	error = ops->dma_write(device, count, pages);
	free(pages);
	if (error)
		subject_error(error);
	else
		printf("ok\n");
	return 1;
}

/* Answers a request that `ops` implements. Returns 0 if it implements none of this name. */
static int subject_answer(const struct subject_ops *ops, void *device, const char *verb, const char *arguments)
{
	uint32_t a = 0, b = 0, c = 0;
	uint64_t large = 0, offset = 0, page_size = 0;
	size_t count = 0;
	int fd = -1, error;
	int64_t done;
	void *data;

#define IS(name, function) (!strcmp(verb, name) && ops->function)
#define SCAN(wanted, ...) (sscanf(arguments, __VA_ARGS__) == (wanted))
#define ANSWER(...)                                   \
	do {                                          \
		if (error)                            \
			subject_error(error);         \
		else                                  \
			printf(__VA_ARGS__);          \
		return 1;                             \
	} while (0)

	if (!strcmp(verb, "hello")) {
		printf("ok 1\n");
		return 1;
	}
	if (IS("info", info)) {
		error = ops->info(device, &a, &b, &c);
		ANSWER("ok %u %u %u\n", a, b, c);
	}
	if (IS("region", region) && SCAN(1, "%" SCNu32, &a)) {
		error = ops->region(device, a, &large, &b);
		ANSWER("ok %" PRIu64 " %u\n", large, b);
	}
	if (IS("irq", irq) && SCAN(1, "%" SCNu32, &a)) {
		error = ops->irq(device, a, &b, &c);
		ANSWER("ok %u %u\n", b, c);
	}
	if (IS("region-read", region_read) && SCAN(3, "%" SCNu32 " %" SCNu64 " %zu", &a, &offset, &count)) {
		data = subject_memory(count);
		error = ops->region_read(device, a, offset, data, count);
		if (error)
			subject_error(error);
		else
			subject_bytes(data, count);
		free(data);
		return 1;
	}
	if (IS("reset", reset)) {
		error = ops->reset(device);
		ANSWER("ok\n");
	}
	if (IS("probe", probe) && SCAN(2, "%" SCNu32 " %" SCNu32, &a, &b)) {
		error = ops->probe(device, a, b);
		ANSWER("ok\n");
	}
	if (IS("flags", migration_flags)) {
		error = ops->migration_flags(device, &large);
		ANSWER("ok %" PRIu64 "\n", large);
	}
	if (IS("state", get_state)) {
		error = ops->get_state(device, &a);
		ANSWER("ok %u\n", a);
	}
	if (IS("set-state", set_state) && SCAN(1, "%" SCNu32, &a)) {
		error = ops->set_state(device, a, &fd);
		ANSWER("ok %d\n", fd);
	}
	if (IS("data-size", data_size)) {
		error = ops->data_size(device, &large);
		ANSWER("ok %" PRIu64 "\n", large);
	}
	if (IS("precopy-v2", precopy_v2)) {
		error = ops->precopy_v2(device);
		ANSWER("ok\n");
	}
	if (IS("read", read) && SCAN(2, "%d %zu", &fd, &count)) {
		data = subject_memory(count);
		done = ops->read(device, fd, data, count);
		if (done < 0)
			subject_error((int)done);
		else if ((size_t)done > count)
			subject_overrun("read");
		else
			subject_bytes(data, (size_t)done);
		free(data);
		return 1;
	}
	if (IS("precopy-info", precopy_info) && SCAN(3, "%d %" SCNu32 " %" SCNu32, &fd, &a, &b)) {
		struct subject_precopy info = { .argsz = a, .flags = b };

		error = ops->precopy_info(device, fd, &info);
		ANSWER("ok %u %" PRIu64 " %" PRIu64 "\n", info.flags, info.initial_bytes, info.dirty_bytes);
	}
	if (IS("change", change) && SCAN(1, "%" SCNu64, &large)) {
		error = ops->change(device, large);
		ANSWER("ok\n");
	}
	if (IS("look", look)) {
		data = subject_memory(SUBJECT_LOOK);
		done = ops->look(device, data, SUBJECT_LOOK);
		if (done < 0)
			subject_error((int)done);
		else if ((size_t)done > (size_t)SUBJECT_LOOK)
			subject_overrun("look");
		else
			subject_bytes(data, (size_t)done);
		free(data);
		return 1;
	}
	if (IS("map", map) && ops->dma_write)
		return subject_map(ops, device, arguments);
	if (IS("dma-write", dma_write) && ops->map)
		return subject_dma_write(ops, device, arguments);
	if (IS("close", close) && SCAN(1, "%d", &fd)) {
		error = ops->close(device, fd);
		ANSWER("ok\n");
	}
	if (IS("log-start", log_start))
		return subject_log_start(ops, device, arguments);
	if (IS("log-stop", log_stop)) {
		error = ops->log_stop(device);
		ANSWER("ok\n");
	}
	if (IS("log-report", log_report) &&
	    SCAN(3, "%" SCNu64 " %" SCNu64 " %" SCNu64, &offset, &large, &page_size) && page_size) {
		uint64_t pages = large / page_size + (large % page_size != 0);

		count = (size_t)(pages / 64 + (pages % 64 != 0)) * 8;
		data = subject_memory(count);
		error = ops->log_report(device, offset, large, page_size, data);
		if (error)
			subject_error(error);
		else
			subject_bytes(data, count);
		free(data);
		return 1;
	}
#undef ANSWER
	return 0;
}

/* Answers a request with bytes behind its line, which have to be read whoever implements it. */
static int subject_answer_bytes(const struct subject_ops *ops, void *device, const char *verb, const char *arguments)
{
	uint32_t a, b;
	uint64_t offset;
	size_t count;
	int fd, error = 0;
	int64_t done;
	void *data;

	if (!strcmp(verb, "region-write") && SCAN(3, "%" SCNu32 " %" SCNu64 " %zu", &a, &offset, &count)) {
		data = subject_payload(count);
		if (!ops->region_write)
			printf("unimplemented\n");
		else if ((error = ops->region_write(device, a, offset, data, count)))
			subject_error(error);
		else
			printf("ok\n");
	} else if (!strcmp(verb, "write") && SCAN(2, "%d %zu", &fd, &count)) {
		data = subject_payload(count);
		if (!ops->write)
			printf("unimplemented\n");
		else if ((done = ops->write(device, fd, data, count)) < 0)
			subject_error((int)done);
		else
			printf("ok %" PRIi64 "\n", done);
	} else if (!strcmp(verb, "feature") && SCAN(3, "%" SCNu32 " %" SCNu32 " %zu", &a, &b, &count)) {
		data = subject_payload(count);
		if (!ops->feature)
			printf("unimplemented\n");
		else if ((error = ops->feature(device, a, b, data, count)))
			subject_error(error);
		else
			subject_bytes(data, count);
	} else {
		return 0;
	}
	free(data);
	return 1;
}

/* Serves requests until stdin ends. Returns the program's exit status. */
static int subject_run(const struct subject_ops *ops, void *device)
{
	char *line = NULL;
	size_t room = 0;

	while (getline(&line, &room, stdin) > 0) {
		char verb[32] = "";
		int used = 0;

		sscanf(line, "%31s%n", verb, &used);
		if (!subject_answer_bytes(ops, device, verb, line + used) &&
		    !subject_answer(ops, device, verb, line + used))
			printf("unimplemented\n");
		if (fflush(stdout))
			break;
	}
	free(line);
	return 0;
}

#undef IS
#undef SCAN

#endif
