//! The parts of pages that are made from the program: of nodewall(8) synopsis, the head and the options of each command, exit codes.
//!
//! In a page they stand between `.\" generated: NAME` and `.\" end`; what stands around them is written by hand.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use clap::{Arg, ArgAction, Command};

const BEGIN: &str = ".\\\" generated: ";
const END: &str = ".\\\" end";
const BY_HAND: &str = ".\\\" by hand: ";

/// The page with its generated parts made anew by `part`, and the names of these.
pub(super) fn regenerated(page: &str, part: &dyn Fn(&str) -> String) -> (String, BTreeSet<String>) {
    let mut made = String::new();
    let mut names = BTreeSet::new();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        made += &format!("{line}\n");
        if let Some(name) = line.strip_prefix(BEGIN) {
            made += &part(name);
            lines.by_ref().find(|line| *line == END).unwrap_or_else(|| panic!("\"{name}\" has no end"));
            made += &format!("{END}\n");
            names.insert(name.to_owned());
        }
        names.extend(line.strip_prefix(BY_HAND).map(str::to_owned));
    }
    (made, names)
}

/// Options of commands that say they are explained by hand, and are not.
pub(super) fn left_out(page: &str, command: &Command) -> Vec<String> {
    let mut missing = Vec::new();
    for (name, command) in commands(command) {
        let Some((before, _)) = page.split_once(&format!("{BY_HAND}options of {name}\n")) else { continue };
        let head = format!("{BEGIN}{name}\n");
        let section =
            before.rsplit_once(&head).unwrap_or_else(|| panic!("\"{name}\" has no head before its options")).1;
        let section = section.split_once(END).map_or("", |(_, prose)| prose);
        let options = command.get_arguments().filter(|argument| is_own(argument) && !argument.is_hide_set());
        let longs = options.filter_map(Arg::get_long);
        missing.extend(
            longs.filter(|long| !section.contains(&format!("Fl -{long}"))).map(|long| format!("{name} --{long}")),
        );
    }
    missing
}

/// The names that the page has to have.
pub(super) fn expected(command: &Command) -> BTreeSet<String> {
    let mut names: BTreeSet<String> = ["synopsis", "options of nodewall", "exit status"].map(str::to_owned).into();
    for (name, _) in commands(command) {
        names.insert(format!("options of {name}"));
        names.insert(name);
    }
    names
}

/// Every command that does something, by its words: "check", "preset enable".
fn commands(command: &Command) -> Vec<(String, &Command)> {
    let shown = |command: &&Command| command.get_name() != "help" && !command.is_hide_set();
    let mut found = Vec::new();
    for part in command.get_subcommands().filter(shown) {
        let mut below = part.get_subcommands().filter(shown).peekable();
        if below.peek().is_none() {
            found.push((part.get_name().to_owned(), part));
        }
        found.extend(below.map(|action| (format!("{} {}", part.get_name(), action.get_name()), action)));
    }
    found
}

/// A part of nodewall(8).
pub(super) fn part(name: &str, command: &Command, exits: &[(u8, &str)]) -> String {
    let known = |name: &str| {
        let mut all = commands(command).into_iter();
        all.find(|(known, _)| known == name).unwrap_or_else(|| panic!("there is no command \"{name}\"")).1
    };
    match name {
        "synopsis" => {
            let options = command.get_arguments().filter(|argument| !is_about_itself(argument));
            let options: String = options.map(|option| format!(".Op {}\n", spelled(option))).collect();
            format!(".Nm\n{options}.Ar command\n.Op Ar argument ...\n")
        }
        "options of nodewall" => options(command, &|_| true),
        "exit status" => {
            let mut made = ".Bl -tag -width Ds\n".to_owned();
            for (code, words) in exits {
                let _ = write!(made, ".It {code}\n{}", prose(words));
            }
            made + ".El\n"
        }
        _ => match name.strip_prefix("options of ") {
            Some(name) => options(known(name), &|argument| is_own(argument)),
            None => head(name, known(name)),
        },
    }
}

fn is_about_itself(argument: &Arg) -> bool {
    matches!(argument.get_action(), ArgAction::Help | ArgAction::HelpShort | ArgAction::HelpLong | ArgAction::Version)
}

fn is_own(argument: &Arg) -> bool {
    !argument.is_global_set() && !is_about_itself(argument)
}

/// The line of a command, with what can follow it.
fn head(name: &str, command: &Command) -> String {
    let words: Vec<String> = name.split(' ').map(|word| format!("Cm {word}")).collect();
    let mut line = format!(".It {}", words.join(" "));
    let own = command.get_arguments().filter(|argument| is_own(argument) && !argument.is_hide_set());
    let (positionals, options): (Vec<&Arg>, Vec<&Arg>) = own.partition(|argument| argument.is_positional());
    for argument in options.into_iter().chain(positionals) {
        match argument.is_required_set() {
            true => line += &format!(" {}", spelled(argument)),
            false => line += &format!(" Oo {} Oc", spelled(argument)),
        }
    }
    line + "\n"
}

/// An option with its value, or an argument, as mdoc: `Fl -config Ar file`.
fn spelled(argument: &Arg) -> String {
    let names: Vec<String> =
        argument.get_value_names().unwrap_or_default().iter().map(|name| name.to_lowercase()).collect();
    let value = format!("Ar {}", names.join(" "));
    match argument.get_long() {
        None if takes_many(argument) => format!("{value} ..."),
        None => value,
        Some(long) if argument.get_action().takes_values() => format!("Fl -{long} {value}"),
        Some(long) => format!("Fl -{long}"),
    }
}

fn takes_many(argument: &Arg) -> bool {
    argument.get_num_args().is_some_and(|number| number.max_values() > 1)
        || matches!(argument.get_action(), ArgAction::Append)
}

/// The list of a command's options and arguments; nothing where it has none.
fn options(command: &Command, which: &dyn Fn(&Arg) -> bool) -> String {
    let mut items = String::new();
    for argument in command.get_arguments().filter(|argument| which(argument) && !argument.is_hide_set()) {
        let short = argument.get_short().map(|short| format!("Fl {short} , ")).unwrap_or_default();
        let _ = writeln!(items, ".It {short}{}", spelled(argument));
        items += &prose(&argument.get_help().map(ToString::to_string).unwrap_or_default());
        if !argument.get_action().takes_values() {
            continue;
        }
        let values: Vec<String> = argument
            .get_possible_values()
            .iter()
            .filter(|value| !value.is_hide_set())
            .map(|value| format!("Cm {}", value.get_name()))
            .collect();
        match values.split_last() {
            None => {}
            Some((only, [])) => items += &format!("It is\n.{only} .\n"),
            Some((last, others)) => items += &format!("It is one of\n.{}\nand\n.{last} .\n", others.join(" , ")),
        }
        let defaults: Vec<_> = argument.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
        if !defaults.is_empty() {
            let _ = writeln!(items, "The default is\n.Ql {} .", defaults.join(" "));
        }
        if let Some(variable) = argument.get_env() {
            let _ = writeln!(items, "The environment variable\n.Ev {}\nsays the same.", variable.to_string_lossy());
        }
    }
    match items.is_empty() {
        true => items,
        false => format!(".Bl -tag -width Ds\n{items}.El\n"),
    }
}

/// A text of the program as mdoc: what is in backticks, and options, as such; a sentence in the end.
fn prose(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let text = match text.ends_with(['.', ')']) {
        true => text,
        false => text + ".",
    };
    let text = text[..1].to_uppercase() + &text[1..];
    let mut lines = Vec::new();
    let mut line = String::new();
    let mut words = text.split(' ').peekable();
    while let Some(word) = words.next() {
        let bare = word.trim_start_matches('(');
        let option = bare.starts_with("--") && bare.len() > 2;
        if !bare.starts_with('`') && !option {
            if line.len() + word.len() > 110 {
                lines.extend(text_line(&mut line));
            }
            line += if line.is_empty() { "" } else { " " };
            line += word;
            if word.ends_with('.') && words.peek().is_some_and(|next| next.starts_with(char::is_uppercase)) {
                lines.extend(text_line(&mut line));
            }
            continue;
        }
        lines.extend(text_line(&mut line));
        let mut literal = bare.trim_start_matches('`').to_owned();
        while !option && !literal.contains('`') {
            literal += " ";
            literal += words.next().unwrap_or_else(|| panic!("a backtick too much in: {text}"));
        }
        let end = match option {
            true => literal.find([',', '.', ';', ':', ')']).unwrap_or(literal.len()),
            false => literal.find('`').unwrap_or(literal.len()),
        };
        let after: String = literal[end..].trim_start_matches('`').chars().map(|c| format!(" {c}")).collect();
        let before: String = word.chars().take_while(|c| *c == '(').map(|c| format!("{c} ")).collect();
        let (name, value) = if option { ("Fl", &literal[1..end]) } else { ("Ql", &literal[..end]) };
        lines.push(format!(".{name} {before}{}{after}\n", value.replace('\\', "\\e")));
    }
    lines.extend(text_line(&mut line));
    lines.concat()
}

/// A line of text, if there is any, and nothing instead of it. A full stop or an apostrophe at its start would make it a request.
fn text_line(line: &mut String) -> Option<String> {
    let text = std::mem::take(line).replace('\\', "\\e");
    let guard = if text.starts_with(['.', '\'']) { "\\&" } else { "" };
    (!text.is_empty()).then(|| format!("{guard}{text}\n"))
}

/// A text as it is, indented.
pub(super) fn literal(text: &str) -> String {
    format!(".Bd -literal -offset indent\n{}.Ed\n", text.replace('\\', "\\e"))
}

/// These objects of a table as `nodewall render` prints it, in lines that fit a page.
pub(super) fn excerpt(table: &str, objects: &[&str]) -> String {
    let mut made = "table inet nodewall {\n".to_owned();
    for object in objects {
        let start = table.find(&format!("\t{object} {{\n")).unwrap_or_else(|| panic!("no {object}: {table}"));
        let whole = table[start..].split_once("\n\t}\n").unwrap_or_else(|| panic!("{object} has no end")).0;
        for line in whole.lines() {
            let line = line.replace('\t', "  ");
            match line.split_once(" comment \"").filter(|_| line.len() > 76) {
                Some((rule, comment)) => made += &format!("{rule} \\\n        comment \"{comment}\n"),
                None => made += &format!("{line}\n"),
            }
        }
        made += "  }\n";
    }
    made + "}\n"
}
