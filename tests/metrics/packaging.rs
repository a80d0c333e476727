//! What comes with the metrics: the rules, the runbook and the dashboard name only what there is.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::ask::promtool;
use super::golden::names;

fn at(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(at(path)).unwrap()
}

/// What Prometheus itself adds.
const ITS_OWN: [&str; 1] = ["up"];
/// Words of nodewall_ that are no series: recorded by no rule of ours.
fn unknown_series(text: &str) -> BTreeSet<String> {
    let known = names();
    let is_part = |next: char| next.is_ascii_alphanumeric() || next == '_';
    text.split(|next| !is_part(next))
        .filter(|word| word.starts_with("nodewall_"))
        .filter(|word| !known.contains(*word) && !ITS_OWN.contains(word))
        .map(str::to_owned)
        .collect()
}

/// The alerts of the rules file by name, each with its lines.
fn alerts() -> BTreeMap<String, String> {
    let rules = read("packaging/prometheus/nodewall.rules.yml");
    rules
        .split("      - alert: ")
        .skip(1)
        .map(|rest| {
            let (name, rest) = rest.split_once('\n').unwrap();
            (name.to_owned(), rest.to_owned())
        })
        .collect()
}

#[test]
fn promtool_takes_the_rules_and_each_alert_fires_on_what_it_is_for() {
    let (rules, tests) = (at("packaging/prometheus/nodewall.rules.yml"), at("packaging/prometheus/nodewall.test.yml"));
    for arguments in [["check", "rules", rules.to_str().unwrap()], ["test", "rules", tests.to_str().unwrap()]] {
        if let Some((good, words)) = promtool(&arguments, "") {
            assert!(good, "{words}");
        }
    }
    let tested = read("packaging/prometheus/nodewall.test.yml");
    let untested: Vec<String> = alerts()
        .into_keys()
        .filter(|name| !tested.contains(&format!("alertname: {name}\n        exp_alerts")))
        .collect();
    assert_eq!(untested, Vec::<String>::new());
    if let Some((good, words)) = promtool(
        &["check", "config", "--syntax-only", at("packaging/prometheus/scrape.example.yml").to_str().unwrap()],
        "",
    ) {
        assert!(good, "{words}");
    }
}

#[test]
fn rules_name_only_series_that_there_are() {
    assert!(names().len() > 40, "{:?}", names());
    assert_eq!(unknown_series(&read("packaging/prometheus/nodewall.rules.yml")), BTreeSet::new());
    assert_eq!(unknown_series("rate(nodewall_no_such_total[5m])"), ["nodewall_no_such_total".to_owned()].into());
}

#[test]
fn each_alert_has_its_entry_in_the_runbook_and_each_command_exists() {
    let runbook = read("docs/runbook.md");
    let entries: BTreeMap<&str, &str> =
        runbook.split("\n## ").skip(1).map(|entry| entry.split_once('\n').unwrap()).collect();
    let alerts = alerts();
    assert!(alerts.len() >= 20);
    let named: BTreeSet<&str> = alerts.keys().map(String::as_str).collect();
    assert_eq!(entries.keys().copied().collect::<BTreeSet<_>>(), named, "an entry for each alert, and no other");
    for (name, text) in &alerts {
        let anchor = format!("docs/runbook.md#{}\n", name.to_lowercase());
        assert!(text.contains(&anchor), "{name} points to {anchor}: {text}");
        for part in ["**Means:**", "**Look at:**", "**Do:**"] {
            assert!(entries[name.as_str()].contains(part), "{name} has no {part}");
        }
    }
    let command = nodewall::cli::command();
    let mut checked = 0;
    for code in runbook.split('`').skip(1).step_by(2) {
        let mut words = code.split_whitespace();
        if words.next() != Some("nodewall") {
            continue;
        }
        let mut part = &command;
        for word in words {
            if let Some(long) = word.strip_prefix("--") {
                let long = long.split('=').next().unwrap();
                let known = [part, &command]
                    .iter()
                    .any(|part| part.get_arguments().any(|known| known.get_long() == Some(long)));
                assert!(known, "`{code}`: there is no --{long}");
            } else if let Some(sub) = part.find_subcommand(word) {
                part = sub;
            }
        }
        // What follows the name of a command are its arguments.
        assert!(!std::ptr::eq(part, &command), "`{code}` is no command");
        checked += 1;
    }
    assert!(checked >= 20, "{checked}");
    assert_eq!(unknown_series(&runbook), BTreeSet::new());
}

#[test]
fn the_dashboard_names_only_series_that_there_are() {
    let dashboard: Value = serde_json::from_str(&read("packaging/grafana/nodewall.json")).unwrap();
    let (mut queries, mut ids) = (Vec::new(), BTreeSet::new());
    let mut panels = dashboard["panels"].as_array().unwrap().clone();
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    for panel in panels.iter_mut() {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{panel}");
        let title = panel["title"].as_str().unwrap();
        if panel["type"] == "row" {
            continue;
        }
        assert!(!panel["description"].as_str().unwrap_or_default().is_empty(), "{title} says nothing");
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty(), "{title}");
        queries.extend(targets.iter().map(|target| target["expr"].as_str().unwrap().to_owned()));
    }
    queries.extend(variables.iter().filter_map(|variable| variable["query"].as_str()).map(str::to_owned));
    let all = queries.join("\n");
    assert!(queries.len() > 15, "{all}");
    assert_eq!(unknown_series(&all), BTreeSet::new());
    // Everything there is to see is shown somewhere, but for what only explains or is for scripts.
    let bases = |name: &str| {
        let ends = ["_bucket", "_count", "_sum"];
        ends.iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name).to_owned()
    };
    let unseen: BTreeSet<String> =
        names().iter().map(|name| bases(name)).filter(|name| !all.contains(name.as_str())).collect();
    let left_out: BTreeSet<String> = [
        "nodewall_policy_in_force_timestamp_seconds",
        "nodewall_store_damages",
        "nodewall_rule_bytes_total",
        "nodewall_exposed_duration_seconds",
        "nodewall_process_threads",
        "nodewall_process_start_time_seconds",
    ]
    .map(str::to_owned)
    .into();
    assert_eq!(unseen, left_out);
    // Queries that Prometheus cannot read are found by making rules of them.
    let unquoted = |query: &String| {
        query.replace("$__rate_interval", "5m").replace("$instance", "a").replace("$__range", "1h").replace('\'', "''")
    };
    let records: String = queries
        .iter()
        .filter(|query| !query.starts_with("label_values") && *query != "prometheus")
        .enumerate()
        .map(|(number, query)| format!("      - record: q{number}\n        expr: '{}'\n", unquoted(query)))
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let rules = folder.path().join("rules.yml");
    std::fs::write(&rules, format!("groups:\n  - name: dashboard\n    rules:\n{records}")).unwrap();
    if let Some((good, words)) = promtool(&["check", "rules", rules.to_str().unwrap()], "") {
        assert!(good, "{words}");
    }
}

#[test]
fn each_metric_has_its_line_and_its_bound_in_the_docs() {
    let text = read("docs/metrics.md");
    let listed: BTreeSet<String> = text
        .lines()
        .filter_map(|line| line.strip_prefix("| `nodewall_"))
        .map(|rest| format!("nodewall_{}", rest.split('`').next().unwrap()))
        .collect();
    let ends = ["_bucket", "_count", "_sum"];
    let base = |name: String| ends.iter().find_map(|end| name.strip_suffix(end)).map_or(name.clone(), str::to_owned);
    let there: BTreeSet<String> = names().into_iter().map(base).collect();
    assert_eq!(listed, there);
}
