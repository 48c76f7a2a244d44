/*
 * Memory whose pages are not there until the program fills them, by a userfaultfd.
 */
#include <linux/userfaultfd.h>

/* Pages that nobody fills before `fill`. Ends the program if it has no right to have such. */
static char *held_pages(size_t count, int *filler)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register range = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	char *pages = mmap(NULL, count * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	*filler = syscall(SYS_userfaultfd, O_NONBLOCK);
	if (*filler < 0) {
		puts("no userfaultfd");
		exit(0);
	}
	range.range.start = (uintptr_t)pages;
	range.range.len = count * PAGE;
	CHECK(ioctl(*filler, UFFDIO_API, &api) == 0 && ioctl(*filler, UFFDIO_REGISTER, &range) == 0);
	return pages;
}

/* Waits for the page fault of another, and returns its page. */
static char *fault_of(int filler)
{
	struct pollfd ready = { .fd = filler, .events = POLLIN };
	struct uffd_msg fault;

	CHECK(poll(&ready, 1, -1) == 1 && read(filler, &fault, sizeof fault) == sizeof fault);
	CHECK(fault.event == UFFD_EVENT_PAGEFAULT);
	return (char *)(uintptr_t)(fault.arg.pagefault.address & ~(PAGE - 1ul));
}
