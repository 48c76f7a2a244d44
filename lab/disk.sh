# What a guest with a disk has beside: modules of Debian's kernel, and programs of Debian 12 with their libraries. They are
# an archive of the initramfs, for under TCG a guest must execute nothing that lies on a disk of ours: TCG does not notice
# that others write to memory, and would go on with the code that was there before.
# shellcheck shell=bash disable=SC2154,SC2034

# In the order in which they load.
disk_modules=(crypto/crc32c_generic drivers/nvme/common/nvme-auth drivers/nvme/host/nvme-core drivers/nvme/host/nvme
	lib/crc16 fs/mbcache fs/jbd2/jbd2 fs/ext4/ext4)
disk_packages=(nvme-cli e2fsprogs fio)
disk_programs=(usr/sbin/nvme sbin/mkfs.ext4 sbin/fsck.ext4 usr/bin/fio)

build_disk() {
	local new=$1 tree=$1/tree root=$1/root kernel_version=$version programs_version program
	[ "$version" = "$(cat "$cache/debian/version")" ] ||
		fail 125 "apt has kernel $version, and that in $cache/debian is another: delete it, and build both again"
	choose_packages "$older_release" "${disk_packages[@]}" ||
		fail 125 "${disk_packages[*]} of $older_release cannot be had of this machine's mirror of Debian"
	programs_version="${disk_packages[0]} $version" version=$kernel_version
	unpack_kernel "$tree" "${disk_modules[@]}"
	mkdir -p "$root"/{bin,lib64,lib/x86_64-linux-gnu,modules}
	unpack_modules "$tree" "$root/modules" "${disk_modules[@]}"
	printf '%s.ko\n' "${disk_modules[@]##*/}" > "$root/modules/disk"
	unpack_chosen "$tree"
	copy_loader "$tree" "$root/lib64/ld-linux-x86-64.so.2"
	for program in "${disk_programs[@]}"; do
		cp -L "$tree/$program" "$root/bin/"
		copy_libraries "$tree" "$root/lib64/ld-linux-x86-64.so.2" "$tree/$program" "$root/lib/x86_64-linux-gnu"
	done
	version+=", $programs_version"
	pack "$cache/debian/busybox" "$root" > "$new/disk.cpio"
	rm -rf "$tree" "$root"
}
