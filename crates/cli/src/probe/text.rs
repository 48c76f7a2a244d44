//! The information that a device reports, as text for people.

use std::fmt;

use whimbrel_user::ResetRule;

use super::{Debugfs, Migration, ProbeError, Probed, capability};
use crate::output;

impl fmt::Display for Probed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.device)?;
        let info = &self.info;
        match &info.error {
            None => writeln!(f, "  flags       {}", output::names(&info.flags))?,
            Some(error) => writeln!(f, "  flags       {}", refusal(error))?,
        }
        for one in &info.capabilities {
            writeln!(f, "  capability  {}", capability::text(one))?;
        }
        match &self.migration {
            None => writeln!(f, "  migration   none: its driver does not support it")?,
            Some(migration) => {
                migration.fmt(f)?;
                let logs = &self.dirty_logs;
                let named = [(logs.device, "device"), (logs.address_space == Some(true), "address space")];
                let named: Vec<_> = named.iter().filter(|(has, _)| *has).map(|(_, name)| *name).collect();
                match &named[..] {
                    [] => writeln!(f, "  dirty logs  none: all memory is resent after the stop")?,
                    named => writeln!(f, "  dirty logs  {}", output::names(named))?,
                }
            }
        }
        self.write_regions(f)?;
        self.write_irqs(f)?;
        self.write_features(f)
    }
}

/// A count, with the number shown if that differs.
fn count(told: Option<u32>, shown: usize) -> String {
    match told {
        Some(told) if told as usize == shown => told.to_string(),
        Some(told) => format!("{told} (first {shown} shown)"),
        None => format!("unknown number of (queried: {shown})"),
    }
}

/// An error without the names of device and request, which are beside it: `refused: EINVAL`.
fn refusal(error: &ProbeError) -> String {
    match error.errno {
        Some(errno) => format!("refused: {errno:?}"),
        None => error.text.clone(),
    }
}

impl fmt::Display for Migration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.flags, &self.error) {
            (Some(flags), _) => writeln!(f, "  migration   {}", output::names(flags))?,
            (None, Some(error)) => writeln!(f, "  migration   {}", refusal(error))?,
            (None, None) => {}
        }
        match (&self.state, &self.state_error) {
            (Some(state), _) => writeln!(f, "  state       {state}")?,
            (None, Some(error)) => writeln!(f, "  state       {}", refusal(error))?,
            (None, None) => {}
        }
        if let Some(Debugfs { state, features }) = &self.debugfs {
            write!(f, "  debugfs     state {state}")?;
            if let Some(features) = features {
                write!(f, "; features {}", output::names(features))?;
            }
            writeln!(f)?;
        }
        match (self.data_size, &self.data_size_error) {
            (Some(size), _) => writeln!(f, "  state size  {} (estimate)", output::exact_bytes(size))?,
            (None, Some(error)) => writeln!(f, "  state size  {}", refusal(error))?,
            (None, None) => {}
        }
        if self.flags.is_some() {
            let rule = self.reset_rule.and_then(ResetRule::from_name);
            writeln!(f, "  reset       {}", rule.map_or("effect on a migration unknown", ResetRule::text))?;
        }
        Ok(())
    }
}

impl Probed {
    fn write_regions(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = output::table(["REGION", "NAME", "SIZE", "OFFSET", "FLAGS", "CAPABILITIES"]);
        output::align_right(&mut table, [0, 2, 3]);
        for region in &self.regions {
            let name = region.name.unwrap_or("-");
            let index = region.index.to_string();
            if let Some(error) = &region.error {
                table.add_row([&index, name, "-", "-", &refusal(error)]);
            } else if region.size == 0 {
                table.add_row([&index, name, "-", "-", "absent"]);
            } else {
                let capabilities: Vec<String> = region.capabilities.iter().map(capability::text).collect();
                table.add_row([
                    index,
                    name.to_string(),
                    output::bytes(region.size),
                    format!("{:#x}", region.offset),
                    output::names(&region.flags),
                    capabilities.join("; "),
                ]);
            }
        }
        writeln!(f, "\n{} regions", count(self.info.num_regions, self.regions.len()))?;
        if self.regions.is_empty() { Ok(()) } else { writeln!(f, "{}", table.trim_fmt()) }
    }

    fn write_irqs(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = output::table(["IRQ", "NAME", "COUNT", "FLAGS"]);
        output::align_right(&mut table, [0, 2]);
        for irq in &self.irqs {
            let flags = match &irq.error {
                Some(error) => refusal(error),
                None if irq.count == 0 => "absent".into(),
                None => output::names(&irq.flags),
            };
            table.add_row([
                irq.index.to_string(),
                irq.name.unwrap_or("-").to_string(),
                if irq.error.is_some() { "-".into() } else { irq.count.to_string() },
                flags,
            ]);
        }
        writeln!(f, "\n{} irq indices", count(self.info.num_irqs, self.irqs.len()))?;
        if self.irqs.is_empty() { Ok(()) } else { writeln!(f, "{}", table.trim_fmt()) }
    }

    fn write_features(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = output::table(["FEATURE", "NAME", "DIRECTIONS"]);
        output::align_right(&mut table, [0]);
        for feature in &self.features {
            let directions = match (&feature.error, feature.get, feature.set) {
                (Some(error), ..) => refusal(error),
                (None, true, true) => "GET, SET".into(),
                (None, true, false) => "GET".into(),
                (None, false, true) => "SET".into(),
                (None, false, false) => "-".into(),
            };
            let name = feature.name.strip_prefix("VFIO_DEVICE_FEATURE_").unwrap_or(feature.name);
            table.add_row([feature.index.to_string(), name.to_string(), directions]);
        }
        writeln!(f, "\nfeatures\n{}", table.trim_fmt())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_debugfs_tells_stands_below_what_the_device_tells() {
        let told = Migration {
            flags: Some(vec!["STOP_COPY"]),
            error: None,
            state: Some("STOP".into()),
            state_error: None,
            data_size: Some(60),
            data_size_error: None,
            reset_rule: Some("ends_migration"),
            debugfs: Some(Debugfs {
                state: "RUNNING".into(),
                features: Some(vec!["stop-copy".into(), "p2p".into()]),
            }),
        };
        let text = told.to_string();
        let state = "  state       STOP\n  debugfs     state RUNNING; features stop-copy, p2p\n";
        assert!(text.contains(state), "{text}");
    }
}
