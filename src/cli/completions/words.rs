//! A command line that is not finished: which word is asked for, by what clap knows of commands and options. Pure.

use clap::{Arg, ArgAction, Command};

/// What could be written next.
#[derive(Debug)]
pub(super) enum Wanted<'a> {
    /// One of the commands of this command.
    Command,
    /// One of these options.
    Option(Vec<&'a Arg>),
    /// A value of this argument.
    Value(&'a Arg),
}

/// A line, taken apart.
#[derive(Debug)]
pub(super) struct Asked<'a> {
    /// The command that the line has come to.
    pub(super) command: &'a Command,
    /// What comes next there.
    pub(super) wanted: Wanted<'a>,
    /// What stands before the value in the same word: "--in=".
    pub(super) prefix: String,
    /// What is written of it so far.
    pub(super) current: String,
    /// The options that were given, with their values.
    pub(super) given: Vec<(&'a Arg, String)>,
}

impl Asked<'_> {
    /// The values that an option was given.
    pub(super) fn given(&self, long: &str) -> impl Iterator<Item = &str> {
        self.given
            .iter()
            .filter(move |(argument, _)| argument.get_long() == Some(long))
            .map(|(_, value)| value.as_str())
    }
}

/// What the last of these words is to be, if anything. `command` is built ([`Command::build`]); `words` are those after the
/// program's name.
pub(super) fn asked<'a>(command: &'a Command, words: &[String]) -> Option<Asked<'a>> {
    let (current, before) = words.split_last()?;
    let mut line = Line { command, given: Vec::new(), pending: None, positionals: 0, only_values: false };
    before.iter().for_each(|word| line.word(word));
    let whole = |wanted| (wanted, String::new(), current.clone());
    let (wanted, prefix, current) = if let Some(option) = line.pending {
        whole(Wanted::Value(option))
    } else if line.only_values || !current.starts_with('-') {
        let positional = line.positional();
        match positional {
            _ if line.wants_command() => whole(Wanted::Command),
            // A word that is no command: whatever follows it, clap refuses.
            _ if line.command.has_subcommands() => return None,
            Some(argument) => whole(Wanted::Value(argument)),
            None => whole(Wanted::Option(line.options())),
        }
    } else if let Some((name, value)) = current.strip_prefix("--").and_then(|long| long.split_once('=')) {
        let option = line.option(name).filter(|option| takes_value(option))?;
        (Wanted::Value(option), format!("--{name}="), value.to_owned())
    } else {
        whole(Wanted::Option(line.options()))
    };
    Some(Asked { command: line.command, wanted, prefix, current, given: line.given })
}

struct Line<'a> {
    command: &'a Command,
    given: Vec<(&'a Arg, String)>,
    /// The option whose value comes next.
    pending: Option<&'a Arg>,
    /// So many arguments without a name were there.
    positionals: usize,
    /// After "--".
    only_values: bool,
}

impl<'a> Line<'a> {
    fn word(&mut self, word: &str) {
        if let Some(option) = self.pending.take() {
            self.given.push((option, word.to_owned()));
        } else if self.only_values {
            self.positionals += 1;
        } else if word == "--" {
            self.only_values = true;
        } else if let Some(long) = word.strip_prefix("--") {
            let (name, value) = long.split_once('=').map_or((long, None), |(name, value)| (name, Some(value)));
            match self.option(name) {
                Some(option) if takes_value(option) && value.is_none() => self.pending = Some(option),
                Some(option) => self.given.push((option, value.unwrap_or_default().to_owned())),
                None => {}
            }
        } else if word.len() > 1 && word.starts_with('-') {
            let shorts: Vec<char> = word.chars().skip(1).collect();
            let arguments = self.command.get_arguments();
            let given = arguments.filter(|option| option.get_short().is_some_and(|short| shorts.contains(&short)));
            self.given.extend(given.map(|option| (option, String::new())));
        } else if let Some(command) = self.command.find_subcommand(word).filter(|_| self.positionals == 0) {
            self.command = command;
        } else {
            self.positionals += 1;
        }
    }

    fn option(&self, long: &str) -> Option<&'a Arg> {
        self.command.get_arguments().find(|argument| argument.get_long() == Some(long))
    }

    fn wants_command(&self) -> bool {
        self.positionals == 0 && self.command.has_subcommands()
    }

    fn positional(&self) -> Option<&'a Arg> {
        let last = self.command.get_positionals().last();
        let many =
            last.filter(|last| last.get_num_args().is_some_and(|number| number.max_values() > 1) || is_list(last));
        self.command.get_positionals().nth(self.positionals).or(many)
    }

    /// The options that can still be given here.
    fn options(&self) -> Vec<&'a Arg> {
        let against = |one: &Arg, other: &Arg| {
            self.command.get_arg_conflicts_with(one).iter().any(|against| against.get_id() == other.get_id())
        };
        let fits = |option: &&Arg| {
            let mut given = self.given.iter().map(|(given, _)| *given);
            !given.any(|given| {
                (given.get_id() == option.get_id() && !is_list(option))
                    || against(option, given)
                    || against(given, option)
            })
        };
        let options =
            self.command.get_arguments().filter(|argument| !argument.is_positional() && !argument.is_hide_set());
        options.filter(fits).collect()
    }
}

fn takes_value(argument: &Arg) -> bool {
    argument.get_action().takes_values()
}

fn is_list(argument: &Arg) -> bool {
    matches!(argument.get_action(), ArgAction::Append)
}

/// The first line of a help text, as shells show it.
pub(super) fn summary(help: Option<&clap::builder::StyledStr>) -> String {
    help.map(ToString::to_string).unwrap_or_default().lines().next().unwrap_or_default().to_owned()
}
