//! Ten thousand policies of ten rules over two thousand sets of a hundred prefixes: what Felix's largest benchmark has, and more rules.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fmt::Write as _;
use std::time::Instant;

use nodewall::compile::compile;
use nodewall::driver::{self, Netlink};
use nodewall::nft::text;

const POLICIES: usize = 10_000;
const RULES: usize = 10;
const SETS: usize = 2_000;
const PREFIXES: usize = 100;

fn sets() -> String {
    let mut text = String::new();
    for set in 0..SETS {
        write!(text, "[[set]]\nname = \"set-{set}\"\ncidrs = [").unwrap();
        for prefix in 0..PREFIXES {
            let number = (set * PREFIXES + prefix) as u32;
            let address = std::net::Ipv4Addr::from_bits(0x0a00_0000 + number * 32);
            write!(text, "\"{address}/28\", ").unwrap();
        }
        text.push_str("]\n");
    }
    text
}

fn policies() -> String {
    let mut text = String::new();
    for policy in 0..POLICIES {
        write!(
            text,
            "[[policy]]\nname = \"policy-{policy}\"\norder = {policy}\ninterfaces = \"role == 'mgmt'\"\ningress = [\n"
        )
        .unwrap();
        for rule in 0..RULES {
            let set = (policy * RULES + rule * 211) % SETS;
            let port = 1024 + (policy * 7 + rule * 1301) % 20_000;
            writeln!(
                text,
                "  {{ action = \"allow\", from = {{ sets = [\"set-{set}\"] }}, protocol = \"tcp\", ports = [{port}] }},"
            )
            .unwrap();
        }
        text.push_str("]\n");
    }
    text
}

fn main() {
    support::enter_namespace();
    let text = sets() + &policies();
    let timed = |what: &str, start: Instant| println!("{what}: {:?}", start.elapsed());
    let start = Instant::now();
    let sourced = nodewall::source::decode_text("bench.toml", &text);
    timed("parse", start);
    let start = Instant::now();
    let effective = support::resolve(&sourced.policy);
    timed("resolve", start);
    let start = Instant::now();
    let ruleset = compile(&effective);
    timed("compile", start);
    println!("{:?}", nodewall::compile::size(&ruleset));
    let start = Instant::now();
    let rendered = text::render(&ruleset);
    timed("render", start);
    println!("{} bytes", rendered.len());
    let mut kernel = Netlink::open().unwrap();
    let start = Instant::now();
    let applied = driver::apply(&mut kernel, &ruleset, None).unwrap();
    timed("apply", start);
    println!("{} changes", applied.changes);
    let start = Instant::now();
    let applied = driver::apply(&mut kernel, &ruleset, Some(&applied.loaded)).unwrap();
    timed("apply again", start);
    println!("{} changes", applied.changes);
}
