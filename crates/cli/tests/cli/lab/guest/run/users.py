"""QEMU as a program under `whimbrel conform --user`: migrates a machine from one QEMU to another, which has another device.

usage: users.py QEMU.. -- DEVICE DEVICE FOLDER

QEMU is the command, DEVICE the options for the device of the source and of the destination, in one word each. The status is 0
only if the machine runs at the destination. The machine has firmware alone, which finds nothing to boot.
"""

import json
import os
import socket
import subprocess
import sys
import time


# How often a migration that would end estimates what is left, at most.
MANY_ESTIMATES = 5000


class Gone(Exception):
    """QEMU has ended."""


class Machine:
    """A QEMU that takes commands."""

    def __init__(self, command, device, path, options):
        machine = ["-machine", "q35", "-accel", "tcg", "-m", "64", "-nodefaults", "-no-user-config", "-display", "none"]
        qmp = ["-qmp", f"unix:{path},server=on,wait=off"]
        self.qemu = subprocess.Popen(command + machine + device.split() + qmp + options)
        self.socket = socket.socket(socket.AF_UNIX)
        while self.socket.connect_ex(path) != 0:
            if self.qemu.poll() is not None:
                raise Gone
            time.sleep(0.01)
        self.lines = self.socket.makefile("r")
        self.lines.readline()
        self.execute("qmp_capabilities")
        # With switchover-ack it stops the machine only once the devices have loaded the first part of their pre-copy data.
        capabilities = [{"capability": name, "state": True} for name in ["return-path", "switchover-ack"]]
        self.execute("migrate-set-capabilities", capabilities=capabilities)

    def execute(self, command, **arguments):
        """Has QEMU carry out a command, and returns its answer."""
        try:
            self.socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode())
            while line := self.lines.readline():
                answer = json.loads(line)
                if "return" in answer:
                    return answer["return"]
                if "error" in answer:
                    sys.exit(f"{command}: {answer['error']['desc']}")
        except ConnectionError:
            pass
        raise Gone

    def wait(self, command, states):
        """Waits until the status that a command tells is one of these."""
        while True:
            told = self.execute(command)
            if told.get("status") in states:
                return told
            time.sleep(0.01)

    def kill(self):
        """Ends QEMU where it is: it would stop the machine before it ended by itself."""
        self.qemu.kill()
        self.qemu.wait()


def outcome(source):
    """Waits for the end of a migration. One that estimates again and again what is left is cancelled: it has none."""
    while True:
        told = source.execute("query-migrate")
        if told.get("status") in ["completed", "failed", "cancelled"]:
            return told
        if told.get("ram", {}).get("dirty-sync-count", 0) >= MANY_ESTIMATES:
            source.execute("migrate_cancel")
        time.sleep(0.01)


def migrate(machines, folder):
    """Migrates from the first machine to the second, and returns whether it runs there."""
    source, destination = machines
    uri = f"unix:{folder}/migration"
    destination.execute("migrate-incoming", uri=uri)
    source.execute("migrate", uri=uri)
    told = outcome(source)
    if told["status"] != "completed":
        print(f"the migration has {told['status']}: {told.get('error-desc')}", flush=True)
        # It goes on where it was.
        source.wait("query-status", ["running"])
        return False
    destination.wait("query-status", ["running"])
    return True


def main():
    end = sys.argv.index("--")
    command, (first, second, folder) = sys.argv[1:end], sys.argv[end + 1 :]
    machines = []
    try:
        machines.append(Machine(command, first, os.path.join(folder, "source"), []))
        machines.append(Machine(command, second, os.path.join(folder, "destination"), ["-incoming", "defer"]))
        done = migrate(machines, folder)
    except Gone:
        print("QEMU has ended", flush=True)
        done = False
    finally:
        for machine in machines:
            machine.kill()
    sys.exit(0 if done else 1)


main()
