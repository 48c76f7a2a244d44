/*
 * What the programs of these tests have in common: checks, and the way to a device.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <linux/vfio.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(what)                                                                                  \
	do {                                                                                         \
		if (!(what)) {                                                                       \
			fprintf(stderr, "%s:%d: %s (errno %d, %s)\n", __FILE__, __LINE__, #what, errno, \
				strerror(errno));                                                    \
			exit(1);                                                                     \
		}                                                                                    \
	} while (0)
#define FAILS(what, error) CHECK((errno = 0, (what)) == -1 && errno == (error))

/* What older headers do not have: iommufd, a device's own file, and pre-copy. */
struct iommu_ioas_alloc {
	uint32_t size, flags, out_ioas_id;
};
struct iommu_ioas_map {
	uint32_t size, flags, ioas_id, reserved;
	uint64_t user_va, length, iova;
};
struct iommu_ioas_unmap {
	uint32_t size, ioas_id;
	uint64_t iova, length;
};
struct iommu_hw_info {
	uint32_t size, flags, dev_id, data_len;
	uint64_t data_uptr;
	uint32_t out_data_type, reserved;
	uint64_t out_capabilities;
};
struct device_bind {
	uint32_t argsz, flags;
	int32_t iommufd;
	uint32_t out_devid;
};
struct device_attach {
	uint32_t argsz, flags, pt_id;
};
#define IOAS_ALLOC _IO(';', 0x81)
#define IOAS_MAP _IO(';', 0x85)
#define IOAS_UNMAP _IO(';', 0x86)
#define GET_HW_INFO _IO(';', 0x8a)
#define BIND_IOMMUFD _IO(VFIO_TYPE, VFIO_BASE + 18)
#define ATTACH_IOMMUFD_PT _IO(VFIO_TYPE, VFIO_BASE + 19)
#define STATE_PRE_COPY 6

#define PAGE 4096ul
#define IOVA 0x100000ul

static const char *address;

static inline char *path(const char *format, ...)
{
	static __thread char buffer[512];
	va_list list;

	va_start(list, format);
	vsnprintf(buffer, sizeof buffer, format, list);
	va_end(list);
	return buffer;
}

static inline int group_number(void)
{
	char link[256];
	ssize_t length = readlink(path("/sys/bus/pci/devices/%s/iommu_group", address), link, sizeof link - 1);

	CHECK(length > 0);
	link[length] = 0;
	return atoi(strrchr(link, '/') + 1);
}

static inline int open_group(void)
{
	int group = open(path("/dev/vfio/%d", group_number()), O_RDWR | O_CLOEXEC);

	CHECK(group >= 0);
	return group;
}

static inline int open_container(void)
{
	int container = open("/dev/vfio/vfio", O_RDWR);

	CHECK(container >= 0);
	return container;
}

/* Opens the device's own file, as sysfs names it. */
static inline int open_cdev(void)
{
	struct stat stat;
	unsigned major, minor, number;
	char name[256];
	FILE *file;
	int device;

	for (number = 0; number < 1000; number++) {
		snprintf(name, sizeof name, "/sys/bus/pci/devices/%s/vfio-dev/vfio%u/dev", address, number);
		if (access(name, F_OK) == 0)
			break;
	}
	file = fopen(name, "r");
	CHECK(file && fscanf(file, "%u:%u", &major, &minor) == 2);
	fclose(file);
	device = open(path("/dev/vfio/devices/vfio%u", number), O_RDWR);
	CHECK(device >= 0 && fstat(device, &stat) == 0 && S_ISCHR(stat.st_mode));
	CHECK(major(stat.st_rdev) == major && minor(stat.st_rdev) == minor);
	return device;
}

/* Opens the device by its group, which has no container. */
static inline int reopen_device(int group, int container)
{
	int device;

	CHECK(ioctl(group, VFIO_GROUP_SET_CONTAINER, &container) == 0);
	CHECK(ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU) == 0);
	device = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, address);
	CHECK(device >= 0);
	return device;
}

static inline int open_device(int *group, int *container)
{
	*group = open_group();
	*container = open_container();
	return reopen_device(*group, *container);
}

static inline uint64_t region_offset(int device, unsigned index)
{
	struct vfio_region_info info = { .argsz = sizeof info, .index = index };

	CHECK(ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &info) == 0);
	CHECK(info.size > 0);
	return info.offset;
}

static inline void check_config(int device)
{
	uint64_t config = region_offset(device, VFIO_PCI_CONFIG_REGION_INDEX);
	uint16_t vendor = 0, id = 0;
	unsigned expected;
	struct iovec parts[] = { { &vendor, 2 }, { &id, 2 } };
	FILE *file = fopen(path("/sys/bus/pci/devices/%s/vendor", address), "r");

	CHECK(file && fscanf(file, "%x", &expected) == 1);
	fclose(file);
	CHECK(pread(device, &vendor, 2, config) == 2 && vendor == expected);
	vendor = 0;
	CHECK(preadv(device, parts, 2, config) == 4 && vendor == expected && id != 0);
}

/* Brings a device to a state, and returns the data file, if there is one. */
static inline int migration_state(int device, unsigned to)
{
	struct {
		struct vfio_device_feature head;
		struct vfio_device_feature_mig_state state;
	} set = { { sizeof set, VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE }, { to, -1 } };

	CHECK(ioctl(device, VFIO_DEVICE_FEATURE, &set) == 0);
	return set.state.data_fd;
}

static inline void wait_for(pid_t child)
{
	int status;

	CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
}
