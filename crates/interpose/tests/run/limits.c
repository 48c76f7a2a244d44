/*
 * A program at its limits, and at those of the process that serves it: many mappings, descriptors that run out, memory that
 * ends within a read. Each argument after the PCI address names one thing that it does.
 */
#include "vfio.h"

static int map_page(int container, uint64_t iova, void *page)
{
	struct vfio_iommu_type1_dma_map dma = {
		.argsz = sizeof dma, .flags = 3, .iova = iova, .size = PAGE, .vaddr = (uintptr_t)page
	};

	return ioctl(container, VFIO_IOMMU_MAP_DMA, &dma);
}

static void *pages(size_t count, int flags)
{
	char *pages = mmap(NULL, count * PAGE, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);

	CHECK(pages != MAP_FAILED);
	return pages;
}

static int set_trigger(int device, int event)
{
	struct {
		struct vfio_irq_set head;
		int event;
	} set = { { sizeof set, VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER, 0, 0, 1 }, event };

	return ioctl(device, VFIO_DEVICE_SET_IRQS, &set);
}

/* Far more mappings than the serving process can have descriptors, and requests that need one after it. */
static void map_many(char *memory)
{
	int group, container, device = open_device(&group, &container), page;

	for (page = 0; page < 400; page++)
		CHECK(map_page(container, IOVA + page * 2 * PAGE, memory + page * 2 * PAGE) == 0);
	CHECK(set_trigger(device, eventfd(0, 0)) == 0);
	CHECK(ioctl(open_container(), VFIO_GET_API_VERSION) == VFIO_API_VERSION);
	CHECK(migration_state(device, VFIO_DEVICE_STATE_STOP_COPY) >= 0);
}

static void maps(void)
{
	map_many(pages(2 * 400, MAP_PRIVATE));
}

static void shares(void)
{
	int file = memfd_create("shared", 0);
	char *memory;

	CHECK(file >= 0 && ftruncate(file, 2 * 400 * PAGE) == 0);
	memory = mmap(NULL, 2 * 400 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	CHECK(memory != MAP_FAILED);
	map_many(memory);
}

/* Takes all descriptors of the serving process: what needs one says so, until some are free. */
static void exhausts(void)
{
	int group, container, device = open_device(&group, &container), event = eventfd(0, 0);
	int files[400], count = 0, failed = 0;
	void *page = pages(1, MAP_PRIVATE);

	/* Again and again: a descriptor may be taken for a moment alone. */
	while (count < 400 && failed < 50) {
		files[count] = open_container();
		if (ioctl(files[count], VFIO_GET_API_VERSION) < 0) {
			CHECK(errno == EMFILE);
			close(files[count]);
			failed++;
		} else {
			count++;
			failed = 0;
		}
	}
	CHECK(count > 20 && count < 400);
	/* Up to two may be left of the three that a container takes at a time. */
	CHECK(set_trigger(device, event) == 0 || errno == EMFILE);
	CHECK(map_page(container, IOVA, page) == 0 || errno == EMFILE);
	FAILS(set_trigger(device, event), EMFILE);
	while (count > 0)
		close(files[--count]);
	CHECK(set_trigger(device, event) == 0);
	CHECK(map_page(container, IOVA, page) == 0 || errno == EEXIST);
	check_config(device);
}

struct descriptor {
	uint32_t operation, flags;
	uint64_t tag, source, destination, length, pattern, reserved[2];
};

/* Has the DMA engine fill memory at `to`; its rings are in the two pages at `rings`. */
static void fill(int device, struct descriptor *rings, uint64_t iova, uint64_t to, uint64_t pattern)
{
	uint64_t registers = region_offset(device, 0), completed = 0, completions = iova + PAGE;
	uint32_t size = 16, one = 1;

	*rings = (struct descriptor){ .operation = 2, .destination = to, .length = 64, .pattern = pattern };
	CHECK(pwrite(device, &size, 4, registers + 0x14) == 4);
	CHECK(pwrite(device, &iova, 8, registers + 0x18) == 8);
	CHECK(pwrite(device, &completions, 8, registers + 0x20) == 8);
	CHECK(pwrite(device, &one, 4, registers + 0x10) == 4);
	CHECK(pwrite(device, &one, 4, registers + 0x28) == 4);
	while (completed == 0) {
		CHECK(pread(device, &completed, 8, registers + 0x30) == 8);
		usleep(1000);
	}
}

/* The program after exec, with a device and a container that have mappings of the memory before. */
static void remapped(int device, int container)
{
	char *memory = pages(3, MAP_PRIVATE);
	int page;

	for (page = 0; page < 3; page++)
		CHECK(map_page(container, (16 + page) * PAGE, memory + page * PAGE) == 0);
	fill(device, (void *)memory, 16 * PAGE, 18 * PAGE, 0x5151515151515151);
	CHECK(memory[2 * PAGE] == 0x51 && memory[2 * PAGE + 63] == 0x51 && memory[2 * PAGE + 64] == 0);
}

/* Memory of before exec is another one than that of after it, also while the parent has it still (vfork). */
static void execs(void)
{
	int group, container, device = open_device(&group, &container);
	char *memory = pages(1, MAP_PRIVATE), *name = strdup(path("remapped:%d,%d", device, container));
	char *arguments[] = { "/proc/self/exe", (char *)address, name, NULL };
	pid_t child;

	CHECK(fcntl(device, F_SETFD, 0) == 0);
	child = vfork();
	if (child == 0) {
		if (map_page(container, IOVA, memory) == 0)
			execv(arguments[0], arguments);
		_exit(2);
	}
	wait_for(child);
	CHECK(memory[0] == 0);
}

/* Reads all of the device's state; after each good read one that ends in memory that is not there. */
static size_t read_state(int device, char *state, size_t size, int faults)
{
	char *end = (char *)pages(2, MAP_PRIVATE) + PAGE;
	size_t done = 0;
	ssize_t count;
	int data;

	CHECK(munmap(end, PAGE) == 0);
	data = migration_state(device, VFIO_DEVICE_STATE_STOP_COPY);
	CHECK(data >= 0);
	do {
		struct iovec parts[] = { { state + done, 2 }, { end - 1, 4 } };

		if (faults && done < 40 && done % 3 == 0)
			FAILS(read(data, end - 4, 16), EFAULT);
		if (faults && done == 5) {
			CHECK(readv(data, parts, 2) == 2);
			done += 2;
		}
		count = read(data, state + done, faults && done < 20 ? 5 : size - done);
		CHECK(count >= 0);
		done += count;
	} while (count > 0);
	migration_state(device, VFIO_DEVICE_STATE_STOP);
	FAILS(read(data, state, 1), ENODEV);
	close(data);
	return done;
}

/* A read into memory that is not there loses nothing. */
static void reads(void)
{
	static char whole[8 << 20], pieces[8 << 20];
	int group, container, device = open_device(&group, &container), data;
	char *end = (char *)pages(2, MAP_PRIVATE) + PAGE;
	size_t size = read_state(device, whole, sizeof whole, 0);

	CHECK(size > 40);
	CHECK(read_state(device, pieces, sizeof pieces, 1) == size);
	CHECK(memcmp(whole, pieces, size) == 0);
	/* What was not read ends with the session. */
	CHECK(munmap(end, PAGE) == 0);
	data = migration_state(device, VFIO_DEVICE_STATE_STOP_COPY);
	FAILS(read(data, end, 16), EFAULT);
	migration_state(device, VFIO_DEVICE_STATE_STOP);
	FAILS(read(data, pieces, 16), ENODEV);
}

int main(int count, char **arguments)
{
	static const struct {
		const char *name;
		void (*act)(void);
	} acts[] = { { "maps", maps }, { "shares", shares }, { "exhausts", exhausts }, { "execs", execs }, { "reads", reads } };
	size_t known = sizeof acts / sizeof *acts, act;
	int device, container;

	CHECK(count == 3);
	address = arguments[1];
	if (sscanf(arguments[2], "remapped:%d,%d", &device, &container) == 2) {
		remapped(device, container);
		return 0;
	}
	for (act = 0; act < known && strcmp(acts[act].name, arguments[2]); act++)
		;
	CHECK(act < known);
	acts[act].act();
	return 0;
}
