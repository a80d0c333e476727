//! One rule of iptables: its matches as a conjunction, and its target.

use ipnet::IpNet;

use crate::net::addr::{AddrSet, Family};
use crate::net::protocol::Protocol;
use crate::net::range::RangeSet;
use crate::policy::model::Limit;
use crate::source::foreign::cube::{ALL_KINDS, BROADCAST, Cube, LOCAL, MULTICAST, NEW, UNTRACKED, icmp_types};
use crate::source::foreign::model::Verdict;
use crate::source::foreign::names::{Names, Pattern};
use crate::source::foreign::words;
use crate::text::read::quoted;

/// The most words of a rule.
const MOST_WORDS: usize = 512;

/// The words of a line, quotes and backslashes taken as iptables-restore takes them.
pub(super) fn split(text: &str) -> Result<Vec<String>, String> {
    let (mut words, mut word, mut quote, mut any) = (Vec::new(), String::new(), false, false);
    let mut chars = text.chars();
    while let Some(next) = chars.next() {
        match next {
            '\\' if quote => word.extend(chars.next()),
            '"' => {
                quote = !quote;
                any = true;
            }
            ' ' | '\t' if !quote => {
                if any || !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                any = false;
            }
            other => word.push(other),
        }
    }
    if quote {
        return Err("a quote that does not end".to_owned());
    }
    if any || !word.is_empty() {
        words.push(word);
    }
    if words.len() > MOST_WORDS { Err(format!("more than {MOST_WORDS} words")) } else { Ok(words) }
}

/// What a rule says, before chains and sets are known.
#[derive(Clone, Debug)]
pub(super) struct Written {
    cube: Cube,
    /// A rule that no packet to be asked about meets.
    never: bool,
    target: Target,
    /// ipsets: the name, whether it is the source, and whether it is negated.
    sets: Vec<(String, bool, bool)>,
    notrack: bool,
    flags: bool,
}

#[derive(Clone, PartialEq, Debug)]
enum Target {
    Verdict(Verdict),
    Chain(String, bool),
}

/// Where a rule's options are.
struct Options<'a> {
    words: &'a [String],
    at: usize,
}

impl<'a> Options<'a> {
    fn next(&mut self) -> Option<&'a str> {
        let word = self.words.get(self.at)?;
        self.at += 1;
        Some(word)
    }

    fn value(&mut self) -> &'a str {
        self.next().unwrap_or_default()
    }

    /// Passes what belongs to an option.
    fn rest(&mut self) {
        while self.words.get(self.at).is_some_and(|word| !word.starts_with('-') && word != "!") {
            self.at += 1;
        }
    }
}

/// What modules say in several options.
#[derive(Default)]
struct Pending {
    limit: Option<(u32, u32)>,
    limit_burst: Option<u32>,
    limits: bool,
    hash: Option<((u32, u32), bool)>,
    hash_burst: Option<u32>,
    hash_mode: Option<String>,
    hash_odd: bool,
    hashes: bool,
    recent: bool,
    recent_odd: bool,
    recent_set: bool,
    seconds: Option<u32>,
    hits: Option<u32>,
    hop_limit: Option<(String, bool)>,
    syn: Option<(bool, u8, u8)>,
}

impl Written {
    /// Whether it makes packets untracked.
    pub(super) const fn is_notrack(&self) -> bool {
        self.notrack
    }

    /// Whether it asks for TCP flags.
    pub(super) const fn looks_at_flags(&self) -> bool {
        self.flags
    }

    /// The packets and what is done with them.
    pub(super) fn mean(
        &self,
        chain: &dyn Fn(&str) -> Option<usize>,
        members: &dyn Fn(&str) -> Option<Vec<IpNet>>,
    ) -> Option<(Cube, Verdict)> {
        if self.never {
            return None;
        }
        let mut cube = self.cube.clone();
        for (name, is_source, negated) in &self.sets {
            let set = members(name).map(|nets| nets.into_iter().collect::<AddrSet>());
            cube = match set {
                None => cube.and(&Cube::unknown(format!("what is in ipset {}", quoted(name)))),
                Some(set) => {
                    let set = if *negated { AddrSet::full().difference(&set) } else { set };
                    let addresses = if *is_source {
                        Cube { source: set, ..Cube::full() }
                    } else {
                        Cube { destination: set, ..Cube::full() }
                    };
                    cube.and(&addresses)
                }
            };
        }
        let verdict = match &self.target {
            Target::Verdict(verdict) => verdict.clone(),
            Target::Chain(name, goes) => match chain(name) {
                Some(index) if *goes => Verdict::Goto(index),
                Some(index) => Verdict::Jump(index),
                None => Verdict::Other(format!(
                    "there is no chain {} here, nor is that a target that is known",
                    quoted(name)
                )),
            },
        };
        Some((cube, verdict))
    }
}

/// Reads the words after the chain's name.
pub(super) fn read(arguments: &[String], family: Family) -> Written {
    let mut options = Options { words: arguments, at: 0 };
    let mut written = Written {
        cube: Cube::full(),
        never: false,
        target: Target::Verdict(Verdict::Nothing),
        sets: Vec::new(),
        notrack: false,
        flags: false,
    };
    let mut pending = Pending::default();
    let (mut negated, mut module) = (false, String::new());
    while let Some(word) = options.next() {
        if word == "!" {
            negated = !negated;
            continue;
        }
        match word {
            "-j" | "--jump" | "-g" | "--goto" => {
                target(&mut written, &mut options, matches!(word, "-g" | "--goto"));
                break;
            }
            "-m" | "--match" => module = options.value().to_owned(),
            "-c" | "--set-counters" => {
                options.value();
                options.value();
            }
            _ => {
                let part = option(word, &mut options, negated, &module, &mut written, &mut pending, family);
                written.cube = written.cube.and(&part);
            }
        }
        negated = false;
    }
    finish(&mut written, &pending);
    written
}

/// One option, as the packets that it asks for.
fn option(
    word: &str,
    options: &mut Options<'_>,
    negated: bool,
    module: &str,
    written: &mut Written,
    pending: &mut Pending,
    family: Family,
) -> Cube {
    let full = Cube::full;
    let cannot = |options: &mut Options<'_>| {
        let first = options.at;
        options.rest();
        let value = options.words.get(first..options.at).unwrap_or_default().join(" ");
        let not = if negated { "! " } else { "" };
        let of = if module.is_empty() || word.contains(module) { String::new() } else { format!("-m {module} ") };
        Cube::unknown(format!("`{of}{not}{word}{}{value}`", if value.is_empty() { "" } else { " " }))
    };
    macro_rules! or_cannot {
        ($value:expr) => {{
            let before = options.at;
            match $value {
                Some(value) => value,
                None => {
                    options.at = before;
                    return cannot(options);
                }
            }
        }};
    }
    let without = |set: AddrSet| if negated { AddrSet::full().difference(&set) } else { set };
    let ports = |set: crate::net::protocol::PortSet| if negated { set.complement() } else { set };
    match word {
        "-p" | "--protocol" | "--proto" => {
            let text = options.value();
            if matches!(text, "all" | "0") && !negated {
                return full();
            }
            let protocol = match words::protocol(text) {
                Some(protocol) => protocol,
                None => return Cube::unknown(format!("the protocol {}", quoted(text))),
            };
            let one: RangeSet<u8> = RangeSet::single(protocol.0);
            Cube { protocols: if negated { one.complement() } else { one }, ..full() }
        }
        "-s" | "--source" | "--src" | "-d" | "--destination" | "--dst" => {
            let text = options.value();
            let nets: Option<Vec<IpNet>> = text.split(',').map(words::prefix).collect();
            let Some(nets) = nets else { return Cube::unknown(format!("the address {}", quoted(text))) };
            let set = without(words::addresses(nets));
            if matches!(word, "-s" | "--source" | "--src") {
                Cube { source: set, ..full() }
            } else {
                Cube { destination: set, ..full() }
            }
        }
        "--src-range" | "--dst-range" => {
            let nets = or_cannot!(options.value().split_once('-').and_then(|(start, end)| super::range(start, end)));
            let set = without(words::addresses(nets));
            if word == "--src-range" { Cube { source: set, ..full() } } else { Cube { destination: set, ..full() } }
        }
        "-i" | "--in-interface" | "-o" | "--out-interface" => {
            let text = options.value();
            if text == "+" && !negated {
                return full();
            }
            if !words::is_interface(text.strip_suffix('+').unwrap_or(text)) {
                return Cube::unknown(format!("the interface {}", quoted(text)));
            }
            let names = Names::any_of([Pattern::with_wildcard(text, '+')]);
            let names = if negated { names.complement().unwrap_or_default() } else { names };
            if matches!(word, "-i" | "--in-interface") {
                Cube { input: names, ..full() }
            } else {
                Cube { output: names, ..full() }
            }
        }
        "-f" | "--fragment" if !negated => {
            // Connection tracking puts fragments together first.
            written.never = true;
            full()
        }
        "-f" | "--fragment" => full(),
        "--dport" | "--destination-port" | "--dports" | "--destination-ports" => {
            Cube { dports: ports(or_cannot!(words::ports(options.value()))), ..full() }
        }
        "--sport" | "--source-port" | "--sports" | "--source-ports" => {
            Cube { sports: ports(or_cannot!(words::ports(options.value()))), ..full() }
        }
        "--icmp-type" | "--icmpv6-type" => {
            let v6 = word == "--icmpv6-type";
            let types = or_cannot!(words::icmp(options.value(), v6));
            let types = if negated { types.complement() } else { types };
            let of_family = Cube::of(!v6, v6);
            let typed = if v6 {
                Cube { icmpv6: types, ..Cube::protocol(Protocol::ICMPV6) }
            } else {
                Cube { icmp: types, ..Cube::protocol(Protocol::ICMP) }
            };
            of_family.and(&typed)
        }
        "--state" | "--ctstate" => states(options.value(), negated),
        "--comment" => {
            options.value();
            full()
        }
        "--tcp-flags" => {
            let (mask, wanted) = (options.value(), options.value());
            match (flags(mask), flags(wanted)) {
                (Some(mask), Some(wanted)) => pending.syn = Some((negated, mask, wanted)),
                _ => return Cube::unknown(format!("the TCP flags {}", quoted(mask))),
            }
            full()
        }
        "--syn" => {
            pending.syn = Some((negated, 0x17, 0x02));
            full()
        }
        "--limit" => {
            pending.limits = true;
            pending.limit = words::rate(options.value());
            if negated { Cube::unknown("a limit that is negated") } else { full() }
        }
        "--limit-burst" => {
            pending.limits = true;
            pending.limit_burst = options.value().parse().ok();
            full()
        }
        _ if word.starts_with("--hashlimit") => {
            hashlimit(word, options, pending);
            if negated { Cube::unknown("a hashlimit that is negated") } else { full() }
        }
        "--set" | "--update" | "--rcheck" | "--remove" | "--seconds" | "--hitcount" | "--name" | "--rsource"
        | "--rdest" | "--rttl" | "--mask" | "--reap"
            if module == "recent" =>
        {
            recent(word, options, pending, negated);
            full()
        }
        "--uid-owner" | "--gid-owner" if !negated => {
            let text = options.value();
            let is_range = text.contains('-') && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-');
            let is_word =
                !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
            if is_range || !is_word {
                return Cube::unknown(format!("`{word} {text}`"));
            }
            let names = Some(std::collections::BTreeSet::from([text.to_owned()]));
            if word == "--uid-owner" { Cube { users: names, ..full() } } else { Cube { groups: names, ..full() } }
        }
        "--dst-type" => {
            let text = options.value();
            let kind = |kind: &str| match kind {
                "LOCAL" => Some(LOCAL),
                "MULTICAST" => Some(MULTICAST),
                // IPv6 has none.
                "BROADCAST" => Some(BROADCAST),
                _ => None,
            };
            let kinds: Option<Vec<u8>> = text.split(',').map(kind).collect();
            let Some(kinds) = kinds else { return Cube::unknown(format!("`--dst-type {text}`")) };
            let kinds = kinds.into_iter().fold(0, |all, one| all | one);
            Cube { kinds: if negated { ALL_KINDS & !kinds } else { kinds }, ..full() }
        }
        "--match-set" => {
            let (name, of) = (options.value(), options.value());
            match of {
                "src" => written.sets.push((name.to_owned(), true, negated)),
                "dst" => written.sets.push((name.to_owned(), false, negated)),
                _ => return Cube::unknown(format!("ipset {} by {}", quoted(name), quoted(of))),
            }
            full()
        }
        "--hl-eq" if family == Family::V6 => {
            pending.hop_limit = Some((options.value().to_owned(), negated));
            full()
        }
        "--rt-type" if !negated && options.words.get(options.at).is_some_and(|kind| kind == "0") => {
            // The kernel forwards and takes none (RFC 5095), whatever rules say.
            options.value();
            written.never = true;
            full()
        }
        _ => cannot(options),
    }
}

/// What a state asks of the packets that nodewall asks its policies about.
fn states(text: &str, negated: bool) -> Cube {
    let (mut bits, mut odd) = (0, false);
    for state in text.split(',') {
        match state {
            "NEW" => bits |= NEW,
            "UNTRACKED" => bits |= UNTRACKED,
            "ESTABLISHED" | "RELATED" | "INVALID" => {}
            _ => odd = true,
        }
    }
    let bits = if negated { (NEW | UNTRACKED) & !bits } else { bits };
    if !odd {
        return Cube { states: bits, ..Cube::full() };
    }
    let words = format!("`--ctstate {text}`");
    if negated { Cube { states: bits, ..Cube::unknown(words) } } else { Cube::unknown(words) }
}

/// TCP flags as the bits of the header.
fn flags(text: &str) -> Option<u8> {
    let names = [("FIN", 1), ("SYN", 2), ("RST", 4), ("PSH", 8), ("ACK", 16), ("URG", 32), ("ALL", 63), ("NONE", 0)];
    text.split(',').try_fold(0, |all, word| Some(all | names.iter().find(|(name, _)| *name == word)?.1))
}

fn hashlimit(word: &str, options: &mut Options<'_>, pending: &mut Pending) {
    pending.hashes = true;
    match word {
        "--hashlimit" | "--hashlimit-upto" => pending.hash = words::rate(options.value()).map(|rate| (rate, false)),
        "--hashlimit-above" => pending.hash = words::rate(options.value()).map(|rate| (rate, true)),
        "--hashlimit-burst" => {
            pending.hash_burst = options.value().parse().ok();
            pending.hash_odd |= pending.hash_burst.is_none();
        }
        "--hashlimit-mode" => pending.hash_mode = Some(options.value().to_owned()),
        "--hashlimit-srcmask" => pending.hash_odd |= !matches!(options.value(), "32" | "128"),
        "--hashlimit-name"
        | "--hashlimit-htable-size"
        | "--hashlimit-htable-max"
        | "--hashlimit-htable-expire"
        | "--hashlimit-htable-gcinterval" => drop(options.value().to_owned()),
        _ => {
            options.rest();
            pending.hash_odd = true;
        }
    }
}

fn recent(word: &str, options: &mut Options<'_>, pending: &mut Pending, negated: bool) {
    match word {
        "--set" => pending.recent_set = true,
        "--update" | "--rcheck" => {
            pending.recent = true;
            pending.recent_odd |= negated;
        }
        "--seconds" => pending.seconds = options.value().parse().ok().filter(|seconds| *seconds > 0),
        "--hitcount" => pending.hits = options.value().parse().ok(),
        "--name" => drop(options.value().to_owned()),
        "--mask" => {
            pending.recent_odd |=
                !matches!(options.value(), "255.255.255.255" | "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")
        }
        "--rsource" | "--reap" => {}
        _ => pending.recent_odd = true,
    }
}

/// What modules said in several options.
fn finish(written: &mut Written, pending: &Pending) {
    let mut add = |part: Cube| written.cube = written.cube.and(&part);
    let unknown = |limit: Option<Limit>, words: &str| match limit {
        Some(limit) => Cube { limit: Some(limit), ..Cube::full() },
        None => Cube::unknown(words),
    };
    if pending.limits {
        // What xt_limit takes if it is not told.
        let rate = pending.limit.or((pending.limit_burst.is_some()).then_some((3, 3600)));
        let limit = rate.and_then(|rate| words::limit(rate, pending.limit_burst.unwrap_or(5), false));
        add(unknown(limit, "this limit"));
    }
    if pending.hashes {
        let per_source = match pending.hash_mode.as_deref() {
            None => Some(false),
            Some("srcip") => Some(true),
            Some(_) => None,
        };
        let burst = pending.hash_burst.unwrap_or(5);
        let limit = pending.hash.zip(per_source).filter(|_| !pending.hash_odd);
        let limit = limit.and_then(|((rate, above), per)| Some((words::limit(rate, burst, per)?, above)));
        add(match limit {
            Some((limit, true)) => Cube { over: Some(limit), ..Cube::full() },
            Some((limit, false)) => Cube { limit: Some(limit), ..Cube::full() },
            None => Cube::unknown("this hashlimit"),
        });
    }
    if pending.recent {
        let hits = pending.hits.filter(|hits| *hits > 1).zip(pending.seconds).filter(|_| !pending.recent_odd);
        let limit = hits.and_then(|(hits, seconds)| words::at_most(hits - 1, seconds, true));
        add(match limit {
            Some(limit) => Cube { over: Some(limit), ..Cube::full() },
            None => Cube::unknown("who was here recently"),
        });
    } else if pending.recent_odd || pending.hits.is_some() {
        add(Cube::unknown("who was here recently"));
    }
    if let Some((value, negated)) = &pending.hop_limit {
        let discovery = icmp_types(133, None).union(&icmp_types(134, None)).union(&icmp_types(135, None));
        let discovery = discovery.union(&icmp_types(136, None)).union(&icmp_types(137, None));
        let is_discovery = written.cube.protocols.only() == Some(Protocol::ICMPV6.0)
            && written.cube.icmpv6.difference(&discovery).is_empty();
        // The kernel itself takes neighbour discovery with 255 only (RFC 4861 section 7).
        if !(is_discovery && value == "255" && !negated) {
            written.cube = written.cube.and(&Cube::unknown(format!("the hop limit {value}")));
        }
    }
    if let Some((negated, mask, wanted)) = pending.syn {
        // The first packet of a connection has SYN and none of the other flags.
        let opens = 0x02 & mask == wanted;
        written.never |= opens == negated;
        written.flags = true;
    }
}

/// The target and its options, which end a rule.
fn target(written: &mut Written, options: &mut Options<'_>, goes: bool) {
    let name = options.value().to_owned();
    let option = |wanted: &str| {
        let at = options.words.iter().position(|word| word == wanted)?;
        options.words.get(at + 1).cloned()
    };
    let verdict = match name.as_str() {
        "ACCEPT" => Verdict::Accept,
        "DROP" => Verdict::Drop,
        "REJECT" => Verdict::Reject,
        "RETURN" => Verdict::Return,
        "LOG" => Verdict::Log(option("--log-prefix").unwrap_or_default()),
        "NFLOG" => Verdict::Log(option("--nflog-prefix").unwrap_or_default()),
        "ULOG" => Verdict::Log(option("--ulog-prefix").unwrap_or_default()),
        "NOTRACK" => {
            written.notrack = true;
            Verdict::Nothing
        }
        "CT" => {
            written.notrack |= options.words.iter().any(|word| word == "--notrack");
            Verdict::Nothing
        }
        // What goes to a proxy is let through there.
        "TPROXY" => Verdict::Accept,
        "MARK" | "CONNMARK" | "CONNSECMARK" | "SECMARK" | "SET" | "TCPMSS" | "TCPOPTSTRIP" | "DSCP" | "TOS" | "TTL"
        | "HL" | "CLASSIFY" | "TRACE" | "CHECKSUM" | "RATEEST" | "IDLETIMER" | "AUDIT" | "LED" | "TEE" | "HMARK"
        | "ECN" => Verdict::Nothing,
        "NFQUEUE" | "QUEUE" | "SYNPROXY" | "TARPIT" | "DELUDE" | "CHAOS" => {
            Verdict::Other(format!("nodewall has nothing like the target {name}"))
        }
        _ => {
            written.target = Target::Chain(name, goes);
            return;
        }
    };
    written.target = Target::Verdict(verdict);
}
