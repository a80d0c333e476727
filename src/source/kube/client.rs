//! Requests to one API server: who we are, from the kubeconfig and the files that it names, and the answers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use kube::config::Kubeconfig;
use kube::core::params::{GetParams, ListParams, Patch, PatchParams, WatchParams};
use kube::core::{Request, WatchEvent};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value as Json;
use sha2::{Digest, Sha256};

use super::Access;
use super::item::Item;
use super::mirror::{Failure, Listing};
use super::resource::Resource;
use crate::connect::{self, kubeconfig, said};
use crate::source::object::Kind;
use crate::source::object::peers::FINGERPRINT;
use crate::text::cause::chain;
use crate::textfile::{self, Trust, Unread};

/// How many objects a server sends at once.
const PAGE: u32 = 500;
/// A list of more pages than this never ends.
const MOST_PAGES: usize = 10_000;
/// More digests than this are listed, not asked for one by one.
const FEW: usize = 32;
/// A connection that takes longer to come about does not come about.
const CONNECT_TIME: Duration = Duration::from_secs(5);

/// Who the fields belong to that we say something of.
const FIELD_MANAGER: &str = "nodewall";

/// The files that a kubeconfig was read with, by what was in them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Credentials {
    files: Vec<(PathBuf, Option<[u8; 32]>)>,
}

impl Credentials {
    /// Whether one of the files has another content now.
    pub(super) fn changed(&self) -> bool {
        self.files.iter().any(|(path, before)| digest(path) != *before)
    }
}

fn digest(path: &Path) -> Option<[u8; 32]> {
    std::fs::read(path).ok().map(|bytes| Sha256::digest(bytes).into())
}

/// A client for one server.
#[derive(Clone)]
pub(super) struct Client {
    client: kube::Client,
    /// How long an answer may take.
    answer: Duration,
}

impl Client {
    /// The client that a kubeconfig describes. Proxies come from it, else from the environment.
    ///
    /// # Errors
    /// Why there is none, for people.
    pub(super) async fn open(kubeconfig: &Path, answer: Duration) -> Result<(Self, Credentials), String> {
        let shown = kubeconfig.display();
        // Whoever may write this file decides which server is believed.
        let text = textfile::read(kubeconfig, Trust::Required).map_err(|unread| match unread {
            Unread::Missing => format!("{shown} does not exist"),
            Unread::Refused(finding) => format!("{shown}: {}", finding.message),
        })?;
        let mut files = vec![(kubeconfig.to_owned(), Some(Sha256::digest(text.as_bytes()).into()))];
        let unusable = |why: String| format!("{shown} cannot be used: {why}");
        let config = kubeconfig::parse(&text, kubeconfig.parent()).map_err(unusable)?;
        for user in config.auth_infos.iter().filter_map(|named| named.auth_info.as_ref()) {
            if user.exec.is_some() || user.auth_provider.is_some() {
                return Err(format!("{shown} runs a program to log in; give it a token, a tokenFile or a certificate"));
            }
            let named = [&user.token_file, &user.client_certificate, &user.client_key];
            files.extend(named.into_iter().flatten().map(|path| (PathBuf::from(path), digest(Path::new(path)))));
        }
        for cluster in config.clusters.iter().filter_map(|named| named.cluster.as_ref()) {
            let path = cluster.certificate_authority.as_ref();
            files.extend(path.map(|path| (PathBuf::from(path), digest(Path::new(path)))));
        }
        let config = kubeconfig::config(config).await.map_err(unusable)?;
        Ok((Self::of(config, answer).map_err(unusable)?, Credentials { files }))
    }

    /// The client that these kubeconfigs describe together, as kubectl reads them: whoever runs us answers for what is in them, so that
    /// they may be anybody's and may name a program to log in.
    ///
    /// # Errors
    /// Why there is none, for people.
    pub(super) async fn of_a_person(kubeconfigs: &[PathBuf], answer: Duration) -> Result<Self, String> {
        let shown = kubeconfigs.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ");
        let unusable = |why: String| format!("{shown} cannot be used: {why}");
        let mut config = Kubeconfig::default();
        for path in kubeconfigs {
            let read = kubeconfig::read(path).map_err(unusable)?;
            config = kubeconfig::merge(config, read).map_err(unusable)?;
        }
        let config = kubeconfig::config(config).await.map_err(unusable)?;
        Self::of(config, answer).map_err(unusable)
    }

    /// The client that this access describes.
    ///
    /// # Errors
    /// Why there is none, for people.
    pub(super) async fn at(access: &Access, answer: Duration) -> Result<(Self, Credentials), String> {
        match access {
            Access::Kubeconfig(path) => Self::open(path, answer).await,
            Access::Pod => {
                let config = kube::Config::incluster().map_err(|error| chain(&error))?;
                // The file of the token is read again when it is due.
                Ok((Self::of(config, answer)?, Credentials { files: Vec::new() }))
            }
        }
    }

    fn of(mut config: kube::Config, answer: Duration) -> Result<Self, String> {
        config.connect_timeout = Some(CONNECT_TIME);
        Ok(Self { client: connect::client(config)?, answer })
    }

    /// Every object.
    pub(super) async fn list(&self, resource: Resource) -> Result<Listing, Failure> {
        let (items, revision) = self.list_as(resource).await?;
        Ok(Listing { items, revision, ..Listing::default() })
    }

    /// Every object as something else than an [`Item`], and the revision of the list.
    pub(super) async fn list_as<T: DeserializeOwned>(&self, resource: Resource) -> Result<(Vec<T>, String), Failure> {
        self.pages(&resource.path(), false).await
    }

    /// The digests of nodes that are not known already, and the names of those that are: they are most of what there is to send.
    pub(super) async fn list_digests(&self, known: &BTreeMap<String, String>) -> Result<Listing, Failure> {
        let digests = Resource::Object(Kind::HostPeers);
        if known.is_empty() {
            return self.list(digests).await;
        }
        let path = digests.path();
        let (items, revision) = self.pages::<Item>(&path, true).await?;
        let is_known = |item: &Item| {
            known
                .get(&item.metadata.name)
                .is_some_and(|known| Some(known) == item.metadata.annotations.get(FINGERPRINT))
        };
        let (same, wanted): (Vec<Item>, Vec<Item>) = items.into_iter().partition(is_known);
        if wanted.len() > FEW {
            return self.list(digests).await;
        }
        let same = same.into_iter().map(|item| item.metadata.name).collect();
        let mut listing = Listing { revision, same, ..Listing::default() };
        for item in wanted {
            let request = Request::new(&path).get(&item.metadata.name, &GetParams::default());
            match self.within(self.client.request::<Item>(request.map_err(|error| broken(&error))?)).await {
                Ok(item) => listing.items.push(item),
                // It went in between, which the watch tells again.
                Err(Failure::Refused { code: 404, .. }) => {}
                Err(failure) => return Err(failure),
            }
        }
        Ok(listing)
    }

    /// A list, page by page; of each object all, or only the metadata.
    async fn pages<T: DeserializeOwned>(&self, path: &str, only_metadata: bool) -> Result<(Vec<T>, String), Failure> {
        let (mut items, mut revision) = (Vec::new(), String::new());
        let mut next: Option<String> = None;
        for _ in 0..MOST_PAGES {
            let mut parameters = ListParams::default().limit(PAGE);
            if let Some(token) = &next {
                parameters = parameters.continue_token(token);
            }
            let list = Request::new(path);
            let request = if only_metadata { list.list_metadata(&parameters) } else { list.list(&parameters) };
            let request = request.map_err(|error| broken(&error))?;
            let page: Page<T> = self.within(self.client.request(request)).await?;
            items.extend(page.items);
            // All pages are of the first one's revision.
            if next.is_none() {
                revision = page.metadata.resource_version;
            }
            next = page.metadata.next.filter(|token| !token.is_empty());
            if next.is_none() {
                return Ok((items, revision));
            }
        }
        Err(Failure::Broken(format!("the list has more than {MOST_PAGES} pages")))
    }

    /// What happens to objects after a revision, for so long.
    pub(super) async fn watch(
        &self,
        resource: Resource,
        revision: &str,
        seconds: u32,
    ) -> Result<impl Stream<Item = Result<WatchEvent<Item>, Failure>> + use<>, Failure> {
        let parameters = WatchParams::default().timeout(seconds);
        let request = Request::new(resource.path()).watch(&parameters, revision).map_err(|error| broken(&error))?;
        let events = self.within(self.client.request_events::<Item>(request)).await?;
        Ok(events.map(|event: Result<WatchEvent<Item>, kube::Error>| event.map_err(|error| failure(&error))))
    }

    /// Says what an object is, or a part of it below `at`: what else of it was ours goes, and what is others' stays
    /// (server-side apply). Makes it where it is not there; the whole of it as it is then.
    pub(super) async fn apply(
        &self,
        kind: Resource,
        name: &str,
        at: Option<&str>,
        body: &Json,
    ) -> Result<Json, Failure> {
        let parameters = PatchParams::apply(FIELD_MANAGER).force();
        let (requests, patch) = (Request::new(kind.path()), Patch::Apply(body));
        let request = match at {
            Some(part) => requests.patch_subresource(part, name, &parameters, &patch),
            None => requests.patch(name, &parameters, &patch),
        };
        self.within(self.client.request(request.map_err(|error| broken(&error))?)).await
    }

    async fn within<T>(&self, answer: impl Future<Output = Result<T, kube::Error>>) -> Result<T, Failure> {
        match tokio::time::timeout(self.answer, answer).await {
            Ok(answer) => answer.map_err(|error| failure(&error)),
            Err(_) => Err(Failure::Broken(format!("no answer within {} s", self.answer.as_secs_f32()))),
        }
    }
}

/// A page of a list.
#[derive(Deserialize)]
#[serde(bound(deserialize = "T: DeserializeOwned"))]
struct Page<T> {
    metadata: PageMetadata,
    #[serde(default = "Vec::new")]
    items: Vec<T>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PageMetadata {
    #[serde(default)]
    resource_version: String,
    #[serde(rename = "continue")]
    next: Option<String>,
}

fn failure(error: &kube::Error) -> Failure {
    match error {
        kube::Error::Api(status) => Failure::Refused { code: status.code, message: status.message.clone() },
        // What cannot be read of one kind says nothing about the others.
        kube::Error::SerdeError(error) => Failure::Refused { code: 200, message: format!("not understood: {error}") },
        other => Failure::Broken(said(other)),
    }
}

fn broken(error: &dyn std::error::Error) -> Failure {
    Failure::Broken(chain(error))
}
