# What a machine finds when it boots: an initramfs of two archives, one of the kernel's, one of the run's.
# shellcheck shell=bash disable=SC2154

# pack BUSYBOX FOLDER: the folder as a cpio archive. (Busybox has cpio; the host may not.)
pack() { (cd "$2" && find . | "$1" cpio -o -H newc 2> /dev/null); }

# make_base KERNEL_FOLDER: the part that every run shares, a busybox with all its names and the modules.
make_base() {
	local folder=$1 root=$1/root name
	mkdir -p "$root"/{bin,dev,proc,sys,tmp}
	dpkg-deb --fsys-tarfile "$(fetch busybox-static)" | tar -xO --wildcards '*/bin/busybox' > "$folder/busybox"
	chmod 755 "$folder/busybox"
	mv "$folder/modules" "$root/modules"
	cp "$folder/busybox" "$root/bin/"
	"$folder/busybox" --list | while read -r name; do
		[ "$name" = busybox ] || ln -s busybox "$root/bin/$name"
	done
	pack "$folder/busybox" "$root" > "$folder/base.cpio"
	rm -rf "$root"
}

# quoted WORD..: as the guest's shell reads them back.
quoted() {
	local word
	for word in "$@"; do
		printf " '%s'" "${word//\'/\'\\\'\'}"
	done
}

# make_initramfs MACHINE LINE [ADDRESS PEER]: what this run adds: the first process, the line to run,
# the program and its files, and which files to hand back.
make_initramfs() {
	local folder=$work/$1 line=$2 address=${3:-} peer=${4:-} tree=$work/$1/tree take number served=()
	mkdir -p "$tree/lab" "$tree/job"
	cp "$lab/init" "$tree/init"
	chmod 755 "$tree/init"
	printf '%s\n' "$line" > "$tree/lab/line"
	for ((number = 0; number < ${#outside[@]}; number++)); do
		served+=("0000:00:1$number.0")
	done
	printf '%s\n' "mttys='${mtty//,/ }'" "displays=$displays" "modules='${modules[*]##*/}'" \
		"pci='${pci:+${pci_devices[*]} ${served[*]}}'" "address=$address" "peer=$peer" > "$tree/lab/settings"
	for take in ${wanted[@]+"${wanted[@]}"}; do
		printf '%s\n' "${take%%=*}"
	done > "$tree/lab/take"
	[ ${#modules[@]} = 0 ] || cp -L -- "${modules[@]}" "$tree/lab/"
	cp -L -- "${program[0]}" ${files[@]+"${files[@]}"} "$tree/job/"
	{
		cat "$cache/$kernel/base.cpio" ${disk:+"$cache/disk/disk.cpio"}
		pack "$cache/$kernel/busybox" "$tree"
	} > "$folder/initramfs"
	# QEMU puts it as high as it can, page by page, and newer firmware puts the ACPI tables at the very end
	# of memory, whether something is there or not. Whole pages leave the last one free.
	truncate --size=%4096 "$folder/initramfs"
	rm -rf "$tree"
}
