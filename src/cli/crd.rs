//! `nodewall crd`: the definitions of our objects, for an API server of Kubernetes.

use clap::Args;

use super::exit::{Exit, chain};
use super::output::Output;
use crate::source::object::{Kind, convert, crd};
use crate::text::read::suggestion;

/// Arguments of `crd`.
#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// Only this kind, like HostPolicy
    #[arg(value_name = "KIND", value_parser = kind)]
    kind: Option<Kind>,
}

/// Kinds by name, whatever the letter case: so kubectl takes them.
fn kind(text: &str) -> Result<Kind, String> {
    let found = Kind::ALL.into_iter().find(|kind| kind.name().eq_ignore_ascii_case(text));
    found.ok_or_else(|| suggestion(text, &Kind::ALL.map(Kind::name)))
}

pub(super) fn run(arguments: &Arguments, output: &Output) -> Exit {
    let kinds = arguments.kind.map_or_else(|| Kind::ALL.to_vec(), |kind| vec![kind]);
    let definitions: Result<Vec<_>, _> = kinds.into_iter().map(crd::definition).collect();
    match definitions {
        Ok(definitions) if output.json => output.json(&convert::to_list(definitions)),
        Ok(definitions) => output.data(&crd::text(&definitions)),
        Err(error) => {
            output.message(&format!("cannot write the definitions: {}", chain(&error)));
            Exit::Failure
        }
    }
}
