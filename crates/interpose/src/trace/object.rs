//! A record as one JSON object for scripts. Its keys are documented in the guide.

use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::{Map, Value, json};
use whimbrel_uapi::Errno;

use super::line::hex;
use super::record::{Action, Outcome, Place, Record, Request};

impl Serialize for Record {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let object = self.object();
        let mut map = serializer.serialize_map(Some(object.len()))?;
        for (key, value) in &object {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

impl Record {
    /// Returns the keys in the order in which people want to read them.
    fn object(&self) -> Vec<(&'static str, Value)> {
        let mut object = Vec::new();
        let mut put = |key, value| object.push((key, value));
        put("at_us", microseconds(self.at));
        put("took_us", microseconds(self.took));
        put("process", self.process.into());
        put("thread", self.thread.into());
        put("fd", self.on.fd.into());
        put("file", self.on.kind.into());
        put("name", (*self.on.name).into());
        put("call", self.name().into());
        let (result, error) = match self.outcome {
            Outcome::Returned(value) => (value.into(), Value::Null),
            Outcome::Failed(errno) => (Value::Null, errno_name(errno).into()),
            Outcome::Interrupted => (Value::Null, "interrupted".into()),
            Outcome::Unfinished => (Value::Null, "unfinished".into()),
            Outcome::Unseen => (Value::Null, Value::Null),
        };
        put("result", result);
        put("error", error);
        match &self.action {
            Action::Request(request) => {
                put("number", request.number.into());
                let mut argument = Map::new();
                request.call().question().values(&mut |name, value| {
                    argument.insert(name.to_string(), value.to_string().into());
                });
                put("argument", argument.into());
                put("answer", if self.has_answer() { answer(request) } else { Value::Null });
                if let Some(dirty) = request.dirty {
                    put("dirty_pages", dirty.dirty.into());
                    put("counted_pages", dirty.counted.into());
                    put("pages", dirty.pages.into());
                }
                if request.hex && !request.call().has_secret() {
                    put("argument_hex", hex(&request.argument).into());
                    put("answer_hex", hex(&request.answer).into());
                }
            }
            Action::Transfer(transfer) => {
                put("asked", transfer.asked.into());
                put("offset", transfer.offset.into());
                put("region", place(transfer.place));
                if !transfer.data.is_empty() {
                    put("data_hex", hex(&transfer.data).into());
                }
            }
            Action::Map(map) => {
                put("asked", map.length.into());
                put("offset", map.offset.into());
                put("region", place(map.place));
            }
            Action::Duplicate { to, .. } => put("to", (*to).into()),
            Action::Passed { bytes } => put("bytes", (*bytes).into()),
            Action::Open { .. } | Action::Close { .. } | Action::Other { .. } => {}
        }
        object
    }
}

fn answer(request: &Request) -> Value {
    let mut answer = Map::new();
    request.answered().answer().values(&mut |name, value| {
        answer.insert(name.to_string(), value.to_string().into());
    });
    answer.into()
}

fn place(place: Option<Place>) -> Value {
    place.map_or(Value::Null, |place| json!({ "index": place.region, "offset": place.offset }))
}

/// A time in whole microseconds.
fn microseconds(time: std::time::Duration) -> Value {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX).into()
}

/// The name of an errno, or its number where it has none.
fn errno_name(errno: Errno) -> String {
    errno.name().map_or_else(|| errno.raw_os_error().to_string(), str::to_string)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use whimbrel_uapi::decode::File;

    use super::super::record::{Dirty, On, Transfer};
    use super::*;

    fn shown(action: Action, outcome: Outcome) -> Value {
        let on = On::new(7, "device", "device x");
        let mut record = Record::new(Duration::from_millis(2), on, action, outcome);
        (record.process, record.thread, record.took) = (1, 2, Duration::from_micros(3));
        serde_json::to_value(&record).unwrap()
    }

    #[test]
    fn a_request_is_an_object_with_question_and_answer() {
        let argument: Vec<u8> = [16, 0x1_0002, 0, 0].into_iter().flat_map(u32::to_ne_bytes).collect();
        let mut request = Request::new(File::Device, 0x3b75, 0, argument);
        request.answer[8] = 2;
        request.dirty = Some(Dirty::new(1, 2, 3));
        let expected = json!({
            "at_us": 2000, "took_us": 3, "process": 1, "thread": 2, "fd": 7, "file": "device", "name": "device x",
            "call": "VFIO_DEVICE_FEATURE", "number": 0x3b75, "result": 0, "error": null,
            "argument": { "feature": "GET MIG_DEVICE_STATE", "argsz": "16" },
            "answer": { "device_state": "2 RUNNING", "data_fd": "0" },
            "dirty_pages": 1, "counted_pages": 2, "pages": 3,
        });
        assert_eq!(shown(Action::Request(request), Outcome::Returned(0)), expected);
    }

    #[test]
    fn a_failure_has_an_error_instead_of_a_result() {
        let reset = || Action::Request(Request::new(File::Device, 0x3b6f, 0, Vec::new()));
        let failed = shown(reset(), Outcome::Failed(Errno::ENODEV));
        assert_eq!(
            (&failed["result"], &failed["error"], &failed["answer"]),
            (&Value::Null, &"ENODEV".into(), &Value::Null)
        );
        assert_eq!(shown(reset(), Outcome::Interrupted)["error"], "interrupted");
        assert_eq!(shown(reset(), Outcome::Unfinished)["error"], "unfinished");
        let unseen = shown(reset(), Outcome::Unseen);
        assert_eq!((&unseen["result"], &unseen["error"]), (&Value::Null, &Value::Null));
    }

    #[test]
    fn an_access_names_its_region() {
        let mut access = Transfer::new("pwrite64", 4);
        (access.offset, access.place, access.data) = (Some(8), Some(Place::new(7, 4)), vec![1, 0xff]);
        let shown = shown(Action::Transfer(access), Outcome::Returned(4));
        assert_eq!(shown["region"], json!({ "index": 7, "offset": 4 }));
        assert_eq!(
            (&shown["asked"], &shown["offset"], &shown["data_hex"]),
            (&4.into(), &8.into(), &"01ff".into())
        );
    }
}
