//! What people say of times and services.

use crate::cli::Options;
use crate::config::duration;
use crate::daemon::documents;
use crate::net::protocol::Protocol;
use crate::policy::parse::service_port;
use crate::source::Trust;
use crate::text::read::suggestion;
use crate::text::time::parse_rfc3339;
use crate::traffic::query::ServiceFilter;

/// A duration until now, or a time; in microseconds since 1970-01-01 UTC.
pub(in crate::cli) fn time(text: &str, now: u64) -> Result<u64, String> {
    if let Some(seconds) = parse_rfc3339(text) {
        return Ok(seconds.saturating_mul(1_000_000));
    }
    let ago = duration::parse(text).map_err(|why| format!("{why}, or a time like 2026-11-23T21:09:54Z"))?;
    Ok(now.saturating_sub(u64::try_from(ago.as_micros()).unwrap_or(u64::MAX)))
}

/// A port, a protocol with ports or types, or the name of a service of the documents.
pub(super) fn service(options: &Options, text: &str) -> Result<ServiceFilter, String> {
    if let Ok(port) = text.parse::<u16>() {
        return Ok(ServiceFilter::Port(port));
    }
    if text.contains('/') || Protocol::by_name(text).is_some() {
        return match service_port(text) {
            Ok(port) => Ok(ServiceFilter::Ports(vec![port])),
            Err((what, help)) if help.is_empty() => Err(format!("--service: {what}")),
            Err((what, help)) => Err(format!("--service: {what}; {help}")),
        };
    }
    let documents = documents::load(&options.whereabouts(&[]), Trust::Anyone);
    let services = &documents.policy.services;
    match services.get(text) {
        Some(service) => Ok(ServiceFilter::Ports(service.ports.clone())),
        None => {
            let known: Vec<&str> = services.keys().map(String::as_str).collect();
            let help = suggestion(text, &known);
            let help = if help.is_empty() { "write \"tcp/22\", or a port".to_owned() } else { help };
            Err(format!("--service: no service is called \"{text}\"; {help}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_durations_until_now_or_times_of_day() {
        let now = 1_795_468_194_000_000;
        assert_eq!(time("1h", now), Ok(now - 3_600_000_000));
        assert_eq!(time("2026-11-23T21:09:54Z", 5), Ok(now));
        assert!(time("yesterday", now).is_err_and(|why| why.contains("yesterday") && why.contains("2026-11-23T")));
    }
}
