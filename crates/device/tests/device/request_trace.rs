//! Raw requests in the log, each in one line.

use std::io::Write;
use std::sync::{Arc, LazyLock, Mutex};

use tracing::subscriber::NoSubscriber;
use tracing::{Dispatch, Level};
use whimbrel_device::{Container, ContainerSettings, Errno, SparseMemory};
use whimbrel_models::Model;
use whimbrel_uapi::feature::{DeviceFeature, Feature, FeatureFlags};
use whimbrel_uapi::ioctl::{
    VFIO_CHECK_EXTENSION, VFIO_DEVICE_FEATURE, VFIO_DEVICE_RESET, VFIO_GROUP_GET_STATUS,
};
use whimbrel_uapi::migration::{DeviceFeatureMigState, VFIO_DEVICE_STATE_STOP_COPY};
use zerocopy::IntoBytes;

const AT: u64 = 0x1000;

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn each_raw_request_is_one_line_at_trace_level_with_what_it_answers() {
    // As long as there is but one subscriber, the thread that meets an event first decides whether anybody wants it.
    // That may be another test's, which has none.
    static ANOTHER: LazyLock<Dispatch> = LazyLock::new(|| Dispatch::new(NoSubscriber::default()));
    LazyLock::force(&ANOTHER);
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(Level::TRACE)
        .with_writer(move || writer.clone())
        .without_time()
        .with_level(false)
        .with_target(false)
        .with_ansi(false)
        .finish();
    let device = "serial".parse::<Model>().unwrap().open("serial 0").unwrap().into_device();
    tracing::subscriber::with_default(subscriber, || {
        let flags = FeatureFlags::SET.bits() | u32::from(Feature::MigDeviceState.number());
        let state = DeviceFeatureMigState { device_state: VFIO_DEVICE_STATE_STOP_COPY, data_fd: -1 };
        let mut process = SparseMemory::new();
        process.insert(AT, [DeviceFeature { argsz: 16, flags }.as_bytes(), state.as_bytes()].concat());
        device.ioctl(VFIO_DEVICE_FEATURE.number(), AT, &mut process).unwrap();
        device.ioctl(VFIO_DEVICE_RESET.number(), 0, &mut process).unwrap();
        let unknown = device.ioctl(VFIO_GROUP_GET_STATUS.number(), 0, &mut process);
        assert_eq!(unknown, Err(Errno::ENOTTY));
        Container::new(ContainerSettings::default())
            .ioctl(VFIO_CHECK_EXTENSION.number(), 3, &mut process)
            .unwrap();
    });
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let requests: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|line| line.contains(": VFIO_") || line.contains("unknown"))
        .collect();
    assert_eq!(
        requests,
        [
            "serial 0: VFIO_DEVICE_FEATURE(SET MIG_DEVICE_STATE, argsz 16, device_state 3 STOP_COPY, data_fd -1) = 0",
            "serial 0: VFIO_DEVICE_RESET() = 0",
            "serial 0: unknown request 0x3b67 = ENOTTY",
            "container: VFIO_CHECK_EXTENSION(3 VFIO_TYPE1v2_IOMMU) = 1",
        ]
    );
}
