//! `nodewall top`: rates by policy, interface and peer on a terminal, down to the rule and its text.

mod app;
mod draw;
mod meter;
mod model;
mod source;
mod table;

use std::env;
use std::fs::{self, File};
use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use ratatui::crossterm::{style, terminal};

use super::Options;
use super::exit::Exit;
use super::output::Output;
use super::status::ask;
use super::watch::{self, Error, Stream, Told};
use crate::config;
use crate::daemon::socket::{Refusal, Request};
use crate::daemon::status::Status;
use crate::daemon::traffic::record::Line;
use crate::source::{Trust, guards};
use app::{App, Effect};
use draw::{Shares, Theme, draw, rule_lines};
use source::{Whereabouts, source};

/// How often the counters are asked for at most: a look at the kernel costs the daemon some milliseconds, and more with large sets.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How many times as long as an answer takes the next one is waited for, so that looks take a twentieth of the daemon's time at most.
const PAUSE_FOR_ANSWER: u32 = 20;
/// How soon a daemon that is away is asked again.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// How long keys are waited for before what came is taken in.
const KEYS_FOR: Duration = Duration::from_millis(100);
/// How long a signal waits for the screen to be left in order.
const LAST_LOOK: Duration = Duration::from_secs(1);
/// How often the screen is drawn when no key is pressed.
const DRAW_EVERY: Duration = Duration::from_millis(500);
/// How much may wait to be taken in: some 100 ms of a flood. Beyond, the daemon counts what is missed.
const WAITING: usize = 8192;
/// The largest policy file of which lines are shown, in bytes.
const LARGEST_SOURCE: u64 = 4 * 1024 * 1024;

/// What the threads tell.
enum News {
    /// A line of the stream.
    Line(Box<Line>),
    /// There are events, or why there are none.
    Events(Option<String>),
    /// What is in force, and when that was.
    Status(Box<Status>, Instant),
    /// Why that is not known.
    NoStatus(String),
}

pub(super) fn run(options: &Options, output: &Output) -> Exit {
    let (config, _, _) = config::load(&options.config, Trust::Anyone);
    if let Err(why) = drawable() {
        output.message(&format!("top needs a terminal, and {why}; `nodewall monitor` and `nodewall status` need none"));
        return Exit::Usage;
    }
    let status = match status(&config.socket) {
        Ok(status) => status,
        Err(error) => return error.tell(&config.socket, output),
    };
    let ending = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&ending);
    let signals = watch::on_signals(&[Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP], move |what| match what {
        Told::ToEnd => {
            told.store(true, Ordering::Release);
            // Whoever waits for keys of a terminal that is gone may never look.
            let late = || {
                thread::sleep(LAST_LOOK);
                leave();
            };
            // Without a thread, a second signal does it.
            let _ = thread::Builder::new().name("end".to_owned()).spawn(late);
        }
        Told::Again => leave(),
    });
    let threads = signals.and_then(|()| listen(&config.socket));
    let news = match threads {
        Ok(news) => news,
        Err(error) => {
            output.message(&format!("cannot start: {error}"));
            return Exit::Failure;
        }
    };
    let colored = output.colored(&io::stdout());
    if colored {
        // `--color always` with NO_COLOR, which the library would go by.
        style::force_color_output(true);
    }
    let mut screen = Screen {
        app: App::new(absolute(&options.config).display().to_string()),
        theme: Theme { colored },
        begun: Instant::now(),
    };
    screen.app.model_mut().status(Duration::ZERO, &status);
    let shown = show(&mut screen, &news, &ending);
    match shown {
        Ok(()) => Exit::Ok,
        // The terminal went away, and with it what tells so.
        Err(_) if ending.load(Ordering::Acquire) => Exit::Ok,
        Err(error) => {
            output.message(&format!("cannot draw on the terminal: {error}"));
            Exit::Failure
        }
    }
}

/// Ends at once: nobody takes what is written any more; the terminal's mode is set without that.
fn leave() -> ! {
    let _ = terminal::disable_raw_mode();
    std::process::exit(Exit::Ok as i32)
}

/// Why nothing can be drawn.
fn drawable() -> Result<(), &'static str> {
    if !io::stdout().is_terminal() {
        return Err("stdout is none");
    }
    if !io::stdin().is_terminal() {
        return Err("stdin is none");
    }
    match env::var("TERM") {
        Ok(term) if !term.is_empty() && term != "dumb" => Ok(()),
        _ => Err("TERM names none that can be drawn on"),
    }
}

/// A path that does not depend on where we are; as it is, if nobody knows that.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

fn status(socket: &Path) -> Result<Status, Error> {
    let reply = ask(socket, &Request::new("status"))?;
    match (reply.status, reply.error) {
        (Some(status), _) => Ok(status),
        (None, Some(refusal)) => Err(Error::Refused(refusal)),
        (None, None) => Err(Error::Refused(Refusal {
            code: "unavailable".to_owned(),
            message: "the daemon answered nothing".to_owned(),
        })),
    }
}

/// Starts the threads that listen to the daemon. They end with the process.
fn listen(socket: &Path) -> io::Result<Receiver<News>> {
    let (sender, news) = sync_channel(WAITING);
    let (events, path) = (sender.clone(), socket.to_owned());
    thread::Builder::new().name("events".to_owned()).spawn(move || follow(&path, &events))?;
    let path = socket.to_owned();
    thread::Builder::new().name("status".to_owned()).spawn(move || look(&path, &sender))?;
    Ok(news)
}

/// Passes events on, as long as somebody takes them; a daemon that is away is asked again.
fn follow(socket: &Path, news: &SyncSender<News>) {
    loop {
        let why = match Stream::open(socket) {
            Ok(stream) => {
                // A refusal would follow at once.
                match news.send(News::Events(None)).ok().and_then(|()| pass_on(stream, news)) {
                    Some(error) => error,
                    None => return,
                }
            }
            Err(error) => error,
        };
        if news.send(News::Events(Some(why.explain(socket).0))).is_err() {
            return;
        }
        thread::sleep(AGAIN_AFTER);
    }
}

/// Why there are no more events; `None` when nobody takes them.
fn pass_on(mut stream: Stream, news: &SyncSender<News>) -> Option<Error> {
    loop {
        match stream.next() {
            Ok((line, _)) => news.send(News::Line(Box::new(line))).ok()?,
            Err(error) => return Some(error),
        }
    }
}

/// Asks for counters again and again, as long as somebody takes them.
fn look(socket: &Path, news: &SyncSender<News>) {
    let mut pause = LOOK_EVERY;
    loop {
        thread::sleep(pause);
        let asked = Instant::now();
        let answer = status(socket);
        pause = LOOK_EVERY.max(asked.elapsed().saturating_mul(PAUSE_FOR_ANSWER));
        let told = match answer {
            Ok(status) => news.send(News::Status(Box::new(status), Instant::now())),
            Err(error) => news.send(News::NoStatus(error.explain(socket).0)),
        };
        if told.is_err() {
            return;
        }
    }
}

/// What is on the terminal.
struct Screen {
    app: App,
    theme: Theme,
    begun: Instant,
}

/// Draws until a key or a signal ends it. However it ends, the terminal is as before.
fn show(screen: &mut Screen, news: &Receiver<News>, ending: &AtomicBool) -> io::Result<()> {
    let shown = ratatui::try_init().and_then(|mut terminal| screen.go(&mut terminal, news, ending));
    let restored = ratatui::try_restore();
    shown.and(restored)
}

impl Screen {
    fn go(&mut self, terminal: &mut DefaultTerminal, news: &Receiver<News>, ending: &AtomicBool) -> io::Result<()> {
        let mut drawn: Option<Instant> = None;
        while !ending.load(Ordering::Acquire) {
            // What comes meanwhile has its turn after the next look for keys.
            for told in news.try_iter().take(WAITING) {
                self.take_in(told);
            }
            self.app.set_now(self.begun.elapsed());
            if drawn.is_none_or(|drawn| drawn.elapsed() >= DRAW_EVERY) {
                terminal.draw(|frame| draw(frame, &self.app, self.theme))?;
                drawn = Some(Instant::now());
            }
            if !event::poll(KEYS_FOR)? {
                continue;
            }
            drawn = None;
            match event::read()? {
                Event::Key(key) if key.kind != KeyEventKind::Release => {
                    let size = terminal.size()?;
                    let lines = rule_lines(&self.app, self.theme, size.width.into()).len();
                    match self.app.key(key, Shares::of(size.height).rows(), lines) {
                        Effect::Nothing => {}
                        Effect::Quit => return Ok(()),
                        Effect::Read(place) => self.app.source = Some(read(&place)),
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn take_in(&mut self, news: News) {
        match news {
            News::Line(line) => self.app.model_mut().line(self.begun.elapsed(), &line),
            News::Events(why) => self.app.no_events = why,
            News::Status(status, at) => {
                self.app.no_status = None;
                self.app.model_mut().status(at.saturating_duration_since(self.begun), &status);
            }
            News::NoStatus(why) => self.app.no_status = Some(why),
        }
    }
}

/// Reads the text around a rule, as the user who looks.
fn read(place: &Whereabouts) -> source::Source {
    let text = match place {
        Whereabouts::File { path, .. } => read_file(path),
        Whereabouts::Guards { .. } => Ok(guards::TEXT.to_owned()),
        Whereabouts::Nowhere(_) => Ok(String::new()),
    };
    match text {
        Ok(text) => source(place, Ok(&text)),
        Err(error) => source(place, Err(&error.to_string())),
    }
}

fn read_file(path: &str) -> io::Result<String> {
    // A FIFO would be waited for.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(LARGEST_SOURCE).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
