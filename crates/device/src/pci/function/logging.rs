//! The function's own log of its DMA writes.
//!
//! It behaves as in mlx5 and pds: a second START fails, STOP always succeeds, REPORT needs a running log. A reset stops
//! the log, as after power-on, but not one that keeps a migration in pre-copy. (In the kernel, pds stops it only if the device had failed.)

use std::sync::Arc;

use whimbrel_memory::DirtyLog;
use whimbrel_protocol::Errno;
use whimbrel_protocol::dirty::{DirtyReport, LoggingRanges};

use super::Function;
use crate::driver::{Context, DmaLogging};

impl DmaLogging for Function {
    fn start(&mut self, _: &Context, ranges: &LoggingRanges) -> Result<u64, Errno> {
        if self.log.is_some() {
            return Err(Errno::EINVAL);
        }
        let log = Arc::new(DirtyLog::new(ranges)?);
        let page_size = log.page_size();
        self.bus.dma().set_log(Some(log.clone()));
        self.log = Some(log);
        Ok(page_size)
    }

    fn stop(&mut self, _: &Context) -> Result<(), Errno> {
        self.stop_log();
        Ok(())
    }

    fn report(&mut self, _: &Context, report: &mut DirtyReport<'_>) -> Result<(), Errno> {
        self.log.as_ref().ok_or(Errno::EINVAL)?.report(report);
        Ok(())
    }
}

impl Function {
    pub(super) fn stop_log(&mut self) {
        if self.log.take().is_some() {
            self.bus.dma().set_log(None);
        }
    }
}
