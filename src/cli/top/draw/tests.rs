//! The screen as text, on terminals of several sizes.

#![allow(clippy::unwrap_used)]

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::super::model::tests::{at, event, of, status};
use super::*;
use crate::daemon::traffic::record::{ActorRecord, LostRecord};

const PLAIN: Theme = Theme { colored: false };

/// A node on which something goes on, three seconds after the start.
fn app() -> App {
    let mut app = App::new("/etc/nodewall/nodewall.toml".into());
    let model = app.model_mut();
    model.status(at(0), &status(&["failsafe:ssh#1 nodewall.toml:3 allowed 4"]));
    let rules = [
        "default of mgmt ingress - denied 30000",
        "failsafe:ssh#1 nodewall.toml:3 allowed 5",
        "kubelet#1 20-kubelet.toml:13 allowed 100",
        "kubelet#2 20-kubelet.toml:14 denied 2",
        "nccl#1 30-nccl.toml:9 would-deny 6",
    ];
    model.status(at(2), &status(&rules));
    for second in 0..3 {
        let mut denied = event("denied", "packet", "10.0.7.9", 10250);
        denied.names = vec!["node:gpu-17".into(), "set:ops".into()];
        denied.process = Some(ActorRecord { name: "kube\u{1b}[2Jlet".into(), ..ActorRecord::default() });
        model.line(at(second), &of(denied));
        model.line(at(second), &of(event("allowed", "connection", "fd00::1:2:3:4", 22)));
    }
    app.set_now(at(3));
    app
}

fn press(app: &mut App, keys: &[KeyCode]) {
    for key in keys {
        app.key(KeyEvent::new(*key, KeyModifiers::NONE), 20, 20);
    }
}

fn screen(app: &App, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, app, PLAIN)).unwrap();
    let lines = terminal.backend().buffer().content().chunks(width.into()).map(|cells| {
        let line: String = cells.iter().map(ratatui::buffer::Cell::symbol).collect();
        format!("{}\n", line.trim_end())
    });
    lines.collect()
}

#[track_caller]
fn shows(app: &App, width: u16, height: u16, expected: &str) {
    let screen = screen(app, width, height);
    assert_eq!(screen, expected, "\n{screen}");
}

#[test]
fn policies_on_a_terminal_of_80_columns() {
    shows(&app(), 80, 14, "");
}

#[test]
fn a_rule_has_its_text_and_its_last_events() {
    let mut app = app();
    press(&mut app, &[KeyCode::Char('s'), KeyCode::Char('s'), KeyCode::Char('s'), KeyCode::Down]);
    press(&mut app, &[KeyCode::Down, KeyCode::Enter, KeyCode::Down, KeyCode::Enter]);
    app.source = Some(Source {
        path: "/etc/nodewall/policy.d/20-kubelet.toml".into(),
        lines: vec![(13, false, "  { action = \"allow\" },".into()), (14, true, "  { action = \"deny\" },".into())],
        note: None,
    });
    shows(&app, 80, 16, "");
    app.source =
        Some(Source { path: "/x".into(), lines: Vec::new(), note: Some("cannot read /x: Permission denied".into()) });
    assert!(screen(&app, 80, 16).contains("\ncannot read /x: Permission denied\n"));
}

#[test]
fn peers_say_what_was_missed() {
    let mut app = app();
    let line = |line: crate::daemon::traffic::record::Line| line;
    let lost = LostRecord { packets: 7, connections: 2 };
    app.model_mut().line(
        at(2),
        &line(crate::daemon::traffic::record::Line { missed: Some(3), lost: Some(lost), ..Default::default() }),
    );
    press(&mut app, &[KeyCode::Char('3')]);
    shows(&app, 80, 10, "");
    press(&mut app, &[KeyCode::Enter]);
    shows(&app, 100, 12, "");
}

#[test]
fn small_terminals_have_the_rows_first() {
    shows(&app(), 40, 8, "");
    shows(&app(), 20, 3, "");
    // No size is too small for it, and none too large, wherever one is.
    let mut app = app();
    for keys in [&[][..], &[KeyCode::End], &[KeyCode::Enter], &[KeyCode::Enter], &[KeyCode::Char('?')]] {
        press(&mut app, keys);
        for width in [0, 1, 2, 9, 16, 33, 80, 500] {
            for height in [0, 1, 2, 3, 4, 7, 10, 24, 200] {
                let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
                terminal.draw(|frame| draw(frame, &app, Theme { colored: true })).unwrap();
            }
        }
    }
}

#[test]
fn the_selected_row_is_in_sight_and_the_head_stays() {
    let mut app = app();
    let rules: Vec<String> = (1..=60).map(|number| format!("kubelet#{number} a:{number} allowed 1")).collect();
    app.model_mut().status(at(3), &status(&rules.iter().map(String::as_str).collect::<Vec<_>>()));
    press(&mut app, &[KeyCode::Enter, KeyCode::End]);
    let screen = screen(&app, 60, 10);
    let lines: Vec<&str> = screen.lines().collect();
    assert!(lines[2].starts_with("RULE") && lines[7].starts_with("kubelet#9"), "{screen}");
}

#[test]
fn help_and_a_filter_that_finds_nothing() {
    let mut app = app();
    press(&mut app, &[KeyCode::Char('?')]);
    assert!(screen(&app, 80, 24).contains("\nq, Ctrl-C       quit\n"));
    press(&mut app, &[KeyCode::Char('x'), KeyCode::Char('/'), KeyCode::Char('z'), KeyCode::Char('z')]);
    let text = screen(&app, 80, 24);
    assert!(text.contains("/zz_\n") && text.contains("\nnothing matches the filter; Esc clears it\n"), "{text}");
    app.no_status = Some("the daemon is not running\u{1b}".into());
    assert!(screen(&app, 80, 24).contains("\nthe daemon is not running\\u{1b}\n"));
}

#[test]
fn without_colours_there_are_none() {
    let colors = |theme: Theme| {
        let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
        terminal.draw(|frame| draw(frame, &app(), theme)).unwrap();
        let cells = terminal.backend().buffer().content().to_vec();
        cells.iter().filter(|cell| cell.fg != Color::Reset || cell.bg != Color::Reset).count()
    };
    assert_eq!(colors(PLAIN), 0);
    assert!(colors(Theme { colored: true }) > 50);
}

#[test]
fn text_is_cut_to_columns_and_not_to_characters() {
    for (text, width, fitted) in [
        ("abc", 5, "abc  "),
        ("abcdef", 4, "abc~"),
        ("日本語", 6, "日本語"),
        ("日本語", 5, "日本~"),
        ("日本語", 4, "日~ "),
        ("abc", 0, ""),
    ] {
        assert_eq!(fit(text, width), fitted, "{text} in {width}");
    }
}
