//! Containers, groups and the type1 IOMMU, driven as a program drives them: raw ioctl bytes, and the typed
//! calls beside them. The expectations are those of the kernel's `container.c`, `group.c` and
//! `vfio_iommu_type1.c`.

mod dirty;
mod map;
mod model;
mod order;
mod support;
