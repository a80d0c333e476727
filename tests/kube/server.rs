//! The server that the suite runs against, and changes of objects on it by its API: the stand-in, or the real one that
//! NODEWALL_TEST_KUBECONFIG names, with our definitions installed and nothing of ours in it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::Request;
use kube::core::params::{DeleteParams, Patch, PatchParams, PostParams};
use nodewall::source::object::Kind;
use serde_json::{Value as Json, json};

use super::lab::daemon::PATIENCE;
use super::lab::sh;
use super::stand_in::StandIn;

/// Somebody who changes objects.
pub struct Admin {
    runtime: tokio::runtime::Runtime,
    client: kube::Client,
}

impl Admin {
    /// Of the cluster that this kubeconfig is for.
    pub fn new(kubeconfig: PathBuf) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let client = runtime.block_on(async {
            let read = Kubeconfig::read_from(kubeconfig).unwrap();
            let config = kube::Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await.unwrap();
            kube::Client::try_from(config).unwrap()
        });
        Self { runtime, client }
    }

    /// Makes an object.
    #[track_caller]
    pub fn create(&self, kind: Kind, name: &str, spec: &Json) {
        let object = json!({ "apiVersion": "nodewall.dev/v1alpha1", "kind": kind.name(), "metadata": { "name": name }, "spec": spec });
        let request = resource(kind).create(&PostParams::default(), object.to_string().into_bytes()).unwrap();
        self.send(&request);
    }

    /// Changes these fields of its spec.
    #[track_caller]
    pub fn change(&self, kind: Kind, name: &str, spec: &Json) {
        let patch = Patch::Merge(json!({ "spec": spec }));
        let request = resource(kind).patch(name, &PatchParams::default(), &patch).unwrap();
        self.send(&request);
    }

    /// Deletes it.
    #[track_caller]
    pub fn delete(&self, kind: Kind, name: &str) {
        let request = resource(kind).delete(name, &DeleteParams::default()).unwrap();
        self.send(&request);
    }

    /// An object as it is stored.
    #[track_caller]
    pub fn get(&self, kind: Kind, name: &str) -> Json {
        let request = resource(kind).get(name, &kube::core::params::GetParams::default()).unwrap();
        self.send(&request)
    }

    /// A server that was just started takes a moment, and a connection that was closed while nobody used it lost no request.
    #[track_caller]
    fn send(&self, request: &hyper::Request<Vec<u8>>) -> Json {
        let start = Instant::now();
        loop {
            match self.runtime.block_on(self.client.request::<Json>(request.clone())) {
                Err(kube::Error::Service(_)) if start.elapsed() < PATIENCE => {
                    std::thread::sleep(Duration::from_millis(20))
                }
                // What is asked of a server before it is ready is asked again.
                Err(kube::Error::Api(status))
                    if matches!(status.code, 403 | 404 | 429 | 503) && start.elapsed() < PATIENCE =>
                {
                    std::thread::sleep(Duration::from_millis(20));
                }
                answer => return answer.unwrap(),
            }
        }
    }

    /// The specs of all objects of our kinds, by plural and name.
    pub fn specs(&self) -> std::collections::BTreeMap<(String, String), Json> {
        let mut specs = std::collections::BTreeMap::new();
        for kind in Kind::ALL.into_iter().filter(|kind| kind.table().is_some()) {
            let request = resource(kind).list(&kube::core::params::ListParams::default()).unwrap();
            let list = self.send(&request);
            for item in list["items"].as_array().unwrap() {
                let name = item["metadata"]["name"].as_str().unwrap().to_owned();
                specs.insert((kind.plural().to_owned(), name), item["spec"].clone());
            }
        }
        specs
    }
}

fn resource(kind: Kind) -> Request {
    Request::new(format!("/apis/nodewall.dev/v1alpha1/{}", kind.plural()))
}

/// A server for what every server can do.
pub enum Server {
    /// Ours.
    StandIn(StandIn),
    /// A real one's kubeconfig.
    Real(PathBuf),
}

impl Server {
    /// The one that the environment names, else the stand-in.
    pub fn any() -> Self {
        match std::env::var_os("NODEWALL_TEST_KUBECONFIG") {
            Some(path) => Self::Real(path.into()),
            None => Self::StandIn(StandIn::start()),
        }
    }

    /// Kills it and starts it again, with what it has stored. A real one by the shell command in NODEWALL_TEST_RESTART; whether there is
    /// one.
    pub fn restart(&self) -> bool {
        match self {
            Self::StandIn(stand_in) => stand_in.restart(),
            Self::Real(_) => match std::env::var("NODEWALL_TEST_RESTART") {
                Ok(command) => drop(sh(&command)),
                Err(_) => return false,
            },
        }
        true
    }

    /// How to reach it.
    pub fn kubeconfig(&self) -> PathBuf {
        match self {
            Self::StandIn(stand_in) => stand_in.kubeconfig(),
            Self::Real(path) => path.clone(),
        }
    }
}
