//! The report as one HTML page: the map of zones and services, what is dangerous, and every detail. It loads nothing and runs nothing.

use std::fmt::Write as _;

use super::report::{Degree, ListenerRecord, PublishedRecord, ReachRecord, Report, ZoneRecord, degree};
use super::text;
use crate::cli::output::count;

/// Colours are never alone: each cell says it in words, too.
const STYLE: &str = include_str!("audit.css");

/// One row of the map.
struct Row {
    place: String,
    service: String,
    who: String,
    details: Vec<(&'static str, String)>,
    gpu: bool,
    loopback: bool,
    reach: Vec<Cell>,
}

/// Who reaches it by one zone.
struct Cell {
    class: &'static str,
    words: String,
}

pub(super) fn page(report: &Report) -> String {
    let mut rows: Vec<Row> =
        report.listeners.iter().map(|listener| Row::of_listener(listener, &report.zones)).collect();
    rows.extend(report.published.iter().map(|published| Row::of_published(published, &report.zones)));
    let (here, outside): (Vec<Row>, Vec<Row>) = rows.into_iter().partition(|row| row.loopback);
    let mut out = String::new();
    let node = escape(&report.node);
    // Writing to a String does not fail.
    let _ = write!(
        out,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>Exposure of {node}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<header>\n\
         <h1>Exposure of {node}</h1>\n<p>{} at <time datetime=\"{time}\">{time}</time>.</p>\n",
        escape(&text::held_against(&report.policy)),
        time = escape(&report.time),
    );
    counts(&mut out, report);
    out.push_str("</header>\n<main>\n");
    findings(&mut out, report);
    map(&mut out, &outside, &report.zones);
    let _ = write!(
        out,
        "<details id=\"loopback\">\n<summary>On loopback only: {}</summary>\n",
        count(here.len(), "open port")
    );
    list(&mut out, &here);
    out.push_str("</details>\n");
    if !report.troubles.is_empty() {
        out.push_str("<section id=\"troubles\">\n<h2>Not known</h2>\n<ul>\n");
        for trouble in &report.troubles {
            let _ = writeln!(out, "<li>{}</li>", escape(trouble));
        }
        out.push_str("</ul>\n</section>\n");
    }
    out.push_str("</main>\n<footer>nodewall audit</footer>\n</body>\n</html>\n");
    out
}

fn counts(out: &mut String, report: &Report) {
    out.push_str("<ul class=\"counts\">\n");
    let words = ["reached by anyone", "reached by some", "reached by nobody", "on loopback only"];
    let classes = ["anyone", "some", "nobody", "loopback"];
    for ((number, words), class) in report.counts().iter().zip(words).zip(classes) {
        let _ = writeln!(out, "<li class=\"{class}\"><strong>{number}</strong> {words}</li>");
    }
    out.push_str("</ul>\n");
}

fn findings(out: &mut String, report: &Report) {
    let _ = writeln!(out, "<section id=\"findings\">\n<h2>{}</h2>", count(report.findings.len(), "finding"));
    if !report.findings.is_empty() {
        out.push_str("<ol>\n");
        for finding in &report.findings {
            let _ = writeln!(
                out,
                "<li class=\"{severity}\"><p><strong>{severity}</strong> <code>{}</code> {}</p><p class=\"help\">{}</p></li>",
                escape(&finding.code),
                escape(&finding.message),
                escape(&finding.help),
                severity = escape(&finding.severity),
            );
        }
        out.push_str("</ol>\n");
    }
    out.push_str("</section>\n");
}

fn map(out: &mut String, rows: &[Row], zones: &[ZoneRecord]) {
    out.push_str("<section id=\"map\">\n<h2>Who reaches what, by which interfaces</h2>\n<div class=\"scroll\">\n<table>\n<thead>\n<tr><th scope=\"col\">Open port</th>");
    for zone in zones {
        let _ = write!(out, "<th scope=\"col\">{}</th>", escape(&zone.zone));
    }
    out.push_str("</tr>\n</thead>\n<tbody>\n");
    for row in rows {
        out.push_str("<tr><th scope=\"row\">");
        row.head(out);
        out.push_str("</th>");
        for Cell { class, words } in &row.reach {
            let _ = write!(out, "<td class=\"{class}\">{}</td>", escape(words));
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody>\n</table>\n</div>\n</section>\n");
}

fn list(out: &mut String, rows: &[Row]) {
    out.push_str("<ul class=\"rows\">\n");
    for row in rows {
        out.push_str("<li>");
        row.head(out);
        out.push_str("</li>\n");
    }
    out.push_str("</ul>\n");
}

impl Row {
    fn of_listener(listener: &ListenerRecord, zones: &[ZoneRecord]) -> Self {
        let mut details = Vec::new();
        for process in &listener.processes {
            let words = process.words.join(" ");
            details.push(("process", format!("{} ({}) {words}", process.name, process.pid)));
            details.extend(process.devices.iter().map(|device| ("device", device.clone())));
        }
        details.extend(listener.home().map(|home| ("belongs to", home)));
        details.extend(listener.user.clone().map(|user| ("user", user)));
        details.extend(listener.rdma.iter().map(|device| ("RDMA device", device.clone())));
        Self {
            place: listener.place(),
            service: listener.service.clone().unwrap_or_default(),
            who: listener.who(),
            details,
            gpu: listener.gpu,
            loopback: degree(&listener.reach, &listener.address) == Degree::ThisHost,
            reach: cells(&listener.reach, zones),
        }
    }

    fn of_published(published: &PublishedRecord, zones: &[ZoneRecord]) -> Self {
        let mut details = vec![("leads to", published.target.clone()), ("by", published.via.clone())];
        details.extend(published.comment.clone().map(|comment| ("comment", comment)));
        if published.partly {
            details.push(("note", "a condition of it is not understood: it may hold for fewer packets".to_owned()));
        }
        Self {
            place: published.place(),
            service: published.service.clone().unwrap_or_default(),
            who: published.owner.clone().unwrap_or_else(|| "published".to_owned()),
            details,
            gpu: false,
            loopback: false,
            reach: cells(&published.reach, zones),
        }
    }

    fn head(&self, out: &mut String) {
        let gpu = if self.gpu { " <span class=\"gpu\">GPU</span>" } else { "" };
        let _ = write!(
            out,
            "<details><summary><code>{}</code> {} <span class=\"who\">{}</span>{gpu}</summary><dl>",
            escape(&self.place),
            escape(&self.service),
            escape(&self.who),
        );
        for (name, value) in &self.details {
            let _ = write!(out, "<dt>{name}</dt><dd>{}</dd>", escape(value));
        }
        out.push_str("</dl></details>");
    }
}

fn cells(reach: &[ReachRecord], zones: &[ZoneRecord]) -> Vec<Cell> {
    let of_zone = |zone: &ZoneRecord| match reach.iter().find(|reach| reach.zone == zone.zone) {
        None => Cell { class: "nobody", words: "nobody".to_owned() },
        Some(reach) => {
            let class = match degree(std::slice::from_ref(reach), &std::net::IpAddr::from([0, 0, 0, 0])) {
                Degree::Anybody => "anyone",
                Degree::Some | Degree::Nobody | Degree::ThisHost => "some",
            };
            Cell { class, words: reach.peers() }
        }
    };
    zones.iter().map(of_zone).collect()
}

/// Text for HTML, in elements and in attributes with double quotes. Names of processes are whatever somebody likes; control characters
/// have no place in HTML.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            other if other.is_control() => out.push('\u{fffd}'),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_a_name_becomes_markup() {
        assert_eq!(
            escape("<script>alert('x')</script>&\"\u{1b}[31m"),
            "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&amp;&quot;\u{fffd}[31m"
        );
    }
}
