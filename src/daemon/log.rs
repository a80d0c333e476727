//! Where log lines go: to the journal with fields when systemd listens, else as lines to stderr.

use std::env;
use std::fmt::{self, Write};
use std::io::{self, IsTerminal};

use nix::sys::stat::fstat;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::debug_fn;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{fmt as lines, registry};

/// The variable with the wanted levels, "debug" or "nodewall=trace".
const VARIABLE: &str = "NODEWALL_LOG";

/// `MESSAGE_ID` of the journal's catalogue, one per kind of event that somebody may want to find again.
pub(super) mod message_id {
    /// A generation is in force.
    pub(crate) const IN_FORCE: &str = "6a1f0c5d3b7e4f0e9d2b8c47a1e65f30";
    /// Documents were refused.
    pub(crate) const REFUSED: &str = "0d94b1e27c5a4d6f8e13fa6b90c2d751";
    /// Somebody else changed our table.
    pub(crate) const DRIFT: &str = "4e7b91c8d20f4b6ea1c35f08b7d96e12";
    /// A generation waits for its confirmation, or was confirmed.
    pub(crate) const TRIAL: &str = "4e5b0a7c21f94c6d8a3ce19d70b6f285";
    /// A generation was given up and another one came back.
    pub(crate) const ROLLED_BACK: &str = "c7f2d68e90314ab5b1e4053fa8d92c17";
    /// Panic or break-glass begins or ends.
    pub(crate) const EMERGENCY: &str = "92ad3c50f1b84e7fa6d07e21c4583b9e";
    /// The time of a policy is over.
    pub(crate) const EXPIRED: &str = "d5c01a9f6be84372a0f4e87d2391b65c";
    /// The disk does not take generations.
    pub(crate) const NOT_KEPT: &str = "1f8e6b3da0574c92b9d1c65e07a4f238";
    /// The kernel lacks something that nodewall uses.
    pub(crate) const KERNEL_LACKS: &str = "5c0e8a97d4b64f1fb2a36d19e7c85042";
    /// Packets were denied or rejected.
    pub(crate) const DENIED: &str = "d8610933a32e44f0a71bd0a534b20f10";
    /// Packets would have been denied or rejected if it were not for audit mode.
    pub(crate) const WOULD_DENY: &str = "b000512a1c4e4b308bac4a9e8e121d45";
    /// A rule logged packets that it does not stop.
    pub(crate) const LOGGED: &str = "1a0d03bbefe24a28be4a78cee938d621";
    /// How many packets had no line of their own.
    pub(crate) const LEFT_OUT: &str = "dc02fa1419a44f4d9a1ac8efe875c9ef";
    /// What goes on cannot be read or kept, or was lost on the way.
    pub(crate) const BLIND: &str = "e8cb361e79bb4fcd9b56987a35932fe9";
    /// The kernel did not take a ruleset.
    pub(crate) const FAILED: &str = "b3c8e2f4915d47a0a6c7d01e58f93b24";
}

/// Starts logging for the whole process: to the journal where stderr is its stream, else as lines to stderr.
pub fn start() {
    let asked = env::var(VARIABLE).ok().and_then(|text| text.parse::<Targets>().ok());
    let filter = asked.unwrap_or_else(|| Targets::new().with_default(LevelFilter::INFO));
    let started = if stderr_is_the_journal() {
        registry().with(filter).with(Journal).try_init()
    } else {
        let colored = env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()) && io::stderr().is_terminal();
        // The other fields are in the message already, or are for machines.
        let shown = debug_fn(|writer, field, value| match field.name() {
            "message" => write!(writer, "{value:?}"),
            "version" | "attempt" => write!(writer, " {}={value:?}", field.name()),
            _ => Ok(()),
        });
        let layer = lines::layer().with_writer(io::stderr).with_target(false).with_ansi(colored).fmt_fields(shown);
        registry().with(filter).with(layer).try_init()
    };
    // Fails only when logging was started already, which is as good.
    let _ = started;
}

/// Whether stderr is the stream that systemd connected to the journal (systemd.exec(5), `$JOURNAL_STREAM`): the variable is
/// inherited by children whose stderr goes somewhere else.
fn stderr_is_the_journal() -> bool {
    let Ok(stream) = env::var("JOURNAL_STREAM") else { return false };
    fstat(io::stderr()).is_ok_and(|stat| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// Sends events to journald with their fields: `generation` becomes `NODEWALL_GENERATION`.
struct Journal;

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        let mut fields =
            Fields(vec![format!("PRIORITY={}", priority(*metadata.level())), "SYSLOG_IDENTIFIER=nodewall".to_owned()]);
        event.record(&mut fields);
        if let (Some(file), Some(line)) = (metadata.file(), metadata.line()) {
            fields.0.push(format!("CODE_FILE={file}"));
            fields.0.push(format!("CODE_LINE={line}"));
        }
        let fields: Vec<&str> = fields.0.iter().map(String::as_str).collect();
        // Without a journal there is nobody left to tell.
        let _ = systemd::journal::send(&fields);
    }
}

/// syslog(3)'s numbers.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

struct Fields(Vec<String>);

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.push(format!("{}={value}", name(field.name())));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let mut text = name(field.name());
        // Writing to a String does not fail; "message" comes this way as format_args!, whose Debug is its Display.
        let _ = write!(text, "={value:?}");
        self.0.push(text);
    }
}

/// The journal's name of a field: upper case, with our prefix, as other programs have a "generation", too.
fn name(field: &str) -> String {
    match field {
        "message" => "MESSAGE".to_owned(),
        "message_id" => "MESSAGE_ID".to_owned(),
        other => format!("NODEWALL_{}", other.to_ascii_uppercase()),
    }
}
