// A program for `whimbrel trace` that uses the device of a group in ways that are hard to follow: a thread that makes no
// requests reads the state, bitmaps are nowhere, and the device's descriptor is passed by a message.
//
//   traced GROUP DEVICE

#include <err.h>
#include <fcntl.h>
#include <linux/vfio.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static int told[2], done[2];

static void must(int is_fine, const char *what)
{
	if (!is_fine)
		err(1, "%s", what);
}

// Reads a data file to its end, once it is told which.
static void *reader(void *none)
{
	char bytes[16];
	int fd;

	must(read(told[0], &fd, sizeof(fd)) == sizeof(fd), "told");
	while (read(fd, bytes, sizeof(bytes)) > 0)
		;
	must(write(done[1], "", 1) == 1, "done");
	return none;
}

static int set_state(int device, uint32_t state)
{
	struct {
		struct vfio_device_feature head;
		struct vfio_device_feature_mig_state data;
	} ask = { { sizeof(ask), VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE }, { state, -1 } };

	must(!ioctl(device, VFIO_DEVICE_FEATURE, &ask), "state");
	return ask.data.data_fd;
}

static void dirty(int container, uint64_t *bitmap)
{
	struct {
		struct vfio_iommu_type1_dirty_bitmap head;
		struct vfio_iommu_type1_dirty_bitmap_get get;
	} ask = { { sizeof(ask), VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP },
		  { 0, 100 * 4096, { 4096, 16, (__u64 *)bitmap } } };

	must(!ioctl(container, VFIO_IOMMU_DIRTY_PAGES, &ask), "bitmap");
}

static void send_fd(int by, int fd)
{
	char room[CMSG_SPACE(sizeof(fd))] = { 0 }, byte = 0;
	struct iovec part = { &byte, 1 };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof(room) };
	struct cmsghdr *head = CMSG_FIRSTHDR(&message);

	head->cmsg_level = SOL_SOCKET;
	head->cmsg_type = SCM_RIGHTS;
	head->cmsg_len = CMSG_LEN(sizeof(fd));
	memcpy(CMSG_DATA(head), &fd, sizeof(fd));
	must(sendmsg(by, &message, 0) == 1, "send");
}

static int receive_fd(int by)
{
	int fd;
	char room[CMSG_SPACE(sizeof(fd))], byte;
	struct iovec part = { &byte, 1 };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof(room) };

	must(recvmsg(by, &message, 0) == 1, "receive");
	memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(fd));
	return fd;
}

int main(int argc, char **argv)
{
	int container = open("/dev/vfio/vfio", O_RDWR), group = open(argv[1], O_RDWR), device, data, pair[2], status;
	struct vfio_iommu_type1_dirty_bitmap start = { sizeof(start), VFIO_IOMMU_DIRTY_PAGES_FLAG_START };
	static uint64_t bitmap[2] = { 7, ~0ull };
	pthread_t thread;
	char byte;

	must(argc == 3 && container >= 0 && group >= 0, "open");
	must(!pipe(told) && !pipe(done) && !pthread_create(&thread, NULL, reader, NULL), "thread");
	must(!ioctl(group, VFIO_GROUP_SET_CONTAINER, &container), "container");
	must(!ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU), "iommu");
	device = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, argv[2]);
	must(device >= 0, "device");

	must(!ioctl(container, VFIO_IOMMU_DIRTY_PAGES, &start), "start");
	// Nothing is mapped, so the kernel leaves the bitmaps as they are.
	dirty(container, bitmap);
	dirty(container, (uint64_t *)0x1000);

	data = set_state(device, VFIO_DEVICE_STATE_STOP_COPY);
	must(write(told[1], &data, sizeof(data)) == sizeof(data), "tell");
	must(read(done[0], &byte, 1) == 1, "wait");
	set_state(device, VFIO_DEVICE_STATE_RUNNING);
	close(data);

	must(!socketpair(AF_UNIX, SOCK_STREAM, 0, pair), "pair");
	if (!fork()) {
		must(!ioctl(receive_fd(pair[0]), VFIO_DEVICE_RESET), "reset");
		_exit(0);
	}
	send_fd(pair[1], device);
	must(wait(&status) > 0 && !status, "child");
	return 5;
}
