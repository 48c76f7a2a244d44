# What is built of Debian's packages and kept in the cache: three kernels, the headers of 6.12, newer ones,
# QEMUs for guests with devices from outside (qemu.sh), and what such a guest needs for a disk (disk.sh).
# shellcheck shell=bash disable=SC2154,SC2034

# What `all` is. The newest kernel and QEMU 10 are built only by their names: few need them, and the kernel takes
# minutes. newer-headers is no word of the command line: it belongs to headers.
targets=(debian iommufd headers newer-headers tree guest disk)

# Modules of Debian's kernel that go into the guest, in the order in which they load. mtty, which
# Debian does not build, comes last.
debian_modules=(drivers/virtio/virtio_mmio net/core/failover drivers/net/net_failover drivers/net/virtio_net
	virt/lib/irqbypass drivers/vfio/vfio drivers/vfio/vfio_iommu_type1 drivers/vfio/mdev/mdev
	drivers/vfio/pci/vfio-pci-core drivers/vfio/pci/vfio-pci drivers/uio/uio drivers/uio/uio_pci_generic)

kernel_headers=(vfio.h iommufd.h vfio_zdev.h vfio_ccw.h)

# place TARGET: where it stands when it is built.
place() {
	case $1 in
	headers) echo "$cache/include" ;;
	newer-headers) echo "$cache/include-newer" ;;
	tree) echo "$cache/module-tree" ;;
	*) echo "$cache/$1" ;;
	esac
}

# recipe TARGET: what it is made by. It is kept with what was made, and where it differs, that is
# built again. The number counts the ways of building.
recipe() {
	case $1 in
	debian) echo 1 "${debian_modules[@]}" ;;
	iommufd) echo 1 && grep CONFIG_ "$lab/iommufd.config" ;;
	newest) echo 1 && grep -h CONFIG_ "$lab/iommufd.config" "$lab/newest.config" ;;
	headers | newer-headers) echo 1 "${kernel_headers[@]}" ;;
	tree) echo 1 "$cache" ;; # the path is part of it
	guest | qemu-10) echo 1 ;;
	disk) echo 1 "${disk_modules[@]}" "${disk_packages[@]}" && cat "$(place debian)/version" 2> /dev/null ;; # for that kernel
	esac
}

is_ready() { cmp --quiet <(recipe "$1") "$(place "$1")/recipe" 2> /dev/null; }

build_targets() {
	local target wanted=()
	for target in "$@"; do
		is_ready "$target" || wanted+=("$target")
	done
	if [ ${#wanted[@]} != 0 ]; then
		command -v apt-get > /dev/null || fail 3 "there is no apt-get: the kernels come from Debian's packages"
		require_tools "${wanted[@]}"
		mkdir -p "$cache/downloads"
		lock_cache
		in_group build_missing "${wanted[@]}"
		wait "$!"
	fi
	for target in "$@"; do
		# The newer headers may be beyond reach; that has been said then.
		! is_ready "$target" || say "$target is ready: $(cat "$(place "$target")/version")"
	done
}

# Until this run ends, nobody else builds. What is unfinished then is this run's, or that of one that
# was killed outright.
lock_cache() {
	local lock
	exec {lock}> "$cache/lock"
	if ! flock --nonblock "$lock"; then
		say "waiting for another build"
		flock "$lock" &
		owned+=("$!")
		wait "$!"
	fi
	owned_folders+=("$cache/unfinished")
	rm -rf "$cache/unfinished"
	mkdir "$cache/unfinished"
}

build_missing() {
	local target new
	renice -n 10 -p "$BASHPID" > /dev/null
	for target in "$@"; do
		if is_ready "$target"; then continue; fi # the other build made it
		case $target in
		newer-headers)
			if ! choose_newer_headers; then
				say "the newer headers are not built: linux-libc-dev of $newer_suite cannot be had" \
					"of this machine's mirror of Debian"
				continue
			fi ;;
		newest)
			choose_newest_kernel ||
				fail 125 "the source of a kernel of $newer_suite cannot be had of this machine's mirror of Debian" ;;
		guest)
			choose_packages "$newer_suite $newer_release" qemu-system-x86 ||
				fail 125 "QEMU of $newer_suite cannot be had of this machine's mirror of Debian" ;;
		qemu-10)
			choose_packages "$older_suite $older_release" qemu-system-x86 ||
				fail 125 "QEMU of $older_suite cannot be had of this machine's mirror of Debian" ;;
		*) choose_release ;;
		esac
		say "building $target of $version"
		new=$cache/unfinished/$target
		mkdir "$new"
		"build_$target" "$new"
		echo "$version" > "$new/version"
		recipe "$target" > "$new/recipe"
		rm -rf "$(place "$target")"
		mv -T "$new" "$(place "$target")"
	done
}

# quietly LOG COMMAND..: its output is shown only when it fails.
quietly() {
	local log=$1
	shift
	"$@" > "$log" 2>&1 || {
		tail -n 40 "$log" >&2
		fail 125 "failed: $*"
	}
}

# unpack_source PACKAGE FOLDER [PATH..]: a kernel's source, or only those files of it.
unpack_source() {
	local package=$1 folder=$2 deb once=()
	shift 2
	deb=$(fetch "$package" "$version")
	mkdir -p "$folder"
	[ $# = 0 ] || once=(--occurrence=1)
	# The last tar stops when it has what it wants, and breaks the pipe: its status alone counts.
	(
		set +o pipefail
		{ dpkg-deb --fsys-tarfile "$deb" | tar -xO "./usr/src/$package.tar.xz" | xz -T0 -dc; } 2> /dev/null |
			tar -x -C "$folder" --strip-components=1 "${once[@]}" "${@/#/$package/}"
	) || fail 125 "could not unpack $deb"
}

build_headers() {
	local new=$1 tree=$1/tree
	unpack_source linux-source-6.12 "$tree" "${kernel_headers[@]/#/include/uapi/linux/}"
	mv "$tree/include/uapi/linux" "$new/linux"
	rm -rf "$tree"
}

build_newer-headers() {
	local new=$1 tree=$1/tree name
	dpkg-deb -x "$(APT_CONFIG=$private_apt fetch linux-libc-dev "$version")" "$tree"
	mkdir "$new/linux"
	for name in "${kernel_headers[@]}"; do
		mv "$tree/usr/include/linux/$name" "$new/linux/"
	done
	rm -rf "$tree"
}

# unpack_kernel TREE MODULE..: Debian's kernel and these modules of it, as its package has them.
unpack_kernel() {
	local tree=$1 name=$release-amd64 path image packed=()
	shift
	image=$(fetch "linux-image-$name" "$version")
	for path; do
		packed+=("*/lib/modules/$name/kernel/$path.ko.xz")
	done
	mkdir "$tree"
	# Debian 13 has lib/ in usr/.
	dpkg-deb --fsys-tarfile "$image" | tar -x -C "$tree" --transform 's#^\./usr/#./#' \
		--wildcards "./boot/vmlinuz-$name" "${packed[@]}"
}

# unpack_modules TREE FOLDER MODULE..: the modules there, as a kernel loads them.
unpack_modules() {
	local tree=$1 folder=$2 path
	shift 2
	for path; do
		xz -dc "$tree/lib/modules/$release-amd64/kernel/$path.ko.xz" > "$folder/${path##*/}.ko"
	done
}

build_debian() {
	local new=$1 tree=$1/tree modules=("${debian_modules[@]##*/}" mtty)
	mkdir "$new/modules"
	unpack_kernel "$tree" "${debian_modules[@]}"
	unpack_elf_kernel "$tree/boot/vmlinuz-$release-amd64" > "$new/vmlinux"
	unpack_modules "$tree" "$new/modules" "${debian_modules[@]}"
	build_mtty "$tree" "$release-amd64" "$new/modules/mtty.ko"
	printf '%s.ko\n' "${modules[@]}" > "$new/modules/order"
	rm -rf "$tree"
	make_base "$new"
}

# unpack_elf_kernel VMLINUZ: the kernel inside, whole. QEMU starts that directly, which spares the
# guest the unpacking. Where it lies stands in the header of the x86 boot protocol: setup_sects,
# payload_offset and payload_length. The payload's last four bytes are its unpacked size.
unpack_elf_kernel() {
	local file=$1 offset length size
	number() { od -An -v -t "u$2" -j "$1" -N "$2" "$file" | tr -d ' '; }
	offset=$((($(number 497 1) + 1) * 512 + $(number 584 4)))
	length=$(number 588 4)
	size=$(number $((offset + length - 4)) 4)
	tail -c "+$((offset + 1))" "$file" | head -c $((length - 4)) > "$file.zst" || true # tail's pipe breaks
	zstd -dq "$file.zst" -o "$file.elf" || fail 125 "no zstd payload in $file"
	[ "$(stat -c %s "$file.elf")" = "$size" ] || fail 125 "the kernel in $file is not whole"
	cat "$file.elf"
}

# unpack_module_tree FOLDER PLACE: what modules of Debian's kernel are built with, to be used in PLACE.
unpack_module_tree() {
	local folder=$1 place=$2 package
	for package in "linux-headers-$release-amd64" "linux-headers-$release-common" "linux-kbuild-$release"; do
		dpkg-deb -x "$(fetch "$package" "$version")" "$folder"
	done
	# They expect to be installed.
	sed -i "s#/usr/src#$place/usr/src#" "$folder/usr/src/linux-headers-$release-amd64/Makefile"
}

build_tree() {
	unpack_module_tree "$1" "$(place tree)"
	ln -s "usr/src/linux-headers-$release-amd64" "$1/build"
}

# build_mtty TREE NAME RESULT: the sample driver, built as any module outside the kernel is, with the
# headers of the very kernel it is for.
build_mtty() {
	local tree=$1 name=$2 result=$3
	unpack_module_tree "$tree" "$tree"
	unpack_source linux-source-6.12 "$tree/source" samples/vfio-mdev/mtty.c
	echo 'obj-m := mtty.o' > "$tree/source/samples/vfio-mdev/Kbuild"
	# Without BTF, which would need one more tool and serves nothing here.
	quietly "$tree/log" make -s -C "$tree/usr/src/linux-headers-$name" M="$tree/source/samples/vfio-mdev" \
		CONFIG_DEBUG_INFO_BTF_MODULES= modules
	strip --strip-debug -o "$result" "$tree/source/samples/vfio-mdev/mtty.ko"
}

build_iommufd() { build_small_kernel "$1" linux-source-6.12 "$lab/iommufd.config"; }

build_newest() {
	# The system's apt does not know it. From here on it is among the downloads.
	APT_CONFIG=$private_apt fetch "$newest_source" "$version" > /dev/null
	build_small_kernel "$1" "$newest_source" "$lab/iommufd.config" "$lab/newest.config"
}

# configured FILE..: the lines that set an option, the last one for each.
configured() {
	awk '/^(# )?CONFIG_/ {
		name = $1 == "#" ? $2 : $1
		sub("=.*", "", name)
		lines[name] = $0
	}
	END { for (name in lines) print lines[name] }' "$@"
}

# build_small_kernel FOLDER PACKAGE CONFIG..: the source of this package with what these files name, on top of the
# kernel's own tinyconfig. A later file overrides an earlier one.
build_small_kernel() {
	local new=$1 package=$2 tree=$1/tree compiler line make
	shift 2
	compiler=$(kernel_compiler)
	unpack_source "$package" "$tree"
	make=(make -s -C "$tree" "CC=$compiler" "HOSTCC=$compiler"
		KBUILD_BUILD_USER=whimbrel KBUILD_BUILD_HOST=lab)
	quietly "$new/log" "${make[@]}" tinyconfig
	(cd "$tree" && quietly "$new/log" scripts/kconfig/merge_config.sh -m .config "$@")
	quietly "$new/log" "${make[@]}" olddefconfig
	# The configuration drops what it cannot have, without a word.
	while read -r line; do
		case $line in
		'# '*)
			line=${line% is not set}
			! grep -q -- "^${line#\# }=" "$tree/.config" || fail 125 "the kernel does not leave out: ${line#\# }" ;;
		*) grep -Fqx -- "$line" "$tree/.config" || fail 125 "the kernel does not take: $line" ;;
		esac
	done < <(configured "$@")
	say "compiling the kernel: some four to six minutes on two processors"
	quietly "$new/log" "${make[@]}" "-j$(nproc)" vmlinux
	strip -o "$new/vmlinux" "$tree/vmlinux"
	cp "$tree/.config" "$new/config"
	rm -rf "$tree" "$new/log"
	mkdir "$new/modules"
	: > "$new/modules/order" # all is built in
	make_base "$new"
}
