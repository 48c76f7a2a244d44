// SPDX-License-Identifier: GPL-2.0
// A module that loads, or refuses to if built with REFUSES. lab/check builds both against the lab's tree.
#include <linux/module.h>
#include <linux/vfio.h>

static int __init check_init(void)
{
	pr_info("the size of a VFIO device is %zu\n", sizeof(struct vfio_device));
#ifdef REFUSES
	return -ENODEV;
#else
	return 0;
#endif
}

static void __exit check_exit(void)
{
}

module_init(check_init);
module_exit(check_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Loads, or refuses to");
