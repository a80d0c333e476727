//! Services that are dangerous where anybody reaches them, how they are recognised, and who should (`domain.md` sections 3 and 4).

use crate::net::listener::{Holders, Listener, Transport};
use crate::net::protocol::Protocol;

/// A service that is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Known {
    /// Its name for people.
    pub name: &'static str,
    /// Its usual ports, first and last.
    ports: &'static [(u16, u16)],
    protocol: Protocol,
    /// How its program is called, or a word of its command line begins.
    programs: &'static [&'static str],
    /// Whether others use these ports so often that a program of another name is not taken for it.
    common_port: bool,
    /// Who should reach it.
    pub meant_for: MeantFor,
    /// Why it is dangerous.
    pub reason: &'static str,
    /// The preset that closes it, but for whom it is for.
    pub preset: Option<&'static str>,
}

/// Who should reach a service.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum MeantFor {
    /// Nobody: it should be switched off.
    Nobody,
    /// Programs on this host.
    ThisHost,
    /// Those that a set names.
    Some(&'static str),
}

impl Known {
    /// The service of a listener, by its program, or where that does not tell by its port.
    pub fn of(listener: &Listener) -> Option<&'static Self> {
        let Transport::Ip(protocol) = listener.endpoint.transport else { return None };
        let of_protocol = || SERVICES.iter().filter(move |known| known.protocol == protocol);
        let named = of_protocol().filter(|known| known.is_run_by(&listener.holders));
        let port = listener.endpoint.port;
        // One program may be several services; the port tells which, or that it is none of the usual ones.
        named
            .clone()
            .find(|known| known.has(port))
            .or_else(|| named.clone().find(|known| known.ports.is_empty()))
            .or_else(|| named.clone().next())
            .or_else(|| of_protocol().find(|known| known.has(port) && known.may_be_run_by(&listener.holders)))
    }

    /// The service by the port alone, of what is published and runs elsewhere.
    pub fn at(protocol: Protocol, port: u16) -> Option<&'static Self> {
        SERVICES.iter().find(|known| known.protocol == protocol && known.has(port) && !known.common_port)
    }

    /// Its usual ports, first and last; none for one that is known by its program alone.
    pub fn ports(&self) -> impl Iterator<Item = u16> {
        self.ports.iter().flat_map(|(first, last)| *first..=*last)
    }

    /// Its protocol.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    fn has(&self, port: u16) -> bool {
        self.ports.iter().any(|(first, last)| (*first..=*last).contains(&port))
    }

    fn is_run_by(&self, holders: &Holders) -> bool {
        let is = |word: &str| self.programs.iter().any(|program| word.starts_with(program));
        holders.processes().iter().any(|process| is(&process.name) || process.words.iter().any(|word| is(word)))
    }

    /// Whether nothing speaks against it: nobody knows the program, or it is one that runs others' programs.
    fn may_be_run_by(&self, holders: &Holders) -> bool {
        let runs_others = |name: &str| INTERPRETERS.iter().any(|interpreter| name.starts_with(interpreter));
        match holders {
            Holders::Unknown => true,
            Holders::Kernel(_) => false,
            Holders::Processes(processes) => {
                processes.iter().any(|process| runs_others(&process.name)) || !self.common_port
            }
        }
    }
}

/// Programs that run programs, so that their name says nothing.
const INTERPRETERS: &[&str] = &["python", "java", "node", "ray::", "ruby", "uvicorn", "gunicorn", "VLLM"];

const fn tcp(
    name: &'static str,
    ports: &'static [(u16, u16)],
    programs: &'static [&'static str],
    (meant_for, preset): (MeantFor, Option<&'static str>),
    reason: &'static str,
) -> Known {
    Known { name, ports, protocol: Protocol::TCP, programs, common_port: false, meant_for, reason, preset }
}

/// At a port that is common.
const fn often(known: Known) -> Known {
    Known { common_port: true, ..known }
}

/// What is looked for, the narrower before the wider.
pub const SERVICES: &[Known] = &[
    tcp(
        "Ray dashboard and job API",
        &[(8265, 8265)],
        &["dashboard", "ray::Dashboard"],
        (MeantFor::Some("admin"), Some("ray")),
        "whoever reaches it runs code: jobs are taken without a password (CVE-2023-48022, CVE-2025-62593, exploited as ShadowRay)",
    ),
    tcp(
        "Ray",
        &[(6379, 6379), (10001, 10001), (52365, 52365)],
        &["gcs_server", "raylet", "ray::"],
        (MeantFor::Some("cluster"), Some("ray")),
        "Ray has no authentication between its parts: whoever reaches one runs code",
    ),
    tcp(
        "kubelet, read-only",
        &[(10255, 10255)],
        &[],
        (MeantFor::Nobody, Some("kubelet")),
        "lists pods and their environment to anybody (Kubernetes threat matrix MS-TA9030); set readOnlyPort: 0",
    ),
    tcp(
        "kubelet",
        &[(10250, 10250)],
        &["kubelet"],
        (MeantFor::Some("control-plane"), Some("kubelet")),
        "its exec and run are code execution on this node, and anonymous requests are accepted unless anonymous-auth=false",
    ),
    tcp(
        "etcd",
        &[(2379, 2380)],
        &["etcd"],
        (MeantFor::Some("control-plane"), Some("kube-control-plane")),
        "holds every secret of the cluster",
    ),
    tcp(
        "DCGM host engine",
        &[(5555, 5555)],
        &["nv-hostengine"],
        (MeantFor::ThisHost, Some("dcgm")),
        "takes commands without a password; binds to 127.0.0.1 unless told otherwise (CVE-2022-21820, CVE-2023-0208)",
    ),
    tcp(
        "DCGM exporter",
        &[(9400, 9400)],
        &["dcgm-exporter"],
        (MeantFor::Some("monitoring"), Some("dcgm")),
        "/debug/pprof needs no password: denial of service and information leak (CVE-2026-47483)",
    ),
    tcp(
        "Fabric Manager",
        &[(6666, 6666), (16000, 16000)],
        &["nv-fabricmanager"],
        (MeantFor::ThisHost, Some("dcgm")),
        "its API repartitions NVSwitch; it belongs on loopback, and Calico's failsafe lets 6666 in",
    ),
    tcp(
        "IMEX",
        &[(50000, 50000), (50005, 50005)],
        &["nvidia-imex"],
        (MeantFor::Some("nvlink-peers"), Some("imex")),
        "authentication and encryption are off unless configured, and its command service listens on every address",
    ),
    tcp(
        "NCCL RAS",
        &[(28028, 28028)],
        &[],
        (MeantFor::ThisHost, Some("dcgm")),
        "tells about jobs and ranks without a password; it belongs on loopback",
    ),
    tcp(
        "Ollama",
        &[(11434, 11434)],
        &["ollama"],
        (MeantFor::Some("clients"), Some("ollama")),
        "runs, loads and deletes models for anybody; it is on 127.0.0.1 unless OLLAMA_HOST widens it (175,000 hosts were found exposed)",
    ),
    often(tcp(
        "Jupyter",
        &[(8888, 8888)],
        &["jupyter"],
        (MeantFor::Some("admin"), Some("jupyter")),
        "a notebook is a shell of its user, and often without a password",
    )),
    often(tcp(
        "Triton metrics",
        &[(8002, 8002)],
        &["tritonserver"],
        (MeantFor::Some("monitoring"), Some("triton")),
        "tells about every model and request, without a password",
    )),
    often(tcp(
        "Triton",
        &[(8000, 8001)],
        &["tritonserver"],
        (MeantFor::Some("clients"), Some("triton")),
        "its authentication can be passed by (CVE-2026-24207) and it ran attackers' code before (CVE-2025-23310)",
    )),
    often(tcp(
        "vLLM",
        &[(8000, 8000)],
        &["vllm", "VLLM"],
        (MeantFor::Some("clients"), Some("vllm")),
        "its nodes talk without authentication, in pickles (CVE-2025-32444, CVE-2025-47277, CVE-2025-30202)",
    )),
    tcp(
        "vLLM between nodes",
        &[],
        &["vllm", "VLLM"],
        (MeantFor::Some("job-peers"), Some("torchrun")),
        "its nodes talk without authentication, in pickles (CVE-2025-32444, CVE-2025-47277, CVE-2025-30202)",
    ),
    often(tcp(
        "SGLang",
        &[(30000, 30000)],
        &["sglang"],
        (MeantFor::Some("clients"), Some("sglang")),
        "it has no password unless one is set, and its port is one of the NodePort range",
    )),
    tcp(
        "torchrun rendezvous",
        &[(29400, 29400), (29500, 29500)],
        &["torchrun"],
        (MeantFor::Some("job-peers"), Some("torchrun")),
        "PyTorch's distributed parts have no authentication: whoever reaches one runs code in the job",
    ),
    tcp(
        "Slurm",
        &[(6817, 6820)],
        &["slurmctld", "slurmd", "slurmdbd", "slurmrestd"],
        (MeantFor::Some("cluster"), Some("slurm")),
        "its daemons start programs of any user",
    ),
    often(tcp(
        "AMD metrics exporter",
        &[(5000, 5001)],
        &["amd-metrics", "amd_metrics"],
        (MeantFor::Some("monitoring"), Some("amd-metrics-exporter")),
        "tells about every GPU and its jobs",
    )),
    often(tcp(
        "TensorBoard",
        &[(6006, 6006)],
        &["tensorboard"],
        (MeantFor::Some("admin"), None),
        "shows experiments to anybody; it has no password",
    )),
    often(tcp(
        "MLflow",
        &[(5000, 5000)],
        &["mlflow"],
        (MeantFor::Some("admin"), None),
        "takes and gives models without a password unless one is set",
    )),
    tcp(
        "Dask",
        &[(8786, 8787)],
        &["dask"],
        (MeantFor::Some("job-peers"), None),
        "its scheduler runs the functions that it is sent",
    ),
    tcp(
        "Docker API without TLS",
        &[(2375, 2375)],
        &[],
        (MeantFor::Nobody, None),
        "whoever reaches it is root on this host; use the unix socket or TLS",
    ),
];
