//! Forwarding of requests to the device in a field, for devices of tests that change only some of them.

/// Defines the named methods of [`Migratable`](whimbrel_user::Migratable) as those of the device in a field.
macro_rules! forward {
    ($device:ident: $($method:ident),+ $(,)?) => {
        $($crate::forward::method!($device $method);)+
    };
}

macro_rules! method {
    ($device:ident name) => {
        fn name(&self) -> &str {
            self.$device.name()
        }
    };
    ($device:ident info) => {
        fn info(&mut self) -> whimbrel_user::Result<whimbrel_protocol::info::Info> {
            self.$device.info()
        }
    };
    ($device:ident reset) => {
        fn reset(&mut self) -> whimbrel_user::Result<()> {
            self.$device.reset()
        }
    };
    ($device:ident probe_feature) => {
        fn probe_feature(
            &mut self,
            feature: whimbrel_uapi::feature::Feature,
            directions: whimbrel_uapi::feature::FeatureFlags,
        ) -> whimbrel_user::Result<bool> {
            self.$device.probe_feature(feature, directions)
        }
    };
    ($device:ident migration_flags) => {
        fn migration_flags(&mut self) -> whimbrel_user::Result<Option<whimbrel_user::MigrationFlags>> {
            self.$device.migration_flags()
        }
    };
    ($device:ident state) => {
        fn state(&mut self) -> whimbrel_user::Result<whimbrel_user::State> {
            self.$device.state()
        }
    };
    ($device:ident set_state) => {
        fn set_state(
            &mut self,
            state: whimbrel_user::State,
        ) -> whimbrel_user::Result<Option<whimbrel_user::DataFile>> {
            self.$device.set_state(state)
        }
    };
    ($device:ident data_size) => {
        fn data_size(&mut self) -> whimbrel_user::Result<u64> {
            self.$device.data_size()
        }
    };
    ($device:ident enable_precopy_info_v2) => {
        fn enable_precopy_info_v2(&mut self) -> whimbrel_user::Result<bool> {
            self.$device.enable_precopy_info_v2()
        }
    };
    ($device:ident dma_logging_start) => {
        fn dma_logging_start(
            &mut self,
            page_size: u64,
            ranges: &[whimbrel_protocol::dirty::IovaRange],
        ) -> whimbrel_user::Result<u64> {
            self.$device.dma_logging_start(page_size, ranges)
        }
    };
    ($device:ident dma_logging_stop) => {
        fn dma_logging_stop(&mut self) -> whimbrel_user::Result<()> {
            self.$device.dma_logging_stop()
        }
    };
    ($device:ident dma_logging_report) => {
        fn dma_logging_report(
            &mut self,
            report: &mut whimbrel_protocol::dirty::DirtyReport<'_>,
        ) -> whimbrel_user::Result<()> {
            self.$device.dma_logging_report(report)
        }
    };
    ($device:ident restore_setup) => {
        fn restore_setup(&mut self, setup: &whimbrel_user::DeviceSetup) -> whimbrel_user::Result<()> {
            self.$device.restore_setup(setup)
        }
    };
}

pub(crate) use {forward, method};
