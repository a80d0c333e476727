//! The screen of `top`: what the app shows, in as many columns and lines as there are.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;

use super::app::App;
use super::model::Unit;
use super::source::Source;
use super::table::{Page, Row, Section, Tone, rate_words};
use crate::cli::monitor::text::{endpoint, process};
use crate::daemon::traffic::record::EventRecord;
use crate::text::plain::plain;

/// The least that a name gets before figures are left out.
const LEAST_NAME: usize = 16;
/// The least that a note gets; in less it is left out.
const LEAST_NOTE: usize = 8;
/// The least that a column of figures gets.
const LEAST_CELL: usize = 6;

/// How the lines of the screen are shared out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Shares {
    head: u16,
    body: u16,
    foot: u16,
}

impl Shares {
    /// Of so many lines. The body comes first.
    pub(super) const fn of(height: u16) -> Self {
        let (head, foot) = match height {
            0..=3 => (0, 0),
            4..=6 => (1, 0),
            7..=9 => (2, 1),
            _ => (2, 2),
        };
        Self { head, body: height - head - foot, foot }
    }

    /// How many rows there is room for.
    pub(super) fn rows(self) -> usize {
        usize::from(self.body.saturating_sub(1))
    }
}

/// With colours, or with bold and reversed only.
#[derive(Clone, Copy, Debug)]
pub(super) struct Theme {
    pub(super) colored: bool,
}

impl Theme {
    const fn color(self, color: Color) -> Style {
        if self.colored { Style::new().fg(color) } else { Style::new() }
    }

    const fn tone(self, tone: Tone) -> Style {
        match tone {
            Tone::Denied => self.color(Color::Red),
            Tone::Would => self.color(Color::Yellow),
            Tone::Busy => self.color(Color::Green),
            Tone::Quiet => Style::new(),
        }
    }

    const fn faint(self) -> Style {
        self.color(Color::DarkGray)
    }

    const fn warn(self) -> Style {
        self.color(Color::Yellow).add_modifier(Modifier::BOLD)
    }
}

const STRONG: Style = Style::new().add_modifier(Modifier::BOLD);
const MARKED: Style = Style::new().add_modifier(Modifier::REVERSED);

/// Draws the screen.
pub(super) fn draw(frame: &mut Frame<'_>, app: &App, theme: Theme) {
    let area = frame.area();
    let shares = Shares::of(area.height);
    let width = usize::from(area.width);
    let mut lines: Vec<Line<'_>> = Vec::new();
    lines.extend([summary(app, theme), path(app)].into_iter().take(usize::from(shares.head)));
    lines.extend(body(app, theme, width, usize::from(shares.body)));
    lines.resize(usize::from(shares.head + shares.body), Line::default());
    let feet = [notes(app, theme), keys(app)];
    lines.extend(feet.into_iter().rev().take(usize::from(shares.foot)).rev());
    frame.render_widget(Paragraph::new(lines), Rect { ..area });
}

/// State and totals.
fn summary<'a>(app: &App, theme: Theme) -> Line<'a> {
    let (model, _) = app.shown();
    let [allowed, denied, would] = model.totals().map(rate_words);
    let state = match (model.state.as_str(), model.mode.as_str()) {
        ("in-force", "audit") => "in force (audit)".to_owned(),
        ("in-force", _) => "in force".to_owned(),
        (other, _) => plain(other).into_owned(),
    };
    let style = if state == "in force" { theme.color(Color::Green) } else { theme.warn() };
    let mut spans = vec![
        Span::styled("nodewall top  ", STRONG),
        Span::styled(state, style),
        Span::raw(format!(", generation {}   ", model.generation)),
        Span::styled(format!("allowed {allowed}/s"), theme.color(Color::Green)),
        Span::raw("  "),
        Span::styled(format!("denied {denied}/s"), theme.color(Color::Red)),
        Span::raw("  "),
        Span::styled(format!("would deny {would}/s"), theme.color(Color::Yellow)),
    ];
    if app.is_paused() {
        spans.insert(1, Span::styled("PAUSED", MARKED));
        spans.insert(2, Span::raw("  "));
    }
    Line::from(spans)
}

/// The views, and the way from there to the page.
fn path<'a>(app: &App) -> Line<'a> {
    let mut pages = app.path();
    let view = pages.next();
    let mut spans = Vec::new();
    for (number, page, name) in
        [(1, Page::Policies, "policies"), (2, Page::Interfaces, "interfaces"), (3, Page::Peers, "peers")]
    {
        let style = if view == Some(&page) { MARKED } else { Style::new() };
        spans.extend([Span::styled(format!(" {number} {name} "), style), Span::raw(" ")]);
    }
    for page in pages {
        spans.push(Span::styled(format!("> {} ", plain(&page.name())), STRONG));
    }
    if app.editing || !app.look.filter.is_empty() {
        let cursor = if app.editing { "_" } else { "" };
        spans.push(Span::styled(format!(" /{}{cursor}", plain(&app.look.filter)), STRONG));
    }
    Line::from(spans)
}

impl Page {
    /// What it is called on the way to it.
    fn name(&self) -> String {
        match self {
            Self::Policies => "policies".to_owned(),
            Self::Interfaces => "interfaces".to_owned(),
            Self::Peers => "peers".to_owned(),
            Self::Policy(name) | Self::Interface(name) | Self::Peer(name) => name.clone(),
            Self::Rule(rule) => rule.rule.clone(),
        }
    }
}

/// Where the figures come from, and what is wrong with them.
fn notes<'a>(app: &App, theme: Theme) -> Line<'a> {
    let (model, _) = app.shown();
    if let Some(why) = app.no_status.as_ref().or(app.no_events.as_ref()) {
        return Line::styled(plain(why).into_owned(), theme.warn());
    }
    let counted = matches!(app.page(), Page::Policies | Page::Policy(_) | Page::Rule(_));
    if counted {
        let left_out = match model.rules_left_out {
            0 => String::new(),
            count => format!("; {count} rules more are not shown"),
        };
        let text = format!("counters of the kernel; of what is allowed, the first packet of a connection{left_out}");
        return Line::styled(text, theme.faint());
    }
    let unit = match app.look.unit {
        Unit::Both => "connections and logged packets",
        Unit::Connections => "connections only",
        Unit::Packets => "logged packets only",
    };
    let lost = model.losses();
    let style = if lost.is_empty() { theme.faint() } else { theme.warn() };
    let lost = if lost.is_empty() { "none missed".to_owned() } else { lost };
    Line::styled(format!("seen: {} events, {unit}; {lost}", model.events), style)
}

fn keys<'a>(app: &App) -> Line<'a> {
    if app.editing {
        return Line::raw("type to filter; Enter keeps it, Esc ends it");
    }
    let sort = app.look.sort.name();
    Line::raw(match app.page() {
        Page::Rule(_) => "Up/Down scroll  Esc back  p pause  ? help  q quit".to_owned(),
        _ => format!("Tab view  Enter open  Esc back  s sort: {sort}  / filter  p pause  ? help  q quit"),
    })
}

fn body<'a>(app: &App, theme: Theme, width: usize, height: usize) -> Vec<Line<'a>> {
    if app.help {
        return HELP.lines().take(height).map(Line::raw).collect();
    }
    if matches!(app.page(), Page::Rule(_)) {
        let lines = rule_lines(app, theme, width);
        // What fits is shown whole.
        let first = app.scroll().min(lines.len().saturating_sub(height.min(lines.len())));
        return lines.into_iter().skip(first).take(height).collect();
    }
    let sections = app.sections();
    let selected = app.selected(&sections);
    if selected.is_none() {
        return vec![head(&sections, theme, width), Line::raw(nothing(app))];
    }
    let mut lines = Vec::new();
    let (mut marked, mut number) = (0, 0);
    for section in sections.iter().filter(|section| !section.rows.is_empty()) {
        let widths = Widths::of(section, width);
        lines.push(Line::styled(head_text(section, &widths), head_style(theme)));
        for row in &section.rows {
            let is_it = selected == Some(number);
            if is_it {
                marked = lines.len();
            }
            lines.push(line(row, &widths, theme, is_it));
            number += 1;
        }
    }
    // The head of a table stays; with several, the selected row is what counts.
    if sections.len() == 1 && height > 1 && !lines.is_empty() {
        let head = lines.remove(0);
        let first = (marked - 1).saturating_sub(height - 2);
        return std::iter::once(head).chain(lines.into_iter().skip(first)).take(height).collect();
    }
    let first = marked.saturating_sub(height.saturating_sub(1));
    lines.into_iter().skip(first).take(height).collect()
}

fn nothing(app: &App) -> &'static str {
    match app.page() {
        _ if !app.look.filter.is_empty() => "nothing matches the filter; Esc clears it",
        Page::Policies => "no policies",
        Page::Policy(_) => "no rules that count anything",
        _ => "nothing was seen yet",
    }
}

fn head<'a>(sections: &[Section], theme: Theme, width: usize) -> Line<'a> {
    let text = sections.first().map(|section| head_text(section, &Widths::of(section, width))).unwrap_or_default();
    Line::styled(text, head_style(theme))
}

const fn head_style(theme: Theme) -> Style {
    if theme.colored { STRONG.fg(Color::Cyan) } else { STRONG }
}

/// How wide the columns of a table are.
struct Widths {
    name: usize,
    /// Without room for notes: 0.
    note: usize,
    cells: Vec<usize>,
}

impl Widths {
    fn of(section: &Section, width: usize) -> Self {
        let mut cells: Vec<usize> = section.columns.iter().map(|title| title.len().max(LEAST_CELL) + 1).collect();
        while cells.iter().sum::<usize>() + LEAST_NAME > width && !cells.is_empty() {
            cells.pop();
        }
        let left = width - cells.iter().sum::<usize>().min(width);
        let names = section.rows.iter().map(|row| row.name.as_str()).chain([section.head]);
        let widest = names.map(|name| plain(name).chars().count()).max().unwrap_or(0);
        let note = left.saturating_sub(widest + 2);
        if note < LEAST_NOTE || section.note.is_empty() {
            return Self { name: left, note: 0, cells };
        }
        Self { name: widest, note, cells }
    }

    fn left(&self, name: &str, note: &str) -> (String, String) {
        if self.note == 0 {
            return (fit(name, self.name), String::new());
        }
        (fit(name, self.name), format!("  {}", fit(note, self.note)))
    }
}

fn head_text(section: &Section, widths: &Widths) -> String {
    let (name, note) = widths.left(section.head, section.note);
    format!("{name}{note}{}", right(section.columns.iter().copied(), widths))
}

fn right<'t>(cells: impl Iterator<Item = &'t str>, widths: &Widths) -> String {
    cells.zip(&widths.cells).map(|(cell, width)| format!("{cell:>width$}")).collect()
}

fn line<'a>(row: &Row, widths: &Widths, theme: Theme, marked: bool) -> Line<'a> {
    let (name, note) = widths.left(&row.name, &row.note);
    let figures = right(row.cells.iter().map(String::as_str), widths);
    let style = theme.tone(row.tone);
    if marked {
        return Line::styled(format!("{name}{note}{figures}"), style.patch(MARKED));
    }
    Line::from(vec![Span::styled(name, style), Span::styled(note, theme.faint()), Span::styled(figures, style)])
}

/// The text in so many columns, cut off or filled up.
fn fit(text: &str, width: usize) -> String {
    let text = plain(text);
    let (mut out, mut used) = (String::new(), 0);
    let whole = Span::raw(&*text).width();
    for character in text.chars() {
        let next = Span::raw(character.to_string()).width();
        if used + next + usize::from(whole > width) > width {
            break;
        }
        out.push(character);
        used += next;
    }
    if whole > width && used < width {
        out.push('~');
        used += 1;
    }
    out.extend(std::iter::repeat_n(' ', width - used));
    out
}

/// The lines of the page of a rule: its counters, its text, and its last events.
pub(super) fn rule_lines<'a>(app: &App, theme: Theme, width: usize) -> Vec<Line<'a>> {
    let Page::Rule(rule) = app.page() else { return Vec::new() };
    let mut lines = Vec::new();
    for section in app.sections() {
        let widths = Widths::of(&section, width);
        lines.push(Line::styled(head_text(&section, &widths), head_style(theme)));
        lines.extend(section.rows.iter().map(|row| line(row, &widths, theme, false)));
        if section.rows.is_empty() {
            lines.push(Line::raw("no rule of this name counts anything just now"));
        }
    }
    lines.push(Line::default());
    if let Some(Source { path, lines: text, note }) = &app.source {
        if !path.is_empty() {
            let title = format!("{}, as it is on disk now", plain(path));
            lines.push(Line::styled(title, head_style(theme)));
        }
        if let Some(note) = note {
            lines.push(Line::styled(plain(note).into_owned(), theme.warn()));
        }
        for (number, is_it, text) in text {
            let mark = if *is_it { '>' } else { ' ' };
            let style = if *is_it { STRONG } else { Style::new() };
            lines.push(Line::styled(format!("{mark}{number:>5} {}", plain(text)), style));
        }
        lines.push(Line::default());
    }
    lines.push(Line::styled("LAST EVENTS", head_style(theme)));
    let (model, _) = app.shown();
    let events = lines.len();
    lines.extend(model.last_events(rule).map(|event| Line::raw(event_text(event))));
    if lines.len() == events {
        lines.push(Line::raw("none was seen yet"));
    }
    lines
}

/// "08:20:19 eth0 10.0.7.9:40122 > 10.0.0.5:10250 tcp gpu-17 kubelet (kubelet.service)".
fn event_text(event: &EventRecord) -> String {
    let time = event.time.split_once('T').map_or(event.time.as_str(), |(_, time)| time);
    let time = time.get(..12).unwrap_or(time);
    let interface = event.interface.as_deref().or(event.out.as_deref()).unwrap_or("-");
    let source = endpoint(&event.source, event.source_port);
    let destination = endpoint(&event.destination, event.destination_port);
    let protocol = event.protocol.as_deref().unwrap_or("?");
    let mut text = format!("{time} {} {interface} {protocol} {source} > {destination}", event.verdict);
    for more in [event.names.join(","), event.process.as_ref().map(process).unwrap_or_default()] {
        if !more.is_empty() {
            text.push(' ');
            text.push_str(&more);
        }
    }
    plain(&text).into_owned()
}

const HELP: &str = "\
1 2 3, Tab      policies, interfaces, peers
Up Down j k     select; PgUp PgDn Home End go further
Enter, Right    open: policy > rule > text and last events;
                peer or interface > services and rules
Esc, Left       back; in a view, clear the filter
s               sort by rate, denied, sum, name
/               show only rows with a text in name or note
c               peers, interfaces: count connections and logged
                packets, or only one of them
p, Space        pause, and go on
q, Ctrl-C       quit

Figures of policies and rules are the kernel's counters: of what is
allowed they count the first packet of each connection. Those of
peers and interfaces are what the daemon told: connections that
began, and packets that were logged. Sums are since the start of top,
rates of events the mean of 5 seconds.
";

#[cfg(test)]
mod tests;
