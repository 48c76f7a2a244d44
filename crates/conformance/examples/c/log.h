/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/*
 * A log of a device's writes to memory, in pages of 4 KiB, with the checks that VFIO's core makes for drivers in the
 * kernel.
 */
#ifndef WHIMBREL_LOG_H
#define WHIMBREL_LOG_H

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "subject.h"

enum { LOG_PAGE = 4096, LOG_RANGES = LOG_PAGE / 16 };

struct log {
	bool runs;
	uint32_t count;
	struct subject_range ranges[LOG_RANGES];
	uint8_t *dirty[LOG_RANGES]; /* a byte a page */
};

static void log_end(struct log *log)
{
	while (log->count)
		free(log->dirty[--log->count]);
	log->runs = false;
}

static bool log_overlap(const struct subject_range *one, const struct subject_range *other)
{
	return one->iova < other->iova + other->length && other->iova < one->iova + one->length;
}

static int log_begin(struct log *log, uint64_t *page_size, uint32_t count, const struct subject_range *ranges)
{
	uint32_t at, other;

	if (log->runs || !count || *page_size < LOG_PAGE || *page_size & (*page_size - 1))
		return -EINVAL;
	if (count > LOG_RANGES)
		return -E2BIG;
	for (at = 0; at < count; at++) {
		if (!ranges[at].length || (ranges[at].iova | ranges[at].length) & (*page_size - 1))
			return -EINVAL;
		if (ranges[at].iova + ranges[at].length < ranges[at].iova)
			return -EOVERFLOW;
		for (other = 0; other < at; other++)
			if (log_overlap(&ranges[at], &ranges[other]))
				return -EINVAL;
	}
	for (at = 0; at < count; at++) {
		log->dirty[at] = calloc(ranges[at].length / LOG_PAGE, 1);
		if (!log->dirty[at]) {
			log_end(log);
			return -ENOMEM;
		}
		log->ranges[at] = ranges[at];
		log->count++;
	}
	log->runs = true;
	*page_size = LOG_PAGE;
	return 0;
}

/* Notes a write. */
static void log_mark(struct log *log, uint64_t iova)
{
	uint32_t at;

	for (at = 0; at < log->count; at++)
		if (iova >= log->ranges[at].iova && iova - log->ranges[at].iova < log->ranges[at].length)
			log->dirty[at][(iova - log->ranges[at].iova) / LOG_PAGE] = 1;
}

/* Reports the writes to a range, a bit for each `page_size` bytes, and forgets them. */
static int log_take(struct log *log, uint64_t iova, uint64_t length, uint64_t page_size, uint64_t *bitmap)
{
	uint64_t page, offset;
	uint32_t at;

	if (!log->runs || page_size < LOG_PAGE || page_size & (page_size - 1))
		return -EINVAL;
	if (iova + length < iova)
		return -EOVERFLOW;
	for (at = 0; at < log->count; at++) {
		for (page = 0; page < log->ranges[at].length / LOG_PAGE; page++) {
			offset = log->ranges[at].iova + page * LOG_PAGE - iova;
			if (!log->dirty[at][page] || offset >= length)
				continue;
			log->dirty[at][page] = 0;
			bitmap[offset / page_size / 64] |= (uint64_t)1 << (offset / page_size % 64);
		}
	}
	return 0;
}

#endif
