/*
 * A program that uses VFIO devices by the kernel's headers, as any other does. Each argument after the PCI address names
 * one thing that it does; it ends with 0, or names the line that failed.
 */
#include "vfio.h"
#include "held.h"

static void *map(int container, int flags, int fd)
{
	struct vfio_iommu_type1_dma_map dma = { .argsz = sizeof dma, .flags = 3, .iova = IOVA, .size = 2 * PAGE };
	void *memory = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, flags, fd, 0);

	CHECK(memory != MAP_FAILED);
	dma.vaddr = (uintptr_t)memory;
	CHECK(ioctl(container, VFIO_IOMMU_MAP_DMA, &dma) == 0);
	FAILS(ioctl(container, VFIO_IOMMU_MAP_DMA, &dma), EEXIST);
	return memory;
}

static void unmap_size(int container, uint64_t size)
{
	struct vfio_iommu_type1_dma_unmap dma = { .argsz = sizeof dma, .iova = IOVA, .size = size };

	CHECK(ioctl(container, VFIO_IOMMU_UNMAP_DMA, &dma) == 0 && dma.size == size);
}

static void unmap(int container)
{
	unmap_size(container, 2 * PAGE);
}

/* The requests of a group, a container and a device, in order. */
static void group(void)
{
	struct vfio_group_status status = { .argsz = sizeof status };
	struct vfio_device_info info = { .argsz = sizeof info };
	struct vfio_iommu_type1_info iommu = { .argsz = sizeof iommu };
	struct vfio_irq_info irq = { .argsz = sizeof irq, .index = VFIO_PCI_INTX_IRQ_INDEX };
	int group = open_group(), container = open_container(), other, device;

	CHECK(ioctl(group, VFIO_GROUP_GET_STATUS, &status) == 0 && status.flags == VFIO_GROUP_FLAGS_VIABLE);
	other = open_group();
	FAILS(ioctl(other, VFIO_GROUP_GET_STATUS, &status), EBUSY);
	close(other);
	FAILS(ioctl(group, VFIO_GROUP_GET_DEVICE_FD, address), EINVAL);
	CHECK(ioctl(container, VFIO_GET_API_VERSION) == VFIO_API_VERSION);
	CHECK(ioctl(container, VFIO_CHECK_EXTENSION, VFIO_TYPE1v2_IOMMU) == 1);
	CHECK(ioctl(container, VFIO_CHECK_EXTENSION, 12345) == 0);
	FAILS(ioctl(group, VFIO_GROUP_SET_CONTAINER, &group), EBADFD);
	CHECK(ioctl(group, VFIO_GROUP_SET_CONTAINER, &container) == 0);
	CHECK(ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1_IOMMU) == 0);
	CHECK(ioctl(container, VFIO_IOMMU_GET_INFO, &iommu) == 0 && (iommu.iova_pgsizes & PAGE));
	CHECK(iommu.argsz > sizeof iommu);
	FAILS(ioctl(group, VFIO_GROUP_GET_DEVICE_FD, "0000:00:00.7"), ENODEV);
	device = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, address);
	CHECK(device >= 0 && (fcntl(device, F_GETFD) & FD_CLOEXEC));
	CHECK(ioctl(device, VFIO_DEVICE_GET_INFO, &info) == 0 && (info.flags & VFIO_DEVICE_FLAGS_PCI));
	CHECK(ioctl(device, VFIO_DEVICE_GET_IRQ_INFO, &irq) == 0 && irq.count == 1);
	FAILS(ioctl(device, VFIO_GROUP_GET_STATUS, &status), ENOTTY);
	check_config(device);
	CHECK(ioctl(device, VFIO_DEVICE_RESET) == 0);
	FAILS(ioctl(group, VFIO_GROUP_UNSET_CONTAINER), EBUSY);
	CHECK(close(device) == 0);
	CHECK(ioctl(group, VFIO_GROUP_UNSET_CONTAINER) == 0);
	close(group);
	close(container);
}

/* The requests of a cdev and an iommufd, in the order of QEMU 10. */
static void cdev(void)
{
	void *memory = mmap(NULL, 2 * PAGE, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct iommu_ioas_alloc alloc = { .size = sizeof alloc };
	struct iommu_hw_info hardware = { .size = sizeof hardware };
	struct device_bind bind = { .argsz = sizeof bind };
	struct device_attach attach = { .argsz = sizeof attach };
	struct iommu_ioas_map map = { .size = sizeof map, .flags = 7, .length = 2 * PAGE, .iova = IOVA };
	struct iommu_ioas_unmap unmap = { .size = sizeof unmap, .length = 2 * PAGE, .iova = IOVA };
	struct vfio_device_info info = { .argsz = sizeof info };
	int device, iommu;

	device = open_cdev();
	iommu = open("/dev/iommu", O_RDWR);
	CHECK(iommu >= 0);
	FAILS(ioctl(device, VFIO_DEVICE_GET_INFO, &info), EINVAL);
	bind.iommufd = iommu;
	CHECK(ioctl(device, BIND_IOMMUFD, &bind) == 0);
	FAILS(ioctl(device, BIND_IOMMUFD, &bind), EINVAL);
	hardware.dev_id = bind.out_devid;
	CHECK(ioctl(iommu, GET_HW_INFO, &hardware) == 0);
	CHECK(ioctl(iommu, IOAS_ALLOC, &alloc) == 0);
	attach.pt_id = alloc.out_ioas_id;
	CHECK(ioctl(device, ATTACH_IOMMUFD_PT, &attach) == 0);
	map.ioas_id = unmap.ioas_id = alloc.out_ioas_id;
	map.user_va = (uintptr_t)memory;
	CHECK(ioctl(iommu, IOAS_MAP, &map) == 0);
	CHECK(ioctl(iommu, IOAS_UNMAP, &unmap) == 0 && unmap.length == 2 * PAGE);
	CHECK(ioctl(device, VFIO_DEVICE_GET_INFO, &info) == 0);
	check_config(device);
	FAILS(ioctl(open_group(), VFIO_GROUP_GET_DEVICE_FD, address), EBUSY);
	close(device);
	close(iommu);
}

static void write_file(const char *name, const char *text)
{
	int file = open(name, O_WRONLY);

	CHECK(file >= 0 && write(file, text, strlen(text)) == (ssize_t)strlen(text));
	close(file);
}

/* The files are known in a chroot, whose /dev is another mount. */
static void jail(void)
{
	struct device_bind bind = { .argsz = sizeof bind };
	struct vfio_device_info info = { .argsz = sizeof info };
	char name[256] = "", maps[2][64];
	int device = open_cdev();

	CHECK(readlink(path("/proc/self/fd/%d", device), name, sizeof name - 1) > 0);
	close(device);
	snprintf(maps[0], sizeof maps[0], "%u %u 1", geteuid(), geteuid());
	snprintf(maps[1], sizeof maps[1], "%u %u 1", getegid(), getegid());
	if (unshare(CLONE_NEWNS)) {
		CHECK(unshare(CLONE_NEWUSER | CLONE_NEWNS) == 0);
		write_file("/proc/self/setgroups", "deny");
		write_file("/proc/self/uid_map", maps[0]);
		write_file("/proc/self/gid_map", maps[1]);
	}
	CHECK(mount("jail", "/tmp", "tmpfs", 0, NULL) == 0 && mkdir("/tmp/dev", 0755) == 0);
	CHECK(mount("/dev", "/tmp/dev", NULL, MS_BIND | MS_REC, NULL) == 0);
	CHECK(chroot("/tmp") == 0 && chdir("/") == 0);
	device = open(name, O_RDWR);
	bind.iommufd = open("/dev/iommu", O_RDWR);
	CHECK(device >= 0 && bind.iommufd >= 0);
	CHECK(ioctl(device, BIND_IOMMUFD, &bind) == 0);
	CHECK(ioctl(device, VFIO_DEVICE_GET_INFO, &info) == 0);
}

static int trigger(int device, int event)
{
	struct {
		struct vfio_irq_set set;
		int event;
	} set = { { sizeof set, VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER, 0, 0, 1 }, event };

	return ioctl(device, VFIO_DEVICE_SET_IRQS, &set);
}

/* Without root, nobody else sees the descriptors of such a program in /proc. */
static void undumpable(void)
{
	int group, container, device;

	CHECK(prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) == 0);
	device = open_device(&group, &container);
	check_config(device);
	CHECK(trigger(device, eventfd(0, 0)) == 0);
}

/* Memory of each kind is mapped; memory that is not there is not. */
static void memory(void)
{
	struct vfio_iommu_type1_dma_map dma = { .argsz = sizeof dma, .flags = 3, .iova = IOVA, .size = PAGE };
	int group, container, device = open_device(&group, &container), file = memfd_create("ram", 0);
	void *it;

	CHECK(ftruncate(file, 2 * PAGE) == 0);
	munmap(map(container, MAP_PRIVATE | MAP_ANONYMOUS, -1), 2 * PAGE);
	/* The mapping outlives the memory. */
	unmap(container);
	munmap(map(container, MAP_SHARED | MAP_ANONYMOUS, -1), 2 * PAGE);
	unmap(container);
	munmap(map(container, MAP_SHARED, file), 2 * PAGE);
	unmap(container);
	it = map(container, MAP_SHARED, file);
	close(file);
	unmap(container);
	dma.vaddr = (uintptr_t)it;
	munmap(it, 2 * PAGE);
	FAILS(ioctl(container, VFIO_IOMMU_MAP_DMA, &dma), EFAULT);
	it = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	dma.vaddr = (uintptr_t)it;
	FAILS(ioctl(container, VFIO_IOMMU_MAP_DMA, &dma), EFAULT);
	dma.flags = VFIO_DMA_MAP_FLAG_READ;
	CHECK(ioctl(container, VFIO_IOMMU_MAP_DMA, &dma) == 0);
	unmap_size(container, PAGE);
	/* Only what is not written has to be readable. */
	CHECK(mprotect(it, PAGE, PROT_WRITE) == 0);
	FAILS(ioctl(container, VFIO_IOMMU_MAP_DMA, &dma), EFAULT);
	for (dma.flags = VFIO_DMA_MAP_FLAG_WRITE; dma.flags <= 3; dma.flags++) {
		CHECK(ioctl(container, VFIO_IOMMU_MAP_DMA, &dma) == 0);
		unmap_size(container, PAGE);
	}
	close(device);
}

/* An argument that is not there is EFAULT, and one that ends at the end of memory is read. */
static void faults(void)
{
	int group, container, device = open_device(&group, &container);
	char *pages = mmap(NULL, 2 * PAGE, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct vfio_device_info *info = (void *)(pages + PAGE - 16);
	uint64_t config = region_offset(device, VFIO_PCI_CONFIG_REGION_INDEX);

	CHECK(munmap(pages + PAGE, PAGE) == 0);
	FAILS(ioctl(device, VFIO_DEVICE_GET_INFO, NULL), EFAULT);
	FAILS(ioctl(device, VFIO_DEVICE_GET_INFO, pages + PAGE), EFAULT);
	info->argsz = 16;
	CHECK(ioctl(device, VFIO_DEVICE_GET_INFO, info) == 0);
	FAILS(ioctl(device, VFIO_DEVICE_GET_INFO, pages + PAGE - 8), EFAULT);
	FAILS(pread(device, pages + PAGE, 4, config), EFAULT);
	FAILS(pwrite(device, pages + PAGE, 4, config), EFAULT);
	FAILS(pread(device, pages, 4, config + 0x10000), EINVAL);
	FAILS(ioctl(device, _IO(';', 0xff), pages), ENOTTY);
	FAILS(ioctl(-1, VFIO_DEVICE_GET_INFO, pages), EBADF);
	FAILS(pread(device, pages, 4, -1), EINVAL);
}

/* A descriptor that only stands for a path takes no requests, and does not open the group. */
static void paths(void)
{
	struct vfio_group_status status = { .argsz = sizeof status };
	int only_path = open(path("/dev/vfio/%d", group_number()), O_PATH);

	CHECK(only_path >= 0);
	FAILS(ioctl(only_path, VFIO_GROUP_GET_STATUS, &status), EBADF);
	CHECK(ioctl(open_group(), VFIO_GROUP_GET_STATUS, &status) == 0);
}

/* What the kernel says of lengths and flags of a transfer, before it looks at the device. */
static void transfers(void)
{
	int group, container, device = open_device(&group, &container), data;
	uint64_t config = region_offset(device, VFIO_PCI_CONFIG_REGION_INDEX);
	static volatile size_t negative = -1;
	char bytes[8];
	struct iovec parts[] = { { bytes, 4 }, { bytes, negative } }, none = { bytes, 0 };

	FAILS(pread(device, bytes, negative, config), EFAULT);
	FAILS(pwrite(device, bytes, negative, config), EFAULT);
	FAILS(preadv(device, parts, 2, config), EINVAL);
	FAILS(preadv2(device, parts, 1, config, RWF_NOWAIT), EOPNOTSUPP);
	FAILS(preadv2(device, parts, 1, config, 0x40000000), EOPNOTSUPP);
	FAILS(pwritev2(device, parts, 1, config, RWF_DSYNC), EOPNOTSUPP);
	FAILS(preadv2(device, parts, 2, config, RWF_NOWAIT), EINVAL);
	CHECK(preadv2(device, parts, 1, config, RWF_HIPRI) == 4);
	CHECK(preadv2(device, &none, 1, config, RWF_NOWAIT) == 0);
	data = migration_state(device, VFIO_DEVICE_STATE_STOP_COPY);
	FAILS(read(data, bytes, negative), EFAULT);
	FAILS(readv(data, parts, 2), EINVAL);
	FAILS(preadv2(data, parts, 1, 0, 0), ESPIPE);
	FAILS(preadv2(data, parts, 1, -1, RWF_NOWAIT), EOPNOTSUPP);
	CHECK(preadv2(data, parts, 1, -1, 0) == 4);
}

/* Descriptors that were duplicated before the first request are the same open file. */
static void dups(void)
{
	struct vfio_group_status status = { .argsz = sizeof status };
	int group = open_group(), early = dup(group), late, container, device;

	CHECK(ioctl(group, VFIO_GROUP_GET_STATUS, &status) == 0);
	late = dup(group);
	CHECK(close(group) == 0);
	CHECK(ioctl(early, VFIO_GROUP_GET_STATUS, &status) == 0);
	CHECK(close(early) == 0);
	CHECK(ioctl(late, VFIO_GROUP_GET_STATUS, &status) == 0);
	/* Closed with the last of them, and at once. */
	CHECK(close(late) == 0);
	device = open_device(&group, &container);
	late = dup(device);
	close(device);
	check_config(late);
	close(late);
	close(group);
	close(container);
}

/* A duplicate, here or in a child, that was made before the first request is the same open file, also for accesses, and
 * keeps it open. */
static void early_dups(void)
{
	struct vfio_iommu_type1_dma_map map = { .argsz = sizeof map, .flags = 3, .iova = IOVA, .size = PAGE };
	struct vfio_iommu_type1_dma_unmap unmap = { .argsz = sizeof unmap, .iova = IOVA, .size = PAGE };
	struct vfio_group_status status = { .argsz = sizeof status };
	struct device_bind bind = { .argsz = sizeof bind };
	int group = open_group(), container = open_container(), late_group = dup(group), device;
	int late_container = dup(container), late_cdev, cdev, go[2];
	uint16_t vendor = 0, expected = 0;
	uint64_t offset;
	pid_t child;

	map.vaddr = (uintptr_t)mmap(NULL, PAGE, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(ioctl(group, VFIO_GROUP_SET_CONTAINER, &container) == 0);
	CHECK(ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU) == 0);
	CHECK(ioctl(container, VFIO_IOMMU_MAP_DMA, &map) == 0);
	CHECK(close(group) == 0 && close(container) == 0);
	CHECK(ioctl(late_container, VFIO_IOMMU_UNMAP_DMA, &unmap) == 0 && unmap.size == PAGE);
	CHECK(ioctl(late_group, VFIO_GROUP_GET_STATUS, &status) == 0);
	CHECK(status.flags == (VFIO_GROUP_FLAGS_VIABLE | VFIO_GROUP_FLAGS_CONTAINER_SET));
	device = ioctl(late_group, VFIO_GROUP_GET_DEVICE_FD, address);
	CHECK(device >= 0);
	CHECK(close(device) == 0 && close(late_group) == 0 && close(late_container) == 0);

	cdev = open_cdev();
	late_cdev = dup(cdev);
	bind.iommufd = open("/dev/iommu", O_RDWR);
	CHECK(bind.iommufd >= 0 && pipe(go) == 0);
	child = fork();
	if (child == 0) {
		CHECK(read(go[0], &offset, sizeof offset) == sizeof offset);
		CHECK(pread(cdev, &vendor, 2, offset) == 2 && vendor != 0);
		/* A duplicate of its own. */
		CHECK(pwrite(late_cdev, &vendor, 2, offset) == 2);
		exit(0);
	}
	CHECK(ioctl(cdev, BIND_IOMMUFD, &bind) == 0);
	offset = region_offset(cdev, VFIO_PCI_CONFIG_REGION_INDEX);
	CHECK(pread(cdev, &expected, 2, offset) == 2);
	CHECK(close(cdev) == 0);
	CHECK(pread(late_cdev, &vendor, 2, offset) == 2 && vendor == expected && vendor != 0);
	CHECK(close(late_cdev) == 0);
	/* Only the child has it now. */
	FAILS(ioctl(open_group(), VFIO_GROUP_GET_DEVICE_FD, address), EBUSY);
	CHECK(write(go[1], &offset, sizeof offset) == sizeof offset);
	wait_for(child);
}

/* What is closed can be opened at once, and has left nothing behind. */
static void reopens(void)
{
	for (int turn = 0; turn < 50; turn++) {
		int group, container, device = open_device(&group, &container);

		if (turn % 2)
			close(group);
		close(device);
		if (turn % 2 == 0)
			close(group);
		close(container);
	}
}

/* A number that was used much is that of whatever file has it now, in whichever process. */
static void reuses(void)
{
	int group, container, device = open_device(&group, &container), file = memfd_create("vfio-device", MFD_CLOEXEC);
	uint64_t config = region_offset(device, VFIO_PCI_CONFIG_REGION_INDEX);
	struct vfio_irq_info irq = { .argsz = sizeof irq };
	int other = dup(device);
	uint32_t id;
	pid_t child;

	CHECK(file >= 0 && other >= 0);
	for (int turn = 0; turn < 50; turn++) {
		check_config(device);
		CHECK(dup2(file, device) == device);
		CHECK(pread(device, &id, sizeof id, config) == 0);
		FAILS(ioctl(device, VFIO_DEVICE_GET_IRQ_INFO, &irq), ENOTTY);
		CHECK(dup2(container, device) == device);
		CHECK(ioctl(device, VFIO_GET_API_VERSION) == VFIO_API_VERSION);
		CHECK(pread(device, &id, sizeof id, config) <= 0);
		close(device);
		FAILS(pread(device, &id, sizeof id, config), EBADF);
		FAILS(ioctl(device, VFIO_DEVICE_GET_IRQ_INFO, &irq), EBADF);
		CHECK(dup2(other, device) == device);
	}
	child = fork();
	CHECK(child >= 0);
	if (child == 0) {
		check_config(device);
		close(device);
		FAILS(pread(device, &id, sizeof id, config), EBADF);
		exit(0);
	}
	wait_for(child);
	check_config(device);
}

static void *read_config(void *device)
{
	for (int turn = 0; turn < 100; turn++)
		check_config(*(int *)device);
	return NULL;
}

/* Several threads make requests at a time. */
static void threads(void)
{
	int group, container, device = open_device(&group, &container);
	pthread_t thread[8];

	for (int i = 0; i < 8; i++)
		CHECK(pthread_create(&thread[i], NULL, read_config, &device) == 0);
	for (int i = 0; i < 8; i++)
		CHECK(pthread_join(thread[i], NULL) == 0);
}

#define CROWD 200

static pthread_barrier_t all_there;

static void *take_part(void *argument)
{
	int device = *(int *)argument;

	pthread_barrier_wait(&all_there);
	for (int turn = 0; turn < 10; turn++) {
		struct vfio_device_info info = { .argsz = sizeof info };

		CHECK(ioctl(device, VFIO_DEVICE_GET_INFO, &info) == 0);
		CHECK(ioctl(device, VFIO_DEVICE_RESET) == 0);
		CHECK(pread(device, &info, 4, region_offset(device, VFIO_PCI_CONFIG_REGION_INDEX)) == 4);
	}
	return NULL;
}

/* More threads make requests at once than are answered at a time. */
static void crowd(void)
{
	int group, container, device = open_device(&group, &container);
	pthread_t thread[CROWD];

	CHECK(pthread_barrier_init(&all_there, NULL, CROWD) == 0);
	for (int i = 0; i < CROWD; i++)
		CHECK(pthread_create(&thread[i], NULL, take_part, &device) == 0);
	for (int i = 0; i < CROWD; i++)
		CHECK(pthread_join(thread[i], NULL) == 0);
}

/* Opens the device once nobody else has its group. */
static int open_device_in_turn(void)
{
	for (;;) {
		int group = open_group(), container = open_container(), device;

		if (ioctl(group, VFIO_GROUP_SET_CONTAINER, &container) == 0) {
			CHECK(ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU) == 0);
			device = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, address);
			CHECK(device >= 0);
			return device;
		}
		CHECK(errno == EBUSY);
		close(group);
		close(container);
		usleep(1000);
	}
}

/* Children open the device, many at a time, and end right after that: by themselves, or killed. */
static void children(void)
{
	int left = 0, status, group, container;

	for (int i = 0; i < 200 || left > 0; i++) {
		if (i < 200) {
			pid_t child = fork();

			CHECK(child >= 0);
			if (child == 0) {
				check_config(open_device_in_turn());
				if (i % 3 == 0)
					raise(SIGKILL);
				_exit(0);
			}
			left++;
		}
		if (left == 20 || i >= 200) {
			CHECK(wait(&status) > 0);
			CHECK(WIFSIGNALED(status) ? WTERMSIG(status) == SIGKILL : WEXITSTATUS(status) == 0);
			left--;
		}
	}
	/* The last of them has left nothing behind. */
	check_config(open_device(&group, &container));
}

static void *ask_container(void *container)
{
	CHECK(ioctl(*(int *)container, VFIO_GET_API_VERSION) == VFIO_API_VERSION);
	return NULL;
}

/* Several threads make the first request on a descriptor at a time. */
static void firsts(void)
{
	pthread_t thread[4];

	for (int turn = 0; turn < 50; turn++) {
		int container = open_container();

		for (int i = 0; i < 4; i++)
			CHECK(pthread_create(&thread[i], NULL, ask_container, &container) == 0);
		for (int i = 0; i < 4; i++)
			CHECK(pthread_join(thread[i], NULL) == 0);
		CHECK(close(container) == 0);
	}
}

/* In a thread with descriptors of its own: 60 is an eventfd here, and a container for the first thread. */
static void *use_own_table(void *device)
{
	CHECK(unshare(CLONE_FILES) == 0);
	CHECK(dup2(eventfd(0, 0), 60) == 60);
	CHECK(trigger(*(int *)device, 60) == 0);
	CHECK(dup2(open_container(), 61) == 61);
	CHECK(ioctl(61, VFIO_GET_API_VERSION) == VFIO_API_VERSION);
	return NULL;
}

static void own_table(void)
{
	int group, container, device = open_device(&group, &container);
	pthread_t thread;

	CHECK(dup2(container, 60) == 60);
	CHECK(pthread_create(&thread, NULL, use_own_table, &device) == 0);
	CHECK(pthread_join(thread, NULL) == 0);
}

static pthread_t first_thread;

/* The rest of the program, once its first thread has ended. */
static void *use_alone(void *device)
{
	CHECK(pthread_join(first_thread, NULL) == 0);
	CHECK(trigger(*(int *)device, eventfd(0, 0)) == 0);
	CHECK(ioctl(open_container(), VFIO_GET_API_VERSION) == VFIO_API_VERSION);
	check_config(*(int *)device);
	exit(0);
}

static void orphans(void)
{
	static int group, container, device;
	pthread_t thread;

	device = open_device(&group, &container);
	first_thread = pthread_self();
	CHECK(pthread_create(&thread, NULL, use_alone, &device) == 0);
	pthread_exit(NULL);
}

/* A child has the open files of its parent, and its end closes none of them. */
static void forks(void)
{
	int group, container, device = open_device(&group, &container);
	pid_t child = fork();

	if (child == 0) {
		check_config(device);
		close(device);
		exit(0);
	}
	wait_for(child);
	check_config(device);
	/* Another program inherits one. */
	child = fork();
	if (child == 0) {
		CHECK(fcntl(device, F_SETFD, 0) == 0);
		execl("/proc/self/exe", "program", address, path("inherited:%d", device), NULL);
		_exit(127);
	}
	wait_for(child);
	check_config(device);
}

/* A child gets an open file by a socket, and keeps the device open after its parent has closed it. */
static void passes(void)
{
	int group, container, device = open_device(&group, &container), pair[2], go;
	char byte = 0, space[CMSG_SPACE(sizeof(int))] = { 0 };
	struct iovec part = { &byte, 1 };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = space,
				  .msg_controllen = sizeof space };
	struct cmsghdr *head = CMSG_FIRSTHDR(&message);
	pid_t child;

	CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
	child = fork();
	if (child == 0) {
		close(pair[0]);
		close(device);
		close(group);
		close(container);
		CHECK(recvmsg(pair[1], &message, 0) == 1);
		memcpy(&go, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof go);
		CHECK(read(pair[1], &byte, 1) == 1);
		check_config(go);
		exit(0);
	}
	head->cmsg_level = SOL_SOCKET;
	head->cmsg_type = SCM_RIGHTS;
	head->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(head), &device, sizeof device);
	CHECK(sendmsg(pair[0], &message, 0) == 1);
	close(device);
	close(group);
	close(container);
	CHECK(write(pair[0], &byte, 1) == 1);
	wait_for(child);
	/* Closed with the child. */
	open_device(&group, &container);
}

static volatile sig_atomic_t alarms;

static void on_alarm(int signal)
{
	(void)signal;
	alarms++;
}

/* No request is disturbed by signals whose handlers restart system calls. */
static void signals(void)
{
	int group, container, device = open_device(&group, &container);
	struct itimerval often = { { 0, 200 }, { 0, 200 } };
	struct sigaction action = { .sa_handler = on_alarm, .sa_flags = SA_RESTART };

	CHECK(sigaction(SIGALRM, &action, NULL) == 0 && setitimer(ITIMER_REAL, &often, NULL) == 0);
	while (alarms < 200) {
		struct vfio_device_info info = { .argsz = sizeof info };

		CHECK(ioctl(device, VFIO_DEVICE_GET_INFO, &info) == 0);
		CHECK(ioctl(device, VFIO_DEVICE_RESET) == 0);
		munmap(map(container, MAP_PRIVATE | MAP_ANONYMOUS, -1), 2 * PAGE);
		unmap(container);
	}
}

/* Has handlers for the signals that others send, and makes requests meanwhile. */
static void showered(void)
{
	struct sigaction action = { .sa_handler = on_alarm, .sa_flags = SA_RESTART };

	sigaction(SIGUSR1, &action, NULL);
	sigaction(SIGUSR2, &action, NULL);
	sigaction(SIGWINCH, &action, NULL);
	sigaction(SIGCHLD, &action, NULL);
	sigaction(SIGIO, &action, NULL);
	puts("ready");
	fflush(stdout);
	while (alarms < 2000) {
		int group, container, device = open_device(&group, &container);

		munmap(map(container, MAP_PRIVATE | MAP_ANONYMOUS, -1), 2 * PAGE);
		unmap(container);
		check_config(device);
		close(device);
		close(group);
		close(container);
	}
}

/* What is not VFIO's is left alone, and a ring is refused. */
static void others(void)
{
	char bytes[120] = { 0 };
	int zero = open("/dev/zero", O_RDWR), file = memfd_create("file", 0);

	FAILS(ioctl(zero, VFIO_DEVICE_GET_INFO, bytes), ENOTTY);
	CHECK(pread(file, bytes, 4, 1ul << 62) == 0);
	CHECK(dup2(zero, 1000) == 1000 && read(1000, bytes, 4) == 4);
	CHECK(dup(1000) < 1000);
	FAILS(syscall(SYS_io_uring_setup, 8, bytes), ENOSYS);
}

/* The state of the device is saved and loaded; its stream is one. */
static void migrates(void)
{
	static char state[8 << 20];
	int group, container, device = open_device(&group, &container), data, copy;
	size_t size = 0;
	ssize_t count;

	data = migration_state(device, VFIO_DEVICE_STATE_STOP_COPY);
	CHECK(data >= 0);
	struct pollfd ready = { data, POLLIN, 0 };
	CHECK(poll(&ready, 1, 0) == 1 && (ready.revents & POLLIN));
	FAILS(lseek(data, 0, SEEK_SET), ESPIPE);
	FAILS(pread(data, state, 1, 0), ESPIPE);
	FAILS(write(data, state, 1), EBADF);
	CHECK(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, data, 0) == MAP_FAILED && errno == ENODEV);
	copy = dup(data);
	CHECK(copy >= 0 && copy != data);
	while ((count = read(size % 2 ? data : copy, state + size, sizeof state - size)) > 0)
		size += count;
	CHECK(count == 0 && size > 0);
	migration_state(device, VFIO_DEVICE_STATE_STOP);
	FAILS(read(data, state, 1), ENODEV);
	CHECK(close(copy) == 0 && close(data) == 0);
	CHECK(ioctl(device, VFIO_DEVICE_RESET) == 0);

	data = migration_state(device, VFIO_DEVICE_STATE_RESUMING);
	struct iovec parts[] = { { state, size / 2 }, { state + size / 2, size - size / 2 } };
	for (size_t done = 0; done < size; done += count) {
		if (done)
			count = write(data, state + done, size - done);
		else
			count = writev(data, parts, 2);
		CHECK(count > 0);
	}
	migration_state(device, VFIO_DEVICE_STATE_RUNNING);
	close(data);
	/* In pre-copy the end is a temporary one. */
	data = migration_state(device, STATE_PRE_COPY);
	while ((count = read(data, state, sizeof state)) > 0)
		;
	CHECK(count == -1 && errno == ENOMSG);
	close(device);
}

/* The serial card signals its interrupt. */
static void interrupts(void)
{
	int group, container, device = open_device(&group, &container), event = eventfd(0, 0);
	uint64_t bar = region_offset(device, 0), count = 0;
	uint8_t enable = 0x02, byte = 'x';
	struct {
		struct vfio_irq_set head;
		int fd;
	} set = { { sizeof set, VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER, 0, 0, 1 }, 0 };
	struct pollfd ready = { event, POLLIN, 0 };

	/* Standard input is no eventfd. */
	FAILS(ioctl(device, VFIO_DEVICE_SET_IRQS, &set), EINVAL);
	set.fd = event;
	CHECK(ioctl(device, VFIO_DEVICE_SET_IRQS, &set) == 0);
	/* The transmitter is empty, which is a cause. */
	CHECK(pwrite(device, &enable, 1, bar + 1) == 1);
	CHECK(pwrite(device, &byte, 1, bar) == 1);
	CHECK(poll(&ready, 1, 10000) == 1 && read(event, &count, 8) == 8 && count >= 1);
}

/* KVM is told of the program's VFIO files, and refuses others. */
static void kvm(void)
{
	struct kvm_create_device create = { .type = KVM_DEV_TYPE_VFIO };
	int32_t file = open_group(), other = memfd_create("file", 0);
	struct kvm_device_attr attribute = { .group = KVM_DEV_VFIO_GROUP, .attr = KVM_DEV_VFIO_GROUP_ADD };
	int machine, system = open("/dev/kvm", O_RDWR);

	if (system < 0) {
		puts("no KVM");
		return;
	}
	machine = ioctl(system, KVM_CREATE_VM, 0);
	CHECK(machine >= 0);
	if (ioctl(machine, KVM_CREATE_DEVICE, &create)) {
		puts("no VFIO in KVM");
		return;
	}
	attribute.addr = (uintptr_t)&file;
	CHECK(ioctl(create.fd, KVM_SET_DEVICE_ATTR, &attribute) == 0);
	attribute.addr = (uintptr_t)&other;
	CHECK(ioctl(create.fd, KVM_SET_DEVICE_ATTR, &attribute) == -1);
	attribute.attr = KVM_DEV_VFIO_GROUP_DEL;
	attribute.addr = (uintptr_t)&file;
	CHECK(ioctl(create.fd, KVM_SET_DEVICE_ATTR, &attribute) == 0);
}

/* Stops the device, says so, and waits for the end. */
static void waits(void)
{
	int group, container;

	migration_state(open_device(&group, &container), VFIO_DEVICE_STATE_STOP);
	puts("stopped");
	fflush(stdout);
	for (;;)
		pause();
}

/* Makes requests until nobody answers them. */
static void outlives(void)
{
	struct vfio_device_info info = { .argsz = sizeof info };
	int group, container, device = open_device(&group, &container);

	puts("open");
	fflush(stdout);
	while (ioctl(device, VFIO_DEVICE_GET_INFO, &info) == 0)
		;
	puts(errno == ENOSYS ? "ENOSYS" : strerror(errno));
}

/* Ends, and leaves a child with the device that ends with its input. */
static void leaves(void)
{
	int group, container, device = open_device(&group, &container);
	char byte;

	if (fork() == 0) {
		while (read(0, &byte, 1) > 0)
			;
		check_config(device);
		puts("done");
		exit(0);
	}
}

static int held_device;

static void *reads_config(void *page)
{
	CHECK(pread(held_device, page, 4, region_offset(held_device, VFIO_PCI_CONFIG_REGION_INDEX)) == 4);
	return NULL;
}

/* Requests wait for pages, and others are answered meanwhile. */
static void held(void)
{
	enum { WAITING = 100 };
	static char zeros[PAGE] __attribute__((aligned(PAGE)));
	struct vfio_device_info info = { .argsz = sizeof info };
	int group, container, filler, i;
	pthread_t threads[WAITING];
	char *pages = held_pages(WAITING, &filler), *waiting[WAITING];

	held_device = open_device(&group, &container);
	for (i = 0; i < WAITING; i++) {
		CHECK(pthread_create(&threads[i], NULL, reads_config, pages + i * PAGE) == 0);
		waiting[i] = fault_of(filler);
		CHECK(ioctl(held_device, VFIO_DEVICE_GET_INFO, &info) == 0);
	}
	CHECK(ioctl(held_device, VFIO_DEVICE_RESET) == 0);
	for (i = 0; i < WAITING; i++) {
		struct uffdio_copy copy = { .dst = (uintptr_t)waiting[i], .src = (uintptr_t)zeros, .len = PAGE };

		CHECK(ioctl(filler, UFFDIO_COPY, &copy) == 0);
	}
	for (i = 0; i < WAITING; i++)
		CHECK(pthread_join(threads[i], NULL) == 0 && *(uint32_t *)(pages + i * PAGE) != 0);
}

/* Dies while a request waits for a page; a child that ends with its input never fills it. */
static void abandons(void)
{
	int group, container, filler;
	pthread_t thread;
	char byte, *page = held_pages(1, &filler);

	held_device = open_device(&group, &container);
	CHECK(pthread_create(&thread, NULL, reads_config, page) == 0);
	fault_of(filler);
	if (fork() == 0) {
		while (read(0, &byte, 1) > 0)
			;
		exit(0);
	}
	raise(SIGKILL);
}

int main(int count, char **arguments)
{
	static const struct {
		const char *name;
		void (*act)(void);
	} acts[] = { { "group", group },       { "cdev", cdev },	     { "memory", memory },
		     { "faults", faults },     { "dups", dups },	     { "early_dups", early_dups },
		     { "reopens", reopens },   { "reuses", reuses },
		     { "threads", threads },   { "forks", forks },	     { "passes", passes },
		     { "signals", signals },   { "others", others },	     { "migrates", migrates },
		     { "waits", waits },       { "interrupts", interrupts }, { "kvm", kvm },
		     { "leaves", leaves },     { "held", held },	     { "abandons", abandons },
		     { "crowd", crowd },	     { "children", children },
		     { "showered", showered },
		     { "undumpable", undumpable }, { "jail", jail },	     { "firsts", firsts },     { "own_table", own_table },   { "orphans", orphans },
		     { "transfers", transfers },
		     { "paths", paths },
		     { "outlives", outlives } };
	size_t known = sizeof acts / sizeof *acts, act;

	CHECK(count == 3);
	address = arguments[1];
	if (strncmp(arguments[2], "inherited:", 10) == 0) {
		check_config(atoi(arguments[2] + 10));
		return 0;
	}
	for (act = 0; act < known && strcmp(acts[act].name, arguments[2]); act++)
		;
	CHECK(act < known);
	acts[act].act();
	return 0;
}
