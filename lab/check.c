/*
 * What lab/check runs in the guest: writes every byte value to stdout and a line to stderr, copies
 * its file `given` to `copied`, finds its argument as it was given, and exits with 37.
 */
#include <stdio.h>
#include <string.h>

int main(int argc, char **argv)
{
	if (argc != 2 || strcmp(argv[1], "it's one \"word\" $HOME\\") != 0)
		return 1;
	for (int value = 0; value < 256; value++)
		putchar(value);
	/* As programs may name their own streams. */
	FILE *errors = fopen("/dev/stderr", "w");
	if (!errors || fputs("said aside\n", errors) < 0)
		return 2;

	FILE *given = fopen("given", "rb");
	FILE *copied = fopen("copied", "wb");
	if (!given || !copied)
		return 3;
	char block[4096];
	size_t count;
	while ((count = fread(block, 1, sizeof block, given)) > 0)
		if (fwrite(block, 1, count, copied) != count)
			return 4;
	return ferror(given) || fclose(copied) ? 5 : 37;
}
