/* The part of a vfio.h with the draft of 2019 that is about migration. */
#define VFIO_REGION_TYPE_MIGRATION (3)
#define VFIO_REGION_SUBTYPE_MIGRATION (1)

struct vfio_device_migration_info {
	__u32 device_state;
#define VFIO_DEVICE_STATE_RUNNING (1 << 0)
#define VFIO_DEVICE_STATE_SAVING (1 << 1)
#define VFIO_DEVICE_STATE_RESUMING (1 << 2)
#define VFIO_DEVICE_STATE_MASK (VFIO_DEVICE_STATE_RUNNING | \
				VFIO_DEVICE_STATE_SAVING | VFIO_DEVICE_STATE_RESUMING)
#define VFIO_DEVICE_STATE_INVALID (VFIO_DEVICE_STATE_SAVING | VFIO_DEVICE_STATE_RESUMING)
	__u32 reserved;
	__u64 pending_bytes;
	__u64 data_offset;
	__u64 data_size;
	__u64 start_pfn;
	__u64 page_size;
	__u64 total_pfns;
	__u64 copied_pfns;
#define VFIO_DEVICE_DIRTY_PFNS_NONE (0)
#define VFIO_DEVICE_DIRTY_PFNS_ALL (~0ULL)
} __attribute__((packed));
