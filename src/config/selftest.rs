//! `[selftest]` of nodewall.toml: what is to work with every change that confirms itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use super::duration;
use crate::policy::parse;
use crate::reconcile::selftest::{Attempt, PROBE_TIME, Probe};
use crate::text::finding::{Code, Finding};
use crate::text::place::Place;
use crate::text::read::{Fields, Reader, quoted};
use crate::text::tree::Node;

/// The longest time for one probe: two rounds of them have to be over while `nodewall apply` still waits for an answer.
const LONGEST: Duration = Duration::from_secs(5);
/// All probes are tried at once.
const MOST_PROBES: usize = 64;
/// A command and its arguments.
const MOST_WORDS: usize = 64;
/// The longest path of a URL, in bytes.
const LONGEST_PATH: usize = 1024;

/// The probes of `[[selftest.probe]]`; of one with an error there is only the finding.
pub(super) fn probes<'t>(reader: &mut Reader<'t>, node: &Node<'t>) -> Vec<Probe> {
    let Some(mut fields) = reader.table(node, "[selftest]") else { return Vec::new() };
    let list = fields.get("probe");
    let items = list.and_then(|list| reader.list(list, "selftest.probe")).unwrap_or_default();
    if let (Some(list), true) = (list, items.len() > MOST_PROBES) {
        reader.error(Code::Value, list.span, format!("there are more than {MOST_PROBES} probes"));
    }
    let mut found: Vec<(Probe, Place)> = Vec::new();
    for item in items.iter().take(MOST_PROBES) {
        let place = reader.place(item.span);
        let Some(probe) = probe(reader, item) else { continue };
        if let Some((_, first)) = found.iter().find(|(earlier, _)| earlier.name == probe.name) {
            let message = format!("the name \"{}\" is taken by another probe", probe.name);
            reader.report(Finding::error(Code::DuplicateName, &place, message).related(first, "the first"));
            continue;
        }
        found.push((probe, place));
    }
    fields.finish(reader, "[selftest]");
    found.into_iter().map(|(probe, _)| probe).collect()
}

/// `name`, one of `tcp`, `http` and `command`, and `timeout`.
fn probe<'t>(reader: &mut Reader<'t>, node: &Node<'t>) -> Option<Probe> {
    let what = "[[selftest.probe]]";
    let mut fields = reader.table(node, what)?;
    let name = fields.need(reader, "name", what);
    let name = name.and_then(|name| parse::name(reader, name, "the name of a probe"));
    let attempt = attempt(reader, &mut fields, node);
    let timeout = match fields.get("timeout") {
        Some(node) => time(reader, node),
        None => Some(PROBE_TIME),
    };
    fields.finish(reader, what);
    Some(Probe { name: name?, what: attempt?, timeout: timeout?, optional: false })
}

fn attempt<'t>(reader: &mut Reader<'t>, fields: &mut Fields<'_, 't>, node: &Node<'t>) -> Option<Attempt> {
    let given = [fields.entry("tcp"), fields.entry("http"), fields.entry("command")];
    let mut given = given.into_iter().flatten();
    let Some(entry) = given.next() else {
        let help =
            "write tcp = \"10.0.0.9:443\", http = \"http://127.0.0.1:9100/\" or command = [\"/usr/local/bin/probe\"]";
        reader.error_with_help(Code::MissingKey, node.span, "a probe without `tcp`, `http` or `command`", help);
        return None;
    };
    let mut alone = true;
    for other in given {
        let message = format!("a probe has either `{}` or `{}`", entry.key, other.key);
        reader.error_with_help(Code::Conflict, other.span, message, "write one [[selftest.probe]] for each");
        alone = false;
    }
    let attempt = match &*entry.key {
        "tcp" => tcp(reader, &entry.node),
        "http" => http(reader, &entry.node),
        _ => command(reader, &entry.node),
    };
    attempt.filter(|_| alone)
}

fn time<'t>(reader: &mut Reader<'t>, node: &Node<'t>) -> Option<Duration> {
    let text = reader.string(node, "timeout")?;
    match duration::parse(text) {
        Ok(time) if time <= LONGEST => Some(time),
        Ok(_) => {
            reader.error(Code::Value, node.span, format!("a probe takes at most {} s", LONGEST.as_secs()));
            None
        }
        Err(message) => {
            reader.error_with_help(Code::Value, node.span, message, "write \"2s\"");
            None
        }
    }
}

/// "10.0.0.9:443", "[fd00::9]:443", "localhost:443".
fn tcp<'t>(reader: &mut Reader<'t>, node: &Node<'t>) -> Option<Attempt> {
    let text = reader.string(node, "tcp")?;
    let servers = match text.rsplit_once(':') {
        Some((host, port)) => servers(host, port),
        None => None,
    };
    if servers.is_none() {
        let message = format!("{} is no address with a port", quoted(text));
        reader.error_with_help(
            Code::Value,
            node.span,
            message,
            format!("write \"10.0.0.9:443\" or \"[fd00::9]:443\"; {NAMES}"),
        );
    }
    servers.map(Attempt::Tcp)
}

/// Why a name is none.
const NAMES: &str = "names other than localhost are not looked up, as their answer is not this host's to give";

/// Whom a host and a port mean: the two of localhost, or one.
fn servers(host: &str, port: &str) -> Option<Vec<SocketAddr>> {
    let port: u16 = port.parse().ok().filter(|number| *number > 0 && !port.starts_with('+'))?;
    let addresses: Vec<IpAddr> = if host == "localhost" {
        vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]
    } else if let Some(v6) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        vec![v6.parse::<Ipv6Addr>().ok()?.into()]
    } else {
        vec![host.parse::<Ipv4Addr>().ok()?.into()]
    };
    let usable = addresses.iter().all(|address| !address.is_unspecified() && !address.is_multicast());
    usable.then(|| addresses.into_iter().map(|address| SocketAddr::new(address, port)).collect())
}

/// "http://10.0.0.9:9100/-/healthy"; without a port 80.
fn http<'t>(reader: &mut Reader<'t>, node: &Node<'t>) -> Option<Attempt> {
    let text = reader.string(node, "http")?;
    let attempt = url(text);
    if attempt.is_none() {
        let message = format!("{} is no URL that a probe can ask", quoted(text));
        let help = match text.starts_with("https:") {
            true => "there is no TLS here; write `tcp`, or a `command` that speaks it".to_owned(),
            false => format!("write \"http://10.0.0.9:9100/path\" or \"http://[fd00::9]/path\"; {NAMES}"),
        };
        reader.error_with_help(Code::Value, node.span, message, help);
    }
    attempt
}

fn url(text: &str) -> Option<Attempt> {
    let rest = text.strip_prefix("http://")?;
    let (host, path) = match rest.find(['/', '?', '#']) {
        Some(at) => rest.split_at(at),
        None => (rest, "/"),
    };
    // What goes into the request's first line is neither to end it nor to add to it.
    let plain = path.len() <= LONGEST_PATH && path.bytes().all(|byte| byte.is_ascii_graphic()) && !path.contains('#');
    if !plain || !path.starts_with('/') {
        return None;
    }
    let servers = match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => servers(name, port)?,
        _ => servers(host, "80")?,
    };
    Some(Attempt::Http { servers, host: host.to_owned(), path: path.to_owned() })
}

/// A program by its path, and its arguments as they are.
fn command<'t>(reader: &mut Reader<'t>, node: &Node<'t>) -> Option<Attempt> {
    let before = reader.errors();
    let items = parse::some(reader, node, "command");
    if items.len() > MOST_WORDS {
        reader.error(Code::Value, node.span, format!("a command of more than {MOST_WORDS} words"));
    }
    let mut words = Vec::new();
    for item in items {
        let Some(word) = reader.string(item, "a word of a command") else { continue };
        if word.contains('\0') {
            reader.error(Code::Value, item.span, "a word of a command with a NUL in it");
        } else if words.is_empty() && !word.starts_with('/') {
            let message = format!("{} is no absolute path", quoted(word));
            reader.error_with_help(
                Code::Value,
                item.span,
                message,
                "name the program by its path; no shell looks for it",
            );
        }
        words.push(word.to_owned());
    }
    (reader.errors() == before && !words.is_empty()).then_some(Attempt::Command(words))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::decode_text;
    use super::*;
    use crate::text::render::line;

    fn decoded(text: &str) -> (Vec<Probe>, Vec<String>) {
        let (config, findings) = decode_text("nodewall.toml", text);
        (config.probes, findings.iter().map(line).collect())
    }

    #[test]
    fn each_kind_of_probe_is_read() {
        let (probes, findings) = decoded(
            r#"
[[selftest.probe]]
name = "model-store"
tcp = "10.0.0.9:443"
[[selftest.probe]]
name = "six"
tcp = "[fd00::9]:443"
timeout = "5s"
[[selftest.probe]]
name = "exporter"
http = "http://localhost:9100/-/healthy?a=b"
[[selftest.probe]]
name = "plain"
http = "http://[fd00::9]"
[[selftest.probe]]
name = "own"
command = ["/usr/local/bin/probe", "-x", ""]
"#,
        );
        assert_eq!(findings, Vec::<String>::new());
        let end = |text: &str| -> SocketAddr { text.parse().unwrap() };
        let probe = |name: &str, what, seconds| Probe {
            name: name.to_owned(),
            what,
            timeout: Duration::from_secs(seconds),
            optional: false,
        };
        let http =
            |servers, host: &str, path: &str| Attempt::Http { servers, host: host.to_owned(), path: path.to_owned() };
        assert_eq!(
            probes,
            [
                probe("model-store", Attempt::Tcp(vec![end("10.0.0.9:443")]), 2),
                probe("six", Attempt::Tcp(vec![end("[fd00::9]:443")]), 5),
                probe(
                    "exporter",
                    http(vec![end("127.0.0.1:9100"), end("[::1]:9100")], "localhost:9100", "/-/healthy?a=b"),
                    2
                ),
                probe("plain", http(vec![end("[fd00::9]:80")], "[fd00::9]", "/"), 2),
                probe("own", Attempt::Command(["/usr/local/bin/probe", "-x", ""].map(str::to_owned).into()), 2),
            ]
        );
    }

    #[track_caller]
    fn refused(line: &str, wanted: &str) {
        let text = format!("[[selftest.probe]]\nname = \"x\"\n{line}\n");
        let (probes, findings) = decoded(&text);
        assert_eq!(probes, [], "{line}");
        assert_eq!(findings.len(), 1, "{line}: {findings:?}");
        assert!(findings[0].starts_with(&format!("nodewall.toml:{wanted}")), "{line}: {findings:?}");
    }

    #[test]
    fn what_no_probe_can_do_is_found_with_its_place() {
        for end in [
            "10.0.0.9",
            "10.0.0.9:0",
            "10.0.0.9:65536",
            "10.0.0.9:+1",
            "fd00::9:443",
            "[fd00::9]",
            "[10.0.0.9]:443",
            "0.0.0.0:443",
            "[::]:443",
            "224.0.0.1:443",
            "store.example.org:443",
            "",
        ] {
            refused(&format!("tcp = \"{end}\""), "3:7: error[value]");
        }
        for url in [
            "10.0.0.9",
            "https://10.0.0.9/",
            "http://store.example.org/",
            "http://10.0.0.9:x/",
            "http://user@10.0.0.9/",
            "http://10.0.0.9/a b",
            "http://10.0.0.9/\\r\\nHost: x",
            "http://10.0.0.9/a#b",
            "http://10.0.0.9?a",
            "http://",
        ] {
            refused(&format!("http = \"{url}\""), "3:8: error[value]");
        }
        refused("command = []", "3:11: error[value]");
        refused("command = [\"probe\"]", "3:12: error[value]");
        refused("command = [\"/a\", \"b\\u0000\"]", "3:18: error[value]");
        refused("command = \"/a\"", "3:11: error[type]");
        refused("command = [\"/a\", 1]", "3:18: error[type]");
        refused("tcp = \"10.0.0.9:443\"\ntimeout = \"6s\"", "4:11: error[value]");
        refused("tcp = \"10.0.0.9:443\"\ntimeout = 2", "4:11: error[type]");
        refused("tcp = \"10.0.0.9:443\"\nhttp = \"http://10.0.0.9/\"", "4:1: error[conflict]");
        refused("", "1:1: error[missing-key]");
        let (_, findings) = decoded("[[selftest.probe]]\nname = \"x\"\ncommand = [\"/a\"]\ntimeuot = \"1s\"\n");
        assert!(findings[0].starts_with("nodewall.toml:4:1: error[unknown-key]"), "{findings:?}");
    }

    #[test]
    fn names_are_unique_and_there_are_not_too_many() {
        let one = |name: &str| format!("[[selftest.probe]]\nname = \"{name}\"\ntcp = \"10.0.0.9:443\"\n");
        let (probes, findings) = decoded(&format!("{}{}", one("a"), one("a")));
        assert_eq!((probes.len(), findings.len()), (1, 1));
        assert!(findings[0].starts_with("nodewall.toml:4:1: error[duplicate-name]"), "{findings:?}");
        let (_, findings) = decoded(&one("cluster API"));
        assert!(findings[0].starts_with("nodewall.toml:2:8: error[value]"), "{findings:?}");
        let many: String = (0..=MOST_PROBES).map(|number| one(&format!("p{number}"))).collect();
        let (probes, findings) = decoded(&many);
        assert_eq!((probes.len(), findings.len()), (MOST_PROBES, 1), "{findings:?}");
        assert_eq!(decoded("[selftest]\n"), (Vec::new(), Vec::new()));
    }
}
