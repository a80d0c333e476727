//! The command line: one file per subcommand.

mod apply;
mod audit;
mod audit_report;
mod boot;
mod check;
mod completions;
mod confirm;
mod controller;
mod convert;
mod crd;
mod diff;
mod disarm;
mod emergency;
mod examine;
mod exit;
mod fleet;
mod flows;
mod history;
mod host;
mod interfaces;
mod join;
mod learn;
mod monitor;
mod order;
mod output;
mod preset;
mod reload;
mod render;
mod rollback;
mod run;
mod simulate;
mod status;
mod subject;
mod top;
mod watch;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

use crate::daemon::documents::Whereabouts;
use crate::text::finding::{Code, Finding};
use crate::text::name::is_node_name;
use crate::text::place::Place;
use exit::Exit;
use output::Output;

/// Host firewall for bare-metal GPU nodes: policy files to one nf_tables transaction.
///
/// nodewall reads nodewall.toml and policy files, works out what they mean on this node's interfaces, and keeps the table
/// "inet nodewall" of the kernel's nf_tables that way. Nothing outside that table is touched.
#[derive(Parser, Debug)]
#[command(name = "nodewall", version, about, long_about, after_help = exit::help(), max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    command: Command,
}

/// Where the settings are when the command line does not say.
const DEFAULT_CONFIG: &str = "/etc/nodewall/nodewall.toml";

/// Options of every subcommand.
#[derive(Args, Debug)]
struct Options {
    /// The settings file
    #[arg(long, global = true, value_name = "FILE", default_value = DEFAULT_CONFIG)]
    config: PathBuf,
    /// A directory of policy files instead of those that the settings name; may be repeated, later ones take precedence
    #[arg(long = "policy-dir", global = true, value_name = "DIR")]
    policy_directories: Vec<PathBuf>,
    /// Look at the copy of another machine's /sys and /proc below this directory instead of at this machine
    #[arg(long, global = true, value_name = "DIR")]
    root: Option<PathBuf>,
    /// What this node is called in its cluster, if it is something else than nodewall.toml and the host's name say
    #[arg(long, global = true, value_name = "NAME", env = "NODEWALL_NODE", value_parser = node_name)]
    node: Option<String>,
    /// Print JSON for scripts
    #[arg(long, global = true)]
    json: bool,
    /// Colours: `auto` uses them on a terminal, unless NO_COLOR is set
    #[arg(long, global = true, value_enum, default_value_t = Color::Auto, value_name = "WHEN")]
    color: Color,
}

fn node_name(text: &str) -> Result<String, String> {
    if is_node_name(text) { Ok(text.to_owned()) } else { Err("not a name that a node can have".to_owned()) }
}

/// When to use colours.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum Color {
    Auto,
    Always,
    Never,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Read settings and policy, and say what is wrong with them; needs no root
    Check(check::Arguments),
    /// Print the rules that would be loaded; needs no root
    Render(render::Arguments),
    /// Say what happens to a packet and why, or to the packets of a capture; needs no root
    Simulate(Box<simulate::Arguments>),
    /// Show what `apply` would change in the kernel, by policy and by rule, and how many live flows would end
    Diff(diff::Arguments),
    /// List and show the policies that come with nodewall, and enable them
    Preset(preset::Arguments),
    /// Print the definitions of our objects for an API server of Kubernetes; needs no root
    Crd(crd::Arguments),
    /// Print policy files as objects of Kubernetes, and objects as policy files; needs no root
    Convert(convert::Arguments),
    /// Make this host a node of nodewall in a cluster: a kubeconfig with a certificate of its own
    Join(join::Arguments),
    /// Be the controller of a cluster: approve nodes' certificates, and say in objects what is wrong with them
    Controller(controller::Arguments),
    /// Put the policy in force once, without the daemon; or by the daemon, until somebody confirms it
    Apply(apply::Arguments),
    /// Put the last confirmed generation, or else a lockdown, in force before the network is up
    Boot(boot::Arguments),
    /// Be the daemon: put the policy in force and keep it so
    Run,
    /// Show what is in force
    Status,
    /// Show each interface: its role and why, what is behind it, and how far rules reach there; needs no root
    Interfaces(interfaces::Arguments),
    /// Show what listens on this host, who holds it, and from where the policy in force lets it be reached
    Audit(audit::Arguments),
    /// Show what went on at this node: who, with what service, by which rule, with what verdict; needs no daemon
    Flows(Box<flows::Arguments>),
    /// Say what a policy in audit mode would have denied, and whether it is ready to be enforced; needs no daemon
    AuditReport(audit_report::Arguments),
    /// Draft a policy from what went on at this node, and try a draft against it
    Learn(learn::Arguments),
    /// Show what goes on, one line an event, as it happens
    Monitor(monitor::Arguments),
    /// Show rates by policy, interface and peer on a terminal, down to the rule and its text
    Top,
    /// Say what the nodes of a cluster have in force, from its API
    Fleet(fleet::Arguments),
    /// Have the daemon read everything again, wait, and say what came of it
    Reload,
    /// Keep what `apply --confirm` put in force
    Confirm,
    /// Go back to an earlier generation
    Rollback(rollback::Arguments),
    /// List the generations that are kept
    History,
    /// Let only essentials and failsafe through, or end that
    Panic(emergency::Panic),
    /// Let everything through for some time
    BreakGlass(emergency::BreakGlass),
    /// Remove our table from the kernel, and with it all protection
    Disarm,
    /// Print what a shell needs to complete these commands; needs no root
    Completions(completions::Arguments),
    /// What could be written next; for the scripts of `completions`
    #[command(hide = true)]
    Complete(completions::Line),
}

impl Options {
    /// What the command line names and is not there: taken for empty, it would be a policy without rules.
    fn absent(&self) -> Vec<Finding> {
        let directories = self.policy_directories.iter().filter(|path| !path.exists());
        let settings = (self.config != Path::new(DEFAULT_CONFIG) && !self.config.exists()).then_some(&self.config);
        directories
            .chain(settings)
            .map(|path| {
                let message = format!("{} does not exist", path.display());
                Finding::error(Code::Unreadable, &Place::file(path.display().to_string()), message)
                    .help("name one that is there, or leave the option out")
            })
            .collect()
    }

    /// Where to look for documents; `paths` are those of the subcommand.
    fn whereabouts(&self, paths: &[PathBuf]) -> Whereabouts {
        Whereabouts {
            config: self.config.clone(),
            directories: self.policy_directories.clone(),
            paths: paths.to_vec(),
            node: self.node.clone(),
        }
    }
}

/// The command line as clap knows it, for manual and completions.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Every exit code with what it means, for the manual.
pub fn exit_codes() -> &'static [(u8, &'static str)] {
    exit::ALL
}

/// Parses the command line and runs the subcommand; the process's exit code.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are data and come with exit code 0; a closed pipe is nobody's mistake.
            let _ = error.print();
            if error.use_stderr() && boot::asked(std::env::args_os()) {
                return boot::run_anyway(&Output::new(Color::Auto, false)).into();
            }
            return if error.use_stderr() { Exit::Usage.into() } else { Exit::Ok.into() };
        }
    };
    let output = Output::new(cli.options.color, cli.options.json);
    let exit = match &cli.command {
        Command::Check(arguments) => check::run(&cli.options, arguments, &output),
        Command::Render(arguments) => render::run(&cli.options, arguments, &output),
        Command::Simulate(arguments) => simulate::run(&cli.options, arguments, &output),
        Command::Diff(arguments) => diff::run(&cli.options, arguments, &output),
        Command::Preset(arguments) => preset::run(&cli.options, arguments, &output),
        Command::Crd(arguments) => crd::run(arguments, &output),
        Command::Convert(arguments) => convert::run(arguments, &output),
        Command::Join(arguments) => join::run(&cli.options, arguments, &output),
        Command::Controller(arguments) => controller::run(arguments, &output),
        Command::Apply(arguments) => apply::run(&cli.options, arguments, &output),
        Command::Boot(arguments) => boot::run(arguments, &output),
        Command::Run => run::run(&cli.options, &output),
        Command::Status => status::run(&cli.options, &output),
        Command::Interfaces(arguments) => interfaces::run(&cli.options, arguments, &output),
        Command::Audit(arguments) => audit::run(&cli.options, arguments, &output),
        Command::Flows(arguments) => flows::run(&cli.options, arguments, &output),
        Command::AuditReport(arguments) => audit_report::run(&cli.options, arguments, &output),
        Command::Learn(arguments) => learn::run(&cli.options, arguments, &output),
        Command::Monitor(arguments) => monitor::run(&cli.options, arguments, &output),
        Command::Top => top::run(&cli.options, &output),
        Command::Fleet(arguments) => fleet::run(&cli.options, arguments, &output),
        Command::Reload => reload::run(&cli.options, &output),
        Command::Confirm => confirm::run(&cli.options, &output),
        Command::Rollback(arguments) => rollback::run(&cli.options, arguments, &output),
        Command::History => history::run(&cli.options, &output),
        Command::Panic(arguments) => emergency::panic(&cli.options, arguments, &output),
        Command::BreakGlass(arguments) => emergency::break_glass(&cli.options, arguments, &output),
        Command::Disarm => disarm::run(&cli.options, &output),
        Command::Completions(arguments) => completions::run(arguments, &output),
        Command::Complete(line) => completions::complete(line, &output),
    };
    exit.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
