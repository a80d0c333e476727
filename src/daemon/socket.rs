//! The control socket: one JSON line in, one JSON line out.
//!
//! A request is `{"version":1,"request":"status"}` or `"reload"`; a reply has `status`, or `error` with `code` and
//! `message`, or neither when the request was done. Reading is for root and the group "nodewall", reloading for root.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::unistd::{Group, User};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use super::status::{Status, VERSION};

/// The group whose members may read.
pub const READERS: &str = "nodewall";
/// The longest request.
const LONGEST_REQUEST_BYTES: u64 = 64 * 1024;
/// How long a peer may take to send its request or to take the reply.
const PEER_TIME: Duration = Duration::from_secs(2);
/// How long the loop and the kernel may take to answer: a dump of a set of 100,000 prefixes takes about one second.
const ANSWER_TIME: Duration = Duration::from_secs(20);
/// How many peers are served at once; more wait in the socket's backlog.
const PEERS_AT_ONCE: usize = 16;

/// A request as it is sent.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Request {
    /// [`VERSION`].
    pub version: u32,
    /// "status" or "reload".
    pub request: String,
}

/// A reply as it is sent.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Reply {
    /// [`VERSION`].
    pub version: u32,
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
    /// "not-authorised", "bad-request" or "unavailable".
    pub code: String,
    /// A sentence for people.
    pub message: String,
}

/// A request as it reaches the loop.
pub(super) enum Query {
    /// What is in force?
    Status(oneshot::Sender<Status>),
    /// Read everything again.
    Reload,
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
        && let Err(error) = std::os::unix::fs::chown(path, None, Some(group.gid.as_raw()))
    {
        tracing::warn!("cannot give {} to group {READERS}: {error}", path.display());
    }
    listener.set_nonblocking(true).map_err(failed("listen on"))?;
    UnixListener::from_std(listener).map_err(failed("listen on"))
}

/// Serves peers until the loop is gone.
pub(super) async fn serve(listener: UnixListener, queries: mpsc::Sender<Query>) {
    let places = Arc::new(Semaphore::new(PEERS_AT_ONCE));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let queries = queries.clone();
                tokio::spawn(async move {
                    // A peer that goes away or is too slow is nobody's concern but its own.
                    let _ = answer(stream, &queries).await;
                    drop(place);
                });
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

async fn answer(mut stream: UnixStream, queries: &mpsc::Sender<Query>) -> io::Result<()> {
    let credentials = stream.peer_cred()?;
    let (uid, gid) = (credentials.uid(), credentials.gid());
    // Looking up users and groups may ask a directory service.
    let rights = tokio::task::spawn_blocking(move || rights(uid, gid)).await.unwrap_or(Rights::Nothing);
    let (reader, mut writer) = stream.split();
    let mut line = Vec::new();
    let mut reader = BufReader::new(reader.take(LONGEST_REQUEST_BYTES));
    let read = timeout(PEER_TIME, reader.read_until(b'\n', &mut line)).await;
    let reply = match read {
        Err(_) => refuse("bad-request", "no request within two seconds".to_owned()),
        Ok(Err(error)) => return Err(error),
        Ok(Ok(_)) if !line.ends_with(b"\n") => {
            refuse("bad-request", format!("a request is one line of at most {LONGEST_REQUEST_BYTES} bytes"))
        }
        Ok(Ok(_)) => reply(&line, rights, queries).await,
    };
    let mut text = serde_json::to_vec(&reply).map_err(io::Error::other)?;
    text.push(b'\n');
    timeout(PEER_TIME, writer.write_all(&text)).await.map_err(io::Error::other)??;
    writer.shutdown().await
}

async fn reply(line: &[u8], rights: Rights, queries: &mpsc::Sender<Query>) -> Reply {
    let unavailable = || refuse("unavailable", "no answer from the daemon's loop".to_owned());
    let request: Request = match serde_json::from_slice(line) {
        Ok(request) => request,
        Err(error) => return refuse("bad-request", format!("cannot read the request: {error}")),
    };
    if request.version != VERSION {
        return refuse("bad-request", format!("version {} is not known; use {VERSION}", request.version));
    }
    let needed = match request.request.as_str() {
        "status" => Rights::Read,
        "reload" => Rights::Write,
        other => {
            return refuse("bad-request", format!("request \"{other}\" is not known; use \"status\" or \"reload\""));
        }
    };
    if rights < needed {
        let who = if needed == Rights::Read { "root and group nodewall" } else { "root" };
        return refuse("not-authorised", format!("only {who} may request \"{}\"", request.request));
    }
    if needed == Rights::Write {
        return match queries.send(Query::Reload).await {
            Ok(()) => Reply { version: VERSION, ..Reply::default() },
            Err(_) => unavailable(),
        };
    }
    let (sender, receiver) = oneshot::channel();
    if queries.send(Query::Status(sender)).await.is_err() {
        return unavailable();
    }
    match timeout(ANSWER_TIME, receiver).await {
        Ok(Ok(status)) => Reply { version: VERSION, status: Some(status), error: None },
        _ => unavailable(),
    }
}

fn refuse(code: &str, message: String) -> Reply {
    Reply { version: VERSION, status: None, error: Some(Refusal { code: code.to_owned(), message }) }
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
