/*
 * A program that opens a device by its group or by its own file, and does one step after the other: it prints what each
 * returns, or the number of the errno. `-` stands for a step that has no result.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/vfio.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

/* What older headers do not have. */
struct ioas_alloc {
	uint32_t size, flags, out_ioas_id;
};
struct device_bind {
	uint32_t argsz, flags;
	int32_t iommufd;
	uint32_t out_devid;
};
struct device_attach {
	uint32_t argsz, flags, pt_id;
};
struct precopy_info {
	uint32_t argsz, flags;
	uint64_t initial, dirty;
};
struct logging_control {
	uint64_t page_size;
	uint32_t num_ranges, reserved;
	uint64_t ranges;
};
struct logging_range {
	uint64_t iova, length;
};
struct logging_report {
	uint64_t iova, length, page_size, bitmap;
};
#define IOAS_ALLOC _IO(';', 0x81)
#define BIND_IOMMUFD _IO(VFIO_TYPE, VFIO_BASE + 18)
#define ATTACH_IOMMUFD_PT _IO(VFIO_TYPE, VFIO_BASE + 19)
#define GET_PRECOPY_INFO _IO(VFIO_TYPE, VFIO_BASE + 21)
#define GET (1u << 16)
#define SET (1u << 17)
#define MIG_DEVICE_STATE 2
#define LOGGING_START 6
#define LOGGING_STOP 7
#define LOGGING_REPORT 8
#define MIG_DATA_SIZE 9
#define PRECOPY_INFO_V2 12

static int device, data = -1;

static void fail(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, strerror(errno));
	exit(1);
}

/* Returns the only entry of a folder that begins so. */
static const char *entry(const char *folder, const char *begin)
{
	DIR *entries = opendir(folder);
	struct dirent *found;

	while (entries && (found = readdir(entries)))
		if (strncmp(found->d_name, begin, strlen(begin)) == 0)
			return found->d_name;
	fail(folder);
	return NULL;
}

static void open_by_group(const char *address)
{
	char path[512], link[256];
	int group, container = open("/dev/vfio/vfio", O_RDWR);
	ssize_t length;

	snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/iommu_group", address);
	length = readlink(path, link, sizeof link - 1);
	if (length < 0)
		fail(path);
	link[length] = 0;
	snprintf(path, sizeof path, "/dev/vfio/%s", strrchr(link, '/') + 1);
	group = open(path, O_RDWR);
	if (ioctl(group, VFIO_GROUP_SET_CONTAINER, &container) ||
	    ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU))
		fail(path);
	device = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, address);
}

static void open_by_cdev(const char *address)
{
	char path[512];
	struct ioas_alloc alloc = { .size = sizeof alloc };
	struct device_bind bind = { .argsz = sizeof bind, .iommufd = open("/dev/iommu", O_RDWR) };
	struct device_attach attach = { .argsz = sizeof attach };

	snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/vfio-dev", address);
	snprintf(path, sizeof path, "/dev/vfio/devices/%s", entry(strdup(path), "vfio"));
	device = open(path, O_RDWR);
	if (ioctl(device, BIND_IOMMUFD, &bind) || ioctl(bind.iommufd, IOAS_ALLOC, &alloc))
		fail(path);
	attach.pt_id = alloc.out_ioas_id;
	if (ioctl(device, ATTACH_IOMMUFD_PT, &attach))
		fail(path);
}

/* Makes a request with the data of a feature behind its head. */
static int feature(uint32_t flags, void *value, size_t size)
{
	char bytes[64];
	struct vfio_device_feature head = { sizeof head + size, flags };
	int result;

	memcpy(bytes, &head, sizeof head);
	memcpy(bytes + sizeof head, value, size);
	result = ioctl(device, VFIO_DEVICE_FEATURE, bytes);
	memcpy(value, bytes + sizeof head, size);
	return result;
}

static int is(const char *step, const char *name, const char **rest)
{
	size_t length = strlen(name);

	*rest = step + length + 1;
	return strncmp(step, name, length) == 0 && (step[length] == 0 || step[length] == ':');
}

/* Does a step, and writes down what it returns. Returns -1 if it fails. */
static int take(const char *step, char *told)
{
	static char state[4 << 20];
	static size_t size;
	static uint64_t bitmap[64];
	static struct timespec before;
	struct timespec now;
	struct logging_range range = { 0, 1 << 20 };
	struct logging_control control = { 4096, 1, 0, (uintptr_t)&range };
	struct logging_report report = { 0, 1 << 20, 4096, (uintptr_t)bitmap };
	struct precopy_info info = { .argsz = sizeof info };
	uint32_t words[2] = { 0, -1 };
	uint64_t number = 0;
	const char *rest;
	ssize_t count;

	if (is(step, "set", &rest)) {
		words[0] = atoi(rest);
		clock_gettime(CLOCK_MONOTONIC, &before);
		if (feature(SET | MIG_DEVICE_STATE, words, sizeof words))
			return -1;
		if ((int)words[1] >= 0) {
			close(data);
			data = words[1];
		}
	} else if (is(step, "took", &rest)) {
		clock_gettime(CLOCK_MONOTONIC, &now);
		sprintf(told, "%s", (now.tv_sec - before.tv_sec) * 1000 + (now.tv_nsec - before.tv_nsec) / 1000000 >=
						atoi(rest) ? "long" : "short");
	} else if (is(step, "get", &rest)) {
		if (feature(GET | MIG_DEVICE_STATE, words, sizeof words))
			return -1;
		sprintf(told, "%u", words[0]);
	} else if (is(step, "size", &rest)) {
		if (feature(GET | MIG_DATA_SIZE, &number, sizeof number))
			return -1;
		sprintf(told, "%llu", (unsigned long long)number);
	} else if (is(step, "reset", &rest)) {
		return ioctl(device, VFIO_DEVICE_RESET);
	} else if (is(step, "read", &rest)) {
		count = read(data, state + size, atoi(rest));
		if (count < 0)
			return -1;
		size += count;
		sprintf(told, "%zd", count);
	} else if (is(step, "write", &rest)) {
		count = write(data, state, size);
		if (count < 0)
			return -1;
		sprintf(told, "%zd", count);
	} else if (is(step, "v2", &rest)) {
		return feature(SET | PRECOPY_INFO_V2, words, 0);
	} else if (is(step, "precopy", &rest)) {
		if (ioctl(data, GET_PRECOPY_INFO, &info))
			return -1;
		sprintf(told, "%u/%llu/%llu", info.flags, (unsigned long long)info.initial,
			(unsigned long long)info.dirty);
	} else if (is(step, "log", &rest)) {
		return feature(SET | LOGGING_START, &control, sizeof control);
	} else if (is(step, "unlog", &rest)) {
		return feature(SET | LOGGING_STOP, words, 0);
	} else if (is(step, "report", &rest)) {
		return feature(GET | LOGGING_REPORT, &report, sizeof report);
	} else {
		fprintf(stderr, "unknown step %s\n", step);
		exit(1);
	}
	return 0;
}

int main(int count, char **arguments)
{
	char told[64];

	if (count < 3)
		return 1;
	if (strcmp(arguments[2], "group") == 0)
		open_by_group(arguments[1]);
	else
		open_by_cdev(arguments[1]);
	if (device < 0)
		fail(arguments[2]);
	for (int step = 3; step < count; step++) {
		strcpy(told, "-");
		if (take(arguments[step], told))
			sprintf(told, "E%d", errno);
		printf("%s%s", step > 3 ? " " : "", told);
	}
	puts("");
	return 0;
}
