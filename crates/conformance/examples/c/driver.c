/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/*
 * A small migration driver in C, put under test by subject.h: a device of 4 KiB of registers with STOP_COPY, PRE_COPY,
 * a reset and a log of its writes to memory. Replace it with your own.
 *
 *	cc -o driver driver.c && whimbrel conform program:./driver
 *
 * Its stream is a head and records of one page each, with a checksum of all registers at the end.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "log.h"
#include "subject.h"

#include <stdbool.h>
#include <sys/types.h>

enum { ERROR, STOP, RUNNING, STOP_COPY, RESUMING, RUNNING_P2P, PRE_COPY, PRE_COPY_P2P, STATES };
enum { FLAG_STOP_COPY = 1, FLAG_P2P = 2, FLAG_PRE_COPY = 4 };
enum { FEATURE_MIGRATION = 1, FEATURE_STATE = 2, FEATURE_DATA_SIZE = 9, FEATURE_PRECOPY_V2 = 12 };
enum { FEATURE_LOG_START = 6, FEATURE_LOG_STOP = 7, FEATURE_LOG_REPORT = 8 };
enum { FLAG_GET = 1 << 16, FLAG_SET = 1 << 17 };
enum { SIZE = 4096, PAGE = 256, PAGES = SIZE / PAGE };

static const uint64_t device_flags = FLAG_STOP_COPY | FLAG_PRE_COPY;

/* The head of a stream, and of a record in it. */
struct record {
	uint32_t kind;
	uint32_t value; /* the version, a page's number, or the checksum */
};
enum { HEAD = 0x57484452, PAGE_DATA = 1, END = 2 };
enum { RECORD = sizeof(struct record) + PAGE };

struct device {
	uint8_t registers[SIZE];
	uint32_t state;
	bool precopy_v2;

	/* The session: its fd, -1 without one. */
	int fd, next_fd;
	/* Pages to send. Those never sent are initial data; the others have changed since. */
	bool pending[PAGES], sent[PAGES];
	bool head_sent, end_sent;
	/* The record that is being read or written. */
	uint8_t piece[RECORD];
	size_t piece_size, piece_done;
	bool piece_is_dirty; /* a page that was sent before */
	/* What has been loaded: registers become valid with the end. */
	uint8_t loaded[SIZE];
	bool has_page[PAGES], has_head, has_end;
};

/* What a reset leaves alone: the user's memory, and the log of writes to it. */
static struct log dirty_log;
static uint8_t *memory;
static uint64_t memory_iova, memory_length;

static uint32_t checksum(const uint8_t *bytes)
{
	uint32_t sum = 2166136261u;
	size_t at;

	for (at = 0; at < SIZE; at++)
		sum = (sum ^ bytes[at]) * 16777619u;
	return sum;
}

static void power_on(struct device *device)
{
	int next_fd = device->next_fd;

	memset(device, 0, sizeof(*device));
	device->state = RUNNING;
	device->fd = -1;
	device->next_fd = next_fd;
}

/* The state machine: what vfio_mig_get_next_state() does for a driver in the kernel. */

static bool is_supported(uint32_t state)
{
	static const uint64_t needs[STATES] = {
		[STOP] = FLAG_STOP_COPY,
		[RUNNING] = FLAG_STOP_COPY,
		[STOP_COPY] = FLAG_STOP_COPY,
		[RESUMING] = FLAG_STOP_COPY,
		[RUNNING_P2P] = FLAG_STOP_COPY | FLAG_P2P,
		[PRE_COPY] = FLAG_STOP_COPY | FLAG_PRE_COPY,
		[PRE_COPY_P2P] = FLAG_STOP_COPY | FLAG_P2P | FLAG_PRE_COPY,
	};

	return state < STATES && (needs[state] & ~device_flags) == 0;
}

/* Returns the next state on the way, ERROR for an arc that is not permitted. */
static uint32_t next_state(uint32_t from, uint32_t to)
{
	/* A column a state that is asked for, in the order of their numbers. */
	static const uint8_t table[STATES][STATES] = {
		[STOP] = { 0, STOP, RUNNING_P2P, STOP_COPY, RESUMING, RUNNING_P2P, RUNNING_P2P, RUNNING_P2P },
		[RUNNING] = { 0, RUNNING_P2P, RUNNING, RUNNING_P2P, RUNNING_P2P, RUNNING_P2P, PRE_COPY, RUNNING_P2P },
		[STOP_COPY] = { 0, STOP, STOP, STOP_COPY, STOP, STOP, 0, 0 },
		[RESUMING] = { 0, STOP, STOP, STOP, RESUMING, STOP, STOP, STOP },
		[RUNNING_P2P] = { 0, STOP, RUNNING, STOP, STOP, RUNNING_P2P, RUNNING, PRE_COPY_P2P },
		[PRE_COPY] = { 0, RUNNING, RUNNING, PRE_COPY_P2P, RUNNING, RUNNING, PRE_COPY, PRE_COPY_P2P },
		[PRE_COPY_P2P] = { 0, RUNNING_P2P, RUNNING_P2P, STOP_COPY, RUNNING_P2P, RUNNING_P2P, PRE_COPY,
				   PRE_COPY_P2P },
	};
	uint32_t next = table[from][to];

	while (next != ERROR && !is_supported(next))
		next = table[next][to];
	return next;
}

static void begin_session(struct device *device, bool saves)
{
	size_t page;

	device->fd = device->next_fd++;
	device->head_sent = device->end_sent = device->has_head = device->has_end = false;
	device->piece_size = device->piece_done = 0;
	for (page = 0; page < PAGES; page++) {
		device->pending[page] = saves;
		device->sent[page] = device->has_page[page] = false;
	}
}

/* Ends loading: the stream has to be complete and unchanged. */
static int finish_loading(struct device *device)
{
	if (!device->has_end)
		return -EINVAL;
	memcpy(device->registers, device->loaded, SIZE);
	return 0;
}

/* One arc. `fd` is set if it begins a session. */
static int arc(struct device *device, uint32_t to, int *fd)
{
	uint32_t from = device->state;
	bool saved = from == STOP_COPY || from == PRE_COPY || from == PRE_COPY_P2P;
	bool saves = to == STOP_COPY || to == PRE_COPY || to == PRE_COPY_P2P;
	int error;

	if (from == RESUMING) {
		error = finish_loading(device);
		if (error)
			return error;
	}
	if ((saved && !saves) || from == RESUMING)
		device->fd = -1;
	if ((saves && !saved) || to == RESUMING) {
		begin_session(device, saves);
		*fd = device->fd;
	}
	device->state = to;
	return 0;
}

static int set_state(void *opaque, uint32_t state, int *fd)
{
	struct device *device = opaque;
	uint32_t next;
	int error;

	if (!is_supported(device->state) || state == ERROR || !is_supported(state))
		return -EINVAL;
	*fd = -1;
	while (device->state != state) {
		next = next_state(device->state, state);
		if (next == ERROR)
			return -EINVAL;
		*fd = -1;
		error = arc(device, next, fd);
		if (error)
			return error;
	}
	return 0;
}

/* The data fd. */

/* Composes the next record, if anything is to be sent. */
static bool next_piece(struct device *device)
{
	struct record record = { .kind = HEAD, .value = 1 };
	size_t size = sizeof(record), page;

	device->piece_is_dirty = false;
	if (device->head_sent) {
		for (page = 0; page < PAGES && !device->pending[page]; page++)
			;
		if (page < PAGES) {
			record = (struct record){ .kind = PAGE_DATA, .value = (uint32_t)page };
			memcpy(device->piece + sizeof(record), device->registers + page * PAGE, PAGE);
			size = RECORD;
			device->pending[page] = false;
			device->piece_is_dirty = device->sent[page];
			device->sent[page] = true;
		} else if (device->state == STOP_COPY && !device->end_sent) {
			record = (struct record){ .kind = END, .value = checksum(device->registers) };
			device->end_sent = true;
		} else {
			return false;
		}
	}
	device->head_sent = true;
	memcpy(device->piece, &record, sizeof(record));
	device->piece_size = size;
	device->piece_done = 0;
	return true;
}

static int64_t read_data(void *opaque, int fd, void *data, size_t count)
{
	struct device *device = opaque;
	size_t done = 0, now;

	if (fd != device->fd)
		return -ENODEV;
	if (device->state == RESUMING)
		return -EBADF;
	while (done < count) {
		if (device->piece_done == device->piece_size && !next_piece(device))
			break;
		now = device->piece_size - device->piece_done;
		if (now > count - done)
			now = count - done;
		memcpy((uint8_t *)data + done, device->piece + device->piece_done, now);
		device->piece_done += now;
		done += now;
	}
	if (done || !count || device->state == STOP_COPY)
		return (int64_t)done;
	return -ENOMSG;
}

/* Takes a complete record. Nothing is believed that it says. */
static int load_piece(struct device *device)
{
	struct record record;
	size_t page;

	memcpy(&record, device->piece, sizeof(record));
	if (!device->has_head) {
		if (record.value != 1)
			return -EINVAL;
		device->has_head = true;
	} else if (record.kind == PAGE_DATA) {
		memcpy(device->loaded + record.value * PAGE, device->piece + sizeof(record), PAGE);
		device->has_page[record.value] = true;
	} else {
		for (page = 0; page < PAGES; page++)
			if (!device->has_page[page])
				return -EINVAL;
		if (record.value != checksum(device->loaded))
			return -EINVAL;
		device->has_end = true;
	}
	return 0;
}

/* Returns the size of the record whose head has arrived, 0 for an invalid one. */
static size_t size_of_piece(struct device *device)
{
	struct record record;

	memcpy(&record, device->piece, sizeof(record));
	if (record.kind == HEAD && !device->has_head)
		return sizeof(record);
	if (record.kind == PAGE_DATA && device->has_head && record.value < PAGES)
		return RECORD;
	if (record.kind == END && device->has_head)
		return sizeof(record);
	return 0;
}

static int64_t write_data(void *opaque, int fd, const void *data, size_t count)
{
	struct device *device = opaque;
	size_t done = 0, now;
	int error;

	if (fd != device->fd)
		return -ENODEV;
	if (device->state != RESUMING)
		return -EBADF;
	while (done < count) {
		if (device->has_end)
			return -EINVAL; /* more than a whole stream */
		if (!device->piece_size)
			device->piece_size = sizeof(struct record);
		now = device->piece_size - device->piece_done;
		if (now > count - done)
			now = count - done;
		memcpy(device->piece + device->piece_done, (const uint8_t *)data + done, now);
		device->piece_done += now;
		done += now;
		if (device->piece_done == sizeof(struct record)) {
			device->piece_size = size_of_piece(device);
			if (!device->piece_size)
				return -EINVAL;
		}
		if (device->piece_done == device->piece_size) {
			error = load_piece(device);
			if (error)
				return error;
			device->piece_size = device->piece_done = 0;
		}
	}
	return (int64_t)done;
}

/* Counts what there is to read now: pages never sent, and pages sent before that have changed. */
static void count_pending(const struct device *device, uint64_t *initial, uint64_t *dirty)
{
	size_t page;

	*initial = device->head_sent ? 0 : sizeof(struct record);
	*dirty = 0;
	*(device->piece_is_dirty ? dirty : initial) += device->piece_size - device->piece_done;
	for (page = 0; page < PAGES; page++)
		if (device->pending[page])
			*(device->sent[page] ? dirty : initial) += RECORD;
}

static int precopy_info(void *opaque, int fd, struct subject_precopy *info)
{
	struct device *device = opaque;

	if (fd != device->fd)
		return -ENODEV;
	if (device->state == RESUMING)
		return -ENOTTY;
	if (info->argsz < sizeof(*info))
		return -EINVAL;
	if (device->state != PRE_COPY)
		return -EINVAL;
	if (device->precopy_v2)
		info->flags = 0;
	count_pending(device, &info->initial_bytes, &info->dirty_bytes);
	return 0;
}

static int close_data(void *opaque, int fd)
{
	struct device *device = opaque;

	if (fd == device->fd)
		device->fd = -1;
	return 0;
}

/* The device. */

static int info(void *device, uint32_t *flags, uint32_t *regions, uint32_t *irqs)
{
	(void)device;
	*flags = 1; /* VFIO_DEVICE_FLAGS_RESET */
	*regions = 1;
	*irqs = 0;
	return 0;
}

static int region(void *device, uint32_t index, uint64_t *size, uint32_t *flags)
{
	(void)device;
	if (index)
		return -EINVAL;
	*size = SIZE;
	*flags = 3; /* VFIO_REGION_INFO_FLAG_READ and _WRITE */
	return 0;
}

static int region_read(void *opaque, uint32_t index, uint64_t offset, void *data, size_t count)
{
	struct device *device = opaque;

	if (index || offset > SIZE || count > SIZE - offset)
		return -EINVAL;
	memcpy(data, device->registers + offset, count);
	return 0;
}

static int region_write(void *opaque, uint32_t index, uint64_t offset, const void *data, size_t count)
{
	struct device *device = opaque;
	size_t page;

	if (index || offset > SIZE || count > SIZE - offset)
		return -EINVAL;
	memcpy(device->registers + offset, data, count);
	if (count)
		for (page = offset / PAGE; page <= (offset + count - 1) / PAGE; page++)
			device->pending[page] = true;
	return 0;
}

static int reset(void *opaque)
{
	power_on(opaque);
	return 0;
}

static int probe(void *device, uint32_t feature, uint32_t flags)
{
	uint32_t has;

	(void)device;
	switch (feature) {
	case FEATURE_MIGRATION:
	case FEATURE_DATA_SIZE:
		has = FLAG_GET;
		break;
	case FEATURE_STATE:
		has = FLAG_GET | FLAG_SET;
		break;
	case FEATURE_LOG_REPORT:
		has = FLAG_GET;
		break;
	case FEATURE_PRECOPY_V2:
	case FEATURE_LOG_START:
	case FEATURE_LOG_STOP:
		has = FLAG_SET;
		break;
	default:
		return -ENOTTY;
	}
	return flags & (FLAG_GET | FLAG_SET) & ~has ? -EINVAL : 0;
}

static int migration_flags(void *device, uint64_t *flags)
{
	(void)device;
	*flags = device_flags;
	return 0;
}

static int get_state(void *opaque, uint32_t *state)
{
	struct device *device = opaque;

	*state = device->state;
	return 0;
}

static int data_size(void *opaque, uint64_t *bytes)
{
	struct device *device = opaque;
	uint64_t initial, dirty;

	if (device->fd >= 0 && device->state != RESUMING) {
		count_pending(device, &initial, &dirty);
		*bytes = initial + dirty + (device->end_sent ? 0 : sizeof(struct record));
	} else {
		*bytes = 2 * sizeof(struct record) + PAGES * RECORD;
	}
	return 0;
}

static int precopy_v2(void *opaque)
{
	struct device *device = opaque;

	device->precopy_v2 = true;
	return 0;
}

/* The log of writes to memory. */

static int log_start(void *device, uint64_t *page_size, uint32_t count, const struct subject_range *ranges)
{
	(void)device;
	return log_begin(&dirty_log, page_size, count, ranges);
}

static int log_stop(void *device)
{
	(void)device;
	log_end(&dirty_log);
	return 0;
}

static int log_report(void *device, uint64_t iova, uint64_t length, uint64_t page_size, uint64_t *bitmap)
{
	(void)device;
	return log_take(&dirty_log, iova, length, page_size, bitmap);
}

static int map(void *device, uint64_t iova, void *mapped, uint64_t length, uint64_t *own_pages)
{
	(void)device;
	memory = mapped;
	memory_iova = iova;
	memory_length = length;
	*own_pages = 0;
	return 0;
}

/* Writes a byte of a register to each page, as a job of this device would. */
static int dma_write(void *opaque, size_t count, const uint64_t *pages)
{
	struct device *device = opaque;
	size_t at;

	if (device->state != RUNNING && device->state != PRE_COPY)
		return -EBUSY;
	for (at = 0; at < count; at++) {
		if (pages[at] < memory_iova || pages[at] - memory_iova >= memory_length)
			return -EFAULT;
		memory[pages[at] - memory_iova] = device->registers[0];
		log_mark(&dirty_log, pages[at]);
	}
	return 0;
}

/* The probe: what the suite compares. */

static int change(void *opaque, uint64_t seed)
{
	uint8_t bytes[SIZE];
	size_t at;

	for (at = 0; at < SIZE; at++) {
		seed = seed * 6364136223846793005u + 1442695040888963407u;
		bytes[at] = (uint8_t)(seed >> 56);
	}
	return region_write(opaque, 0, 0, bytes, SIZE);
}

static int64_t look(void *opaque, void *data, size_t room)
{
	int error = room < SIZE ? -EINVAL : region_read(opaque, 0, 0, data, SIZE);

	return error ? error : SIZE;
}

int main(void)
{
	static const struct subject_ops ops = {
		.info = info,
		.region = region,
		.region_read = region_read,
		.region_write = region_write,
		.reset = reset,
		.probe = probe,
		.migration_flags = migration_flags,
		.get_state = get_state,
		.set_state = set_state,
		.data_size = data_size,
		.precopy_v2 = precopy_v2,
		.read = read_data,
		.write = write_data,
		.precopy_info = precopy_info,
		.close = close_data,
		.log_start = log_start,
		.log_stop = log_stop,
		.log_report = log_report,
		.map = map,
		.dma_write = dma_write,
		.change = change,
		.look = look,
	};
	static struct device device;

	power_on(&device);
	return subject_run(&ops, &device);
}
