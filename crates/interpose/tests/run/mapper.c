/*
 * A program that maps the regions of a board, as board.rs describes them. Each argument after the PCI address names one
 * thing that it does; it ends with 0, or names the line that failed.
 */
#include "vfio.h"
#include "held.h"

#define AT_DMA 0x100000ul

static uint64_t bar(unsigned index)
{
	return ((uint64_t)1 << 62) + ((uint64_t)index << 40);
}

static volatile uint8_t *map_at(int device, int prot, size_t size, uint64_t offset)
{
	void *memory = mmap(NULL, size, prot, MAP_SHARED, device, offset);

	CHECK(memory != MAP_FAILED);
	return memory;
}

static volatile uint8_t *map_bar(int device, unsigned index)
{
	return map_at(device, PROT_READ | PROT_WRITE, PAGE, bar(index));
}

static uint8_t at(int device, uint64_t offset)
{
	uint8_t byte = 0;

	CHECK(pread(device, &byte, 1, offset) == 1);
	return byte;
}

static void put(int device, uint64_t offset, uint8_t byte)
{
	CHECK(pwrite(device, &byte, 1, offset) == 1);
}

/* The device of this group is open, or is not. */
#define IS_OPEN(group) FAILS(ioctl(group, VFIO_GROUP_UNSET_CONTAINER), EBUSY)
#define IS_CLOSED(group) CHECK(ioctl(group, VFIO_GROUP_UNSET_CONTAINER) == 0)

/* The bytes of a mapping are those of the region. */
static void maps(void)
{
	int group, container, device = open_device(&group, &container);
	volatile uint8_t *whole = map_at(device, PROT_READ | PROT_WRITE, 4 * PAGE, bar(0));
	volatile uint8_t *last = map_at(device, PROT_READ, 1, bar(0) + 3 * PAGE), *other;

	CHECK(whole[0] == 0xa0 && whole[3 * PAGE] == 0xa3 && last[0] == 0xa3);
	whole[5] = 1;
	CHECK(at(device, bar(0) + 5) == 1);
	put(device, bar(0) + 3 * PAGE + 7, 2);
	CHECK(whole[3 * PAGE + 7] == 2 && last[7] == 2);
	/* A region in another file, and the first one again. */
	other = map_bar(device, 1);
	CHECK(other[0] == 0xb0);
	other[9] = 3;
	CHECK(at(device, bar(1) + 9) == 3 && at(device, bar(0) + 9) == 0);
	munmap((void *)last, PAGE);
	last = map_at(device, PROT_READ, PAGE, bar(0) + 3 * PAGE);
	CHECK(last[7] == 2 && whole[5] == 1 && other[9] == 3);
	check_config(device);
	CHECK(fcntl(device, F_GETFD) & FD_CLOEXEC);
}

/* What the info of each region offers. */
static void offers(void)
{
	static const struct {
		unsigned index, mapped, areas;
	} regions[] = { { 0, 1, 0 }, { 1, 1, 2 }, { 2, 0, 0 }, { 3, 0, 0 }, { 4, 1, 0 }, { 5, 0, 0 }, { 7, 0, 0 } };
	int group, container, device = open_device(&group, &container);

	for (size_t i = 0; i < sizeof regions / sizeof *regions; i++) {
		struct {
			struct vfio_region_info info;
			struct vfio_region_info_cap_sparse_mmap sparse;
			struct vfio_region_sparse_mmap_area areas[4];
		} all = { .info = { .argsz = sizeof all, .index = regions[i].index } };

		CHECK(ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &all.info) == 0);
		CHECK(!!(all.info.flags & VFIO_REGION_INFO_FLAG_MMAP) == regions[i].mapped);
		CHECK(all.sparse.nr_areas == regions[i].areas);
		CHECK(all.info.offset == bar(regions[i].index));
	}
}

/* What cannot be mapped is refused as the kernel does. */
static void refusals(void)
{
	int group, container, device = open_device(&group, &container), zero = open("/dev/zero", O_RDWR);
	int cdev = open_cdev(), shut = dup(device), both = PROT_READ | PROT_WRITE;
	const struct {
		const char *what;
		int fd, prot, flags, error;
		size_t size;
		uint64_t offset;
	} cases[] = {
		{ "a page", device, both, MAP_SHARED, 0, PAGE, bar(0) },
		{ "a part of a page", device, both, MAP_SHARED, 0, 1, bar(0) },
		{ "a validated mapping", device, both, MAP_SHARED_VALIDATE, 0, PAGE, bar(0) },
		{ "a private mapping", device, both, MAP_PRIVATE, EINVAL, PAGE, bar(0) },
		{ "nothing", device, both, MAP_SHARED, EINVAL, 0, bar(0) },
		{ "no kind of mapping", device, both, 0, EINVAL, PAGE, bar(0) },
		{ "a start in a page", device, both, MAP_SHARED, EINVAL, PAGE, bar(0) + 8 },
		{ "past the end", device, both, MAP_SHARED, EINVAL, PAGE, bar(0) + 4 * PAGE },
		{ "over the end", device, both, MAP_SHARED, EINVAL, 5 * PAGE, bar(0) },
		{ "all memory", device, both, MAP_SHARED, ENOMEM, SIZE_MAX, bar(0) },
		{ "a sparse area", device, both, MAP_SHARED, 0, PAGE, bar(1) + 2 * PAGE },
		{ "before a sparse area", device, both, MAP_SHARED, EINVAL, PAGE, bar(1) + PAGE },
		{ "over a sparse area", device, both, MAP_SHARED, EINVAL, 2 * PAGE, bar(1) },
		{ "memory elsewhere in its file", device, both, MAP_SHARED, EINVAL, PAGE, bar(2) },
		{ "memory that can be truncated", device, both, MAP_SHARED, EINVAL, PAGE, bar(3) },
		{ "memory to read", device, PROT_READ, MAP_SHARED, 0, PAGE, bar(4) },
		{ "memory to read, for writing", device, both, MAP_SHARED, EACCES, PAGE, bar(4) },
		{ "registers", device, both, MAP_SHARED, EINVAL, PAGE, bar(5) },
		{ "the configuration space", device, both, MAP_SHARED, EINVAL, PAGE, bar(7) },
		{ "no region", device, both, MAP_SHARED, EINVAL, PAGE, bar(8) },
		{ "no region at all", device, both, MAP_SHARED, EINVAL, PAGE, bar(1 << 21) },
		{ "a group", group, both, MAP_SHARED, ENODEV, PAGE, bar(0) },
		{ "a container", container, both, MAP_SHARED, ENODEV, PAGE, bar(0) },
		{ "a device that is not bound", cdev, both, MAP_SHARED, EINVAL, PAGE, bar(0) },
		{ "a closed descriptor", shut, both, MAP_SHARED, EBADF, PAGE, bar(0) },
		{ "another file", zero, both, MAP_SHARED, 0, PAGE, bar(0) },
		{ "no file", -1, both, MAP_SHARED | MAP_ANONYMOUS, 0, PAGE, bar(0) },
	};

	close(shut);
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		void *memory;

		errno = 0;
		memory = mmap(NULL, cases[i].size, cases[i].prot, cases[i].flags, cases[i].fd, cases[i].offset);
		if ((memory == MAP_FAILED) != (cases[i].error != 0) || errno != cases[i].error) {
			fprintf(stderr, "%s: errno %d, not %d\n", cases[i].what, errno, cases[i].error);
			exit(1);
		}
		if (memory != MAP_FAILED)
			munmap(memory, cases[i].size);
	}
	check_config(device);
}

/* A mapping holds the device, as a descriptor does. */
static void holds(void)
{
	int group, container, device = open_device(&group, &container), early, late;
	volatile uint8_t *memory;

	memory = map_bar(device, 0);
	close(device);
	memory[0] = 1;
	IS_OPEN(group);
	munmap((void *)memory, PAGE);
	IS_CLOSED(group);

	/* Duplicates from before and after, in each order. */
	for (int turn = 0; turn < 8; turn++) {
		device = reopen_device(group, container);
		early = dup(device);
		memory = map_bar(device, turn % 2);
		late = dup(device);
		close(turn & 4 ? late : early);
		check_config(device);
		close(device);
		IS_OPEN(group);
		if (turn & 2)
			munmap((void *)memory, PAGE);
		IS_OPEN(group);
		check_config(turn & 4 ? early : late);
		close(turn & 4 ? early : late);
		if (!(turn & 2)) {
			IS_OPEN(group);
			munmap((void *)memory, PAGE);
		}
		IS_CLOSED(group);
	}
	/* In place of the mapping there is another one. */
	device = reopen_device(group, container);
	memory = map_bar(device, 0);
	close(device);
	CHECK(mmap((void *)memory, PAGE, PROT_READ, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == memory);
	IS_CLOSED(group);
}

/* Two opens of one device are two, though their memory is one file. */
static void opens(void)
{
	int group, container, one = open_device(&group, &container);
	int other = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, address);
	volatile uint8_t *first = map_bar(one, 0), *second;

	CHECK(other >= 0);
	second = map_bar(other, 0);
	first[1] = 7;
	CHECK(second[1] == 7);
	munmap((void *)first, PAGE);
	close(one);
	IS_OPEN(group);
	CHECK(at(other, bar(0) + 1) == 7);
	close(other);
	IS_OPEN(group);
	munmap((void *)second, PAGE);
	IS_CLOSED(group);
}

/* A child has the mappings and descriptors of its parent, another program the descriptors. */
static void forks(void)
{
	int group, container, device = open_device(&group, &container), pipes[2];
	volatile uint8_t *memory = map_bar(device, 0);
	char byte;
	pid_t child;

	CHECK(pipe(pipes) == 0);
	child = fork();
	if (child == 0) {
		close(pipes[1]);
		CHECK(read(pipes[0], &byte, 1) == 0);
		memory[2] = 9;
		CHECK(at(device, bar(0) + 2) == 9);
		munmap((void *)memory, PAGE);
		memory = map_bar(device, 1);
		CHECK(memory[0] == 0xb0);
		exit(0);
	}
	munmap((void *)memory, PAGE);
	close(device);
	IS_OPEN(group);
	close(pipes[1]);
	wait_for(child);
	IS_CLOSED(group);

	device = reopen_device(group, container);
	CHECK(fcntl(device, F_SETFD, 0) == 0);
	memory = map_bar(device, 0);
	child = fork();
	if (child == 0) {
		execl("/proc/self/exe", "mapper", address, path("inherited:%d", device), NULL);
		_exit(127);
	}
	close(device);
	wait_for(child);
	CHECK(memory[3] == 0x33);
	IS_OPEN(group);
	munmap((void *)memory, PAGE);
	IS_CLOSED(group);
}

/* An open file that is mapped goes through a socket, and is open while it is in there. */
static void passes(void)
{
	int group, container, device = open_device(&group, &container), pair[2];
	char byte = 0, space[CMSG_SPACE(sizeof(int))] = { 0 };
	struct iovec part = { &byte, 1 };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = space,
				  .msg_controllen = sizeof space };
	struct cmsghdr *head = CMSG_FIRSTHDR(&message);
	volatile uint8_t *memory = map_bar(device, 0);

	CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
	munmap((void *)memory, PAGE);
	head->cmsg_level = SOL_SOCKET;
	head->cmsg_type = SCM_RIGHTS;
	head->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(head), &device, sizeof device);
	CHECK(sendmsg(pair[0], &message, 0) == 1);
	close(device);
	IS_OPEN(group);
	CHECK(recvmsg(pair[1], &message, 0) == 1);
	memcpy(&device, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof device);
	check_config(device);
	memory = map_bar(device, 0);
	CHECK(memory[0] == 0xa0);
	close(device);
	munmap((void *)memory, PAGE);
	IS_CLOSED(group);
}

static int shared_device;
static volatile int is_over;

static void *map_again_and_again(void *index)
{
	for (int turn = 0; turn < 50; turn++) {
		volatile uint8_t *memory = map_bar(shared_device, *(unsigned *)index);

		CHECK(memory[0] == (*(unsigned *)index ? 0xb0 : 0xa0));
		munmap((void *)memory, PAGE);
	}
	return NULL;
}

static void *use_again_and_again(void *nothing)
{
	while (!is_over)
		check_config(shared_device);
	return nothing;
}

/* Threads map regions of two files by one descriptor, while another one uses it. */
static void threads(void)
{
	unsigned indexes[] = { 0, 1 };
	pthread_t mappers[4], user;
	int group, container;

	shared_device = open_device(&group, &container);
	CHECK(pthread_create(&user, NULL, use_again_and_again, NULL) == 0);
	for (int i = 0; i < 4; i++)
		CHECK(pthread_create(&mappers[i], NULL, map_again_and_again, &indexes[i % 2]) == 0);
	for (int i = 0; i < 4; i++)
		CHECK(pthread_join(mappers[i], NULL) == 0);
	is_over = 1;
	CHECK(pthread_join(user, NULL) == 0);
	close(shared_device);
	IS_CLOSED(group);
}

/* The device writes to its own region, mapped for DMA at its address in the program. */
static void dma(void)
{
	int group, container, device = open_device(&group, &container);
	volatile uint8_t *memory = map_bar(device, 0);
	struct vfio_iommu_type1_dma_map map = { .argsz = sizeof map, .flags = 3, .iova = AT_DMA, .size = PAGE };
	struct vfio_iommu_type1_dma_unmap unmap = { .argsz = sizeof unmap, .iova = AT_DMA, .size = PAGE };
	uint64_t to = AT_DMA + 0x10;

	map.vaddr = (uintptr_t)memory;
	CHECK(ioctl(container, VFIO_IOMMU_MAP_DMA, &map) == 0);
	CHECK(pwrite(device, &to, 8, bar(5)) == 8);
	CHECK(memory[0x10] == 0x5a && at(device, bar(0) + 0x10) == 0x5a);
	CHECK(ioctl(container, VFIO_IOMMU_UNMAP_DMA, &unmap) == 0 && unmap.size == PAGE);
	FAILS(pwrite(device, &to, 8, bar(5)), EFAULT);
	/* A mapping for DMA holds the memory, not the device. */
	CHECK(ioctl(container, VFIO_IOMMU_MAP_DMA, &map) == 0);
	close(device);
	IS_OPEN(group);
	munmap((void *)memory, PAGE);
	IS_CLOSED(group);
}

/* Has the device write to the second of two pages that a userfaultfd holds back, from the first one on. */
static int write_held(char *pages)
{
	int group, container, device = open_device(&group, &container);
	struct vfio_iommu_type1_dma_map map = { .argsz = sizeof map, .flags = 3, .iova = AT_DMA, .size = 2 * PAGE };
	uint64_t to = AT_DMA + PAGE + 0x10;

	map.vaddr = (uintptr_t)pages;
	CHECK(ioctl(container, VFIO_IOMMU_MAP_DMA, &map) == 0);
	return pwrite(device, &to, 8, bar(5));
}

static void *fills(void *filler)
{
	static char page[PAGE] __attribute__((aligned(PAGE))) = { [1] = 7 };
	struct uffdio_copy copy = { .src = (uintptr_t)page, .len = PAGE };

	copy.dst = (uintptr_t)fault_of(*(int *)filler);
	CHECK(ioctl(*(int *)filler, UFFDIO_COPY, &copy) == 0);
	return NULL;
}

/* The device waits for a page that comes. */
static void late(void)
{
	int filler;
	char *pages = held_pages(2, &filler);
	pthread_t thread;

	CHECK(pthread_create(&thread, NULL, fills, &filler) == 0);
	CHECK(write_held(pages) == 8);
	CHECK(pthread_join(thread, NULL) == 0);
	CHECK(pages[PAGE + 0x10] == 0x5a && pages[PAGE + 1] == 7);
}

/* The device does not wait forever for a page that does not come. */
static void never(void)
{
	int filler;
	char *pages = held_pages(2, &filler);

	FAILS(write_held(pages), EFAULT);
}

/* A program that does to the memory what it can harms only itself. */
static void harms(void)
{
	int group, container, device = open_device(&group, &container);
	volatile uint8_t *memory = map_bar(device, 0), *more, *read;
	struct flock lock = { .l_type = F_UNLCK, .l_whence = SEEK_SET };

	FAILS(ftruncate(device, 0), EPERM);
	FAILS(ftruncate(device, INT64_MAX), EPERM);
	FAILS(fcntl(device, F_ADD_SEALS, F_SEAL_WRITE), EPERM);
	memory[0] = 1;
	CHECK(madvise((void *)memory, PAGE, MADV_REMOVE) == 0 && at(device, bar(0)) == 0);
	CHECK(fallocate(device, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, bar(0), 4 * PAGE) == 0);
	CHECK(at(device, bar(0) + 3 * PAGE) == 0);
	CHECK(mprotect((void *)memory, PAGE, PROT_READ) == 0 && memory[0] == 0);
	CHECK(mprotect((void *)memory, PAGE, PROT_READ | PROT_WRITE) == 0);
	/* Past what the info offers lies nothing else. */
	more = mremap((void *)memory, PAGE, 4 * PAGE, MREMAP_MAYMOVE);
	CHECK(more != MAP_FAILED);
	more[3 * PAGE] = 4;
	CHECK(at(device, bar(0) + 3 * PAGE) == 4);
	read = map_at(device, PROT_READ, PAGE, bar(4));
	FAILS(mprotect((void *)read, PAGE, PROT_READ | PROT_WRITE), EACCES);
	check_config(device);
	/* Without its lock it is taken for closed. */
	CHECK(fcntl(device, F_OFD_SETLK, &lock) == 0);
}

/* A device's own file is mapped once it is bound. */
static void cdev(void)
{
	struct device_bind bind = { .argsz = sizeof bind };
	int device = open_cdev(), early = dup(device), other;
	volatile uint8_t *memory;

	CHECK(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, device, bar(0)) == MAP_FAILED && errno == EINVAL);
	bind.iommufd = open("/dev/iommu", O_RDWR);
	CHECK(bind.iommufd >= 0 && ioctl(device, BIND_IOMMUFD, &bind) == 0);
	memory = map_bar(device, 0);
	CHECK(memory[0] == 0xa0);
	check_config(early);
	close(device);
	close(early);
	/* Bound as long as it is mapped. */
	other = open_cdev();
	bind.flags = 0;
	FAILS(ioctl(other, BIND_IOMMUFD, &bind), EINVAL);
	munmap((void *)memory, PAGE);
	CHECK(ioctl(other, BIND_IOMMUFD, &bind) == 0);
	memory = map_bar(other, 0);
	CHECK(memory[0] == 0xa0);
}

/* The state of a device with a migration region is read from the mapped data part, and is what the trapped part is. */
static void migrates(void)
{
	int group, container, device = open_device(&group, &container);
	struct {
		struct vfio_region_info info;
		uint8_t more[256];
	} all = { .info = { .argsz = sizeof all, .index = VFIO_PCI_NUM_REGIONS } };
	uint64_t pending, offset, size, total = 0;
	struct vfio_region_sparse_mmap_area area = { 0 };
	static uint8_t bytes[4 << 20];
	volatile uint8_t *data;
	uint32_t state = 2;

	CHECK(ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &all.info) == 0);
	CHECK(all.info.flags & VFIO_REGION_INFO_FLAG_MMAP);
	for (uint32_t at = all.info.cap_offset; at; at = ((struct vfio_info_cap_header *)((char *)&all + at))->next) {
		struct vfio_region_info_cap_sparse_mmap *sparse = (void *)((char *)&all + at);

		if (sparse->header.id == VFIO_REGION_INFO_CAP_SPARSE_MMAP)
			area = sparse->areas[0];
	}
	CHECK(area.size > 0);
	data = map_at(device, PROT_READ | PROT_WRITE, area.size, all.info.offset + area.offset);
	/* _SAVING, without _RUNNING. */
	CHECK(pwrite(device, &state, 4, all.info.offset) == 4);
	for (;;) {
		CHECK(pread(device, &pending, 8, all.info.offset + 8) == 8);
		if (pending == 0)
			break;
		CHECK(pread(device, &offset, 8, all.info.offset + 16) == 8);
		CHECK(pread(device, &size, 8, all.info.offset + 24) == 8);
		CHECK(size > 0 && size <= sizeof bytes && offset >= area.offset);
		CHECK(offset + size <= area.offset + area.size);
		CHECK(pread(device, bytes, size, all.info.offset + offset) == (ssize_t)size);
		CHECK(memcmp(bytes, (void *)(data + (offset - area.offset)), size) == 0);
		total += size;
	}
	CHECK(total >= 1 << 20);
}

int main(int count, char **arguments)
{
	static const struct {
		const char *name;
		void (*act)(void);
	} acts[] = { { "maps", maps },	     { "offers", offers }, { "refusals", refusals }, { "holds", holds },
		     { "opens", opens },     { "forks", forks },   { "passes", passes },     { "threads", threads },
		     { "dma", dma },	     { "harms", harms },   { "cdev", cdev },	     { "migrates", migrates },
		     { "late", late },	     { "never", never } };
	size_t known = sizeof acts / sizeof *acts, act;

	CHECK(count == 3);
	address = arguments[1];
	if (strncmp(arguments[2], "inherited:", 10) == 0) {
		int device = atoi(arguments[2] + 10);

		check_config(device);
		map_bar(device, 0)[3] = 0x33;
		return 0;
	}
	for (act = 0; act < known && strcmp(acts[act].name, arguments[2]); act++)
		;
	CHECK(act < known);
	acts[act].act();
	return 0;
}
