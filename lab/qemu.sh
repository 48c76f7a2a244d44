# The QEMUs whose guests have devices from outside: the newest that Debian has, for the system's may be too old, and
# QEMU 10. They are not installed but unpacked, and run by the loader and the libraries of their own Debian. So their
# processes share sockets and memory with the servers on the host.
# shellcheck shell=bash disable=SC2154,SC2034

# set_qemu_command FOLDER: sets `qemu_command` to what runs the QEMU that is built there. It is given no modules, and
# a place where none are: it would load those of the system's QEMU, and crash.
set_qemu_command() {
	qemu_command=(env "QEMU_MODULE_DIR=$1/modules" "$1/loader" --inhibit-cache --library-path "$1/lib"
		"$1/qemu-system-x86_64" -L "$1/firmware")
}

build_guest() { build_qemu "$1" vfio-user-pci; }

build_qemu-10() {
	[[ $version == 1:10.* ]] || fail 125 "$older_suite has QEMU $version, and no longer 10"
	build_qemu "$1" vfio-pci
}

# build_qemu FOLDER DEVICE: places the QEMU that was chosen, which must have this device.
build_qemu() {
	local new=$1 device=$2 tree=$1/tree program
	mkdir "$tree" "$new/lib" "$new/modules" "$new/firmware"
	unpack_chosen "$tree"
	# Of all these packages, what one program needs.
	program=$tree/usr/bin/qemu-system-x86_64
	copy_loader "$tree" "$new/loader"
	copy_libraries "$tree" "$new/loader" "$program" "$new/lib"
	cp "$program" "$new/"
	cp "$tree"/usr/share/seabios/bios*.bin "$tree"/usr/share/qemu/{pvh,kvmvapic,linuxboot_dma}.bin "$new/firmware/"
	rm -rf "$tree"
	set_qemu_command "$new"
	"${qemu_command[@]}" -device "$device,help" > "$new/log" 2>&1 || {
		tail -n 5 "$new/log" >&2
		fail 125 "QEMU $version has no device $device"
	}
	rm "$new/log"
}
