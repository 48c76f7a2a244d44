// SPDX-License-Identifier: GPL-2.0
// A module that makes the kernel warn whenever its parameter `now` is written.
#include <linux/bug.h>
#include <linux/module.h>

static int warns_now(const char *value, const struct kernel_param *parameter)
{
	WARN(1, "asked for\n");
	return 0;
}

static const struct kernel_param_ops warns_ops = { .set = warns_now };

module_param_cb(now, &warns_ops, NULL, 0200);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Warns when it is asked to");
