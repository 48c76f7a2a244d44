//! The options of commands that protect a migration by TLS.

use rcgen::date_time_ymd;

pub(crate) use crate::certificates::Authority;
use crate::support::argument;

impl Authority {
    /// Returns the options of a side that shows a certificate for a name, which ends in a year.
    pub(crate) fn options(&self, name: &str, until: i32) -> Vec<String> {
        let shown = self.made(name, |params| params.not_after = date_time_ymd(until, 1, 1));
        let [certificate, key, authority] = [&shown.certificate, &shown.key, self.file()].map(argument);
        ["--tls-cert", &certificate, "--tls-key", &key, "--tls-ca", &authority].map(str::to_string).to_vec()
    }
}
