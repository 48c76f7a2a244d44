/*
 * A libvfio-user server of one region, for the benchmark `latency`: it serves one client at the socket it is given, and
 * waits for each message. See ../README.md.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "libvfio-user.h"

#define SIZE 4096

static char registers[SIZE];

static ssize_t access_registers(vfu_ctx_t *ctx, char *data, size_t count, loff_t offset, bool is_write)
{
    (void)ctx;
    if (count > SIZE || offset < 0 || (size_t)offset > SIZE - count) {
        errno = EINVAL;
        return -1;
    }
    if (is_write)
        memcpy(registers + offset, data, count);
    else
        memcpy(data, registers + offset, count);
    return count;
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: %s SOCKET\n", argv[0]);
        return 2;
    }
    vfu_ctx_t *ctx = vfu_create_ctx(VFU_TRANS_SOCK, argv[1], 0, NULL, VFU_DEV_TYPE_PCI);
    int flags = VFU_REGION_FLAG_RW | VFU_REGION_FLAG_MEM;
    if (ctx == NULL || vfu_pci_init(ctx, VFU_PCI_TYPE_CONVENTIONAL, PCI_HEADER_TYPE_NORMAL, 0) != 0
        || vfu_setup_region(ctx, VFU_PCI_DEV_BAR0_REGION_IDX, SIZE, access_registers, flags, NULL, 0, -1, 0) != 0
        || vfu_realize_ctx(ctx) != 0 || vfu_attach_ctx(ctx) != 0) {
        perror(argv[1]);
        return 1;
    }
    /* Until the client has left. */
    while (vfu_run_ctx(ctx) >= 0 || errno == EINTR)
        ;
    vfu_destroy_ctx(ctx);
    return 0;
}
