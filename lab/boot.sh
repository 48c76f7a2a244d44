# The machines: QEMU under TCG, the ways in and out of them, and how long they may take.
# shellcheck shell=bash disable=SC2154

# How often a machine that does not reach the program is started, and how long it has for that the
# first time, in seconds. It has twice and three times that afterwards: it may only be slow.
boot_tries=3
boot_seconds=30

# How long a machine of a pair may go on when the other has failed, in seconds.
grace_seconds=10

# By machine: the process of QEMU, and the program's exit status once it is known.
declare -A qemu=() result=()
readers=()

# The kernel's command line. From mitigations on it only saves time: they and the self tests are slow
# under TCG and prove nothing here. The time stamp counter is called reliable because the kernel would
# compare it with ticks, of which a busy host loses some, and then go by the ticks. For want of ticks a PC's
# would give up on its timer altogether: it does not check that. Of the security modules Landlock is there,
# which servers confine themselves with.
command_line() {
	echo "console=ttyS0 quiet panic=-1 oops=panic reboot=t tsc=reliable tsc_early_khz=$(tsc_khz)" \
		"${pc:+no_timer_check} ${pci:+intel_iommu=on}" \
		"mitigations=off lsm=landlock audit=0 cryptomgr.notests=1 rodata=off" \
		"initcall_blacklist=load_system_certificate_list,jent_mod_init,bpf_tcp_ca_kfunc_init"
}

# The rate of the host's time stamp counter, which TCG shows to the guest. A microvm has no good clock to
# measure it by: left to itself it now and then waits for ever. Where the host's processor changes its
# speed this is a guess, and the guest's clock runs as wrong as the guess is.
tsc_khz() {
	cat /sys/devices/system/cpu/cpu0/cpufreq/base_frequency 2> /dev/null ||
		awk -F: '/^cpu MHz/ { print int($2 * 1000); exit }' /proc/cpuinfo
}

# Two, which share what they need of queues and interrupts.
virtual_functions=sriov_max_vfs=2,sriov_vq_flexible=4,sriov_vi_flexible=2
# An IOMMU that also remaps interrupts, and devices behind it. README.md has a table of them.
pci_machine=(-device intel-iommu,intremap=on
	-device pcie-root-port,id=port1,bus=pcie.0,addr=3,chassis=1
	-device e1000e,bus=port1,addr=0.0,multifunction=on,mac=52:54:00:00:00:03,romfile=
	-device edu,bus=port1,addr=0.1
	-device pcie-root-port,id=port2,bus=pcie.0,addr=4,chassis=2
	-device nvme-subsys,id=subsystem
	-device "nvme,bus=port2,serial=lab,subsys=subsystem,max_ioqpairs=6,msix_qsize=4,$virtual_functions"
	-device edu,bus=pcie.0,addr=5
	-device pci-testdev,bus=pcie.0,addr=6)
# Those that vfio-pci is given.
pci_devices=(0000:00:05.0 0000:00:06.0 0000:01:00.0 0000:01:00.1 0000:02:00.0)

# outside_machine MACHINE: sets `arguments` to the memory of a PC with devices from outside, the devices, slots for more,
# and the way to plug those in.
outside_machine() {
	local machine=$1 number=0 device
	if [ -n "$descriptors" ]; then
		arguments+=(-object "memory-backend-memfd,id=memory,size=${memory}M,share=on")
	else
		arguments+=(-object "memory-backend-ram,id=memory,size=${memory}M")
	fi
	arguments+=(-machine memory-backend=memory)
	# An IOMMU has to tell QEMU what it maps for these devices.
	[ -z "$pci" ] || arguments+=(-global intel-iommu.caching-mode=on)
	[ -z "$iommufd" ] || arguments+=(-object iommufd,id=iommufd0)
	for device in "${outside[@]}"; do
		outside_device "$machine" "$number" "${device%% *}" "${device#* }"
		number=$((number + 1))
	done
	for number in 1 2; do
		arguments+=(-device "pcie-root-port,id=slot$number,bus=pcie.0,addr=1$((number + 7)),chassis=$((number + 2))")
	done
	if [ -n "$qmp" ]; then
		owned_folders+=("$qmp")
		arguments+=(-qmp "unix:$(realpath "$qmp"),server=on,wait=off")
	fi
	[ -z "$incoming" ] || arguments+=(-incoming defer)
}

# outside_device MACHINE NUMBER KIND VALUE: adds it to `arguments`.
outside_device() {
	local machine=$1 number=$2
	case $3 in
	vfio-user)
		# A name of its own in the scratch folder, which is short enough for a socket.
		ln -sfn "$(realpath "$4")" "$work/$machine/device$number"
		arguments+=(-device "{'driver':'vfio-user-pci','id':'device$number','bus':'pcie.0','addr':'1$number',
			'socket':{'type':'unix','path':'$machine/device$number'}}") ;;
	vfio-pci) arguments+=(-device "vfio-pci,id=device$number,bus=pcie.0,addr=1$number,${iommufd:+iommufd=iommufd0,}host=$4") ;;
	esac
}

# start MACHINE [QEMU_OPTION..]
start() {
	local machine=$1 folder=$work/$1 port number=0 arguments pc=''
	shift
	[ -z "$pci" ] && [ ${#outside[@]} = 0 ] || pc=yes
	arguments=(-accel "tcg,thread=multi" -cpu "$cpu" -smp 1 -m "$memory"
		-nodefaults -no-user-config -display none -no-reboot
		-kernel "$cache/$kernel/vmlinux" -initrd "$folder/initramfs" -append "$(command_line)"
		-chardev "file,id=console,path=$machine/console" -serial chardev:console)
	# Without ioeventfd a write to a port has reached the file when the guest's write returns.
	if [ -n "$pc" ]; then
		arguments+=(-machine q35 -device virtio-serial-pci,bus=pcie.0,addr=2,ioeventfd=off)
		[ -z "$pci" ] || arguments+=("${pci_machine[@]}")
		[ ${#outside[@]} = 0 ] || outside_machine "$machine"
	else
		# The kernel takes a microvm to have no PIC and does not set it up, so an interrupt from there
		# kills it.
		arguments+=(-machine "microvm,pic=off" -global virtio-mmio.ioeventfd=off -device virtio-serial-device)
	fi
	for port in status stdout stderr take; do
		number=$((number + 1))
		: > "$folder/$port"
		arguments+=(-chardev "file,id=$port,path=$machine/$port"
			-device "virtserialport,nr=$number,chardev=$port")
	done
	: > "$folder/console"
	# QEMU dies with this run, even if this run is killed outright. It works in the scratch folder, for
	# a socket's path must be short and no path may have a comma.
	setpriv --pdeathsig KILL env --chdir="$work" "${qemu_command[@]}" "${arguments[@]}" "$@" \
		< /dev/null > "$folder/qemu" 2>&1 &
	qemu[$machine]=$!
	owned+=("$!")
}

# stop MACHINE..: what the machine wrote is in its files, so there is nothing to wait for.
stop() {
	local machine
	for machine in "$@"; do
		{
			kill -KILL "${qemu[$machine]}" || true
			wait "${qemu[$machine]}" || true
		} 2> /dev/null
	done
}

lives() { kill -0 "${qemu[$1]}" 2> /dev/null; }

# told MACHINE LINE: the guest has written this line to its status port.
told() { grep --quiet "^$2\$" "$work/$1/status"; }

# await_programs SECONDS MACHINE..: succeeds when the programs are running in all of them.
await_programs() {
	local deadline=$((SECONDS + $1)) machine
	shift
	for machine in "$@"; do
		until told "$machine" job; do
			lives "$machine" || broken "$machine" "the machine stopped before it reached the program"
			[ $SECONDS -lt $deadline ] || return 1
			sleep 0.05
		done
	done
}

# boot MACHINE..: start_MACHINE starts it.
boot() {
	local try machine
	for ((try = 1; ; try++)); do
		for machine in "$@"; do "start_$machine"; done
		if await_programs $((try * boot_seconds)) "$@"; then break; fi
		[ $try -lt $boot_tries ] || broken "$1" "no program was reached in $boot_tries boots"
		say "no program was reached in $((try * boot_seconds)) seconds: booting again"
		stop "$@"
	done
}

# broken MACHINE MESSAGE: ends this run with what is known of the machine.
broken() {
	tail -n 20 "$work/$1/qemu" "$work/$1/console" >&2
	fail 125 "$2"
}

# follow MACHINE STREAM [PREFIX]: the stream on stdout, as it comes, until the machine stops.
follow() {
	local tail=(tail -c +1 -s 0.05 -f "--pid=${qemu[$1]}" "$work/$1/$2")
	if [ -z "${3:-}" ]; then "${tail[@]}"; else "${tail[@]}" | sed -u "s/^/$3/"; fi
}

# follow_output MACHINE [PREFIX]
follow_output() {
	in_group follow "$1" stdout "${2:-}"
	readers+=("$!")
	in_group follow "$1" stderr "${2:-}" >&2
	readers+=("$!")
}

# finish MACHINE..: waits for the programs, sets their results and stops the machines.
finish() {
	# One more, for SECONDS may be about to count on.
	local deadline=$((SECONDS + timeout + 1)) machine left=("$@") still
	while :; do
		still=()
		for machine in "${left[@]}"; do
			if told "$machine" "done"; then
				result[$machine]=$(sed -n 's/^exit //p' "$work/$machine/status")
			elif ! lives "$machine"; then
				result[$machine]=125
				tail -n 20 "$work/$machine/qemu" "$work/$machine/console" >&2
				say "the machine stopped before the program did"
			else
				still+=("$machine")
				continue
			fi
			[ "${result[$machine]}" = 0 ] || [ $deadline -lt $((SECONDS + grace_seconds)) ] ||
				deadline=$((SECONDS + grace_seconds))
		done
		left=(${still[@]+"${still[@]}"})
		if [ ${#left[@]} = 0 ] || [ $SECONDS -ge $deadline ]; then break; fi
		sleep 0.05
	done
	for machine in ${left[@]+"${left[@]}"}; do
		result[$machine]=124
	done
	stop "$@"
	wait "${readers[@]}" || true # a reader's end may be closed
	[ ${#left[@]} = 0 ] || say "the program did not end in time: ${left[*]}"
	[ -z "$console" ] || for machine in "$@"; do
		sed "s/^/$machine console: /" "$work/$machine/console" >&2
	done
}

# hand_back MACHINE: the files the guest packed, to where they were asked for.
hand_back() {
	local folder=$work/$1 take name
	[ ${#wanted[@]} != 0 ] && [ "${result[$1]}" != 124 ] || return 0
	mkdir "$folder/taken"
	tar -x -f "$folder/take" -C "$folder/taken" 2> /dev/null || true # a missing file is noticed below
	for take in "${wanted[@]}"; do
		name=${take%%=*}
		if [ -f "$folder/taken/$name" ]; then
			cp -- "$folder/taken/$name" "${take#*=}"
		else
			say "the program left no file '$name'"
			[ "${result[$1]}" != 0 ] || result[$1]=125
		fi
	done
}

# use_built_qemu TARGET
use_built_qemu() {
	is_ready "$1" || fail 3 "QEMU for devices from outside is not built; run: lab/run build $1"
	set_qemu_command "$cache/$1"
}

require_kernel() {
	require_tools run
	is_ready "$kernel" || fail 3 "the $kernel kernel is not built; run: lab/run build $kernel"
	[ -z "$disk" ] || is_ready disk || fail 3 "what --disk gives is not built; run: lab/run build disk"
	qemu_command=(qemu-system-x86_64) cpu=max
	if [ ${#outside[@]} != 0 ]; then
		case $chosen_qemu in
		guest) use_built_qemu guest ;;
		10) use_built_qemu qemu-10 ;;
		# In a PC of QEMU 7.2 a processor with all that TCG knows makes most boots end in a panic.
		system) cpu=qemu64,-cx16 ;;
		esac
	fi
	make_work_folder
}

run_one() {
	require_kernel
	local wanted=(${takes[@]+"${takes[@]}"})
	mkdir "$work/machine"
	make_initramfs machine "exec$(quoted "./${program[0]##*/}" "${program[@]:1}")"
	start_machine() { start machine; }
	# What waits for a migration reaches its program somewhere else.
	if [ -n "$incoming" ]; then start machine; else boot machine; fi
	follow_output machine
	finish machine
	hand_back machine
	exit "${result[machine]}"
}

run_pair() {
	require_kernel
	local machine wanted
	for machine in receive send; do
		mkdir "$work/$machine"
		wanted_of "$machine"
		case $machine in
		receive) make_initramfs receive "$receive" 10.0.0.2 10.0.0.1 ;;
		send) make_initramfs send "$send" 10.0.0.1 10.0.0.2 ;;
		esac
	done
	start_receive() {
		rm -f "$work/network"
		start receive -device virtio-net-device,netdev=network,mac=52:54:00:00:00:02 \
			-netdev "stream,id=network,server=on,addr.type=unix,addr.path=network"
		until [ -S "$work/network" ]; do
			lives receive || broken receive "QEMU does not start"
			sleep 0.05
		done
	}
	start_send() {
		start send -device virtio-net-device,netdev=network,mac=52:54:00:00:00:01 \
			-netdev "stream,id=network,server=off,addr.type=unix,addr.path=network"
	}
	boot receive send
	follow_output receive "receive: "
	follow_output send "send: "
	finish receive send
	for machine in receive send; do
		wanted_of "$machine"
		hand_back "$machine"
		[ "${result[$machine]}" = 0 ] || say "$machine ended with status ${result[$machine]}"
	done
	[ "${result[receive]}" = 0 ] || exit "${result[receive]}"
	exit "${result[send]}"
}

# wanted_of MACHINE: sets `wanted` to what is to be taken from this one of a pair.
wanted_of() {
	local take
	wanted=()
	for take in ${takes[@]+"${takes[@]}"}; do
		[[ $take != "$1"/* ]] || wanted+=("${take#*/}")
	done
}
