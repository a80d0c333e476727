//! From a kubeconfig, or from the files of a pod, to a client of an API server.
//!
//! `kubeconfig` reads, `plugin` runs the program that a person's kubeconfig logs in with, `authorization` says who asks, `tls` whom we
//! believe, and `client` puts them together. kube can do all of that too, with a second reader of YAML, JSONPath and regular expressions,
//! which are a tenth of the whole program; so what is called of it here is only what does not lead there.

mod authorization;
mod client;
pub mod kubeconfig;
mod plugin;
mod tls;

pub use client::client;

use crate::text::cause::chain;

/// What an error of a request says. Not by its own `Display`, which has the errors of logging in and of kubeconfigs in it, that do not
/// come from requests.
pub fn said(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        kube::Error::HyperError(error) => chain(error),
        kube::Error::Service(error) => chain(&**error),
        kube::Error::FromUtf8(error) => format!("the answer is not UTF-8: {error}"),
        kube::Error::ReadEvents(error) => format!("the answer breaks off: {}", chain(error)),
        kube::Error::HttpError(error) => chain(error),
        kube::Error::SerdeError(error) => format!("the answer is not understood: {error}"),
        kube::Error::BuildRequest(error) => format!("the request cannot be made: {}", chain(error)),
        _ => "the request came to nothing".to_owned(),
    }
}
