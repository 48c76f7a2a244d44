//! The result of a check, for people.

use std::fmt;

use whimbrel_engine::check::{CheckReport, DeviceCheck, DirtyLog, Downtime, Link};

use crate::output;

/// The result of a check of these devices.
pub(super) struct Text<'a> {
    pub(super) report: &'a CheckReport,
    pub(super) devices: &'a str,
    pub(super) to: Option<&'a str>,
}

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = self.report;
        let can = if report.can_migrate { "can" } else { "cannot" };
        match self.to {
            Some(to) => writeln!(f, "{} {can} migrate to {to}", self.devices)?,
            None => writeln!(f, "{} {can} migrate, as far as this host can tell", self.devices)?,
        }
        if let Some(link) = &report.link {
            writeln!(f, "  link       {}", link_text(link))?;
        }
        write_downtime(f, &report.downtime)?;
        let header = ["DEVICE", "KIND", "STATE", "PRE-COPY", "P2P", "STATE SIZE", "DIRTY LOG"];
        let mut table = output::table(header);
        output::align_right(&mut table, [5]);
        for device in &report.devices {
            table.add_row(row(device));
        }
        write!(f, "\n{}", table.trim_fmt())?;
        if report.findings.is_empty() {
            return write!(f, "\n\nno findings");
        }
        writeln!(f)?;
        for finding in &report.findings {
            write!(f, "\n{:<7} {}: {}", finding.severity.name(), finding.code, finding.text)?;
            write!(f, "\n        {}", finding.remedy)?;
        }
        Ok(())
    }
}

fn link_text(link: &Link) -> String {
    let throughput = link.throughput_bytes_per_s.map_or_else(|| "unknown".to_string(), output::rate);
    format!("throughput {throughput}, round trip {}", output::milliseconds(link.round_trip_ms))
}

fn write_downtime(f: &mut fmt::Formatter<'_>, downtime: &Downtime) -> fmt::Result {
    let limit = output::milliseconds(downtime.limit_ms);
    match (downtime.most_ms, downtime.least_ms) {
        (Some(most), _) => {
            writeln!(f, "  downtime   at most {} (limit {limit})", output::milliseconds(most))?;
        }
        (None, Some(_)) => {
            let known = output::milliseconds(downtime.known_ms);
            writeln!(f, "  downtime   {known} at most for what is known (limit {limit})")?;
        }
        (None, None) => writeln!(f, "  downtime   unknown (limit {limit})")?,
    }
    if let Some(least) = downtime.least_ms {
        writeln!(f, "  at least   {}", output::milliseconds(least))?;
    }
    let bytes = output::bytes(downtime.least_bytes);
    match downtime.most_bytes {
        Some(most) => writeln!(f, "  to send    {bytes} to {} while stopped", output::bytes(most))?,
        None => writeln!(f, "  to send    at least {bytes} while stopped")?,
    }
    if !downtime.unknown.is_empty() {
        writeln!(f, "  not known  {}", output::names(&downtime.unknown))?;
    }
    if downtime.least_ms.is_some() {
        writeln!(f, "  assumed    {}", downtime.assumptions.join("; "))?;
    }
    Ok(())
}

fn row(device: &DeviceCheck) -> [String; 7] {
    let told = |text: Option<String>| text.unwrap_or_else(|| "?".into());
    let yes = |has: Option<bool>| told(has.map(|has| if has { "yes" } else { "no" }.to_string()));
    let log = device.dirty_log.map(|log| {
        match log {
            DirtyLog::Device => "device",
            DirtyLog::AddressSpace => "address space",
            _ => "none",
        }
        .to_string()
    });
    [
        device.name.clone(),
        told(device.kind.clone()),
        told(device.state.clone()),
        yes(device.pre_copy),
        yes(device.p2p),
        told(device.state_bytes.map(output::bytes)),
        told(log),
    ]
}
