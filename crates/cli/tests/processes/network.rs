//! Two network namespaces with a link between them, whose rate is limited and which can be cut.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::process::{Child, Command, Stdio};

use crate::root::is_allowed;
use crate::started::started_by;

/// A link and the two namespaces that it connects. They vanish with the value.
pub(crate) struct Network {
    holders: [Child; 2],
}

/// An end of the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Source,
    Destination,
}

const ENDS: [End; 2] = [End::Source, End::Destination];

impl End {
    /// The name of its device.
    const fn device(self) -> &'static str {
        match self {
            End::Source => "source",
            End::Destination => "destination",
        }
    }

    pub(crate) const fn address(self) -> &'static str {
        match self {
            End::Source => "10.9.8.1",
            End::Destination => "10.9.8.2",
        }
    }
}

/// Runs a shell's commands.
#[track_caller]
fn run(mut command: Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Network {
    /// A network, unless this machine does not allow one.
    pub(crate) fn new() -> Option<Network> {
        let needs = "unshare --net sh -ec '
            ip link add name here type veth peer name there
            ip link set lo up
            tc qdisc add dev here root tbf rate 100mbit burst 32k limit 64k'";
        if !is_allowed("a slow link", needs) {
            return None;
        }
        // A namespace lasts as long as the shell in it, which ends when its stdin does.
        let holders = ENDS.map(|_| {
            let mut holder = Command::new("unshare")
                .args(["--net", "sh", "-c", "ip link set lo up; echo; read line"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut ready = String::new();
            BufReader::new(holder.stdout.take().unwrap()).read_line(&mut ready).unwrap();
            holder
        });
        let network = Network { holders };
        let there = network.holders[1].id().to_string();
        let names = ENDS.map(End::device);
        network.ip(
            End::Source,
            &["link", "add", "name", names[0], "type", "veth", "peer", "name", names[1], "netns", &there],
        );
        for end in ENDS {
            network.ip(end, &["address", "add", &format!("{}/24", end.address()), "dev", end.device()]);
            network.ip(end, &["link", "set", end.device(), "up"]);
        }
        network.set_rate("100mbit");
        Some(network)
    }

    /// The process that holds the namespace.
    fn holder(&self, end: End) -> u32 {
        self.holders[end as usize].id()
    }

    /// The namespace, for a thread to enter.
    pub(crate) fn namespace(&self, end: End) -> File {
        File::open(format!("/proc/{}/ns/net", self.holder(end))).unwrap()
    }

    /// The command at an end of the link.
    pub(crate) fn at(&self, end: End, command: &Command) -> Command {
        started_by(&["nsenter", "--net", "--target", &self.holder(end).to_string()], command)
    }

    #[track_caller]
    fn ip(&self, end: End, arguments: &[&str]) {
        let mut command = Command::new("ip");
        command.args(arguments);
        run(self.at(end, &command));
    }

    /// Limits the rate in both directions, such as `100mbit`.
    pub(crate) fn set_rate(&self, rate: &str) {
        for end in ENDS {
            let mut command = Command::new("tc");
            command.args(["qdisc", "replace", "dev", end.device(), "root", "tbf", "rate", rate]);
            command.args(["burst", "32k", "limit", "64k"]);
            run(self.at(end, &command));
        }
    }

    /// Adds a second link of the same rate. What goes to [`Network::SHARED`], an address of the destination, takes one of the
    /// two, by the ports of its connection.
    pub(crate) fn add_link(&self) {
        let there = self.holder(End::Destination).to_string();
        let [source, destination] = ["source2", "destination2"];
        self.ip(
            End::Source,
            &["link", "add", "name", source, "type", "veth", "peer", "name", destination, "netns", &there],
        );
        for (end, device, address) in
            [(End::Source, source, "10.9.7.1/24"), (End::Destination, destination, "10.9.7.2/24")]
        {
            self.ip(end, &["address", "add", address, "dev", device]);
            self.ip(end, &["link", "set", device, "up"]);
            let mut command = Command::new("tc");
            command.args(["qdisc", "replace", "dev", device, "root", "tbf", "rate", "100mbit"]);
            command.args(["burst", "32k", "limit", "64k"]);
            run(self.at(end, &command));
        }
        self.ip(End::Destination, &["address", "add", &format!("{}/32", Network::SHARED), "dev", "lo"]);
        let mut by_ports = Command::new("sh");
        by_ports.args(["-c", "echo 1 > /proc/sys/net/ipv4/fib_multipath_hash_policy"]);
        run(self.at(End::Source, &by_ports));
        let first = End::Destination.address();
        self.ip(
            End::Source,
            &["route", "add", Network::SHARED, "nexthop", "via", first, "nexthop", "via", "10.9.7.2"],
        );
    }

    /// An address of the destination that both links lead to.
    pub(crate) const SHARED: &str = "10.9.6.1";

    /// The source's addresses on the two links.
    pub(crate) const OF_SOURCE: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 9, 8, 1), Ipv4Addr::new(10, 9, 7, 1)];

    /// Leads to [`Network::SHARED`] over one of two links alone: a new connection comes from the source's address there.
    pub(crate) fn route_over(&self, link: usize) {
        let there = [End::Destination.address(), "10.9.7.2"][link];
        self.ip(End::Source, &["route", "replace", Network::SHARED, "via", there]);
    }

    /// The established connections of the source from this address.
    pub(crate) fn connections_from(&self, address: Ipv4Addr) -> usize {
        // In the byte order of the machine, as the kernel prints it.
        let local = format!("{:08X}:", u32::from_ne_bytes(address.octets()));
        let is_its = |line: &&str| {
            let columns: Vec<&str> = line.split_whitespace().collect();
            columns.get(1).is_some_and(|at| at.starts_with(&local)) && columns.get(3) == Some(&"01")
        };
        self.read_at_source("/proc/self/net/tcp").lines().filter(is_its).count()
    }

    /// A file of the source's namespace: /proc/net is that of the process that reads it.
    fn read_at_source(&self, path: &str) -> String {
        let mut command = Command::new("cat");
        command.arg(path);
        let output = self.at(End::Source, &command).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The bytes that the source has sent over each of two links.
    pub(crate) fn sent(&self) -> [u64; 2] {
        let text = self.read_at_source("/proc/self/net/dev");
        ["source:", "source2:"].map(|device| {
            let line =
                text.lines().find_map(|line| line.trim().strip_prefix(device)).expect("the device is listed");
            // Eight columns of what was received come first.
            line.split_whitespace().nth(8).unwrap().parse().unwrap()
        })
    }

    /// Cuts the link. Neither side is told.
    pub(crate) fn cut(&self) {
        self.ip(End::Destination, &["link", "set", End::Destination.device(), "down"]);
    }

    pub(crate) fn mend(&self) {
        self.ip(End::Destination, &["link", "set", End::Destination.device(), "up"]);
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for holder in &mut self.holders {
            let _ = holder.kill();
            let _ = holder.wait();
        }
    }
}
