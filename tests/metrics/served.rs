//! The daemon's own sockets.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::ask::{Answer, PROMETHEUS, over, promtool, request, tcp, unix, until, value};
use super::lab::daemon::{Node, loaded, until_repaired};
use super::lab::net::{Host, wire};
use super::lab::{isolated, sh};

const POLICY: &str = r#"
[[policy]]
name = "web"
order = 10
interfaces = "role == 'mgmt'"
ingress = [
  { action = "allow", protocol = "tcp", ports = [8080] },
  { action = "deny", protocol = "tcp", ports = [81] },
]
"#;

/// A host behind the node's mgmt0.
struct Outside(Host);

impl Outside {
    fn new() -> Self {
        let (node, host) = (Host::this(), Host::new());
        wire((&node, "mgmt0", &["10.77.0.2/24"]), (&host, "peer0", &["10.77.0.1/24"]));
        sh("ip route add default via 10.77.0.1");
        Self(host)
    }

    /// Connects to a port of the node so often, one packet each.
    fn knock(&self, port: u16, times: usize) {
        let address = SocketAddr::from(([10, 77, 0, 2], port));
        self.0.enter(|| {
            for _ in 0..times {
                let _ = TcpStream::connect_timeout(&address, Duration::from_millis(150));
            }
        });
    }
}

#[test]
fn counters_grow_and_never_go_back_and_promtool_has_nothing_against_them() {
    isolated("metrics", || {
        let outside = Outside::new();
        let mut node = Node::new(&[("10-web.toml", POLICY)]);
        node.run();
        let _web = TcpListener::bind("10.77.0.2:8080").unwrap();
        let socket = node.path("run/metrics.sock");
        let denied = |page: &str| {
            let labels = [("policy", "web"), ("verdict", "denied"), ("direction", "ingress"), ("interface", "mgmt0")];
            value(page, "nodewall_verdict_packets_total", &labels)
        };
        // The unix socket is for those who may ask for the status.
        let metadata = std::fs::metadata(&socket).unwrap();
        assert_eq!((metadata.permissions().mode() & 0o777, metadata.uid()), (0o660, 0));
        until(&node, "the first page", |page| denied(page) == Some(0.0));
        outside.knock(81, 5);
        let page = until(&node, "five denied", |page| denied(page) >= Some(5.0));
        let seen = denied(&page).unwrap();
        outside.knock(8080, 1);
        until(&node, "an allowed one", |page| {
            value(page, "nodewall_verdict_packets_total", &[("policy", "web"), ("verdict", "allowed")]) >= Some(1.0)
        });
        // Each rule is another one now, and the kernel counts from zero.
        node.write("policy.d/10-web.toml", &POLICY.replace("\n[[policy]]", "\n\n# A line more.\n[[policy]]"));
        until(&node, "the next generation", |page| value(page, "nodewall_policy_generation", &[]) == Some(2.0));
        outside.knock(81, 3);
        let page = until(&node, "three more", |page| denied(page) >= Some(seen + 3.0));
        assert!(denied(&page) < Some(seen + 20.0), "{page}");
        // What is dropped by an audited policy is dropped no more.
        node.write("policy.d/10-web.toml", &POLICY.replace("order = 10", "order = 10\nmode = \"audit\""));
        until(&node, "the third generation", |page| value(page, "nodewall_policy_generation", &[]) == Some(3.0));
        outside.knock(81, 2);
        until(&node, "what would be denied", |page| {
            value(page, "nodewall_verdict_packets_total", &[("policy", "web"), ("verdict", "would-deny")]) >= Some(2.0)
        });
        sh("nft add rule inet nodewall input counter");
        let page = until(&node, "a drift", |page| value(page, "nodewall_drift_events_total", &[]) >= Some(1.0));
        assert_eq!(value(&page, "nodewall_repair_duration_seconds_count", &[]), Some(1.0));
        assert!(value(&page, "nodewall_apply_results_total", &[("result", "changed")]) >= Some(3.0));
        assert_eq!(value(&page, "nodewall_policy_state", &[("state", "in-force")]), Some(1.0));
        assert!(value(&page, "nodewall_process_resident_memory_bytes", &[]) > Some(1e6));
        assert_eq!(value(&page, "nodewall_rule_packets_total", &[]), None, "rules are told apart on request only");
        // Port 8080 is open to anybody; audit looks in the background.
        let page = until(&node, "exposed sockets", |page| {
            value(page, "nodewall_exposed_sockets", &[("reach", "anyone")]).is_some()
        });
        if let Some((good, words)) = promtool(&["check", "metrics"], &page) {
            assert!(good && words.is_empty(), "{words}\n{page}");
        }
        let Answer { status, head, body } = unix(&socket, PROMETHEUS);
        assert_eq!(status, 200);
        assert!(
            head.to_lowercase().contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8")
        );
        assert!(body.ends_with("# EOF\n") && body.contains("\n# TYPE nodewall_verdict_packets counter\n"), "{body}");
        // Another start counts from zero, whatever the kernel's rules have counted.
        node.kill();
        node.run();
        let page = until(&node, "a page of the next daemon", |page| page.contains("nodewall_verdict_packets_total"));
        let all = value(&page, "nodewall_verdict_packets_total", &[("policy", "web")]);
        assert_eq!(all, Some(0.0), "{page}");
    });
}

#[test]
fn there_is_get_of_metrics_and_nothing_else() {
    isolated("only-get", || {
        super::lab::daemon::management_link();
        let mut node = Node::new(&[]);
        node.run();
        let socket = node.path("run/metrics.sock");
        until(&node, "the first page", |page| page.contains("nodewall_build_info"));
        for (method, path, status) in [
            ("GET", "/metrics", 200),
            ("GET", "/metrics?name=a", 200),
            ("GET", "/", 404),
            ("GET", "/metrics/", 404),
            ("POST", "/metrics", 405),
            ("HEAD", "/metrics", 405),
        ] {
            let stream = UnixStream::connect(&socket).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            assert_eq!(over(stream, &request(method, path, &[])).status, status, "{method} {path}");
        }
        let page = until(&node, "counted requests", |page| {
            value(page, "nodewall_metrics_requests_total", &[("outcome", "bad-method")]) == Some(2.0)
        });
        assert_eq!(value(&page, "nodewall_metrics_requests_total", &[("outcome", "not-found")]), Some(2.0));
        // Garbage, and somebody who says nothing, hurt nobody.
        assert_eq!(over(UnixStream::connect(&socket).unwrap(), "\x16\x03\x01 nonsense\r\n\r\n").status, 400);
        let silent: Vec<UnixStream> = (0..4).map(|_| UnixStream::connect(&socket).unwrap()).collect();
        assert_eq!(unix(&socket, "").status, 200);
        drop(silent);
        // Switched off, it goes.
        node.write("nodewall.toml", &(node.settings() + "[metrics]\nsocket = false\n"));
        let deadline = Instant::now() + super::lab::daemon::PATIENCE;
        while socket.exists() {
            assert!(Instant::now() < deadline, "the socket stays\n{}", node.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    });
}

#[test]
fn rules_are_told_apart_on_request() {
    isolated("by-rule", || {
        let outside = Outside::new();
        let mut node = Node::new(&[("10-web.toml", POLICY)]);
        node.write("nodewall.toml", &(node.settings() + "[metrics]\nrules = true\nexposed = false\n"));
        node.run();
        let of_rule = |page: &str, rule| {
            value(page, "nodewall_rule_packets_total", &[("policy", "web"), ("rule", rule), ("direction", "ingress")])
        };
        until(&node, "the first page", |page| of_rule(page, "2") == Some(0.0));
        outside.knock(81, 2);
        let page = until(&node, "two denied", |page| of_rule(page, "2") >= Some(2.0));
        assert_eq!(of_rule(&page, "1"), Some(0.0));
        assert_eq!(value(&page, "nodewall_metrics_cut_series", &[("family", "rule")]), Some(0.0));
        assert_eq!(value(&page, "nodewall_exposed_age_seconds", &[]), None);
    });
}

#[test]
fn what_is_wrong_with_the_endpoint_is_told_and_stops_nothing() {
    isolated("trouble", || {
        super::lab::daemon::management_link();
        let mut node = Node::new(&[]);
        let token = node.path("token");
        let listen = format!("[metrics]\nlisten = \"127.0.0.1:9477\"\ntoken_file = \"{}\"\n", token.display());
        node.write("nodewall.toml", &(node.settings() + &listen));
        node.run();
        let status = node.until("the trouble", |_, status| status["metrics_error"].is_string());
        assert_eq!(status["metrics_error"], format!("{} does not exist", token.display()).as_str());
        assert!(node.must(&["status"]).contains("metrics"), "{}", node.must(&["status"]));
        until(&node, "the page by the other socket", |page| page.contains("nodewall_build_info"));
        // It is tried again.
        std::fs::write(&token, "0123456789abcdef-a-token\n").unwrap();
        std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o600)).unwrap();
        node.until("the endpoint", |_, status| status["metrics_error"].is_null());
        assert_eq!(tcp("127.0.0.1:9477", "0123456789abcdef-a-token").status, 200);
        assert_eq!(tcp("127.0.0.1:9477", "0123456789abcdef-a-tokem").status, 401);
        // Another token counts from the next connection on.
        std::fs::write(&token, "another-token-of-the-same\n").unwrap();
        assert_eq!(tcp("127.0.0.1:9477", "0123456789abcdef-a-token").status, 401);
        assert_eq!(tcp("127.0.0.1:9477", "another-token-of-the-same").status, 200);
        // Other settings for the same address: it is free in time.
        node.write("nodewall.toml", &(node.settings() + &listen + "rules = true\n"));
        until(&node, "rules", |page| page.contains("nodewall_rule_packets_total"));
        assert_eq!(node.status().1["metrics_error"], serde_json::Value::Null);
        // One that cannot be used changes nothing.
        std::fs::write(&token, "short\n").unwrap();
        assert_eq!(tcp("127.0.0.1:9477", "another-token-of-the-same").status, 200);
        node.logs("the metrics endpoint goes on with what was there before");
    });
}

#[test]
fn a_flood_of_scrapes_slows_nothing() {
    isolated("flood", || {
        super::lab::daemon::management_link();
        let mut node = Node::new(&[("10-web.toml", POLICY)]);
        let token = node.path("token");
        std::fs::write(&token, "0123456789abcdef-a-token\n").unwrap();
        std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o600)).unwrap();
        let listen = format!("[metrics]\nlisten = \"127.0.0.1:9477\"\ntoken_file = \"{}\"\n", token.display());
        node.write("nodewall.toml", &(node.settings() + &listen));
        node.run();
        let first = until(&node, "the first page", |page| page.contains("nodewall_build_info"));
        let cpu = |page: &str| value(page, "nodewall_process_cpu_seconds_total", &[]).unwrap();
        let (wanted, _) = loaded();
        let (stop, answered, asked) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
        let namespace = Host::this();
        let (mut slowest, began) = (Duration::ZERO, Instant::now());
        std::thread::scope(|scope| {
            for number in 0..12 {
                let (socket, namespace) = (node.path("run/metrics.sock"), namespace.clone());
                let (stop, answered, asked) = (&stop, &answered, &asked);
                scope.spawn(move || {
                    namespace.enter(|| {
                        while !stop.load(Ordering::Relaxed) {
                            let by_tcp = || tcp("127.0.0.1:9477", "0123456789abcdef-a-token");
                            let answer = if number % 2 == 0 { by_tcp() } else { unix(&socket, PROMETHEUS) };
                            asked.fetch_add(1, Ordering::Relaxed);
                            answered.fetch_add(u64::from(answer.status == 200), Ordering::Relaxed);
                        }
                    });
                });
            }
            for _ in 0..5 {
                sh("nft add rule inet nodewall input counter");
                slowest = slowest.max(until_repaired(&node, "a rule of somebody else's", &wanted));
                std::thread::sleep(Duration::from_millis(300));
            }
            stop.store(true, Ordering::Relaxed);
        });
        let seconds = began.elapsed().as_secs_f64();
        std::thread::sleep(Duration::from_millis(1100));
        let page = until(&node, "a page after the flood", |page| page.contains("nodewall_build_info"));
        let (asked, answered) = (asked.load(Ordering::Relaxed), answered.load(Ordering::Relaxed));
        let used = (cpu(&page) - cpu(&first)) / seconds;
        println!(
            "{asked} asked, {answered} answered in {seconds:.1} s, {used:.2} of a core, repaired within {slowest:?}"
        );
        // Each way lets in 20 a second; what is refused costs little.
        assert!(answered >= 10 && asked > answered, "{asked} asked, {answered} answered");
        assert!((answered as f64) < 42.0 * (seconds + 2.0), "{answered} in {seconds} s");
        assert!(slowest < Duration::from_secs(2), "{slowest:?}");
        assert!(
            value(&page, "nodewall_metrics_refused_connections_total", &[("reason", "busy")]) > Some(0.0),
            "{page}"
        );
    });
}
