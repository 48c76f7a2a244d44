//! QEMU: a machine without devices migrates its memory to another, by commands over QMP.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::memory::MemoryFile;
use super::{Move, Result, processor};

/// Timeout for QEMU to start, for an answer, and for a migration.
const PATIENCE: Duration = Duration::from_mins(2);
/// Interval between two questions about a migration, and so the error of its time.
const INTERVAL: Duration = Duration::from_millis(2);
/// Bytes per second: more than any machine does. By default QEMU limits itself to 128 MiB/s.
const UNLIMITED: u64 = 1 << 40;
/// QEMU's default, in milliseconds.
const DOWNTIME_LIMIT: u64 = 300;

/// The program.
#[derive(Debug)]
pub(super) struct Qemu {
    program: PathBuf,
    version: String,
}

impl Qemu {
    /// Finds QEMU; `None` if it cannot be run.
    pub(super) fn find() -> Option<Qemu> {
        let program = std::env::var_os("WHIMBREL_BENCH_QEMU").unwrap_or("qemu-system-x86_64".into());
        let output =
            Command::new(&program).arg("--version").output().ok().filter(|run| run.status.success())?;
        let version = String::from_utf8(output.stdout).ok()?.lines().next()?.to_string();
        Some(Qemu { program: program.into(), version })
    }

    pub(super) fn version(&self) -> &str {
        &self.version
    }

    /// Migrates a machine with the noise to one with the other memory.
    pub(super) fn migrate(
        &self,
        noise: &MemoryFile,
        there: &MemoryFile,
        is_touched: bool,
        channels: u32,
        certificates: Option<&Path>,
    ) -> Result<Move> {
        let incoming = ["-incoming".to_string(), "defer".to_string()];
        let options = credentials("server", certificates).into_iter().chain(incoming);
        let mut destination = Machine::start(&self.program, there, is_touched, options)?;
        let mut source = Machine::start(&self.program, noise, true, credentials("client", certificates))?;
        for machine in [&mut destination, &mut source] {
            machine.prepare(channels, certificates.is_some())?;
        }
        destination.execute("migrate-incoming", json!({ "uri": "tcp:127.0.0.1:0" }))?;
        let address = &destination.execute("query-migrate", json!({}))?["socket-address"][0];
        let port = address["port"].as_str().ok_or("QEMU does not tell where it listens")?;
        let uri = format!("tcp:127.0.0.1:{port}");
        let before = destination.processor()? + source.processor()?;
        let start = Instant::now();
        source.execute("migrate", json!({ "uri": uri }))?;
        let told = source.migrated(start)?;
        destination.migrated(start)?;
        let took = start.elapsed();
        let downtime = told["downtime"].as_u64().map(Duration::from_millis);
        let processor = (destination.processor()? + source.processor()?).saturating_sub(before);
        Ok(Move { took, downtime, processor })
    }
}

/// Returns the options for TLS at one endpoint, with certificates from this folder.
fn credentials(endpoint: &str, certificates: Option<&Path>) -> Vec<String> {
    let Some(folder) = certificates else { return Vec::new() };
    let object = format!("tls-creds-x509,id=tls,dir={},endpoint={endpoint},verify-peer=on", folder.display());
    vec!["-object".into(), object]
}

/// A machine, in a process that is killed when dropped.
struct Machine {
    child: Child,
    input: UnixStream,
    output: BufReader<UnixStream>,
    _folder: TempDir,
}

impl Machine {
    fn start(
        program: &Path,
        memory: &MemoryFile,
        is_touched: bool,
        more: impl IntoIterator<Item = String>,
    ) -> Result<Machine> {
        let folder = TempDir::new()?;
        let socket = folder.path().join("qmp");
        let prealloc = if is_touched { "on" } else { "off" };
        let (size, path) = (memory.size(), memory.path());
        let mut command = Command::new(program);
        command
            .args([
                "-nodefaults",
                "-no-user-config",
                "-display",
                "none",
                "-machine",
                "none,memory-backend=ram",
            ])
            .args(["-m", &format!("{size}B"), "-object"])
            .arg(format!(
                "memory-backend-file,id=ram,size={size},mem-path={path},share=on,prealloc={prealloc}"
            ))
            .args(["-qmp", &format!("unix:{},server=on,wait=off", socket.display())])
            .args(more);
        let mut child = command.stdin(Stdio::null()).spawn()?;
        let input = match connect(&socket, &mut child) {
            Ok(input) => input,
            Err(error) => {
                // It may have ended by itself.
                let _ = child.kill();
                let _ = child.wait();
                return Err(error);
            }
        };
        let output = BufReader::new(input.try_clone()?);
        let mut machine = Machine { child, input, output, _folder: folder };
        machine.input.set_read_timeout(Some(PATIENCE))?;
        machine.next()?;
        machine.execute("qmp_capabilities", json!({}))?;
        Ok(machine)
    }

    /// Returns the processor time that it has used so far.
    fn processor(&self) -> Result<Duration> {
        processor::of(self.child.id())
    }

    fn prepare(&mut self, channels: u32, has_tls: bool) -> Result<()> {
        let mut parameters = json!({ "max-bandwidth": UNLIMITED, "downtime-limit": DOWNTIME_LIMIT });
        if channels > 0 {
            let multifd = json!([{ "capability": "multifd", "state": true }]);
            self.execute("migrate-set-capabilities", json!({ "capabilities": multifd }))?;
            parameters["multifd-channels"] = channels.into();
        }
        if has_tls {
            parameters["tls-creds"] = "tls".into();
            parameters["tls-hostname"] = "127.0.0.1".into();
        }
        self.execute("migrate-set-parameters", parameters)?;
        Ok(())
    }

    /// Waits for the end of the migration, and returns what QEMU reports about it.
    fn migrated(&mut self, start: Instant) -> Result<Value> {
        loop {
            let told = self.execute("query-migrate", json!({}))?;
            match told["status"].as_str() {
                Some("completed") => return Ok(told),
                Some("failed" | "cancelled") => return Err(format!("QEMU's migration failed: {told}").into()),
                _ if start.elapsed() > PATIENCE => {
                    return Err(format!("QEMU's migration hangs: {told}").into());
                }
                _ => std::thread::sleep(INTERVAL),
            }
        }
    }

    /// Executes a command, and returns its result.
    fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let request = json!({ "execute": command, "arguments": arguments });
        writeln!(self.input, "{request}")?;
        loop {
            let mut message = self.next()?;
            if let Some(error) = message.get("error") {
                return Err(format!("QEMU: {command}: {error}").into());
            }
            // Anything else is an event.
            if let Some(result) = message.get_mut("return") {
                return Ok(result.take());
            }
        }
    }

    fn next(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            return Err("QEMU has ended".into());
        }
        Ok(serde_json::from_str(&line)?)
    }
}

/// Waits until QEMU, which first touches its memory, listens.
fn connect(socket: &Path, child: &mut Child) -> Result<UnixStream> {
    let start = Instant::now();
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return Ok(stream),
            Err(error) if start.elapsed() > PATIENCE => return Err(error.into()),
            Err(_) => {}
        }
        if let Some(status) = child.try_wait()? {
            return Err(format!("QEMU does not start: {status}").into());
        }
        std::thread::sleep(INTERVAL);
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It waits for commands until then.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
