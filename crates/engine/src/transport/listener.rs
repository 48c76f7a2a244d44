//! The receiver's door: one sender is let in, others are told.

use std::io;
use std::net::TcpListener;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{Address, Link};
use crate::stream::{Message, Reason, Writer};

/// A bound address. A Unix socket's file goes away with it.
#[derive(Debug)]
pub struct Listener {
    socket: Arc<Socket>,
    full: Option<Doorman>,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

/// Turns away whoever comes after the first.
#[derive(Debug)]
struct Doorman {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// How long a visitor may say nothing before it is taken for a sender that is slow to begin.
const FIRST_BYTE: Duration = Duration::from_secs(2);
/// How often the doorman looks up. Only how soon it notices its end depends on it.
const LOOK_UP: Duration = Duration::from_millis(100);

impl Listener {
    /// Binds. A Unix socket's file that nobody serves any more is replaced, one that is served is EADDRINUSE.
    pub fn bind(address: &Address) -> io::Result<Listener> {
        let socket = match address {
            Address::Tcp(address) => Socket::Tcp(TcpListener::bind(address)?),
            Address::Unix(path) => {
                let left_over = std::fs::symlink_metadata(path)
                    .is_ok_and(|metadata| metadata.file_type().is_socket())
                    && UnixStream::connect(path)
                        .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
                if left_over {
                    std::fs::remove_file(path)?;
                }
                Socket::Unix(UnixListener::bind(path)?, path.clone())
            }
        };
        Ok(Listener { socket: Arc::new(socket), full: None })
    }

    /// The address that was bound, with the port the system chose if 0 was asked for.
    pub fn address(&self) -> io::Result<Address> {
        Ok(match &*self.socket {
            Socket::Tcp(listener) => Address::Tcp(listener.local_addr()?.to_string()),
            Socket::Unix(_, path) => Address::Unix(path.clone()),
        })
    }

    /// Waits for a sender. From then on every other one is told that it comes too late, as long as this listener lives,
    /// and a second call is EBUSY. A visitor that goes without a word, as one does that only looks whether somebody
    /// listens here, is no sender.
    pub fn accept(&mut self) -> io::Result<Link> {
        if self.full.is_some() {
            return Err(whimbrel_protocol::Errno::EBUSY.into());
        }
        loop {
            let link = self.socket.accept()?;
            if !link.has_a_speaker(FIRST_BYTE) {
                continue;
            }
            // The doorman must not wait in accept() for a visitor that has gone again: nobody could stop it there.
            self.socket.set_nonblocking()?;
            let stop = Arc::new(AtomicBool::new(false));
            let (socket, stopped) = (self.socket.clone(), stop.clone());
            let thread = std::thread::Builder::new()
                .name("listener".into())
                .spawn(move || socket.turn_away(&stopped))?;
            self.full = Some(Doorman { stop, thread: Some(thread) });
            return Ok(link);
        }
    }
}

impl Socket {
    fn accept(&self) -> io::Result<Link> {
        Ok(match self {
            Socket::Tcp(listener) => listener.accept()?.0.into(),
            Socket::Unix(listener, _) => listener.accept()?.0.into(),
        })
    }

    fn set_nonblocking(&self) -> io::Result<()> {
        match self {
            Socket::Tcp(listener) => listener.set_nonblocking(true),
            Socket::Unix(listener, _) => listener.set_nonblocking(true),
        }
    }

    fn turn_away(&self, stop: &AtomicBool) {
        while !stop.load(Ordering::Acquire) {
            let fd = match self {
                Socket::Tcp(listener) => std::os::fd::AsFd::as_fd(listener),
                Socket::Unix(listener, _) => std::os::fd::AsFd::as_fd(listener),
            };
            let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
            if !poll(&mut fds, Timespec::try_from(LOOK_UP).ok().as_ref()).is_ok_and(|ready| ready > 0) {
                continue;
            }
            let Ok(link) = self.accept() else {
                // Such as EMFILE: whoever waits there goes on waiting, and this thread must not spin.
                std::thread::sleep(LOOK_UP);
                continue;
            };
            tracing::warn!("a second sender was turned away");
            let reason = "it is taking a migration from another sender already".to_string();
            // Whoever it is may be gone or hostile: it gets one message and little patience.
            let _ = link.set_timeout(Some(Duration::from_secs(1)));
            let sent = link.try_clone().and_then(|out| {
                let mut writer = Writer::new(out);
                writer.send(&Message::Failed(Reason { reason }))?;
                writer.flush()
            });
            if sent.is_ok() {
                link.close_gently(Duration::from_secs(1));
            }
        }
    }
}

impl Drop for Doorman {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Socket::Unix(_, path) = self {
            let _ = std::fs::remove_file(path);
        }
    }
}
