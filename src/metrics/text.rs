//! Metric families as text: OpenMetrics 1.0, and Prometheus' classic form 0.0.4 for those who know no other.

use std::fmt::Write as _;

use super::histogram::Histogram;

/// What a family is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A number that goes up and down.
    Gauge,
    /// A number that only grows until the daemon starts anew.
    Counter,
    /// Observations in buckets.
    Histogram,
    /// A 1 with labels.
    Info,
}

/// A value.
#[derive(Clone, PartialEq, Debug)]
pub enum Value {
    /// A whole number.
    Whole(u64),
    /// A number with a fraction.
    Real(f64),
    /// Buckets, count and sum.
    Buckets(Box<Histogram>),
}

/// One series of a family.
#[derive(Clone, PartialEq, Debug)]
pub struct Sample {
    /// Label names and values, in order.
    pub labels: Vec<(&'static str, String)>,
    /// The value.
    pub value: Value,
}

/// Series of one name.
#[derive(Clone, PartialEq, Debug)]
pub struct Family {
    /// The name, without "_total" of counters and "_info" of infos.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// What it says, for people.
    pub help: &'static str,
    /// The series; without one the family is left out.
    pub samples: Vec<Sample>,
}

/// How to write it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Format {
    /// OpenMetrics 1.0.0.
    OpenMetrics,
    /// Prometheus' text format 0.0.4.
    Classic,
}

/// The units that names end in, for OpenMetrics' `# UNIT`.
const UNITS: [&str; 2] = ["seconds", "bytes"];

impl Format {
    /// The media type.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Classic => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// What somebody who sends this `Accept` (RFC 9110 section 12.5.1) wants: OpenMetrics where it is named and not wanted less than
    /// the classic form.
    pub fn accepted(accept: &str) -> Self {
        let (mut open, mut classic) = (0.0, 0.0);
        for range in accept.split(',') {
            let mut parts = range.split(';').map(str::trim);
            let media = parts.next().unwrap_or_default();
            let (mut quality, mut version) = (1.0, None);
            for (name, value) in parts.filter_map(|part| part.split_once('=')) {
                match name.trim().to_ascii_lowercase().as_str() {
                    "q" => quality = value.trim().parse::<f32>().unwrap_or(0.0),
                    "version" => version = Some(value.trim().trim_matches('"')),
                    _ => {}
                }
            }
            match media.to_ascii_lowercase().as_str() {
                "application/openmetrics-text" if matches!(version, None | Some("1.0.0" | "0.0.1")) => {
                    open = f32::max(open, quality);
                }
                "text/plain" | "text/*" => classic = f32::max(classic, quality),
                _ => {}
            }
        }
        if open > 0.0 && open >= classic { Self::OpenMetrics } else { Self::Classic }
    }
}

/// All families, in the order given.
pub fn encode(families: &[Family], format: Format) -> String {
    let mut out = String::new();
    for family in families.iter().filter(|family| !family.samples.is_empty()) {
        head(&mut out, family, format);
        for sample in &family.samples {
            series(&mut out, family, sample);
        }
    }
    if format == Format::OpenMetrics {
        out.push_str("# EOF\n");
    }
    out
}

// Writing to a String does not fail.
fn head(out: &mut String, family: &Family, format: Format) {
    let Family { name, kind, help, .. } = family;
    let (kind_word, suffix) = match (kind, format) {
        (Kind::Gauge, _) => ("gauge", ""),
        (Kind::Histogram, _) => ("histogram", ""),
        (Kind::Counter, Format::OpenMetrics) => ("counter", ""),
        (Kind::Counter, Format::Classic) => ("counter", "_total"),
        (Kind::Info, Format::OpenMetrics) => ("info", ""),
        (Kind::Info, Format::Classic) => ("gauge", "_info"),
    };
    let _ = write!(out, "# HELP {name}{suffix} ");
    escape(out, help, format == Format::OpenMetrics);
    let _ = write!(out, "\n# TYPE {name}{suffix} {kind_word}\n");
    if format == Format::OpenMetrics
        && let Some(unit) = UNITS.iter().find(|unit| name.strip_suffix(*unit).is_some_and(|rest| rest.ends_with('_')))
    {
        let _ = writeln!(out, "# UNIT {name} {unit}");
    }
}

fn series(out: &mut String, family: &Family, sample: &Sample) {
    let name = family.name;
    let suffix = match family.kind {
        Kind::Counter => "_total",
        Kind::Info => "_info",
        Kind::Gauge | Kind::Histogram => "",
    };
    match &sample.value {
        Value::Whole(value) => line(out, name, suffix, &sample.labels, None, &value.to_string()),
        Value::Real(value) => line(out, name, suffix, &sample.labels, None, &real(*value)),
        Value::Buckets(histogram) => {
            for (bound, count) in histogram.cumulative() {
                line(out, name, "_bucket", &sample.labels, Some(&real(bound)), &count.to_string());
            }
            line(out, name, "_count", &sample.labels, None, &histogram.count().to_string());
            line(out, name, "_sum", &sample.labels, None, &real(histogram.sum()));
        }
    }
}

fn line(
    out: &mut String,
    name: &str,
    suffix: &str,
    labels: &[(&'static str, String)],
    bound: Option<&str>,
    value: &str,
) {
    out.push_str(name);
    out.push_str(suffix);
    let labels = labels.iter().map(|(name, value)| (*name, value.as_str())).chain(bound.map(|bound| ("le", bound)));
    let mut open = '{';
    for (name, value) in labels {
        let _ = write!(out, "{open}{name}=\"");
        escape(out, value, true);
        out.push('"');
        open = ',';
    }
    out.push_str(if open == '{' { " " } else { "} " });
    out.push_str(value);
    out.push('\n');
}

/// With a point even where there is no fraction: OpenMetrics wants bounds like that, and both forms name the same series then.
fn real(value: f64) -> String {
    if value == f64::INFINITY { "+Inf".to_owned() } else { format!("{value:?}") }
}

/// A text with a backslash before backslash, newline and, where they end it, quotes.
fn escape(out: &mut String, text: &str, quotes: bool) {
    for next in text.chars() {
        match next {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '"' if quotes => out.push_str("\\\""),
            next => out.push(next),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn families() -> Vec<Family> {
        let mut buckets = Histogram::new(&[0.01, 1.0]);
        buckets.observe(Duration::from_millis(500));
        let sample = |labels: &[(&'static str, &str)], value| Sample {
            labels: labels.iter().map(|(name, value)| (*name, (*value).to_owned())).collect(),
            value,
        };
        vec![
            Family {
                name: "nodewall_build",
                kind: Kind::Info,
                help: "What runs.",
                samples: vec![sample(&[("version", "0.1.0")], Value::Whole(1))],
            },
            Family {
                name: "nodewall_drift_events",
                kind: Kind::Counter,
                help: "A \\ and \"quotes\".\nTwo lines.",
                samples: vec![sample(&[("by", "a\"b\\c\nd")], Value::Whole(3)), sample(&[], Value::Whole(u64::MAX))],
            },
            Family { name: "nodewall_nothing", kind: Kind::Gauge, help: "Nothing.", samples: Vec::new() },
            Family {
                name: "nodewall_apply_duration_seconds",
                kind: Kind::Histogram,
                help: "How long.",
                samples: vec![sample(&[("kind", "apply")], Value::Buckets(Box::new(buckets)))],
            },
            Family {
                name: "nodewall_process_resident_memory_bytes",
                kind: Kind::Gauge,
                help: "Memory.",
                samples: vec![sample(&[], Value::Real(2.0))],
            },
        ]
    }

    #[test]
    fn open_metrics() {
        assert_eq!(
            encode(&families(), Format::OpenMetrics),
            r#"# HELP nodewall_build What runs.
# TYPE nodewall_build info
nodewall_build_info{version="0.1.0"} 1
# HELP nodewall_drift_events A \\ and \"quotes\".\nTwo lines.
# TYPE nodewall_drift_events counter
nodewall_drift_events_total{by="a\"b\\c\nd"} 3
nodewall_drift_events_total 18446744073709551615
# HELP nodewall_apply_duration_seconds How long.
# TYPE nodewall_apply_duration_seconds histogram
# UNIT nodewall_apply_duration_seconds seconds
nodewall_apply_duration_seconds_bucket{kind="apply",le="0.01"} 0
nodewall_apply_duration_seconds_bucket{kind="apply",le="1.0"} 1
nodewall_apply_duration_seconds_bucket{kind="apply",le="+Inf"} 1
nodewall_apply_duration_seconds_count{kind="apply"} 1
nodewall_apply_duration_seconds_sum{kind="apply"} 0.5
# HELP nodewall_process_resident_memory_bytes Memory.
# TYPE nodewall_process_resident_memory_bytes gauge
# UNIT nodewall_process_resident_memory_bytes bytes
nodewall_process_resident_memory_bytes 2.0
# EOF
"#
        );
    }

    #[test]
    fn the_classic_form() {
        let text = encode(&families(), Format::Classic);
        assert!(text.starts_with(
            "# HELP nodewall_build_info What runs.\n# TYPE nodewall_build_info gauge\nnodewall_build_info{"
        ));
        assert!(text.contains("# HELP nodewall_drift_events_total A \\\\ and \"quotes\".\\nTwo lines.\n# TYPE nodewall_drift_events_total counter\n"));
        assert!(!text.contains("# UNIT") && !text.contains("# EOF") && !text.contains("nothing"));
    }

    #[test]
    fn who_asks_gets_what_he_knows() {
        for (accept, format) in [
            ("", Format::Classic),
            ("*/*", Format::Classic),
            ("text/plain", Format::Classic),
            ("application/openmetrics-text", Format::OpenMetrics),
            ("application/openmetrics-text; version=2.0.0", Format::Classic),
            ("application/openmetrics-text;q=0", Format::Classic),
            ("application/openmetrics-text;q=0.4, text/plain;q=0.5", Format::Classic),
            (
                "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
                Format::OpenMetrics,
            ),
        ] {
            assert_eq!(Format::accepted(accept), format, "{accept}");
        }
    }
}
