# What Debian provides: the tools that must be installed, and the packages that are only unpacked.
# shellcheck shell=bash disable=SC2154

# Debian's name of a 6.12 kernel, as in linux-image-NAME-amd64: 6.12.117+deb12, 6.12.48+deb13.
release_pattern='6\.12\.[0-9]+\+deb1[0-9]+'

# versions PACKAGE: those that apt could download.
versions() { apt-cache madison "$1" 2> /dev/null | awk '$NF == "Packages" { print $3 }'; }

# Prints every release that apt knows an image of, newest first.
known_releases() {
	apt-cache pkgnames linux-image-6.12. 2> /dev/null |
		sed -nE "s/^linux-image-($release_pattern)-amd64\$/\1/p" | sort --version-sort --reverse
}

# Sets `release` and `version` to the newest kernel of which image, headers and source can all be had.
choose_release() {
	local package
	while read -r release; do
		version=$(versions "linux-image-$release-amd64" | head -n 1)
		for package in "linux-headers-$release-amd64" "linux-headers-$release-common" \
			"linux-kbuild-$release" linux-source-6.12; do
			versions "$package" | grep -Fqx -- "$version" || continue 2
		done
		return 0
	done < <(known_releases)
	fail 3 "apt knows no whole set of 6.12 kernel packages; run: apt-get update
	(it needs Debian 12 with its security updates, or Debian 13)"
}

# Where Debian keeps its newest kernels, their headers and the newest QEMU, and what those packages are built
# for. The system need not know of either.
newer_release=trixie newer_suite=trixie-backports
# And where it keeps QEMU 10.
older_release=bookworm older_suite=bookworm-backports
private_apt=

# make_private_apt FOLDER SUITE..: an apt of its own that knows these suites alone, by FOLDER/apt.conf. Its state
# lives and dies with this build; the system's apt is only asked for the mirror of Debian, and how to reach it.
# Where the mirror has no such suite, this apt does not know its packages; FOLDER/log says why.
make_private_apt() {
	local folder=$1 suite mirror keys=/usr/share/keyrings/debian-archive-keyring.gpg trusted=''
	shift
	mirror=$(apt-get indextargets --format '$(LABEL) $(REPO_URI)' 'Created-By: Packages' 2> /dev/null |
		sed -n 's/^Debian //p' | head -n 1) || true
	[ -n "$mirror" ] || return 1
	[ ! -e "$keys" ] || trusted="[signed-by=$keys] "
	mkdir -p "$folder/lists/partial" "$folder/cache/archives/partial"
	for suite in "$@"; do
		echo "deb $trusted$mirror $suite main"
	done > "$folder/sources.list"
	: > "$folder/status" # nothing is installed
	{
		# Not what the system wants done after an update, nor the kinds of index it wants beside.
		apt-config dump | grep '^Acquire::' | grep -v '^Acquire::IndexTargets'
		cat <<-END
			Dir::Etc::Parts "/dev/null";
			Dir::Etc::Main "/dev/null";
			Dir::Etc::SourceList "$folder/sources.list";
			Dir::Etc::SourceParts "/dev/null";
			Dir::Etc::Preferences "/dev/null";
			Dir::Etc::PreferencesParts "/dev/null";
			Dir::State "$folder";
			Dir::State::Lists "$folder/lists";
			Dir::State::Status "$folder/status";
			Dir::Cache "$folder/cache";
			APT::Sandbox::User "root";
			Acquire::Languages "none";
		END
	} > "$folder/apt.conf"
	APT_CONFIG=$folder/apt.conf apt-get update -qq > "$folder/log" 2>&1 || true
}

# Sets `private_apt` to an apt that knows `newer_suite`. Fails when the mirror has no such suite.
enter_newer_suite() {
	local folder=$cache/unfinished/apt
	[ -z "$private_apt" ] || return 0
	make_private_apt "$folder" "$newer_suite" || return 1
	[ -n "$(APT_CONFIG=$folder/apt.conf versions linux-libc-dev)" ] || {
		tail -n 5 "$folder/log" >&2
		return 1
	}
	private_apt=$folder/apt.conf
}

# choose_packages 'SUITE..' PACKAGE..: sets `version` to that of the first package, the newest of the first of these
# suites, `chosen_packages` to all of them and all they need, each as NAME=VERSION, and `chosen_apt` to an apt that has
# them. Fails when they cannot be had.
choose_packages() {
	local suites folder
	read -ra suites <<< "$1"
	shift
	folder=$cache/unfinished/apt-${suites[0]}
	make_private_apt "$folder" "${suites[@]}" || return 1
	chosen_apt=$folder/apt.conf
	# An installation that is not done says what would be installed: "Inst NAME (VERSION ARCHIVE [amd64])".
	mapfile -t chosen_packages < <(APT_CONFIG=$chosen_apt apt-get install --simulate --no-install-recommends \
		--target-release "${suites[0]}" "$@" 2>> "$folder/log" |
		sed -nE 's/^Inst ([^ ]+) \(([^ ]+) .*/\1=\2/p')
	version=$(printf '%s\n' "${chosen_packages[@]}" | sed -n "s/^$1=//p")
	[ -n "$version" ] || {
		tail -n 5 "$folder/log" >&2
		return 1
	}
}

# unpack_chosen TREE: the packages that were chosen.
unpack_chosen() {
	local package missing=()
	for package in "${chosen_packages[@]}"; do
		[ -n "$(downloaded "${package%%=*}" "${package#*=}")" ] || missing+=("$package")
	done
	if [ ${#missing[@]} != 0 ]; then
		say "downloading ${#missing[@]} packages"
		APT_CONFIG=$chosen_apt download "${missing[@]}"
	fi
	for package in "${chosen_packages[@]}"; do
		dpkg-deb -x "$(downloaded "${package%%=*}" "${package#*=}")" "$1"
	done
}

# copy_loader TREE FILE: the loader of the programs there. Debian 12 has some files outside usr/.
copy_loader() { cp "$(find "$1"/{usr/,}lib/x86_64-linux-gnu/ld-linux-x86-64.so.2 -type f 2> /dev/null)" "$2"; }

# copy_libraries TREE LOADER PROGRAM FOLDER: the libraries that this program loads.
copy_libraries() {
	local tree=$1 loader=$2 program=$3 folder=$4 path told library
	path=$tree/usr/lib/x86_64-linux-gnu:$tree/lib/x86_64-linux-gnu
	# librados has one in a folder of its own.
	path+=:$tree/usr/lib/x86_64-linux-gnu/ceph
	told=$("$loader" --inhibit-cache --library-path "$path" --list "$program" 2>&1) || {
		tail -n 5 <<< "$told" >&2
		fail 125 "${program##*/} lacks libraries"
	}
	# Lines like "NAME => PATH (ADDRESS)". Two are not of the tree: the kernel's own and the loader.
	while read -r library; do
		library=${library#*=> }
		library=${library% (*}
		case $library in
		"$tree"/*) cp -L -- "$library" "$folder/" ;;
		"$loader" | /lib64/ld-linux-x86-64.so.2 | linux-vdso.*) ;;
		*) fail 125 "${program##*/} lacks a library: the loader would take $library" ;;
		esac
	done <<< "$told"
}

# newest_version PACKAGE: the newest that `newer_suite` has.
newest_version() { APT_CONFIG=$private_apt versions "$1" | sort --version-sort | tail -n 1; }

# Sets `version` to that of the newest headers. Fails when they cannot be had.
choose_newer_headers() {
	enter_newer_suite || return 1
	version=$(newest_version linux-libc-dev)
}

# Sets `version` to that of the newest kernel, and `newest_source` to the package of its source: linux-source is
# an empty package that needs linux-source-7.3 of the same version, say.
choose_newest_kernel() {
	enter_newer_suite || return 1
	version=$(newest_version linux-source)
	newest_source=linux-source-$(grep -oE '^[0-9]+\.[0-9]+' <<< "$version") || return 1
	APT_CONFIG=$private_apt versions "$newest_source" | grep --quiet -Fx -- "$version"
}

# The compiler this Debian builds its 6.12 kernel with: also the name of its package.
kernel_compiler() {
	local newest compiler='' codename
	newest=$(known_releases | head -n 1)
	[ -z "$newest" ] || compiler=$(apt-cache depends "linux-headers-$newest-amd64" |
		grep -oE 'gcc-[0-9]+' | head -n 1) || true
	if [ -z "$compiler" ]; then
		codename=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
		case $codename in trixie) compiler=gcc-14 ;; *) compiler=gcc-12 ;; esac
	fi
	echo "$compiler"
}

# needed_tools PURPOSE..: lines of a command or file that must be there, and the package that has it.
needed_tools() {
	local purpose compiler=''
	for purpose in "$@"; do
		# Asking apt takes most of a second, and nobody who only boots needs a compiler.
		case $purpose in debian | tree | iommufd | newest | check) compiler=${compiler:-$(kernel_compiler)} ;; esac
		case $purpose in
		run) printf '%s %s\n' qemu-system-x86_64 qemu-system-x86 ;;
		debian) printf '%s %s\n' "x86_64-linux-gnu-$compiler" "$compiler" make make xz xz-utils zstd zstd ;;
		tree) printf '%s %s\n' "$compiler" "$compiler" make make ;;
		iommufd | newest)
			printf '%s %s\n' "$compiler" "$compiler" make make xz xz-utils bc bc bison bison flex flex \
				/usr/include/libelf.h libelf-dev /usr/include/stdio.h libc6-dev ;;
		headers | newer-headers | disk) printf '%s %s\n' xz xz-utils ;;
		check) printf '%s %s\n' "$compiler" "$compiler" /usr/lib/x86_64-linux-gnu/libc.a libc6-dev ;;
		esac
	done
}

all_packages() { needed_tools run debian tree iommufd headers check | cut -d ' ' -f 2 | sort -u | paste -sd ' '; }

# require_tools PURPOSE..: ends this run, saying what to install, when something is missing.
require_tools() {
	local probe package missing=()
	while read -r probe package; do
		[ -e "$probe" ] || command -v "$probe" > /dev/null || missing+=("$package")
	done < <(needed_tools "$@")
	[ ${#missing[@]} != 0 ] || return 0
	mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)
	fail 3 "missing Debian package: ${missing[*]}; run: apt-get install --no-install-recommends ${missing[*]}"
}

# downloaded PACKAGE [VERSION]: prints the path of the .deb, if it is among the downloads.
downloaded() {
	local wanted=${2:-*}
	# A file's name has no colon.
	find "$cache/downloads/" -name "$1_${wanted//:/%3a}_*.deb" | sort --version-sort | tail -n 1
}

# download PACKAGE[=VERSION]..: places them among the downloads. Nothing is installed.
download() {
	local new=$cache/unfinished/download
	mkdir "$new"
	(cd "$new" && apt-get download -qq -o APT::Sandbox::User=root "$@") >&2 ||
		fail 125 "apt-get could not download $*; run apt-get update, then this again"
	mv "$new"/*.deb "$cache/downloads/"
	rmdir "$new"
}

# fetch PACKAGE [VERSION]: prints the path of the .deb, downloaded once.
fetch() {
	local found
	found=$(downloaded "$@")
	if [ -z "$found" ]; then
		say "downloading $1"
		download "$1${2:+=$2}"
		found=$(downloaded "$@")
	fi
	echo "$found"
}
