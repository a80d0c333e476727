//! New TCP connections in a steady stream, and which of them were answered: what shows that a door is never open, not even for a moment.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::libc::linger;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
};

use super::net::Host;

/// How often a connection to each destination is begun.
const EVERY: Duration = Duration::from_millis(2);
/// How long one may take. It is below the second after which TCP tries again, so that what is answered was sent when it says.
const HELD: Duration = Duration::from_millis(100);
/// Source ports are taken in turn, so that one stands for one connection: a turn takes many times [`HELD`].
const SOURCES: std::ops::Range<u16> = 10_000..60_000;

/// A connection that was accepted.
#[derive(Clone, Copy, Debug)]
pub struct Accepted {
    /// Just before its first packet was sent.
    pub sent: Instant,
    /// To where.
    pub to: SocketAddr,
}

/// A stream from one host to another; it stops when this is dropped.
#[derive(Debug)]
pub struct Stream {
    stop: Arc<AtomicBool>,
    sender: Option<JoinHandle<()>>,
    accepted: Arc<Mutex<Vec<Accepted>>>,
}

impl Stream {
    /// From `client` to these ends of `server`, where somebody listens on each of the ports for as long as the process lives.
    pub fn new(client: &Host, server: &Host, to: &[SocketAddr]) -> Self {
        let (stop, accepted) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let sent: Arc<Mutex<HashMap<u16, Instant>>> = Arc::default();
        let mut ports: Vec<u16> = to.iter().map(SocketAddr::port).collect();
        ports.sort_unstable();
        ports.dedup();
        for port in ports {
            let listener = server.enter(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).expect("a free port"));
            let (sent, accepted) = (Arc::clone(&sent), Arc::clone(&accepted));
            std::thread::spawn(move || {
                while let Ok((stream, peer)) = listener.accept() {
                    let sent = sent.lock().unwrap().get(&peer.port()).copied();
                    // One that its own host made up, in a test of the test, was sent by nobody.
                    if let (Some(sent), Ok(to)) = (sent, stream.local_addr()) {
                        accepted.lock().unwrap().push(Accepted { sent, to });
                    }
                }
            });
        }
        let (client, to, stopped) = (client.clone(), to.to_vec(), Arc::clone(&stop));
        let sender = std::thread::spawn(move || {
            client.step_into();
            send(&to, &sent, &stopped);
        });
        Self { stop, sender: Some(sender), accepted }
    }

    /// Takes what was accepted until now.
    pub fn take(&self) -> Vec<Accepted> {
        std::mem::take(&mut self.accepted.lock().unwrap())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(sender) = self.sender.take() {
            let _ = sender.join();
        }
    }
}

fn send(to: &[SocketAddr], sent: &Mutex<HashMap<u16, Instant>>, stop: &AtomicBool) {
    let mut sources = SOURCES.cycle();
    let mut held: VecDeque<(Instant, OwnedFd)> = VecDeque::new();
    while !stop.load(Ordering::Relaxed) {
        for to in to {
            let source = sources.next().expect("a cycle");
            let now = Instant::now();
            // Before the packet: it may be answered and accepted before `connect` returns.
            sent.lock().unwrap().insert(source, now);
            // Without an address or a route there is no connection; the next one may have them.
            if let Ok(socket) = begin(source, *to) {
                held.push_back((now, socket));
            }
        }
        while held.front().is_some_and(|(since, _)| since.elapsed() > HELD) {
            held.pop_front();
        }
        std::thread::sleep(EVERY);
    }
}

/// Begins a connection and does not wait for it. Closing it sends a reset, so that nothing of it stays.
fn begin(source: u16, to: SocketAddr) -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    setsockopt(&socket, sockopt::Linger, &linger { l_onoff: 1, l_linger: 0 })?;
    let from = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), source);
    bind(socket.as_raw_fd(), &SockaddrStorage::from(from))?;
    match connect(socket.as_raw_fd(), &SockaddrStorage::from(to)) {
        Ok(()) | Err(nix::errno::Errno::EINPROGRESS) => Ok(socket),
        Err(error) => Err(error),
    }
}
