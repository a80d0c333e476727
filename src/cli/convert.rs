//! `nodewall convert`: policy files as objects of Kubernetes, and objects as policy files; objects of Calico and rules of other firewalls
//! as either.

mod directory;

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, ValueEnum};

use super::exit::Exit;
use super::output::Output;
use crate::source::foreign::{self, Firewall};
use crate::source::object::convert::{self, Document};
use crate::source::{Texts, calico};
use crate::text::finding::{Code, Finding, Severity};
use crate::text::place::Place;
use crate::text::tree::{MAX_TEXT_BYTES, Source};
use crate::textfile::{self, Trust, Unread};

/// Arguments of `convert`.
#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// What to print: by default objects as YAML where policy files are read, and a policy file where objects are
    #[arg(long, value_enum, value_name = "FORM")]
    to: Option<Form>,
    /// Whose objects or rules the files have, if not nodewall's: they are converted together, into a policy file unless --to says otherwise
    #[arg(long, value_enum, value_name = "SYSTEM")]
    from: Option<System>,
    /// Policy files (.toml), files of objects (.yaml, .yml, .json) or what --from names; "-" is the standard input, and so is nothing
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
}

/// A spelling of documents.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum Form {
    /// A policy file
    Toml,
    /// Objects as YAML, a document each
    Yaml,
    /// Objects as one List in JSON
    Json,
}

/// A system with policies of its own.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum System {
    /// GlobalNetworkPolicy and what it needs: HostEndpoint, GlobalNetworkSet, Tier, FelixConfiguration
    Calico,
    /// What `iptables-save` and `ip6tables-save` print, with `ipset save` where rules name sets
    Iptables,
    /// What `nft -j list ruleset` prints
    Nft,
    /// The directory /etc/ufw with /etc/default/ufw beside it, which nothing means as well
    Ufw,
    /// The directory /etc/firewalld with /usr/lib/firewalld beside it, which nothing means as well
    Firewalld,
}

impl System {
    /// The firewall whose rules these are.
    const fn firewall(self) -> Option<Firewall> {
        match self {
            Self::Calico => None,
            Self::Iptables => Some(Firewall::Iptables),
            Self::Nft => Some(Firewall::Nft),
            Self::Ufw => Some(Firewall::Ufw),
            Self::Firewalld => Some(Firewall::Firewalld),
        }
    }
}

pub(super) fn run(arguments: &Arguments, output: &Output) -> Exit {
    if let Some(firewall) = arguments.from.and_then(System::firewall) {
        return rules(firewall, arguments, output);
    }
    let stdin = [PathBuf::from("-")];
    let files = if arguments.files.is_empty() { &stdin } else { arguments.files.as_slice() };
    let (mut documents, mut findings, mut texts) = (Vec::new(), Vec::new(), Texts::new());
    let (mut read, mut foreign) = (Vec::new(), Vec::new());
    for path in files {
        let source = match text(path) {
            Ok(text) => Source::new(name(path), text),
            Err(finding) => {
                findings.push(*finding);
                continue;
            }
        };
        texts.insert(source.file.clone(), source.text.clone());
        let form = form(path, &source.text);
        if arguments.from == Some(System::Calico) {
            if form == Form::Toml {
                output.message(&format!("{}: a policy file is none of Calico's", source.file));
                return Exit::Usage;
            }
            foreign.push(source);
            read.push(form);
            continue;
        }
        let (found, said) = match form {
            Form::Toml => convert::from_toml(&source),
            Form::Yaml | Form::Json => convert::from_objects(&source),
        };
        documents.extend(found);
        findings.extend(said);
        read.push(form);
    }
    if arguments.from == Some(System::Calico) {
        let (found, said) = calico::convert(&foreign);
        documents.extend(found);
        findings.extend(said);
    }
    let from_toml = read.contains(&Form::Toml);
    let default = match (output.json, from_toml, read.iter().any(|form| *form != Form::Toml)) {
        (true, ..) => Form::Json,
        (false, true, true) if arguments.to.is_none() => {
            output.message("there are policy files and objects among these: say with --to what to print");
            return Exit::Usage;
        }
        (false, true, _) => Form::Yaml,
        (false, false, _) => Form::Toml,
    };
    let to = arguments.to.unwrap_or(default);
    if to != Form::Toml {
        findings.extend(convert::check_objects(&documents));
    }
    output.findings(&findings, &texts);
    if findings.iter().any(|finding| finding.severity == Severity::Error) {
        return Exit::InvalidPolicy;
    }
    if texts.values().any(|text| text.contains('#')) {
        output.message("comments are not converted");
    }
    print(&documents, to, output)
}

fn print(documents: &[Document], form: Form, output: &Output) -> Exit {
    match form {
        Form::Toml => output.data(&convert::to_toml(documents)),
        Form::Yaml => output.data(&convert::to_yaml(&convert::to_objects(documents))),
        Form::Json => output.json(&convert::to_list(convert::to_objects(documents))),
    }
}

/// The rules of another firewall.
fn rules(firewall: Firewall, arguments: &Arguments, output: &Output) -> Exit {
    let usual = directory::usual(firewall).unwrap_or("-");
    let usual = [PathBuf::from(usual)];
    let paths = if arguments.files.is_empty() { &usual } else { arguments.files.as_slice() };
    let (mut sources, mut findings, mut texts) = (Vec::new(), Vec::new(), Texts::new());
    for path in paths.iter().flat_map(|path| directory::files(firewall, path)) {
        match text(&path) {
            Ok(text) => sources.push(Source::new(name(&path), text)),
            Err(finding) => findings.push(*finding),
        }
    }
    texts.extend(sources.iter().map(|source| (source.file.clone(), source.text.clone())));
    let to = arguments.to.unwrap_or(if output.json { Form::Json } else { Form::Toml });
    let mut documents = Vec::new();
    // With a file that cannot be read, what is left may mean something else.
    if findings.is_empty() {
        let (found, said) = foreign::convert(firewall, &sources);
        documents = found;
        findings.extend(said);
    }
    if to != Form::Toml {
        findings.extend(convert::check_objects(&documents));
    }
    output.findings(&findings, &texts);
    if findings.iter().any(|finding| finding.severity == Severity::Error) {
        return Exit::InvalidPolicy;
    }
    print(&documents, to, output)
}

/// The name that findings give a file.
fn name(path: &Path) -> Arc<str> {
    if path == Path::new("-") { "standard input".into() } else { textfile::name(path) }
}

/// The text of a file, or of the standard input.
fn text(path: &Path) -> Result<String, Box<Finding>> {
    let refuse = |message: String| Box::new(Finding::error(Code::Unreadable, &Place::file(name(path)), message));
    if path != Path::new("-") {
        return textfile::read(path, Trust::Anyone).map_err(|unread| match unread {
            Unread::Missing => refuse("does not exist".to_owned()),
            Unread::Refused(finding) => finding,
        });
    }
    let mut bytes = Vec::new();
    let most = MAX_TEXT_BYTES as u64 + 1;
    io::stdin()
        .take(most)
        .read_to_end(&mut bytes)
        .map_err(|error| refuse(format!("cannot be read: {}", textfile::reason(&error))))?;
    if bytes.len() > MAX_TEXT_BYTES {
        return Err(refuse(format!("more than the {} MiB that are read", MAX_TEXT_BYTES >> 20)));
    }
    String::from_utf8(bytes).map_err(|_| refuse("is not UTF-8".to_owned()))
}

/// What a text is: its file's name says it, else how it begins.
fn form(path: &Path, text: &str) -> Form {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("toml") => return Form::Toml,
        Some("yaml" | "yml") => return Form::Yaml,
        Some("json") => return Form::Json,
        _ => {}
    }
    let said = text.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#'));
    match said {
        Some(line) if line.starts_with('{') => Form::Json,
        Some(line) if line.starts_with("[[") => Form::Toml,
        Some(line) if line.starts_with("---") || line.starts_with('%') => Form::Yaml,
        // `key: value` is YAML, `key = value` is TOML.
        Some(line) => {
            let key = line.find(|next: char| !next.is_alphanumeric() && !"_-\"'".contains(next));
            if key.and_then(|at| line.get(at..)).is_some_and(|rest| rest.starts_with(':')) {
                Form::Yaml
            } else {
                Form::Toml
            }
        }
        None => Form::Toml,
    }
}
