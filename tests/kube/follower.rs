//! The source as the daemon has it, and what it holds.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use nodewall::net::node::ClusterNodes;
use nodewall::policy::clusters::{Cluster, Contribution};
use nodewall::source::kube::{Health, Holding, Me, Pace, Source, Told};
use serde_json::Value as Json;

use super::lab::daemon::PATIENCE;

/// Times of faults in seconds rather than minutes.
pub const QUICK: Pace = Pace {
    short_watch: 2,
    long_watch: 60,
    grace: Duration::from_secs(1),
    answer: Duration::from_secs(2),
    settle: Duration::from_millis(10),
    settle_nodes: Duration::from_millis(50),
    credentials: Duration::from_millis(100),
};

/// A cluster that may say everything, but for nodes: not every server of the contract has Nodes.
pub fn cluster(kubeconfig: &Path) -> Cluster {
    Cluster {
        name: "hub".to_owned(),
        kubeconfig: kubeconfig.to_owned(),
        contribute: Contribution::ALL.into_iter().filter(|each| *each != Contribution::Nodes).collect(),
        tiers: ["platform", "default", "first"].map(str::to_owned).into(),
        believe_empty: false,
        node_addresses: Vec::new(),
        calico: false,
    }
}

/// A source that is followed.
pub struct Follower {
    _source: Source,
    told: mpsc::Receiver<Told>,
    holding: Arc<Holding>,
    nodes: Arc<ClusterNodes>,
    health: Option<Health>,
}

impl Follower {
    /// Of this cluster, from nothing.
    pub fn new(cluster: Cluster) -> Self {
        Self::from(cluster, &Holding::default())
    }

    /// The same from what was held before.
    pub fn from(cluster: Cluster, before: &Holding) -> Self {
        Self::named(cluster, before, "n1")
    }

    /// The same on the node that is called so.
    pub fn named(cluster: Cluster, before: &Holding, node: &str) -> Self {
        let (tell, told) = mpsc::channel();
        let labels = [("pool".to_owned(), "training".to_owned())].into();
        let me = Me { name: node.to_owned(), labels, node: None };
        let source =
            Source::start(cluster, me, (before, &ClusterNodes::new()), QUICK, 7, move |news| drop(tell.send(news)))
                .unwrap();
        Self { _source: source, told, holding: Arc::new(before.clone()), nodes: Arc::default(), health: None }
    }

    /// The specs that are held, by plural and name.
    pub fn specs(&self) -> BTreeMap<(String, String), Json> {
        let spec = |text: &str| serde_json::from_str::<Json>(text).unwrap()["spec"].clone();
        let objects = self.holding.objects.iter();
        objects.map(|((kind, name), file)| ((kind.plural().to_owned(), name.clone()), spec(&file.text))).collect()
    }

    /// What is held now.
    pub fn holding(&self) -> &Holding {
        &self.holding
    }

    /// Who its nodes are.
    pub fn nodes(&self) -> &ClusterNodes {
        &self.nodes
    }

    /// How it is.
    pub fn health(&self) -> &Health {
        self.health.as_ref().unwrap()
    }

    /// Waits until what is told is as wanted, and says how long that took.
    #[track_caller]
    pub fn until(&mut self, what: &str, wanted: impl Fn(&Self) -> bool) -> Duration {
        let start = Instant::now();
        loop {
            while let Ok(told) = self.told.try_recv() {
                self.take(told);
            }
            if self.health.is_some() && wanted(self) {
                return start.elapsed();
            }
            let left = (start + PATIENCE).saturating_duration_since(Instant::now());
            match self.told.recv_timeout(left) {
                Ok(told) => self.take(told),
                Err(_) => panic!("{what} did not come: {:?} {:#?}", self.health, self.specs()),
            }
        }
    }

    /// Waits for something else, whatever is told meanwhile.
    #[track_caller]
    pub fn until_quiet(&mut self, what: &str, wanted: impl Fn() -> bool) {
        let start = Instant::now();
        while !wanted() {
            assert!(start.elapsed() < PATIENCE, "{what} did not come: {:?}", self.health);
            std::thread::sleep(Duration::from_millis(20));
            while let Ok(told) = self.told.try_recv() {
                self.take(told);
            }
        }
    }

    fn take(&mut self, told: Told) {
        if let Some(holding) = told.holding {
            self.holding = holding;
        }
        if let Some(nodes) = told.nodes {
            self.nodes = nodes;
        }
        self.health = Some(told.health);
    }
}
