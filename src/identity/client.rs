//! Requests to an API server about what is no policy document: certificate requests, Leases, Events, statuses.

use std::path::Path;
use std::time::Duration;

use kube::core::Request;
use kube::core::params::{DeleteParams, GetParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use serde_json::Value as Json;

use super::Secret;
use crate::connect::{self, kubeconfig, said};
use crate::text::cause::chain;
use crate::textfile::{self, Trust, Unread};

/// A connection that takes longer to come about does not come about.
const CONNECT_TIME: Duration = Duration::from_secs(5);
/// An answer that takes longer does not come.
const ANSWER_TIME: Duration = Duration::from_secs(15);
/// So many objects at once: a server makes a list as a whole before it answers.
const PAGE: u32 = 500;
/// No collection has more pages. A server that never ends is not listened to forever.
const MOST_PAGES: usize = 1000;

/// Why a request came to nothing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Failure {
    /// The server answered so.
    Refused {
        /// The HTTP status.
        code: u16,
        /// Its words.
        message: String,
    },
    /// There was no answer, or not a whole one.
    Broken(String),
}

impl Failure {
    /// Whether the server answered with this status.
    pub fn is(&self, status: u16) -> bool {
        matches!(self, Self::Refused { code, .. } if *code == status)
    }

    /// Whether the same request may well be answered later, although nobody changes anything.
    pub fn passes(&self) -> bool {
        matches!(self, Self::Broken(_) | Self::Refused { code: 429 | 500..=599, .. })
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Refused { code, message } => write!(formatter, "{code}: {message}"),
            Self::Broken(why) => formatter.write_str(why),
        }
    }
}

/// What of each object a list has.
#[derive(Clone, Copy)]
enum Part {
    Whole,
    Metadata,
}

/// A client of one server.
#[derive(Clone)]
pub struct Client {
    client: kube::Client,
    answer: Duration,
}

impl Client {
    /// As a kubeconfig says. It must be root's, as whoever may write it decides which server is believed.
    ///
    /// # Errors
    /// Why there is none, for people.
    pub async fn open(kubeconfig: &Path) -> Result<Self, String> {
        let shown = kubeconfig.display();
        let text = textfile::read(kubeconfig, Trust::Required).map_err(|unread| match unread {
            Unread::Missing => format!("{shown} does not exist"),
            Unread::Refused(finding) => format!("{shown}: {}", finding.message),
        })?;
        let config = kubeconfig::parse(&text, kubeconfig.parent())
            .map_err(|why| format!("{shown} is no kubeconfig that can be read: {why}"))?;
        let config = kubeconfig::config(config).await;
        config.and_then(Self::new).map_err(|why| format!("{shown} cannot be used: {why}"))
    }

    /// As the ServiceAccount of the pod in which this runs.
    ///
    /// # Errors
    /// Why there is none, for people.
    pub fn in_cluster() -> Result<Self, String> {
        let config = kube::Config::incluster().map_err(|error| chain(&error))?;
        Self::new(config)
    }

    /// With a bootstrap token, to a server with one of these roots (DER).
    ///
    /// # Errors
    /// Why there is none, for people.
    pub(super) fn with_token(server: &str, roots: Vec<Vec<u8>>, token: &Secret) -> Result<Self, String> {
        let mut config = at(server)?;
        config.root_cert = Some(roots);
        config.auth_info.token = Some(token.expose().to_owned().into());
        Self::new(config)
    }

    /// As nobody, without knowing who answers.
    ///
    /// # Errors
    /// Why there is none, for people.
    pub(super) fn unverified(server: &str) -> Result<Self, String> {
        let mut config = at(server)?;
        config.accept_invalid_certs = true;
        Self::new(config)
    }

    fn new(mut config: kube::Config) -> Result<Self, String> {
        config.connect_timeout = Some(CONNECT_TIME);
        Ok(Self { client: connect::client(config)?, answer: ANSWER_TIME })
    }

    /// The same, where an answer may take only so long.
    #[must_use]
    pub fn within(&self, answer: Duration) -> Self {
        Self { client: self.client.clone(), answer }
    }

    /// An object of a collection: "/apis/certificates.k8s.io/v1/certificatesigningrequests".
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn get(&self, collection: &str, name: &str) -> Result<Json, Failure> {
        let request = Request::new(collection).get(name, &GetParams::default()).map_err(|error| broken(&error))?;
        self.within_time(self.client.request(request)).await
    }

    /// All objects of a collection that fields select, as they are now: a judgement on what was may be wrong.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn list(&self, collection: &str, fields: Option<&str>) -> Result<Vec<Json>, Failure> {
        let mut parameters = ListParams::default();
        if let Some(fields) = fields {
            parameters = parameters.fields(fields);
        }
        let mut all = Vec::new();
        self.pages(collection, parameters, Part::Whole, |object| all.push(object)).await?;
        Ok(all)
    }

    /// The metadata of all objects of a collection: who is there, and in which version.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn list_metadata(&self, collection: &str) -> Result<Vec<Json>, Failure> {
        let mut all = Vec::new();
        self.each_metadata(collection, |object| all.push(object)).await?;
        Ok(all)
    }

    /// Each object of a collection, page by page, for who keeps less than the whole of it.
    ///
    /// # Errors
    /// [`Failure`]; some may have been given by then.
    pub async fn each(&self, collection: &str, each: impl FnMut(Json)) -> Result<(), Failure> {
        self.pages(collection, ListParams::default(), Part::Whole, each).await
    }

    /// The metadata of each object of a collection, page by page.
    ///
    /// # Errors
    /// [`Failure`]; some may have been given by then.
    pub async fn each_metadata(&self, collection: &str, each: impl FnMut(Json)) -> Result<(), Failure> {
        self.pages(collection, ListParams::default(), Part::Metadata, each).await
    }

    /// All pages of a list, which are of the revision of the first one.
    async fn pages(
        &self,
        collection: &str,
        parameters: ListParams,
        part: Part,
        mut each: impl FnMut(Json),
    ) -> Result<(), Failure> {
        let mut parameters = parameters.limit(PAGE);
        for _ in 0..MOST_PAGES {
            let request = match part {
                Part::Whole => Request::new(collection).list(&parameters),
                Part::Metadata => Request::new(collection).list_metadata(&parameters),
            };
            let request = request.map_err(|error| broken(&error))?;
            let mut page = self.within_time(self.client.request(request)).await?;
            items(&mut page)?.into_iter().for_each(&mut each);
            match page.pointer("/metadata/continue").and_then(Json::as_str).filter(|token| !token.is_empty()) {
                Some(token) => parameters = parameters.continue_token(token),
                None => return Ok(()),
            }
        }
        Err(Failure::Broken(format!("the list has more than {MOST_PAGES} pages")))
    }

    /// Makes an object.
    ///
    /// # Errors
    /// [`Failure`]; 409 when there is one of the name.
    pub async fn create(&self, collection: &str, object: &Json) -> Result<Json, Failure> {
        let body = object.to_string().into_bytes();
        let request = Request::new(collection).create(&PostParams::default(), body).map_err(|error| broken(&error))?;
        self.within_time(self.client.request(request)).await
    }

    /// Puts an object, or what is `below` it, in the place of the version whose `resourceVersion` it has.
    ///
    /// # Errors
    /// [`Failure`]; 409 when there is another version by now.
    pub async fn replace(
        &self,
        collection: &str,
        name: &str,
        below: Option<&str>,
        object: &Json,
    ) -> Result<Json, Failure> {
        let (parameters, body) = (PostParams::default(), object.to_string().into_bytes());
        let request = Request::new(collection);
        let request = match below {
            Some(below) => request.replace_subresource(below, name, &parameters, body),
            None => request.replace(name, &parameters, body),
        };
        self.within_time(self.client.request(request.map_err(|error| broken(&error))?)).await
    }

    /// Says by server-side apply what an object is.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn apply(&self, collection: &str, name: &str, manager: &str, object: &Json) -> Result<Json, Failure> {
        let parameters = PatchParams::apply(manager).force();
        let request =
            Request::new(collection).patch(name, &parameters, &Patch::Apply(object)).map_err(|error| broken(&error))?;
        self.within_time(self.client.request(request)).await
    }

    /// Says by server-side apply what the status of an object is.
    ///
    /// # Errors
    /// [`Failure`]; 404 when there is none of the name.
    pub async fn apply_status(
        &self,
        collection: &str,
        name: &str,
        manager: &str,
        object: &Json,
    ) -> Result<Json, Failure> {
        let parameters = PatchParams::apply(manager).force();
        let request = Request::new(collection)
            .patch_subresource("status", name, &parameters, &Patch::Apply(object))
            .map_err(|error| broken(&error))?;
        self.within_time(self.client.request(request)).await
    }

    /// Deletes an object as it was seen: neither another one of its name nor another version of it.
    ///
    /// # Errors
    /// [`Failure`]; 409 when it is not that one any more, 404 when there is none of the name.
    pub async fn delete(&self, collection: &str, name: &str, uid: &str, version: &str) -> Result<(), Failure> {
        let seen = Preconditions { resource_version: Some(version.to_owned()), uid: Some(uid.to_owned()) };
        let request = Request::new(collection)
            .delete(name, &DeleteParams::background().preconditions(seen))
            .map_err(|error| broken(&error))?;
        self.within_time(self.client.request::<Json>(request)).await.map(|_| ())
    }

    async fn within_time(&self, answer: impl Future<Output = Result<Json, kube::Error>>) -> Result<Json, Failure> {
        match tokio::time::timeout(self.answer, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(kube::Error::Api(status))) => {
                Err(Failure::Refused { code: status.code, message: status.message.clone() })
            }
            Ok(Err(error)) => Err(Failure::Broken(said(&error))),
            Err(_) => Err(Failure::Broken(format!("no answer within {} s", self.answer.as_secs_f32()))),
        }
    }
}

/// Where a server is, and nothing else about it. Without HTTPS, the token would be anybody's.
fn at(server: &str) -> Result<kube::Config, String> {
    let wrong = || format!("\"{server}\" is no URL of an API server; write it like https://api.example:6443");
    if !server.starts_with("https://") {
        return Err(wrong());
    }
    server.parse().map(kube::Config::new).map_err(|_| wrong())
}

/// What is in a list, taken out of it.
fn items(page: &mut Json) -> Result<Vec<Json>, Failure> {
    match page.get_mut("items").map(Json::take) {
        Some(Json::Array(items)) => Ok(items),
        Some(Json::Null) => Ok(Vec::new()),
        _ => Err(Failure::Broken("the answer is no list".to_owned())),
    }
}

fn broken(error: &dyn std::error::Error) -> Failure {
    Failure::Broken(chain(error))
}
