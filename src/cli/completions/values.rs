//! What can be written at the end of a command line: options by clap, values by this host and its configuration.

use std::collections::BTreeMap;
use std::env;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use clap::{Arg, Command};

use super::words::{Asked, Wanted, asked, summary};
use crate::cli::{Color, DEFAULT_CONFIG, Options};
use crate::config;
use crate::daemon::documents::{self, Documents};
use crate::net::protocol::{ICMP_TYPES, ICMPV6_TYPES, Protocol};
use crate::policy::model::{HostPolicy, Mode};
use crate::policy::preset;
use crate::source::Trust;
use crate::source::object::Kind;
use crate::store::{Directory, Store};
use crate::traffic::Verdict;

/// What a shell is told: whether names of files are wanted, and else the words with what each is.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Candidates {
    files: Option<Files>,
    words: Vec<(String, String)>,
}

/// Names that shells know better than we do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Files {
    Any,
    Directories,
}

/// A line that says what follows, then a line for each word: the word, a tab, and what it is.
impl fmt::Display for Candidates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.files {
            None => "words",
            Some(Files::Any) => "files",
            Some(Files::Directories) => "directories",
        };
        writeln!(f, "{kind}")?;
        self.words.iter().try_for_each(|(word, what)| writeln!(f, "{word}\t{what}"))
    }
}

/// Where the values of an argument come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Values {
    /// Its words are written in the program.
    Possible,
    Files(Files),
    /// Interfaces of the host, or of the copy of another one.
    Interfaces,
    /// Policies of the documents, and the defaults where `true`.
    Policies(bool),
    /// Sets of the documents, and nodes of clusters.
    Peers,
    Services,
    Presets,
    Generations,
    Nodes,
    Verdicts,
    Directions,
    Protocols,
    IcmpTypes,
    Kinds,
    Objects,
    Accounts(&'static str),
    Units,
    Confirmations,
    Ago,
    Terms,
    /// Nobody can guess them.
    Unknown,
}

/// Where the values of an argument of a command come from: by its long name, or that of the place where it stands.
fn values_of(command: &str, argument: &Arg) -> Values {
    if !argument.get_possible_values().is_empty() {
        return Values::Possible;
    }
    let name = argument.get_long().unwrap_or_else(|| argument.get_id().as_str());
    match (command, name) {
        (_, "config" | "kubeconfig" | "token-file" | "ca-file" | "pcap" | "diff" | "output") => {
            Values::Files(Files::Any)
        }
        (_, "paths" | "files" | "drafts") => Values::Files(Files::Any),
        (_, "policy-dir" | "root" | "state-directory") => Values::Files(Files::Directories),
        (_, "in" | "out" | "interface") => Values::Interfaces,
        ("audit-report", "policy") => Values::Policies(false),
        (_, "policy") => Values::Policies(true),
        (_, "peer") => Values::Peers,
        (_, "service") => Values::Services,
        ("show" | "enable", "name") => Values::Presets,
        ("rollback", "generation") => Values::Generations,
        (_, "node") => Values::Nodes,
        (_, "verdict") => Values::Verdicts,
        (_, "direction") => Values::Directions,
        (_, "proto") => Values::Protocols,
        (_, "icmp") => Values::IcmpTypes,
        ("simulate", "kind") => Values::Kinds,
        ("crd", "kind") => Values::Objects,
        (_, "user") => Values::Accounts("etc/passwd"),
        (_, "group") => Values::Accounts("etc/group"),
        (_, "unit") => Values::Units,
        (_, "confirm") => Values::Confirmations,
        (_, "since" | "until") => Values::Ago,
        (_, "for" | "wait") => Values::Terms,
        _ => Values::Unknown,
    }
}

/// What the last of these words can be; `words` are those after the program's name.
pub(super) fn candidates(command: &Command, words: &[String]) -> Candidates {
    let mut command = command.clone();
    command.build();
    let Some(asked) = asked(&command, words) else { return Candidates::default() };
    let words = match &asked.wanted {
        Wanted::Command => {
            let shown = asked.command.get_subcommands().filter(|command| !command.is_hide_set());
            shown.map(|command| (command.get_name().to_owned(), summary(command.get_about()))).collect()
        }
        Wanted::Option(options) => options.iter().flat_map(|option| spellings(option)).collect(),
        Wanted::Value(argument) => match values_of(asked.command.get_name(), argument) {
            Values::Files(files) => return Candidates { files: Some(files), words: Vec::new() },
            values => Look::new(&asked).words(values, argument),
        },
    };
    let fits = |(word, _): &(String, String)| word.starts_with(&asked.current) && is_plain(word);
    let with_prefix = |(word, what)| (format!("{}{word}", asked.prefix), what);
    Candidates { files: None, words: words.into_iter().filter(fits).map(with_prefix).collect() }
}

fn spellings(option: &Arg) -> Vec<(String, String)> {
    let long = option.get_long().map(|long| format!("--{long}"));
    let short = option.get_short().map(|short| format!("-{short}"));
    long.into_iter().chain(short).map(|word| (word, summary(option.get_help()))).collect()
}

/// Whether a word means itself in every shell. A name from a file or a cluster must not be anything else.
fn is_plain(word: &str) -> bool {
    word.chars().all(|c| c.is_ascii_alphanumeric() || "_-.:/@%+,=#".contains(c)) && !word.starts_with('#')
}

/// This host and its configuration, as the line names them.
struct Look {
    options: Options,
    current: String,
}

impl Look {
    fn new(asked: &Asked<'_>) -> Self {
        let path = |long| asked.given(long).last().map(path);
        let options = Options {
            config: path("config").unwrap_or_else(|| PathBuf::from(DEFAULT_CONFIG)),
            policy_directories: asked.given("policy-dir").map(self::path).collect(),
            root: path("root"),
            node: None,
            json: false,
            color: Color::Never,
        };
        Self { options, current: asked.current.clone() }
    }

    fn words(&self, values: Values, argument: &Arg) -> Vec<(String, String)> {
        match values {
            Values::Possible => {
                let values = argument.get_possible_values();
                let shown = values.iter().filter(|value| !value.is_hide_set());
                shown.map(|value| (value.get_name().to_owned(), summary(value.get_help()))).collect()
            }
            Values::Files(_) | Values::Unknown => Vec::new(),
            Values::Interfaces => bare(self.names("sys/class/net")),
            Values::Policies(defaults) => {
                let documents = self.documents();
                let described = |policy: &HostPolicy| {
                    let audit = if policy.mode == Mode::Audit { ", audit mode" } else { "" };
                    (policy.name.clone(), format!("tier {}{audit}", policy.tier))
                };
                let known: BTreeMap<String, String> = documents.policy.policies.iter().map(described).collect();
                let default = defaults.then(|| ("default".to_owned(), "what no policy decides".to_owned()));
                known.into_iter().chain(default).collect()
            }
            Values::Peers => self.peers(),
            Values::Services => bare(self.documents().policy.services.into_keys()),
            Values::Presets => preset::ALL.iter().map(|preset| (preset.name.to_owned(), preset.summary())).collect(),
            Values::Generations => {
                let (config, ..) = config::load(&self.options.config, Trust::Anyone);
                let history = Store::new(Directory::existing(&config.state_directory)).history().unwrap_or_default();
                let usable = history.into_iter().filter_map(|entry| Some((entry.number, entry.generation.ok()?)));
                usable.map(|(number, kept)| (number.to_string(), format!("{} {}", kept.time, kept.source))).collect()
            }
            Values::Nodes => bare(self.documents().nodes.values().flat_map(|nodes| nodes.keys().cloned())),
            Values::Verdicts => bare(Verdict::ALL.map(|verdict| verdict.name().to_owned())),
            Values::Directions => words(&[("in", "the other side began"), ("out", "this host began")]),
            Values::Protocols => bare(Protocol::names().map(str::to_owned)),
            Values::IcmpTypes => {
                let version = |types: &[(&str, u8)], what: &str| -> Vec<_> {
                    types.iter().map(|(name, _)| ((*name).to_owned(), what.to_owned())).collect()
                };
                let both: BTreeMap<_, _> =
                    version(ICMPV6_TYPES, "ICMPv6").into_iter().chain(version(ICMP_TYPES, "ICMP")).collect();
                both.into_iter().collect()
            }
            Values::Kinds => words(&[
                ("bond", ""),
                ("bridge", ""),
                ("ipip", ""),
                ("macvlan", ""),
                ("veth", ""),
                ("vlan", ""),
                ("vxlan", ""),
                ("wireguard", ""),
            ]),
            Values::Objects => bare(Kind::ALL.map(|kind| kind.name().to_owned())),
            Values::Accounts(file) => {
                let text = fs::read_to_string(self.root().join(file)).unwrap_or_default();
                bare(text.lines().filter_map(|line| Some(line.split_once(':')?.0.to_owned())))
            }
            Values::Units => {
                let units =
                    ["", "system.slice"].into_iter().flat_map(|slice| self.names(&format!("sys/fs/cgroup/{slice}")));
                bare(units.filter(|name| name.ends_with(".service") || name.ends_with(".slice")))
            }
            Values::Confirmations => words(&[("auto", "by the self-test"), ("2m", ""), ("10m", "")]),
            Values::Ago => words(&[("15m", ""), ("1h", ""), ("24h", "")]),
            Values::Terms => words(&[("10m", ""), ("1h", ""), ("24h", "")]),
        }
    }

    fn documents(&self) -> Documents {
        documents::load(&self.options.whereabouts(&[]), Trust::Anyone)
    }

    fn root(&self) -> &Path {
        self.options.root.as_deref().unwrap_or(Path::new("/"))
    }

    /// The names in a directory of the host, sorted.
    fn names(&self, directory: &str) -> Vec<String> {
        let entries = fs::read_dir(self.root().join(directory)).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort_unstable();
        names
    }

    /// Names as people write them, or with "set:" and "node:" where they began like that.
    fn peers(&self) -> Vec<(String, String)> {
        let documents = self.documents();
        let sets = documents.policy.sets.into_keys().map(|name| ("set", name));
        let nodes = documents.nodes.values().flat_map(|nodes| nodes.keys().cloned()).map(|name| ("node", name));
        let spelled = |(kind, name): (&str, String)| {
            let word = if self.current.starts_with(&format!("{kind}:")) { format!("{kind}:{name}") } else { name };
            (word, kind.to_owned())
        };
        sets.chain(nodes.collect::<Vec<_>>()).map(spelled).collect()
    }
}

/// A path as a shell would hand it to a program: of what people write, the home directory and quotes.
fn path(word: &str) -> PathBuf {
    let word = word.trim_matches(['"', '\'']);
    match (word.strip_prefix("~/"), env::var_os("HOME")) {
        (Some(rest), Some(home)) => PathBuf::from(home).join(rest),
        _ => PathBuf::from(word),
    }
}

fn bare(names: impl IntoIterator<Item = String>) -> Vec<(String, String)> {
    names.into_iter().map(|name| (name, String::new())).collect()
}

fn words(words: &[(&str, &str)]) -> Vec<(String, String)> {
    words.iter().map(|(word, what)| ((*word).to_owned(), (*what).to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn values(command: &Command, name: &str, unknown: &mut BTreeSet<String>) {
        let takes_value = |argument: &&Arg| argument.get_action().takes_values() && !argument.is_hide_set();
        for argument in command.get_arguments().filter(takes_value) {
            if values_of(command.get_name(), argument) == Values::Unknown {
                unknown.insert(format!("{name} {}", argument.get_id()));
            }
        }
        let shown = command.get_subcommands().filter(|part| part.get_name() != "help" && !part.is_hide_set());
        shown.for_each(|part| values(part, part.get_name(), unknown));
    }

    /// A new argument is completed, or it is here.
    #[test]
    fn the_values_of_every_argument_are_known_but_for_those_that_nobody_can_guess() {
        let mut unknown = BTreeSet::new();
        values(&crate::cli::command(), "nodewall", &mut unknown);
        let expected: BTreeSet<String> = [
            "boot limit",
            "boot ssh_from",
            "boot ssh_ports",
            "break-glass reason",
            "controller lease",
            "controller namespace",
            "draft generalise",
            "draft seen",
            "flows limit",
            "join ca_hash",
            "join server",
            "join token",
            "monitor count",
            "panic reason",
            "render ssh_from",
            "render ssh_ports",
            "simulate dnat",
            "simulate dport",
            "simulate from",
            "simulate hop_limit",
            "simulate sport",
            "simulate to",
            "simulate vlan",
            "status selector",
            "verify generalise",
            "verify seen",
        ]
        .map(str::to_owned)
        .into();
        assert_eq!(unknown, expected);
    }
}
