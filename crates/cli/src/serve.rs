//! `whimbrel serve`: serves a device model over vfio-user.

use std::fmt;
use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use signal_hook::consts::{SIGINT, SIGTERM};
use whimbrel_device::wrap::fault::Faults;
use whimbrel_device::{ResetRule, survive_lost_memory};
use whimbrel_models::{Model, ModelError};
use whimbrel_sandbox::Sandbox;
use whimbrel_vfio_user::{Backend, BackendOptions, Listener, Server, Stopper, Takeover, TakeoverError};

use crate::failure::Failure;
use crate::fault;
use crate::model_text::ModelText;
use crate::output::{self, Output};
use crate::reset_rule;
use crate::size;
use crate::unreachable_fault;
use crate::usage::WrongValue;

/// Serve a model as a vfio-user device
///
/// Programs that speak vfio-user, such as a VMM, use the device through the socket, one at a time. The device keeps its
/// state between clients. The server runs until SIGINT or SIGTERM.
#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Arguments {
    /// The model: serial, accel, legacy or nvme, with settings as in `whimbrel --help`, with or without `model:`
    #[arg(value_name = "MODEL", value_parser = parse_model)]
    model: ModelText,
    /// Image of an nvme, a file or a block device: as its setting `image`, for a path of any characters
    #[arg(long, value_name = "PATH")]
    image: Option<PathBuf>,
    /// Path of the socket. Only the user who runs the server can connect to it
    #[arg(long, value_name = "PATH", required_unless_present = "takeover")]
    socket: Option<PathBuf>,
    /// Take over the device from the server at this socket
    ///
    /// The device's client keeps its connection and sees only a pause; later clients reach this server at the same
    /// path. The other server exits after the takeover; if anything fails before that, it continues unchanged. It must
    /// serve the same model with the same settings, run as the same user, and allow takeovers: PATH is its
    /// --takeover-socket, which this server takes over too, or, with --allow-takeover, its client socket.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["socket", "owned", "takeover_socket"])]
    takeover: Option<PathBuf>,
    /// Allow another server to take over at the client socket
    ///
    /// Any process of the same user, other than the client itself, can then connect there and get the client's memory
    /// and sockets.
    #[arg(long)]
    allow_takeover: bool,
    /// Allow another server to take over at a separate socket
    ///
    /// The socket is created at PATH, and only the user who runs the server can connect to it. A process with access to
    /// the client socket only cannot take over.
    #[arg(long, value_name = "PATH")]
    takeover_socket: Option<PathBuf>,
    /// Confine the server with Landlock and seccomp
    ///
    /// They permanently remove access to everything the server does not need: files, other sockets, other processes,
    /// most system calls. If the kernel does not support this (it needs Linux 5.13 with Landlock), the server does not
    /// start. The socket's name remains when the server exits, and the next server at that path replaces it.
    #[arg(long)]
    sandbox: bool,
    /// Maximum memory that the client may share with the server, in bytes or with a unit such as 16GiB; mapping more
    /// fails with ENOSPC [default: unlimited]
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    client_memory: Option<u64>,
    /// Accept files of any file system as client memory, for reads and writes (such as /proc/PID/mem)
    ///
    /// By default client memory must be a file in memory: memfd_create, tmpfs or hugetlbfs. Another file system may
    /// never answer. Then the device's accesses to it fail after five seconds, and the server can exit only after the
    /// file system has answered.
    #[arg(long)]
    foreign_memory: bool,
    /// Effect of a client's reset on a migration under way [default: ends-migration]
    ///
    /// A guest may reset its device at any time. As in the kernel, that ends the migration: its VMM has to try again.
    /// With keeps-precopy, a device in PRE_COPY or PRE_COPY_P2P is reset and keeps its state and session, and its VMM's
    /// migration goes on. Programs that know our extensions to vfio-user are told which one it is (`whimbrel probe`).
    #[arg(long, value_name = "RULE", value_parser = reset_rule::parse)]
    reset_rule: Option<ResetRule>,
    // The same list as of `run`.
    #[arg(long, value_name = "FAULT", help = fault::HELP, long_help = fault::long_help())]
    fault: Vec<Faults>,
    /// Started by another whimbrel process: serve until stdin ends too, and remove the socket's folder with the socket
    #[arg(long, hide = true, conflicts_with = "sandbox")]
    owned: bool,
}

const AFTER_HELP: &str = "\
Examples:
  whimbrel serve serial --socket /run/user/1000/serial
  whimbrel serve 'accel?state=1GiB' --socket accel.socket
  whimbrel serve nvme --image disk.img --socket disk.socket --sandbox
  whimbrel serve 'nvme?size=1GiB' --image new.img --socket disk.socket   (creates it)
  whimbrel serve 'accel?state=1GiB' --socket accel.socket --takeover-socket update.socket
  whimbrel serve 'accel?state=1GiB' --takeover update.socket";

/// The result, for scripts.
#[derive(Debug, Serialize)]
struct Served {
    model: String,
    socket: String,
    clients: u64,
    taken_over: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    moved: Option<Moved>,
}

/// The part of a takeover that concerns the device.
#[derive(Debug, Serialize)]
struct Moved {
    precopy_bytes: u64,
    stopped_bytes: u64,
    pause_ms: f64,
}

impl Moved {
    fn of(moved: whimbrel_vfio_user::Moved) -> Moved {
        let whimbrel_vfio_user::Moved { precopy_bytes, stopped_bytes, pause, .. } = moved;
        Moved { precopy_bytes, stopped_bytes, pause_ms: (pause.as_secs_f64() * 1e6).round() / 1e3 }
    }
}

impl fmt::Display for Moved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Moved { precopy_bytes, stopped_bytes, pause_ms } = self;
        let (precopy, stopped) = (output::bytes(*precopy_bytes), output::bytes(*stopped_bytes));
        let pause = output::milliseconds(*pause_ms);
        write!(f, "{precopy} of state moved while it worked, and {stopped} in a pause of {pause}")
    }
}

/// The source of the clients.
enum Door {
    /// A socket of its own.
    Own(Listener),
    /// Another server's socket, with everything that server has.
    Others(Box<Takeover>),
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments, output: Output) -> Result<(), Failure> {
    let model = &model(arguments)?;
    let options = options(arguments);
    let faults = Faults::new(arguments.fault.iter().flat_map(|faults| faults.iter().cloned()));
    unreachable_fault::check(&faults, model, "the device")?;
    survive_lost_memory().map_err(|error| Failure::from_io("cannot handle SIGBUS", &error))?;
    let door = open_door(arguments)?;
    let socket = match &door {
        Door::Own(listener) => listener.path(),
        Door::Others(takeover) => takeover.path(),
    };
    let socket = socket.display().to_string();
    let takeovers = arguments.takeover_socket.as_deref().map(bind).transpose()?;
    let not_served = |error| Failure::new(format!("'{model}' cannot be served: {error}"));
    let prepared = model.prepare().map_err(not_served)?;
    // Everything that is opened by name is open, and no thread runs yet.
    let confined = arguments.sandbox.then(|| Sandbox::new().confine()).transpose().map_err(|error| {
        Failure::new(format!("the server cannot be confined: {error}"))
            .hint("without --sandbox the server runs with all of your permissions")
    })?;
    let device = prepared.open_with_faults(model.to_string(), faults).map_err(not_served)?;
    let backend = Backend::with(device, options);
    let rule = backend.device().reset_rule();
    if arguments.reset_rule.is_some_and(|wanted| wanted != rule) {
        let why =
            format!("'{model}' cannot be served with this --reset-rule: with it, a reset {}", rule.text());
        return Err(Failure::new(why));
    }
    let (server, how) = match door {
        Door::Own(listener) => {
            let server = Server::new(listener, backend)
                .map_err(|error| Failure::from_io(format!("cannot serve at {socket}"), &error))?;
            (server, "")
        }
        Door::Others(takeover) => {
            let server = takeover.finish(backend).map_err(|error| not_taken_over(&socket, &error))?;
            (server, ", taken over from another server")
        }
    };
    let server = if arguments.allow_takeover { server.allow_takeover() } else { server };
    let server = match takeovers {
        Some(listener) => server.takeover_socket(listener),
        None => server,
    };
    stop_on_signal(server.stopper())
        .map_err(|error| Failure::from_io("cannot wait for SIGINT and SIGTERM", &error))?;
    if arguments.owned {
        stop_after(io::stdin(), server.stopper())
            .map_err(|error| Failure::from_io("cannot wait for stdin to end", &error))?;
    }
    match confined {
        Some(confined) => {
            output::note(format_args!("serving {model} at {socket}{how}, confined by {confined}"));
        }
        None => output::note(format_args!("serving {model} at {socket}{how}")),
    }
    let whimbrel_vfio_user::Served { clients, taken_over, moved, .. } = server
        .run()
        .map_err(|error| Failure::from_io(format!("cannot continue to serve at {socket}"), &error))?;
    let moved = moved.map(Moved::of);
    if let Some(moved) = &moved {
        output::note(format_args!("another server has taken over {socket}: {moved}"));
    }
    if arguments.owned {
        drop(server);
        // Another server may still have its socket there: the last one removes the folder.
        let _ = Path::new(&socket).parent().map(std::fs::remove_dir);
    }
    let text = format!("served {clients} clients at {socket}");
    output.result(&Served { model: model.to_string(), socket, clients, taken_over, moved }, text)
}

/// Parses the model, with or without the `model:` that a target has.
fn parse_model(text: &str) -> Result<ModelText, WrongValue> {
    ModelText::parse(text.strip_prefix("model:").unwrap_or(text))
}

/// The model, with its image from wherever it is given.
fn model(arguments: &Arguments) -> Result<Model, Failure> {
    let given = match &arguments.image {
        Some(image) => arguments.model.clone().with_image(image),
        None => arguments.model.clone(),
    };
    given.model().map_err(|error| {
        let failure = Failure::usage(error.to_string());
        match error {
            ModelError::Missing { .. } => failure.hint("name its file or block device with --image PATH"),
            ModelError::Twice { .. } => failure.hint("give the image once: with --image, or as a setting"),
            _ => failure.hint("--image is for an nvme"),
        }
    })
}

fn options(arguments: &Arguments) -> BackendOptions {
    BackendOptions::default()
        .foreign_memory(arguments.foreign_memory)
        .max_client_memory(arguments.client_memory.unwrap_or(u64::MAX))
        .reset_rule(arguments.reset_rule.unwrap_or_default())
}

fn open_door(arguments: &Arguments) -> Result<Door, Failure> {
    match (&arguments.takeover, &arguments.socket) {
        (Some(path), _) => {
            let takeover = Takeover::connect(path);
            takeover.map(Box::new).map(Door::Others).map_err(|error| not_taken_over(path.display(), &error))
        }
        (None, Some(path)) => bind(path).map(Door::Own),
        (None, None) => Err(Failure::new("neither --socket nor --takeover is given")),
    }
}

fn bind(path: &Path) -> Result<Listener, Failure> {
    Listener::bind(path).map_err(|error| {
        let failure = Failure::from_io(format!("cannot serve at {}", path.display()), &error);
        match error.kind() {
            io::ErrorKind::AddrInUse => failure
                .hint("another server uses that path, or another file exists there: choose another path"),
            _ => failure,
        }
    })
}

fn not_taken_over(socket: impl fmt::Display, error: &TakeoverError) -> Failure {
    let told = Failure::from_error(error).message();
    Failure::new(format!("cannot take over from the server at {socket}: {told}")).hint_if(error.advice())
}

/// Makes SIGINT and SIGTERM stop the server instead of the process.
fn stop_on_signal(stopper: Stopper) -> io::Result<()> {
    let (signalled, signal) = UnixStream::pair()?;
    for number in [SIGINT, SIGTERM] {
        signal_hook::low_level::pipe::register(number, signal.try_clone()?)?;
    }
    stop_after(signalled.take(1), stopper)
}

/// Stops the server at the end of `input`.
fn stop_after(mut input: impl Read + Send + 'static, stopper: Stopper) -> io::Result<()> {
    std::thread::Builder::new().name("end".into()).spawn(move || {
        // An input that cannot be read counts as ended: otherwise nothing could stop the server.
        let _ = io::copy(&mut input, &mut io::sink());
        stopper.stop();
    })?;
    Ok(())
}
