//! A real Prometheus against the real daemon, in a namespace of the test.

use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use serde_json::Value;

use super::ask::{over, request};
use super::lab::daemon::{Node, PATIENCE, management_link, policy};
use super::lab::{isolated, sh};

const DAEMON: &str = "127.0.0.1:9477";
const PROMETHEUS: &str = "127.0.0.1:9090";
const TOKEN: &str = "a-token-of-this-test";

fn shipped(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/prometheus").join(name)).unwrap()
}

/// Two authorities, a server's certificate and a client's of the first, and a client's of the other.
fn certificates(node: &Node) {
    let at = node.path("");
    let sign = |name: &str, authority: &str, more: &str| {
        format!(
            "openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {name}.key -out {name}.csr -subj /CN={name}; \
             printf '{more}' > {name}.ext; openssl x509 -req -in {name}.csr -CA {authority}.pem -CAkey {authority}.key \
             -CAcreateserial -days 2 -out {name}.pem -extfile {name}.ext; "
        )
    };
    let authority = |name: &str| {
        format!(
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -keyout {name}.key -out {name}.pem -subj /CN={name}; "
        )
    };
    let all = [
        authority("ca"),
        authority("other"),
        sign("server", "ca", "subjectAltName=IP:127.0.0.1"),
        sign("client", "ca", "extendedKeyUsage=clientAuth"),
        sign("stranger", "other", "extendedKeyUsage=clientAuth"),
    ];
    sh(&format!("cd {}; exec 2>/dev/null; umask 077; {}", at.display(), all.concat()));
    std::fs::write(node.path("token"), format!("{TOKEN}\n")).unwrap();
    std::fs::set_permissions(node.path("token"), std::fs::Permissions::from_mode(0o600)).unwrap();
}

/// The settings of the endpoint: who may read, by "client_ca" or "token_file".
fn settings(node: &Node, readers: &[(&str, &str)]) -> String {
    let files = [&[("certificate", "server.pem"), ("key", "server.key")], readers].concat();
    let lines = files.iter().map(|(key, file)| format!("{key} = \"{}\"\n", node.path(file).display()));
    format!("{}[metrics]\nlisten = \"{DAEMON}\"\n{}", node.settings(), lines.collect::<String>())
}

/// The status that curl gets, 0 for a connection that comes to nothing.
fn curl(node: &Node, arguments: &[&str]) -> u16 {
    let output = Command::new("curl")
        .current_dir(node.path(""))
        .args(["-s", "-m", "10", "-o", "/dev/null", "-w", "%{http_code}", "--cacert", "ca.pem"])
        .args(arguments)
        .arg(format!("https://{DAEMON}/metrics"))
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap().parse().unwrap()
}

#[track_caller]
fn until_curl(node: &Node, arguments: &[&str], wanted: u16) {
    let deadline = Instant::now() + PATIENCE;
    while curl(node, arguments) != wanted {
        assert!(Instant::now() < deadline, "{arguments:?} never came to {wanted}\n{}", node.log());
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

/// A Prometheus, which is killed with this.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Server {
    fn start(node: &Node) -> Self {
        let log = std::fs::File::create(node.path("prometheus.log")).unwrap();
        let child = Command::new("prometheus")
            .current_dir(node.path(""))
            .arg("--config.file=prometheus.yml")
            .arg("--storage.tsdb.path=tsdb")
            .arg(format!("--web.listen-address={PROMETHEUS}"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        Self(child.unwrap())
    }

    /// What its API says.
    fn get(path: &str) -> Value {
        let Ok(stream) = TcpStream::connect(PROMETHEUS) else { return Value::Null };
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let answer = over(stream, &request("GET", path, &[("Accept-Encoding", "identity")]));
        // The body comes in chunks when it is long; JSON begins and ends with braces.
        let body: String = if answer.head.to_lowercase().contains("transfer-encoding: chunked") {
            dechunked(&answer.body)
        } else {
            answer.body
        };
        serde_json::from_str(&body).unwrap_or_default()
    }

    /// The values of a query.
    fn query(query: &str) -> Vec<f64> {
        let escaped: String = query
            .bytes()
            .map(
                |byte| if byte.is_ascii_alphanumeric() { char::from(byte).to_string() } else { format!("%{byte:02X}") },
            )
            .collect();
        let answer = Self::get(&format!("/api/v1/query?query={escaped}"));
        let results = answer["data"]["result"].as_array().cloned().unwrap_or_default();
        results.iter().map(|result| result["value"][1].as_str().unwrap().parse().unwrap()).collect()
    }

    #[track_caller]
    fn until(node: &Node, query: &str, wanted: impl Fn(&[f64]) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let values = Self::query(query);
            if wanted(&values) {
                return;
            }
            let log = std::fs::read_to_string(node.path("prometheus.log")).unwrap();
            assert!(Instant::now() < deadline, "{query} is {values:?}\n{log}\n{}", node.log());
            std::thread::sleep(std::time::Duration::from_millis(200));
        }
    }
}

fn dechunked(body: &str) -> String {
    let (mut rest, mut whole) = (body, String::new());
    while let Some((length, after)) = rest.split_once("\r\n") {
        let length = usize::from_str_radix(length.trim(), 16).unwrap();
        if length == 0 {
            break;
        }
        whole.push_str(&after[..length]);
        rest = after[length..].trim_start_matches("\r\n");
    }
    whole
}

/// The example that comes with the package, with this node in place of the fleet.
fn configuration(node: &Node, job: &str) -> String {
    let example = shipped("scrape.example.yml");
    let start = example.find(&format!("  - job_name: {job}\n")).unwrap_or_else(|| panic!("no {job} in {example}"));
    let rest = &example[start..];
    let end = rest[1..].find("\n  - job_name:").map_or(rest.len(), |end| end + 2);
    let mut text = rest[..end].to_owned();
    for (there, here) in
        [("ca.pem", "ca.pem"), ("client.pem", "client.pem"), ("client.key", "client.key"), ("token", "token")]
    {
        text = text.replace(&format!("/etc/prometheus/nodewall/{there}"), &node.path(here).display().to_string());
    }
    // Nobody waits a quarter of a minute here.
    text = text.replace("scrape_interval: 15s", "scrape_interval: 1s");
    // The nodes of the example are named; this one is an address.
    let targets = text.lines().find(|line| line.contains("targets:")).unwrap().to_owned();
    let indent = targets.split("targets").next().unwrap();
    text = text.replace(&targets, &format!("{indent}targets: [\"{DAEMON}\"]"));
    format!(
        "global:\n  scrape_interval: 1s\n  evaluation_interval: 1s\nrule_files: [nodewall.rules.yml]\nscrape_configs:\n{text}\n"
    )
}

#[test]
fn prometheus_scrapes_with_a_certificate_and_with_a_token() {
    isolated("prometheus", || {
        if let Err(error) = Command::new("prometheus").arg("--version").output() {
            assert!(std::env::var_os("CI").is_none(), "prometheus: {error}");
            return println!("SKIPPED prometheus_scrapes_with_a_certificate_and_with_a_token: {error}");
        }
        management_link();
        let mut node = Node::new(&[("10-web.toml", &policy("web", "allow"))]);
        certificates(&node);
        let own = ["--cert", "client.pem", "--key", "client.key"];
        let stranger = ["--cert", "stranger.pem", "--key", "stranger.key"];
        node.write("nodewall.toml", &settings(&node, &[("client_ca", "ca.pem")]));
        node.run();
        until_curl(&node, &own, 200);
        assert_eq!((curl(&node, &[]), curl(&node, &stranger)), (0, 0), "without a certificate of the authority");

        node.write("nodewall.rules.yml", &shipped("nodewall.rules.yml"));
        node.write("prometheus.yml", &configuration(&node, "nodewall"));
        let server = Server::start(&node);
        Server::until(&node, "up{job=\"nodewall\"}", |values| values == [1.0]);
        Server::until(&node, "nodewall_policy_state{state=\"in-force\"}", |values| values == [1.0]);
        Server::until(&node, "sum(nodewall_policy_state)", |values| values == [1.0]);
        Server::until(&node, "sum(nodewall_verdict_packets_total{policy=\"web\"})", |values| values == [0.0]);
        Server::until(&node, "nodewall_policy_generation", |values| values == [1.0]);
        // The type of a histogram came through: Prometheus read OpenMetrics.
        Server::until(
            &node,
            "histogram_quantile(0.5, nodewall_loop_lag_seconds_bucket)",
            |values| matches!(values, [lag] if *lag < 5.0),
        );
        let metadata = Server::get("/api/v1/metadata?metric=nodewall_verdict_packets");
        assert_eq!(metadata["data"]["nodewall_verdict_packets"][0]["type"], "counter", "{metadata}");
        // Every rule was evaluated on real series.
        let deadline = Instant::now() + PATIENCE;
        loop {
            let rules = Server::get("/api/v1/rules");
            let groups = rules["data"]["groups"].as_array().cloned().unwrap_or_default();
            let all: Vec<Value> = groups.iter().flat_map(|group| group["rules"].as_array().unwrap().clone()).collect();
            if all.len() > 20 && all.iter().all(|rule| rule["health"] == "ok") {
                break;
            }
            assert!(Instant::now() < deadline, "{rules:#}");
            std::thread::sleep(std::time::Duration::from_millis(200));
        }

        // From now on a token is asked for.
        node.write("nodewall.toml", &settings(&node, &[("token_file", "token")]));
        let header = format!("Authorization: Bearer {TOKEN}");
        until_curl(&node, &["-H", &header], 200);
        assert_eq!(curl(&node, &own), 401);
        assert_eq!(curl(&node, &["-H", "Authorization: Bearer a-token-of-this-tesT"]), 401);
        node.write("prometheus.yml", &configuration(&node, "nodewall-by-token"));
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(server.0.id().try_into().unwrap()),
            nix::sys::signal::Signal::SIGHUP,
        )
        .unwrap();
        Server::until(&node, "up{job=\"nodewall-by-token\"}", |values| values == [1.0]);

        // Both at once.
        node.write("nodewall.toml", &settings(&node, &[("client_ca", "ca.pem"), ("token_file", "token")]));
        until_curl(&node, &["-H", &header], 0);
        until_curl(&node, &[own.as_slice(), &["-H", &header]].concat(), 200);
        assert_eq!(curl(&node, &own), 401);
        // A client of an authority that holds no more is not let in again.
        std::fs::copy(node.path("other.pem"), node.path("ca2.pem")).unwrap();
        node.write("nodewall.toml", &settings(&node, &[("client_ca", "ca2.pem")]));
        until_curl(&node, &stranger, 200);
        assert_eq!(curl(&node, &own), 0);
        // And back by a change of the file alone.
        std::fs::copy(node.path("ca.pem"), node.path("ca2.pem")).unwrap();
        assert_eq!((curl(&node, &own), curl(&node, &stranger)), (200, 0));
        drop(server);
    });
}
