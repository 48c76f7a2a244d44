//! Forwarding of a wrapper's calls to the wrapped driver, in one place.

use crate::driver::{Context, Driver, Next};

/// Makes the next access of a driver whose migration the core does not see, if it has one. Requests wait meanwhile:
/// one of them may stop the device.
pub(super) fn make_access(driver: &mut dyn Driver, context: &Context) -> Option<Next> {
    let half = driver.async_dma()?;
    let mut access = half.next_access(context)?;
    let result = context.bus().dma().make(&mut access);
    half.access_done(context, access, result);
    Some(Next::Now)
}

/// Defines the named methods of [`Driver`](crate::Driver) as those of the driver in a field.
///
/// A wrapper names each method that it passes on and defines the others. `clippy::missing_trait_methods` is denied on
/// its `impl`, so that a method that the trait gains cannot be dropped silently, whether it has a default or not.
macro_rules! forward {
    ($driver:ident: $($method:ident),+ $(,)?) => {
        $($crate::wrap::forward::method!($driver $method);)+
    };
}

macro_rules! method {
    ($driver:ident open_device) => {
        fn open_device(&mut self, context: &$crate::driver::Context) {
            self.$driver.open_device(context);
        }
    };
    ($driver:ident close_device) => {
        fn close_device(&mut self, context: &$crate::driver::Context) {
            self.$driver.close_device(context);
        }
    };
    ($driver:ident info) => {
        fn info(&self) -> whimbrel_protocol::info::Info {
            self.$driver.info()
        }
    };
    ($driver:ident region) => {
        fn region(&self, index: u32) -> Result<whimbrel_protocol::info::Region, whimbrel_protocol::Errno> {
            self.$driver.region(index)
        }
    };
    ($driver:ident irq) => {
        fn irq(&self, index: u32) -> Result<whimbrel_protocol::info::Irq, whimbrel_protocol::Errno> {
            self.$driver.irq(index)
        }
    };
    ($driver:ident read_region) => {
        fn read_region(
            &mut self,
            context: &$crate::driver::Context,
            index: u32,
            offset: u64,
            data: &mut [u8],
        ) -> Result<usize, whimbrel_protocol::Errno> {
            self.$driver.read_region(context, index, offset, data)
        }
    };
    ($driver:ident write_region) => {
        fn write_region(
            &mut self,
            context: &$crate::driver::Context,
            index: u32,
            offset: u64,
            data: &[u8],
        ) -> Result<usize, whimbrel_protocol::Errno> {
            self.$driver.write_region(context, index, offset, data)
        }
    };
    ($driver:ident doorbells) => {
        fn doorbells(&self) -> Vec<$crate::driver::IoeventfdWrite> {
            self.$driver.doorbells()
        }
    };
    ($driver:ident mmap) => {
        fn mmap(
            &mut self,
            context: &$crate::driver::Context,
            index: u32,
            offset: u64,
            length: u64,
        ) -> Result<whimbrel_memory::FileOffset, whimbrel_protocol::Errno> {
            self.$driver.mmap(context, index, offset, length)
        }
    };
    ($driver:ident bus_reset) => {
        fn bus_reset(&mut self, context: &$crate::driver::Context) -> Result<(), whimbrel_protocol::Errno> {
            self.$driver.bus_reset(context)
        }
    };
    ($driver:ident can_reset_in_precopy) => {
        fn can_reset_in_precopy(&self) -> bool {
            self.$driver.can_reset_in_precopy()
        }
    };
    ($driver:ident async_dma) => {
        fn async_dma(&mut self) -> Option<&mut dyn $crate::driver::AsyncDma> {
            self.$driver.async_dma()
        }
    };
    ($driver:ident low_power) => {
        fn low_power(&mut self) -> Option<&mut dyn $crate::driver::LowPower> {
            self.$driver.low_power()
        }
    };
    ($driver:ident bus_master) => {
        fn bus_master(&mut self) -> Option<&mut dyn $crate::driver::BusMaster> {
            self.$driver.bus_master()
        }
    };
    ($driver:ident dma_buf) => {
        fn dma_buf(&mut self) -> Option<&mut dyn $crate::driver::DmaBuf> {
            self.$driver.dma_buf()
        }
    };
    ($driver:ident zpci_errors) => {
        fn zpci_errors(&mut self) -> Option<&mut dyn $crate::driver::ZpciErrors> {
            self.$driver.zpci_errors()
        }
    };
    ($driver:ident graphics) => {
        fn graphics(&mut self) -> Option<&mut dyn $crate::driver::Graphics> {
            self.$driver.graphics()
        }
    };
    ($driver:ident compatibility) => {
        fn compatibility(&mut self) -> Option<whimbrel_protocol::compatibility::Compatibility> {
            self.$driver.compatibility()
        }
    };
    ($driver:ident advance) => {
        fn advance(&mut self, context: &$crate::driver::Context) -> $crate::driver::Next {
            self.$driver.advance(context)
        }
    };
    ($driver:ident has_work) => {
        fn has_work(&self) -> bool {
            self.$driver.has_work()
        }
    };
}

pub(super) use {forward, method};
