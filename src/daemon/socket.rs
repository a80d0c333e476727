//! The control socket: one JSON line in, one JSON line out.
//!
//! A request is `{"version":1,"request":"status"}`, `"reload"`, or an order with its particulars ([`Request`]); a reply has
//! `status`, or `outcome`, or `error` with `code` and `message`, or none of them when a reload was begun. "watch" is answered with
//! [`Line`](super::traffic::record::Line)s until the peer goes. Reading is for root
//! and the group "nodewall", everything else for root.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::unistd::{Group, User};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use super::peers::Waiting;
use super::requests::Order;
pub use super::requests::What;
use super::status::{Status, VERSION};
use crate::config::confirm::Confirm;
use crate::textfile;

/// The group whose members may read.
pub const READERS: &str = "nodewall";
/// The longest request.
const LONGEST_REQUEST_BYTES: u64 = 64 * 1024;
/// How long a peer may take to send its request or to take the reply.
const PEER_TIME: Duration = Duration::from_secs(2);
/// How long the loop and the kernel may take to answer: a dump of a set of 100,000 prefixes takes about one second.
const ANSWER_TIME: Duration = Duration::from_secs(20);
/// How long a reload may take, of which a large policy in force is the most.
pub const RELOAD_TIME: Duration = Duration::from_secs(55);
/// The code of a refusal that says that the newest documents are not what is in force.
pub const DEGRADED: &str = "degraded";
/// How long a peer that watches may take no line.
const PATIENCE: Duration = Duration::from_secs(30);
/// How many peers may be about to send their request. With one more, one of them is let go: see [`Waiting`].
const WAITING_AT_ONCE: usize = 64;
/// How many peers that only read may wait for an answer; more are told to come again. Whoever changes something is not counted:
/// of those the loop takes one at a time.
const READING_AT_ONCE: usize = 64;

/// A request as it is sent.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Request {
    /// [`VERSION`].
    pub version: u32,
    /// "status", "watch", "reload", "apply", "confirm", "rollback", "panic" or "break-glass".
    pub request: String,
    /// For "apply": how long it has to be confirmed; for "break-glass": how long it holds, nothing to end it. Seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<u64>,
    /// For "apply": whether a self-test confirms it within that time, rather than somebody.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub selftest: bool,
    /// For "apply": files and directories instead of the policy directories, absolute.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<PathBuf>,
    /// For "rollback": the generation; nothing for the one before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// For "panic": whether it is on from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on: Option<bool>,
    /// For "panic" and "break-glass": why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The longest time that a request may name: a week, in seconds.
const LONGEST_TIME: u64 = 7 * 24 * 3600;
/// The longest refusal of a request that cannot be read, in characters.
const LONGEST_MESSAGE: usize = 200;
/// The longest reason, in bytes: it is one line of the journal.
const LONGEST_REASON_BYTES: usize = 500;

impl Request {
    /// A request without particulars.
    pub fn new(request: &str) -> Self {
        Self {
            version: VERSION,
            request: request.to_owned(),
            seconds: None,
            selftest: false,
            paths: Vec::new(),
            generation: None,
            on: None,
            reason: None,
        }
    }

    /// What it orders, if it is an order.
    fn order(&self) -> Option<Result<What, String>> {
        let time = |seconds: u64| match seconds {
            1..=LONGEST_TIME => Ok(Duration::from_secs(seconds)),
            _ => Err(format!("seconds must be from 1 to {LONGEST_TIME}")),
        };
        let reason = self.reason.as_deref().unwrap_or_default().trim();
        let clean = |needed: bool| match reason {
            "" if needed => Err("break-glass needs a reason".to_owned()),
            reason if reason.len() > LONGEST_REASON_BYTES || reason.contains(char::is_control) => {
                Err(format!("a reason is one line of at most {LONGEST_REASON_BYTES} bytes"))
            }
            reason => Ok(reason.to_owned()),
        };
        Some(match self.request.as_str() {
            "apply" if self.paths.iter().any(|path| !path.is_absolute()) => Err("paths must be absolute".to_owned()),
            "apply" => match self.seconds.map(time) {
                Some(Ok(time)) => {
                    let confirm = if self.selftest { Confirm::SelfTest(time) } else { Confirm::Operator(time) };
                    Ok(What::Apply { confirm, paths: self.paths.clone() })
                }
                Some(Err(error)) => Err(error),
                None => Err("\"apply\" needs seconds".to_owned()),
            },
            "confirm" => Ok(What::Confirm),
            "rollback" => Ok(What::Rollback(self.generation)),
            "panic" => match self.on {
                Some(on) => clean(false).map(|reason| What::Panic { on, reason }),
                None => Err("\"panic\" needs on".to_owned()),
            },
            "break-glass" => match self.seconds.map(time).transpose() {
                Ok(time) => clean(time.is_some()).map(|reason| What::BreakGlass { time, reason }),
                Err(error) => Err(error),
            },
            _ => return None,
        })
    }
}

/// What a line of the control socket asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Asked {
    /// What is in force.
    Status,
    /// What goes on.
    Watch,
    /// To read everything again, and to say what became of it.
    Reload,
    /// To change something.
    Order(What),
}

impl Asked {
    /// What its peer must be allowed to do.
    const fn needs(&self) -> Rights {
        match self {
            Self::Status | Self::Watch => Rights::Read,
            Self::Reload | Self::Order(_) => Rights::Write,
        }
    }
}

/// Reads one request. Pure.
///
/// # Errors
/// The refusal that the peer is sent.
pub fn parse(line: &[u8]) -> Result<Asked, Refusal> {
    // What is said back of a request may be as long as that.
    let bad = |message: String| Refusal {
        code: "bad-request".to_owned(),
        message: message.chars().take(LONGEST_MESSAGE).collect(),
    };
    let request: Request =
        serde_json::from_slice(line).map_err(|error| bad(format!("cannot read the request: {error}")))?;
    if request.version != VERSION {
        return Err(bad(format!("version {} is not known; use {VERSION}", request.version)));
    }
    match (request.request.as_str(), request.order()) {
        ("status", _) => Ok(Asked::Status),
        ("watch", _) => Ok(Asked::Watch),
        ("reload", _) => Ok(Asked::Reload),
        (_, Some(order)) => order.map(Asked::Order).map_err(bad),
        (other, None) => {
            let known = "known are status, watch, reload, apply, confirm, rollback, panic, break-glass";
            Err(bad(format!("{known}, and not {other:?}")))
        }
    }
}

/// A reply as it is sent.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Reply {
    /// [`VERSION`].
    pub version: u32,
    /// What a request that changes something came to, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome: Option<String>,
    /// The answer to "status".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<Status>,
    /// Why there is no answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Refusal>,
}

/// Why a request was not answered.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Refusal {
    /// "not-authorised", "bad-request", "unavailable", or "refused" when the daemon could not do it.
    pub code: String,
    /// A sentence for people.
    pub message: String,
}

/// What a reload came to, in words: `Err` when the newest documents are not what is in force.
pub(super) type Reloaded = Result<String, String>;

/// A request as it reaches the loop.
pub(super) enum Query {
    /// What is in force?
    Status(oneshot::Sender<Status>),
    /// Read everything again. What became of it is told when it is over.
    Reload(oneshot::Sender<Reloaded>),
    /// Change something.
    Order(Order),
    /// Tell what goes on, line by line; nothing where there is no place for one more, or nobody sees anything.
    Watch(oneshot::Sender<Option<mpsc::Receiver<Arc<[u8]>>>>),
}

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// Somebody answers there.
    #[error("another nodewall answers on {0}; stop that one first")]
    InUse(PathBuf),
    /// The place is not safe or not free.
    #[error("cannot use {path} as control socket: {reason}")]
    Unsafe { path: PathBuf, reason: String },
    /// The system refused.
    #[error("cannot {attempt} {path}: {source}")]
    Io { attempt: &'static str, path: PathBuf, source: io::Error },
}

/// Makes the socket, with its directory where that is missing. A socket that nobody listens on is replaced.
pub(super) fn bind(path: &Path) -> Result<UnixListener, Error> {
    let failed = |attempt| move |source| Error::Io { attempt, path: path.to_owned(), source };
    let refused = |reason: String| Error::Unsafe { path: path.to_owned(), reason };
    let directory = path.parent().ok_or_else(|| refused("it has no directory".to_owned()))?;
    fs::DirBuilder::new().recursive(true).mode(0o755).create(directory).map_err(failed("make the directory of"))?;
    // In a directory where only we and root can write, nobody can put a link under the name between the steps below.
    let metadata = fs::symlink_metadata(directory).map_err(failed("look at the directory of"))?;
    let ours = metadata.uid() == 0 || metadata.uid() == nix::unistd::geteuid().as_raw();
    if !metadata.is_dir() || !ours || metadata.mode() & 0o022 != 0 {
        let name = directory.display();
        return Err(refused(format!("{name} must be a directory of root in which nobody else can write")));
    }
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("look at")(error)),
        Ok(metadata) if metadata.file_type().is_socket() => {
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                return Err(Error::InUse(path.to_owned()));
            }
            fs::remove_file(path).map_err(failed("replace"))?;
        }
        Ok(_) => return Err(refused("something that is no socket is there".to_owned())),
    }
    let listener = std::os::unix::net::UnixListener::bind(path).map_err(failed("listen on"))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o660)).map_err(failed("set the permissions of"))?;
    if let Ok(Some(group)) = Group::from_name(READERS)
        && let Err(error) = textfile::give_group(path, group.gid)
    {
        tracing::warn!("cannot give {} to group {READERS}: {error}", path.display());
    }
    listener.set_nonblocking(true).map_err(failed("listen on"))?;
    UnixListener::from_std(listener).map_err(failed("listen on"))
}

/// What the tasks of all peers share.
struct Peers {
    waiting: Mutex<(Waiting, BTreeMap<u64, oneshot::Sender<()>>)>,
    reading: Semaphore,
    queries: mpsc::Sender<Query>,
}

impl Peers {
    /// Whoever lets one of these go at the wrong moment has left nothing half done.
    fn waiting(&self) -> std::sync::MutexGuard<'_, (Waiting, BTreeMap<u64, oneshot::Sender<()>>)> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more peer waits; its number, and what is told when it has to go for another.
    fn enter(&self, user: u32) -> (u64, oneshot::Receiver<()>) {
        let (go, goes) = oneshot::channel();
        let (waiting, senders) = &mut *self.waiting();
        let (number, other) = waiting.enter(user);
        senders.insert(number, go);
        if let Some(go) = other.and_then(|other| senders.remove(&other)) {
            // It may be leaving by itself just now.
            let _ = go.send(());
        }
        (number, goes)
    }

    fn leave(&self, number: u64) {
        let (waiting, senders) = &mut *self.waiting();
        waiting.leave(number);
        senders.remove(&number);
    }
}

/// Serves peers until the loop is gone.
pub(super) async fn serve(listener: UnixListener, queries: mpsc::Sender<Query>) {
    let waiting = Mutex::new((Waiting::new(WAITING_AT_ONCE), BTreeMap::new()));
    let peers = Arc::new(Peers { waiting, reading: Semaphore::new(READING_AT_ONCE), queries });
    while !peers.queries.is_closed() {
        match listener.accept().await {
            Ok((stream, _)) => {
                let peers = Arc::clone(&peers);
                // A peer that goes away or is too slow is nobody's concern but its own.
                tokio::spawn(async move { answer(stream, &peers).await });
            }
            Err(error) => {
                tracing::warn!("cannot accept on the control socket: {error}");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

/// What a peer may do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Rights {
    Nothing,
    Read,
    Write,
}

async fn answer(mut stream: UnixStream, peers: &Peers) -> io::Result<()> {
    let credentials = stream.peer_cred()?;
    let (uid, gid) = (credentials.uid(), credentials.gid());
    let (number, goes) = peers.enter(uid);
    let line = tokio::select! {
        line = timeout(PEER_TIME, request(&mut stream)) => Some(line),
        // The sender is gone only together with the place.
        Ok(()) = goes => None,
    };
    peers.leave(number);
    let reply = match line {
        None => refuse("unavailable", "too many others wait to send a request; try again".to_owned()),
        Some(Err(_)) => refuse("bad-request", "no request within two seconds".to_owned()),
        Some(Ok(Err(error))) => return Err(error),
        Some(Ok(Ok(line))) if !line.ends_with(b"\n") => {
            refuse("bad-request", format!("a request is one line of at most {LONGEST_REQUEST_BYTES} bytes"))
        }
        Some(Ok(Ok(line))) => {
            let by = match credentials.pid() {
                Some(pid) => format!("uid {uid} (pid {pid})"),
                None => format!("uid {uid}"),
            };
            // Looking up users and groups may ask a directory service.
            let rights = tokio::task::spawn_blocking(move || rights(uid, gid)).await.unwrap_or(Rights::Nothing);
            if rights >= Asked::Watch.needs() && parse(&line) == Ok(Asked::Watch) {
                match watch(peers).await {
                    Ok(lines) => return tell(stream, lines).await,
                    Err(refusal) => *refusal,
                }
            } else {
                reply(&line, rights, by, peers).await
            }
        }
    };
    let mut text = serde_json::to_vec(&reply).map_err(io::Error::other)?;
    text.push(b'\n');
    timeout(PEER_TIME, stream.write_all(&text)).await.map_err(io::Error::other)??;
    stream.shutdown().await
}

/// A place among those who watch.
async fn watch(peers: &Peers) -> Result<mpsc::Receiver<Arc<[u8]>>, Box<Reply>> {
    let (reply, lines) = oneshot::channel();
    let unavailable = |message: &str| Box::new(refuse("unavailable", message.to_owned()));
    if peers.queries.send(Query::Watch(reply)).await.is_err() {
        return Err(unavailable("no answer from the daemon's loop"));
    }
    match timeout(ANSWER_TIME, lines).await {
        Ok(Ok(Some(lines))) => Ok(lines),
        Ok(Ok(None)) => Err(unavailable("too many others watch; try again")),
        _ => Err(unavailable("no answer from the daemon's loop")),
    }
}

/// Tells a peer what goes on until it goes, takes nothing for too long, or the daemon ends.
async fn tell(stream: UnixStream, mut lines: mpsc::Receiver<Arc<[u8]>>) -> io::Result<()> {
    let (mut from, mut to) = stream.into_split();
    let mut nothing = [0; 64];
    loop {
        tokio::select! {
            line = lines.recv() => {
                let Some(line) = line else { return to.shutdown().await };
                timeout(PATIENCE, to.write_all(&line)).await.map_err(io::Error::other)??;
            }
            read = from.read(&mut nothing) => {
                // Whoever watches has nothing more to say.
                if read? == 0 {
                    return Ok(());
                }
            }
        }
    }
}

/// What a peer sends, up to the end of its line or of what it may send.
async fn request(stream: &mut UnixStream) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    let mut reader = BufReader::new(stream.take(LONGEST_REQUEST_BYTES));
    reader.read_until(b'\n', &mut line).await?;
    Ok(line)
}

async fn reply(line: &[u8], rights: Rights, by: String, peers: &Peers) -> Reply {
    let unavailable = || refuse("unavailable", "no answer from the daemon's loop".to_owned());
    let asked = match parse(line) {
        Ok(asked) => asked,
        Err(refusal) => return Reply { version: VERSION, error: Some(refusal), ..Reply::default() },
    };
    if rights < asked.needs() {
        let who = if asked.needs() == Rights::Read { "root and group nodewall" } else { "root" };
        return refuse("not-authorised", format!("only {who} may request this"));
    }
    match asked {
        Asked::Order(what) => {
            let (reply, outcome) = oneshot::channel();
            if peers.queries.send(Query::Order(Order { by, what, reply })).await.is_err() {
                return unavailable();
            }
            match timeout(ANSWER_TIME, outcome).await {
                Ok(Ok(Ok(outcome))) => Reply { version: VERSION, outcome: Some(outcome), ..Reply::default() },
                Ok(Ok(Err(error))) => refuse("refused", error),
                _ => unavailable(),
            }
        }
        Asked::Reload => {
            let (reply, outcome) = oneshot::channel();
            if peers.queries.send(Query::Reload(reply)).await.is_err() {
                return unavailable();
            }
            match timeout(RELOAD_TIME, outcome).await {
                Ok(Ok(Ok(outcome))) => Reply { version: VERSION, outcome: Some(outcome), ..Reply::default() },
                Ok(Ok(Err(why))) => refuse(DEGRADED, why),
                _ => unavailable(),
            }
        }
        // Who may watch is answered elsewhere.
        Asked::Watch => unavailable(),
        Asked::Status => {
            let Ok(_place) = peers.reading.try_acquire() else {
                return refuse("unavailable", "too many others wait for an answer; try again".to_owned());
            };
            let (sender, receiver) = oneshot::channel();
            if peers.queries.send(Query::Status(sender)).await.is_err() {
                return unavailable();
            }
            match timeout(ANSWER_TIME, receiver).await {
                Ok(Ok(status)) => Reply { version: VERSION, status: Some(status), ..Reply::default() },
                _ => unavailable(),
            }
        }
    }
}

fn refuse(code: &str, message: String) -> Reply {
    let error = Some(Refusal { code: code.to_owned(), message });
    Reply { version: VERSION, error, ..Reply::default() }
}

fn rights(uid: u32, gid: u32) -> Rights {
    if uid == 0 || uid == nix::unistd::geteuid().as_raw() {
        return Rights::Write;
    }
    let Ok(Some(group)) = Group::from_name(READERS) else { return Rights::Nothing };
    // SO_PEERCRED has the primary group only; further ones are in the group's list of members.
    let member = || User::from_uid(uid.into()).ok().flatten().is_some_and(|user| group.mem.contains(&user.name));
    if group.gid.as_raw() == gid || member() { Rights::Read } else { Rights::Nothing }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    /// The code of the refusal; what reaches the loop is answered with "ok".
    fn asked(line: &str, rights: Rights) -> Option<String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (queries, mut queried) = mpsc::channel(1);
            let answering = tokio::spawn(async move {
                while let Some(query) = queried.recv().await {
                    if let Query::Order(order) = query {
                        assert_eq!(order.by, "uid 7");
                        order.reply.send(Ok("ok".to_owned())).unwrap();
                    }
                }
            });
            let waiting = Mutex::new((Waiting::new(1), BTreeMap::new()));
            let peers = Peers { waiting, reading: Semaphore::new(1), queries };
            let reply = reply(line.as_bytes(), rights, "uid 7".to_owned(), &peers).await;
            drop(peers);
            answering.await.unwrap();
            assert_eq!(reply.error.is_none(), reply.outcome.as_deref() == Some("ok"), "{line}");
            reply.error.map(|error| error.code)
        })
    }

    #[test]
    fn orders_are_for_root_and_say_what_they_need() {
        let good = [
            r#"{"version":1,"request":"apply","seconds":120,"paths":["/a"]}"#,
            r#"{"version":1,"request":"apply","seconds":60,"selftest":true}"#,
            r#"{"version":1,"request":"confirm"}"#,
            r#"{"version":1,"request":"rollback","generation":3}"#,
            r#"{"version":1,"request":"rollback"}"#,
            r#"{"version":1,"request":"panic","on":true}"#,
            r#"{"version":1,"request":"break-glass","seconds":60,"reason":"x"}"#,
            r#"{"version":1,"request":"break-glass"}"#,
        ];
        for line in good {
            assert_eq!(asked(line, Rights::Write), None, "{line}");
            assert_eq!(asked(line, Rights::Read).as_deref(), Some("not-authorised"), "{line}");
            assert_eq!(asked(line, Rights::Nothing).as_deref(), Some("not-authorised"), "{line}");
        }
        for line in [
            r#"{"version":1,"request":"apply"}"#,
            r#"{"version":1,"request":"apply","selftest":true}"#,
            r#"{"version":1,"request":"apply","seconds":0}"#,
            r#"{"version":1,"request":"apply","seconds":18446744073709551615}"#,
            r#"{"version":1,"request":"apply","seconds":5,"paths":["a"]}"#,
            r#"{"version":1,"request":"rollback","generation":-1}"#,
            r#"{"version":1,"request":"panic"}"#,
            r#"{"version":1,"request":"panic","on":true,"reason":"a\nb"}"#,
            r#"{"version":1,"request":"break-glass","seconds":60}"#,
            r#"{"version":1,"request":"break-glass","seconds":60,"reason":"  "}"#,
            r#"{"version":2,"request":"confirm"}"#,
        ] {
            assert_eq!(asked(line, Rights::Write).as_deref(), Some("bad-request"), "{line}");
        }
    }
}
