//! Processes that listen at known places.

use std::io::{BufRead, BufReader};
use std::net::IpAddr;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::lab::sh;

/// A process and where it listens, in the words of listen.py.
#[derive(Clone, Debug)]
pub struct Process {
    /// Its name.
    pub name: &'static str,
    /// Where it listens, and what else it has open.
    pub places: Vec<&'static str>,
    /// A device file of a GPU, made for it, that it has open.
    pub gpu: Option<&'static str>,
    /// Its user.
    pub user: u32,
}

/// One endpoint as the report tells it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Listening {
    pub transport: String,
    pub address: IpAddr,
    pub port: u16,
    pub both_families: bool,
    pub device: Option<String>,
    pub process: String,
    pub gpu: bool,
    pub uid: u32,
}

/// The 32 places on which the tests agree.
pub fn all() -> Vec<Process> {
    let process = |name, places: &[&'static str]| Process { name, places: places.to_vec(), gpu: None, user: 0 };
    vec![
        process("sshd", &["both:22"]),
        process("raylet", &["tcp:8265", "tcp:6379", "tcp:10001", "tcp:52365", "connected"]),
        Process { user: 65534, ..process("ollama", &["both:11434", "unbound"]) },
        process("kubelet", &["mptcp:10250", "tcp:10255", "tcp:127.0.0.1:10248", "tcp6:::1:10247"]),
        Process { gpu: Some("/dev/nvidia0"), ..process("nv-hostengine", &["tcp:127.0.0.1:5555"]) },
        Process { gpu: Some("/dev/nvidia7"), user: 65534, ..process("mine", &["tcp:8899", "tcp:40123", "udp:40123"]) },
        process("exporter", &["tcp:9100", "tcp6:9400", "tcp:10.1.0.2:9400"]),
        process("snmpd", &["udp:161", "udp6:::1:161"]),
        process("avahi", &["udp:5353", "udp6:5353"]),
        process("web", &["tcp:443", "tcp6:fd00::2:8443", "tcp:10.0.0.2:8080", "tcp:10.244.0.1:8081"]),
        process("syslog", &["tcp:514", "udp:127.0.0.1:514"]),
        process("bound", &["tcp:8500@rail0", "tcp:8500@mgmt0"]),
        process("lite", &["udplite:7000"]),
        process("rxe", &["udp:4791"]),
        process("ranks", &["tcp:28028@mgmt0"]),
    ]
}

impl Process {
    /// What the report has to say about it.
    pub fn listening(&self) -> Vec<Listening> {
        let place = |place: &&'static str| {
            let (place, device) = place.split_once('@').map_or((*place, None), |(place, device)| (place, Some(device)));
            let (kind, rest) = place.split_once(':')?;
            let (address, port) = rest.rsplit_once(':').unwrap_or(("", rest));
            let v6 = kind.ends_with('6') || kind == "both";
            let any = if v6 { "::" } else { "0.0.0.0" };
            let transport = match kind {
                "udp" | "udp6" => "udp",
                "udplite" => "udplite",
                _ => "tcp",
            };
            Some(Listening {
                transport: transport.to_owned(),
                address: if address.is_empty() { any } else { address }.parse().unwrap(),
                port: port.parse().unwrap(),
                both_families: kind == "both",
                device: device.map(str::to_owned),
                process: self.name.to_owned(),
                gpu: self.gpu.is_some(),
                uid: self.user,
            })
        };
        self.places.iter().filter_map(place).collect()
    }
}

impl Listening {
    /// The endpoint of a listener in the report.
    pub fn of_report(listener: &Value) -> Self {
        let process = &listener["processes"][0];
        Self {
            transport: listener["transport"].as_str().unwrap().to_owned(),
            address: listener["address"].as_str().unwrap().parse().unwrap(),
            port: u16::try_from(listener["port"].as_u64().unwrap()).unwrap(),
            both_families: listener["both_families"].as_bool().unwrap(),
            device: listener["device"].as_str().map(str::to_owned),
            process: process["name"].as_str().unwrap_or("nobody").to_owned(),
            gpu: listener["gpu"].as_bool().unwrap(),
            uid: u32::try_from(listener["uid"].as_u64().unwrap()).unwrap(),
        }
    }
}

/// Processes that run; they end when this is dropped.
pub struct Running(Vec<(Process, Child)>);

impl Drop for Running {
    fn drop(&mut self) {
        for (_, child) in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Running {
    /// The processes that listen there.
    pub fn pids(&self, listening: &Listening) -> Vec<u64> {
        let holds = |(process, child): &(Process, Child)| {
            process.listening().contains(listening).then(|| u64::from(child.id()))
        };
        self.0.iter().filter_map(holds).collect()
    }
}

/// Starts processes in this network namespace; they listen when this returns.
pub fn start(processes: &[Process]) -> Running {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/audit/listen.py");
    // Not by whatever stands before it in the path.
    let python = sh("python3 -c 'import sys; print(sys.executable)'");
    let start = |process: &Process| {
        let mut words: Vec<String> = vec![python.trim().to_owned(), script.to_owned(), process.name.to_owned()];
        words.push(format!("user:{}", process.user));
        words.extend(process.gpu.map(|gpu| format!("dev:{gpu}")));
        words.extend(process.places.iter().map(|place| (*place).to_owned()));
        // A device file of its own, as in a container, that is /dev/null.
        let device = process.gpu.map(|gpu| format!("mount -t tmpfs none /dev && mknod -m 666 {gpu} c 1 3 && "));
        let line = format!("{}exec \"$@\"", device.unwrap_or_default());
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-ec", &line, "sh"]).args(&words);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said, "ready\n", "{}", process.name);
        (process.clone(), child)
    };
    Running(processes.iter().map(start).collect())
}
