//! A device's state in a file: saved from one, restored to another, and looked at.
//!
//! The file is a stream as a migration sends it, without the dialogue: greeting, state, end. Raw files hold the driver's
//! own bytes and nothing else, so that they can be compared with what a kernel gives.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use serde::Serialize;
use whimbrel_user::{DataFile, Migratable, SavingRead, State};

use crate::destination::reset_after;
use crate::device_state::{self, Incoming, check_device};
use crate::error::Error;
use crate::stream::{CHUNK, DeviceSummary, Hello, Message, Reader, Reason, Writer};

/// What a file is to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Form {
    /// A whimbrel stream: checked, versioned, with what is needed to see whether it fits.
    Stream,
    /// The driver's bytes and nothing else. Of a device with a migration region the ends of its transactions are lost.
    Raw,
}

/// A finished save or restore.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Summary {
    /// The device's name.
    pub device: String,
    /// Bytes of device state.
    pub device_bytes: u64,
    /// The state the device is in now.
    pub state: String,
}

/// Saves the state of a device: it is stopped, read, and brought back to the state it was in, which is RUNNING,
/// RUNNING_P2P or STOP.
pub fn save(device: &mut dyn Migratable, output: impl Write, form: Form) -> Result<Summary, Error> {
    let flags = device
        .migration_flags()?
        .ok_or_else(|| Error::NotMigratable { device: device.name().to_string() })?;
    let summary = device_state::summary(device, flags)?;
    let before = device.state()?;
    if !matches!(before, State::Running | State::RunningP2p | State::Stop) {
        // Another session is running, or a state is half loaded: saving would end that.
        let device = device.name().to_string();
        let needed = "RUNNING, RUNNING_P2P and STOP";
        return Err(Error::WrongState { device, state: before, work: "a save", needed });
    }
    let result = (|| {
        let data = device
            .set_state(State::StopCopy)?
            .ok_or_else(|| Error::NoSession { device: device.name().to_string(), state: State::StopCopy })?;
        match form {
            Form::Raw => save_raw(data, output),
            Form::Stream => save_stream(data, summary, output),
        }
    })();
    // The device goes on whether or not the save worked.
    match (result, bring_back(device, before)) {
        (Ok(device_bytes), Ok(())) => {
            Ok(Summary { device: device.name().to_string(), device_bytes, state: before.to_string() })
        }
        (Err(cause), Ok(())) => Err(cause),
        (result, Err(back)) => {
            Err(Error::NotBack { cause: result.err().map(Box::new), state: before, back: Box::new(back) })
        }
    }
}

fn bring_back(device: &mut dyn Migratable, state: State) -> Result<(), Error> {
    if device.state().is_ok_and(|state| state == State::Error) {
        return Err(Error::NeedsReset { device: device.name().to_string() });
    }
    device.set_state(state)?;
    Ok(())
}

fn unwritten(error: io::Error) -> Error {
    Error::File { what: "writing the saved state".into(), error }
}

/// As [`save`], to a file that appears under its name only when it is complete and on disk.
pub fn save_to_path(device: &mut dyn Migratable, path: &Path, form: Form) -> Result<Summary, Error> {
    let failed = |what: &'static str| {
        move |error: io::Error| Error::File { what: format!("{what} {}", path.display()), error }
    };
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut file = tempfile::Builder::new()
        .prefix(".whimbrel-save")
        .tempfile_in(folder)
        .map_err(failed("creating a file beside"))?;
    let summary = save(device, &mut file, form).map_err(|error| match error {
        Error::File { error, .. } => failed("writing")(error),
        other => other,
    })?;
    file.as_file().sync_all().map_err(failed("writing"))?;
    file.persist(path).map_err(|error| failed("naming")(error.error))?;
    // The name is on disk once its folder is.
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed("naming"))?;
    Ok(summary)
}

fn save_raw(mut data: DataFile, mut output: impl Write) -> Result<u64, Error> {
    let mut total = 0;
    let mut chunk = vec![0; CHUNK];
    while let SavingRead::Data(count) = data.read(&mut chunk)? {
        output.write_all(&chunk[..count]).map_err(unwritten)?;
        total += count as u64;
    }
    output.flush().map_err(unwritten)?;
    Ok(total)
}

fn save_stream(mut data: DataFile, device: DeviceSummary, output: impl Write) -> Result<u64, Error> {
    let mut writer = Writer::new(output);
    let mut total = 0;
    let mut chunk = vec![0; CHUNK];
    let mut send = |message: &Message<'_>| writer.send(message).map_err(unwritten);
    send(&Message::Hello(Hello { device, memory: Vec::new() }))?;
    while let SavingRead::Data(count) = data.read(&mut chunk)? {
        let ends = data.ends_transaction();
        send(&Message::DeviceState { device: 0, ends, data: &chunk[..count] })?;
        total += count as u64;
    }
    send(&Message::DeviceEnd { device: 0, bytes: total })?;
    send(&Message::End { memory_bytes: 0 })?;
    writer.flush().map_err(unwritten)?;
    Ok(total)
}

/// Restores a saved state into a device and lets it run. Whatever the device did before is over then.
///
/// If it fails once the device has begun to load, the device is reset, so that it never runs with half a state. A file
/// that is foreign or does not fit is refused before that, and the device goes on as it was.
pub fn restore(device: &mut dyn Migratable, input: impl Read, form: Form) -> Result<Summary, Error> {
    let flags = device
        .migration_flags()?
        .ok_or_else(|| Error::NotMigratable { device: device.name().to_string() })?;
    let loaded = match form {
        Form::Raw => load(device, |data| restore_raw(data, input)),
        Form::Stream => {
            let mut reader = Reader::new(input);
            let state = check_greeting(&device_state::summary(device, flags)?, &mut reader)?;
            load(device, |data| restore_stream(data, reader, state))
        }
    };
    match loaded {
        Ok(device_bytes) => {
            let state = State::Running.to_string();
            Ok(Summary { device: device.name().to_string(), device_bytes, state })
        }
        Err(error) => Err(reset_after(device, error)),
    }
}

/// The session stays open until the driver has judged what was written.
fn load(
    device: &mut dyn Migratable,
    write: impl FnOnce(&mut DataFile) -> Result<u64, Error>,
) -> Result<u64, Error> {
    let mut data = device
        .set_state(State::Resuming)?
        .ok_or_else(|| Error::NoSession { device: device.name().to_string(), state: State::Resuming })?;
    let device_bytes = write(&mut data)?;
    device.set_state(State::Stop)?;
    drop(data);
    device.set_state(State::Running)?;
    Ok(device_bytes)
}

fn restore_raw(data: &mut DataFile, mut input: impl Read) -> Result<u64, Error> {
    let mut chunk = vec![0; CHUNK];
    let mut total = 0;
    loop {
        match input.read(&mut chunk) {
            Ok(0) => return Ok(total),
            Ok(count) => {
                data.write_all(&chunk[..count])?;
                total += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::File { what: "reading the saved state".into(), error }),
        }
    }
}

fn check_greeting(here: &DeviceSummary, reader: &mut Reader<impl Read>) -> Result<Incoming, Error> {
    reader.preamble()?;
    match reader.next_message()? {
        Message::Hello(hello) => check_device(&hello.device, here).map(|()| Incoming::of(&hello.device)),
        other => Err(out_of_place(&other)),
    }
}

fn restore_stream(
    data: &mut DataFile,
    mut reader: Reader<impl Read>,
    mut state: Incoming,
) -> Result<u64, Error> {
    loop {
        match reader.next_message()? {
            Message::DeviceState { device: 0, ends, data: bytes } => state.take(data, bytes, ends)?,
            Message::DeviceEnd { device: 0, bytes } => break check_state(&state, bytes)?,
            other => return Err(out_of_place(&other)),
        }
    }
    match reader.next_message()? {
        Message::End { memory_bytes: 0 } => {}
        other => return Err(out_of_place(&other)),
    }
    reader.expect_end()?;
    Ok(state.bytes)
}

fn check_state(state: &Incoming, claimed: u64) -> Result<(), Error> {
    state.problem_at_end(claimed).map_or(Ok(()), |problem| Err(Error::Contents(problem)))
}

fn check_total(what: &str, found: u64, claimed: u64) -> Result<(), Error> {
    if found == claimed {
        return Ok(());
    }
    Err(Error::Contents(format!("it holds {found} bytes of {what} and says that it has {claimed}")))
}

fn out_of_place(message: &Message<'_>) -> Error {
    Error::Contents(match message {
        Message::Failed(Reason { reason }) | Message::Abort(Reason { reason }) => {
            format!("{:?} stands in a file: {reason}", message.kind())
        }
        _ => format!("{:?} stands where it has no meaning in a file", message.kind()),
    })
}

/// What a file holds.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct Contents {
    /// The version of its format, as `1.0`; `unknown` for any other format.
    pub version: String,
    /// What was saved.
    pub hello: Option<Hello>,
    /// Number of frames.
    pub frames: u64,
    /// Bytes of device state.
    pub device_bytes: u64,
    /// Transactions that the device's state came in; 0 for a device with migration v2, which has none.
    pub transactions: u64,
    /// Bytes of the longest of them: the least room that a v1 device needs in its data section.
    pub longest_transaction: u64,
    /// Bytes of memory, zero pages counted.
    pub memory_bytes: u64,
    /// Bytes of the file, as far as it could be read.
    pub file_bytes: u64,
    /// Whether it is whole. If not, `problem` says why.
    pub complete: bool,
    /// What is wrong with it, and where.
    pub problem: Option<String>,
    /// The first bytes of the device's state, for looking at.
    #[serde(skip)]
    pub head: Vec<u8>,
}

/// Reads a file to its end and checks that it is whole: its frames, their order and their checksums.
pub fn verify(input: impl Read) -> Result<(), Error> {
    look_through(&mut Reader::new(input), &mut Contents::default())
}

/// Reads a file to its end and tells what it holds. A damaged file is told about as far as it can be read.
pub fn inspect(input: impl Read) -> Contents {
    let mut reader = Reader::new(input);
    let mut contents = Contents { version: "unknown".to_string(), ..Contents::default() };
    let result = look_through(&mut reader, &mut contents);
    contents.file_bytes = reader.offset();
    if let Some((major, minor)) = reader.version() {
        contents.version = format!("{major}.{minor}");
    }
    match result {
        Ok(()) => contents.complete = true,
        Err(error) => contents.problem = Some(error.to_string()),
    }
    contents
}

fn look_through(reader: &mut Reader<impl Read>, contents: &mut Contents) -> Result<(), Error> {
    const HEAD: usize = 64;
    reader.preamble()?;
    let mut device_done = false;
    let mut state = Incoming::default();
    loop {
        let message = reader.next_message()?;
        contents.frames += 1;
        match message {
            Message::Hello(hello) if contents.hello.is_none() => {
                state = Incoming::of(&hello.device);
                contents.hello = Some(hello);
            }
            other if contents.hello.is_none() => return Err(out_of_place(&other)),
            Message::DeviceState { device: 0, ends, data } if !device_done => {
                state.count(data.len(), ends);
                contents.device_bytes = state.bytes;
                contents.transactions = state.transactions;
                contents.longest_transaction = state.longest;
                let room = HEAD - contents.head.len();
                contents.head.extend_from_slice(&data[..room.min(data.len())]);
            }
            Message::Memory { data, .. } => {
                contents.memory_bytes = contents.memory_bytes.saturating_add(data.len() as u64);
            }
            Message::MemoryZero { length, .. } => {
                contents.memory_bytes = contents.memory_bytes.saturating_add(length);
            }
            Message::DeviceEnd { device: 0, bytes } if !device_done => {
                check_state(&state, bytes)?;
                device_done = true;
            }
            Message::End { memory_bytes } if device_done => {
                check_total("memory", contents.memory_bytes, memory_bytes)?;
                return reader.expect_end().map_err(Error::from);
            }
            Message::Round { .. } | Message::Padding { .. } => {}
            other => return Err(out_of_place(&other)),
        }
    }
}
