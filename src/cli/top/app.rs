//! What is shown of the model, and what keys do; without a terminal.

use std::time::Duration;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::model::{Model, Unit};
use super::source::{Source, Whereabouts, whereabouts};
use super::table::{Look, Page, Row, Section, sections};

/// The longest filter, in characters.
const LONGEST_FILTER: usize = 64;

/// What a key asks of the terminal's side.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Effect {
    Nothing,
    Quit,
    /// Read the text of a rule, and set it as [`App::source`].
    Read(Whereabouts),
}

/// A page with the place in it.
#[derive(Clone, Debug)]
struct Visit {
    page: Page,
    /// The selected row by section, name and note, as rows change places.
    selected: Option<(usize, String, String)>,
    /// Where it was last, for when it is gone; on the page of a rule, the first line shown.
    position: usize,
}

impl Visit {
    const fn to(page: Page) -> Self {
        Self { page, selected: None, position: 0 }
    }
}

/// The screen.
#[derive(Clone, Debug)]
pub(super) struct App {
    model: Model,
    /// What is shown instead while it is paused, and when that was.
    paused: Option<Box<(Model, Duration)>>,
    /// One of the three views, and what was entered from there.
    visits: Vec<Visit>,
    pub(super) look: Look,
    /// Whether keys go into the filter.
    pub(super) editing: bool,
    /// Whether help is shown.
    pub(super) help: bool,
    /// The text of the rule that is shown.
    pub(super) source: Option<Source>,
    /// Why there are no events just now.
    pub(super) no_events: Option<String>,
    /// Why there are no counters just now.
    pub(super) no_status: Option<String>,
    /// The path of nodewall.toml.
    settings: String,
    now: Duration,
}

impl App {
    pub(super) fn new(settings: String) -> Self {
        Self {
            model: Model::default(),
            paused: None,
            visits: vec![Visit::to(Page::Policies)],
            look: Look::default(),
            editing: false,
            help: false,
            source: None,
            no_events: None,
            no_status: None,
            settings,
            now: Duration::ZERO,
        }
    }

    /// What goes on goes into this one, also while it is paused.
    pub(super) const fn model_mut(&mut self) -> &mut Model {
        &mut self.model
    }

    /// The time since the start.
    pub(super) const fn set_now(&mut self, now: Duration) {
        self.now = now;
    }

    /// What is shown.
    pub(super) fn shown(&self) -> (&Model, Duration) {
        match self.paused.as_deref() {
            Some((model, at)) => (model, *at),
            None => (&self.model, self.now),
        }
    }

    pub(super) const fn is_paused(&self) -> bool {
        self.paused.is_some()
    }

    /// The page that is shown.
    pub(super) fn page(&self) -> &Page {
        self.visits.last().map_or(&Page::Policies, |visit| &visit.page)
    }

    /// The pages from the view to the one that is shown.
    pub(super) fn path(&self) -> impl Iterator<Item = &Page> {
        self.visits.iter().map(|visit| &visit.page)
    }

    /// What is on the page.
    pub(super) fn sections(&self) -> Vec<Section> {
        let (model, now) = self.shown();
        sections(model, self.page(), &self.look, now)
    }

    /// Which row is selected, counted over all sections; `None` without rows.
    pub(super) fn selected(&self, sections: &[Section]) -> Option<usize> {
        let rows: Vec<(usize, &Row)> = rows(sections).collect();
        let visit = self.visits.last()?;
        let wanted = visit.selected.as_ref();
        let found = rows.iter().position(|(section, row)| {
            wanted.is_some_and(|(of, name, note)| of == section && *name == row.name && *note == row.note)
        });
        found.or_else(|| rows.len().checked_sub(1).map(|last| visit.position.min(last)))
    }

    /// The first line to show of the page of a rule.
    pub(super) fn scroll(&self) -> usize {
        self.visits.last().map_or(0, |visit| visit.position)
    }

    /// What a key does. `height`: how many rows are shown at once; `lines`: how many lines the page of a rule has.
    pub(super) fn key(&mut self, key: KeyEvent, height: usize, lines: usize) -> Effect {
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        if control && matches!(key.code, KeyCode::Char('c')) {
            return Effect::Quit;
        }
        if self.editing {
            self.edit(key.code);
            return Effect::Nothing;
        }
        if self.help {
            self.help = false;
            return if key.code == KeyCode::Char('q') { Effect::Quit } else { Effect::Nothing };
        }
        let page = isize::try_from(height.max(2) - 1).unwrap_or(isize::MAX);
        match key.code {
            KeyCode::Char('q') => return Effect::Quit,
            KeyCode::Char('?' | 'h') => self.help = true,
            KeyCode::Char('1') => self.view(Page::Policies),
            KeyCode::Char('2') => self.view(Page::Interfaces),
            KeyCode::Char('3') => self.view(Page::Peers),
            KeyCode::Tab => self.view(match self.visits.first().map(|visit| &visit.page) {
                Some(Page::Policies) => Page::Interfaces,
                Some(Page::Interfaces) => Page::Peers,
                _ => Page::Policies,
            }),
            KeyCode::BackTab => self.view(match self.visits.first().map(|visit| &visit.page) {
                Some(Page::Policies) => Page::Peers,
                Some(Page::Peers) => Page::Interfaces,
                _ => Page::Policies,
            }),
            KeyCode::Char('s') => self.look.sort = self.look.sort.next(),
            KeyCode::Char('c') => {
                self.look.unit = match self.look.unit {
                    Unit::Both => Unit::Connections,
                    Unit::Connections => Unit::Packets,
                    Unit::Packets => Unit::Both,
                }
            }
            KeyCode::Char('/') => self.editing = true,
            KeyCode::Char('p' | ' ') => {
                self.paused = match self.paused {
                    Some(_) => None,
                    None => Some(Box::new((self.model.clone(), self.now))),
                }
            }
            KeyCode::Up | KeyCode::Char('k') => self.go(-1, lines),
            KeyCode::Down | KeyCode::Char('j') => self.go(1, lines),
            KeyCode::PageUp => self.go(-page, lines),
            KeyCode::PageDown => self.go(page, lines),
            KeyCode::Home => self.go(isize::MIN, lines),
            KeyCode::End => self.go(isize::MAX, lines),
            KeyCode::Enter | KeyCode::Right => return self.enter(),
            KeyCode::Esc | KeyCode::Left | KeyCode::Backspace => self.back(),
            _ => {}
        }
        Effect::Nothing
    }

    fn edit(&mut self, key: KeyCode) {
        match key {
            KeyCode::Enter => self.editing = false,
            KeyCode::Esc => {
                self.editing = false;
                self.look.filter.clear();
            }
            KeyCode::Backspace => {
                self.look.filter.pop();
            }
            KeyCode::Char(character) if self.look.filter.chars().count() < LONGEST_FILTER => {
                self.look.filter.push(character);
            }
            _ => {}
        }
    }

    fn view(&mut self, page: Page) {
        self.visits = vec![Visit::to(page)];
    }

    fn back(&mut self) {
        if self.visits.len() > 1 {
            self.visits.pop();
        } else {
            self.look.filter.clear();
        }
    }

    /// Moves by so many rows, or lines of a rule's page.
    fn go(&mut self, by: isize, lines: usize) {
        let move_in = |from: usize, count: usize| from.saturating_add_signed(by).min(count.saturating_sub(1));
        if matches!(self.page(), Page::Rule(_)) {
            if let Some(visit) = self.visits.last_mut() {
                visit.position = move_in(visit.position, lines);
            }
            return;
        }
        let sections = self.sections();
        let Some(selected) = self.selected(&sections) else { return };
        let rows: Vec<(usize, &Row)> = rows(&sections).collect();
        let position = move_in(selected, rows.len());
        let (Some((section, row)), Some(visit)) = (rows.get(position), self.visits.last_mut()) else { return };
        (visit.position, visit.selected) = (position, Some((*section, row.name.clone(), row.note.clone())));
    }

    fn enter(&mut self) -> Effect {
        let sections = self.sections();
        let Some(selected) = self.selected(&sections) else { return Effect::Nothing };
        let Some((section, row)) = rows(&sections).nth(selected) else { return Effect::Nothing };
        if matches!(self.page(), Page::Rule(_)) {
            return Effect::Nothing;
        }
        let Some(page) = row.leads.clone() else { return Effect::Nothing };
        if let Some(visit) = self.visits.last_mut() {
            // To come back to.
            (visit.position, visit.selected) = (selected, Some((section, row.name.clone(), row.note.clone())));
        }
        // A filter of names of one kind finds nothing among those of another.
        self.look.filter.clear();
        let effect = match &page {
            Page::Rule(rule) => {
                self.source = None;
                Effect::Read(whereabouts(rule, &self.model.policies, &self.settings))
            }
            _ => Effect::Nothing,
        };
        self.visits.push(Visit::to(page));
        effect
    }
}

/// Rows with the number of their section.
fn rows(sections: &[Section]) -> impl Iterator<Item = (usize, &Row)> {
    sections.iter().enumerate().flat_map(|(number, section)| section.rows.iter().map(move |row| (number, row)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::model::tests::{at, event, of, status};
    use super::*;

    fn press(app: &mut App, keys: &str) -> Effect {
        let mut effect = Effect::Nothing;
        for word in keys.split(' ') {
            let code = match word {
                "enter" => KeyCode::Enter,
                "esc" => KeyCode::Esc,
                "down" => KeyCode::Down,
                "up" => KeyCode::Up,
                "end" => KeyCode::End,
                "tab" => KeyCode::Tab,
                "backtab" => KeyCode::BackTab,
                "back" => KeyCode::Backspace,
                "pagedown" => KeyCode::PageDown,
                one => KeyCode::Char(one.chars().next().unwrap()),
            };
            effect = app.key(KeyEvent::new(code, KeyModifiers::NONE), 10, 20);
        }
        effect
    }

    fn app() -> App {
        let mut app = App::new("/etc/nodewall/nodewall.toml".into());
        app.model.status(
            at(0),
            &status(&["kubelet#1 20-kubelet.toml:13 allowed 1", "kubelet#2 20-kubelet.toml:14 denied 2"]),
        );
        app.model.line(at(0), &of(event("denied", "packet", "10.0.7.9", 10250)));
        app.set_now(at(3));
        app
    }

    fn selected(app: &App) -> String {
        let sections = app.sections();
        let name = app.selected(&sections).and_then(|at| rows(&sections).nth(at)).map(|(_, row)| row.name.clone());
        name.unwrap_or_default()
    }

    #[test]
    fn enter_leads_to_the_rule_and_esc_back() {
        let mut app = app();
        assert_eq!(selected(&app), "kubelet");
        press(&mut app, "enter down");
        assert_eq!((app.page(), selected(&app).as_str()), (&Page::Policy("kubelet".into()), "kubelet#2"));
        let effect = press(&mut app, "enter");
        let path = "/etc/nodewall/policy.d/20-kubelet.toml".to_owned();
        assert_eq!(effect, Effect::Read(Whereabouts::File { path, line: 14 }));
        assert!(matches!(app.page(), Page::Rule(rule) if rule.rule == "kubelet#2"));
        press(&mut app, "enter down down up");
        assert_eq!(app.scroll(), 1);
        press(&mut app, "end");
        assert_eq!(app.scroll(), 19);
        press(&mut app, "esc");
        assert_eq!(selected(&app), "kubelet#2");
        press(&mut app, "esc esc");
        assert_eq!((app.page(), selected(&app).as_str()), (&Page::Policies, "kubelet"));
    }

    #[test]
    fn peers_lead_to_their_services_and_rules() {
        let mut app = app();
        press(&mut app, "3 enter");
        assert_eq!((app.page(), selected(&app).as_str()), (&Page::Peer("10.0.7.9".into()), "in tcp 10250"));
        assert_eq!(press(&mut app, "enter"), Effect::Nothing);
        assert!(matches!(press(&mut app, "down enter"), Effect::Read(_)));
    }

    #[test]
    fn views_go_round() {
        let mut app = app();
        for (key, page) in [
            ("tab", Page::Interfaces),
            ("tab", Page::Peers),
            ("tab", Page::Policies),
            ("backtab", Page::Peers),
            ("2", Page::Interfaces),
            ("1", Page::Policies),
        ] {
            press(&mut app, key);
            assert_eq!(*app.page(), page);
        }
    }

    #[test]
    fn the_selection_stays_with_its_row_when_others_move() {
        let mut app = app();
        press(&mut app, "s s s down");
        assert_eq!(selected(&app), "nccl");
        app.model.status(at(2), &status(&["a-new-one#1 x:1 allowed 100"]));
        assert_eq!(selected(&app), "nccl");
        app.model.policies.clear();
        assert_eq!(selected(&app), "a-new-one");
    }

    #[test]
    fn a_filter_is_typed_kept_and_cleared() {
        let mut app = app();
        press(&mut app, "/ n c q back c enter");
        assert_eq!((app.look.filter.as_str(), app.editing, selected(&app).as_str()), ("ncc", false, "nccl"));
        press(&mut app, "esc");
        assert_eq!(app.look.filter, "");
        press(&mut app, "/ x esc");
        assert_eq!((app.look.filter.as_str(), app.editing), ("", false));
        press(&mut app, "/ z z enter enter down");
        assert_eq!((app.page(), selected(&app).as_str()), (&Page::Policies, ""));
    }

    #[test]
    fn pausing_holds_what_is_shown_and_nothing_is_lost() {
        let mut app = app();
        press(&mut app, "p");
        app.model_mut().line(at(9), &of(event("denied", "packet", "10.0.7.9", 10250)));
        app.set_now(at(9));
        assert!(app.is_paused());
        assert_eq!((app.shown().0.events, app.shown().1), (1, at(3)));
        press(&mut app, "p");
        assert_eq!((app.shown().0.events, app.shown().1), (2, at(9)));
    }

    #[test]
    fn q_and_control_c_end_it() {
        let mut app = app();
        assert_eq!(press(&mut app, "q"), Effect::Quit);
        press(&mut app, "?");
        assert!(app.help);
        press(&mut app, "x");
        assert!(!app.help);
        app.editing = true;
        assert_eq!(app.key(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL), 10, 20), Effect::Quit);
    }
}
