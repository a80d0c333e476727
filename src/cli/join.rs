//! `nodewall join`: makes this host a node of nodewall in a cluster.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::Options;
use super::exit::Exit;
use super::output::Output;
use crate::config::{self, Config, duration};
use crate::host;
use crate::identity::Secret;
use crate::identity::files::Files;
use crate::identity::join::{Authority, Error, Joined, Token, Wanted, join, parse_hash};
use crate::text::name::is_node_name;
use crate::text::time::rfc3339;
use crate::textfile::{self, Trust, Unread};

/// Arguments of `join`.
#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// The API server, like https://api.example:6443
    #[arg(long, value_name = "URL")]
    server: String,
    /// A bootstrap token; other users of this host can see it in the list of processes
    #[arg(long, value_name = "TOKEN", required_unless_present = "token_file", conflicts_with = "token_file")]
    token: Option<Secret>,
    /// A file with a bootstrap token
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The certificates of the cluster's CA
    #[arg(long, value_name = "FILE", required_unless_present = "ca_hash", conflicts_with = "ca_hash")]
    ca_file: Option<PathBuf>,
    /// The hash of the key of the cluster's CA, as `kubeadm token create --print-join-command` prints it; may be repeated
    #[arg(long, value_name = "sha256:HEX", value_parser = parse_hash)]
    ca_hash: Vec<[u8; 32]>,
    /// Where to write the kubeconfig; certificate and key come into the state directory
    #[arg(long, value_name = "FILE", default_value = "/etc/nodewall/kubeconfig")]
    kubeconfig: PathBuf,
    /// How long to wait until the certificate is approved
    #[arg(long, value_name = "TIME", value_parser = duration::parse, default_value = "10m")]
    wait: Duration,
    /// Ask for a new certificate although there is one, and replace what is in the way
    #[arg(long)]
    force: bool,
}

/// What `join --json` prints.
#[derive(Serialize)]
struct Report<'a> {
    version: u32,
    node: &'a str,
    server: &'a str,
    kubeconfig: String,
    identity: String,
    /// "joined", or "present": there was one that holds.
    state: &'static str,
    certificate_until: String,
}

pub(super) fn run(options: &Options, arguments: &Arguments, output: &Output) -> Exit {
    let wanted = match wanted(options, arguments) {
        Ok(wanted) => wanted,
        Err(why) => {
            output.message(&why);
            return Exit::Usage;
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            output.message(&format!("cannot start the loop: {error}"));
            return Exit::Failure;
        }
    };
    let told = *output;
    let joined = runtime.block_on(join(&wanted, &move |what: &str| told.message(what)));
    // A name server that does not answer is not waited for.
    runtime.shutdown_background();
    match joined {
        Ok(joined) => report(&wanted, &joined, output),
        Err(error) => {
            output.message(&error.to_string());
            match error {
                Error::NotAuthorised(_) => Exit::NotAuthorised,
                Error::Unusable(_) | Error::Failed(_) | Error::Late(_) => Exit::Failure,
            }
        }
    }
}

fn wanted(options: &Options, arguments: &Arguments) -> Result<Wanted, String> {
    let token = match (&arguments.token, &arguments.token_file) {
        (Some(token), _) => token.clone(),
        (None, Some(path)) => Secret::new(&text(path)?),
        (None, None) => return Err("--token or --token-file is missing".to_owned()),
    };
    let token = Token::parse(token.expose())?;
    let authority = match &arguments.ca_file {
        Some(path) => Authority::Roots(text(path)?),
        None => Authority::Hashes(arguments.ca_hash.clone()),
    };
    let (config, _, _) = config::load(&options.config, Trust::Anyone);
    Ok(Wanted {
        server: arguments.server.clone(),
        authority,
        token,
        node: node(options, &config)?,
        files: Files::of(&arguments.kubeconfig, &config.state_directory)?,
        wait: arguments.wait,
        force: arguments.force,
    })
}

/// What this node is called in its cluster.
fn node(options: &Options, config: &Config) -> Result<String, String> {
    if let Some(node) = options.node.clone().or_else(|| config.settings.node.clone()) {
        return Ok(node);
    }
    // The kubelet has it in small letters, too.
    let name = host::name(options.root.as_deref().unwrap_or(Path::new("/"))).to_lowercase();
    if is_node_name(&name) {
        return Ok(name);
    }
    Err(format!("\"{name}\", as the host is called, is not a name that a node can have; --node says another"))
}

fn text(path: &Path) -> Result<String, String> {
    textfile::read(path, Trust::Anyone).map_err(|unread| match unread {
        Unread::Missing => format!("{} does not exist", path.display()),
        Unread::Refused(finding) => format!("{}: {}", path.display(), finding.message),
    })
}

fn report(wanted: &Wanted, joined: &Joined, output: &Output) -> Exit {
    let Wanted { node, server, files, .. } = wanted;
    let (kubeconfig, until) = (files.kubeconfig.display().to_string(), rfc3339(joined.until));
    if output.json {
        return output.json(&Report {
            version: 1,
            node,
            server,
            kubeconfig,
            identity: files.identity.display().to_string(),
            state: if joined.new { "joined" } else { "present" },
            certificate_until: until,
        });
    }
    output.data(&match joined.new {
        true => format!(
            "node \"{node}\" joined; {kubeconfig} is for [[source.cluster]], its certificate holds until {until}\n"
        ),
        false => format!(
            "node \"{node}\" has joined already; its certificate holds until {until} (--force asks for another)\n"
        ),
    })
}
