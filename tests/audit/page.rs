//! The page of `nodewall audit --html` in a real Chromium that has no network.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::lab::daemon::Node;
use crate::lab::isolated;
use crate::listeners::{Process, all, start};
use crate::{POLICY, PUBLISHING, peers, publish};

const CHROMIUM: &str = "/usr/bin/chromium";

/// A process can be called this.
const HOSTILE: &str = "<img src=x>";

const ASKED_FOR: &str = "http://127.0.0.1:4790/x.png";

/// In a page that lets it: an image that is loaded, one that is asked for, and a script that runs.
const INTRUDER: &str = "<img src=\"data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7\"><img src=\"http://127.0.0.1:4790/x.png\">\
                        <script>document.title = 'it ran'</script>\
                        <p style=\"width: 3000px; color: #777; background: #888\">hard to read</p></main>";

/// Whether there is a Chromium. CI must not skip this.
fn has_chromium(name: &str) -> bool {
    let there = Path::new(CHROMIUM).exists();
    if !there {
        assert!(std::env::var_os("CI").is_none(), "{name} needs {CHROMIUM}, and CI skips nothing");
        println!("SKIPPED {name}: needs {CHROMIUM}");
    }
    there
}

/// What page.js finds in these documents, in one run of the browser in the namespace of this thread.
fn browse(documents: &Value) -> Vec<Value> {
    let folder = tempfile::tempdir().unwrap();
    let wrapper = folder.path().join("wrapper.html");
    let documents = documents.to_string().replace('<', "\\u003c");
    let script = include_str!("page.js");
    let html = format!(
        "<!doctype html>\n<meta charset=\"utf-8\">\n<body>\n<script>const documents = {documents};\n{script}</script>\n"
    );
    std::fs::write(&wrapper, html).unwrap();
    let mut chromium = Command::new("timeout");
    chromium.args(["200", CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]);
    chromium.args(["--disable-background-networking", "--disable-component-update", "--disable-sync"]);
    chromium.arg(format!("--user-data-dir={}", folder.path().join("profile").display()));
    chromium.args(["--virtual-time-budget=20000", "--dump-dom"]).arg(format!("file://{}", wrapper.display()));
    let output = chromium.env("HOME", folder.path()).output().unwrap();
    let dom = String::from_utf8(output.stdout).unwrap();
    let said = || format!("{}\n{dom}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    let json = dom.split_once("<pre>").and_then(|(_, rest)| rest.split_once("</pre>")).map(|(json, _)| json);
    let found: Value = serde_json::from_str(json.unwrap_or_else(|| panic!("no result: {}", said()))).unwrap();
    assert_eq!(found["error"], Value::Null, "{found:#}");
    found["results"].as_array().unwrap().clone()
}

fn texts(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|one| one.as_str().unwrap()).collect()
}

/// Where something of the report listens, as people write it.
fn place(record: &Value) -> String {
    let transport = record["transport"].as_str().unwrap();
    if let Some(ports) = record["ports"].as_str() {
        let start = match record["family"].as_str() {
            Some("ipv4") => "0.0.0.0",
            Some(_) => "[::]",
            None => "*",
        };
        return format!("{start}:{ports}/{transport}");
    }
    let (address, port) = (record["address"].as_str().unwrap(), &record["port"]);
    let device = record["device"].as_str().map(|device| format!("%{device}")).unwrap_or_default();
    match address.contains(':') {
        true if record["both_families"] == true => format!("*{device}:{port}/{transport}"),
        true => format!("[{address}{device}]:{port}/{transport}"),
        false => format!("{address}{device}:{port}/{transport}"),
    }
}

/// "sshd (812)", or where it leads.
fn who(record: &Value) -> String {
    match &record["processes"][0] {
        Value::Null => format!("to {}", record["target"].as_str().unwrap()),
        process => format!("{} ({})", process["name"].as_str().unwrap(), process["pid"]),
    }
}

/// The words of a row's cells, as the report has them.
fn cells(record: &Value, zones: &[&str]) -> Vec<String> {
    let reach = record["reach"].as_array().unwrap();
    let cell = |zone: &&str| {
        let of_zone = reach.iter().find(|reach| reach["zone"] == **zone);
        let text = |peer: &Value| peer["text"].as_str().unwrap().to_owned();
        let from = |reach: &Value| reach["from"].as_array().unwrap().iter().map(text).collect::<Vec<_>>().join(", ");
        of_zone.map_or("nobody".to_owned(), from)
    };
    zones.iter().map(cell).collect()
}

/// The page tells what the report tells.
fn tells_the_same(seen: &Value, report: &Value) {
    let node = report["node"].as_str().unwrap();
    assert_eq!(seen["title"], format!("Exposure of {node}"));
    assert_eq!(seen["headings"][0], seen["title"]);
    let findings = report["findings"].as_array().unwrap();
    let headings = texts(&seen["headings"]);
    assert!(headings[1].starts_with("Findings: ") && headings.contains(&"Who reaches what, by which interfaces"));
    let shown = seen["findings"].as_array().unwrap();
    assert!(shown.len() == findings.len() && shown.len() > 5, "{shown:#?}");
    for (shown, finding) in shown.iter().zip(findings) {
        assert_eq!(shown[0], finding["severity"]);
        let without = |text: &Value| text.as_str().unwrap().replace('`', "");
        for part in ["message", "help", "code"] {
            assert!(shown[1].as_str().unwrap().contains(&without(&finding[part])), "{shown} {finding}");
        }
    }
    let zones: Vec<&str> =
        report["zones"].as_array().unwrap().iter().map(|zone| zone["zone"].as_str().unwrap()).collect();
    let columns = texts(&seen["columns"]);
    assert_eq!(columns[1..], zones);
    assert!(zones.len() >= 4, "{zones:?}");
    let (listeners, published) = (report["listeners"].as_array().unwrap(), report["published"].as_array().unwrap());
    let here = |record: &&Value| {
        let address = record["address"].as_str().unwrap_or_default();
        record["reach"] == json!([]) && (address.starts_with("127.") || address == "::1")
    };
    let (loopback, outside): (Vec<&Value>, Vec<&Value>) = listeners.iter().chain(published).partition(here);
    let rows = seen["rows"].as_array().unwrap();
    assert_eq!((rows.len(), texts(&seen["loopback"]).len()), (outside.len(), loopback.len()));
    assert!(loopback.len() >= 5 && outside.len() >= 29 && !published.is_empty());
    for record in outside {
        let (place, who) = (place(record), who(record));
        let is_it = |row: &&Value| {
            let head = row["head"].as_str().unwrap();
            head.starts_with(&format!("{place} ")) && head.contains(&who)
        };
        let mut found = rows.iter().filter(is_it);
        let row = found.next().unwrap_or_else(|| panic!("{place} of {who} is no row: {rows:#?}"));
        assert!(found.next().is_none(), "{place} of {who} is there twice");
        let shown: Vec<&str> =
            row["cells"].as_array().unwrap().iter().map(|cell| cell["words"].as_str().unwrap()).collect();
        assert_eq!(shown, cells(record, &zones), "{place}");
        assert_eq!(row["head"].as_str().unwrap().ends_with("GPU"), record["gpu"] == true, "{row}");
    }
    // The most exposed first.
    let by_anyone =
        |row: &Value| row["cells"].as_array().unwrap().iter().filter(|cell| cell["class"] == "anyone").count();
    let exposed: Vec<usize> = rows.iter().map(by_anyone).collect();
    assert!(exposed.is_sorted_by(|one, next| one >= next), "{exposed:?}");
    assert!(exposed[0] >= 2 && exposed.last() == Some(&0), "{exposed:?}");
    // Numbers that add up.
    let counts = texts(&seen["counts"]);
    let number = |count: &&str| count.split_once(' ').unwrap().0.parse::<usize>().unwrap();
    assert_eq!(counts.iter().map(number).sum::<usize>(), listeners.len() + published.len());
    assert_eq!(number(&counts[0]), exposed.iter().filter(|number| **number > 0).count());
    // The one with a hostile name is a row with that name, its arguments and its device.
    let hostile: Vec<&Value> = rows.iter().filter(|row| row["head"].as_str().unwrap().contains(HOSTILE)).collect();
    assert!(hostile.len() == 1 && hostile[0]["head"].as_str().unwrap().starts_with("0.0.0.0:31337/tcp"), "{hostile:?}");
    let has = |details: &&Value| {
        let details = texts(details);
        details.iter().any(|detail| detail.starts_with(HOSTILE)) && details.contains(&"/dev/nvidia3")
    };
    assert_eq!(seen["details"].as_array().unwrap().iter().filter(has).count(), 1, "{:#}", seen["details"]);
}

/// It is easily read, and loads nothing.
fn is_calm(seen: &Value) {
    let context = format!("{} at {} px", seen["scheme"], seen["width"]);
    assert_eq!(seen["dark"], seen["scheme"] == "dark", "{context}");
    let colours: BTreeSet<&str> = texts(&seen["colours"]).into_iter().collect();
    assert_eq!(colours.len(), 3, "{context}: {colours:?}");
    let contrast = &seen["contrast"];
    assert!(
        contrast["ratio"].as_f64().unwrap() >= 4.5 && contrast["asked"].as_u64() > Some(200),
        "{context}: {contrast}"
    );
    println!("{context}: contrast at least {contrast}");
    for nothing in ["resources", "loaders", "handlers"] {
        assert_eq!(seen[nothing], json!([]), "{context}: {nothing}");
    }
    let overflow = &seen["overflow"];
    assert_eq!((&overflow["page"], &overflow["elements"]), (&json!(0), &json!([])), "{context}: {overflow}");
    let (closed, opened) = (&seen["closed"], &seen["opened"]);
    assert_eq!((&closed["open"], &closed["visible"]), (&json!(0), &json!(0)), "{context}");
    assert_eq!(opened["open"], closed["details"], "{context}");
    // All but the list of those on loopback have one.
    assert_eq!(opened["visible"].as_u64().map(|dl| dl + 1), closed["details"].as_u64(), "{context}: {opened} {closed}");
}

#[test]
fn a_browser_shows_what_the_report_says_and_loads_nothing() {
    if !has_chromium("audit-page") {
        return;
    }
    isolated("audit-page", || {
        let _peers = peers();
        publish();
        let hostile = Process { name: HOSTILE, places: vec!["tcp:31337"], gpu: Some("/dev/nvidia3"), user: 0 };
        let processes = start(&[all(), vec![hostile]].concat());
        let node = Node::new(&[("10-audit.toml", &format!("{POLICY}{PUBLISHING}"))]);
        let report: Value = serde_json::from_str(&node.must(&["audit", "--json"])).unwrap();
        let page = node.must(&["audit", "--html"]);
        drop(processes);
        let document = |html: &str, width: u32, scheme: &str| json!({ "html": html, "width": width, "scheme": scheme });
        // What the measures are worth: the same page with an intruder, which its policy stops, and without that policy.
        let intruded = page.replacen("</main>", INTRUDER, 1);
        let policy = page.lines().find(|line| line.contains("Content-Security-Policy")).unwrap();
        let open = intruded.replacen(policy, "", 1);
        let seen = browse(&json!([
            document(&page, 1280, "light"),
            document(&page, 1280, "dark"),
            document(&page, 390, "light"),
            document(&page, 390, "dark"),
            document(&intruded, 1280, "light"),
            document(&open, 1280, "light"),
        ]));
        let [wide, wide_dark, narrow, narrow_dark, intruded, open] = seen.as_slice() else { panic!("{}", seen.len()) };
        for seen in [wide, wide_dark, narrow, narrow_dark] {
            tells_the_same(seen, &report);
            is_calm(seen);
        }
        assert_ne!((&wide["paper"], &wide["colours"]), (&wide_dark["paper"], &wide_dark["colours"]));
        assert_eq!(wide["overflow"]["map"], json!([0]), "all of the map is seen at once");
        assert!(narrow["overflow"]["map"][0].as_u64() > Some(0), "it scrolls in its frame: {}", narrow["overflow"]);
        assert_eq!(
            (&intruded["title"], &intruded["images"]),
            (&wide["title"], &json!([0, 0])),
            "nothing loads or runs"
        );
        assert_eq!((&open["title"], &open["images"]), (&json!("it ran"), &json!([1, 0])), "but for the page's policy");
        for seen in [intruded, open] {
            assert!(texts(&seen["resources"]).contains(&ASKED_FOR), "also what is not loaded: {}", seen["resources"]);
        }
        assert!(intruded["contrast"]["ratio"].as_f64() < Some(2.0), "{}", intruded["contrast"]);
        assert!(intruded["overflow"]["page"].as_u64() > Some(0) && intruded["overflow"]["elements"] == json!(["P"]));
        assert_eq!(intruded["loaders"], json!(["IMG", "IMG", "SCRIPT"]));
    });
}
